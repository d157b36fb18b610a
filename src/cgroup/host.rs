//! Detects the cgroup version, the controllers and the mount points of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::delegation::{V2, enable_controllers};
use super::{CgroupError, Place, Version};
use crate::request::HostFacts;
use crate::spec::{Limits, Swap};
use crate::units::CpuSet;

/// The controllers in which a container gets a directory under version 1.
pub(super) const V1: [&str; 8] = ["cpuset", "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"];

/// Version 1's file for moving a thread.
pub(super) const TASKS: &str = "tasks";

/// The notice that a launch, `doctor` and the lab print on a host without swap.
pub(crate) const NO_SWAP: &str = "this host has no swap: `--memory-swap` has no effect";

/// The cgroup mounts of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1 or hybrid: each controller has its own mount. `unified` is the mount of version 2, if there is one.
    V1 { controllers: BTreeMap<String, PathBuf>, unified: Option<PathBuf> },
    /// Version 2 only.
    V2 { mount: PathBuf },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hierarchy: Hierarchy,
    root: PathBuf,
}

impl Host {
    /// Detects the cgroup setup of the host whose root directory is `root` (`/`, or a test fixture).
    pub fn probe(root: &Path) -> Result<Self, CgroupError> {
        let path = root.join("proc/self/mountinfo");
        let text =
            crate::sys::file::read_text(&path).map_err(|source| CgroupError::Io { action: "read", path, source })?;
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

    /// Returns the CPUs and memory nodes against which flags are checked.
    pub(crate) fn facts(&self) -> Result<HostFacts, CgroupError> {
        let set = |path: &str, fallback: &str| -> Result<CpuSet, CgroupError> {
            let path = self.root.join(path);
            let text = match crate::sys::file::read_control(&path) {
                Ok(text) => text,
                // A kernel without NUMA lists no nodes. It has exactly one.
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

    /// Removes implied limits that cannot be enforced on this host. Returns a notice for each of them and for flags
    /// that have no effect.
    pub fn clamp(&self, limits: &mut Limits) -> Vec<String> {
        let mut notices = Vec::new();
        let more_than_memory = match limits.swap {
            Some(Swap::Total(total)) => limits.memory.is_some_and(|memory| total > memory),
            Some(Swap::Unlimited) => true,
            Some(Swap::Implicit { .. }) | None => false,
        };
        if more_than_memory && self.swap_total() == 0 {
            notices.push(NO_SWAP.into());
        }
        if matches!(limits.swap, Some(Swap::Implicit { .. } | Swap::Unlimited)) && !self.has_swap_accounting() {
            limits.swap = None;
            notices.push("the kernel does not account for swap: `--memory` limits memory only".into());
        }
        notices
    }

    /// Returns the host's swap space in bytes.
    #[must_use]
    pub fn swap_total(&self) -> u64 {
        let text = crate::sys::file::read_control(self.root.join("proc/meminfo")).unwrap_or_default();
        let number = |line: &str| line.strip_prefix("SwapTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        text.lines().find_map(number).unwrap_or(0) << 10
    }

    #[must_use]
    pub fn has_swap_accounting(&self) -> bool {
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                controllers.get("memory").is_none_or(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
            }
            Hierarchy::V2 { mount } => {
                // The root has no such file, but every child cgroup has. The `gpurun` cgroup is created here with the
                // memory controller so that the check is reliable.
                let probe = mount.join("gpurun");
                let _ = fs::create_dir_all(&probe);
                enable_controllers(mount, &probe, &V2);
                !probe.join("memory.max").exists() || probe.join("memory.swap.max").exists()
            }
        }
    }

    /// Returns the directories that a cgroup has in all hierarchies, whether or not they exist.
    #[must_use]
    pub fn directories(&self, path: &str) -> Vec<PathBuf> {
        let mounts: Vec<&PathBuf> = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => controllers.values().collect(),
            Hierarchy::V2 { mount } => vec![mount],
        };
        let mut dirs: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.join(path.trim_start_matches('/'))).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// Returns the names of the cgroups directly below a directory. For a directory without any, that is one call.
    #[must_use]
    pub fn names_below(dir: &Path) -> Vec<String> {
        let names = super::access::children(dir).into_iter();
        names.filter_map(|child| Some(child.file_name()?.to_string_lossy().into_owned())).collect()
    }

    /// Returns the paths of all cgroups with this name, anywhere in any hierarchy. This finds a container of which only
    /// the id is known. It reads a few hundred directories on a busy host.
    #[must_use]
    pub fn find(&self, name: &str) -> Vec<String> {
        let mounts: Vec<&PathBuf> = match &self.hierarchy {
            Hierarchy::V1 { controllers, unified } => controllers.values().chain(unified).collect(),
            Hierarchy::V2 { mount } => vec![mount],
        };
        let mut found = BTreeSet::new();
        for mount in mounts {
            let mut todo = super::access::children(mount);
            while let Some(dir) = todo.pop() {
                if dir.file_name().is_some_and(|last| last == name) {
                    found.extend(dir.strip_prefix(mount).ok().map(|path| format!("/{}", path.display())));
                } else {
                    todo.extend(super::access::children(&dir));
                }
            }
        }
        found.into_iter().collect()
    }

    /// Returns the directories of a container's cgroup under version 1 with the names of their controllers. Empty under
    /// version 2.
    #[must_use]
    pub fn v1_dirs(&self, place: &Place) -> Vec<(String, PathBuf)> {
        let Hierarchy::V1 { controllers, .. } = &self.hierarchy else { return Vec::new() };
        let ours = controllers.iter().filter(|(name, _)| V1.contains(&name.as_str()));
        ours.map(|(name, mount)| (name.clone(), mount.join(place.of(name).trim_start_matches('/')))).collect()
    }

    /// Returns the cgroup version that is used for limits.
    #[must_use]
    pub fn limits_version(&self) -> Version {
        match &self.hierarchy {
            Hierarchy::V1 { .. } => Version::V1,
            Hierarchy::V2 { .. } => Version::V2,
        }
    }

    /// Returns the version as text for messages.
    #[must_use]
    pub fn version(&self) -> &'static str {
        match &self.hierarchy {
            Hierarchy::V1 { unified: None, .. } => "v1",
            Hierarchy::V1 { unified: Some(_), .. } => "hybrid (v1 controllers)",
            Hierarchy::V2 { .. } => "v2",
        }
    }
}

/// Returns the major and minor number of a block device node.
fn block_device(path: &Path) -> Result<(u64, u64), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let node = fs::metadata(path).map_err(|error| error.to_string())?;
    if !node.file_type().is_block_device() {
        return Err("it is not a block device".into());
    }
    Ok((nix::sys::stat::major(node.rdev()), nix::sys::stat::minor(node.rdev())))
}

/// Controllers of version 1 that gpurun uses. If any of them is mounted, the host uses version 1.
const V1_CONTROLLERS: [&str; 9] =
    ["cpuset", "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio", "name=systemd"];

/// Controllers of version 1 that gpurun does not use. libcontainer creates directories in them if they are mounted.
/// They are often mounted next to version 2 (net_cls in particular) and do not make the host a version 1 host.
pub(super) const V1_UNUSED: [&str; 4] = ["hugetlb", "perf_event", "net_cls", "net_prio"];

/// Parses a mountinfo file (proc_pid_mountinfo(5)). The first mount of a controller is used.
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

/// mountinfo escapes white space in paths as octal numbers.
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
    fn more_swap_than_the_host_has_is_announced() {
        let host = |swap: &str| {
            let mountinfo = "26 25 0:23 / /cg/memory rw - cgroup cgroup rw,memory\n";
            let meminfo = format!("MemTotal:  100 kB\nSwapTotal:       {swap} kB\nSwapFree:  0 kB\n");
            let file = ("cg/memory/memory.memsw.limit_in_bytes", "0");
            crate::fixture::files(&[("proc/self/mountinfo", mountinfo), ("proc/meminfo", &meminfo), file])
        };
        let (without, with) = (host("0"), host("2048"));
        assert_eq!(Host::probe(with.path()).unwrap().swap_total(), 2 << 20);
        for (swap, announced) in [
            (None, false),
            (Some(Swap::Implicit { total: 128 }), false),
            (Some(Swap::Total(64)), false),
            (Some(Swap::Total(65)), true),
            (Some(Swap::Unlimited), true),
        ] {
            let mut limits = Limits { memory: Some(64), swap, ..Limits::default() };
            let notices = Host::probe(without.path()).unwrap().clamp(&mut limits);
            assert_eq!(notices, if announced { vec![NO_SWAP] } else { vec![] }, "{swap:?}");
            assert_eq!(limits.swap, swap, "it is enforced all the same");
            assert_eq!(Host::probe(with.path()).unwrap().clamp(&mut limits), [""; 0], "{swap:?}");
        }
    }

    #[test]
    fn facts_of_this_host() {
        let facts = Host::probe(Path::new("/")).unwrap().facts().unwrap();
        assert!(!facts.cpus.0.is_empty() && facts.mems.0.contains(&0));
    }
}
