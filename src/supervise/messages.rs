//! What the messages of commands do.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::timers::Timer;
use crate::control::{FromSupervisor, ToSupervisor};
use crate::launch::Container;
use crate::net;
use crate::report::Report;

impl Supervisor {
    /// Carries out the message of a client.
    pub(super) fn obey(&mut self, client: usize, message: ToSupervisor, container: Option<&mut Container>) {
        match (message, container) {
            (ToSupervisor::Stop { timeout }, Some(container)) => self.stop(container, timeout),
            (ToSupervisor::Stop { .. } | ToSupervisor::Signal { stops: true, .. }, None) => self.stopping = true,
            (ToSupervisor::Signal { number, stops }, Some(container)) => {
                // As in docker, a signal that is meant to end the container disables its restart policy.
                self.stopping |= stops || container.is_asked_to_end_by(number);
                container.signal(number);
                if number == libc::SIGKILL {
                    // A frozen process dies only when it is thawed.
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
            (ToSupervisor::Rename { name }, _) => {
                if let Err(error) = net::rename(&self.records.run_dir().join("net"), &self.entry.record.id, &name) {
                    tracing::error!("{}", Report::from(error));
                }
                self.entry.record.name = name;
            }
            (ToSupervisor::Connect { attachment }, container) => {
                let done = self.connect(*attachment, container);
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            (ToSupervisor::Disconnect { network }, container) => {
                let done = self.disconnect(&network, container);
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            (ToSupervisor::Pause { paused, held }, container) => {
                let done = match held {
                    true => self.hold(client, paused, container),
                    false => self.pause(paused, container),
                };
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            (ToSupervisor::CheckHealth, container) => match self.ask_health(container.is_some()) {
                Ok(()) => self.clients.await_check(client),
                Err(report) => self.clients.answer(client, &FromSupervisor::Done(Err(report))),
            },
            (ToSupervisor::Update { limits, restart, times }, container) => {
                let done = self.update(&limits, restart, times, container);
                self.clients.answer(client, &FromSupervisor::Done(done));
            }
            _ => {}
        }
    }

    /// Sends the stop signal now, and schedules SIGKILL for the end of the timeout.
    pub(super) fn stop(&mut self, container: &mut Container, timeout: Option<u64>) {
        self.stopping = true;
        self.end_gracefully(container, timeout);
    }

    /// Does the same, and leaves it to the restart policy whether the container is started again.
    pub(super) fn end_gracefully(&mut self, container: &mut Container, timeout: Option<u64>) {
        let patience = Duration::from_secs(timeout.unwrap_or(self.entry.record.request.stop_timeout));
        container.stop();
        self.thaw(container);
        // Records of older versions may have a timeout that the clock cannot represent. It counts as infinite.
        let at = Instant::now().checked_add(patience);
        self.timers.set(Timer::Kill, self.timers.get(Timer::Kill).into_iter().chain(at).min());
    }
}
