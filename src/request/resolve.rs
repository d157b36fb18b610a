//! Checks requested limits against a host by docker's rules, and converts them to the kernel's units. This module does
//! no I/O.
//!
//! Sources for the semantics and the error cases: docker/cli `opts` and moby's verifyPlatformContainerResources.

use std::ops::RangeInclusive;
use std::path::Path;

use super::limits::{LimitsRequest, Size, SwapSize};
use super::limits_error::{
    BLKIO_WEIGHTS, CPU_PERIOD_US, CPU_PERIODS_US, CPU_QUOTAS_US, CPU_SHARES, LimitsError, MINIMUM_MEMORY,
    MINIMUM_QUOTA_US, PIDS, SWAPPINESS,
};
use crate::spec::{DeviceWeight, IoLimit, Limits, Swap};
use crate::units::{CpuSet, Cpus};

/// The properties of the host that the flags are checked against.
#[derive(Debug, Clone)]
pub(crate) struct HostFacts {
    /// CPUs that are online.
    pub cpus: CpuSet,
    /// NUMA nodes with memory.
    pub mems: CpuSet,
    /// Returns the major and minor number of a block device, or an error message if the path is not a block device.
    pub block_device: BlockDevice,
}

/// Maps a path to the major and minor number of a block device. The caller supplies this function because this module
/// does no I/O.
pub(crate) type BlockDevice = fn(&Path) -> Result<(u64, u64), String>;

impl LimitsRequest {
    /// Checks all limits and converts them to the kernel's units.
    pub(crate) fn resolve(&self, host: &HostFacts) -> Result<Limits, LimitsError> {
        let limit = |size: &Option<Size>| size.as_ref().and_then(Size::limit);
        let memory = limit(&self.memory);
        if memory.is_some_and(|bytes| bytes < MINIMUM_MEMORY) {
            return Err(LimitsError::MemoryTooSmall(written(&self.memory)));
        }
        let memory_reservation = limit(&self.memory_reservation);
        if memory_reservation.zip(memory).is_some_and(|(reservation, memory)| reservation > memory) {
            let reservation = written(&self.memory_reservation);
            return Err(LimitsError::ReservationAboveMemory { reservation, memory: written(&self.memory) });
        }
        let memory_high = self.at_most_memory("--memory-high", &self.memory_high)?;
        let memory_min = self.at_most_memory("--memory-min", &self.memory_min)?;
        let (cpu_quota_us, cpu_period_us, cpu_quota_given) = self.cpu_time(host)?;
        // In docker, 0 (or -1, for the swappiness) means "not set".
        let set = |value: Option<i64>, unset: i64| value.filter(|number| *number != unset);
        Ok(Limits {
            memory,
            swap: self.swap(memory)?,
            memory_reservation,
            memory_high,
            memory_min,
            memory_swappiness: in_range("--memory-swappiness", set(self.memory_swappiness, -1), &SWAPPINESS, "")?,
            oom_kill_disable: self.oom_kill_disable.unwrap_or(false),
            cpu_quota_us,
            cpu_period_us,
            cpu_quota_given,
            cpu_shares: in_range("--cpu-shares", set(self.cpu_shares, 0), &CPU_SHARES, "")?,
            cpuset_cpus: subset(&self.cpuset_cpus, &host.cpus, |asked, available| LimitsError::CpusNotThere {
                asked,
                available,
            })?,
            cpuset_mems: subset(&self.cpuset_mems, &host.mems, |asked, available| LimitsError::MemsNotThere {
                asked,
                available,
            })?,
            pids: self.pids()?.map(|limit| u64::try_from(limit).ok().filter(|limit| *limit > 0)),
            blkio_weight: in_range("--blkio-weight", set(self.blkio_weight, 0), &BLKIO_WEIGHTS, "")?,
            device_weights: self.weights(host)?,
            io: self.io_limits(host)?,
            conf: self.conf()?,
        })
    }

