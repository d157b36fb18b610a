//! The resource usage and the event counters of a cgroup, in one structure for both versions.

use std::path::Path;

use serde::Serialize;

use super::Cgroup;
use super::access::{keyed, value};

/// One sample. Totals count from the creation of the cgroup. `None` means that this kernel does not provide the value.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Charged bytes, including the page cache.
    pub memory_current: Option<u64>,
    /// Bytes without the inactive page cache: docker's "MEM USAGE".
    pub memory_used: Option<u64>,
    pub memory_peak: Option<u64>,
    /// `None` means that the cgroup has no limit of its own.
    pub memory_limit: Option<u64>,
    pub swap_current: Option<u64>,
    /// CPU time in microseconds.
    pub cpu_usage_us: Option<u64>,
    /// Elapsed periods of `cpu.max`, the number of throttled periods, and the throttled time in microseconds.
    pub cpu_periods: Option<u64>,
    pub cpu_throttled_periods: Option<u64>,
    pub cpu_throttled_us: Option<u64>,
    pub pids_current: Option<u64>,
    pub pids_limit: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
    /// Pressure stall information (version 2 only).
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
    pub events: Events,
}

/// How often each limit was reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// How often memory.high was exceeded (version 2 only).
    pub memory_high: Option<u64>,
    /// How often the memory limit was reached and memory had to be reclaimed.
    pub memory_max: Option<u64>,
    pub oom: Option<u64>,
    pub oom_kill: Option<u64>,
    /// How often a fork was refused.
    pub pids_max: Option<u64>,
}

/// A line of a pressure file (Documentation/accounting/psi.rst): the percentage of the last ten seconds in which some
/// or all tasks waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    pub some_avg10: f64,
    pub full_avg10: f64,
    /// Microseconds since the cgroup was created.
    pub some_total_us: u64,
}

impl Pressure {
    /// Parses a pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then the same with `full`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut pressure = Self::default();
        for line in text.lines() {
            let field = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            let average = field("avg10").and_then(|value| value.parse().ok())?;
            if line.starts_with("some") {
                pressure.some_avg10 = average;
                pressure.some_total_us = field("total").and_then(|value| value.parse().ok())?;
            } else {
                pressure.full_avg10 = average;
            }
        }
        Some(pressure)
    }
}

impl Stats {
    /// Whether the cgroup no longer existed when the sample was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.cpu_usage_us.is_none() && self.memory_current.is_none() && self.pids_current.is_none()
    }
}

