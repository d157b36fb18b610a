//! Samples of the resources that running containers use.
//!
//! A sample of a container combines its cgroup's counters, the rates since the previous sample, the traffic of its own
//! network and its shares of GPUs. A [`Sampler`] keeps only the previous counters; nothing is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cgroup::{Cgroup, Host, Stats};
use crate::gpu::usage::{self, Share, Usage};
use crate::gpu::{self, Inventory, lease};
use crate::launch;
use crate::record::{Entry, Phase, Records};
use crate::report::Report;
use crate::request::NetworkMode;

/// One sample of a running container, with rates since the previous sample.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Sample {
    pub id: String,
    pub name: String,
    /// The name of the user who made the container, or the UID.
    pub owner: String,
    pub paused: bool,
    /// Percentage of one CPU. `None` in the first sample of a container.
    pub cpu_percent: Option<f64>,
    /// Percentage of throttled periods since the previous sample.
    pub throttled_percent: Option<f64>,
    /// Percentage of the memory limit.
    pub memory_percent: Option<f64>,
    /// Bytes on the container's own network. `None` if it has none.
    pub net_received_bytes: Option<u64>,
    pub net_sent_bytes: Option<u64>,
    #[serde(flatten)]
    pub stats: Stats,
    /// Whether GPUs were requested for the container.
    #[serde(skip)]
    pub has_gpus: bool,
    /// The GPUs that the container holds or computes on, once [`share_gpus`] has run.
    pub gpus: Vec<Share>,
}

/// Samples the containers of one run directory.
pub(crate) struct Sampler<'a> {
    records: &'a Records,
    cgroups: Host,
    /// The previous counters of each running container.
    before: BTreeMap<String, (Instant, Stats)>,
    /// Names of users. A look-up may ask a directory service, so it is not repeated.
    names: BTreeMap<u32, String>,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(records: &'a Records) -> Result<Self, Report> {
        let cgroups = Host::probe(Path::new("/"))?;
        Ok(Self { records, cgroups, before: BTreeMap::new(), names: BTreeMap::new() })
    }

    /// Samples the running containers among `names`, or all running ones if there are no names.
    pub(crate) fn containers(&mut self, names: &[String]) -> Result<Vec<Sample>, Report> {
        let entries: Vec<Entry> = if names.is_empty() {
            // Unreadable records are skipped. `ps` reports them, and repeating the message with every sample would
            // not help.
            self.records.list_all()?.0
        } else {
            names.iter().map(|name| self.records.find(name)).collect::<Result<_, _>>()?
        };
        let samples: Result<Vec<_>, _> = entries.iter().map(|entry| self.container(entry)).collect();
        let samples: Vec<Sample> = samples?.into_iter().flatten().collect();
        self.before.retain(|id, _| samples.iter().any(|sample| sample.id == *id));
        Ok(samples)
    }

    fn container(&mut self, entry: &Entry) -> Result<Option<Sample>, Report> {
        let (record, state) = (&entry.record, entry.state_shown()?);
        if state.phase != Phase::Running {
            return Ok(None);
        }
        let Some(cgroup) = Cgroup::open(&self.cgroups, &record.cgroup)? else { return Ok(None) };
        let (now, stats) = (Instant::now(), cgroup.stats());
        let earlier = self.before.insert(record.id.clone(), (now, stats.clone()));
        let rates = earlier.map_or_else(Rates::default, |(then, earlier)| rates(&earlier, &stats, now - then));
        let own_network = state.pid.filter(|_| record.request.network == NetworkMode::Bridge);
        let (received, sent) = own_network.and_then(traffic).unzip();
        Ok(Some(Sample {
            id: record.id.clone(),
            name: record.name.clone(),
            owner: self.names.entry(record.owner.uid).or_insert_with(|| record.owner.name()).clone(),
            paused: state.paused,
            cpu_percent: rates.cpu_percent,
            throttled_percent: rates.throttled_percent,
            memory_percent: stats.memory_used.zip(stats.memory_limit).map(|(used, limit)| percent(used, limit)),
            net_received_bytes: received,
            net_sent_bytes: sent,
            stats,
            has_gpus: !state.gpus.is_empty(),
            gpus: Vec::new(),
        }))
    }

    /// Returns the usage of the host's GPUs. Without a driver that answers, there are none.
    ///
    /// This starts a process that queries the driver, so it costs much more than the other samples.
    pub(crate) fn gpus(&self) -> Result<Vec<Usage>, Report> {
        let inventory = gpu::inventory(&launch::driver_root()).ok();
        Ok(inventory.map(|inventory| gpu_usage(&inventory, self.records)).transpose()?.unwrap_or_default())
    }
}

