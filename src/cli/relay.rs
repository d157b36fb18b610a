//! Relays the streams between the caller and a command that `exec` has started. The command gets its own pipes or
//! terminal, never the caller's descriptors.
//!
//! Only poll(2) blocks here, so that signals are forwarded while a reader is slow, and input is forwarded while a
//! writer is slow. If the caller's reader closes its end, the corresponding stream of the command is closed, and the
//! command gets SIGPIPE as it would in a pipe.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::detach::DetachKeys;
use crate::report::Report;
use crate::runtime::{self, ExecChild, Stdio};
use crate::sys::tty::{TerminalMode, window_size};
use crate::sys::{process, pty};

/// A pipe that poll reports as writable accepts this number of bytes without blocking (PIPE_BUF).
const PIECE: usize = 4096;
const CHUNK: usize = 64 * 1024;
/// Maximum number of bytes to read from a stream after the command has exited. This is more than a pipe or a terminal
/// buffers. Later data comes from another process.
const REST: usize = 1 << 20;

/// gpurun's ends of the command's streams.
#[derive(Debug, Default)]
pub(super) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// The result of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    Exited(u8),
    /// The caller pressed the detach keys, and the command keeps running.
    Detached,
}

/// Creates pipes for a command's streams. Its standard input is empty unless `input` is set.
pub(super) fn pipes(input: bool) -> io::Result<(Stdio, Ends)> {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
    let (stdout, out_end) = pipe()?;
    let (stderr, error_end) = pipe()?;
    let (in_end, stdin) = if input {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (null()?, None)
    };
    let stdio = Stdio::Fds { stdin: in_end, stdout: out_end, stderr: error_end };
    Ok((stdio, Ends { stdin, stdout: Some(stdout), stderr: Some(stderr) }))
}

/// Creates streams for a command whose output is discarded.
pub(super) fn nothing() -> io::Result<Stdio> {
    Ok(Stdio::Fds { stdin: null()?, stdout: null()?, stderr: null()? })
}

fn null() -> io::Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// One output stream of the command, and the data that has been read from it but not yet written to the caller.
#[derive(Debug)]
struct Output {
    source: File,
    /// Whether the data goes to the caller's standard error.
    error: bool,
    waiting: Vec<u8>,
    written: usize,
    /// Number of bytes that may still be read after the command has exited.
    rest: usize,
    /// Whether the last read found no data.
    dry: bool,
}

impl Output {
    fn new(source: OwnedFd, error: bool) -> io::Result<Self> {
        process::set_nonblocking(&source)?;
        Ok(Self { source: source.into(), error, waiting: Vec::new(), written: 0, rest: REST, dry: false })
    }

    fn full(&self) -> bool {
        self.written < self.waiting.len()
    }

