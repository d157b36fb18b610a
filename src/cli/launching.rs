//! A launch as the command sees it: it waits for GPUs, starts the supervisor, and waits until the container runs.
//!
//! With `--wait`, the launch is repeated if another process takes the GPUs between the command's check and the
//! supervisor's. The command keeps its place in the queue meanwhile.

use nix::sys::signalfd::SignalFd;

use super::gpu_queue::Place;
use super::session::{Event, Session};
use super::waiting::Waiting;
use super::{Context, print};
use crate::control::{FromSupervisor, ToSupervisor};
use crate::launch::{self, Spawned};
use crate::record::{Entry, Launching, LimitRow, Records, State};
use crate::report::{EXIT_GPURUN, Report};

/// The launch of a container that has a record.
pub(super) struct Launch<'a> {
    context: &'a Context,
    records: Records,
    entry: Entry,
    /// The messages that are already waiting in the supervisor's socket.
    first: &'a [ToSupervisor],
    /// Whether the container is removed if it cannot be launched.
    is_new: bool,
    place: Option<Place>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(
        context: &'a Context,
        records: Records,
        entry: Entry,
        first: &'a [ToSupervisor],
        is_new: bool,
    ) -> Self {
        Self { context, records, entry, first, is_new, place: None }
    }

    /// Waits for the container's GPUs if it is to wait, and starts its supervisor.
    pub(super) fn begin(&mut self, launching: Launching, signals: &SignalFd) -> Result<Spawned, Report> {
        match self.wait_for_gpus(signals).and_then(|()| self.mount_volumes()) {
            Ok(()) => launch::spawn(&self.context.root, &self.context.run_dir, &self.entry, launching, self.first)
                .inspect_err(|_| self.clean_up()),
            Err(report) => {
                self.clean_up();
                Err(report)
            }
        }
    }

    /// Mounts the file systems of volumes with options. The lock of the launch keeps them mounted.
    fn mount_volumes(&self) -> Result<(), Report> {
        let mounted = super::volume_use::mount_all(&self.context.root, &self.entry);
        mounted.map(drop).map_err(|report| report.with_exit_code(EXIT_GPURUN))
    }

    fn wait_for_gpus(&mut self, signals: &SignalFd) -> Result<(), Report> {
        let run_dir = &self.context.run_dir;
        if self.place.is_none() {
            self.place = Place::join(&self.entry, run_dir)?;
        }
        self.place.as_ref().map_or(Ok(()), |place| place.wait(&self.entry, run_dir, signals))
    }

    /// Removes what the launch has made so far. No process is running.
    fn clean_up(&self) {
        let cleaned = self.records.lock().map_err(Report::from).and_then(|_lock| match self.is_new {
            true => launch::remove(&self.records, &self.entry),
            false => launch::clear_run_dir(&self.entry),
        });
        if let Err(report) = cleaned {
            tracing::warn!("{report}");
        }
    }

    /// Waits until the container runs and prints the launch's notices. With `--verbose`, prints the table of limits too.
    pub(super) fn wait_running(mut self, session: &mut Session) -> Result<State, Report> {
        loop {
            let report = match wait_running(session, self.context.verbose)? {
                Ok(state) => return Ok(state),
                Err(report) => report,
            };
            if !report.is_transient || self.place.is_none() {
                session.discard();
                return Err(report);
            }
            print::say(&format!("gpurun: the GPUs were taken before the container started: {}", report.message));
            let Some(launching) = session.end_launch() else { return Err(report) };
            let spawned = self.begin(launching, session.signals())?;
            session.begin_launch(spawned);
        }
    }
}

/// Waits for the end of one launch. The inner error is the supervisor's, whose launch has failed.
fn wait_running(session: &mut Session, verbose: bool) -> Result<Result<State, Report>, Report> {
    let mut waiting = Waiting::new(session.run_dir());
    let mut is_cancelled = false;
    loop {
        match session.next(Some(waiting.until()), None)? {
            Event::TimedOut => waiting.notice(),
            Event::Message(FromSupervisor::Step(what)) => waiting.begins(what),
            Event::Message(FromSupervisor::Running(state)) => return Ok(Ok(*state)),
            Event::Message(FromSupervisor::Failed(mut report)) => {
                report.is_transient &= !is_cancelled;
                return Ok(Err(report));
            }
            Event::Message(FromSupervisor::Notice(line)) => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Detail(line)) if verbose => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Limits(rows)) if verbose => print::write_stderr(&limits_text(&rows)),
            // The exit of a short-lived process may be reported before the launch is.
            Event::Message(FromSupervisor::Exited(state)) => return Ok(Ok(*state)),
            Event::Message(_) | Event::Extra | Event::InputEnded | Event::Detach => {}
            Event::Signal(_) => {
                is_cancelled = true;
                session.send(&ToSupervisor::Stop { timeout: Some(0) })?;
            }
            Event::HungUp => return Err(session.killed("the container's supervisor ended during the launch")),
        }
    }
}

/// Formats one line per limit: flag → file → value.
pub(super) fn limits_text(rows: &[LimitRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let note = row.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
        let effective =
            if row.effective == row.kernel { String::new() } else { format!("  effective {}", row.effective) };
        // Some files have one line per device or per key.
        let kernel = row.kernel.replace('\n', ", ");
        text.push_str(&format!("{} {} → {} = {kernel}{effective}{note}\n", row.flag, row.asked, row.file));
    }
    text
}
