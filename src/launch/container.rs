//! A container that exists: its processes, its streams, and how all of it is taken down again.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::poll::PollFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::streams::Streams;
use super::undo::Undo;
use super::{Progress, jupyter, plan, step};
use crate::cgroup::{Cgroup, Freeze, OomKill};
use crate::record::{Entry, LimitRow, OomRow, PublishedPort, Records, State, Usage};
use crate::report::Report;
use crate::request::Payload;
use crate::runtime::{Created, ExecChild};
use crate::spec::AskedLimits;
use crate::sys::process;

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Its exit code, or 128 + the signal's number.
    pub code: u8,
}

/// A container between create and clear.
#[derive(Debug)]
pub struct Container {
    /// `None` once it has been deleted.
    pub(super) created: Option<Created>,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) start_time: u64,
    pub(super) cgroup: Cgroup,
    pub(super) oom: Option<crate::cgroup::OomWatch>,
    pub streams: Streams,
    /// The exec'ed Jupyter of a bare launch.
    pub(super) jupyter: Option<ExecChild>,
    pub(super) jupyter_plan: Option<jupyter::Prepared>,
    pub(super) limits: Vec<LimitRow>,
    /// Those of them that are no files of its cgroup: they stay as they are.
    pub(super) process_limits: Vec<LimitRow>,
    pub(super) gpus: Vec<crate::gpu::Given>,
    pub(super) gpus_by: Option<String>,
    pub(super) ip: Option<String>,
    pub(super) ports: Vec<PublishedPort>,
    /// Held: its descriptors are the network.
    #[expect(dead_code, reason = "held for its descriptors")]
    pub(super) network: crate::net::Network,
    pub(super) cgroup_path: String,
    pub(super) stop_signal: i32,
    pub(super) ending: Option<Ending>,
    pub(super) payload_ending: Option<Ending>,
    pub(super) undo: Undo,
}

impl Container {
    /// Starts pid 1, and Jupyter beside it where this is a bare launch.
    pub fn start(&mut self, entry: &Entry) -> Result<(), Report> {
        if let Some(created) = &mut self.created {
            created.start()?;
        }
        step("started");
        if let (Payload::Jupyter(_), Some(prepared)) = (&entry.record.request.payload, self.jupyter_plan.take()) {
            let child = jupyter::exec(prepared, &self.pidfd, &self.cgroup, &mut self.streams)?;
            self.jupyter = Some(child);
            step("jupyter");
        }
        Ok(())
    }

    /// Takes everything down after a failure and answers with it.
    #[must_use]
    pub fn give_up(mut self, mut report: Report) -> Report {
        report.afterwards.extend(self.clear());
        report
    }

    /// The end of the container, once its pid 1 is gone.
    #[must_use]
    pub fn ended(&self) -> Option<Ending> {
        // A bare launch ends as Jupyter ended: pid 1 is only its keeper.
        self.ending.map(|ending| self.payload_ending.unwrap_or(ending))
    }

