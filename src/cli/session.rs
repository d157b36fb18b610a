//! A command's connection to a supervisor. It delivers messages, keys and signals one event at a time.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::detach::DetachKeys;
use super::print;
use crate::cluster::Step;
use crate::control::{Connection, FromSupervisor, MAX_PACKET, ToSupervisor};
use crate::launch::Spawned;
use crate::record::{Entry, Launching};
use crate::report::Report;
use crate::supervise::diagnostics;
use crate::sys::tty::{TerminalMode, window_size};

/// An event of a session.
#[derive(Debug)]
pub(super) enum Event {
    Message(FromSupervisor),
    /// The supervisor has closed the connection.
    HungUp,
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT was sent to this command.
    Signal(Signal),
    /// The caller pressed the detach keys.
    Detach,
    /// Standard input has ended, and no output is shown.
    InputEnded,
    /// The additional descriptor is readable.
    Extra,
    TimedOut,
}

/// The use of the caller's keyboard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// Standard input is not read.
    Ignored,
    /// Input is sent to the container (`-i`). The terminal is put in raw mode if the container has a terminal too
    /// (`-t`).
    Typed { tty: bool },
    /// Only the detach keys are recognized (while a bare launch shows the log).
    DetachOnly,
}

/// The supervisor at the other end. Either this command started it, or it was already running.
pub(super) enum Peer {
    Started(Spawned),
    Found { connection: Connection, control: PathBuf, diagnostics: PathBuf },
}

impl Peer {
    fn control(&self) -> &std::path::Path {
        match self {
            Self::Started(spawned) => &spawned.control,
            Self::Found { control, .. } => control,
        }
    }

    fn diagnostics(&self) -> &std::path::Path {
        match self {
            Self::Started(spawned) => &spawned.diagnostics,
            Self::Found { diagnostics, .. } => diagnostics,
        }
    }
}

impl From<Spawned> for Peer {
    fn from(spawned: Spawned) -> Self {
        Self::Started(spawned)
    }
}

impl From<(Connection, &Entry)> for Peer {
    fn from((connection, entry): (Connection, &Entry)) -> Self {
        Self::Found { connection, control: entry.control_socket(), diagnostics: entry.diagnostics() }
    }
}

impl std::ops::Deref for Peer {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Started(spawned) => &spawned.connection,
            Self::Found { connection, .. } => connection,
        }
    }
}

pub(super) struct Session {
    connection: Peer,
    signals: SignalFd,
    keys: Keys,
    detach: DetachKeys,
    mode: Option<TerminalMode>,
    tty: bool,
    /// Whether standard output and standard error are shown.
    shown: (bool, bool),
    /// Messages that the supervisor has not accepted yet. While there are any, nothing more is read from standard
    /// input, but the container's output is still passed on. Waiting only for the supervisor would deadlock, because
    /// the container may itself be waiting for its output to be read.
    waiting: VecDeque<ToSupervisor>,
    /// The first signal to end that has arrived.
    interrupted: Option<Signal>,
}

/// Blocks the signals that a session receives through a descriptor. Call this before the supervisor is spawned so that
/// no signal is missed.
pub(super) fn take_signals() -> Result<SignalFd, Report> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
        set.add(signal);
    }
    let failed = |errno: nix::Error| Report::new("cannot take signals by descriptor").with_cause(errno);
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Returns a descriptor by which no signal arrives.
pub(super) fn no_signals() -> Result<SignalFd, Report> {
    SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|errno| Report::new("cannot take signals by descriptor").with_cause(errno))
}

/// Takes a signal to end that has arrived, if there is one.
pub(super) fn pending(signals: &SignalFd) -> Option<Signal> {
    std::iter::from_fn(|| signals.read_signal().ok().flatten())
        .filter_map(|info| i32::try_from(info.ssi_signo).ok()?.try_into().ok())
        .find(|signal| *signal != Signal::SIGWINCH)
}

/// Returns the messages that attach a command to a container's streams. The window size comes first so that it is set
/// before the first byte is written. A command that starts the container passes them to [`crate::launch::spawn`].
#[must_use]
pub(super) fn attachment(keys: Keys, tty: bool) -> Vec<ToSupervisor> {
    let attach = ToSupervisor::Attach { stdin: matches!(keys, Keys::Typed { .. }) };
    tty.then(resize).flatten().into_iter().chain([attach]).collect()
}

