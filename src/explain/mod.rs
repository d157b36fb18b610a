//! What the flags become: OCI field, cgroup file under both versions, value, the kernel's answer, what it does right now, and why.
//!
//! Data only; how it looks is the command line's. Nothing here changes anything.

mod gpus;
mod process;
mod topics;
mod tree;

use serde::Serialize;

pub use gpus::{explain_given, explain_gpus};
pub use process::{ProcessLimits, explain_process};
pub use topics::{TOPICS, Topic, topic};
pub use tree::{Device, MountPoint, Namespace, Tree, tree};

use crate::cgroup::{self, OnlyOn, Stats, Version};
use crate::spec::Limits;

/// One file that a flag is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// `v1` or `v2`; `any` for what is no file of a cgroup.
    pub version: &'static str,
    /// Below the controller's mount and the container's cgroup; with the controller's name in front under version 1.
    pub file: String,
    pub value: String,
}

/// What the kernel holds for a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    pub path: String,
    pub value: String,
    pub effective: String,
    /// The ancestor's file that binds, where one is tighter.
    pub binding: Option<String>,
    /// Whether it is what was asked for; `false`: something else has written it since.
    pub holds: bool,
}

/// One flag, explained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    pub flag: &'static str,
    /// Places in the OCI runtime specification, and the values there.
    pub oci: Vec<String>,
    /// Of both versions, as far as they have it.
    pub files: Vec<File>,
    /// Of a running container.
    pub kernel: Vec<Kernel>,
    /// What it does right now, in words.
    pub now: Vec<String>,
    /// The lines that do by hand what gpurun does, for this host's version.
    pub by_hand: Vec<String>,
    /// Why this host cannot do it, if it cannot.
    pub refused: Option<String>,
    pub why: &'static str,
    pub source: &'static str,
}

impl Explained {
    /// With what its topic says.
    fn new(flag: &'static str) -> Self {
        let (why, source) = topic(flag).map_or(("", ""), |topic| (topic.why, topic.source));
        Self {
            flag,
            oci: Vec::new(),
            files: Vec::new(),
            kernel: Vec::new(),
            now: Vec::new(),
            by_hand: Vec::new(),
            refused: None,
            why,
            source,
        }
    }
}

/// Explains limits on a host of this version; `path` is the container's cgroup (`/gpurun/ID`).
#[must_use]
pub fn explain(limits: &Limits, here: Version, path: &str) -> Vec<Explained> {
    let mut all: Vec<Explained> = Vec::new();
    for version in [Version::V2, Version::V1] {
        let (limits, refused) = without_refused(limits, version);
        for only in refused {
            let entry = entry(&mut all, only.flag);
            if version == here {
                entry.refused = Some(format!("needs cgroup {}", only.version));
            }
        }
        for setting in cgroup::settings(&limits, version).unwrap_or_default() {
            let entry = entry(&mut all, setting.flag);
            let file = match version {
                Version::V2 => setting.file.to_string(),
                Version::V1 => format!("{}/{}", setting.controller, setting.file),
            };
            let name = if version == Version::V2 { "v2" } else { "v1" };
            if version == here {
                let dir = match version {
                    Version::V2 => format!("/sys/fs/cgroup{path}"),
                    Version::V1 => format!("/sys/fs/cgroup/{}{path}", setting.controller),
                };
                entry.by_hand.push(format!("echo {} > {dir}/{}", quoted(&setting.value), setting.file));
            }
            let oci = format!("linux.resources.{}", setting.oci);
            if !entry.oci.contains(&oci) {
                entry.oci.push(oci);
            }
            entry.files.push(File { version: name, file, value: setting.value });
        }
    }
    sort(&mut all);
    all
}

/// Puts them in the order in which the topics are told.
pub fn sort(all: &mut [Explained]) {
    all.sort_by_key(|one| TOPICS.iter().position(|topic| topic.flag == one.flag));
}

fn entry<'a>(all: &'a mut Vec<Explained>, flag: &'static str) -> &'a mut Explained {
    let index = all.iter().position(|one| one.flag == flag).unwrap_or_else(|| {
        all.push(Explained::new(flag));
        all.len() - 1
    });
    &mut all[index]
}

/// The limits that a version has, and those that it has not.
fn without_refused(limits: &Limits, version: Version) -> (Limits, Vec<OnlyOn>) {
    let (mut limits, mut refused) = (limits.clone(), Vec::new());
    while let Err(only) = cgroup::settings(&limits, version) {
        match only.flag {
            "--memory-high" => limits.memory_high = None,
            "--memory-min" => limits.memory_min = None,
            "--memory-swappiness" => limits.memory_swappiness = None,
            "--oom-kill-disable" => limits.oom_kill_disable = false,
            _ => break,
        }
        refused.push(only);
    }
    (limits, refused)
}

fn quoted(value: &str) -> String {
    if value.contains(' ') { format!("'{value}'") } else { value.to_owned() }
}

