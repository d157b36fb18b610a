//! Moves gpurun's own processes between cgroups.

use std::fs;

use super::access::write;
use super::{CgroupError, Hierarchy, Host};

impl Host {
    /// Makes the following moves of processes between cgroups fast, by one move that changes nothing: this process to
    /// its current cgroup.
    ///
    /// The kernel's lock for such moves is a per-CPU rwsem. Its first writer waits for an RCU grace period (7 to 19 ms
    /// measured, and 0.3 ms for a writer directly after it). In parallel with other work, the wait costs nothing.
    /// Errors are ignored because a failure only makes the launch slower.
    pub fn prime_moves(&self) {
        let own = crate::sys::file::read_text("/proc/self/cgroup").unwrap_or_default();
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
        let text = crate::sys::file::read_text("/proc/self/cgroup").unwrap_or_default();
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
