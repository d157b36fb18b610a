//! Which files a limit is written to, and what the kernel must answer: one table for both versions.

use crate::spec::{Limits, Swap};

/// One file of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag as docker has it.
    pub flag: &'static str,
    /// Version 1's controller, version 2's too.
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
    pub kind: Kind,
    /// May be left out, with a word, where the kernel has no such file.
    pub optional: bool,
}

/// How values of a file are compared, and how an ancestor's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A count of bytes: the kernel rounds down to whole pages; `max` and very large values are "no limit".
    Bytes,
    /// A count.
    Number,
    /// `cpu.max`: quota and period.
    Quota,
    /// A set of CPUs or nodes.
    Set,
}

/// Version 1's files, in the order in which they must be written.
#[must_use]
pub fn v1(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |flag, controller, file, value: String, kind, optional| {
        settings.push(Setting { flag, controller, file, value, kind, optional });
    };
    if let Some(set) = &limits.cpuset_cpus {
        add("--cpuset-cpus", "cpuset", "cpuset.cpus", set.to_string(), Kind::Set, false);
    }
    if let Some(set) = &limits.cpuset_mems {
        add("--cpuset-mems", "cpuset", "cpuset.mems", set.to_string(), Kind::Set, false);
    }
    if let Some(memory) = limits.memory {
        add("--memory", "memory", "memory.limit_in_bytes", memory.to_string(), Kind::Bytes, false);
    }
    // Total of memory and swap: after the memory limit, which it must not be below.
    match limits.swap {
        Some(Swap::Total(total)) => {
            add("--memory-swap", "memory", "memory.memsw.limit_in_bytes", total.to_string(), Kind::Bytes, false)
        }
        Some(Swap::Unlimited) => {
            add("--memory-swap", "memory", "memory.memsw.limit_in_bytes", "-1".into(), Kind::Bytes, true)
        }
        Some(Swap::Implicit { total }) => {
            add("--memory-swap", "memory", "memory.memsw.limit_in_bytes", total.to_string(), Kind::Bytes, true);
        }
        None => {}
    }
    if let Some(reservation) = limits.memory_reservation {
        add(
            "--memory-reservation",
            "memory",
            "memory.soft_limit_in_bytes",
            reservation.to_string(),
            Kind::Bytes,
            false,
        );
    }
    if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us) {
        add("--cpus", "cpu", "cpu.cfs_period_us", period.to_string(), Kind::Number, false);
        add("--cpus", "cpu", "cpu.cfs_quota_us", quota.to_string(), Kind::Number, false);
    }
    if let Some(pids) = limits.pids {
        add(
            "--pids-limit",
            "pids",
            "pids.max",
            pids.map_or_else(|| "max".into(), |pids| pids.to_string()),
            Kind::Number,
            false,
        );
    }
    settings
}

/// Version 2's files.
#[must_use]
pub fn v2(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |flag, controller, file, value: String, kind, optional| {
        settings.push(Setting { flag, controller, file, value, kind, optional });
    };
    if let Some(set) = &limits.cpuset_cpus {
        add("--cpuset-cpus", "cpuset", "cpuset.cpus", set.to_string(), Kind::Set, false);
    }
    if let Some(set) = &limits.cpuset_mems {
        add("--cpuset-mems", "cpuset", "cpuset.mems", set.to_string(), Kind::Set, false);
    }
    if let Some(memory) = limits.memory {
        add("--memory", "memory", "memory.max", memory.to_string(), Kind::Bytes, false);
        // Swap alone: docker's total less the memory.
        match limits.swap {
            Some(Swap::Total(total)) => add(
                "--memory-swap",
                "memory",
                "memory.swap.max",
                (total - memory.min(total)).to_string(),
                Kind::Bytes,
                false,
            ),
            Some(Swap::Implicit { total }) => {
                add(
                    "--memory-swap",
                    "memory",
                    "memory.swap.max",
                    (total - memory.min(total)).to_string(),
                    Kind::Bytes,
                    true,
                );
            }
            Some(Swap::Unlimited) => add("--memory-swap", "memory", "memory.swap.max", "max".into(), Kind::Bytes, true),
            None => {}
        }
    }
    if let Some(reservation) = limits.memory_reservation {
        add("--memory-reservation", "memory", "memory.low", reservation.to_string(), Kind::Bytes, false);
    }
    if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us) {
        add("--cpus", "cpu", "cpu.max", format!("{quota} {period}"), Kind::Quota, false);
    }
    if let Some(pids) = limits.pids {
        add(
            "--pids-limit",
            "pids",
            "pids.max",
            pids.map_or_else(|| "max".into(), |pids| pids.to_string()),
            Kind::Number,
            false,
        );
    }
    settings
}

