//! What the host has of cgroups: which version, which controllers, mounted where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupError, V1, V2, Version, enable_controllers};
use crate::spec::{HostFacts, Limits, Swap};
use crate::units::CpuSet;

/// How the controllers are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1, or hybrid: each controller has a mount; `unified` is where version 2 is mounted beside it, if it is.
    V1 { controllers: BTreeMap<String, PathBuf>, unified: Option<PathBuf> },
    /// Version 2 alone.
    V2 { mount: PathBuf },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hierarchy: Hierarchy,
    root: PathBuf,
}

impl Host {
    /// Looks at the host whose file systems lie below `root` (`/`, or a test's fixture).
    pub fn probe(root: &Path) -> Result<Self, CgroupError> {
        let path = root.join("proc/self/mountinfo");
        let text = fs::read_to_string(&path).map_err(|source| CgroupError::Io { action: "read", path, source })?;
        let hierarchy = parse_mountinfo(&text).ok_or(CgroupError::None)?;
        let at = |path: PathBuf| root.join(path.strip_prefix("/").unwrap_or(&path));
        let hierarchy = match hierarchy {
            Hierarchy::V1 { controllers, unified } => Hierarchy::V1 {
                controllers: controllers.into_iter().map(|(name, path)| (name, at(path))).collect(),
                unified: unified.map(at),
            },
            Hierarchy::V2 { mount } => Hierarchy::V2 { mount: at(mount) },
        };
        Ok(Self { hierarchy, root: root.to_path_buf() })
    }

    /// CPUs and memory nodes, for the checks of flags.
    pub fn facts(&self) -> Result<HostFacts, CgroupError> {
        let set = |path: &str, fallback: &str| -> Result<CpuSet, CgroupError> {
            let path = self.root.join(path);
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // A kernel without NUMA has no nodes to list: there is one.
                Err(error) if error.kind() == io::ErrorKind::NotFound => fallback.to_owned(),
                Err(source) => return Err(CgroupError::Io { action: "read", path, source }),
            };
            text.trim().parse().map_err(|_| CgroupError::Unreadable { path, text: text.trim().to_owned() })
        };
        Ok(HostFacts {
            cpus: set("sys/devices/system/cpu/online", "0")?,
            mems: set("sys/devices/system/node/has_memory", "0")?,
            block_device,
        })
    }

    /// Takes out of the limits what is only implied and cannot be enforced here; answers with a word about each.
    pub fn soften(&self, limits: &mut Limits) -> Vec<String> {
        let mut words = Vec::new();
        if matches!(limits.swap, Some(Swap::Implicit { .. } | Swap::Unlimited)) && !self.has_swap_accounting() {
            limits.swap = None;
            words.push("the kernel does not account for swap: `--memory` limits memory alone".into());
        }
        words
    }

    #[must_use]
    pub fn has_swap_accounting(&self) -> bool {
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                controllers.get("memory").is_none_or(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
            }
            Hierarchy::V2 { mount } => {
                // The root has no such file; any child does. Ours is made with the memory controller before anybody asks.
                let probe = mount.join("gpurun");
                let _ = fs::create_dir_all(&probe);
                enable_controllers(mount, &probe, &V2);
                !probe.join("memory.max").exists() || probe.join("memory.swap.max").exists()
            }
        }
    }

    /// The directories of a cgroup in every hierarchy that has it.
    #[must_use]
    pub fn directories(&self, path: &str) -> Vec<PathBuf> {
        let mounts: Vec<&PathBuf> = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => controllers.values().collect(),
            Hierarchy::V2 { mount } => vec![mount],
        };
        let mut dirs: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.join(path.trim_start_matches('/'))).collect();
        dirs.sort();
        dirs.dedup();
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// The paths of all cgroups of this name, wherever they lie in whichever hierarchy: for a container of which nothing is known but its id.
    /// A few hundred directories on a busy host.
    #[must_use]
    pub fn find(&self, name: &str) -> Vec<String> {
        let mounts: Vec<&PathBuf> = match &self.hierarchy {
            Hierarchy::V1 { controllers, unified } => controllers.values().chain(unified).collect(),
            Hierarchy::V2 { mount } => vec![mount],
        };
        let mut found = BTreeSet::new();
        for mount in mounts {
            let mut todo = super::children(mount);
            while let Some(dir) = todo.pop() {
                if dir.file_name().is_some_and(|last| last == name) {
                    found.extend(dir.strip_prefix(mount).ok().map(|path| format!("/{}", path.display())));
                } else {
                    todo.extend(super::children(&dir));
                }
            }
        }
        found.into_iter().collect()
    }

    /// Under version 1: the directories of a container's cgroup, by the names that people look for them under. Empty under version 2.
    #[must_use]
    pub fn v1_dirs(&self, path: &str) -> Vec<(String, PathBuf)> {
        let Hierarchy::V1 { controllers, .. } = &self.hierarchy else { return Vec::new() };
        let ours = controllers.iter().filter(|(name, _)| V1.contains(&name.as_str()));
        ours.map(|(name, mount)| (name.clone(), mount.join(path.trim_start_matches('/')))).collect()
    }

    /// The version whose files limits are written to.
    #[must_use]
    pub fn limits_version(&self) -> Version {
        match &self.hierarchy {
            Hierarchy::V1 { .. } => Version::V1,
            Hierarchy::V2 { .. } => Version::V2,
        }
    }

    /// The version in words, for messages.
    #[must_use]
    pub fn version(&self) -> &'static str {
        match &self.hierarchy {
            Hierarchy::V1 { unified: None, .. } => "v1",
            Hierarchy::V1 { unified: Some(_), .. } => "hybrid (v1 controllers)",
            Hierarchy::V2 { .. } => "v2",
        }
    }
}

