//! Examines this host. [`examine`] returns findings, each with a hint if an action is necessary.
//!
//! The checks take the host's root directory. Two features can only be checked by a test: the overlay and the device
//! filter. Labs test them and clean up afterwards. Nothing on the host is changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::AccessFlags;
use serde::Serialize;

use crate::cgroup::{Hierarchy, Host, NO_SWAP};
use crate::config::Config;
use crate::control::Announcement;
use crate::gpu::doctor::Level;
use crate::lab::{self, Verdict};
use crate::record::{Records, short};
use crate::report::Report;
use crate::units::format_memory;

/// One observation about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub area: &'static str,
    pub level: Level,
    pub what: String,
    /// The recommended action. Where possible, it is a command that can be pasted.
    pub hint: Option<String>,
}

/// A launch may fail if the store has less free space than this, in bytes.
const SPACE: u64 = 2 << 30;

/// Runs all checks. `store` is the directory of images and containers, and `driver` is the root of the GPU driver's
/// files.
#[must_use]
pub(crate) fn examine(root: &Path, store: &Path, run_dir: &Path, driver: &Path) -> Vec<Finding> {
    let mut all = Doctor { root, all: Vec::new() };
    all.kernel();
    all.cgroups();
    all.isolation();
    all.tried();
    all.images();
    all.network();
    all.disk(store);
    all.writable(store, "--root");
    all.writable(run_dir, "--run-dir");
    all.containers(store, run_dir);
    for finding in crate::gpu::examine(driver) {
        all.all.push(Finding { area: "gpu", level: finding.level, what: finding.what, hint: finding.hint });
    }
    all.all
}

/// Reports the settings of the configuration file and its path.
#[must_use]
pub(crate) fn configuration(config: &Config) -> Finding {
    let path = Config::path();
    let path = path.display();
    let set = config.summary();
    let what = match (set.is_empty(), config.exists) {
        (true, false) => format!("built-in defaults: there is no `{path}`"),
        (true, true) => format!("built-in defaults: `{path}` sets nothing"),
        (false, _) => format!("from `{path}`: {}", set.join(", ")),
    };
    Finding { area: "config", level: Level::Fine, what, hint: None }
}

/// Lists the running containers that another release of gpurun supervises. They keep running, and a restart gives them
/// a supervisor of this release. Returns `None` if there are none, or if the records cannot be read.
#[must_use]
pub(crate) fn supervisors(root: &Path, run_dir: &Path) -> Option<Finding> {
    // `Records::open` would create the directories.
    if !root.join("containers").is_dir() || !run_dir.is_dir() {
        return None;
    }
    let own = Announcement::own();
    let (entries, _) = Records::open(root, run_dir).ok()?.list_all().ok()?;
    let others: Vec<(String, String)> = entries
        .into_iter()
        .filter(|entry| entry.supervisor().is_ok_and(|pid| pid.is_some()))
        .filter_map(|entry| Some((entry.record.name, Announcement::read(&entry.run_dir).ok()?.release)))
        .filter(|(_, release)| *release != own.release)
        .collect();
    let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
    let list: Vec<String> = others.iter().map(|(name, release)| format!("`{name}` ({release})")).collect();
    (!others.is_empty()).then(|| Finding {
        area: "containers",
        level: Level::Advice,
        what: format!("started by another release than gpurun {}: {}", own.release, list.join(", ")),
        hint: Some(format!("they keep running; to move them to this release: `gpurun restart {}`", names.join(" "))),
    })
}

struct Doctor<'a> {
    root: &'a Path,
    all: Vec<Finding>,
}

