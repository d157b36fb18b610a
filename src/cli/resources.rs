//! The flags that become files of the container's cgroup, documented once: launches, `update` and `explain` share them.

use std::ops::RangeInclusive;

use clap::Args;
use clap::builder::NonEmptyStringValueParser as Text;

use crate::spec::{AskedLimits, BLKIO_WEIGHTS, CPU_PERIODS_US, CPU_QUOTAS_US, CPU_SHARES, PIDS, SWAPPINESS};
use crate::units::{UnitError, parse_whole};

/// A whole number. One that is outside of the bounds goes through: docker's special values are, and [`AskedLimits::resolve`] knows them.
fn number(bounds: RangeInclusive<i64>) -> impl Fn(&str) -> Result<i64, UnitError> + Clone + Send + Sync + 'static {
    move |text| parse_whole(text, &bounds).or_else(|error| text.parse().map_err(|_| error))
}

/// Whole seconds, as many as docker takes: 68 years.
pub fn seconds(text: &str) -> Result<u64, UnitError> {
    parse_whole(text, &(0..=i32::MAX.into())).map(i64::unsigned_abs)
}

/// docker's resource flags, with docker's meanings. Where docker takes an empty text for "no limit" (`--cpuset-cpus`, `--cpuset-mems`), it is
/// refused: a variable that is not set in a script would be a limit that is silently none.
#[derive(Debug, Clone, Args, Default)]
pub struct ResourceFlags {
    /// Memory limit: 512m, 32g, 1.5g (binary units)
    #[arg(short, long, visible_alias = "mem", value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory: Option<String>,
    /// Memory plus swap; the same as --memory: no swap; -1: unlimited swap
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_swap: Option<String>,
    /// Memory the kernel leaves to the container under pressure
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_reservation: Option<String>,
    /// Memory above which the container is slowed down and reclaimed from (cgroup v2)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_high: Option<String>,
    /// Memory that is never reclaimed (cgroup v2)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_min: Option<String>,
    /// How readily anonymous memory is swapped out, 0 to 100 (cgroup v1)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(SWAPPINESS))]
    pub memory_swappiness: Option<i64>,
    /// At the memory limit, let processes wait instead of killing one (cgroup v1)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oom_kill_disable: Option<bool>,
    /// CPU time in CPUs: 1.5 is one and a half
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpus: Option<String>,
    /// Period of the CPU limit in microseconds; use --cpus where you can
    #[arg(long, value_name = "US", allow_negative_numbers = true, value_parser = number(CPU_PERIODS_US))]
    pub cpu_period: Option<i64>,
    /// CPU time a period in microseconds; use --cpus where you can
    #[arg(long, value_name = "US", allow_negative_numbers = true, value_parser = number(CPU_QUOTAS_US))]
    pub cpu_quota: Option<i64>,
    /// Share of CPU time while others want it too; 1024 is usual
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, value_parser = number(CPU_SHARES))]
    pub cpu_shares: Option<i64>,
    /// The CPUs it may run on: 0-3,7
    #[arg(long, value_name = "LIST", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpuset_cpus: Option<String>,
    /// The NUMA nodes it may take memory from: 0,1
    #[arg(long, value_name = "LIST", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpuset_mems: Option<String>,
    /// Processes and threads at most; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(PIDS))]
    pub pids_limit: Option<i64>,
    /// Share of disk time while others want it too, 10 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(BLKIO_WEIGHTS))]
    pub blkio_weight: Option<i64>,
    /// Bytes a second read from a device: /dev/sda:10mb
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_read_bps: Vec<String>,
    /// Bytes a second written to a device
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_write_bps: Vec<String>,
    /// Reads a second from a device
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_read_iops: Vec<String>,
    /// Writes a second to a device
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_write_iops: Vec<String>,
    /// Any other file of the container's cgroup: memory.oom.group=1
    #[arg(long, value_name = "FILE=VALUE", value_parser = Text::new())]
    pub cgroup_conf: Vec<String>,
}

impl ResourceFlags {
    #[must_use]
    pub fn asked(&self) -> AskedLimits {
        let flags = self.clone();
        AskedLimits {
            memory: flags.memory,
            memory_swap: flags.memory_swap,
            memory_reservation: flags.memory_reservation,
            cpus: flags.cpus,
            cpuset_cpus: flags.cpuset_cpus,
            cpuset_mems: flags.cpuset_mems,
            pids_limit: flags.pids_limit,
            memory_high: flags.memory_high,
            memory_min: flags.memory_min,
            memory_swappiness: flags.memory_swappiness,
            oom_kill_disable: flags.oom_kill_disable,
            cpu_period: flags.cpu_period,
            cpu_quota: flags.cpu_quota,
            cpu_shares: flags.cpu_shares,
            blkio_weight: flags.blkio_weight,
            io: [flags.device_read_bps, flags.device_write_bps, flags.device_read_iops, flags.device_write_iops],
            cgroup_conf: flags.cgroup_conf,
        }
    }
}