/// Adds what the kernel holds and what the limits do right now.
pub fn add_kernel(all: &mut [Explained], rows: &[cgroup::Verified], stats: &Stats) {
    for row in rows {
        if let Some(one) = all.iter_mut().find(|one| one.flag == row.flag) {
            one.kernel.push(Kernel {
                path: row.file.display().to_string(),
                value: row.kernel.clone(),
                effective: row.effective.clone(),
                binding: row.binding.as_ref().map(|path| path.display().to_string()),
                holds: row.holds,
            });
        }
    }
    for one in all {
        one.now = now(one.flag, stats);
    }
}

/// What a limit does right now, from a sample.
fn now(flag: &str, stats: &Stats) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), crate::units::format_memory);
    let mut lines = Vec::new();
    match flag {
        "--memory" => {
            lines.push(format!(
                "{} used, {} with idle page cache, {} at most so far",
                size(stats.memory_used),
                size(stats.memory_current),
                size(stats.memory_peak)
            ));
            let times = |count: Option<u64>| count.map_or_else(|| "?".into(), |count| count.to_string());
            lines.push(format!(
                "the limit was met {} times, {} processes were killed for it",
                times(stats.events.memory_max),
                times(stats.events.oom_kill)
            ));
            lines.extend(pressure("memory", stats.memory_pressure));
        }
        "--memory-swap" => lines.push(format!("{} swapped out", size(stats.swap_current))),
        "--memory-high" => {
            let times = stats.events.memory_high.unwrap_or(0);
            lines.push(format!("passed {times} times"));
            lines.extend(pressure("memory", stats.memory_pressure));
        }
        "--cpus" | "--cpu-quota" | "--cpu-period" => {
            if let (Some(periods), Some(throttled)) = (stats.cpu_periods, stats.cpu_throttled_periods) {
                let milliseconds = stats.cpu_throttled_us.unwrap_or(0) / 1000;
                lines.push(format!("throttled in {throttled} of {periods} periods, for {milliseconds} ms in all"));
            }
            lines.extend(pressure("CPU", stats.cpu_pressure));
        }
        "--cpuset-cpus" | "--cpu-shares" => lines.extend(pressure("CPU", stats.cpu_pressure)),
        "--pids-limit" => {
            let refused = stats.events.pids_max.unwrap_or(0);
            lines.push(format!("{} now, {refused} forks refused", stats.pids_current.unwrap_or(0)));
        }
        _ if flag.starts_with("--device-") || flag == "--blkio-weight" => {
            lines.push(format!("{} read, {} written", size(stats.io_read_bytes), size(stats.io_write_bytes)));
            lines.extend(pressure("I/O", stats.io_pressure));
        }
        _ => {}
    }
    lines
}

fn pressure(what: &str, pressure: Option<cgroup::Pressure>) -> Option<String> {
    let pressure = pressure?;
    Some(format!(
        "{what} pressure (last 10 s): some process waited {} % of the time, all of them at once {} %",
        pressure.some_avg10, pressure.full_avg10
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Swap;

    fn limits() -> Limits {
        Limits {
            memory: Some(2 << 30),
            swap: Some(Swap::Total(2 << 30)),
            cpu_quota_us: Some(150_000),
            cpu_period_us: Some(100_000),
            memory_high: Some(1 << 30),
            pids: Some(Some(100)),
            ..Limits::default()
        }
    }

    #[test]
    fn both_versions_and_the_lines_for_this_one() {
        let all = explain(&limits(), Version::V2, "/gpurun/ID");
        let one = |flag: &str| all.iter().find(|one| one.flag == flag).unwrap();
        let swap = one("--memory-swap");
        let files: Vec<_> = swap.files.iter().map(|file| (file.version, &*file.file, &*file.value)).collect();
        assert_eq!(files, [("v2", "memory.swap.max", "0"), ("v1", "memory/memory.memsw.limit_in_bytes", "2147483648")]);
        assert_eq!(one("--cpus").by_hand, ["echo '150000 100000' > /sys/fs/cgroup/gpurun/ID/cpu.max"]);
        assert_eq!(one("--cpus").oci, ["linux.resources.cpu.quota", "linux.resources.cpu.period"]);
        assert_eq!(all[0].flag, "--memory", "in the order of the topics");
        let on_v1 = explain(&limits(), Version::V1, "/gpurun/ID");
        let high = on_v1.iter().find(|one| one.flag == "--memory-high").unwrap();
        assert_eq!(high.refused.as_deref(), Some("needs cgroup v2"));
    }

    #[test]
    fn every_flag_of_the_table_has_its_topic() {
        let everything = Limits {
            memory_reservation: Some(1),
            memory_min: Some(1),
            cpu_shares: Some(2),
            cpuset_cpus: Some("0".parse().unwrap()),
            cpuset_mems: Some("0".parse().unwrap()),
            blkio_weight: Some(10),
            conf: vec![("a.b".into(), "1".into())],
            io: crate::spec::IoKind::ALL
                .map(|kind| crate::spec::IoLimit { kind, major: 8, minor: 0, rate: 1 })
                .to_vec(),
            ..limits()
        };
        for one in explain(&everything, Version::V2, "/x") {
            assert!(!one.why.is_empty() && !one.source.is_empty(), "{}", one.flag);
        }
    }
}
