//! The person's own terminal: raw modes, window size, and what is typed unseen.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
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
    /// Lines are not shown, but for their end. What was typed before is dropped: it was shown, so it was not meant for this, and half a
    /// password would be taken for a whole one.
    fn hidden(fd: impl AsFd) -> io::Result<Self> {
        Self::change_by(SetArg::TCSAFLUSH, fd, |mode| {
            mode.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHOE | LocalFlags::ECHOK);
            mode.local_flags.insert(LocalFlags::ICANON | LocalFlags::ECHONL);
        })
    }

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
        Self::change_by(SetArg::TCSADRAIN, fd, change)
    }

    fn change_by(how: SetArg, fd: impl AsFd, change: impl FnOnce(&mut Termios)) -> std::io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut mode = before.clone();
        change(&mut mode);
        tcsetattr(&terminal, how, &mode)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for TerminalMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The terminal, while what is typed on it is not shown. As it was again when this is dropped, and when a signal ends or stops the process.
#[derive(Debug)]
pub struct Hidden {
    terminal: File,
    mode: Option<TerminalMode>,
    signals: SignalFd,
    mask: SigSet,
}

impl Hidden {
    /// The process's own terminal, wherever its streams lead.
    pub fn open() -> io::Result<Self> {
        Self::on(OpenOptions::new().read(true).write(true).open("/dev/tty")?)
    }

    fn on(terminal: File) -> io::Result<Self> {
        let handled = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];
        let handled: SigSet = handled.into_iter().collect();
        let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC)?;
        let mask = handled.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // From here on dropping it puts everything back.
        let mut hidden = Self { terminal, mode: None, signals, mask };
        hidden.mode = Some(TerminalMode::hidden(&hidden.terminal)?);
        Ok(hidden)
    }

    /// One line, without its end. The prompt comes after the echo has gone: who answers it is not seen.
    pub fn ask(&mut self, prompt: &str) -> io::Result<String> {
        let mut line = Vec::new();
        self.terminal.write_all(prompt.as_bytes())?;
        loop {
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            if fds[0].any().unwrap_or(false) {
                self.yield_to_signal()?;
                self.terminal.write_all(prompt.as_bytes())?;
                line.clear();
                continue;
            }
            let mut buffer = [0; 4096];
            let count = self.terminal.read(&mut buffer)?;
            line.extend_from_slice(&buffer[..count]);
            if count == 0 || line.ends_with(b"\n") {
                break;
            }
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
    }

    /// Does what the signal does anyway, with the terminal as it was; comes back from a stop.
    fn yield_to_signal(&mut self) -> io::Result<()> {
        let Some(info) = self.signals.read_signal()? else { return Ok(()) };
        self.mode = None;
        let _ = self.terminal.write_all(b"\n");
        let blocked = self.mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        if let Ok(signal) = Signal::try_from(info.ssi_signo as i32) {
            raise(signal)?;
        }
        blocked.thread_set_mask()?;
        self.mode = Some(TerminalMode::hidden(&self.terminal)?);
        Ok(())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.mode = None;
        // What came since the last look is due now.
        let _ = self.mask.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_not_shown_and_what_came_before_is_not_taken() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (mut person, terminal) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&terminal).unwrap();
        // Of a line that was begun too early.
        person.write_all(b"early").unwrap();
        let asking = terminal.try_clone().unwrap();
        let asked = std::thread::spawn(move || {
            let mut hidden = Hidden::on(asking).unwrap();
            (hidden.ask("Password: ").unwrap(), hidden.ask("Again: ").unwrap())
        });
        let mut shown = String::new();
        let mut until = |person: &mut File, end: &str| {
            while !shown.ends_with(end) {
                let mut buffer = [0; 256];
                let count = person.read(&mut buffer).unwrap();
                shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        until(&mut person, "Password: ");
        // The second answer before it is asked for: the echo is off still, and it was meant.
        person.write_all("gehe\u{fc}m\nonce more\n".as_bytes()).unwrap();
        until(&mut person, "Again: ");
        assert_eq!(asked.join().unwrap(), ("gehe\u{fc}m".to_owned(), "once more".to_owned()));
        assert_eq!(shown.replace("early", "").replace(['\r', '\n'], ""), "Password: Again: ", "{shown:?}");
        assert_eq!(tcgetattr(&terminal).unwrap(), before);
    }

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