    /// Reads once. Returns `false` if the stream has ended.
    fn read(&mut self, ended: bool) -> bool {
        let mut buffer = [0; CHUNK];
        match self.source.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                self.waiting.clear();
                self.waiting.extend_from_slice(&buffer[..count]);
                self.written = 0;
                self.rest = if ended { self.rest.saturating_sub(count) } else { self.rest };
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dry = true,
            // The master side of a terminal returns EIO if no process has the terminal open.
            Err(_) => return false,
        }
        true
    }

    /// Writes a piece of data to the caller.
    fn write(&mut self) -> io::Result<()> {
        let end = self.waiting.len().min(self.written + PIECE);
        let piece = &self.waiting[self.written..end];
        let written =
            if self.error { nix::unistd::write(io::stderr(), piece) } else { nix::unistd::write(io::stdout(), piece) };
        match written {
            Ok(count) => self.written += count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

/// The relay between the caller and one command.
pub(super) struct Relay {
    child: ExecChild,
    signals: SignalFd,
    outputs: Vec<Output>,
    input: Option<File>,
    typed: VecDeque<u8>,
    /// Whether standard input is still being read.
    typing: bool,
    detach: DetachKeys,
    mode: Option<TerminalMode>,
    ended: bool,
}

/// The source of a poll entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Child,
    Signals,
    Keys,
    Input,
    Read(usize),
    Write(usize),
}

impl Relay {
    pub(super) fn new(
        mut child: ExecChild,
        ends: Ends,
        interactive: bool,
        signals: SignalFd,
        detach: DetachKeys,
    ) -> io::Result<Self> {
        let mut outputs = Vec::new();
        let mut input = ends.stdin;
        let mut mode = None;
        if let Some(master) = child.pty.take() {
            if interactive {
                input = Some(master.try_clone()?);
                // If the terminal cannot be put in raw mode, the session still works with line-buffered input.
                mode = io::stdin().is_terminal().then(|| TerminalMode::raw(io::stdin()).ok()).flatten();
            }
            outputs.push(Output::new(master, false)?);
        }
        for (end, error) in [(ends.stdout, false), (ends.stderr, true)] {
            outputs.extend(end.map(|end| Output::new(end, error)).transpose()?);
        }
        if let Some(input) = &input {
            process::set_nonblocking(input)?;
        }
        let typing = input.is_some();
        let input = input.map(File::from);
        Ok(Self { child, signals, outputs, input, typed: VecDeque::new(), typing, detach, mode, ended: false })
    }

    /// Relays data until the command has exited and its output has been written, or until the caller detaches.
    pub(super) fn run(&mut self) -> Result<Outcome, Report> {
        let failed = |errno: nix::Error| Report::new("cannot wait for the command").with_cause(errno);
        loop {
            if self.ended && !self.outputs.iter().any(|output| output.full() || (!output.dry && output.rest > 0)) {
                break;
            }
            let ready = self.wait().map_err(failed)?;
            // In reverse order, so that removing an output that has ended does not shift the indexes that are still to
            // be processed.
            for source in ready.into_iter().rev() {
                match source {
                    Source::Child => self.ended = true,
                    Source::Signals => self.pass_signals(),
                    Source::Keys => {
                        if self.read_keys() {
                            self.mode = None;
                            return Ok(Outcome::Detached);
                        }
                    }
                    Source::Input => self.write_input(),
                    Source::Read(index) => {
                        if !self.outputs[index].read(self.ended) {
                            self.outputs.remove(index);
                        }
                    }
                    Source::Write(index) => self.write_output(index)?,
                }
            }
        }
        self.mode = None;
        match waitpid(Pid::from_raw(self.child.pid), None).map_err(failed)? {
            WaitStatus::Exited(_, code) => Ok(Outcome::Exited(code as u8)),
            WaitStatus::Signaled(_, signal, _) => Ok(Outcome::Exited(128 + signal as u8)),
            _ => Ok(Outcome::Exited(0)),
        }
    }

    /// Returns the streams that are still open. They must be drained while a process holds them.
    pub(super) fn leave(self) -> Vec<OwnedFd> {
        self.outputs.into_iter().map(|output| output.source.into()).collect()
    }

    fn wait(&mut self) -> nix::Result<Vec<Source>> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let (mut sources, mut fds) = (Vec::new(), Vec::new());
        let mut add = |source: Source, fd, events: PollFlags| {
            sources.push(source);
            fds.push(PollFd::new(fd, events));
        };
        if !self.ended {
            add(Source::Child, self.child.pidfd.as_fd(), PollFlags::POLLIN);
        }
        add(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        if self.typing && self.typed.is_empty() && !self.ended {
            add(Source::Keys, stdin.as_fd(), PollFlags::POLLIN);
        }
        if let Some(input) = self.input.as_ref().filter(|_| !self.typed.is_empty() && !self.ended) {
            add(Source::Input, input.as_fd(), PollFlags::POLLOUT);
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if output.full() {
                let to: BorrowedFd<'_> = if output.error { stderr.as_fd() } else { stdout.as_fd() };
                add(Source::Write(index), to, PollFlags::POLLOUT);
            } else if !(self.ended && (output.dry || output.rest == 0)) {
                add(Source::Read(index), output.source.as_fd(), PollFlags::POLLIN);
            }
        }
        // Do not wait after the command has exited, because all of its output is already available.
        let reading = sources.iter().any(|source| matches!(source, Source::Read(_)));
        let timeout = if self.ended && reading { PollTimeout::ZERO } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        // Read once more from a stream that poll reports as empty: the last bytes of a terminal become available only
        // with the read.
        let wanted = |source: &Source, ready: bool| ready || (self.ended && matches!(source, Source::Read(_)));
        Ok(sources.into_iter().zip(ready).filter(|(source, ready)| wanted(source, *ready)).map(|(s, _)| s).collect())
    }

    fn pass_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match info.ssi_signo as i32 {
                libc::SIGWINCH => {
                    if let (Some(output), Some((rows, columns))) = (self.outputs.first(), window_size(io::stdin())) {
                        pty::set_window_size(output.source.as_fd(), rows, columns);
                    }
                }
                number => drop(process::signal(&self.child.pidfd, number)),
            }
        }
    }

    /// Reads the caller's input. Returns `true` if it contains the detach keys.
    fn read_keys(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        let count = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => return false,
            Err(_) => 0,
        };
        if count == 0 {
            self.typing = false;
        }
        // The detach keys apply only to a terminal. A pipe may contain the same bytes as data.
        let (pass, left) =
            if self.mode.is_some() { self.detach.feed(&buffer[..count]) } else { (buffer[..count].to_vec(), false) };
        self.typed.extend(pass);
        self.write_input();
        left
    }

    /// Writes as much input as the command accepts. When everything is written and no more input will follow, the
    /// command's input is closed. The input of a terminal ends only with ctrl-d.
    fn write_input(&mut self) {
        while let Some(input) = self.input.as_mut().filter(|_| !self.typed.is_empty()) {
            match input.write(self.typed.as_slices().0) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The command no longer reads its input.
                    self.typed.clear();
                    self.typing = false;
                    self.input = None;
                }
            }
        }
        if !self.typing {
            self.input = None;
        }
    }

    fn write_output(&mut self, index: usize) -> Result<(), Report> {
        match self.outputs[index].write() {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                // The command gets SIGPIPE with its next write, or SIGHUP if it has a terminal.
                self.outputs.remove(index);
                if self.mode.is_some() || self.outputs.is_empty() {
                    self.input = None;
                    self.typing = false;
                }
                Ok(())
            }
            Err(error) => Err(Report::new("cannot write the command's output").with_cause(error)),
        }
    }
}

/// Passes the streams to a separate process that reads and discards all data until no process holds the other ends.
/// Until then, a terminal does not hang up and a pipe does not break.
pub(super) fn drain_on(streams: &[OwnedFd]) -> Result<(), Report> {
    if streams.is_empty() {
        return Ok(());
    }
    runtime::spawn_drain(streams)
        .map_err(|error| Report::new("cannot keep the command's streams open").with_cause(error))
}