/// A block device's numbers, by its node.
fn block_device(path: &Path) -> Result<(u64, u64), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let node = fs::metadata(path).map_err(|error| error.to_string())?;
    if !node.file_type().is_block_device() {
        return Err("it is something else".into());
    }
    Ok((nix::sys::stat::major(node.rdev()), nix::sys::stat::minor(node.rdev())))
}

/// Controllers of version 1 that gpurun uses; any of them mounted means that version 1 has it.
const V1_CONTROLLERS: [&str; 9] =
    ["cpuset", "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio", "name=systemd"];

/// Controllers of version 1 that gpurun has no use for, but in which libcontainer makes directories where they are mounted. They are often left
/// mounted beside version 2 (net_cls above all), and do not make a host one of version 1.
pub(super) const V1_UNUSED: [&str; 4] = ["hugetlb", "perf_event", "net_cls", "net_prio"];

/// The hierarchy that a mountinfo text (proc_pid_mountinfo(5)) describes; the first mount of a controller counts.
fn parse_mountinfo(text: &str) -> Option<Hierarchy> {
    let mut controllers = BTreeMap::new();
    let mut unified = None;
    for line in text.lines() {
        let (Some((before, after)), true) = (line.split_once(" - "), line.contains(" - cgroup")) else { continue };
        let Some(point) = before.split(' ').nth(4).map(unescape) else { continue };
        let mut after = after.split(' ');
        match (after.next(), after.nth(1)) {
            (Some("cgroup2"), _) => {
                unified.get_or_insert(point);
            }
            (Some("cgroup"), Some(options)) => {
                let known = |option: &&str| V1_CONTROLLERS.contains(option) || V1_UNUSED.contains(option);
                for option in options.split(',').filter(known) {
                    controllers.entry(option.to_owned()).or_insert_with(|| point.clone());
                }
            }
            _ => {}
        }
    }
    let real = controllers.keys().any(|name| name != "name=systemd" && !V1_UNUSED.contains(&name.as_str()));
    match (real, unified) {
        (true, unified) => Some(Hierarchy::V1 { controllers, unified }),
        (false, Some(mount)) => Some(Hierarchy::V2 { mount }),
        (false, None) => None,
    }
}

/// mountinfo writes blanks in paths as octal.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_are_version_1() {
        let text = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
29 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let Some(Hierarchy::V1 { controllers, unified }) = parse_mountinfo(text) else { panic!("not version 1") };
        assert_eq!(unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(controllers["cpu"], controllers["cpuacct"]);
        assert_eq!(controllers["name=systemd"], Path::new("/sys/fs/cgroup/systemd"));
    }

    #[test]
    fn version_2_alone() {
        let text = "30 20 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse_mountinfo(text), Some(Hierarchy::V2 { mount: "/sys/fs/cgroup".into() }));
        assert_eq!(parse_mountinfo("1 0 0:1 / / rw - ext4 /dev/a rw\n"), None);
        let beside = format!("{text}31 30 0:28 / /sys/fs/cgroup/net_cls rw - cgroup net_cls rw,net_cls\n");
        assert_eq!(
            parse_mountinfo(&beside),
            parse_mountinfo(text),
            "what a VPN mounts does not make a host one of version 1"
        );
    }

    #[test]
    fn directories_in_controllers_without_use_are_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let made = ["cpu/gpurun/x", "net_cls/gpurun/x"].map(|dir| root.path().join("cg").join(dir));
        made.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let line = |name: &str| format!("26 25 0:23 / /cg/{name} rw - cgroup cgroup rw,{name}\n");
        fs::write(root.path().join("proc/self/mountinfo"), line("cpu") + &line("net_cls")).unwrap();
        let host = Host::probe(root.path()).unwrap();
        super::super::Cgroup::open(&host, "/gpurun/x").unwrap().expect("it is there").remove().unwrap();
        assert!(made.iter().all(|dir| !dir.exists()));
    }

    #[test]
    fn facts_of_this_host() {
        let facts = Host::probe(Path::new("/")).unwrap().facts().unwrap();
        assert!(!facts.cpus.0.is_empty() && facts.mems.0.contains(&0));
    }
}
