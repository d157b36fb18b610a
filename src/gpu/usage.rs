//! GPU usage: leases name the containers that hold a GPU, NVML lists the processes that compute on it, and /proc
//! attributes each process to a user and a container.
//!
//! NVML reports process ids of the host. A process's cgroup names its container, so `--pid host` is not needed to see
//! which container uses a GPU.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::inventory::{Inventory, Unit};
use super::lease::Lease;

/// A GPU or MIG device, with its leases and processes.
#[derive(Debug, Serialize)]
pub(crate) struct Usage {
    #[serde(flatten)]
    pub unit: Unit,
    pub leases: Vec<Holder>,
    /// The unit's processes, with names.
    pub users: Vec<User>,
}

/// A container that holds a lease on the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Holder {
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
pub(crate) struct User {
    /// Process id in the host's PID namespace.
    pub pid: u32,
    /// `python3`. `None` if the process has ended in the meantime.
    pub command: Option<String>,
    pub user: Option<String>,
    /// Id of the container, if the process is in one of gpurun's.
    pub container: Option<String>,
    /// `docker 1a2b3c4d5e6f`, if the cgroup belongs to another container engine or a job scheduler.
    pub elsewhere: Option<String>,
    /// Bytes of GPU memory.
    pub memory: Option<u64>,
}

/// A container's usage of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Share {
    pub index: String,
    /// The UUID.
    pub name: String,
    /// Bytes of GPU memory that the container's processes use.
    pub memory: u64,
    /// Percentage for the whole unit, including other containers and processes.
    pub utilization: Option<u32>,
}

/// Returns a snapshot of the usage. `containers` are the ids of gpurun's containers, and `proc` is the host's /proc.
#[must_use]
pub(crate) fn usage(inventory: &Inventory, leases: &[Lease], containers: &BTreeSet<String>, proc: &Path) -> Vec<Usage> {
    let one = |unit: &Unit| Usage {
        leases: leases.iter().filter(|lease| lease.units.contains(&unit.name)).map(holder).collect(),
        users: unit.processes.iter().map(|process| user(proc, containers, process.pid, process.memory)).collect(),
        unit: unit.clone(),
    };
    inventory.units.iter().map(one).collect()
}

/// Returns the units that a container holds or computes on.
#[must_use]
pub(crate) fn shares(all: &[Usage], id: &str) -> Vec<Share> {
    let is_theirs = |user: &&User| user.container.as_deref() == Some(id);
    let uses = |usage: &&Usage| {
        usage.leases.iter().any(|holder| holder.id == id) || usage.users.iter().any(|user| is_theirs(&user))
    };
    all.iter()
        .filter(uses)
        .map(|usage| Share {
            index: usage.unit.index.clone(),
            name: usage.unit.name.clone(),
            memory: usage.users.iter().filter(is_theirs).filter_map(|user| user.memory).sum(),
            utilization: usage.unit.utilization,
        })
        .collect()
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

fn user(proc: &Path, containers: &BTreeSet<String>, pid: u32, memory: Option<u64>) -> User {
    let dir = proc.join(pid.to_string());
    let command = std::fs::read_to_string(dir.join("comm")).ok().map(|name| name.trim().to_owned());
    let cgroup = std::fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
    let container = container(&cgroup, containers);
    let elsewhere = if container.is_none() { elsewhere(&cgroup) } else { None };
    let user = std::fs::metadata(&dir).ok().map(|about| user_name(about.uid()));
    User { pid, command, user, container, elsewhere, memory }
}

/// Finds the container of a process from the text of /proc/PID/cgroup. The container's id is a component of the path,
/// in any hierarchy and below any `--cgroup-parent`. The id must be one of `containers`, because docker's ids have the
/// same form.
fn container(text: &str, containers: &BTreeSet<String>) -> Option<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).find(|name| containers.contains(*name)).map(str::to_owned)
}

