//! docker's rules for resource flags: from what was typed to [`Limits`], given what the host has. Pure.
//!
//! Meanings and error cases: docker/cli `opts`, moby's verifyPlatformContainerResources.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::limits::{IoKind, IoLimit, Limits, Swap};
use crate::report::{EXIT_USAGE, Explain, Report};
use crate::units::{CpuSet, Cpus, UnitError, parse_memory};

/// The resource flags as they were typed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedLimits {
    pub memory: Option<String>,
    pub memory_swap: Option<String>,
    pub memory_reservation: Option<String>,
    pub cpus: Option<String>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    pub memory_high: Option<String>,
    pub memory_min: Option<String>,
    pub memory_swappiness: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill_disable: Option<bool>,
    pub cpu_period: Option<i64>,
    pub cpu_quota: Option<i64>,
    pub cpu_shares: Option<i64>,
    pub blkio_weight: Option<i64>,
    /// `DEVICE:RATE`, in the order of [`IoKind::ALL`].
    pub io: [Vec<String>; 4],
    /// `FILE=VALUE`
    pub cgroup_conf: Vec<String>,
}

/// What the host has.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// CPUs that are online.
    pub cpus: CpuSet,
    /// NUMA nodes with memory.
    pub mems: CpuSet,
    /// Major and minor number of a block device's node; an error in words for what is none.
    pub block_device: BlockDevice,
}

/// How a path becomes a block device's numbers: the disk is the caller's to touch.
pub type BlockDevice = fn(&Path) -> Result<(u64, u64), String>;