    fn conf(&self) -> Result<Vec<(String, String)>, LimitsError> {
        for (number, entry) in self.cgroup_conf.iter().enumerate() {
            if let Some(before) = self.cgroup_conf[..number].iter().find(|other| other.file == entry.file) {
                let (one, other) = (before.to_string(), entry.to_string());
                return Err(LimitsError::Twice { flag: "--cgroup-conf", one, other });
            }
        }
        Ok(self.cgroup_conf.iter().map(|entry| (entry.file.clone(), entry.value.clone())).collect())
    }

    /// Checks `--pids-limit`. A limit of 1 is refused because starting a container briefly needs two processes: the
    /// container's first process and the process that creates it.
    fn pids(&self) -> Result<Option<i64>, LimitsError> {
        match self.pids_limit {
            Some(1) => Err(LimitsError::OnePid),
            Some(value) if value > *PIDS.end() => {
                let (least, most) = (*PIDS.start(), *PIDS.end());
                Err(LimitsError::Range { flag: "--pids-limit", value, least, most, unit: "" })
            }
            limit => Ok(limit),
        }
    }

    /// Checks `--memory-high` or `--memory-min`, which may not exceed the memory limit.
    fn at_most_memory(&self, flag: &'static str, size: &Option<Size>) -> Result<Option<u64>, LimitsError> {
        let bytes = size.as_ref().and_then(Size::limit);
        let memory = self.memory.as_ref().and_then(Size::limit);
        match bytes.zip(memory) {
            Some((bytes, limit)) if bytes > limit => {
                Err(LimitsError::Above { flag, higher: written(size), than: "--memory", lower: written(&self.memory) })
            }
            _ => Ok(bytes),
        }
    }

    /// Returns the quota and the period in microseconds, and whether they were given directly rather than by `--cpus`.
    fn cpu_time(&self, host: &HostFacts) -> Result<(Option<u64>, Option<u64>, bool), LimitsError> {
        let cpus = self.cpus.map(|cpus| quota(cpus, host)).transpose()?.flatten();
        // In docker, 0 means "not set", and so does a quota of -1.
        let period = self.cpu_period.filter(|n| *n != 0);
        let period = in_range("--cpu-period", period, &CPU_PERIODS_US, " microseconds")?;
        let quota = self.cpu_quota.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(value) = self.cpu_quota.filter(|quota| quota > CPU_QUOTAS_US.end()) {
            let (least, most) = (*CPU_QUOTAS_US.start(), *CPU_QUOTAS_US.end());
            return Err(LimitsError::Range { flag: "--cpu-quota", value, least, most, unit: " microseconds" });
        }
        if let Some(quota) = quota.filter(|quota| *quota < MINIMUM_QUOTA_US) {
            return Err(LimitsError::QuotaTooSmall(quota));
        }
        let twice = |flag, value| LimitsError::CpusTwice { flag, value, cpus: written(&self.cpus) };
        match (cpus, period, quota) {
            (Some(_), Some(value), _) => Err(twice("--cpu-period", value)),
            (Some(_), None, Some(value)) => Err(twice("--cpu-quota", value)),
            (Some(quota), None, None) => Ok((Some(quota), Some(CPU_PERIOD_US), false)),
            (None, None, None) => Ok((None, None, false)),
            (None, period, quota) => Ok((quota, Some(period.unwrap_or(CPU_PERIOD_US)), true)),
        }
    }

    fn io_limits(&self, host: &HostFacts) -> Result<Vec<IoLimit>, LimitsError> {
        let mut limits: Vec<IoLimit> = Vec::new();
        for throttle in &self.io.0 {
            let (kind, flag) = (throttle.kind, throttle.kind.flag());
            let (major, minor) = (host.block_device)(&throttle.device).map_err(|why| LimitsError::Device {
                flag,
                text: throttle.text.clone(),
                why,
            })?;
            // Two paths may lead to the same device.
            let same = |limit: &IoLimit| (limit.kind, limit.major, limit.minor) == (kind, major, minor);
            if let Some(before) = limits.iter().position(same) {
                let (one, other) = (self.io.0[before].text.clone(), throttle.text.clone());
                return Err(LimitsError::Twice { flag, one, other });
            }
            limits.push(IoLimit { kind, major, minor, rate: throttle.rate });
        }
        Ok(limits)
    }

