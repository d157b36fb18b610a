//! What is right and wrong with this host for gpurun: looked at by [`examine`], each finding with a way out.
//!
//! Readers take the host's root directory; what can only be known by trying (the overlay, the device filter) is tried in a lab, which cleans
//! up after itself. Nothing on the host is changed.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::cgroup::{Hierarchy, Host};
use crate::gpu::doctor::{Facts, Level};
use crate::lab::{self, Verdict};
use crate::report::Report;
use crate::units::format_memory;

/// One sentence about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: &'static str,
    pub level: Level,
    pub what: String,
    /// A way out that works when pasted, where there is one.
    pub hint: Option<String>,
}

/// Free space below which a launch may fail for lack of it.
const SPACE: u64 = 2 << 30;

/// Looks at everything. `store` is where images and containers lie, `driver` the root below which the GPUs' driver is.
#[must_use]
pub fn examine(root: &Path, store: &Path, driver: &Path) -> Vec<Finding> {
    let mut all = Doctor { root, all: Vec::new() };
    all.kernel();
    all.cgroups();
    all.isolation();
    all.tried();
    all.images();
    all.network();
    all.disk(store);
    for finding in crate::gpu::doctor::findings(&Facts::read(driver)) {
        all.all.push(Finding { area: "gpu", level: finding.level, what: finding.what, hint: finding.hint });
    }
    all.all
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
        // mount_setattr and idmapped mounts came with 5.12, cgroup.kill with 5.14.
        if version >= (5, 14) {
            self.fine("kernel", format!("Linux {release}"));
        } else {
            let hint = "gpurun is tested from 6.1 on; 5.14 is the least that has all it uses";
            self.add("kernel", Level::Advice, format!("Linux {release} is old"), Some(hint));
        }
        if !self.exists("dev/kmsg") || fs::File::open(self.root.join("dev/kmsg")).is_err() {
            let what = "the kernel's log, /dev/kmsg, cannot be read: an OOM kill will be counted, but not explained";
            let hint = "run gpurun as root on the host; in a container, hand it the device: `--device /dev/kmsg`";
            self.add("kernel", Level::Advice, what, Some(hint));
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
        self.fine("cgroup", format!("limits go to cgroup {}", host.version()));
        match &host.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                for name in ["memory", "cpu", "cpuset", "pids", "devices", "freezer"] {
                    if !controllers.contains_key(name) {
                        let what = format!("the controller `{name}` is not mounted");
                        let hint = format!(
                            "`mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}`; if that fails, \
                             /proc/cgroups shows whether the kernel has it"
                        );
                        self.add("cgroup", Level::Problem, what, Some(&hint));
                    }
                }
                let names: Vec<&str> =
                    controllers.keys().map(String::as_str).filter(|name| !name.starts_with("name=")).collect();
                self.fine("cgroup", format!("controllers, a tree each: {}", names.join(" ")));
            }
            Hierarchy::V2 { mount } => self.levels(mount),
        }
        if host.has_swap_accounting() {
            self.fine("cgroup", "swap is accounted for: --memory-swap is enforced");
        } else {
            let what = "swap is not accounted for: an explicit --memory-swap is refused";
            self.add("cgroup", Level::Advice, what, Some("boot with `swapaccount=1`"));
        }
        let psi = self.exists("proc/pressure/memory");
        if matches!(host.hierarchy, Hierarchy::V2 { .. }) && !psi {
            let what = "no pressure stall information: stats and explain show none";
            self.add("cgroup", Level::Advice, what, Some("boot with `psi=1`"));
        }
    }

    /// Version 2's controllers at each level that containers lie below; what the root has, gpurun hands down by itself.
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
                "boot with them (`cgroup_no_v1=all`, `cgroup_enable=memory`); in a container or a user's session, ask for \
                 their delegation (systemd: `Delegate=yes`)"
                    .to_owned()
            } else {
                let list: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
                format!("`echo '{}' > {}/cgroup.subtree_control` says why", list.join(" "), mount.display())
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
            let hint = "use a kernel with CONFIG_NAMESPACES and its kinds; every distribution's has them";
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

    /// What only shows when it is done.
    fn tried(&mut self) {
        for (name, area, fine) in [
            ("overlay", "images", "overlayfs works"),
            ("device", "isolation", "the device filter denies what it should"),
        ] {
            let Some(lab) = lab::find(name) else { continue };
            match lab::run(lab, &mut |_| {}, &|| false) {
                Ok(Verdict::Expected(_)) => self.fine(area, fine),
                Ok(Verdict::Unexpected(text) | Verdict::Impossible(text)) => {
                    let hint = format!("`gpurun lab run {name}` shows what happens");
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
            self.fine("images", "EROFS: images are mounted from their layers' tars where the kernel can");
        } else {
            let what = "no EROFS in the kernel: each image is unpacked into a directory";
            self.add(
                "images",
                Level::Advice,
                what,
                Some("`modprobe erofs`; kernels from 6.4 on mount images without unpacking"),
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
            let what = "there is no `nft`: containers can only have --network host or none";
            self.add("network", Level::Problem, what, Some("`apt-get install nftables`"));
        }
        match self.read("proc/sys/net/ipv4/ip_forward").as_deref() {
            Some("1") => self.fine("network", "IPv4 forwarding is on"),
            Some(_) => self.fine("network", "IPv4 forwarding is off; the first container with a bridge turns it on"),
            None => {
                let hint = "is /proc mounted whole? `sysctl net.ipv4.ip_forward` must answer";
                self.add("network", Level::Advice, "whether IPv4 is forwarded cannot be told", Some(hint));
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
            let what = "every name server of this host is on its own loopback, where containers cannot reach it";
            self.add("network", Level::Advice, what, Some("give containers one with `--dns ADDRESS`"));
        }
    }

    fn disk(&mut self, store: &Path) {
        // The store may not be there yet: its nearest directory that is.
        let Some(dir) = store.ancestors().find(|dir| dir.is_dir()) else { return };
        let Ok(stat) = nix::sys::statvfs::statvfs(dir) else { return };
        let free = stat.blocks_available() * stat.fragment_size();
        let what = format!("{} free in `{}`", format_memory(free), dir.display());
        if free < SPACE {
            self.add(
                "disk",
                Level::Advice,
                what,
                Some("`gpurun image prune` frees what nobody uses; `gpurun image df` shows what does"),
            );
        } else {
            self.fine("disk", what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::files as host;

    fn look(root: &Path, each: fn(&mut Doctor<'_>)) -> Vec<(Level, String)> {
        let mut doctor = Doctor { root, all: Vec::new() };
        each(&mut doctor);
        doctor.all.into_iter().map(|finding| (finding.level, finding.what)).collect()
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
