//! The cgroup files of each limit and the values that must be read back: one table for both versions.

use std::borrow::Cow;

use crate::spec::{IoKind, Limits, Swap, cpu_weight, io_weight};

/// One cgroup file of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The flag in docker's notation.
    pub flag: &'static str,
    /// The key in the OCI spec, below `linux.resources`.
    pub oci: &'static str,
    /// The controller, by its name in the cgroup version of the setting.
    pub controller: Cow<'static, str>,
    pub file: Cow<'static, str>,
    pub value: String,
    pub kind: Kind,
    /// Whether the setting is left out, with a notice, if the kernel has no such file.
    pub optional: bool,
    /// An alternative file and its value, for kernels without the first file.
    pub instead: Option<(&'static str, String)>,
}

/// How the values of a file are compared, and how an ancestor's value affects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number of bytes. The kernel rounds it down to whole pages. `max` and very large values mean "no limit".
    Bytes,
    /// A number of protected bytes. A smaller value of an ancestor applies, and `max` is the largest value.
    Protection,
    /// A number.
    Number,
    /// A share among siblings, which some files show as `default N`. An ancestor's value has no effect.
    Weight,
    /// `cpu.max`: quota and period.
    Quota,
    /// A set of CPUs or memory nodes.
    Set,
    /// One line per device, such as `8:0 rbps=1048576`.
    Device,
    /// A line with a key, such as `oom_kill_disable 1`.
    Switch(&'static str),
    /// A file that the caller named. Its value is compared by each of the applicable kinds above.
    Any,
}

/// A limit that the host's cgroup version does not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OnlyOn {
    pub flag: &'static str,
    pub version: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Returns the files for these limits, in the order in which they must be written.
pub(crate) fn settings(limits: &Limits, version: Version) -> Result<Vec<Setting>, OnlyOn> {
    let mut table = Table { version, rows: Vec::new() };
    table.cpuset(limits);
    table.memory(limits)?;
    table.cpu(limits);
    if let Some(pids) = limits.pids {
        let value = pids.map_or_else(|| "max".into(), |pids| pids.to_string());
        table.same("--pids-limit", "pids.limit", "pids", "pids.max", value, Kind::Number);
    }
    table.io(limits);
    for (file, value) in &limits.conf {
        let controller = file.split('.').next().unwrap_or_default();
        let controller = if version == Version::V2 && controller == "cgroup" { "" } else { controller };
        table.rows.push(Setting {
            flag: "--cgroup-conf",
            oci: "unified",
            controller: Cow::Owned(controller.to_owned()),
            file: Cow::Owned(file.clone()),
            value: value.clone(),
            kind: Kind::Any,
            optional: false,
            instead: None,
        });
    }
    Ok(table.rows)
}

struct Table {
    version: Version,
    rows: Vec<Setting>,
}