    fn weights(&self, host: &HostFacts) -> Result<Vec<DeviceWeight>, LimitsError> {
        let flag = "--blkio-weight-device";
        let mut weights: Vec<DeviceWeight> = Vec::new();
        for one in &self.device_weights {
            let (major, minor) = (host.block_device)(&one.device).map_err(|why| LimitsError::Device {
                flag,
                text: one.text.clone(),
                why,
            })?;
            if let Some(before) = weights.iter().position(|known| (known.major, known.minor) == (major, minor)) {
                let (one, other) = (self.device_weights[before].text.clone(), one.text.clone());
                return Err(LimitsError::Twice { flag, one, other });
            }
            weights.push(DeviceWeight { major, minor, weight: one.weight });
        }
        Ok(weights)
    }

    fn swap(&self, memory: Option<u64>) -> Result<Option<Swap>, LimitsError> {
        let total = match &self.memory_swap {
            Some(SwapSize::Unlimited) => return Ok(memory.map(|_| Swap::Unlimited)),
            Some(SwapSize::Total(size)) => size.limit(),
            None => None,
        };
        match (memory, total) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(LimitsError::SwapAlone(written(&self.memory_swap))),
            (Some(memory), None) => Ok(Some(Swap::Implicit { total: memory.saturating_mul(2) })),
            (Some(memory), Some(total)) if total < memory => {
                let (swap, memory) = (written(&self.memory_swap), written(&self.memory));
                Err(LimitsError::SwapBelowMemory { swap, memory })
            }
            (Some(_), Some(total)) => Ok(Some(Swap::Total(total))),
        }
    }
}