fn resize() -> Option<ToSupervisor> {
    let (rows, columns) = window_size(io::stdout()).or_else(|| window_size(io::stdin()))?;
    Some(ToSupervisor::Resize { rows, columns })
}

impl Session {
    /// Creates a session. [`Session::begin_keys`] sets the terminal mode later.
    #[must_use]
    pub(super) fn new(supervisor: impl Into<Peer>, signals: SignalFd, keys: Keys, detach: DetachKeys) -> Self {
        Self {
            connection: supervisor.into(),
            signals,
            keys,
            detach,
            mode: None,
            tty: matches!(keys, Keys::Typed { tty: true }),
            shown: (true, true),
            waiting: VecDeque::new(),
            interrupted: None,
        }
    }

    /// The first signal to end that this command has received.
    #[must_use]
    pub(super) fn interrupted(&self) -> Option<Signal> {
        self.interrupted
    }

    /// Sets which of the container's output streams are shown.
    pub(super) fn show(&mut self, stdout: bool, stderr: bool) {
        self.shown = (stdout, stderr);
    }

    /// Whether this piece of output is shown.
    #[must_use]
    pub(super) fn shows(&self, message: &FromSupervisor) -> bool {
        match message {
            FromSupervisor::Stdout(_) => self.shown.0,
            FromSupervisor::Stderr(_) => self.shown.1,
            _ => true,
        }
    }

    /// Whether the supervisor has accepted all messages.
    #[must_use]
    pub(super) fn has_sent_all(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The container's directory in /run.
    pub(super) fn run_dir(&self) -> &std::path::Path {
        let control = self.connection.control();
        control.parent().unwrap_or(control)
    }

    /// Discards the supervisor after a failed launch: see [`Spawned::discard`].
    pub(super) fn discard(&self) {
        if let Peer::Started(spawned) = &self.connection {
            spawned.discard();
            // Print the path of the diagnostics if the caller has enabled them.
            if std::env::var_os("GPURUN_LOG").is_some() && spawned.diagnostics.exists() {
                print::say(&format!("gpurun: the supervisor's diagnostics are in `{}`", spawned.diagnostics.display()));
            }
        }
    }

    /// Returns the report for a supervisor that ended without a final message.
    #[must_use]
    pub(super) fn killed(&self, what: &str) -> Report {
        Report::new(what).with_hint(format!(
            "{}; the next gpurun command cleans up what it left",
            diagnostics::hint(self.connection.diagnostics())
        ))
    }

    /// Waits for the end of a supervisor whose launch failed. Returns the lock for another launch of its container.
    pub(super) fn end_launch(&mut self) -> Option<Launching> {
        match &mut self.connection {
            Peer::Started(spawned) => spawned.end(),
            Peer::Found { .. } => None,
        }
    }

    /// Continues with another supervisor of the same container.
    pub(super) fn begin_launch(&mut self, spawned: Spawned) {
        self.connection = spawned.into();
        self.waiting.clear();
    }

    /// The descriptor by which signals arrive.
    pub(super) fn signals(&self) -> &SignalFd {
        &self.signals
    }

    /// Call this after the supervisor's last message: see [`Spawned::outlive`].
    pub(super) fn outlive(&self) {
        if let Peer::Started(spawned) = &self.connection {
            spawned.outlive();
        }
    }

    /// Waits for the end of the supervisor of a container that has ended, if this is a Slurm step: Slurm sleeps for a
    /// second if it finds a process in the step when a task has ended.
    fn leave_step(&self) {
        if Step::current().is_some() {
            self.outlive();
        }
    }

    /// Attaches to the streams of a container that is already running.
    pub(super) fn attach(&mut self, tty: bool) -> Result<(), Report> {
        attachment(self.keys, tty).iter().try_for_each(|message| self.send(message))
    }

    /// Puts the terminal into the mode that the keys require.
    pub(super) fn begin_keys(&mut self) {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return;
        }
        let mode = match self.keys {
            Keys::Ignored | Keys::Typed { tty: false } => return,
            Keys::Typed { tty: true } => TerminalMode::raw(&stdin),
            Keys::DetachOnly => TerminalMode::keys(&stdin),
        };
        // If the terminal mode cannot be set, the session still works with line-buffered input.
        self.mode = mode.ok();
    }

