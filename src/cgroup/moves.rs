//! Moves gpurun's own processes between cgroups.

use std::fs;

use super::access::write;
use super::{Cgroup, CgroupError, Hierarchy, Host, Place};

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
    /// Removes the cgroups of a step whose daemon has been killed, as far as they are empty: those of the task, the step
    /// and the job. A job's further steps have cgroups below that of the job, which then stays.
    pub(crate) fn remove_step(&self, place: &Place) {
        let paths: Vec<(std::path::PathBuf, &str)> = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                let apart = place.apart.iter().filter_map(|(name, path)| Some((controllers.get(name)?, path)));
                apart.map(|(mount, path)| (mount.clone(), path.as_str())).collect()
            }
            Hierarchy::V2 { mount } => vec![(mount.clone(), place.path.as_str())],
        };
        for (mount, path) in paths {
            for dir in mount.join(path.trim_start_matches('/')).ancestors().skip(1) {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                let is_slurms = ["task_", "step_", "job_"].iter().any(|kind| name.starts_with(kind)) || name == "user";
                if !is_slurms || fs::remove_dir(dir).is_err() {
                    break;
                }
            }
        }
    }
}