/// The value as the caller wrote it, for messages.
fn written(value: &Option<impl ToString>) -> String {
    value.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn in_range(
    flag: &'static str,
    value: Option<i64>,
    bounds: &RangeInclusive<i64>,
    unit: &'static str,
) -> Result<Option<u64>, LimitsError> {
    match value {
        Some(value) if !bounds.contains(&value) => {
            Err(LimitsError::Range { flag, value, least: *bounds.start(), most: *bounds.end(), unit })
        }
        value => Ok(value.and_then(|value| u64::try_from(value).ok())),
    }
}

/// Converts `--cpus` to microseconds per period. As in docker, 0 means "not set".
fn quota(cpus: Cpus, host: &HostFacts) -> Result<Option<u64>, LimitsError> {
    if cpus.nanos == 0 {
        return Ok(None);
    }
    let (most, quota) = (host.cpus.0.len(), cpus.quota_us(CPU_PERIOD_US));
    if cpus.nanos > most as u64 * 1_000_000_000 || quota < MINIMUM_QUOTA_US {
        return Err(LimitsError::CpusOutOfRange { asked: cpus.to_string(), most });
    }
    Ok(Some(quota))
}

fn subset(
    asked: &Option<CpuSet>,
    available: &CpuSet,
    missing: fn(CpuSet, CpuSet) -> LimitsError,
) -> Result<Option<CpuSet>, LimitsError> {
    match asked {
        Some(asked) if !asked.0.is_subset(&available.0) => Err(missing(asked.clone(), available.clone())),
        asked => Ok(asked.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{EXIT_USAGE, Report};
    use crate::request::text::flag_value;

    fn host() -> HostFacts {
        let block_device: BlockDevice = |path| match path.to_str() {
            Some("/dev/sda") => Ok((8, 0)),
            _ => Err("there is no such file".into()),
        };
        HostFacts { cpus: "0-3".parse().unwrap(), mems: "0".parse().unwrap(), block_device }
    }

    /// The limits of these flags. The same errors as those of the command line.
    fn resolve(pairs: &[(&str, &str)]) -> Result<Limits, Report> {
        let mut limits = LimitsRequest::default();
        for (key, value) in pairs {
            match *key {
                "memory" => limits.memory = Some(flag_value("--memory", value)?),
                "swap" => limits.memory_swap = Some(flag_value("--memory-swap", value)?),
                "reservation" => limits.memory_reservation = Some(flag_value("--memory-reservation", value)?),
                "cpus" => limits.cpus = Some(flag_value("--cpus", value)?),
                "cpuset" => limits.cpuset_cpus = Some(flag_value("--cpuset-cpus", value)?),
                "mems" => limits.cpuset_mems = Some(flag_value("--cpuset-mems", value)?),
                other => panic!("{other}"),
            }
        }
        Ok(limits.resolve(&host())?)
    }

    #[test]
    fn a_size_without_its_unit_is_guessed() {
        let said = |pairs: &[(&str, &str)]| resolve(pairs).unwrap_err().to_string();
        insta::assert_snapshot!(said(&[("memory", "32")]), @r"
        error: minimum memory limit allowed is 6MB: `--memory 32` is less

        hint: a number without a unit is in bytes: did you mean `--memory 32g`?
        ");
        for (text, meant) in [("1.5", "`--memory 1.5g`?"), ("512", "`--memory 512m`?"), ("32000", "`--memory 32000m`?")]
        {
            assert!(said(&[("memory", text)]).contains(meant), "{text}");
        }
        for text in ["5m", "4000000", "32b", "5000k"] {
            assert!(said(&[("memory", text)]).ends_with("hint: use at least `--memory 6m`"), "{text}");
        }
        insta::assert_snapshot!(said(&[("memory", "32g"), ("swap", "64")]), @r"
        error: minimum memoryswap limit should be larger than memory limit: `--memory-swap 64` is less than `--memory 32g`

        hint: a number without a unit is in bytes: did you mean `--memory-swap 64g`?
        ");
    }

    #[test]
    fn swap_is_the_total() {
        let swap = |pairs: &[(&str, &str)]| resolve(pairs).unwrap().swap;
        assert_eq!(swap(&[]), None);
        assert_eq!(swap(&[("memory", "1g")]), Some(Swap::Implicit { total: 2 << 30 }));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "0")]), Some(Swap::Implicit { total: 2 << 30 }));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "-1")]), Some(Swap::Unlimited));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "1g")]), Some(Swap::Total(1 << 30)));
        assert_eq!(swap(&[("memory", "32g"), ("swap", "-1")]), Some(Swap::Unlimited), "the lab's own line");
    }

    #[test]
    fn cpus_become_a_quota() {
        let quota = |text: &str| resolve(&[("cpus", text)]).unwrap().cpu_quota_us;
        assert_eq!(quota("1.5"), Some(150_000));
        assert_eq!(quota("4."), Some(400_000));
        assert_eq!(quota("0.01"), Some(1000));
        assert_eq!(quota("0"), None);
    }

    #[test]
    fn what_docker_refuses_is_refused_in_its_words() {
        let cases: [(&[(&str, &str)], &str); 11] = [
            (&[("memory", "4m")], "minimum memory limit allowed is 6MB"),
            (&[("memory", "1g"), ("swap", "512m")], "minimum memoryswap limit should be larger than memory limit"),
            (&[("swap", "1g")], "needs `--memory`"),
            (&[("memory", "1g"), ("reservation", "2g")], "is more than `--memory 1g`"),
            (&[("cpus", "4.5")], "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available"),
            (&[("cpus", "0.001")], "range of CPUs"),
            (&[("cpus", "1.0000000001")], "cannot be used"),
            (&[("cpuset", "4")], "requested CPUs are not available - requested 4, available: 0-3"),
            (&[("mems", "1")], "requested memory nodes are not available - requested 1, available: 0"),
            (&[("memory", "x")], "`--memory x` cannot be used"),
            (&[("cpuset", "0-")], "`--cpuset-cpus 0-` cannot be used"),
        ];
        for (pairs, words) in cases {
            let report = resolve(pairs).unwrap_err();
            assert!(report.message.contains(words), "{pairs:?}: {report}");
            assert!(report.hint.is_some() && report.exit_code == EXIT_USAGE, "{report}");
        }
    }

    #[test]
    fn pids_below_one_mean_no_limit() {
        for (limit, expected) in
            [(Some(100), Some(Some(100))), (Some(-1), Some(None)), (Some(0), Some(None)), (None, None)]
        {
            let limits = LimitsRequest { pids_limit: limit, ..LimitsRequest::default() };
            assert_eq!(limits.resolve(&host()).unwrap().pids, expected);
        }
    }
}
