//! Explains flags: the OCI field, the cgroup file and value in both versions, the value in the kernel, the current
//! effect, and the reason.
//!
//! The module returns data only and changes nothing. The command line formats the output.

mod explained;
mod gpus;
mod process;
mod topics;
mod tree;

use explained::entry;
pub(crate) use explained::{Explained, File, Kernel};
pub(crate) use gpus::{explain_given, explain_gpus};
pub(crate) use process::{ProcessLimits, explain_process};
pub(crate) use topics::TOPICS;
pub(crate) use tree::{Group, MountPoint, Tree, tree};

use crate::cgroup::{self, OnlyOn, Place, Stats, Version};
use crate::spec::Limits;

/// Explains limits on a host with the cgroup version `here`. `place` is the container's cgroup.
#[must_use]
pub(crate) fn explain(limits: &Limits, here: Version, place: impl Into<Place>) -> Vec<Explained> {
    let place = place.into();
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
                    Version::V2 => format!("/sys/fs/cgroup{}", place.path),
                    Version::V1 => format!("/sys/fs/cgroup/{0}{1}", setting.controller, place.of(&setting.controller)),
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
    if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us)
        && let Some(cpus) = all.iter_mut().find(|one| one.flag == "--cpus")
    {
        cpus.why = format!("{} {}", topics::cpu_time(quota, period), topics::CPUS_REST);
    }
    sort(&mut all);
    all
}

/// Sorts the explanations in the order of [`TOPICS`].
pub(crate) fn sort(all: &mut [Explained]) {
    all.sort_by_key(|one| TOPICS.iter().position(|topic| topic.flag == one.flag));
}

/// Splits the limits into those that a cgroup version supports and those that it does not.
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

/// Adds the values in the kernel and the current effect of each limit.
pub(crate) fn add_kernel(all: &mut [Explained], rows: &[cgroup::Verified], stats: &Stats) {
    for row in rows {
        if let Some(one) = all.iter_mut().find(|one| one.flag == row.flag) {
            one.kernel.push(kernel(row));
        }
    }
    for one in all {
        one.now = now(one.flag, stats);
    }
}

/// Adds the limits that the container has from a cluster's step alone.
pub(crate) fn add_step(all: &mut Vec<Explained>, rows: &[cgroup::Verified], stats: &Stats) {
    for row in rows {
        let one = entry(all, row.flag);
        one.kernel.push(kernel(row));
        one.now = now(row.flag, stats);
    }
}

fn kernel(row: &cgroup::Verified) -> Kernel {
    Kernel {
        path: row.file.display().to_string(),
        value: row.kernel.clone(),
        effective: row.effective.clone(),
        binding: row.binding.as_ref().map(|path| path.display().to_string()),
        holds: row.holds,
    }
}

/// Describes the current effect of a limit, from one sample.
fn now(flag: &str, stats: &Stats) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), crate::units::format_memory);
    let mut lines = Vec::new();
    match flag {
        "--memory" => {
            lines.push(format!(
                "{} used, {} including idle page cache, peak {}",
                size(stats.memory_used),
                size(stats.memory_current),
                size(stats.memory_peak)
            ));
            let times = |count: Option<u64>| count.map_or_else(|| "?".into(), |count| count.to_string());
            lines.push(format!(
                "the limit was reached {} times, and {} processes were killed",
                times(stats.events.memory_max),
                times(stats.events.oom_kill)
            ));
            lines.extend(pressure("memory", stats.memory_pressure));
        }
        "--memory-swap" => lines.push(format!("{} swapped out", size(stats.swap_current))),
        "--memory-high" => {
            let times = stats.events.memory_high.unwrap_or(0);
            lines.push(format!("exceeded {times} times"));
            lines.extend(pressure("memory", stats.memory_pressure));
        }
        "--cpus" | "--cpu-quota" | "--cpu-period" => {
            if let (Some(periods), Some(throttled)) = (stats.cpu_periods, stats.cpu_throttled_periods) {
                let milliseconds = stats.cpu_throttled_us.unwrap_or(0) / 1000;
                lines.push(format!("throttled in {throttled} of {periods} periods, for {milliseconds} ms in total"));
            }
            lines.extend(pressure("CPU", stats.cpu_pressure));
        }
        "--cpuset-cpus" | "--cpu-shares" => lines.extend(pressure("CPU", stats.cpu_pressure)),
        "--pids-limit" => {
            let refused = stats.events.pids_max.unwrap_or(0);
            lines.push(format!("{} now, {refused} forks refused", stats.pids_current.unwrap_or(0)));
        }
        _ if flag.starts_with("--device-") || flag.starts_with("--blkio-weight") => {
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
    fn cpus_are_explained_with_the_number_that_was_asked_for() {
        let why = |quota| {
            let limits = Limits { cpu_quota_us: Some(quota), cpu_period_us: Some(100_000), ..Limits::default() };
            explain(&limits, Version::V2, "/x").remove(0).why
        };
        assert!(
            why(150_000).starts_with("CPU time per period: 1.5 CPUs are 150 ms in each 100 ms"),
            "{}",
            why(150_000)
        );
        assert!(why(150_000).contains("8 busy threads on 8 CPUs use that up in 18.75 ms"), "{}", why(150_000));
        assert!(why(30_000).starts_with("CPU time per period: 0.3 CPUs are 30 ms in each 100 ms"), "{}", why(30_000));
        let many = why(1_600_000);
        assert!(
            many.contains("16 CPUs are 1600 ms") && many.contains("32 busy threads on 32 CPUs use that up in 50 ms"),
            "{many}"
        );
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
            device_weights: vec![crate::spec::DeviceWeight { major: 8, minor: 0, weight: 10 }],
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
