//! A container as the host sees it: its cgroup with all ancestors, its namespaces, mounts and devices. The functions
//! take the host's root directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// The host's view of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Tree {
    /// The cgroups from the root of the hierarchy down to the container's cgroup and its descendants, with their
    /// processes and limits.
    pub cgroups: Vec<Group>,
    pub namespaces: Vec<Namespace>,
    pub mounts: Vec<MountPoint>,
    pub devices: Vec<Device>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Group {
    pub path: String,
    /// The number of levels below the root of the hierarchy.
    pub depth: usize,
    /// The host PID and name of each process directly in the cgroup. Filled in only for the container's cgroup and its
    /// descendants.
    pub processes: Vec<(i32, String)>,
    /// The files with a limit, and their values.
    pub limits: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Namespace {
    pub kind: String,
    pub inode: u64,
    /// Whether gpurun itself is in the same namespace.
    pub shared: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MountPoint {
    pub point: String,
    pub kind: String,
    pub source: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Device {
    pub path: String,
    pub major: u64,
    pub minor: u64,
}

/// Files that hold a limit, and the values that mean no limit.
const LIMITS: [(&str, &[&str]); 9] = [
    ("memory.max", &["max"]),
    ("memory.high", &["max"]),
    ("memory.swap.max", &["max"]),
    ("cpu.max", &["max 100000"]),
    ("pids.max", &["max"]),
    ("cpuset.cpus", &[""]),
    ("memory.limit_in_bytes", &["9223372036854771712"]),
    ("memory.memsw.limit_in_bytes", &["9223372036854771712"]),
    ("cpu.cfs_quota_us", &["-1"]),
];

/// Reads the tree of a container. `pid` is its PID 1. `dirs` holds its cgroup directories, each with the mount point of
/// its hierarchy.
pub(crate) fn tree(root: &Path, pid: i32, dirs: &[(std::path::PathBuf, std::path::PathBuf)]) -> io::Result<Tree> {
    let process = root.join(format!("proc/{pid}"));
    let mut cgroups = Vec::new();
    for (mount, dir) in dirs {
        ancestors(mount, dir, &mut cgroups);
    }
    let mountinfo = fs::read_to_string(process.join("mountinfo"))?;
    Ok(Tree {
        cgroups,
        namespaces: namespaces(&root.join("proc/self"), &process)?,
        mounts: mountinfo.lines().filter_map(mount_point).collect(),
        devices: devices(&process.join("root/dev")),
    })
}

fn ancestors(mount: &Path, dir: &Path, groups: &mut Vec<Group>) {
    let mut chain: Vec<&Path> = dir.ancestors().take_while(|level| level.starts_with(mount)).collect();
    chain.reverse();
    for (depth, level) in chain.iter().enumerate() {
        groups.push(group(level, depth, level == &dir));
    }
    below(dir, chain.len(), groups);
}

fn below(dir: &Path, depth: usize, groups: &mut Vec<Group>) {
    let mut children: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    children.retain(|path| path.is_dir());
    children.sort();
    for child in children {
        groups.push(group(&child, depth, true));
        below(&child, depth + 1, groups);
    }
}

fn group(dir: &Path, depth: usize, with_processes: bool) -> Group {
    let procs =
        if with_processes { fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default() } else { String::new() };
    let name = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .map(|name| name.trim().to_owned())
            .unwrap_or_else(|_| "?".into())
    };
    let limits = LIMITS.iter().filter_map(|(file, nothing)| {
        let value = fs::read_to_string(dir.join(file)).ok()?.trim().to_owned();
        (!nothing.contains(&&*value)).then(|| ((*file).to_owned(), value))
    });
    Group {
        path: dir.display().to_string(),
        depth,
        processes: procs.lines().filter_map(|line| line.parse().ok()).map(|pid| (pid, name(pid))).collect(),
        limits: limits.collect(),
    }
}

/// The namespaces of a process, compared with gpurun's own. The text of each link names the kind and the inode: see
/// namespaces(7).
fn namespaces(host: &Path, process: &Path) -> io::Result<Vec<Namespace>> {
    let inode = |base: &Path, kind: &str| -> io::Result<u64> {
        let link = fs::read_link(base.join("ns").join(kind))?;
        let text = link.to_string_lossy().into_owned();
        let number = text.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
    };
    ["mnt", "pid", "net", "uts", "ipc", "cgroup", "user"]
        .into_iter()
        .map(|kind| {
            let own = inode(process, kind)?;
            Ok(Namespace { kind: kind.to_owned(), inode: own, shared: inode(host, kind).ok() == Some(own) })
        })
        .collect()
}

/// Parses a line of proc_pid_mountinfo(5).
fn mount_point(line: &str) -> Option<MountPoint> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(4);
    let (point, options) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    Some(MountPoint {
        point: point.replace("\\040", " "),
        kind: after.next()?.to_owned(),
        source: after.next()?.replace("\\040", " "),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// The device nodes in the container's /dev.
fn devices(dev: &Path) -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut devices: Vec<Device> = fs::read_dir(dev)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            // Do not follow a link, because the container may have made it.
            let node = entry.metadata().ok()?;
            let kind = node.file_type();
            (kind.is_char_device() || kind.is_block_device()).then(|| Device {
                path: format!("/dev/{}", entry.file_name().to_string_lossy()),
                major: nix::sys::stat::major(node.rdev()),
                minor: nix::sys::stat::minor(node.rdev()),
            })
        })
        .collect();
    devices.sort_by(|a, b| a.path.cmp(&b.path));
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines() {
        let line = "36 35 98:0 /sub /mnt\\040x ro,noatime shared:1 - overlay overlay rw,lowerdir=/a";
        let expected =
            MountPoint { point: "/mnt x".into(), kind: "overlay".into(), source: "overlay".into(), read_only: true };
        assert_eq!(mount_point(line), Some(expected));
        assert_eq!(mount_point("nonsense"), None);
    }

    #[test]
    fn this_process_is_in_the_hosts_namespaces_or_not_but_has_them_all() {
        let all = namespaces(Path::new("/proc/self"), Path::new("/proc/self")).unwrap();
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|namespace| namespace.shared && namespace.inode > 0));
    }
}
