//! A created container: its processes, its streams, and its removal.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::poll::PollFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::plan::Gpus;
use super::progress::step;
use super::streams::Streams;
use super::undo::{KILL, Undo};
use super::{files, health, hostname, jupyter, keeper, readback, rlimits};
use crate::cgroup::{Cgroup, Freeze, OomKill};
use crate::net;
use crate::network::Networks;
use crate::record::{Entry, LimitRow, OomRow, PublishedPort, Records, State, Usage};
use crate::report::Report;
use crate::request::{Attachment, HealthCheck, LimitsRequest, NetworkMode, Request};
use crate::runtime::{self, ExecChild};
use crate::spec::Process;
use crate::sys::process;

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The exit code, or 128 plus the number of the signal.
    pub code: u8,
}

/// A container between its creation and its removal.
#[derive(Debug)]
pub(crate) struct Container {
    pub(super) runtime: runtime::Created,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) start_time: u64,
    pub(super) cgroup: Cgroup,
    pub(super) oom: Option<crate::cgroup::OomWatch>,
    pub streams: Streams,
    /// Kills the container when this process is killed, for the cases where pid 1's PDEATHSIG may not fire.
    pub(super) keeper: Option<std::process::Child>,
    /// The Jupyter process of a bare launch, started with exec.
    pub(super) jupyter: Option<ExecChild>,
    pub(super) health: Option<health::Prepared>,
    pub(super) limits: Vec<LimitRow>,
    /// The rows of `limits` that do not come from files of the cgroup. They do not change after the create.
    pub(super) process_limits: Vec<LimitRow>,
    pub(super) gpus: Gpus,
    pub(super) ip: Option<String>,
    pub(super) ports: Vec<PublishedPort>,
    /// Its descriptors keep the network alive.
    pub(super) network: net::Network,
    pub(super) cgroup_path: String,
    pub(super) stop_signal: i32,
    pub(super) ending: Option<Ending>,
    pub(super) payload_ending: Option<Ending>,
    pub(super) undo: Undo,
}

/// A container whose process waits to be started.
#[derive(Debug)]
pub(crate) struct Created {
    pub(super) container: Container,
    /// Jupyter, which a bare launch starts beside PID 1.
    pub(super) jupyter: Option<Process>,
}

/// The namespace of a container that has a network of its own.
fn own_network<'a>(network: &'a net::Network, entry: &Entry) -> Result<&'a OwnedFd, Report> {
    let name = &entry.record.name;
    match &network.namespace {
        Some(namespace) if entry.record.request.network == NetworkMode::Bridge => Ok(namespace),
        _ => Err(Report::new(format!("container `{name}` has no network of its own that could be changed"))
            .with_hint("run it with `--network NAME` instead of `host`, `none` or `container:NAME`")),
    }
}

impl Created {
    /// The container, whose streams can be attached and which can be signaled before it starts.
    pub(crate) fn container(&mut self) -> &mut Container {
        &mut self.container
    }

    /// Starts pid 1 and, in a bare launch, Jupyter beside it. Cleans up after a failure.
    pub(crate) fn start(self, request: &Request) -> Result<Container, Report> {
        let Self { mut container, jupyter } = self;
        match container.start(request, jupyter) {
            Ok(()) => Ok(container),
            Err(report) => {
                let mut report = rlimits::descriptors(report, &request.ulimits);
                report.afterwards.extend(container.clear());
                Err(report)
            }
        }
    }
}

impl Container {
    fn start(&mut self, request: &Request, jupyter: Option<Process>) -> Result<(), Report> {
        if keeper::is_needed(request) {
            self.keep()?;
        }
        self.runtime.start()?;
        step("started");
        if let Some(process) = jupyter {
            self.jupyter = Some(jupyter::exec(process, &self.pidfd, &self.cgroup, &mut self.streams)?);
            step("jupyter");
        }
        Ok(())
    }

    fn keep(&mut self) -> Result<(), Report> {
        let keeper = keeper::start(&self.pidfd, &self.cgroup);
        self.keeper = Some(keeper.map_err(|error| {
            Report::new("cannot start the process that ends the container with its supervisor").with_cause(error)
        })?);
        Ok(())
    }

    /// Returns how the container ended, once its pid 1 is gone.
    #[must_use]
    pub(crate) fn ended(&self) -> Option<Ending> {
        // A bare launch ends as Jupyter ended, because pid 1 is only gpurun's init.
        self.ending.map(|ending| self.payload_ending.unwrap_or(ending))
    }

