//! What a container does, as far as its cgroup and /proc show it without a question to anyone.

use std::collections::BTreeMap;
use std::time::Instant;

use super::container::Container;
use crate::sys::process;

/// CPU use up to this share of one CPU counts as none. A Jupyter server with idle kernels uses about one percent.
const CPU_SHARE: f64 = 0.05;
/// Reads and writes up to this rate, in bytes per second, count as none.
const IO_RATE: f64 = 65_536.0;

/// A sample of the counters of a container.
#[derive(Debug)]
pub(crate) struct Activity {
    at: Instant,
    cpu_us: Option<u64>,
    /// Bytes, as the cgroup counts them. Version 1 does not count buffered writes.
    disk: u64,
    /// Bytes that each process has read and written, also from the page cache.
    bytes: BTreeMap<i32, u64>,
}

impl Activity {
    /// Whether the container has used more than a negligible amount of CPU and I/O since an earlier sample.
    pub(crate) fn is_work_since(&self, earlier: &Self) -> bool {
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        let cpu = self.cpu_us.zip(earlier.cpu_us).map_or(0, |(now, then)| now.saturating_sub(then)) as f64 / 1e6;
        let grown = |(pid, now): (&i32, &u64)| now.saturating_sub(earlier.bytes.get(pid).copied().unwrap_or(0));
        let own: u64 = self.bytes.iter().map(grown).sum();
        let disk = self.disk.saturating_sub(earlier.disk);
        seconds > 0.0 && (cpu / seconds > CPU_SHARE || own.max(disk) as f64 / seconds > IO_RATE)
    }
}

impl Container {
    /// Samples the counters. A controller or process that cannot be read counts as inactive.
    pub(crate) fn activity(&self) -> Activity {
        let stats = self.cgroup.stats();
        let pids = self.cgroup.pids().unwrap_or_default();
        Activity {
            at: Instant::now(),
            cpu_us: stats.cpu_usage_us,
            disk: stats.io_read_bytes.unwrap_or(0) + stats.io_write_bytes.unwrap_or(0),
            bytes: pids.into_iter().map(|pid| (pid, bytes_of(pid))).collect(),
        }
    }

    /// Whether a command of `exec` runs in the container. Its parent is outside the container, and is neither this process
    /// nor one of its helpers, which run health checks.
    pub(crate) fn has_exec_session(&self) -> bool {
        let pids = self.cgroup.pids().unwrap_or_default();
        let own = std::process::id() as i32;
        let is_from_outside = |pid: &i32| {
            let Some(parent) = process::parent(*pid).filter(|parent| *parent != own && !pids.contains(parent)) else {
                return false;
            };
            *pid != self.pid && process::parent(parent) != Some(own)
        };
        pids.iter().any(is_from_outside)
    }
}

/// The bytes that a process has read and written (proc_pid_io(5): `rchar`, `wchar`).
fn bytes_of(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let number =
        |line: &str| line.split_once(": ").filter(|(key, _)| matches!(*key, "rchar" | "wchar"))?.1.parse().ok();
    text.lines().filter_map(number).fold(0, |sum: u64, bytes: u64| sum.saturating_add(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_is_more_than_a_little_cpu_or_io() {
        let at = Instant::now();
        let before = Activity { at, cpu_us: Some(1_000_000), disk: 0, bytes: [(1, 500), (2, 9)].into() };
        let later = |cpu_us: u64, disk: u64, bytes: &[(i32, u64)]| {
            let at = at + Duration::from_secs(10);
            Activity { at, cpu_us: Some(cpu_us), disk, bytes: bytes.iter().copied().collect() }.is_work_since(&before)
        };
        assert!(!later(1_400_000, 600_000, &[(1, 600_000)]));
        assert!(later(1_600_000, 0, &[]), "CPU");
        assert!(later(1_000_000, 700_000, &[]), "a process that has ended");
        assert!(later(1_000_000, 0, &[(1, 300_500), (3, 400_000)]), "a new process, and an old one");
        assert!(bytes_of(std::process::id() as i32) > 0);
    }
}
