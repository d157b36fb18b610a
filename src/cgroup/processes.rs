//! The processes in a cgroup: counted, killed, frozen.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, Missing, children, keyed, read, write};

/// How long the kernel may take to stop every process of a cgroup.
const FREEZE: Duration = Duration::from_secs(10);

/// Frozen processes get no CPU time, and no signal until they are thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    Frozen,
    Thawed,
}

impl Cgroup {
    /// Freezes or thaws every process in it, and waits until the kernel says so (`cgroup.freeze`, version 1's `freezer.state`).
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
        let word = match (self.is_v2, frozen) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        let deadline = Instant::now() + FREEZE;
        let mut pause = Duration::from_micros(200);
        loop {
            // Version 1 wants to be asked again while processes come and go.
            write(&state, word)?;
            let done = if self.is_v2 {
                keyed(&state.with_file_name("cgroup.events"), "frozen") == Some(u64::from(frozen))
            } else {
                read(&state)? == word
            };
            if done {
                return Ok(());
            }
            if Instant::now() > deadline {
                // Half frozen is worse than not.
                let _ = write(&state, if self.is_v2 { "0" } else { "THAWED" });
                return Err(CgroupError::Freezer { verb, path: state });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills every process in it, and waits until they are gone.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        if let Some(kill) = self.v2.as_ref().map(|dir| dir.join("cgroup.kill")).filter(|_| self.is_v2) {
            // Kernels before 5.14 have no such file: the loop below serves them.
            let _ = fs::write(kill, "1");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            // Frozen, nobody forks away from under the list.
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
                return Err(CgroupError::Stubborn { path });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Pids of all processes in it, those in cgroups below included.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        let mut todo: Vec<PathBuf> = self.dirs.values().chain(&self.v2).cloned().collect();
        todo.sort();
        todo.dedup();
        while let Some(dir) = todo.pop() {
            match fs::read_to_string(dir.join("cgroup.procs")) {
                // Zombies of another pid namespace show as 0.
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