/// Returns the usage of each GPU by containers and processes.
pub(crate) fn gpu_usage(inventory: &Inventory, records: &Records) -> Result<Vec<Usage>, Report> {
    let leases = lease::living(&records.run_dir().join("gpus"))?;
    let ids = records.list()?.into_iter().map(|entry| entry.record.id).collect();
    Ok(usage::usage(inventory, &leases, &ids, Path::new("/proc")))
}

/// Adds to each container its shares of the GPUs.
pub(crate) fn share_gpus(samples: &mut [Sample], gpus: &[Usage]) {
    samples.iter_mut().for_each(|sample| sample.gpus = usage::shares(gpus, &sample.id));
}

#[derive(Debug, Default, PartialEq)]
struct Rates {
    cpu_percent: Option<f64>,
    throttled_percent: Option<f64>,
}

/// Returns the rates between two samples. A counter that became smaller belongs to a new cgroup, so it has no rate.
fn rates(earlier: &Stats, now: &Stats, elapsed: Duration) -> Rates {
    let grown = |of: fn(&Stats) -> Option<u64>| of(now)?.checked_sub(of(earlier)?);
    let elapsed = elapsed.as_secs_f64() * 1e6;
    let throttled = grown(|stats| stats.cpu_throttled_periods).zip(grown(|stats| stats.cpu_periods));
    Rates {
        cpu_percent: grown(|stats| stats.cpu_usage_us).map(|used| 100.0 * used as f64 / elapsed),
        throttled_percent: throttled.map(|(throttled, periods)| percent(throttled, periods)),
    }
}

/// `part` as a percentage of `whole`, and 0 of nothing.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// Returns the bytes received and sent in a process's network namespace (proc_pid_net(5), `dev`), excluding loopback.
fn traffic(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(parse_traffic(&text))
}

/// Parses two title lines, then `eth0: RECEIVED packets errs drop fifo frame compressed multicast SENT …`.
fn parse_traffic(text: &str) -> (u64, u64) {
    let interfaces = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    interfaces.fold((0, 0), |(received, sent), (_, numbers)| {
        let field =
            |index: usize| numbers.split_whitespace().nth(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        (received + field(0), sent + field(8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_without_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:     999       1    0    0    0     0          0         0      999       1    0    0    0     0       0          0\n  eth0:    1200      10    0    0    0     0          0         0      340       4    0    0    0     0       0          0\n";
        assert_eq!(parse_traffic(text), (1200, 340));
    }

    #[test]
    fn rates_between_two_samples() {
        let of = |usage, periods, throttled| Stats {
            cpu_usage_us: Some(usage),
            cpu_periods: Some(periods),
            cpu_throttled_periods: Some(throttled),
            ..Stats::default()
        };
        for (earlier, now, seconds, cpu, throttled) in [
            (of(0, 0, 0), of(1_500_000, 10, 4), 1, Some(150.0), Some(40.0)),
            (of(100, 10, 4), of(1_000_100, 10, 4), 2, Some(50.0), Some(0.0)),
            (of(100, 10, 4), of(50, 1, 0), 1, None, None),
            (Stats::default(), of(50, 1, 0), 1, None, None),
        ] {
            let found = rates(&earlier, &now, Duration::from_secs(seconds));
            assert_eq!(found, Rates { cpu_percent: cpu, throttled_percent: throttled });
        }
    }
}