/// Version 1 answers "no limit" with the largest multiple of the page size below 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// Whether the kernel's answer is what was asked for.
#[must_use]
pub fn agrees(kind: Kind, asked: &str, kernel: &str, page: u64) -> bool {
    match kind {
        Kind::Bytes => match (bytes(asked), bytes(kernel)) {
            (None, None) => true,
            (Some(asked), Some(kernel)) => kernel == asked / page * page,
            _ => false,
        },
        Kind::Set => match (asked.parse::<crate::units::CpuSet>(), kernel.parse::<crate::units::CpuSet>()) {
            (Ok(asked), Ok(kernel)) => asked == kernel,
            _ => false,
        },
        Kind::Number | Kind::Quota => asked == kernel,
    }
}

/// The tighter of two answers of one file, where that means something.
#[must_use]
pub fn tighter(kind: Kind, own: &str, ancestor: &str) -> bool {
    match kind {
        Kind::Bytes | Kind::Number => match (bytes(own), bytes(ancestor)) {
            (Some(own), Some(ancestor)) => ancestor < own,
            (None, Some(_)) => true,
            _ => false,
        },
        Kind::Quota => {
            let share = |text: &str| -> Option<f64> {
                let (quota, period) = text.split_once(' ')?;
                Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
            };
            match (share(own), share(ancestor)) {
                (Some(own), Some(ancestor)) => ancestor < own,
                (None, Some(_)) => true,
                _ => false,
            }
        }
        Kind::Set => false,
    }
}

/// A number; `None`: no limit.
fn bytes(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_means_the_same_on_both_versions() {
        let limits = |swap| Limits { memory: Some(1 << 30), swap: Some(swap), ..Limits::default() };
        let value = |settings: Vec<Setting>| {
            settings.into_iter().find(|setting| setting.flag == "--memory-swap").unwrap().value
        };
        for (swap, old, new) in [
            (Swap::Total(1 << 30), "1073741824", "0"),
            (Swap::Total(3 << 30), "3221225472", "2147483648"),
            (Swap::Implicit { total: 2 << 30 }, "2147483648", "1073741824"),
            (Swap::Unlimited, "-1", "max"),
        ] {
            assert_eq!((value(v1(&limits(swap))).as_str(), value(v2(&limits(swap))).as_str()), (old, new));
        }
    }

    #[test]
    fn answers_are_compared_as_the_kernel_means_them() {
        for (kind, asked, kernel, same) in [
            (Kind::Bytes, "10000000", "9998336", true),
            (Kind::Bytes, "10000000", "9994240", false),
            (Kind::Bytes, "-1", "9223372036854771712", true),
            (Kind::Bytes, "max", "max", true),
            (Kind::Bytes, "0", "max", false),
            (Kind::Set, "0,1", "0-1", true),
            (Kind::Set, "0", "0-1", false),
            (Kind::Quota, "150000 100000", "150000 100000", true),
            (Kind::Number, "max", "100", false),
        ] {
            assert_eq!(agrees(kind, asked, kernel, 4096), same, "{kind:?} {asked} {kernel}");
        }
        assert!(tighter(Kind::Quota, "200000 100000", "50000 50000"));
        assert!(!tighter(Kind::Quota, "50000 100000", "max 100000"));
        assert!(tighter(Kind::Bytes, "max", "4096"));
    }
}