impl Cgroup {
    /// Takes a sample. If the cgroup no longer exists, the sample is empty.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // The CPU time comes first: a rate is computed with the time at which the caller began.
        let mut stats = self.cpu_and_io();
        if let Some(dir) = self.dirs.get("memory") {
            if self.is_v2 { memory_v2(dir, &mut stats) } else { memory_v1(dir, &mut stats) }
        }
        if let Some(dir) = self.dirs.get("pids") {
            stats.pids_current = number(dir, "pids.current");
            stats.pids_limit = number(dir, "pids.max");
            stats.events.pids_max = keyed(&dir.join("pids.events"), "max");
        }
        stats
    }

    /// Takes a sample of the CPU time, the I/O and the peak of the memory only.
    #[must_use]
    pub(crate) fn totals(&self) -> Stats {
        let mut stats = self.cpu_and_io();
        let peak = if self.is_v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        stats.memory_peak = self.dirs.get("memory").and_then(|dir| number(dir, peak));
        stats
    }

    fn cpu_and_io(&self) -> Stats {
        let mut stats = Stats::default();
        if self.is_v2 {
            self.cpu_and_io_v2(&mut stats)
        } else {
            self.cpu_and_io_v1(&mut stats)
        }
        stats
    }

    fn cpu_and_io_v2(&self, stats: &mut Stats) {
        let Some(dir) = &self.v2 else { return };
        let text = crate::sys::file::read_control(dir.join("cpu.stat")).unwrap_or_default();
        stats.cpu_usage_us = value(&text, "usage_usec");
        stats.cpu_periods = value(&text, "nr_periods");
        stats.cpu_throttled_periods = value(&text, "nr_throttled");
        stats.cpu_throttled_us = value(&text, "throttled_usec");
        // One line per device: `8:0 rbytes=1 wbytes=2 …`.
        if let Ok(text) = crate::sys::file::read_control(dir.join("io.stat")) {
            let sum = |key: &str| {
                text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
            };
            (stats.io_read_bytes, stats.io_write_bytes) = (Some(sum("rbytes=")), Some(sum("wbytes=")));
        }
        let pressure = |name: &str| Pressure::parse(&crate::sys::file::read_control(dir.join(name)).ok()?);
        stats.cpu_pressure = pressure("cpu.pressure");
        stats.memory_pressure = pressure("memory.pressure");
        stats.io_pressure = pressure("io.pressure");
    }

    fn cpu_and_io_v1(&self, stats: &mut Stats) {
        if let Some(dir) = self.dirs.get("cpuacct") {
            stats.cpu_usage_us = number(dir, "cpuacct.usage").map(|nanos| nanos / 1000);
        }
        if let Some(dir) = self.dirs.get("cpu") {
            let text = crate::sys::file::read_control(dir.join("cpu.stat")).unwrap_or_default();
            stats.cpu_periods = value(&text, "nr_periods");
            stats.cpu_throttled_periods = value(&text, "nr_throttled");
            stats.cpu_throttled_us = value(&text, "throttled_time").map(|nanos| nanos / 1000);
        }
        if let Some(dir) = self.dirs.get("blkio") {
            // Lines of the form `8:0 Read 4096`, and a total at the end.
            let text = crate::sys::file::read_control(dir.join("blkio.throttle.io_service_bytes")).unwrap_or_default();
            let sum = |key: &str| {
                let line = |line: &str| -> Option<u64> {
                    let (left, bytes) = line.rsplit_once(' ')?;
                    left.ends_with(key).then(|| bytes.parse().ok())?
                };
                text.lines().filter_map(line).sum()
            };
            (stats.io_read_bytes, stats.io_write_bytes) = (Some(sum(" Read")), Some(sum(" Write")));
        }
    }
}

fn memory_v2(dir: &Path, stats: &mut Stats) {
    stats.memory_current = number(dir, "memory.current");
    let idle = keyed(&dir.join("memory.stat"), "inactive_file").unwrap_or(0);
    stats.memory_used = stats.memory_current.map(|bytes| bytes.saturating_sub(idle));
    stats.memory_peak = number(dir, "memory.peak");
    stats.memory_limit = number(dir, "memory.max");
    stats.swap_current = number(dir, "memory.swap.current");
    let events = crate::sys::file::read_control(dir.join("memory.events")).unwrap_or_default();
    stats.events.memory_high = value(&events, "high");
    stats.events.memory_max = value(&events, "max");
    stats.events.oom = value(&events, "oom");
    stats.events.oom_kill = value(&events, "oom_kill");
}

fn memory_v1(dir: &Path, stats: &mut Stats) {
    stats.memory_current = number(dir, "memory.usage_in_bytes");
    let idle = keyed(&dir.join("memory.stat"), "total_inactive_file").unwrap_or(0);
    stats.memory_used = stats.memory_current.map(|bytes| bytes.saturating_sub(idle));
    stats.memory_peak = number(dir, "memory.max_usage_in_bytes");
    // The kernel shows "no limit" as the largest multiple of the page size.
    stats.memory_limit = number(dir, "memory.limit_in_bytes").filter(|bytes| *bytes < 1 << 62);
    let total = number(dir, "memory.memsw.usage_in_bytes");
    stats.swap_current = total.zip(stats.memory_current).map(|(total, memory)| total.saturating_sub(memory));
    stats.events.memory_max = super::oom::failed_charges(dir);
    stats.events.oom_kill = keyed(&dir.join("memory.oom_control"), "oom_kill");
}

/// Parses the number in a file. `max` also results in `None`.
fn number(dir: &Path, file: &str) -> Option<u64> {
    crate::sys::file::read_control(dir.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines() {
        let text =
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=5\n";
        let expected = Pressure { some_avg10: 1.5, full_avg10: 0.25, some_total_us: 1234 };
        assert_eq!(Pressure::parse(text), Some(expected));
        assert_eq!(Pressure::parse("nonsense"), None);
    }
}
