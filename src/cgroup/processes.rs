//! Lists, kills and freezes the processes of a cgroup.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::access::{children, keyed, read, write};
use super::{Cgroup, CgroupError, Missing};

/// The time limit for the kernel to freeze every process of a cgroup.
const FREEZE: Duration = Duration::from_secs(10);

/// Frozen processes get no CPU time, and signals are delayed until they are thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    Frozen,
    Thawed,
}

/// Open files through which their holder can kill the processes of a cgroup.
#[derive(Debug, Default)]
pub struct KillFiles {
    /// `cgroup.kill`, open for writing.
    pub kill: Option<fs::File>,
    /// Version 1's `freezer.state`, open for writing.
    pub freezer: Option<fs::File>,
    /// `cgroup.procs`, open for reading.
    pub processes: Option<fs::File>,
}

impl Cgroup {
    /// Opens the files for killing this cgroup's processes. Files that the host does not have are `None`.
    #[must_use]
    pub fn kill_files(&self) -> KillFiles {
        let write = |path: PathBuf| fs::OpenOptions::new().write(true).open(path).ok();
        let v2 = self.v2.as_ref().filter(|_| self.is_v2);
        let freezer = self.dirs.get("freezer").filter(|_| !self.is_v2);
        KillFiles {
            kill: v2.and_then(|dir| write(dir.join("cgroup.kill"))),
            freezer: freezer.and_then(|dir| write(dir.join("freezer.state"))),
            processes: v2.or(freezer).and_then(|dir| fs::File::open(dir.join("cgroup.procs")).ok()),
        }
    }

    /// Freezes or thaws every process in the cgroup and waits until the kernel confirms it (`cgroup.freeze`, or version
    /// 1's `freezer.state`).
    pub fn freeze(&self, freeze: Freeze) -> Result<(), CgroupError> {
        let frozen = freeze == Freeze::Frozen;
        let v1 = self.dirs.get("freezer").filter(|_| !self.is_v2).map(|dir| dir.join("freezer.state"));
        let state = match (v1, &self.v2) {
            (Some(state), _) => state,
            (None, Some(dir)) => dir.join("cgroup.freeze"),
            (None, None) => {
                return Err(CgroupError::NoController {
                    flag: "pause",
                    controller: "freezer".into(),
                    why: Missing::Kernel,
                });
            }
        };
        let verb = if frozen { "freeze" } else { "thaw" };
        let state_name = match (self.is_v2, frozen) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        let deadline = Instant::now() + FREEZE;
        let mut pause = Duration::from_micros(200);
        loop {
            // Version 1 needs repeated writes while processes come and go.
            write(&state, state_name)?;
            let done = if self.is_v2 {
                keyed(&state.with_file_name("cgroup.events"), "frozen") == Some(u64::from(frozen))
            } else {
                read(&state)? == state_name
            };
            if done {
                return Ok(());
            }
            if Instant::now() > deadline {
                // A partly frozen container is worse than one that is not frozen.
                let _ = write(&state, if self.is_v2 { "0" } else { "THAWED" });
                return Err(CgroupError::Freezer { verb, path: state });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills every process in the cgroup and waits until all of them are gone.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        if let Some(kill) = self.v2.as_ref().map(|dir| dir.join("cgroup.kill")).filter(|_| self.is_v2) {
            // Kernels before 5.14 do not have this file. The loop below handles them.
            let _ = fs::write(kill, "1");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            // While frozen, no process can fork after the list has been read.
            let frozen = self.dirs.get("freezer").filter(|_| !self.is_v2).map(|dir| dir.join("freezer.state"));
            if let Some(state) = &frozen {
                let _ = fs::write(state, "FROZEN");
            }
            for pid in self.pids()? {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            if let Some(state) = &frozen {
                let _ = fs::write(state, "THAWED");
            }
            if Instant::now() > deadline {
                let path = self.dirs.values().next().or(self.v2.as_ref()).cloned().unwrap_or_default();
                return Err(CgroupError::ProcessesRemain { path });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Returns the pids of all processes in the cgroup and in the cgroups below it.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        let mut todo: Vec<PathBuf> = self.dirs.values().chain(&self.v2).cloned().collect();
        todo.sort();
        todo.dedup();
        while let Some(dir) = todo.pop() {
            match crate::sys::file::read_control(dir.join("cgroup.procs")) {
                // Zombies of another pid namespace appear as 0.
                Ok(text) => {
                    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
                    continue;
                }
                Err(source) => return Err(CgroupError::Io { action: "read", path: dir.join("cgroup.procs"), source }),
            }
            todo.extend(children(&dir));
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}
