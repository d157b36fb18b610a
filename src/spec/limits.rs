//! The limits of one container, in the kernel's units, already checked against docker's rules.

use crate::units::CpuSet;

/// How much memory plus swap a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// `--memory-swap` was not given: docker's 2 × memory, which is dropped with a word where the kernel has no swap accounting.
    Implicit { total: u64 },
    /// `--memory-swap N`: memory + swap in bytes; not enforceable means refused.
    Total(u64),
    /// `--memory-swap -1`
    Unlimited,
}

/// A throttle on one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoLimit {
    pub kind: IoKind,
    pub major: u64,
    pub minor: u64,
    /// Bytes, or operations, a second.
    pub rate: u64,
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

/// What the cgroup is told. `None` means: not asked for, nothing is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes (`memory.max`, `memory.limit_in_bytes`).
    pub memory: Option<u64>,
    pub swap: Option<Swap>,
    /// Bytes (`memory.low`, `memory.soft_limit_in_bytes`).
    pub memory_reservation: Option<u64>,
    /// Bytes (`memory.high`, version 2 alone): above it the container is slowed down and its memory reclaimed.
    pub memory_high: Option<u64>,
    /// Bytes (`memory.min`, version 2 alone): never reclaimed.
    pub memory_min: Option<u64>,
    /// 0 to 100 (`memory.swappiness`, version 1 alone).
    pub memory_swappiness: Option<u64>,
    /// Version 1 alone: processes wait instead of being killed.
    pub oom_kill_disable: bool,
    /// CPU time in microseconds per period (`cpu.max`, `cpu.cfs_quota_us`).
    pub cpu_quota_us: Option<u64>,
    /// Microseconds; 100000 where `--cpus` was given.
    pub cpu_period_us: Option<u64>,
    /// Whether quota and period were given as such, not by `--cpus`.
    pub cpu_quota_given: bool,
    /// docker's shares, 1024 being usual (`cpu.shares`; `cpu.weight` by runc's formula).
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<CpuSet>,
    pub cpuset_mems: Option<CpuSet>,
    /// `pids.max`; `Some(None)` is an explicit "no limit".
    pub pids: Option<Option<u64>>,
    /// 10 to 1000 (`blkio.weight`; `io.bfq.weight`, or `io.weight` by runc's formula).
    pub blkio_weight: Option<u64>,
    pub io: Vec<IoLimit>,
    /// Files of the cgroup and what is written to them, as they were given.
    pub conf: Vec<(String, String)>,
}
