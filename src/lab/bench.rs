//! The bench of a lab: its cgroups, the processes in them, and their values from the kernel. Dropping a group kills its
//! processes and removes its cgroup.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Line;
use crate::cgroup::{Cgroup, Host, Stats, Version};
use crate::report::Report;
use crate::spec::{Device, Limits, device_rules};

/// The exit status after Ctrl-C: 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// The time limit of a payload.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Bench<'a> {
    pub host: Host,
    show: &'a mut dyn FnMut(Line),
    stopped: &'a dyn Fn() -> bool,
    groups: u32,
}

/// The name of a file in both versions: controller, version 1, version 2.
pub(super) type Named = (&'static str, &'static str, &'static str);

/// One cgroup of a lab.
pub(crate) struct Group {
    cgroup: Cgroup,
    path: String,
    version: Version,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.kill_all().and_then(|()| self.cgroup.remove()) {
            tracing::warn!("{}: {}", self.path, Report::from(error));
        }
    }
}

impl<'a> Bench<'a> {
    pub(super) fn new(show: &'a mut dyn FnMut(Line), stopped: &'a dyn Fn() -> bool) -> Result<Self, Report> {
        let host = Host::probe(Path::new("/"))?;
        sweep(&host)?;
        Ok(Self { host, show, stopped, groups: 0 })
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) {
        (self.show)(Line::Say { text: text.into() });
    }

    /// Sleeps. Returns an error after Ctrl-C. Dropping the groups on that path cleans up.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Report> {
        let until = Instant::now() + time;
        loop {
            if (self.stopped)() {
                return Err(Report::new("the lab was interrupted; its cgroups and processes were removed")
                    .with_exit_code(INTERRUPTED));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Waits for the end of a payload.
    pub(crate) fn wait(&self, mut running: Running) -> Result<Ended, Report> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            if Instant::now() > deadline {
                return Err(Report::new("the lab's process does not end"));
            }
            self.pause(Duration::from_millis(5))?;
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.host.limits_version() == Version::V2
    }

    /// Makes a cgroup with these limits, and shows the equivalent shell commands.
    pub(crate) fn group(&mut self, limits: &Limits, devices: &[Device]) -> Result<Group, Report> {
        self.groups += 1;
        let path = format!("/gpurun/lab-{}-{}", std::process::id(), self.groups);
        let (cgroup, _) = self.host.create(&path, limits, &device_rules(devices))?;
        let version = self.host.limits_version();
        for one in crate::explain::explain(limits, version, &path) {
            for text in one.by_hand {
                (self.show)(Line::Command { text });
            }
        }
        Ok(Group { cgroup, path, version })
    }

    /// Shows the values of a group's files.
    pub(crate) fn numbers(&mut self, phase: &'static str, group: &Group, files: &[Named]) {
        let files = files.iter().filter_map(|named| group.read(named)).collect();
        (self.show)(Line::Numbers { phase, files });
    }

    /// Runs a payload to its end and shows the values of its group's files several times.
    pub(crate) fn watch(&mut self, group: &Group, payload: &[&str], files: &[Named]) -> Result<Ended, Report> {
        let mut running = group.start(payload)?;
        let began = Instant::now();
        // The interval is short enough to show a curve and long enough to read the lines.
        let mut next = began + Duration::from_millis(100);
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            if began.elapsed() > PATIENCE {
                return Err(Report::new(format!("the lab's process `{}` does not end", payload.join(" "))));
            }
            if Instant::now() >= next {
                self.numbers("during", group, files);
                next += Duration::from_millis(if payload[0] == "hog" { 150 } else { 400 });
            }
            self.pause(Duration::from_millis(10))?;
        }
    }
}

/// A running payload.
pub(crate) struct Running(Child);

/// The exit status and output of a payload.
pub(crate) struct Ended {
    pub status: ExitStatus,
    pub output: String,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    fn ended(&mut self) -> Result<Option<Ended>, Report> {
        let failed = |error| Report::new("cannot wait for the lab's process").with_cause(error);
        let Some(status) = self.0.try_wait().map_err(failed)? else { return Ok(None) };
        let mut output = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            // A process that the payload left running may hold the pipe open, so read only the available output.
            let mut bytes = vec![0; 64 << 10];
            let count = stdout.read(&mut bytes).map_err(failed)?;
            output = String::from_utf8_lossy(&bytes[..count]).into_owned();
        }
        Ok(Some(Ended { status, output }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Group {
    /// Starts a payload. It enters the group before it does anything else.
    pub(crate) fn start(&self, payload: &[&str]) -> Result<Running, Report> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("lab-payload");
        for file in self.cgroup.entry_files() {
            command.arg("--enter").arg(file);
        }
        command.arg("--").args(payload).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Running(command.spawn().map_err(|error| Report::new("cannot start the lab's process").with_cause(error))?))
    }

    pub(crate) fn stats(&self) -> Stats {
        self.cgroup.stats()
    }

    /// The last component of the group's path. The kernel's log contains it.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The name of a file and its content on one line.
    fn read(&self, (controller, v1, v2): &Named) -> Option<(String, String)> {
        let file = if self.version == Version::V2 { v2 } else { v1 };
        let text = fs::read_to_string(self.cgroup.dir(controller)?.join(file)).ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Some(((*file).to_owned(), lines.join(", ")))
    }
}

/// Removes the cgroups of labs that were killed.
pub(crate) fn sweep(host: &Host) -> Result<(), Report> {
    for parent in host.directories("/gpurun") {
        for name in Host::names_below(&parent) {
            let owner = name.strip_prefix("lab-").and_then(|rest| rest.split('-').next()).map(PathBuf::from);
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
                && let Some(cgroup) = Cgroup::open(host, &format!("/gpurun/{name}"))?
            {
                cgroup.kill_all()?;
                cgroup.remove()?;
            }
        }
    }
    Ok(())
}