    /// Reaps this process's children that have ended, and records how they ended.
    pub(crate) fn reap(&mut self) {
        loop {
            let (pid, ending) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Ending { code: code as u8 }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Ending { code: 128 + signal as u8 }),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.keeper.as_ref().is_some_and(|keeper| keeper.id() as i32 == pid) {
                self.keeper = None;
                if self.ending.is_none()
                    && let Err(report) = self.keep()
                {
                    tracing::error!("{report}");
                }
            } else if self.network.reaped(pid, self.ending.is_none()) {
                // The resolver, which has been started again if it is needed.
            } else if pid == self.pid {
                self.ending = Some(ending);
            } else if self.jupyter.as_ref().is_some_and(|child| child.pid == pid) {
                self.payload_ending = Some(ending);
                // Without Jupyter, pid 1 has no purpose any more.
                self.signal_pid1(libc::SIGKILL);
            }
        }
    }

    /// Sends a signal to the container's main process: Jupyter in a bare launch, otherwise pid 1. SIGKILL always goes
    /// to pid 1.
    pub(crate) fn signal(&self, number: i32) {
        match &self.jupyter {
            Some(jupyter) if number != libc::SIGKILL => drop(process::signal(&jupyter.pidfd, number)),
            _ => self.signal_pid1(number),
        }
    }

    /// Whether a signal asks the container to end: its stop signal, or one that ends programs by convention.
    #[must_use]
    pub(crate) fn is_asked_to_end_by(&self, number: i32) -> bool {
        number == self.stop_signal || [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGKILL].contains(&number)
    }

    /// Asks the container to end gracefully.
    pub(crate) fn stop(&self) {
        self.signal(self.stop_signal);
    }

    /// Kills all of the container's processes at once.
    pub(crate) fn kill(&self) {
        self.signal_pid1(libc::SIGKILL);
        if let Err(error) = self.cgroup.kill_all() {
            tracing::error!("{}", Report::from(error));
        }
    }

    fn signal_pid1(&self, number: i32) {
        // An error means that the process has already ended, and then it needs no signal.
        let _ = process::signal(&self.pidfd, number);
    }

    /// Freezes or thaws all of the container's processes.
    pub(crate) fn freeze(&self, freeze: Freeze) -> Result<(), Report> {
        Ok(self.cgroup.freeze(freeze)?)
    }

    /// Changes the container's limits, all or none, and returns the table as read back.
    pub(crate) fn update(&mut self, before: &LimitsRequest, after: &LimitsRequest) -> Result<Vec<LimitRow>, Report> {
        let host = crate::cgroup::Host::probe(Path::new("/"))?;
        let facts = host.facts()?;
        let mut limits = [before.resolve(&facts)?, after.resolve(&facts)?];
        limits.iter_mut().for_each(|limits| drop(host.clamp(limits)));
        self.limits = self.cgroup.update(&limits[0], &limits[1])?.into_iter().map(readback::row).collect();
        self.limits.extend(self.process_limits.iter().cloned());
        Ok(self.limits.clone())
    }

    /// The health check, if the container has one.
    #[must_use]
    pub(crate) fn health_check(&self) -> Option<&HealthCheck> {
        self.health.as_ref().map(|health| &health.check)
    }

    /// Starts the health check.
    pub(crate) fn begin_check(&self) -> Result<health::Running, Report> {
        let health = self.health.as_ref().ok_or_else(|| Report::new("the container has no health check"))?;
        let part = self.cgroup.part(health::PART, "--health-cmd")?;
        // Processes that could not be killed at the end of the last check must not become more.
        if !part.kill() && !part.kill() {
            return Err(Report::new("processes of the last health check have not ended yet"));
        }
        health::begin(&self.pidfd, part, &health.process)
            .map_err(|error| Report::new(format!("cannot start the process that runs the health check: {error}")))
    }

    /// Kills all processes of the health check.
    pub(crate) fn kill_check(&self) {
        match self.cgroup.part(health::PART, "--health-cmd") {
            Ok(part) => drop(part.kill()),
            Err(error) => tracing::error!("{}", Report::from(error)),
        }
    }

    /// Connects the running container to one more network. Returns notices.
    pub(crate) fn connect(
        &mut self,
        root: &Path,
        records: &Records,
        entry: &Entry,
        attachment: &Attachment,
    ) -> Result<Vec<String>, Report> {
        let request = &entry.record.request;
        let namespace = own_network(&self.network, entry)?;
        let hostname = hostname::of(records, entry);
        let (endpoints, mut notes) = net::connect(
            &net::Request {
                id: &entry.record.id,
                user: &entry.record.owner.name(),
                name: &entry.record.name,
                hostname: &hostname,
                mode: request.network,
                attachments: &[],
                networks: &Networks::new(root),
                hosts: &entry.dir.join("hosts"),
                ports: &[],
                state_dir: &records.run_dir().join("net"),
                subnet: crate::config::Config::load()?.network.subnet.map(|subnet| subnet.0),
                servers: &[],
            },
            namespace,
            attachment,
        )?;
        self.changed(endpoints);
        if self.network.resolver.is_none()
            && let Err(report) = self.begin_resolver(&records.run_dir().join("net"), entry, &mut notes)
        {
            notes.push(format!("the names of other containers are in /etc/hosts only: {report}"));
        }
        Ok(notes)
    }

    /// Starts the resolver of a container that had no names before.
    fn begin_resolver(&mut self, state_dir: &Path, entry: &Entry, notes: &mut Vec<String>) -> Result<(), Report> {
        let servers = files::name_servers(&entry.record.request);
        let namespace = own_network(&self.network, entry)?;
        self.network.resolver = net::Resolver::start(state_dir, &entry.record.id, namespace, &servers)?;
        if self.network.resolver.is_some() {
            let named = files::name_resolver(entry)
                .map_err(|error| Report::new("cannot write the container's /etc/resolv.conf").with_cause(error))?;
            if !named {
                notes.push("the container's /etc/resolv.conf was changed: it does not name 127.0.0.11".to_owned());
            }
        }
        Ok(())
    }

    /// Disconnects the running container from a network.
    pub(crate) fn disconnect(&mut self, records: &Records, entry: &Entry, network: &str) -> Result<(), Report> {
        let namespace = own_network(&self.network, entry)?;
        let state_dir = records.run_dir().join("net");
        let endpoints = net::disconnect(&state_dir, &entry.record.id, namespace, network)?;
        self.changed(endpoints);
        Ok(())
    }

    fn changed(&mut self, endpoints: Vec<net::Endpoint>) {
        self.network.endpoints = endpoints;
        self.ip = self.network.first().map(|endpoint| endpoint.ip.to_string());
    }

    /// The descriptor that becomes ready after an OOM kill, with the poll event to wait for.
    #[must_use]
    pub(crate) fn oom_fd(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.oom.as_ref().map(|watch| (watch.fd(), watch.poll_flags()))
    }

    /// Resets the OOM watch for the next event.
    pub(crate) fn take_oom_event(&mut self) {
        if let Some(watch) = &mut self.oom
            && !watch.clear()
        {
            self.oom = None;
        }
    }

    /// The number of this container's processes that the kernel has killed for memory.
    #[must_use]
    pub(crate) fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills().unwrap_or(0)
    }

    /// The OOM kills that the kernel's log reports.
    #[must_use]
    pub(crate) fn ooms(&self) -> Vec<OomRow> {
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

    /// Adds data from the cgroups to an entry from the kernel's log: the limit that was reached, the peak, and the
    /// counters.
    #[must_use]
    pub(crate) fn complete(&self, mut oom: OomRow) -> OomRow {
        let ceiling = match &oom.limit_of {
            Some(of) => self.cgroup.ceiling_of(of),
            // Without a process name, the log had no entry for this kill. It does not mean that the host ran out of
            // memory.
            None if oom.process.is_empty() => self.cgroup.ceiling_by_counters(),
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

    /// The container's total resource usage so far.
    #[must_use]
    pub(crate) fn usage(&self) -> Usage {
        let stats = self.cgroup.totals();
        Usage {
            memory_peak: stats.memory_peak,
            cpu_usage_us: stats.cpu_usage_us,
            cpu_throttled_us: stats.cpu_throttled_us,
            io_read_bytes: stats.io_read_bytes,
            io_write_bytes: stats.io_write_bytes,
            memory_events: self.cgroup.memory_events(),
        }
    }

    /// Copies the container's details into the state, for users to inspect.
    pub(crate) fn describe(&self, state: &mut State) {
        state.pid = Some(self.pid);
        state.pid_start = Some(self.start_time);
        state.ip.clone_from(&self.ip);
        state.networks.clone_from(&self.network.endpoints);
        state.ports.clone_from(&self.ports);
        state.cgroup = Some(self.cgroup_path.clone());
        state.limits.clone_from(&self.limits);
        state.gpus.clone_from(&self.gpus.given);
        state.gpus_by.clone_from(&self.gpus.by);
    }

    /// Kills the remaining processes and undoes everything that was created. Returns the failures.
    pub(crate) fn clear(mut self) -> Vec<String> {
        // With `--pid host` or exec'ed processes, more than pid 1 may still run.
        match self.cgroup.kill_all() {
            Ok(()) => self.undo.forget(KILL),
            Err(error) => tracing::warn!("{}", Report::from(error)),
        }
        self.signal_pid1(libc::SIGKILL);
        let _ = process::wait_pidfd(&self.pidfd, std::time::Duration::from_secs(10));
        self.keeper.take().into_iter().for_each(keeper::end);
        self.reap();
        self.oom = None;
        let mut failures = Vec::new();
        // This runs the poststop hooks and removes libcontainer's own state.
        if let Err(error) = self.runtime.delete() {
            failures.push(Report::from(error).message);
        }
        failures.extend(self.undo.run());
        failures
    }
}
