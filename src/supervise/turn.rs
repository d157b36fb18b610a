//! The supervisor's poll loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::checks::Checks;
use super::timers::Timer;
use super::{Supervisor, log};
use crate::control::FromSupervisor;
use crate::launch::{Container, Ending};

/// How many bytes to read from the container at once.
const CHUNK: usize = 64 * 1024;
/// How long to wait for the rest of the output after the container's process has ended. All processes in its pid
/// namespace are dead by then, so the streams end, unless a process outside (`--pid host`) still holds them.
const REST_OF_OUTPUT: Duration = Duration::from_millis(500);

/// When the supervisor of a long-running container releases the memory that the launch used.
const LAUNCH_OVER: Duration = Duration::from_secs(1);

/// The source of a poll entry.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Client(usize),
    Output(usize),
    Input,
    Oom,
    Health,
    Probe,
}

impl Supervisor {
    /// Serves all sources until the container's process has ended.
    pub(super) fn watch(&mut self, container: &mut Container) -> Ending {
        self.timers.set(Timer::Slim, Some(Instant::now() + LAUNCH_OVER));
        loop {
            if let Some(ending) = container.ended() {
                self.read_rest(container);
                return ending;
            }
            while let Some(timer) = self.timers.take_due(Instant::now()) {
                self.serve_timer(timer, container);
            }
            if self.entry.record.step && self.clients.is_empty() {
                // The build that requested this step is gone.
                container.kill();
            }
            self.timers.set(Timer::Watch, self.watch_due());
            self.turn(Some(container), self.timers.next());
        }
    }

    fn serve_timer(&mut self, timer: Timer, container: &mut Container) {
        match timer {
            Timer::Kill => container.kill(),
            Timer::Oom => self.count_oom_kills(container, self.oom_looks),
            Timer::Slim => crate::sys::memory::release_unused(),
            Timer::Health => {
                self.serve_health_timer(container);
                self.act_on_health(container);
            }
            Timer::Watch => self.check_watch(container),
        }
    }

    /// Serves all sources for the delay while no container runs. Returns `false` if a stop was requested in the
    /// meantime.
    pub(super) fn wait_for(&mut self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        while Instant::now() < until && !self.stopping {
            self.turn(None, Some(until));
        }
        !self.stopping
    }

    /// Handles the messages that have already arrived, without waiting for more.
    pub(super) fn hear_everybody(&mut self, container: &mut Container) {
        self.turn(Some(container), Some(Instant::now()));
        // A second turn handles a client's second message: each turn handles one message of each client.
        self.turn(Some(container), Some(Instant::now()));
    }

    fn read_rest(&mut self, container: &mut Container) {
        let until = Instant::now() + REST_OF_OUTPUT;
        while container.streams.output_count() > 0 && Instant::now() < until {
            let before = container.streams.output_count();
            let mut any = false;
            for index in (0..before).rev() {
                any |= self.pass_output(container, index);
            }
            if !any && container.streams.output_count() > 0 {
                self.turn(Some(container), Some(until));
            }
        }
    }

    /// Polls once and handles the events.
    fn turn(&mut self, mut container: Option<&mut Container>, until: Option<Instant>) {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let typist_waits = container.as_ref().is_some_and(|container| container.streams.full());
        for (index, (fd, pending, types)) in self.clients.fds().enumerate() {
            let mut wanted = PollFlags::empty();
            // Only the client that sends input has to wait. The others are still served, so that they can stop the
            // container.
            wanted.set(PollFlags::POLLIN, !(typist_waits && types));
            wanted.set(PollFlags::POLLOUT, pending);
            sources.push(Source::Client(index));
            fds.push(PollFd::new(fd, wanted));
        }
        if let Some(container) = container.as_deref() {
            container_fds(container, !self.clients.full(), &mut sources, &mut fds);
            if let Some(fd) = self.checks.as_ref().and_then(Checks::fd) {
                sources.push(Source::Health);
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
            }
        }
        if let Some(fd) = self.watch.fd().filter(|_| container.is_some()) {
            sources.push(Source::Probe);
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(at) => {
                // The timeout is rounded up, so that the deadline has passed when poll returns.
                let left = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        if let Err(errno) = poll(&mut fds, timeout) {
            if errno != nix::Error::EINTR {
                tracing::error!("poll: {errno}");
            }
            return;
        }
        let ready: Vec<(Source, PollFlags)> = sources
            .into_iter()
            .zip(fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())))
            .filter(|(_, events)| !events.is_empty())
            .collect();
        drop(fds);
        // Iterates backwards, because an output stream that ends is removed and shifts the indices after it.
        for (source, events) in ready.into_iter().rev() {
            self.serve(source, events, container.as_deref_mut());
        }
        let typist_left = self.clients.sweep();
        let Some(container) = container else { return };
        // A command that held the container frozen may have been killed without a request to thaw it.
        self.settle_freeze(container);
        if typist_left {
            // The client that sent input has disconnected, so the container's input ends, as with docker's StdinOnce. A
            // terminal stays open for the next client.
            container.streams.end_input();
        }
    }