    /// Changes the use of the keys. Call this before [`Session::begin_keys`].
    pub(super) fn set_keys(&mut self, keys: Keys) {
        self.keys = keys;
    }

    /// Returns the line ending for the current mode of the caller's terminal.
    #[must_use]
    pub(super) fn line_end(&self) -> &'static str {
        if self.mode.is_some() { "\r\n" } else { "\n" }
    }

    /// Restores the terminal mode.
    pub(super) fn end_keys(&mut self) {
        self.mode = None;
        self.keys = Keys::Ignored;
    }

    /// Sends a message. It is not an error if the supervisor has exited: its last message, which contains the exit
    /// code, may still be unread. The connection ends after that message.
    pub(super) fn send(&mut self, message: &ToSupervisor) -> Result<(), Report> {
        let urgent = matches!(message, ToSupervisor::Signal { .. } | ToSupervisor::Stop { .. });
        // Typed input may wait for a container that does not read it, but a signal must not wait behind that input.
        if urgent
            && !self.waiting.is_empty()
            && let Ok(second) = Connection::connect(self.connection.control())
            && second.send(message).is_ok()
        {
            return Ok(());
        }
        self.waiting.push_back(message.clone());
        self.flush()
    }

    /// Sends as many waiting messages as the supervisor accepts.
    fn flush(&mut self) -> Result<(), Report> {
        while let Some(message) = self.waiting.front() {
            match self.connection.try_send(message) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind()) => {
                    self.waiting.clear();
                }
                Err(error) => return Err(Report::new("cannot reach the container's supervisor").with_cause(error)),
            }
        }
        Ok(())
    }

    /// Waits for the next event.
    pub(super) fn next(&mut self, until: Option<Instant>, extra: Option<BorrowedFd<'_>>) -> Result<Event, Report> {
        loop {
            let stdin = io::stdin();
            let mut from_supervisor = PollFlags::POLLIN;
            from_supervisor.set(PollFlags::POLLOUT, !self.waiting.is_empty());
            let mut fds = vec![
                PollFd::new(self.connection.as_fd(), from_supervisor),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let stdin_at = (self.keys != Keys::Ignored && self.waiting.is_empty()).then(|| {
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
            let events = fds[0].revents().unwrap_or(PollFlags::empty());
            let (message, room) = (events.intersects(!PollFlags::POLLOUT), events.contains(PollFlags::POLLOUT));
            let signal = ready(1);
            let (typed, extra_ready) = (stdin_at.is_some_and(ready), extra_at.is_some_and(ready));
            drop(fds);
            if signal && let Some(event) = self.take_signal()? {
                return Ok(event);
            }
            if room {
                self.flush()?;
            }
            if message {
                return match self.connection.receive() {
                    Ok(Some(message)) => {
                        if matches!(message, FromSupervisor::Exited(_)) {
                            self.leave_step();
                        }
                        Ok(Event::Message(message))
                    }
                    Ok(None) => {
                        self.outlive();
                        Ok(Event::HungUp)
                    }
                    Err(error) => {
                        Err(Report::new("cannot parse the message of the container's supervisor").with_cause(error))
                    }
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

    fn take_signal(&mut self) -> Result<Option<Event>, Report> {
        let Some(info) = self.signals.read_signal().ok().flatten() else { return Ok(None) };
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGWINCH) => {
                if let Some(message) = self.tty.then(resize).flatten() {
                    self.send(&message)?;
                }
                Ok(None)
            }
            Ok(signal) => {
                self.interrupted.get_or_insert(signal);
                Ok(Some(Event::Signal(signal)))
            }
            Err(_) => Ok(None),
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
            return Ok((self.shown == (false, false)).then_some(Event::InputEnded));
        }
        // The detach keys apply only to a terminal. A pipe may contain the same bytes as data.
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

    fn type_in(&mut self, bytes: &[u8]) -> Result<(), Report> {
        bytes.chunks(MAX_PACKET - 1).try_for_each(|piece| self.send(&ToSupervisor::Stdin(piece.to_vec())))
    }
}

/// Writes a piece of the container's output to the command's own output. It is not an error if the reader has closed
/// the pipe (`| head`).
pub(super) fn pass_on(message: &FromSupervisor) -> io::Result<()> {
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
