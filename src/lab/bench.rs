//! A lab's bench: cgroups of its own, processes in them, the kernel's numbers; all of it goes when the bench does.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Line;
use crate::cgroup::{Cgroup, Host, Stats, Version};
use crate::report::Report;
use crate::spec::{Device, Limits, device_rules};

/// Exit status of what ctrl-c ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// How long any payload may run at most.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bench<'a> {
    pub host: Host,
    show: &'a mut dyn FnMut(Line),
    stopped: &'a dyn Fn() -> bool,
    groups: u32,
}

/// A file by its names under both versions: controller, version 1, version 2.
pub type Named = (&'static str, &'static str, &'static str);

/// One cgroup of a lab.
pub struct Group {
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

    pub fn say(&mut self, text: impl Into<String>) {
        (self.show)(Line::Say { text: text.into() });
    }

    /// Sleeps; an error where a person wants it to end, which takes everything down on its way out.
    pub fn pause(&self, time: Duration) -> Result<(), Report> {
        let until = Instant::now() + time;
        loop {
            if (self.stopped)() {
                return Err(Report::new("the lab was interrupted; nothing of it is left").with_exit_code(INTERRUPTED));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Waits for a payload's end.
    pub fn wait(&self, mut running: Running) -> Result<Ended, Report> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            if Instant::now() > deadline {
                return Err(Report::new("a lab's payload does not end"));
            }
            self.pause(Duration::from_millis(5))?;
        }
    }

    pub fn is_v2(&self) -> bool {
        self.host.limits_version() == Version::V2
    }

    /// Makes a cgroup with these limits, and shows the lines that do the same by hand.
    pub fn group(&mut self, limits: &Limits, devices: &[Device]) -> Result<Group, Report> {
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

    /// Shows files of a group.
    pub fn numbers(&mut self, phase: &'static str, group: &Group, files: &[Named]) {
        let files = files.iter().filter_map(|named| group.read(named)).collect();
        (self.show)(Line::Numbers { phase, files });
    }

    /// Runs a payload to its end, showing files of its group a few times meanwhile.
    pub fn watch(&mut self, group: &Group, payload: &[&str], files: &[Named]) -> Result<Ended, Report> {
        let mut running = group.start(payload)?;
        let began = Instant::now();
        // Often enough to see a curve, seldom enough to read it.
        let mut next = began + Duration::from_millis(100);
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            if began.elapsed() > PATIENCE {
                return Err(Report::new(format!("the payload `{}` does not end", payload.join(" "))));
            }
            if Instant::now() >= next {
                self.numbers("during", group, files);
                next += Duration::from_millis(if payload[0] == "hog" { 150 } else { 400 });
            }
            self.pause(Duration::from_millis(10))?;
        }
    }
}

/// A payload that runs.
pub struct Running(Child);

/// How a payload ended, and what it wrote.
pub struct Ended {
    pub status: ExitStatus,
    pub output: String,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn ended(&mut self) -> Result<Option<Ended>, Report> {
        let failed = |error| Report::new("cannot wait for a lab's payload").with_cause(error);
        let Some(status) = self.0.try_wait().map_err(failed)? else { return Ok(None) };
        let mut output = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            // What the payload left running may hold the pipe: only what is there counts.
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
    /// Starts a payload, which enters the group before it does anything.
    pub fn start(&self, payload: &[&str]) -> Result<Running, Report> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("lab-payload");
        for file in self.cgroup.procs_files() {
            command.arg("--enter").arg(file);
        }
        command.arg("--").args(payload).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Running(command.spawn().map_err(|error| Report::new("cannot start a lab's payload").with_cause(error))?))
    }

    pub fn stats(&self) -> Stats {
        self.cgroup.stats()
    }

    /// The last part of its path, by which the kernel's log knows it.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Name and content of a file, on one line.
    fn read(&self, (controller, v1, v2): &Named) -> Option<(String, String)> {
        let file = if self.version == Version::V2 { v2 } else { v1 };
        let text = fs::read_to_string(self.cgroup.dir(controller)?.join(file)).ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Some(((*file).to_owned(), lines.join(", ")))
    }
}

/// Removes the cgroups of labs that were killed.
pub fn sweep(host: &Host) -> Result<(), Report> {
    for parent in host.directories("/gpurun") {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
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