impl Table {
    /// Adds a row whose file and value are the same under both versions.
    fn same(
        &mut self,
        flag: &'static str,
        oci: &'static str,
        controller: &'static str,
        file: &'static str,
        value: String,
        kind: Kind,
    ) -> &mut Setting {
        self.rows.push(Setting {
            flag,
            oci,
            controller: Cow::Borrowed(controller),
            file: Cow::Borrowed(file),
            value,
            kind,
            optional: false,
            instead: None,
        });
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    fn cpuset(&mut self, limits: &Limits) {
        for (set, flag, oci, file) in [
            (&limits.cpuset_cpus, "--cpuset-cpus", "cpu.cpus", "cpuset.cpus"),
            (&limits.cpuset_mems, "--cpuset-mems", "cpu.mems", "cpuset.mems"),
        ] {
            if let Some(set) = set {
                self.same(flag, oci, "cpuset", file, set.to_string(), Kind::Set);
            }
        }
    }

    fn memory(&mut self, limits: &Limits) -> Result<(), OnlyOn> {
        let v2 = self.is_v2();
        if let Some(memory) = limits.memory {
            let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            self.same("--memory", "memory.limit", "memory", file, memory.to_string(), Kind::Bytes);
        }
        self.swap(limits);
        if let Some(reservation) = limits.memory_reservation {
            let file = if v2 { "memory.low" } else { "memory.soft_limit_in_bytes" };
            let kind = if v2 { Kind::Protection } else { Kind::Bytes };
            self.same("--memory-reservation", "memory.reservation", "memory", file, reservation.to_string(), kind);
        }
        for (bytes, flag, oci, file, kind) in [
            (limits.memory_high, "--memory-high", "unified.memory.high", "memory.high", Kind::Bytes),
            (limits.memory_min, "--memory-min", "unified.memory.min", "memory.min", Kind::Protection),
        ] {
            match bytes {
                Some(_) if !v2 => return Err(OnlyOn { flag, version: "v2" }),
                Some(bytes) => drop(self.same(flag, oci, "memory", file, bytes.to_string(), kind)),
                None => {}
            }
        }
        if let Some(swappiness) = limits.memory_swappiness {
            if v2 {
                return Err(OnlyOn { flag: "--memory-swappiness", version: "v1" });
            }
            let (oci, file) = ("memory.swappiness", "memory.swappiness");
            self.same("--memory-swappiness", oci, "memory", file, swappiness.to_string(), Kind::Weight);
        }
        if limits.oom_kill_disable {
            if v2 {
                return Err(OnlyOn { flag: "--oom-kill-disable", version: "v1" });
            }
            let (oci, kind) = ("memory.disableOOMKiller", Kind::Switch("oom_kill_disable"));
            self.same("--oom-kill-disable", oci, "memory", "memory.oom_control", "1".into(), kind);
        }
        Ok(())
    }

    /// Must follow the memory limit. Version 1 limits the total, which must not be below the memory limit. Version 2
    /// limits swap alone, which is docker's total minus the memory limit.
    fn swap(&mut self, limits: &Limits) {
        let (Some(memory), Some(swap)) = (limits.memory, limits.swap) else { return };
        let v2 = self.is_v2();
        let of_total = |total: u64| if v2 { total.saturating_sub(memory) } else { total }.to_string();
        let (value, optional) = match swap {
            Swap::Total(total) => (of_total(total), false),
            Swap::Implicit { total } => (of_total(total), true),
            Swap::Unlimited => (if v2 { "max" } else { "-1" }.to_owned(), true),
        };
        let file = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        self.same("--memory-swap", "memory.swap", "memory", file, value, Kind::Bytes).optional = optional;
    }

    fn cpu(&mut self, limits: &Limits) {
        let flag = match (limits.cpu_quota_given, limits.cpu_quota_us) {
            (false, _) => "--cpus",
            (true, Some(_)) => "--cpu-quota",
            (true, None) => "--cpu-period",
        };
        let (oci, v2) = ("cpu.quota", self.is_v2());
        if let Some(period) = limits.cpu_period_us {
            let quota = limits.cpu_quota_us;
            if v2 {
                let quota = quota.map_or_else(|| "max".into(), |quota| quota.to_string());
                self.same(flag, oci, "cpu", "cpu.max", format!("{quota} {period}"), Kind::Quota);
            } else {
                self.same(flag, "cpu.period", "cpu", "cpu.cfs_period_us", period.to_string(), Kind::Number);
                let quota = quota.map_or_else(|| "-1".into(), |quota| quota.to_string());
                self.same(flag, oci, "cpu", "cpu.cfs_quota_us", quota, Kind::Number);
            }
        }
        if let Some(shares) = limits.cpu_shares {
            let (file, value) = if v2 { ("cpu.weight", cpu_weight(shares)) } else { ("cpu.shares", shares) };
            self.same("--cpu-shares", "cpu.shares", "cpu", file, value.to_string(), Kind::Weight);
        }
    }

    fn io(&mut self, limits: &Limits) {
        let v2 = self.is_v2();
        let controller = if v2 { "io" } else { "blkio" };
        if let Some(weight) = limits.blkio_weight {
            // bfq takes the weight unchanged. The cost model of io.weight has a different range.
            let (file, instead) = if v2 {
                ("io.bfq.weight", ("io.weight", io_weight(weight).to_string()))
            } else {
                ("blkio.bfq.weight", ("blkio.weight", weight.to_string()))
            };
            self.same("--blkio-weight", "blockIO.weight", controller, file, weight.to_string(), Kind::Weight).instead =
                Some(instead);
        }
        for one in &limits.device_weights {
            // Only bfq has weights of devices. Version 2 keeps them in the file of the default weight.
            let file = if v2 { "io.bfq.weight" } else { "blkio.bfq.weight_device" };
            let value = format!("{}:{} {}", one.major, one.minor, one.weight);
            self.same("--blkio-weight-device", "blockIO.weightDevice", controller, file, value, Kind::Device);
        }
        for limit in &limits.io {
            let (oci, key, file) = match limit.kind {
                IoKind::ReadBps => ("blockIO.throttleReadBpsDevice", "rbps", "blkio.throttle.read_bps_device"),
                IoKind::WriteBps => ("blockIO.throttleWriteBpsDevice", "wbps", "blkio.throttle.write_bps_device"),
                IoKind::ReadIops => ("blockIO.throttleReadIOPSDevice", "riops", "blkio.throttle.read_iops_device"),
                IoKind::WriteIops => ("blockIO.throttleWriteIOPSDevice", "wiops", "blkio.throttle.write_iops_device"),
            };
            let device = format!("{}:{}", limit.major, limit.minor);
            let (file, value) = if v2 {
                ("io.max", format!("{device} {key}={}", limit.rate))
            } else {
                (file, format!("{device} {}", limit.rate))
            };
            self.same(limit.kind.flag(), oci, controller, file, value, Kind::Device);
        }
    }
}

/// Version 1 reports "no limit" as the largest multiple of the page size below 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// Returns whether the value read back from the kernel matches the requested one.
#[must_use]
pub(super) fn agrees(kind: Kind, asked: &str, kernel: &str, page: u64) -> bool {
    match kind {
        Kind::Bytes | Kind::Protection => match (bytes(asked), bytes(kernel)) {
            (None, None) => true,
            (Some(asked), Some(kernel)) => kernel == asked / page * page,
            _ => false,
        },
        Kind::Set => match (asked.parse::<crate::units::CpuSet>(), kernel.parse::<crate::units::CpuSet>()) {
            (Ok(asked), Ok(kernel)) => asked == kernel,
            _ => false,
        },
        Kind::Number | Kind::Quota => asked == kernel,
        // The lines after the first one are for single devices.
        Kind::Weight => kernel.lines().next().unwrap_or(kernel).trim_start_matches("default ") == asked,
        Kind::Switch(key) => kernel.lines().any(|line| line == format!("{key} {asked}")),
        Kind::Device => {
            let mut asked = asked.split(' ');
            let device = asked.next();
            let asked: Vec<&str> = asked.collect();
            kernel.lines().any(|line| {
                let mut fields = line.split(' ');
                let same = fields.next() == device;
                let fields: Vec<&str> = fields.collect();
                same && asked.iter().all(|field| fields.contains(field))
            })
        }
        Kind::Any => {
            // The kernel may round sizes, reformat lists, and return the line among others.
            let size = crate::units::parse_memory(asked).map_or_else(|_| asked.to_owned(), |size| size.to_string());
            asked == kernel
                // `cpu.max` also returns the period.
                || kernel.strip_prefix(asked).is_some_and(|rest| rest.starts_with(' '))
                || [Kind::Weight, Kind::Set, Kind::Device].iter().any(|kind| agrees(*kind, asked, kernel, page))
                || (bytes(&size).is_some_and(|bytes| bytes >= page) && agrees(Kind::Bytes, &size, kernel, page))
        }
    }
}

/// Returns whether the ancestor's value is tighter than the cgroup's own, if they can be compared.
#[must_use]
pub(super) fn tighter(kind: Kind, own: &str, ancestor: &str) -> bool {
    match kind {
        Kind::Bytes | Kind::Number | Kind::Protection => match (bytes(own), bytes(ancestor)) {
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
        Kind::Set | Kind::Weight | Kind::Device | Kind::Switch(_) | Kind::Any => false,
    }
}

/// Parses a number. `None` means no limit.
pub(super) fn bytes(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(limits: &Limits, version: Version, flag: &str) -> (String, String) {
        let rows = settings(limits, version).unwrap();
        let row = rows.into_iter().rev().find(|row| row.flag == flag).unwrap_or_else(|| panic!("{flag}"));
        (row.file.into_owned(), row.value)
    }

    #[test]
    fn swap_means_the_same_on_both_versions() {
        let limits = |swap| Limits { memory: Some(1 << 30), swap: Some(swap), ..Limits::default() };
        for (swap, old, new) in [
            (Swap::Total(1 << 30), "1073741824", "0"),
            (Swap::Total(3 << 30), "3221225472", "2147483648"),
            (Swap::Implicit { total: 2 << 30 }, "2147483648", "1073741824"),
            (Swap::Unlimited, "-1", "max"),
        ] {
            assert_eq!(row(&limits(swap), Version::V1, "--memory-swap").1, old);
            assert_eq!(row(&limits(swap), Version::V2, "--memory-swap").1, new);
        }
    }

    #[test]
    fn cpu_and_io_have_their_files() {
        let limits = Limits {
            cpu_quota_us: Some(5000),
            cpu_period_us: Some(10_000),
            cpu_quota_given: true,
            cpu_shares: Some(512),
            blkio_weight: Some(300),
            device_weights: vec![crate::spec::DeviceWeight { major: 8, minor: 0, weight: 200 }],
            io: vec![crate::spec::IoLimit { kind: IoKind::ReadIops, major: 8, minor: 16, rate: 50 }],
            ..Limits::default()
        };
        for (flag, v1, v2) in [
            ("--cpu-quota", ("cpu.cfs_quota_us", "5000"), ("cpu.max", "5000 10000")),
            ("--cpu-shares", ("cpu.shares", "512"), ("cpu.weight", "59")),
            ("--blkio-weight", ("blkio.bfq.weight", "300"), ("io.bfq.weight", "300")),
            ("--blkio-weight-device", ("blkio.bfq.weight_device", "8:0 200"), ("io.bfq.weight", "8:0 200")),
            ("--device-read-iops", ("blkio.throttle.read_iops_device", "8:16 50"), ("io.max", "8:16 riops=50")),
        ] {
            let own = |(file, value): (&str, &str)| (file.to_owned(), value.to_owned());
            assert_eq!(row(&limits, Version::V1, flag), own(v1), "{flag}");
            assert_eq!(row(&limits, Version::V2, flag), own(v2), "{flag}");
        }
    }

    #[test]
    fn what_a_version_has_not_is_refused_by_name() {
        let high = Limits { memory_high: Some(1 << 20), ..Limits::default() };
        assert_eq!(settings(&high, Version::V1), Err(OnlyOn { flag: "--memory-high", version: "v2" }));
        let disable = Limits { oom_kill_disable: true, ..Limits::default() };
        assert_eq!(settings(&disable, Version::V2), Err(OnlyOn { flag: "--oom-kill-disable", version: "v1" }));
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
            (Kind::Weight, "100", "default 100", true),
            (Kind::Weight, "100", "100", true),
            (Kind::Weight, "100", "default 100\n8:0 300", true),
            (Kind::Device, "8:0 300", "default 100\n8:0 300", true),
            (Kind::Device, "8:0 300", "default 300", false),
            (Kind::Device, "8:0 rbps=1024", "8:16 rbps=1024 wbps=max\n8:0 rbps=1024 wbps=5", true),
            (Kind::Device, "8:0 rbps=1024", "8:16 rbps=1024", false),
            (Kind::Switch("oom_kill_disable"), "1", "oom_kill_disable 1\nunder_oom 0", true),
            (Kind::Any, "1g", "1073741824", true),
            (Kind::Any, "1", "1", true),
            (Kind::Any, "1", "0", false),
            (Kind::Any, "max", "100", false),
        ] {
            assert_eq!(agrees(kind, asked, kernel, 4096), same, "{kind:?} {asked} {kernel}");
        }
        assert!(tighter(Kind::Quota, "200000 100000", "50000 50000"));
        assert!(!tighter(Kind::Quota, "50000 100000", "max 100000"));
        assert!(tighter(Kind::Bytes, "max", "4096"));
    }
}