/// Names containers and jobs of other programs by their cgroups: docker and podman with either of their cgroup drivers,
/// Kubernetes, Slurm.
fn elsewhere(text: &str) -> Option<String> {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let one = |path: &str| {
        let mut parts = path.split('/').rev();
        if let Some(job) = path.split('/').find_map(|part| part.strip_prefix("job_")).filter(|_| path.contains("slurm"))
        {
            return Some(format!("slurm job {job}"));
        }
        let id = parts.find_map(|part| {
            let id = part.strip_suffix(".scope").unwrap_or(part).rsplit('-').next()?;
            (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
        })?;
        let whose = [("docker", "docker"), ("libpod", "podman"), ("kubepods", "kubernetes"), ("gpurun", "gpurun")];
        let whose = whose.iter().find(|(mark, _)| path.contains(mark)).map_or("container", |(_, name)| name);
        Some(format!("{whose} {}", &id[..12]))
    };
    paths().find_map(one)
}

/// `python3 [4242] of ada`, as far as the host reveals it.
#[must_use]
pub(crate) fn process_name(pid: u32) -> String {
    let User { command, user, elsewhere, .. } = user(Path::new("/proc"), &BTreeSet::new(), pid, None);
    match (command, user) {
        (Some(command), Some(user)) => {
            let inside = elsewhere.map(|container| format!(" in {container}")).unwrap_or_default();
            format!("{command} [{pid}] of {user}{inside}")
        }
        _ => format!("process {pid}"),
    }
}

/// Returns the host's name of a user id. Does not use the C library, because a supervisor must not load its name
/// service modules.
#[must_use]
pub(crate) fn user_name(uid: u32) -> String {
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
        let (id, other) = ("a1".repeat(32), "b2".repeat(32));
        let known: BTreeSet<String> = [id.clone()].into();
        for (text, expected) in [
            (format!("0::/gpurun/{id}\n"), Some(id.clone())),
            (format!("0::/gpurun/{id}/below\n"), Some(id.clone())),
            (format!("4:memory:/job/gpurun/{id}\n1:name=systemd:/user.slice\n"), Some(id.clone())),
            (format!("0::/jobs/ada/{id}\n"), Some(id.clone())),
            (format!("0::/docker/{other}\n"), None),
            ("0::/gpurun/short\n".to_owned(), None),
            ("0::/user.slice/session-1.scope\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(container(&text, &known), expected, "{text}");
        }
    }

    #[test]
    fn other_programs_containers_have_names_too() {
        let id = "0123456789ab".to_owned() + &"c3".repeat(26);
        for (text, expected) in [
            (format!("0::/docker/{id}\n"), Some("docker 0123456789ab")),
            (format!("0::/system.slice/docker-{id}.scope\n"), Some("docker 0123456789ab")),
            (format!("0::/machine.slice/libpod-{id}.scope/container\n"), Some("podman 0123456789ab")),
            (
                format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"),
                Some("kubernetes 0123456789ab"),
            ),
            (format!("0::/jobs/gpurun/{id}\n"), Some("gpurun 0123456789ab")),
            (format!("3:devices:/lxc/{id}\n0::/\n"), Some("container 0123456789ab")),
            ("0::/system.slice/slurmstepd.scope/job_42/step_0/user/task_0\n".to_owned(), Some("slurm job 42")),
            ("9:memory:/slurm/uid_1000/job_7/step_batch\n".to_owned(), Some("slurm job 7")),
            ("0::/user.slice/user-1000.slice/session-3.scope\n".to_owned(), None),
            ("0::/\n".to_owned(), None),
        ] {
            assert_eq!(elsewhere(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_process_has_a_name_and_a_user() {
        let me = user(Path::new("/proc"), &BTreeSet::new(), std::process::id(), Some(7));
        assert_eq!(me.user, Some(user_name(nix::unistd::geteuid().as_raw())));
        assert!(me.command.is_some_and(|name| !name.is_empty()) && me.memory == Some(7));
        assert_eq!(user_name(0), "root");
        let gone = user(Path::new("/proc"), &BTreeSet::new(), u32::MAX, None);
        assert_eq!((gone.command, gone.user, gone.container), (None, None, None));
        let named = format!("[{}] of {}", std::process::id(), me.user.unwrap());
        assert!(process_name(std::process::id()).contains(&named));
        assert_eq!(process_name(u32::MAX), format!("process {}", u32::MAX));
    }
}