/// What `--memory-swappiness` takes.
pub const SWAPPINESS: RangeInclusive<i64> = 0..=100;
/// What `--cpu-period` takes, in microseconds (kernel/sched/core.c, max_cfs_quota_period).
pub const CPU_PERIODS_US: RangeInclusive<i64> = 1000..=1_000_000;
/// What `--cpu-shares` takes; the kernel would quietly move what is outside to the bound.
pub const CPU_SHARES: RangeInclusive<i64> = 2..=262_144;
/// What `--blkio-weight` takes.
pub const BLKIO_WEIGHTS: RangeInclusive<i64> = 10..=1000;
/// What `--cpu-quota` takes, in microseconds (kernel/sched/core.c, max_cfs_runtime).
pub const CPU_QUOTAS_US: RangeInclusive<i64> = MINIMUM_QUOTA_US as i64..=(1 << 44) - 1;
/// What `--pids-limit` takes: as many processes as a host can number (PID_MAX_LIMIT).
pub const PIDS: RangeInclusive<i64> = -1..=4_194_304;
/// docker's smallest memory limit.
pub const MINIMUM_MEMORY: u64 = 6 << 20;
/// The period that `--cpus` is measured in, microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses smaller quotas (kernel/sched/core.c, min_cfs_quota_period).
const MINIMUM_QUOTA_US: u64 = 1000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LimitsError {
    #[error("minimum memory limit allowed is 6MB: `--memory {0}` is less")]
    MemoryTooSmall(String),
    #[error(
        "minimum memoryswap limit should be larger than memory limit: `--memory-swap {swap}` is less than `--memory {memory}`"
    )]
    SwapBelowMemory { swap: String, memory: String },
    #[error("`--memory-swap {0}` needs `--memory`: it is the total of memory and swap")]
    SwapAlone(String),
    #[error("`--memory-reservation {reservation}` is more than `--memory {memory}`")]
    ReservationAboveMemory { reservation: String, memory: String },
    #[error(
        "range of CPUs is from 0.01 to {most}.00, as there are only {most} CPUs available: `--cpus {asked}` is outside"
    )]
    CpusOutOfRange { asked: String, most: usize },
    #[error("requested CPUs are not available - requested {asked}, available: {available} (`--cpuset-cpus`)")]
    CpusNotThere { asked: CpuSet, available: CpuSet },
    #[error("requested memory nodes are not available - requested {asked}, available: {available} (`--cpuset-mems`)")]
    MemsNotThere { asked: CpuSet, available: CpuSet },
    #[error("`{flag} {value}` and `--cpus {cpus}` contradict each other")]
    CpusTwice { flag: &'static str, value: u64, cpus: String },
    #[error("`--pids-limit 1` leaves no room for the container's start, which takes two processes")]
    OnePid,
    #[error("`--cpu-quota {0}` is less than the {MINIMUM_QUOTA_US} microseconds that the kernel counts in")]
    QuotaTooSmall(u64),
    #[error("`{flag} {value}` is outside of {least} to {most}{unit}")]
    Range { flag: &'static str, value: i64, least: i64, most: i64, unit: &'static str },
    #[error("`{flag} {text}` is not `DEVICE:RATE`")]
    DeviceRate { flag: &'static str, text: String },
    #[error("`{flag} {text}` names no block device: {why}")]
    Device { flag: &'static str, text: String, why: String },
    #[error("`{flag} {text}` is more than the kernel counts, {} a second", u32::MAX)]
    TooOften { flag: &'static str, text: String },
    #[error("`{flag} {one}` and `{flag} {other}` contradict each other")]
    Twice { flag: &'static str, one: String, other: String },
    #[error("`--cgroup-conf {text}` {why}")]
    Conf { text: String, why: &'static str },
    #[error("`{flag} {higher}` is more than `{than} {lower}`")]
    Above { flag: &'static str, higher: String, than: &'static str, lower: String },
}

impl Explain for LimitsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::MemoryTooSmall(_) => "give it at least `--memory 6m`".into(),
            Self::SwapBelowMemory { memory, .. } => {
                format!("`--memory-swap {memory}` means no swap, `-1` unlimited swap")
            }
            Self::SwapAlone(swap) => format!("add `--memory`: at most `--memory {swap}`"),
            Self::ReservationAboveMemory { memory, .. } => format!("use at most `--memory-reservation {memory}`"),
            Self::CpusOutOfRange { most, .. } => format!("use a number from `--cpus 0.01` to `--cpus {most}`"),
            Self::CpusNotThere { available, .. } => format!("use some of `--cpuset-cpus {available}`"),
            Self::MemsNotThere { available, .. } => format!("use some of `--cpuset-mems {available}`"),
            Self::CpusTwice { .. } => "`--cpus 1.5` is the same as `--cpu-period 100000 --cpu-quota 150000`".into(),
            Self::OnePid => "use at least `--pids-limit 2`, and more for programs with threads".into(),
            Self::QuotaTooSmall(_) => {
                "a longer --cpu-period takes a larger quota for the same share of CPU time".into()
            }
            Self::Range { least, most, .. } => format!("use a number from {least} to {most}"),
            Self::DeviceRate { flag, .. } if flag.ends_with("bps") => format!("for example `{flag} /dev/sda:10mb`"),
            Self::DeviceRate { flag, .. } => format!("for example `{flag} /dev/sda:1000`"),
            Self::TooOften { flag, .. } => format!("leave `{flag}` out: it would limit nothing"),
            Self::Twice { .. } => "leave one of them out".into(),
            Self::Device { .. } => "`lsblk` lists them; a throttle needs the whole disk, not a partition".into(),
            Self::Conf { .. } => {
                "give a file of the container's cgroup and a value, for example `--cgroup-conf memory.oom.group=1`"
                    .into()
            }
            Self::Above { flag, lower, .. } => format!("use at most `{flag} {lower}`"),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl AskedLimits {
    /// These limits with those of `update` in their place, where it has any. A device's throttle, or a file of `--cgroup-conf`, replaces the one
    /// for the same device or file.
    #[must_use]
    pub fn updated_by(&self, update: &Self) -> Self {
        let mut merged = self.clone();
        if update.cpus.is_some() {
            (merged.cpu_period, merged.cpu_quota) = (None, None);
        }
        // The total of memory and swap is bound to the memory, and goes with it.
        if update.memory.as_deref().is_some_and(|text| parse_memory(text) == Ok(0)) {
            merged.memory_swap = None;
        }
        if update.cpu_period.is_some() || update.cpu_quota.is_some() {
            merged.cpus = None;
        }
        let text = |own: &mut Option<String>, new: &Option<String>| {
            if new.is_some() {
                own.clone_from(new);
            }
        };
        text(&mut merged.memory, &update.memory);
        text(&mut merged.memory_swap, &update.memory_swap);
        text(&mut merged.memory_reservation, &update.memory_reservation);
        text(&mut merged.memory_high, &update.memory_high);
        text(&mut merged.memory_min, &update.memory_min);
        text(&mut merged.cpus, &update.cpus);
        text(&mut merged.cpuset_cpus, &update.cpuset_cpus);
        text(&mut merged.cpuset_mems, &update.cpuset_mems);
        let number = |own: &mut Option<i64>, new: Option<i64>| *own = new.or(*own);
        number(&mut merged.pids_limit, update.pids_limit);
        number(&mut merged.memory_swappiness, update.memory_swappiness);
        number(&mut merged.cpu_period, update.cpu_period);
        number(&mut merged.cpu_quota, update.cpu_quota);
        number(&mut merged.cpu_shares, update.cpu_shares);
        number(&mut merged.blkio_weight, update.blkio_weight);
        merged.oom_kill_disable = update.oom_kill_disable.or(merged.oom_kill_disable);
        let list = |own: &mut Vec<String>, new: &[String], separator: char| {
            for text in new {
                let key = text.rsplit_once(separator).map(|(key, _)| key);
                own.retain(|old| old.rsplit_once(separator).map(|(key, _)| key) != key);
                own.push(text.clone());
            }
        };
        for (own, new) in merged.io.iter_mut().zip(&update.io) {
            list(own, new, ':');
        }
        list(&mut merged.cgroup_conf, &update.cgroup_conf, '=');
        merged
    }

    /// Checks everything and converts it to the kernel's units.
    pub fn resolve(&self, host: &HostFacts) -> Result<Limits, Report> {
        let memory = size("--memory", self.memory.as_deref())?.filter(|bytes| *bytes > 0);
        let memory_text = || self.memory.clone().unwrap_or_default();
        if memory.is_some_and(|bytes| bytes < MINIMUM_MEMORY) {
            return Err(LimitsError::MemoryTooSmall(memory_text()).into());
        }
        let memory_reservation =
            size("--memory-reservation", self.memory_reservation.as_deref())?.filter(|bytes| *bytes > 0);
        if let (Some(reservation), Some(limit)) = (memory_reservation, memory)
            && reservation > limit
        {
            let reservation = self.memory_reservation.clone().unwrap_or_default();
            return Err(LimitsError::ReservationAboveMemory { reservation, memory: memory_text() }.into());
        }
        let high = self.protection("--memory-high", self.memory_high.as_deref(), memory)?;
        let min = self.protection("--memory-min", self.memory_min.as_deref(), memory)?;
        let (cpu_quota_us, cpu_period_us, cpu_quota_given) = self.cpu_time(host)?;
        Ok(Limits {
            memory,
            swap: self.swap(memory)?,
            memory_reservation,
            memory_high: high,
            memory_min: min,
            memory_swappiness: in_range(
                "--memory-swappiness",
                self.memory_swappiness.filter(|n| *n != -1),
                &SWAPPINESS,
                "",
            )?,
            oom_kill_disable: self.oom_kill_disable.unwrap_or(false),
            cpu_quota_us,
            cpu_period_us,
            cpu_quota_given,
            // docker's 0 is "not asked for".
            cpu_shares: in_range("--cpu-shares", self.cpu_shares.filter(|n| *n != 0), &CPU_SHARES, "")?,
            cpuset_cpus: subset("--cpuset-cpus", self.cpuset_cpus.as_deref(), &host.cpus, |asked, available| {
                LimitsError::CpusNotThere { asked, available }
            })?,
            cpuset_mems: subset("--cpuset-mems", self.cpuset_mems.as_deref(), &host.mems, |asked, available| {
                LimitsError::MemsNotThere { asked, available }
            })?,
            pids: self.pids()?.map(|limit| u64::try_from(limit).ok().filter(|limit| *limit > 0)),
            blkio_weight: in_range("--blkio-weight", self.blkio_weight.filter(|n| *n != 0), &BLKIO_WEIGHTS, "")?,
            io: self.io_limits(host)?,
            conf: self.conf()?,
        })
    }

    fn conf(&self) -> Result<Vec<(String, String)>, LimitsError> {
        let mut all: Vec<(String, String)> = Vec::new();
        for text in &self.cgroup_conf {
            let (file, value) = conf(text)?;
            if let Some((_, before)) = all.iter().find(|(other, _)| *other == file) {
                let one = format!("{file}={before}");
                return Err(LimitsError::Twice { flag: "--cgroup-conf", one, other: text.clone() });
            }
            all.push((file, value));
        }
        Ok(all)
    }

    /// A start is two processes for a moment: the container's first one, and the one that makes it.
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

    /// `--memory-high` and `--memory-min`, which must lie below the limit.
    fn protection(&self, flag: &'static str, text: Option<&str>, memory: Option<u64>) -> Result<Option<u64>, Report> {
        let bytes = size(flag, text)?.filter(|bytes| *bytes > 0);
        match (bytes, memory) {
            (Some(bytes), Some(limit)) if bytes > limit => Err(LimitsError::Above {
                flag,
                higher: text.unwrap_or_default().to_owned(),
                than: "--memory",
                lower: self.memory.clone().unwrap_or_default(),
            }
            .into()),
            _ => Ok(bytes),
        }
    }

    /// Quota and period in microseconds, and whether they were given as such.
    fn cpu_time(&self, host: &HostFacts) -> Result<(Option<u64>, Option<u64>, bool), Report> {
        let cpus = self.cpus.as_deref().map(|text| quota(text, host)).transpose()?.flatten();
        // docker's 0 is "not asked for", and so is a quota of -1.
        let period = self.cpu_period.filter(|n| *n != 0);
        let period = in_range("--cpu-period", period, &CPU_PERIODS_US, " microseconds")?;
        let quota = self.cpu_quota.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(value) = self.cpu_quota.filter(|quota| quota > CPU_QUOTAS_US.end()) {
            let (least, most) = (*CPU_QUOTAS_US.start(), *CPU_QUOTAS_US.end());
            return Err(LimitsError::Range { flag: "--cpu-quota", value, least, most, unit: " microseconds" }.into());
        }
        if let Some(asked) = quota.filter(|quota| *quota < MINIMUM_QUOTA_US) {
            return Err(LimitsError::QuotaTooSmall(asked).into());
        }
        let twice = |flag, value| {
            Report::from(LimitsError::CpusTwice { flag, value, cpus: self.cpus.clone().unwrap_or_default() })
        };
        match (cpus, period, quota) {
            (Some(_), Some(value), _) => Err(twice("--cpu-period", value)),
            (Some(_), None, Some(value)) => Err(twice("--cpu-quota", value)),
            (Some(quota), None, None) => Ok((Some(quota), Some(CPU_PERIOD_US), false)),
            (None, None, None) => Ok((None, None, false)),
            (None, period, quota) => Ok((quota, Some(period.unwrap_or(CPU_PERIOD_US)), true)),
        }
    }

    fn io_limits(&self, host: &HostFacts) -> Result<Vec<IoLimit>, Report> {
        let mut limits: Vec<IoLimit> = Vec::new();
        for (kind, texts) in IoKind::ALL.into_iter().zip(&self.io) {
            let (flag, mut given) = (kind.flag(), 0);
            for text in texts {
                let wrong = || LimitsError::DeviceRate { flag, text: text.clone() };
                let (device, rate) = text.rsplit_once(':').ok_or_else(wrong)?;
                let rate = match kind {
                    IoKind::ReadBps | IoKind::WriteBps => {
                        parse_memory(rate).map_err(|error| under(flag, text, error))?
                    }
                    IoKind::ReadIops | IoKind::WriteIops => rate.parse().map_err(|_| wrong())?,
                };
                if rate == 0 {
                    return Err(wrong().into());
                }
                if matches!(kind, IoKind::ReadIops | IoKind::WriteIops) && rate > u32::MAX.into() {
                    return Err(LimitsError::TooOften { flag, text: text.clone() }.into());
                }
                let (major, minor) = (host.block_device)(Path::new(device)).map_err(|why| LimitsError::Device {
                    flag,
                    text: text.clone(),
                    why,
                })?;
                let same = |limit: &IoLimit| (limit.kind, limit.major, limit.minor) == (kind, major, minor);
                if let Some(before) = limits.iter().position(same) {
                    // Those of this flag, in the order in which they were given.
                    let one = texts[before - (limits.len() - given)].clone();
                    return Err(LimitsError::Twice { flag, one, other: text.clone() }.into());
                }
                given += 1;
                limits.push(IoLimit { kind, major, minor, rate });
            }
        }
        Ok(limits)
    }

    fn swap(&self, memory: Option<u64>) -> Result<Option<Swap>, Report> {
        let asked = match self.memory_swap.as_deref() {
            Some("-1") => return if memory.is_some() { Ok(Some(Swap::Unlimited)) } else { Ok(None) },
            other => size("--memory-swap", other)?.filter(|bytes| *bytes > 0),
        };
        match (memory, asked) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(LimitsError::SwapAlone(self.memory_swap.clone().unwrap_or_default()).into()),
            (Some(memory), None) => Ok(Some(Swap::Implicit { total: memory.saturating_mul(2) })),
            (Some(memory), Some(total)) if total < memory => {
                let (swap, memory) =
                    (self.memory_swap.clone().unwrap_or_default(), self.memory.clone().unwrap_or_default());
                Err(LimitsError::SwapBelowMemory { swap, memory }.into())
            }
            (Some(_), Some(total)) => Ok(Some(Swap::Total(total))),
        }
    }
}

fn size(flag: &str, text: Option<&str>) -> Result<Option<u64>, Report> {
    text.map(|text| parse_memory(text).map_err(|error| under(flag, text, error))).transpose()
}

fn under(flag: &str, text: &str, error: UnitError) -> Report {
    Report::from(error).under(format!("`{flag} {text}` cannot be used"))
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

/// A cgroup's file and its value. The files that move processes or change what a cgroup is are not settings.
fn conf(text: &str) -> Result<(String, String), LimitsError> {
    let wrong = |why| LimitsError::Conf { text: text.to_owned(), why };
    let (file, value) = text.split_once('=').ok_or_else(|| wrong("is not `FILE=VALUE`"))?;
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if file.is_empty() || !file.bytes().all(name) || !file.contains('.') || file.starts_with('.') || value.is_empty() {
        return Err(wrong("names no file of a cgroup"));
    }
    if file.starts_with("cgroup.") && !["cgroup.max.depth", "cgroup.max.descendants"].contains(&file) {
        return Err(wrong("would change what the cgroup is, not what it may use"));
    }
    if file.starts_with("devices.") {
        return Err(wrong("would go past the device filter"));
    }
    Ok((file.to_owned(), value.to_owned()))
}

/// Microseconds per period; 0 means "not asked for", as in docker.
fn quota(text: &str, host: &HostFacts) -> Result<Option<u64>, Report> {
    let cpus: Cpus = text.parse().map_err(|error| under("--cpus", text, error))?;
    if cpus.nanos == 0 {
        return Ok(None);
    }
    let (most, quota) = (host.cpus.0.len(), cpus.quota_us(CPU_PERIOD_US));
    if cpus.nanos > most as u64 * 1_000_000_000 || quota < MINIMUM_QUOTA_US {
        return Err(LimitsError::CpusOutOfRange { asked: text.to_owned(), most }.into());
    }
    Ok(Some(quota))
}

fn subset(
    flag: &str,
    text: Option<&str>,
    available: &CpuSet,
    missing: fn(CpuSet, CpuSet) -> LimitsError,
) -> Result<Option<CpuSet>, Report> {
    // The command line refuses the empty text; records of older versions may hold it, for "none".
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let asked: CpuSet = text.parse().map_err(|error| under(flag, text, error))?;
    if asked.0.is_subset(&available.0) { Ok(Some(asked)) } else { Err(missing(asked, available.clone()).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        let block_device: BlockDevice = |path| match path.to_str() {
            Some("/dev/sda") => Ok((8, 0)),
            _ => Err("there is no such file".into()),
        };
        HostFacts { cpus: "0-3".parse().unwrap(), mems: "0".parse().unwrap(), block_device }
    }

    fn asked(pairs: &[(&str, &str)]) -> AskedLimits {
        let mut asked = AskedLimits::default();
        for (key, value) in pairs {
            let value = Some((*value).to_owned());
            match *key {
                "memory" => asked.memory = value,
                "swap" => asked.memory_swap = value,
                "reservation" => asked.memory_reservation = value,
                "cpus" => asked.cpus = value,
                "cpuset" => asked.cpuset_cpus = value,
                "mems" => asked.cpuset_mems = value,
                other => panic!("{other}"),
            }
        }
        asked
    }

    #[test]
    fn swap_is_the_total() {
        let swap = |pairs: &[(&str, &str)]| asked(pairs).resolve(&host()).unwrap().swap;
        assert_eq!(swap(&[]), None);
        assert_eq!(swap(&[("memory", "1g")]), Some(Swap::Implicit { total: 2 << 30 }));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "0")]), Some(Swap::Implicit { total: 2 << 30 }));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "-1")]), Some(Swap::Unlimited));
        assert_eq!(swap(&[("memory", "1g"), ("swap", "1g")]), Some(Swap::Total(1 << 30)));
        assert_eq!(swap(&[("memory", "32g"), ("swap", "-1")]), Some(Swap::Unlimited), "the lab's own line");
    }

    #[test]
    fn cpus_become_a_quota() {
        let quota = |text: &str| asked(&[("cpus", text)]).resolve(&host()).unwrap().cpu_quota_us;
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
            let report = asked(pairs).resolve(&host()).unwrap_err();
            assert!(report.message.contains(words), "{pairs:?}: {report}");
            assert!(report.hint.is_some() && report.exit_code == EXIT_USAGE, "{report}");
        }
    }

    #[test]
    fn pids_below_one_mean_no_limit() {
        for (limit, expected) in
            [(Some(100), Some(Some(100))), (Some(-1), Some(None)), (Some(0), Some(None)), (None, None)]
        {
            let asked = AskedLimits { pids_limit: limit, ..AskedLimits::default() };
            assert_eq!(asked.resolve(&host()).unwrap().pids, expected);
        }
    }
}
