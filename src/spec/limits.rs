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

/// What the cgroup is told. `None` means: not asked for, nothing is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes (`memory.max`, `memory.limit_in_bytes`).
    pub memory: Option<u64>,
    pub swap: Option<Swap>,
    /// Bytes (`memory.low`, `memory.soft_limit_in_bytes`).
    pub memory_reservation: Option<u64>,
    /// CPU time in microseconds per period (`cpu.max`, `cpu.cfs_quota_us`).
    pub cpu_quota_us: Option<u64>,
    /// Microseconds; 100000 where `--cpus` was given.
    pub cpu_period_us: Option<u64>,
    pub cpuset_cpus: Option<CpuSet>,
    pub cpuset_mems: Option<CpuSet>,
    /// `pids.max`; `Some(None)` is an explicit "no limit".
    pub pids: Option<Option<u64>>,
}
