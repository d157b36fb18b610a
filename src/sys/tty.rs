//! The person's own terminal: raw modes and window size.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr,
};

nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, libc::winsize);

/// Rows and columns of a terminal; `None` where `fd` is none.
#[must_use]
pub fn window_size(fd: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, which `size` is; the descriptor is open as long as it is borrowed.
    unsafe { tiocgwinsz(fd.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// A terminal in another mode; the old one comes back when this is dropped.
#[derive(Debug)]
pub struct TerminalMode {
    terminal: OwnedFd,
    before: Termios,
}

impl TerminalMode {
    /// Every key goes through untouched: for a container that has a pty of its own.
    pub fn raw(fd: impl AsFd) -> std::io::Result<Self> {
        Self::change(fd, |mode| {
            cfmakeraw(mode);
        })
    }

    /// Keys come one by one and are not shown, but ctrl-c still interrupts: for watching a log with detach keys.
    pub fn keys(fd: impl AsFd) -> std::io::Result<Self> {
        Self::change(fd, |mode| {
            mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
            // Terminals come with flow control on, which keeps ctrl-q (and ctrl-s) to itself: half of the usual detach keys.
            mode.input_flags.remove(InputFlags::IXON);
            mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        })
    }

    fn change(fd: impl AsFd, change: impl FnOnce(&mut Termios)) -> std::io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut mode = before.clone();
        change(&mut mode);
        tcsetattr(&terminal, SetArg::TCSADRAIN, &mode)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for TerminalMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_detach_keys_come_through_a_terminal_as_it_is_by_default() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let terminal = std::fs::File::from(pty.slave);
        assert!(tcgetattr(&terminal).unwrap().input_flags.contains(InputFlags::IXON), "a terminal as people have it");
        let mode = TerminalMode::keys(&terminal).unwrap();
        std::fs::File::from(pty.master.try_clone().unwrap()).write_all(b"\x10\x11").unwrap();
        let mut keys = [0; 2];
        (&terminal).read_exact(&mut keys).unwrap();
        assert_eq!(&keys, b"\x10\x11");
        drop(mode);
        assert!(tcgetattr(&terminal).unwrap().input_flags.contains(InputFlags::IXON), "and has back");
    }
}
