//! The bounds of limits, and the errors of limits that are outside of them or contradict each other.

use std::ops::RangeInclusive;

use crate::report::{EXIT_USAGE, Explain};
use crate::units::CpuSet;

/// Valid values of `--memory-swappiness`.
pub(crate) const SWAPPINESS: RangeInclusive<i64> = 0..=100;
/// Valid values of `--cpu-period`, in microseconds (kernel/sched/core.c, max_cfs_quota_period).
pub(crate) const CPU_PERIODS_US: RangeInclusive<i64> = 1000..=1_000_000;
/// Valid values of `--cpu-shares`. The kernel would silently clamp values outside this range.
pub(crate) const CPU_SHARES: RangeInclusive<i64> = 2..=262_144;
/// Valid values of `--blkio-weight`.
pub(crate) const BLKIO_WEIGHTS: RangeInclusive<i64> = 10..=1000;
/// Valid values of `--cpu-quota`, in microseconds (kernel/sched/core.c, max_cfs_runtime).
pub(crate) const CPU_QUOTAS_US: RangeInclusive<i64> = MINIMUM_QUOTA_US as i64..=(1 << 44) - 1;
/// Valid values of `--pids-limit`. The upper bound is the largest number of processes on a Linux host (PID_MAX_LIMIT).
pub(crate) const PIDS: RangeInclusive<i64> = -1..=4_194_304;
/// The smallest memory limit that docker accepts.
pub(crate) const MINIMUM_MEMORY: u64 = 6 << 20;
/// The period to which `--cpus` refers, in microseconds.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses smaller quotas (kernel/sched/core.c, min_cfs_quota_period).
pub(super) const MINIMUM_QUOTA_US: u64 = 1000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LimitsError {
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
    #[error("`--pids-limit 1` is too low for the container's start, which needs two processes")]
    OnePid,
    #[error("`--cpu-quota {0}` is less than the {MINIMUM_QUOTA_US} microseconds that the kernel counts in")]
    QuotaTooSmall(u64),
    #[error("`{flag} {value}` is outside of {least} to {most}{unit}")]
    Range { flag: &'static str, value: i64, least: i64, most: i64, unit: &'static str },
    #[error("`{flag} {text}` is not `DEVICE:RATE`")]
    DeviceRate { flag: &'static str, text: String },
    #[error("`--blkio-weight-device {0}` is not `DEVICE:WEIGHT`")]
    DeviceWeight(String),
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
            Self::MemoryTooSmall(text) => match with_unit(text) {
                Some(meant) => format!("a number without a unit is in bytes: did you mean `--memory {meant}`?"),
                None => "use at least `--memory 6m`".into(),
            },
            Self::SwapBelowMemory { memory, swap } => match with_unit(swap) {
                Some(meant) => format!("a number without a unit is in bytes: did you mean `--memory-swap {meant}`?"),
                None => format!("use `--memory-swap {memory}` for no swap, `--memory-swap -1` for unlimited swap"),
            },
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
            Self::DeviceWeight(_) => "for example `--blkio-weight-device /dev/sda:300`".into(),
            Self::TooOften { flag, .. } => format!("omit `{flag}`: it would limit nothing"),
            Self::Twice { .. } => "omit one of them".into(),
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

/// Guesses the intended unit of a small number without one: gigabytes up to 256, megabytes above.
fn with_unit(text: &str) -> Option<String> {
    let number: f64 = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))?;
    match number {
        number if number > 0.0 && number <= 256.0 => Some(format!("{text}g")),
        number if number > 256.0 && number < 1_048_576.0 => Some(format!("{text}m")),
        _ => None,
    }
}
