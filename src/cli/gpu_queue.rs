//! `--wait`: a command waits in the queue for idle GPUs before it starts its container.
//!
//! The record exists while the command waits, so that its name is reserved and `ps -a` shows it. The command keeps its
//! ticket until the supervisor has taken the lease. If another process takes the GPUs before that, the command waits
//! again at the same place. If another command removes the ticket, because it stops or removes the container, the command
//! gives up.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::print;
use crate::clock::now;
use crate::gpu::GpuError;
use crate::gpu::lease;
use crate::gpu::queue::{Ticket, Waiter};
use crate::launch;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{GpuWait, Span};

/// The exit code at the end of the time limit, as of timeout(1).
const EXIT_TIMED_OUT: u8 = 124;
/// How often the first command in the queue asks the driver which GPUs are idle: a process outside gpurun may have ended.
const ASK: Duration = Duration::from_secs(5);
/// The longest sleep. Changes of tickets and leases end it, but a supervisor that is killed leaves its lease unchanged.
const NAP: Duration = Duration::from_secs(1);

/// A place in the queue. Dropping it leaves the queue.
pub(super) struct Place {
    ticket: Ticket,
    limit: Option<Span>,
    deadline: Option<Instant>,
}

impl Place {
    /// Joins the queue if the container is to wait for its GPUs.
    pub(super) fn join(entry: &Entry, run_dir: &Path) -> Result<Option<Self>, Report> {
        let record = &entry.record;
        let (Some(GpuWait(limit)), Some(gpus)) = (record.request.gpu_wait, &record.request.gpus) else {
            return Ok(None);
        };
        let deadline = limit.and_then(|span| Instant::now().checked_add(span.0));
        let waiter = Waiter {
            id: record.id.clone(),
            container: record.name.clone(),
            user: record.owner.name(),
            gpus: gpus.to_string(),
            since: now(),
            pid: std::process::id(),
        };
        Ok(Some(Self { ticket: Ticket::join(&run_dir.join("gpus"), &waiter)?, limit, deadline }))
    }

    /// Waits until the GPUs of the container are idle and it is the container's turn.
    pub(super) fn wait(&self, entry: &Entry, run_dir: &Path, signals: &SignalFd) -> Result<(), Report> {
        let leases = run_dir.join("gpus");
        let changes = Changes::watch(&leases)?;
        let ticket = &self.ticket;
        let mut queue = Queue { entry, run_dir, leases: &leases, ticket, asked: None, seen: Vec::new(), shown: None };
        loop {
            if !ticket.is_valid() {
                let name = &entry.record.name;
                return Err(Report::new(format!(
                    "another command stopped or removed container `{name}`, which waited for idle GPUs"
                )));
            }
            if queue.is_our_turn()? {
                return Ok(());
            }
            let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if let (Some(Duration::ZERO), Some(limit)) = (left, self.limit) {
                return Err(queue.timed_out(limit));
            }
            if let Some(signal) = changes.sleep(signals, left.map_or(NAP, |left| left.min(NAP)))? {
                return Err(Report::new("the command left the queue for idle GPUs").with_exit_code(128 + signal as u8));
            }
        }
    }
}

/// One command in the queue.
struct Queue<'a> {
    entry: &'a Entry,
    run_dir: &'a Path,
    leases: &'a Path,
    ticket: &'a Ticket,
    /// When the driver was asked last.
    asked: Option<Instant>,
    /// The containers that had leases then.
    seen: Vec<String>,
    /// What was printed last: the position, and the containers with leases.
    shown: Option<(usize, Vec<String>)>,
}

impl Queue<'_> {
    /// Prints the position when it changes.
    fn is_our_turn(&mut self) -> Result<bool, Report> {
        let (before, all) = self.ticket.position(self.leases)?;
        let held: Vec<String> = lease::living(self.leases)?.into_iter().map(|lease| lease.id).collect();
        let is_new = self.shown.as_ref().is_none_or(|(position, leases)| *position != before || *leases != held);
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= ASK) || self.seen != held;
        // Only the first command polls the driver. The others ask it once, for what they print, and to find out whether
        // the host can ever fulfill their request.
        if !(is_new || before == 0 && is_due) {
            return Ok(false);
        }
        (self.asked, self.seen) = (Some(Instant::now()), held.clone());
        let holders = match self.ask() {
            Ok(()) if before == 0 => return Ok(true),
            Ok(()) => Vec::new(),
            Err(error) => match error.holders() {
                Some(holders) => holders,
                None => return Err(error.into()),
            },
        };
        if is_new {
            self.show(before, all, &holders);
            self.shown = Some((before, held));
        }
        Ok(false)
    }

    fn ask(&self) -> Result<(), GpuError> {
        launch::gpus_available(self.run_dir, self.entry, &mut |line| print::say(&format!("gpurun: {line}")))
    }

    fn show(&self, before: usize, all: usize, holders: &[String]) {
        let gpus = self.entry.record.request.gpus.as_ref().map(ToString::to_string).unwrap_or_default();
        print::say(&format!("gpurun: waiting for `--gpus {gpus}`: position {} of {all} in the queue", before + 1));
        for holder in holders {
            print::say(&format!("gpurun:   {holder}"));
        }
        if holders.is_empty() {
            print::say("gpurun:   the idle GPUs are reserved for the commands before this one");
        }
    }

    fn timed_out(&self, limit: Span) -> Report {
        let report = match self.ask() {
            Err(error) => Report::from(error),
            Ok(()) => Report::new("the idle GPUs are reserved for the commands before this one"),
        };
        let mut report = report.under(format!("no GPU became available within {limit}")).with_exit_code(EXIT_TIMED_OUT);
        report.hint =
            Some("see the queue and the holders with `gpurun gpus`, or wait longer with `--wait=TIME`".into());
        report
    }
}

/// Changes of leases and of tickets.
struct Changes(Inotify);

impl Changes {
    fn watch(leases: &Path) -> Result<Self, Report> {
        let failed = |errno: nix::Error| Report::new("cannot watch the leases of GPUs").with_cause(errno);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        // A ticket is open for writing as long as it is held, so that its holder's death is an event, too.
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE;
        inotify.add_watch(leases, events).map_err(failed)?;
        inotify.add_watch(&leases.join("queue"), events).map_err(failed)?;
        Ok(Self(inotify))
    }

    /// Sleeps until a change or the end of the time. Returns a signal that asks the command to end.
    fn sleep(&self, signals: &SignalFd, time: Duration) -> Result<Option<Signal>, Report> {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that the time is over when poll returns.
        let timeout = PollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(Report::new("cannot wait for idle GPUs").with_cause(errno)),
        }
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGWINCH) | Err(_) => {}
                Ok(signal) => return Ok(Some(signal)),
            }
        }
        Ok(None)
    }
}
