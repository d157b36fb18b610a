//! The supervisor's one poll loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::protocol::{FromSupervisor, ToSupervisor};
use super::{Supervisor, log};
use crate::launch::{Container, Ending};

/// Bytes read from the container at once.
const CHUNK: usize = 64 * 1024;
/// How long to wait for the rest of the output once the container's process has ended. Everything in its pid namespace is dead then, so the
/// streams end by themselves, unless a process outside (`--pid host`) still holds them.
const REST_OF_OUTPUT: Duration = Duration::from_millis(500);

/// When the supervisor of a container that lives on gives back the memory that the launch took.
const LAUNCH_OVER: Duration = Duration::from_secs(1);

/// What a poll entry stands for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Client(usize),
    Output(usize),
    Input,
    Oom,
}

impl Supervisor {
    /// Serves everybody until the container's process has ended.
    pub(super) fn watch(&mut self, container: &mut Container) -> Ending {
        let mut slim_at = Some(Instant::now() + LAUNCH_OVER);
        loop {
            if let Some(ending) = container.ended() {
                self.read_rest(container);
                return ending;
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                container.kill();
            }
            if let Some((at, times)) = self.oom_look
                && at <= Instant::now()
            {
                self.oom_look = None;
                self.count_oom_kills(container, times);
            }
            if self.entry.record.step && self.clients.is_empty() {
                // The build that wanted this step is gone.
                container.kill();
            }
            if slim_at.is_some_and(|at| at <= Instant::now()) {
                slim_at = None;
                crate::sys::memory::release_unused();
            }
            let next = [self.kill_at, slim_at, self.oom_look.map(|(at, _)| at)].into_iter().flatten().min();
            self.turn(Some(container), next);
        }
    }

    /// Serves everybody while no container runs, for so long. `false`: a person asked to stop meanwhile.
    pub(super) fn wait_for(&mut self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        while Instant::now() < until && !self.stopping {
            self.turn(None, Some(until));
        }
        !self.stopping
    }

    /// Takes the messages that are waiting already, without waiting for more.
    pub(super) fn hear_everybody(&mut self, container: &mut Container) {
        self.turn(Some(container), Some(Instant::now()));
        // A second turn for the client's second message (one message a turn is served).
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

    /// One poll and what follows from it.
    fn turn(&mut self, mut container: Option<&mut Container>, until: Option<Instant>) {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let typist_waits = container.as_ref().is_some_and(|container| container.streams.full());
        for (index, (fd, pending)) in self.clients.fds().enumerate() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, !typist_waits);
            wanted.set(PollFlags::POLLOUT, pending);
            sources.push(Source::Client(index));
            fds.push(PollFd::new(fd, wanted));
        }
        if let Some(container) = container.as_deref() {
            container_fds(container, !self.clients.full(), &mut sources, &mut fds);
        }
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up, so that the deadline has passed when poll says so.
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
        // Backwards, so that an output stream that ends and is let go moves no index that is still to come.
        for (source, events) in ready.into_iter().rev() {
            self.serve(source, events, container.as_deref_mut());
        }
        if self.clients.sweep()
            && let Some(container) = container
        {
            // Who typed has gone: the container's input ends, as with docker's StdinOnce. A terminal stays open for the next one.
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
            (Source::Output(_) | Source::Input | Source::Oom, None) => {}
        }
    }

    /// Reads once from an output stream, to the log and to whoever is attached; `false`: there was nothing.
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
        let Some(container) = container else {
            self.stopping |= asked_to_stop;
            return;
        };
        container.reap();
        if asked_to_stop {
            self.stop(container, None);
        }
    }

    fn obey(&mut self, client: usize, message: ToSupervisor, container: Option<&mut Container>) {
        match (message, container) {
            (ToSupervisor::Stop { timeout }, Some(container)) => self.stop(container, timeout),
            (ToSupervisor::Stop { .. } | ToSupervisor::Signal { stops: true, .. }, None) => self.stopping = true,
            (ToSupervisor::Signal { number, stops }, Some(container)) => {
                self.stopping |= stops;
                container.signal(number);
                if number == libc::SIGKILL {
                    // A frozen process dies when it is thawed.
                    self.thaw(container);
                }
            }
            (ToSupervisor::Stdin(bytes), Some(container)) => container.streams.type_in(&bytes),
            (ToSupervisor::StdinEnd, Some(container)) => container.streams.end_input(),
            (ToSupervisor::Resize { rows, columns }, Some(container)) => {
                if let Some(pty) = container.streams.pty() {
                    crate::sys::pty::set_window_size(pty, rows, columns);
                }
            }
            (ToSupervisor::Ready { url }, _) => {
                self.state.url = Some(url);
                self.save();
            }
            (ToSupervisor::Rename { name }, _) => self.entry.record.name = name,
            (ToSupervisor::Pause { paused }, container) => {
                let done = self.pause(paused, container);
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            (ToSupervisor::Update { limits, restart }, container) => {
                let done = self.update(&limits, restart, container);
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            _ => {}
        }
    }

    /// The stop signal now, SIGKILL when patience ends.
    fn stop(&mut self, container: &mut Container, timeout: Option<u64>) {
        self.stopping = true;
        let patience = Duration::from_secs(timeout.unwrap_or(self.entry.record.request.stop_timeout));
        container.stop();
        self.thaw(container);
        // Records of older versions may hold more seconds than the clock can count: patience for ever.
        let at = Instant::now().checked_add(patience);
        self.kill_at = self.kill_at.into_iter().chain(at).min();
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
