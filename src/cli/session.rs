//! A command's connection to a supervisor: messages, the person's keys and signals, one event at a time.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::detach::DetachKeys;
use crate::launch::Spawned;
use crate::report::Report;
use crate::supervise::protocol::{Connection, FromSupervisor, MAX_PACKET, ToSupervisor};
use crate::sys::tty::{TerminalMode, window_size};

/// What happened.
#[derive(Debug)]
pub enum Event {
    Message(FromSupervisor),
    /// The supervisor is gone.
    HungUp,
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT reached this command.
    Signal(Signal),
    /// The person pressed the detach keys.
    Detach,
    /// The watched descriptor became readable.
    Extra,
    TimedOut,
}

/// What the person's keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Not read at all.
    Ignored,
    /// Sent to the container (`-i`); a terminal goes into raw mode where the container has one too (`-t`).
    Typed { tty: bool },
    /// Only the detach keys count (a bare launch's log).
    DetachOnly,
}

/// The supervisor at the other end: started by this command, or found.
pub enum Peer {
    Started(Spawned),
    Found(Connection),
}

impl From<Spawned> for Peer {
    fn from(spawned: Spawned) -> Self {
        Self::Started(spawned)
    }
}

impl From<Connection> for Peer {
    fn from(connection: Connection) -> Self {
        Self::Found(connection)
    }
}

impl std::ops::Deref for Peer {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Started(spawned) => &spawned.connection,
            Self::Found(connection) => connection,
        }
    }
}

pub struct Session {
    connection: Peer,
    signals: SignalFd,
    keys: Keys,
    detach: DetachKeys,
    mode: Option<TerminalMode>,
    tty: bool,
}

/// Blocks the signals that a session takes by descriptor. To be called before the supervisor is spawned, so that none is missed.
pub fn take_signals() -> Result<SignalFd, Report> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
        set.add(signal);
    }
    let failed = |errno: nix::Error| Report::new("cannot take signals by descriptor").with_cause(errno);
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

impl Session {
    /// Begins with the person's keys as asked; they are put into the right mode by [`Session::begin_keys`].
    #[must_use]
    pub fn new(supervisor: impl Into<Peer>, signals: SignalFd, keys: Keys, detach: DetachKeys) -> Self {
        Self {
            connection: supervisor.into(),
            signals,
            keys,
            detach,
            mode: None,
            tty: matches!(keys, Keys::Typed { tty: true }),
        }
    }

    /// After the supervisor's last word: see [`Spawned::outlive`].
    pub fn outlive(&self) {
        if let Peer::Started(spawned) = &self.connection {
            spawned.outlive();
        }
    }

    /// Attaches to the container's streams; the window size goes first, so that it holds when the first byte is written.
    pub fn attach(&self, tty: bool) -> Result<(), Report> {
        if tty {
            self.send_window_size();
        }
        self.send(&ToSupervisor::Attach { stdin: matches!(self.keys, Keys::Typed { .. }) })
    }