    /// Takes the exit statuses of our children that have ended.
    pub fn reap(&mut self) {
        loop {
            let (pid, ending) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Ending { code: code as u8 }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Ending { code: 128 + signal as u8 }),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if pid == self.pid {
                self.ending = Some(ending);
            } else if self.jupyter.as_ref().is_some_and(|child| child.pid == pid) {
                self.payload_ending = Some(ending);
                // Its keeper has nothing to keep any more.
                self.signal_pid1(libc::SIGKILL);
            }
        }
    }

    /// Sends a signal to what the person thinks of as the container's process.
    pub fn signal(&self, number: i32) {
        match &self.jupyter {
            Some(jupyter) if number != libc::SIGKILL => drop(process::signal(&jupyter.pidfd, number)),
            _ => self.signal_pid1(number),
        }
    }

    /// Asks it to end in good order.
    pub fn stop(&self) {
        self.signal(self.stop_signal);
    }

    /// Ends it now, with all of its processes.
    pub fn kill(&self) {
        self.signal_pid1(libc::SIGKILL);
        if let Err(error) = self.cgroup.kill_all() {
            tracing::error!("{}", Report::from(error));
        }
    }

    fn signal_pid1(&self, number: i32) {
        // A process that has ended already needs no signal.
        let _ = process::signal(&self.pidfd, number);
    }

    /// Freezes or thaws all of its processes.
    pub fn freeze(&self, freeze: Freeze) -> Result<(), Report> {
        Ok(self.cgroup.freeze(freeze)?)
    }

    /// Changes its limits, all or nothing; answers with the table as read back.
    pub fn update(&mut self, before: &AskedLimits, after: &AskedLimits) -> Result<Vec<LimitRow>, Report> {
        let host = crate::cgroup::Host::probe(Path::new("/"))?;
        let facts = host.facts()?;
        let mut limits = [before.resolve(&facts)?, after.resolve(&facts)?];
        limits.iter_mut().for_each(|limits| drop(host.soften(limits)));
        self.limits = self.cgroup.update(&limits[0], &limits[1])?.into_iter().map(super::row).collect();
        self.limits.extend(self.process_limits.iter().cloned());
        Ok(self.limits.clone())
    }

    /// The descriptor that becomes ready when the kernel killed for memory, and the poll event that says so.
    #[must_use]
    pub fn oom_fd(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.oom.as_ref().map(|watch| (watch.fd(), watch.poll_flags()))
    }

    /// Makes the watch ready for the next event.
    pub fn take_oom_event(&mut self) {
        if let Some(watch) = &mut self.oom
            && !watch.clear()
        {
            self.oom = None;
        }
    }

    /// How many processes of this container the kernel has killed for memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills().unwrap_or(0)
    }

    /// The kills that the kernel's log tells of.
    #[must_use]
    pub fn ooms(&self) -> Vec<OomRow> {
        let id = self.cgroup_path.rsplit('/').next().unwrap_or_default();
        let kills = crate::cgroup::oom_kills_of(Path::new("/"), id).unwrap_or_else(|error| {
            tracing::warn!("cannot read the kernel's log, /dev/kmsg: {error}");
            Vec::new()
        });
        let row = |kill: OomKill| OomRow {
            at_us: kill.at_us,
            process: kill.process,
            pid: kill.pid,
            resident: kill.resident,
            limit_of: kill.limit_of,
            limit: None,
            limit_file: None,
            biggest: kill.biggest,
            peak: None,
            events: BTreeMap::new(),
        };
        kills.into_iter().map(row).collect()
    }

    /// Adds what the cgroups say to what the kernel's log said: the limit that was reached, the peak, the counters.
    #[must_use]
    pub fn complete(&self, mut oom: OomRow) -> OomRow {
        let path = &self.cgroup_path;
        let ceiling = match &oom.limit_of {
            Some(of) => self.cgroup.ceiling_of(path, of),
            // Without a name the log was silent, and not the host without memory.
            None if oom.process.is_empty() => self.cgroup.ceiling_by_counters(path),
            None => None,
        };
        if let Some(ceiling) = ceiling {
            oom.limit_of.get_or_insert(ceiling.cgroup);
            oom.limit = ceiling.limit;
            oom.limit_file = Some(ceiling.file.display().to_string());
        }
        oom.peak = self.cgroup.stats().memory_peak;
        oom.events = self.cgroup.memory_events();
        oom
    }

    /// What it has used in all, so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let stats = self.cgroup.stats();
        Usage {
            memory_peak: stats.memory_peak,
            cpu_usage_us: stats.cpu_usage_us,
            cpu_throttled_us: stats.cpu_throttled_us,
            io_read_bytes: stats.io_read_bytes,
            io_write_bytes: stats.io_write_bytes,
            memory_events: self.cgroup.memory_events(),
        }
    }

    /// Writes what a person may want to know into the state.
    pub fn describe(&self, state: &mut State) {
        state.pid = Some(self.pid);
        state.pid_start = Some(self.start_time);
        state.ip.clone_from(&self.ip);
        state.ports.clone_from(&self.ports);
        state.cgroup = Some(self.cgroup_path.clone());
        state.limits.clone_from(&self.limits);
        state.gpus.clone_from(&self.gpus);
        state.gpus_by.clone_from(&self.gpus_by);
    }

    /// Kills what is left and takes back everything that was made; answers with what could not be.
    pub fn clear(&mut self) -> Vec<String> {
        // With `--pid host`, or processes that were exec'ed, more than pid 1 may live on.
        if let Err(error) = self.cgroup.kill_all() {
            tracing::warn!("{}", Report::from(error));
        }
        self.signal_pid1(libc::SIGKILL);
        let _ = process::wait_pidfd(&self.pidfd, std::time::Duration::from_secs(10));
        self.reap();
        self.oom = None;
        let mut failures = Vec::new();
        // Poststop hooks run here, and libcontainer's own state goes.
        if let Some(Err(error)) = self.created.take().map(Created::delete) {
            failures.push(Report::from(error).message);
        }
        failures.extend(self.undo.run());
        failures
    }
}

/// Makes the container: see the room's header for the order.
pub(super) fn build(
    root: &Path,
    records: &Records,
    entry: &Entry,
    tell: &mut dyn FnMut(Progress),
    undo: &mut Undo,
) -> Result<Container, Report> {
    let planned = plan::make(root, records, entry, tell, undo)?;
    planned.create(entry, tell, undo)
}
