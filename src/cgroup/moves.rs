//! The moves of gpurun's own processes between cgroups.

use std::fs;

use super::{CgroupError, Hierarchy, Host, write};

impl Host {
    /// Makes the next moves of processes between cgroups fast, by one move that changes nothing (this process to where it is).
    ///
    /// The kernel's lock for such moves is a per-CPU rwsem whose first writer waits for an RCU grace period (7 to 19 ms were measured, 0.3 ms
    /// for one right behind it). Run beside other work, the wait costs nothing. Only an attempt: whatever fails, the launch is merely slower.
    pub fn prime_moves(&self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mount, key) = match &self.hierarchy {
            Hierarchy::V2 { mount } => (Some(mount), "0::"),
            Hierarchy::V1 { controllers, .. } => (controllers.get("cpu"), ":cpu:"),
        };
        let path = own.lines().find_map(|line| line.split_once(key).map(|(_, path)| path));
        if let (Some(mount), Some(path)) = (mount, path) {
            let _ = fs::write(mount.join(path.trim_start_matches('/')).join("cgroup.procs"), "0");
        }
    }

    /// Moves this process out of its login session's cgroup, so that a logout does not end it: where systemd looks, which is the named
    /// hierarchy under version 1, and the only one under version 2.
    pub fn leave_login(&self) -> Result<(), CgroupError> {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mount, prefix) = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => match controllers.get("name=systemd") {
                Some(mount) => (mount, "name=systemd:"),
                None => return Ok(()),
            },
            Hierarchy::V2 { mount } => (mount, "0::"),
        };
        let own = text.lines().find_map(|line| line.split_once(prefix).map(|(_, path)| path)).unwrap_or("/");
        // Only a session or a person's own manager ends with a logout.
        if !own.contains("session-") && !own.contains("user.slice") {
            return Ok(());
        }
        let dir = mount.join("gpurun/supervisors");
        fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
            action: "make the cgroup",
            path: dir.clone(),
            source,
        })?;
        write(&dir.join("cgroup.procs"), "0")
    }
}
