//! The limits of one container in the kernel's units, already checked against docker's rules.

use crate::units::CpuSet;

/// The total of memory and swap that a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// `--memory-swap` was not given. The total is docker's default of 2 × memory. Where the kernel has no swap
    /// accounting, the limit is dropped with a notice.
    Implicit { total: u64 },
    /// `--memory-swap N`: memory + swap in bytes. The launch fails if the kernel cannot enforce it.
    Total(u64),
    /// `--memory-swap -1`.
    Unlimited,
}

/// A throttle on one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoLimit {
    pub kind: IoKind,
    pub major: u64,
    pub minor: u64,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// The weight of one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceWeight {
    pub major: u64,
    pub minor: u64,
    /// 10 to 1000.
    pub weight: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    ReadBps,
    WriteBps,
    ReadIops,
    WriteIops,
}

impl IoKind {
    pub const ALL: [Self; 4] = [Self::ReadBps, Self::WriteBps, Self::ReadIops, Self::WriteIops];

    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::ReadBps => "--device-read-bps",
            Self::WriteBps => "--device-write-bps",
            Self::ReadIops => "--device-read-iops",
            Self::WriteIops => "--device-write-iops",
        }
    }
}

/// The limits to write to the cgroup. `None` means that the limit was not requested and nothing is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes (`memory.max`, `memory.limit_in_bytes`).
    pub memory: Option<u64>,
    pub swap: Option<Swap>,
    /// Bytes (`memory.low`, `memory.soft_limit_in_bytes`).
    pub memory_reservation: Option<u64>,
    /// Bytes (`memory.high`, version 2 only). Above this value the kernel throttles the container and reclaims its
    /// memory.
    pub memory_high: Option<u64>,
    /// Bytes (`memory.min`, version 2 only). This amount of memory is never reclaimed.
    pub memory_min: Option<u64>,
    /// 0 to 100 (`memory.swappiness`, version 1 only).
    pub memory_swappiness: Option<u64>,
    /// Version 1 only. Processes wait for memory instead of being killed.
    pub oom_kill_disable: bool,
    /// CPU time in microseconds per period (`cpu.max`, `cpu.cfs_quota_us`).
    pub cpu_quota_us: Option<u64>,
    /// Microseconds. The value is 100000 if `--cpus` was given.
    pub cpu_period_us: Option<u64>,
    /// Whether the quota and the period were given directly rather than by `--cpus`.
    pub cpu_quota_given: bool,
    /// docker's shares, with a default of 1024 (`cpu.shares`, or `cpu.weight` by runc's formula).
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<CpuSet>,
    pub cpuset_mems: Option<CpuSet>,
    /// `pids.max`. `Some(None)` is an explicit "no limit".
    pub pids: Option<Option<u64>>,
    /// 10 to 1000 (`blkio.weight`, or `io.bfq.weight`, or `io.weight` by runc's formula).
    pub blkio_weight: Option<u64>,
    /// Weights of single devices (`blkio.bfq.weight_device`, or `io.bfq.weight`).
    pub device_weights: Vec<DeviceWeight>,
    pub io: Vec<IoLimit>,
    /// Names of cgroup files and the values to write to them, as given on the command line.
    pub conf: Vec<(String, String)>,
}
