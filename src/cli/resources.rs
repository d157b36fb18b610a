//! The flags that set files of the container's cgroup, documented once and shared by launches, `update` and `explain`.

use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use clap::builder::NonEmptyStringValueParser as Text;

use crate::report::Report;
use crate::request::{
    BLKIO_WEIGHTS, CPU_PERIODS_US, CPU_QUOTAS_US, CPU_SHARES, LimitsRequest, PIDS, SWAPPINESS, Throttles, TimeLimits,
    flag_value,
};
use crate::units::{UnitError, parse_whole};

/// Parses every value of a flag.
pub(crate) fn each<T, E>(texts: &[String], parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, E> {
    texts.iter().map(|text| parse(text)).collect()
}

/// Parses a whole number. A number outside the bounds is accepted here because some of docker's special values are
/// outside. [`LimitsRequest::resolve`] checks them.
fn number(bounds: RangeInclusive<i64>) -> impl Fn(&str) -> Result<i64, UnitError> + Clone + Send + Sync + 'static {
    move |text| parse_whole(text, &bounds).or_else(|error| text.parse().map_err(|_| error))
}

/// Parses whole seconds up to docker's maximum of 68 years.
pub(super) fn seconds(text: &str) -> Result<u64, UnitError> {
    parse_whole(text, &(0..=i32::MAX.into())).map(i64::unsigned_abs)
}

/// docker's resource flags, with docker's meanings. Where docker takes an empty text for "no limit" (`--cpuset-cpus`, `--cpuset-mems`), it is
/// refused: a variable that is not set in a script would be a limit that is silently none.
#[derive(Debug, Clone, Args, Default)]
pub(super) struct ResourceFlags {
    /// Memory limit, with a binary unit: 512m, 32g, 1.5g
    #[arg(short, long, visible_alias = "mem", value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory: Option<String>,
    /// Limit of memory plus swap; equal to --memory: no swap; -1: unlimited swap
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_swap: Option<String>,
    /// Memory that the kernel leaves to the container under memory pressure
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_reservation: Option<String>,
    /// Memory usage above which the container is throttled and its memory reclaimed (cgroup v2)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_high: Option<String>,
    /// Memory that the kernel never reclaims (cgroup v2)
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub memory_min: Option<String>,
    /// Tendency to swap out anonymous memory, 0 to 100 (cgroup v1)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(SWAPPINESS))]
    pub memory_swappiness: Option<i64>,
    /// Let processes wait at the memory limit instead of killing one (cgroup v1)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oom_kill_disable: Option<bool>,
    /// Number of CPUs: 1.5 is one and a half
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpus: Option<String>,
    /// Period of the CPU limit in microseconds; prefer --cpus
    #[arg(long, value_name = "US", allow_negative_numbers = true, value_parser = number(CPU_PERIODS_US))]
    pub cpu_period: Option<i64>,
    /// CPU time per period in microseconds; prefer --cpus
    #[arg(long, value_name = "US", allow_negative_numbers = true, value_parser = number(CPU_QUOTAS_US))]
    pub cpu_quota: Option<i64>,
    /// Relative share of CPU time while CPUs are contended; the default is 1024
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, value_parser = number(CPU_SHARES))]
    pub cpu_shares: Option<i64>,
    /// CPUs that the container may use: 0-3,7
    #[arg(long, value_name = "LIST", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes that the container may take memory from: 0,1
    #[arg(long, value_name = "LIST", allow_negative_numbers = true, value_parser = Text::new())]
    pub cpuset_mems: Option<String>,
    /// Maximum number of processes and threads; -1: no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(PIDS))]
    pub pids_limit: Option<i64>,
    /// Relative share of disk time while the disk is contended, 10 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number(BLKIO_WEIGHTS))]
    pub blkio_weight: Option<i64>,
    /// Share of one disk's time, 10 to 1000, where its scheduler is bfq: /dev/sda:300
    #[arg(long, value_name = "DEVICE:WEIGHT", value_parser = Text::new())]
    pub blkio_weight_device: Vec<String>,
    /// Limit reads from a device in bytes per second: /dev/sda:10mb
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_read_bps: Vec<String>,
    /// Limit writes to a device in bytes per second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_write_bps: Vec<String>,
    /// Limit reads from a device in operations per second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_read_iops: Vec<String>,
    /// Limit writes to a device in operations per second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = Text::new())]
    pub device_write_iops: Vec<String>,
    /// Set any other file of the container's cgroup: memory.oom.group=1
    #[arg(long, value_name = "FILE=VALUE", value_parser = Text::new())]
    pub cgroup_conf: Vec<String>,
}

impl ResourceFlags {
    /// Parses the values.
    pub(super) fn limits(&self) -> Result<LimitsRequest, Report> {
        let throttles =
            [&self.device_read_bps, &self.device_write_bps, &self.device_read_iops, &self.device_write_iops];
        Ok(LimitsRequest {
            memory: value("--memory", &self.memory)?,
            memory_swap: value("--memory-swap", &self.memory_swap)?,
            memory_reservation: value("--memory-reservation", &self.memory_reservation)?,
            cpus: value("--cpus", &self.cpus)?,
            cpuset_cpus: value("--cpuset-cpus", &self.cpuset_cpus)?,
            cpuset_mems: value("--cpuset-mems", &self.cpuset_mems)?,
            pids_limit: self.pids_limit,
            memory_high: value("--memory-high", &self.memory_high)?,
            memory_min: value("--memory-min", &self.memory_min)?,
            memory_swappiness: self.memory_swappiness,
            oom_kill_disable: self.oom_kill_disable,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_shares,
            blkio_weight: self.blkio_weight,
            device_weights: each(&self.blkio_weight_device, str::parse)?,
            io: Throttles::parse(throttles.map(Vec::as_slice))?,
            cgroup_conf: each(&self.cgroup_conf, str::parse)?,
        })
    }
}

/// The flags that limit a container's time, shared by launches and `update`.
#[derive(Debug, Clone, Args, Default)]
pub(super) struct TimeFlags {
    /// Stop the container this long after its start: 90 (seconds), 30m, 8h; 0: no limit
    #[arg(long, value_name = "TIME", value_parser = Text::new())]
    pub timeout: Option<String>,
    /// Stop the container when it has been idle this long: no busy kernel, GPU, CPU or disk, and no exec or attach session
    #[arg(long, value_name = "TIME", value_parser = Text::new())]
    pub idle_timeout: Option<String>,
}

impl TimeFlags {
    /// Parses the values. Zero stays, because it removes a limit in `update`.
    pub(super) fn changes(&self) -> Result<TimeLimits, Report> {
        Ok(TimeLimits {
            timeout: value("--timeout", &self.timeout)?,
            idle_timeout: value("--idle-timeout", &self.idle_timeout)?,
        })
    }

    /// The limits of a new container.
    pub(super) fn new_limits(&self) -> Result<TimeLimits, Report> {
        let asked = self.changes()?;
        Ok(TimeLimits::new(asked.timeout, asked.idle_timeout))
    }
}

pub(super) fn value<T: FromStr>(flag: &str, text: &Option<String>) -> Result<Option<T>, Report>
where
    Report: From<T::Err>,
{
    text.as_deref().map(|text| flag_value(flag, text)).transpose()
}

/// The caller's environment variables. Those that are not UTF-8 cannot be passed on.
pub(super) fn caller_env() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
