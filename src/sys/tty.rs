//! The caller's terminal: raw modes, window size, and input without echo.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{
    FlushArg, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcflush, tcgetattr,
    tcsetattr,
};

nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, libc::winsize);

/// The rows and columns of a terminal, or `None` if `fd` is not a terminal.
#[must_use]
pub(crate) fn window_size(fd: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, which `size` is. The descriptor is open as long as it is
    // borrowed.
    unsafe { tiocgwinsz(fd.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// A terminal in a changed mode. Dropping this value restores the old mode.
#[derive(Debug)]
pub(crate) struct TerminalMode {
    terminal: OwnedFd,
    before: Termios,
}

impl TerminalMode {
    /// Turns off the echo, except for the newline. Input that was typed earlier is discarded: it was echoed, so it was
    /// not meant for this prompt, and half a password would be taken for a whole one.
    fn hidden(fd: impl AsFd) -> io::Result<Self> {
        let changed = Self::change_by(SetArg::TCSAFLUSH, &fd, |mode| {
            mode.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHOE | LocalFlags::ECHOK);
            mode.local_flags.insert(LocalFlags::ICANON | LocalFlags::ECHONL);
        })?;
        discard_input(fd)?;
        Ok(changed)
    }

    /// Passes every key through unchanged, for a container that has a pty of its own.
    pub(crate) fn raw(fd: impl AsFd) -> std::io::Result<Self> {
        Self::change(fd, |mode| {
            cfmakeraw(mode);
        })
    }

    /// Passes keys one by one and without echo, but ctrl-c still interrupts. For following a log with detach keys.
    pub(crate) fn keys(fd: impl AsFd) -> std::io::Result<Self> {
        Self::change(fd, |mode| {
            mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
            // Flow control is on by default and intercepts ctrl-q (and ctrl-s). Ctrl-q is half of the usual detach
            // keys.
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

/// Discards the input so far. A flush alone (TCSAFLUSH, TCIFLUSH) misses the input that the kernel has not yet passed
/// from the terminal's driver to its line discipline. A worker does that, which takes a while on a busy machine.
/// poll(2) waits for that worker unless a line is ready to be read (n_tty_poll).
fn discard_input(fd: impl AsFd) -> io::Result<()> {
    // Each round discards the input that has arrived so far. The number of rounds is limited, so that continuous typing
    // does not block forever.
    for _ in 0..64 {
        let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)?;
        tcflush(&fd, FlushArg::TCIFLUSH)?;
        if ready == 0 {
            break;
        }
    }
    Ok(())
}

impl Drop for TerminalMode {
    fn drop(&mut self) {
        // The error is ignored, because a terminal that no longer exists needs no mode.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The terminal with the echo turned off. The old mode is restored when this value is dropped, and when a signal ends
/// or stops the process.
#[derive(Debug)]
pub(crate) struct Hidden {
    terminal: File,
    mode: Option<TerminalMode>,
    signals: SignalFd,
    mask: SigSet,
}

impl Hidden {
    /// Opens the process's controlling terminal, whatever its standard streams are.
    pub(crate) fn open() -> io::Result<Self> {
        Self::on(OpenOptions::new().read(true).write(true).open("/dev/tty")?)
    }

    fn on(terminal: File) -> io::Result<Self> {
        let handled = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];
        let handled: SigSet = handled.into_iter().collect();
        let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC)?;
        let mask = handled.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // From here on, dropping `hidden` restores everything.
        let mut hidden = Self { terminal, mode: None, signals, mask };
        hidden.mode = Some(TerminalMode::hidden(&hidden.terminal)?);
        Ok(hidden)
    }

    /// Reads one line and returns it without its newline. The prompt is written after the echo was turned off, so the
    /// answer to it is not shown.
    pub(crate) fn ask(&mut self, prompt: &str) -> io::Result<String> {
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

    /// Performs the default action of the signal, with the terminal in its old mode. Returns when the process continues
    /// after a stop.
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
        // Signals that have arrived since the last check are delivered now.
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
        // The beginning of a line that was typed too early.
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
        // The second answer arrives before its prompt. The echo is still off, so it counts.
        person.write_all("gehe\u{fc}m\nonce more\n".as_bytes()).unwrap();
        until(&mut person, "Again: ");
        assert_eq!(asked.join().unwrap(), ("gehe\u{fc}m".to_owned(), "once more".to_owned()));
        assert_eq!(shown.replace("early", "").replace(['\r', '\n'], ""), "Password: Again: ", "{shown:?}");
        assert_eq!(tcgetattr(&terminal).unwrap(), before);
    }

    /// The flush follows the keys immediately, before the kernel has passed them on. With TCSAFLUSH alone, most of
    /// these rounds fail.
    #[test]
    fn keys_in_the_kernels_queue_are_dropped_too() {
        for early in ["early", "early\n", "two\nlines\n", "one\nand a half"] {
            for round in 0..200 {
                let pty = nix::pty::openpty(None, None).unwrap();
                let (mut person, terminal) = (File::from(pty.master), File::from(pty.slave));
                person.write_all(early.as_bytes()).unwrap();
                let mode = TerminalMode::hidden(&terminal).unwrap();
                person.write_all(b"answer\n").unwrap();
                let mut buffer = [0; 64];
                let count = (&terminal).read(&mut buffer).unwrap();
                assert_eq!(&buffer[..count], b"answer\n", "{early:?}, round {round}");
                drop(mode);
            }
        }
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
