//! docker's rules for resource flags: from what was typed to [`Limits`], given what the host has. Pure.
//!
//! Meanings and error cases: docker/cli `opts`, moby's verifyPlatformContainerResources.

use serde::{Deserialize, Serialize};

use super::limits::{Limits, Swap};
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
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// CPUs that are online.
    pub cpus: CpuSet,
    /// NUMA nodes with memory.
    pub mems: CpuSet,
}

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
    #[error("requested CPUs are not available - requested {asked}, available: {available}")]
    CpusNotThere { asked: CpuSet, available: CpuSet },
    #[error("requested memory nodes are not available - requested {asked}, available: {available}")]
    MemsNotThere { asked: CpuSet, available: CpuSet },
}

impl Explain for LimitsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::MemoryTooSmall(_) => "give it at least `--memory 6m`".into(),
            Self::SwapBelowMemory { memory, .. } => {
                format!("`--memory-swap {memory}` means no swap, `-1` unlimited swap")
            }
            Self::SwapAlone(_) => "add `--memory`".into(),
            Self::ReservationAboveMemory { memory, .. } => format!("use at most `--memory-reservation {memory}`"),
            Self::CpusOutOfRange { .. } | Self::CpusNotThere { .. } => {
                "`nproc` and `lscpu` show what the host has".into()
            }
            Self::MemsNotThere { .. } => "`lscpu` shows the NUMA nodes".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl AskedLimits {
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
        let quota = self.cpus.as_deref().map(|text| quota(text, host)).transpose()?.flatten();
        Ok(Limits {
            memory,
            swap: self.swap(memory)?,
            memory_reservation,
            cpu_quota_us: quota,
            cpu_period_us: quota.map(|_| CPU_PERIOD_US),
            cpuset_cpus: subset("--cpuset-cpus", self.cpuset_cpus.as_deref(), &host.cpus, |asked, available| {
                LimitsError::CpusNotThere { asked, available }
            })?,
            cpuset_mems: subset("--cpuset-mems", self.cpuset_mems.as_deref(), &host.mems, |asked, available| {
                LimitsError::MemsNotThere { asked, available }
            })?,
            pids: self.pids_limit.map(|limit| u64::try_from(limit).ok().filter(|limit| *limit > 0)),
        })
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
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let asked: CpuSet = text.parse().map_err(|error| under(flag, text, error))?;
    if asked.0.is_subset(&available.0) { Ok(Some(asked)) } else { Err(missing(asked, available.clone()).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts { cpus: "0-3".parse().unwrap(), mems: "0".parse().unwrap() }
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