    fn serve(&mut self, source: Source, events: PollFlags, container: Option<&mut Container>) {
        match (source, container) {
            (Source::Signals, container) => self.take_signals(container),
            (Source::Listener, _) => match self.listener.accept() {
                Ok(Some(connection)) => {
                    self.clients.add(connection);
                }
                Ok(None) => {}
                Err(error) => tracing::error!("cannot accept a client: {error}"),
            },
            (Source::Client(index), container) => {
                let readable = events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
                let writable = events.contains(PollFlags::POLLOUT);
                if let Some(message) = self.clients.serve(index, readable, writable) {
                    self.obey(index, message, container);
                }
            }
            (Source::Output(index), Some(container)) => {
                self.pass_output(container, index);
            }
            (Source::Input, Some(container)) => container.streams.write(),
            (Source::Oom, Some(container)) => {
                container.take_oom_event();
                self.hear_oom(container);
            }
            (Source::Health, Some(container)) => {
                self.hear_health(container);
                self.act_on_health(container);
            }
            (Source::Probe, Some(container)) => self.hear_probe(container),
            (Source::Output(_) | Source::Input | Source::Oom | Source::Health | Source::Probe, None) => {}
        }
    }

    /// Reads once from an output stream, and passes the bytes to the log and the attached clients. Returns `false` if
    /// there was nothing to read.
    fn pass_output(&mut self, container: &mut Container, index: usize) -> bool {
        let mut buffer = [0; CHUNK];
        let Some((stream, count)) = container.streams.read(index, &mut buffer) else { return false };
        let bytes = &buffer[..count];
        if let Err(error) = self.log.write(stream, bytes) {
            tracing::error!("cannot write the container's log: {error}");
        }
        let wrap = match stream {
            log::Stream::Stdout => FromSupervisor::Stdout,
            log::Stream::Stderr => FromSupervisor::Stderr,
        };
        self.clients.output(wrap, bytes);
        true
    }

    fn take_signals(&mut self, container: Option<&mut Container>) {
        let mut asked_to_stop = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            asked_to_stop |= info.ssi_signo != Signal::SIGCHLD as u32;
        }
        self.by_host |= asked_to_stop && !self.stopping;
        let Some(container) = container else {
            self.stopping |= asked_to_stop;
            return;
        };
        container.reap();
        if asked_to_stop {
            self.stop(container, None);
        }
    }
}

fn container_fds<'a>(
    container: &'a Container,
    read_output: bool,
    sources: &mut Vec<Source>,
    fds: &mut Vec<PollFd<'a>>,
) {
    let mut add = |source: Source, fd: BorrowedFd<'a>, events: PollFlags| {
        sources.push(source);
        fds.push(PollFd::new(fd, events));
    };
    if read_output {
        for (index, fd) in container.streams.outputs().enumerate() {
            add(Source::Output(index), fd, PollFlags::POLLIN);
        }
    }
    if let Some(fd) = container.streams.wants_to_write() {
        add(Source::Input, fd, PollFlags::POLLOUT);
    }
    if let Some((fd, events)) = container.oom_fd() {
        add(Source::Oom, fd, events);
    }
}