    /// Puts the terminal into the mode that the keys need.
    pub fn begin_keys(&mut self) {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return;
        }
        let mode = match self.keys {
            Keys::Ignored | Keys::Typed { tty: false } => return,
            Keys::Typed { tty: true } => TerminalMode::raw(&stdin),
            Keys::DetachOnly => TerminalMode::keys(&stdin),
        };
        // A terminal that refuses its mode still serves: keys come a line at a time then.
        self.mode = mode.ok();
    }

    /// Changes what the keys are for, before [`Session::begin_keys`].
    pub fn set_keys(&mut self, keys: Keys) {
        self.keys = keys;
    }

    /// What ends a line on the person's terminal as it is now.
    #[must_use]
    pub fn line_end(&self) -> &'static str {
        if self.mode.is_some() { "\r\n" } else { "\n" }
    }

    /// Gives the terminal back.
    pub fn end_keys(&mut self) {
        self.mode = None;
        self.keys = Keys::Ignored;
    }

    pub fn send(&self, message: &ToSupervisor) -> Result<(), Report> {
        self.connection
            .send(message)
            .map_err(|error| Report::new("cannot reach the container's supervisor").with_cause(error))
    }

    fn send_window_size(&self) {
        let size = window_size(io::stdout()).or_else(|| window_size(io::stdin()));
        if let Some((rows, columns)) = size {
            // A supervisor that is gone says so on the reading side.
            let _ = self.connection.send(&ToSupervisor::Resize { rows, columns });
        }
    }

    /// Waits for the next event.
    pub fn next(&mut self, until: Option<Instant>, extra: Option<BorrowedFd<'_>>) -> Result<Event, Report> {
        loop {
            let stdin = io::stdin();
            let mut fds = vec![
                PollFd::new(self.connection.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let stdin_at = (self.keys != Keys::Ignored).then(|| {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                fds.len() - 1
            });
            let extra_at = extra.map(|fd| {
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
                fds.len() - 1
            });
            let timeout = until.map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Event::TimedOut),
                Ok(_) => {}
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(Report::new("cannot wait for the container").with_cause(errno)),
            }
            let ready = |index: usize| fds[index].any().unwrap_or(false);
            let (message, signal) = (ready(0), ready(1));
            let (typed, extra_ready) = (stdin_at.is_some_and(ready), extra_at.is_some_and(ready));
            drop(fds);
            if signal && let Some(event) = self.take_signal() {
                return Ok(event);
            }
            if message {
                return match self.connection.receive() {
                    Ok(Some(message)) => Ok(Event::Message(message)),
                    Ok(None) => {
                        self.outlive();
                        Ok(Event::HungUp)
                    }
                    Err(error) => Err(Report::new("cannot understand the container's supervisor").with_cause(error)),
                };
            }
            if typed && let Some(event) = self.take_keys()? {
                return Ok(event);
            }
            if extra_ready {
                return Ok(Event::Extra);
            }
        }
    }

    fn take_signal(&self) -> Option<Event> {
        let info = self.signals.read_signal().ok().flatten()?;
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGWINCH) => {
                if self.tty {
                    self.send_window_size();
                }
                None
            }
            Ok(signal) => Some(Event::Signal(signal)),
            Err(_) => None,
        }
    }

    fn take_keys(&mut self) -> Result<Option<Event>, Report> {
        let mut buffer = [0; 16 * 1024];
        let count = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => return Ok(None),
            Err(_) => 0,
        };
        let typed = matches!(self.keys, Keys::Typed { .. });
        if count == 0 {
            self.keys = Keys::Ignored;
            if typed {
                self.send(&ToSupervisor::StdinEnd)?;
            }
            return Ok(None);
        }
        // The detach keys only mean something on a terminal: a pipe may carry those bytes.
        if self.mode.is_none() {
            if typed {
                self.type_in(&buffer[..count])?;
            }
            return Ok(None);
        }
        let (pass, detached) = self.detach.feed(&buffer[..count]);
        if typed && !pass.is_empty() {
            self.type_in(&pass)?;
        }
        Ok(detached.then_some(Event::Detach))
    }

    fn type_in(&self, bytes: &[u8]) -> Result<(), Report> {
        bytes.chunks(MAX_PACKET - 1).try_for_each(|piece| self.send(&ToSupervisor::Stdin(piece.to_vec())))
    }
}

/// Writes a piece of the container's output to our own; a reader that went away (`| head`) is no error.
pub fn pass_on(message: &FromSupervisor) -> io::Result<()> {
    let (result, flushed) = match message {
        FromSupervisor::Stdout(bytes) => {
            let mut out = io::stdout().lock();
            (out.write_all(bytes), out.flush())
        }
        FromSupervisor::Stderr(bytes) => {
            let mut out = io::stderr().lock();
            (out.write_all(bytes), out.flush())
        }
        _ => (Ok(()), Ok(())),
    };
    result.and(flushed)
}
