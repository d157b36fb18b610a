//! Who uses which GPU: leases say who has one, NVML says who computes on it, and /proc says whose process that is.
//!
//! NVML counts processes as the host does, so that nobody needs `--pid host` to learn who uses what: a process's cgroup names its container.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::inventory::{Inventory, Unit};
use super::lease::Lease;

/// A GPU or MIG device, and everybody at it.
#[derive(Debug, Serialize)]
pub struct Usage {
    #[serde(flatten)]
    pub unit: Unit,
    pub leases: Vec<Holder>,
    /// The same processes as the unit's, with names.
    pub users: Vec<User>,
}

/// A container that was given the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The container's id.
    pub id: String,
    pub container: String,
    pub user: String,
    /// Nanoseconds since 1970.
    pub since: u64,
    pub exclusive: bool,
}

/// A process that computes on the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// As the host counts.
    pub pid: u32,
    /// `python3`; none where it ended meanwhile.
    pub command: Option<String>,
    pub user: Option<String>,
    /// The container's id, where it is in one of gpurun's.
    pub container: Option<String>,
    /// Bytes on the GPU.
    pub memory: Option<u64>,
}

/// Everything at one moment; `proc` is the host's /proc.
#[must_use]
pub fn usage(inventory: &Inventory, leases: &[Lease], proc: &Path) -> Vec<Usage> {
    let one = |unit: &Unit| Usage {
        leases: leases.iter().filter(|lease| lease.units.contains(&unit.name)).map(holder).collect(),
        users: unit.processes.iter().map(|process| user(proc, process.pid, process.memory)).collect(),
        unit: unit.clone(),
    };
    inventory.units.iter().map(one).collect()
}

fn holder(lease: &Lease) -> Holder {
    Holder {
        id: lease.id.clone(),
        container: lease.name.clone(),
        user: lease.user.clone(),
        since: lease.since,
        exclusive: lease.exclusive,
    }
}

fn user(proc: &Path, pid: u32, memory: Option<u64>) -> User {
    let dir = proc.join(pid.to_string());
    let command = std::fs::read_to_string(dir.join("comm")).ok().map(|name| name.trim().to_owned());
    let container = std::fs::read_to_string(dir.join("cgroup")).ok().and_then(|text| container(&text));
    let user = std::fs::metadata(&dir).ok().map(|about| user_name(about.uid()));
    User { pid, command, user, container, memory }
}

/// The container of a process, from the text of /proc/PID/cgroup: whichever hierarchy has it below `/gpurun/`.
fn container(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let (_, rest) = path.split_once("/gpurun/")?;
        let id = rest.split('/').next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
    })
}

/// The host's name for a number. Not by the C library: a supervisor has no use for its name services' modules.
#[must_use]
pub fn user_name(uid: u32) -> String {
    let (uid, table) = (uid.to_string(), std::fs::read_to_string("/etc/passwd").unwrap_or_default());
    let name = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_cgroup_names_its_container() {
        let id = "a1".repeat(32);
        for (text, expected) in [
            (format!("0::/gpurun/{id}\n"), Some(id.clone())),
            (format!("0::/gpurun/{id}/below\n"), Some(id.clone())),
            (format!("4:memory:/job/gpurun/{id}\n1:name=systemd:/user.slice\n"), Some(id.clone())),
            ("0::/gpurun/short\n".to_owned(), None),
            ("0::/user.slice/session-1.scope\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(container(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_process_has_a_name_and_a_user() {
        let me = user(Path::new("/proc"), std::process::id(), Some(7));
        assert_eq!(me.user, Some(user_name(nix::unistd::geteuid().as_raw())));
        assert!(me.command.is_some_and(|name| !name.is_empty()) && me.memory == Some(7));
        assert_eq!(user_name(0), "root");
        let gone = user(Path::new("/proc"), u32::MAX, None);
        assert_eq!((gone.command, gone.user, gone.container), (None, None, None));
    }
}