impl Doctor<'_> {
    fn add(&mut self, area: &'static str, level: Level, what: impl Into<String>, hint: Option<&str>) {
        self.all.push(Finding { area, level, what: what.into(), hint: hint.map(str::to_owned) });
    }

    fn fine(&mut self, area: &'static str, what: impl Into<String>) {
        self.add(area, Level::Fine, what, None);
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn kernel(&mut self) {
        let release = self.read("proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        // mount_setattr and idmapped mounts need Linux 5.12, and cgroup.kill needs 5.14.
        if version >= (5, 14) {
            self.fine("kernel", format!("Linux {release}"));
        } else {
            let hint = "upgrade the kernel: gpurun is tested on 6.1 and later, and needs at least 5.14";
            self.add("kernel", Level::Advice, format!("Linux {release} is old"), Some(hint));
        }
        if !self.exists("dev/kmsg") || fs::File::open(self.root.join("dev/kmsg")).is_err() {
            let what = "cannot read the kernel's log /dev/kmsg: OOM kills are counted, but not explained";
            let hint = "run gpurun as root on the host; in a container, pass the device with `--device /dev/kmsg`";
            self.add("kernel", Level::Advice, what, Some(hint));
        }
    }

    /// Containers that exist only as files, because their records are lost or cannot be read.
    fn containers(&mut self, store: &Path, run_dir: &Path) {
        // A store without containers, or without permission to read it, has nothing to report here.
        let Ok((_, unreadable)) = Records::look_at(store, run_dir).list_all() else { return };
        for container in unreadable {
            let report = Report::from(container.error);
            let what = format!("container {} cannot be used: {}", short(&container.id), report.message);
            self.add("containers", Level::Problem, what, report.hint.as_deref());
        }
    }

    fn cgroups(&mut self) {
        let host = match Host::probe(self.root) {
            Ok(host) => host,
            Err(error) => {
                let report = Report::from(error);
                return self.add("cgroup", Level::Problem, report.message, report.hint.as_deref());
            }
        };
        self.fine("cgroup", format!("limits are written to cgroup {}", host.version()));
        match &host.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                for name in ["memory", "cpu", "cpuset", "pids", "devices", "freezer"] {
                    if !controllers.contains_key(name) {
                        let what = format!("the controller `{name}` is not mounted");
                        let hint = format!(
                            "run `mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} cgroup \
                             /sys/fs/cgroup/{name}`; if that fails, look for the controller in /proc/cgroups"
                        );
                        self.add("cgroup", Level::Problem, what, Some(&hint));
                    }
                }
                let names: Vec<&str> =
                    controllers.keys().map(String::as_str).filter(|name| !name.starts_with("name=")).collect();
                self.fine("cgroup", format!("controllers, each in its own tree: {}", names.join(" ")));
            }
            Hierarchy::V2 { mount } => self.levels(mount),
        }
        if !host.has_swap_accounting() {
            let what = "the kernel does not account for swap: an explicit --memory-swap is refused";
            self.add("cgroup", Level::Advice, what, Some("boot with `swapaccount=1`"));
        } else if host.swap_total() == 0 {
            self.fine("cgroup", NO_SWAP);
        } else {
            self.fine("cgroup", format!("{} of swap; --memory-swap is enforced", format_memory(host.swap_total())));
        }
        let psi = self.exists("proc/pressure/memory");
        if matches!(host.hierarchy, Hierarchy::V2 { .. }) && !psi {
            let what = "the kernel has no pressure stall information for `stats` and `explain`";
            self.add("cgroup", Level::Advice, what, Some("boot with `psi=1`"));
        }
    }

    /// Checks the version 2 controllers at each level above the containers. gpurun itself enables the root's
    /// controllers in `/gpurun`.
    fn levels(&mut self, mount: &Path) {
        for (level, dir) in [("the root", mount.to_path_buf()), ("`/gpurun`", mount.join("gpurun"))] {
            let Ok(text) = fs::read_to_string(dir.join("cgroup.controllers")) else { continue };
            let has: Vec<&str> = text.split_whitespace().collect();
            let missing: Vec<&str> =
                ["memory", "cpu", "cpuset", "pids", "io"].into_iter().filter(|name| !has.contains(name)).collect();
            self.fine("cgroup", format!("controllers at {level}: {}", has.join(" ")));
            if missing.is_empty() {
                continue;
            }
            let what = format!("controllers missing at {level}: {}", missing.join(" "));
            let hint = if dir == mount {
                "boot with the controllers enabled (`cgroup_no_v1=all`, `cgroup_enable=memory`); in a container or \
                 a user's session, ask for their delegation (systemd: `Delegate=yes`)"
                    .to_owned()
            } else {
                let list: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
                format!("run `echo '{}' > {}/cgroup.subtree_control` to see why", list.join(" "), mount.display())
            };
            self.add("cgroup", Level::Problem, what, Some(&hint));
        }
    }

    fn isolation(&mut self) {
        let missing: Vec<&str> = ["mnt", "pid", "net", "uts", "ipc", "cgroup"]
            .into_iter()
            .filter(|kind| !self.exists(&format!("proc/self/ns/{kind}")))
            .collect();
        if missing.is_empty() {
            self.fine("isolation", "all namespaces that a container needs");
        } else {
            let what = format!("the kernel has no {} namespaces", missing.join(", "));
            let hint = "use a kernel with CONFIG_NAMESPACES and all its kinds; the kernels of all distributions \
                        have them";
            self.add("isolation", Level::Problem, what, Some(hint));
        }
        let actions = self.read("proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
        if actions.split_whitespace().any(|action| action == "errno") {
            self.fine("isolation", "seccomp filters");
        } else {
            let hint = "use a kernel with CONFIG_SECCOMP_FILTER, or `--security-opt seccomp=unconfined`";
            self.add("isolation", Level::Problem, "the kernel has no seccomp filters", Some(hint));
        }
    }

    /// Checks features that only a test can confirm.
    fn tried(&mut self) {
        for (name, area, fine) in
            [("overlay", "images", "overlayfs works"), ("device", "isolation", "the device filter works")]
        {
            let Some(lab) = lab::find(name) else { continue };
            match lab::run(lab, &mut |_| {}, &|| false) {
                Ok(Verdict::Expected(_)) => self.fine(area, fine),
                Ok(Verdict::Unexpected(text) | Verdict::Impossible(text)) => {
                    let hint = format!("run `gpurun lab run {name}` for details");
                    self.add(area, Level::Problem, format!("the lab `{name}` fails: {text}"), Some(&hint));
                }
                Err(report) => {
                    self.add(
                        area,
                        Level::Problem,
                        format!("the lab `{name}` fails: {}", report.message),
                        report.hint.as_deref(),
                    );
                }
            }
        }
    }

    fn images(&mut self) {
        let known = self.read("proc/filesystems").unwrap_or_default();
        if known.lines().any(|line| line.ends_with("\terofs")) {
            self.fine("images", "EROFS: images are mounted from their layers' tars");
        } else {
            let what = "no EROFS in the kernel: each image is unpacked into a directory";
            self.add(
                "images",
                Level::Advice,
                what,
                Some("load it with `modprobe erofs`; kernels since 6.4 can mount images without unpacking them"),
            );
        }
    }

    fn network(&mut self) {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("nft").exists()))
            || self.exists("usr/sbin/nft");
        if found {
            self.fine("network", "nft, for bridge networks and published ports");
        } else {
            let what = "`nft` is not installed: only `--network host` and `--network none` work";
            self.add(
                "network",
                Level::Problem,
                what,
                Some("install it with install it with install it with `apt-get install nftables`"),
            );
        }
        match self.read("proc/sys/net/ipv4/ip_forward").as_deref() {
            Some("1") => self.fine("network", "IPv4 forwarding is on"),
            Some(_) => self.fine("network", "IPv4 forwarding is off; the first container with a bridge turns it on"),
            None => {
                let hint = "check that all of /proc is mounted: `sysctl net.ipv4.ip_forward` must print a value";
                self.add("network", Level::Advice, "cannot find out whether IPv4 forwarding is on", Some(hint));
            }
        }
        let resolv = self.read("etc/resolv.conf").unwrap_or_default();
        let servers: Vec<&str> =
            resolv.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(str::trim).collect();
        let upstream = self.exists("run/systemd/resolve/resolv.conf");
        if !servers.is_empty()
            && servers.iter().all(|server| server.starts_with("127.") || *server == "::1")
            && !upstream
        {
            let what = "all name servers of this host are on its loopback, which containers cannot reach";
            self.add("network", Level::Advice, what, Some("name a server for containers with `--dns ADDRESS`"));
        }
    }

    /// Checks that a directory is writable. Images and containers are written to the store, and every launch writes to
    /// the run directory.
    fn writable(&mut self, dir: &Path, flag: &str) {
        let Some(existing) = dir.ancestors().find(|dir| dir.is_dir()) else { return };
        let Err(errno) = nix::unistd::access(existing, AccessFlags::W_OK) else { return };
        let what = format!("`{}` cannot be written: {}", existing.display(), errno.desc());
        let hint = match errno {
            Errno::EROFS => format!(
                "remount it with `mount -o remount,rw {}`, or name a directory on a writable file system with `{flag} DIR`",
                mount_point(existing).display()
            ),
            _ => format!("run gpurun as root, or name another directory with `{flag} DIR`"),
        };
        self.add("disk", Level::Problem, what, Some(&hint));
    }

    fn disk(&mut self, store: &Path) {
        // The store may not exist yet, so use its nearest existing ancestor.
        let Some(dir) = store.ancestors().find(|dir| dir.is_dir()) else { return };
        let Ok(stat) = nix::sys::statvfs::statvfs(dir) else { return };
        let free = stat.blocks_available() * stat.fragment_size();
        let what = format!("{} free in `{}`", format_memory(free), dir.display());
        if free < SPACE {
            self.add(
                "disk",
                Level::Advice,
                what,
                Some("free space with `gpurun image prune`; `gpurun image df` shows the usage"),
            );
        } else {
            self.fine("disk", what);
        }
    }
}

