//! Moves gpurun's own processes between cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::access::{children, write};
use super::{Cgroup, CgroupError, Hierarchy, Host, Place};
use crate::sys::process;

impl Host {
    /// Makes the following moves of processes between cgroups fast, by one move that changes nothing: this process to
    /// its current cgroup.
    ///
    /// The kernel's lock for such moves is a per-CPU rwsem. Its first writer waits for an RCU grace period (7 to 19 ms
    /// measured, and 0.3 ms for a writer directly after it). In parallel with other work, the wait costs nothing.
    /// Errors are ignored because a failure only makes the launch slower.
    pub fn prime_moves(&self) {
        let own = crate::sys::file::read_control("/proc/self/cgroup").unwrap_or_default();
        let (mount, key) = match &self.hierarchy {
            Hierarchy::V2 { mount } => (Some(mount), "0::"),
            Hierarchy::V1 { controllers, .. } => (controllers.get("cpu"), ":cpu:"),
        };
        let path = own.lines().find_map(|line| line.split_once(key).map(|(_, path)| path));
        if let (Some(mount), Some(path)) = (mount, path) {
            let _ = fs::write(mount.join(path.trim_start_matches('/')).join("cgroup.procs"), "0");
        }
    }

    /// Moves this process out of the cgroup of its login session or of gpurun's own unit, so that a logout or the end of
    /// the unit does not kill it. systemd uses the named hierarchy under version 1 and the only hierarchy under version
    /// 2.
    pub fn leave_login(&self) -> Result<(), CgroupError> {
        let text = crate::sys::file::read_control("/proc/self/cgroup").unwrap_or_default();
        let (mount, prefix) = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => match controllers.get("name=systemd") {
                Some(mount) => (mount, "name=systemd:"),
                None => return Ok(()),
            },
            Hierarchy::V2 { mount } => (mount, "0::"),
        };
        let own = text.lines().find_map(|line| line.split_once(prefix).map(|(_, path)| path)).unwrap_or("/");
        // Only a session scope or a user manager ends with a logout. What another unit starts belongs to it.
        if !["session-", "user.slice", "/gpurun-boot.service"].iter().any(|part| own.contains(part)) {
            return Ok(());
        }
        let dir = mount.join("gpurun/supervisors");
        fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
            action: "create the cgroup",
            path: dir.clone(),
            source,
        })?;
        write(&dir.join("cgroup.procs"), "0")
    }
}

impl Cgroup {
    /// Moves a process into this cgroup, out of the ones in which libcontainer has put it.
    pub(crate) fn adopt(&self, pid: i32) -> Result<(), CgroupError> {
        if matches!(self.outside(pid), Ok(None)) {
            return Ok(());
        }
        let mut dirs: Vec<_> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }
}

impl Host {
    /// Ends a step whose daemon was killed: kills its processes, which nothing else would end, and removes its cgroups
    /// as [`Self::remove_step`] does. Returns after `time` at the latest.
    pub(crate) fn end_step(&self, place: &Place, time: Duration) {
        let end = Instant::now() + time;
        let steps = self.step_dirs(place);
        let was_there = steps.iter().any(|step| step.exists());
        while steps.iter().any(|step| step.exists()) {
            steps.iter().for_each(|step| kill_below(step));
            self.remove_step(place);
            if Instant::now() > end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A daemon that has removed the step itself also removes the job's cgroups, or has another step in them soon.
        if was_there {
            self.remove_job(place, time);
        }
    }

    /// Removes the job's cgroups unless it has another step, after [`Self::end_step`]. The daemon is in one of them, and
    /// its threads may still be ending. Returns after `time` at the latest.
    pub(crate) fn remove_job(&self, place: &Place, time: Duration) {
        let end = Instant::now() + time;
        let steps = self.step_dirs(place);
        let jobs = || steps.iter().filter_map(|step| step.parent()).filter(|job| is_named(job, "job_"));
        while jobs().any(|job| job.exists() && fs::remove_dir(job).is_err() && children(job).is_empty()) {
            if Instant::now() > end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Removes the cgroups of a step whose daemon has ended, as far as no process is in them: those of the step and all
    /// below it, and the job's if it has no other step.
    fn remove_step(&self, place: &Place) {
        // If the daemon has removed them itself, the job's may be about to get another step's.
        for step in self.step_dirs(place).iter().filter(|step| step.exists()) {
            remove_empty(step);
            // The kernel removes no cgroup that has others below it.
            if let Some(job) = step.parent().filter(|job| is_named(job, "job_")) {
                let _ = fs::remove_dir(job);
            }
        }
    }

    /// The cgroups of the step that a container's cgroup is in.
    fn step_dirs(&self, place: &Place) -> Vec<PathBuf> {
        let dirs: Vec<PathBuf> = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                let apart = place.apart.iter().filter_map(|(name, path)| Some((controllers.get(name)?, path)));
                apart.map(|(mount, path)| mount.join(path.trim_start_matches('/'))).collect()
            }
            Hierarchy::V2 { mount } => vec![mount.join(place.path.trim_start_matches('/'))],
        };
        let step = |dir: &PathBuf| dir.ancestors().find(|above| is_named(above, "step_")).map(Path::to_owned);
        dirs.iter().filter_map(step).collect()
    }
}

fn is_named(dir: &Path, kind: &str) -> bool {
    dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind))
}

/// Kills all processes in a cgroup and below it, except this one.
fn kill_below(dir: &Path) {
    let own = std::process::id() as i32;
    let pids = || -> Vec<i32> {
        let list = crate::sys::file::read_control(dir.join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    };
    for pid in pids().into_iter().filter(|pid| *pid != own) {
        // The pid may have been reused before it was opened. An open process keeps its identity.
        if let Ok(process) = process::open_pidfd(pid)
            && pids().contains(&pid)
        {
            let _ = process::signal(process, libc::SIGKILL);
        }
    }
    children(dir).iter().for_each(|child| kill_below(child));
}

/// Removes a cgroup and those below it, as far as no process is in them.
fn remove_empty(dir: &Path) {
    children(dir).iter().for_each(|child| remove_empty(child));
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_daemons_step_is_removed_with_its_job_if_nothing_else_is_there() {
        let mountinfo = "30 20 0:27 / /cg rw - cgroup2 cgroup2 rw\n";
        let root = crate::fixture::files(&[("proc/self/mountinfo", mountinfo), ("cg/cgroup.controllers", "")]);
        let host = Host::probe(root.path()).unwrap();
        let job = root.path().join("cg/slurmstepd.scope/job_7");
        for dir in ["step_0/user/task_0", "step_0/slurm", "step_1/user"] {
            fs::create_dir_all(job.join(dir)).unwrap();
        }
        let place = |step: &str| Place::from(&format!("/slurmstepd.scope/job_7/{step}/user/ID"));
        host.remove_step(&place("step_0"));
        assert!(!job.join("step_0").exists() && job.join("step_1/user").exists(), "the job has another step");
        host.remove_step(&Place::from("/slurmstepd.scope/job_7"));
        assert!(job.exists(), "this is no step");
        // A file stands for a process: the kernel does not remove the directory.
        fs::write(job.join("step_1/user/busy"), "").unwrap();
        host.end_step(&place("step_1"), Duration::from_millis(20));
        assert!(job.join("step_1/user").exists());
        fs::remove_file(job.join("step_1/user/busy")).unwrap();
        host.end_step(&place("step_1"), Duration::from_secs(10));
        assert!(!job.exists() && job.parent().unwrap().exists(), "the scope is Slurm's");
    }
}
