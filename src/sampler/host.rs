//! Samples of the host: CPU, memory, load, pressure and GPUs.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::rates::percent;
use crate::cgroup::Pressure;
use crate::gpu::usage::Usage;
use crate::sys::file::read_text;

/// One sample of the host. `None` means that this kernel does not provide the value.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct HostSample {
    pub name: String,
    /// The number of CPUs that are online.
    pub cpus: usize,
    /// Percentage of all CPUs together. `None` in the first sample.
    pub cpu_percent: Option<f64>,
    /// The average number of tasks that ran or waited, over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Bytes.
    pub memory_total: Option<u64>,
    /// Bytes that processes and the kernel use, without what can be reclaimed.
    pub memory_used: Option<u64>,
    /// Bytes.
    pub swap_total: Option<u64>,
    pub swap_used: Option<u64>,
    /// Pressure stall information. The kernel may be built or booted without it.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
    pub gpus: Vec<HostGpu>,
}

/// A GPU or MIG device of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct HostGpu {
    /// `0`, or `0:1` for MIG device 1 of GPU 0.
    pub index: String,
    /// The UUID.
    pub name: String,
    pub model: String,
    /// Bytes.
    pub memory_used: Option<u64>,
    pub memory_total: Option<u64>,
    /// Percentage of the driver's last sampling period in which a program computed.
    pub utilization: Option<u32>,
}

impl From<&Usage> for HostGpu {
    fn from(usage: &Usage) -> Self {
        let unit = &usage.unit;
        Self {
            index: unit.index.clone(),
            name: unit.name.clone(),
            model: unit.model.clone(),
            memory_used: unit.memory.map(|memory| memory.used),
            memory_total: unit.memory.map(|memory| memory.total),
            utilization: unit.utilization,
        }
    }
}

/// Samples one host. Keeps the previous counters of its CPUs.
pub(crate) struct HostSampler {
    root: PathBuf,
    name: String,
    before: Option<Ticks>,
}

impl HostSampler {
    /// `root` is the root directory of the host (`/`, or a test fixture).
    #[must_use]
    pub(crate) fn new(root: &Path) -> Self {
        let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { root: root.to_path_buf(), name, before: None }
    }

    pub(crate) fn sample(&mut self, gpus: &[Usage]) -> HostSample {
        let read = |path: &str| read_text(self.root.join(path)).unwrap_or_default();
        let pressure = |name: &str| Pressure::parse(&read_text(self.root.join("proc/pressure").join(name)).ok()?);
        let (stat, memory) = (read("proc/stat"), read("proc/meminfo"));
        let (load, pressures) = (parse_load(&read("proc/loadavg")), ["cpu", "memory", "io"].map(pressure));
        let ticks = Ticks::parse(&stat);
        let before = std::mem::replace(&mut self.before, ticks);
        let bytes = |key: &str| meminfo(&memory, key);
        let used = |total: &str, free: &str| Some(bytes(total)?.saturating_sub(bytes(free)?));
        let [cpu_pressure, memory_pressure, io_pressure] = pressures;
        HostSample {
            name: self.name.clone(),
            cpus: stat.lines().filter(|line| is_one_cpu(line)).count(),
            cpu_percent: before.zip(ticks).and_then(|(before, now)| now.busy_since(before)),
            load,
            memory_total: bytes("MemTotal"),
            memory_used: used("MemTotal", "MemAvailable"),
            swap_total: bytes("SwapTotal"),
            swap_used: used("SwapTotal", "SwapFree"),
            cpu_pressure,
            memory_pressure,
            io_pressure,
            gpus: gpus.iter().map(HostGpu::from).collect(),
        }
    }
}

/// Whether a line of /proc/stat belongs to one CPU: `cpu0 …`.
fn is_one_cpu(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The time of all CPUs since boot, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    total: u64,
}

impl Ticks {
    /// Parses the first line of /proc/stat (proc_stat(5)): `cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL …`. The
    /// time of guests is contained in USER and NICE.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        let idle = fields.get(3)? + fields.get(4).unwrap_or(&0);
        Some(Self { idle, total: fields.iter().sum() })
    }

    /// The busy percentage since an earlier moment. `None` if no tick has passed.
    fn busy_since(self, earlier: Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        // The kernel's idle time may go back a little.
        let idle = self.idle.saturating_sub(earlier.idle).min(total);
        Some(percent(total - idle, total))
    }
}

/// Parses the first numbers of /proc/loadavg: `0.52 0.40 0.31 …`.
fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

/// Returns the bytes of a line of /proc/meminfo: `MemTotal:       16318480 kB`.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/stat", "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n");
        write(
            "proc/meminfo",
            "MemTotal: 4096 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
        );
        write("proc/loadavg", "0.52 0.40 0.31 1/123 4567\n");
        write("proc/pressure/io", "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n");
        let mut sampler = HostSampler::new(root.path());
        let first = sampler.sample(&[]);
        assert_eq!((first.cpus, first.cpu_percent, first.load), (2, None, Some([0.52, 0.40, 0.31])));
        assert_eq!((first.memory_total, first.memory_used), (Some(4 << 20), Some(3 << 20)));
        assert_eq!((first.swap_total, first.swap_used, first.cpu_pressure), (Some(0), Some(0), None));
        assert_eq!(first.io_pressure.unwrap().some_avg10, 1.5);
        write("proc/stat", "cpu  150 0 125 750 125 0 0 0 90 0\n");
        assert_eq!(sampler.sample(&[]).cpu_percent, Some(50.0));
        assert_eq!(sampler.sample(&[]).cpu_percent, None, "no time has passed");
    }

    #[test]
    fn damaged_files_are_absent_values() {
        let text = ["", "cpu", "cpu x y", "cpu 1 2 3", "MemTotal:\nMemTotal: kB", "nonsense"];
        for text in text {
            assert_eq!((Ticks::parse(text), parse_load(text), meminfo(text, "MemTotal")), (None, None, None), "{text}");
        }
        let (earlier, later) = (Ticks { idle: 9, total: 10 }, Ticks { idle: 5, total: 20 });
        assert_eq!((later.busy_since(earlier), earlier.busy_since(later)), (Some(100.0), None));
    }
}