/// The mount point of the file system that contains `dir`.
fn mount_point(dir: &Path) -> &Path {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let same = |path: &&Path| device(path) == device(dir);
    dir.ancestors().take_while(same).last().unwrap_or(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::files as host;

    fn look(root: &Path, each: fn(&mut Doctor<'_>)) -> Vec<(Level, String)> {
        let mut doctor = Doctor { root, all: Vec::new() };
        each(&mut doctor);
        doctor.all.into_iter().map(|finding| (finding.level, finding.what)).collect()
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_problem() {
        // Root can write everywhere except on a read-only file system. A new directory in /proc is always refused.
        let found = |dir: &str| {
            let mut doctor = Doctor { root: Path::new("/"), all: Vec::new() };
            doctor.writable(Path::new(dir), "--root");
            doctor.all
        };
        assert!(found(&std::env::temp_dir().join("new/er").to_string_lossy()).is_empty());
        assert_eq!(mount_point(Path::new("/proc/sys/kernel")), Path::new("/proc"));
        assert_eq!(mount_point(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn an_old_kernel_and_no_log() {
        let root = host(&[("proc/sys/kernel/osrelease", "5.10.0-28-amd64\n")]);
        let found = look(root.path(), |doctor| doctor.kernel());
        assert!(found.iter().all(|(level, _)| *level == Level::Advice) && found.len() == 2, "{found:?}");
    }

    #[test]
    fn a_v2_host_whose_root_lacks_a_controller() {
        let mountinfo = "30 20 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let root =
            host(&[("proc/self/mountinfo", mountinfo), ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids io")]);
        let found = look(root.path(), |doctor| doctor.cgroups());
        assert!(found.contains(&(Level::Problem, "controllers missing at the root: cpuset".into())), "{found:?}");
    }

    #[test]
    fn name_servers_on_loopback() {
        let root = host(&[("etc/resolv.conf", "nameserver 127.0.0.53\n"), ("proc/sys/net/ipv4/ip_forward", "0")]);
        let found = look(root.path(), |doctor| doctor.network());
        assert!(found.iter().any(|(level, what)| *level == Level::Advice && what.contains("loopback")), "{found:?}");
        let root = host(&[("etc/resolv.conf", "nameserver 9.9.9.9\n")]);
        assert!(!look(root.path(), |doctor| doctor.network()).iter().any(|(_, what)| what.contains("loopback")));
    }
}
