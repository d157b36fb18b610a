//! Samples of the resources that running containers use.
//!
//! A sample of a container combines its cgroup's counters, the rates since the previous sample, the traffic of its own
//! network and its shares of GPUs. A [`Sampler`] keeps only the previous counters and what it has read of unchanged
//! records; nothing is written.

mod host;
mod known;
mod rates;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

pub(crate) use host::{HostGpu, HostSample, HostSampler};
use known::Known;
use rates::{Rates, percent, rates};
use serde::Serialize;

use crate::cgroup::{Cgroup, Host, Stats};
use crate::gpu::usage::{self, Share, Usage};
use crate::gpu::{self, Inventory, lease};
use crate::launch;
use crate::record::{Entry, Phase, Records, State};
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
    /// The records, states and cgroups of the running containers, as of the previous sample.
    known: BTreeMap<String, Known>,
    /// Names of users. A look-up may ask a directory service, so it is not repeated.
    names: BTreeMap<u32, String>,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(records: &'a Records) -> Result<Self, Report> {
        let cgroups = Host::probe(Path::new("/"))?;
        Ok(Self { records, cgroups, before: BTreeMap::new(), known: BTreeMap::new(), names: BTreeMap::new() })
    }

    /// Samples all running containers. Records and states that have not changed since the previous sample are not read
    /// again, so that a screen that is always open costs little.
    pub(crate) fn all(&mut self) -> Result<Vec<Sample>, Report> {
        let mut earlier = std::mem::take(&mut self.known);
        let mut samples = Vec::new();
        for id in self.records.ids_of_all()? {
            let Some(known) = Known::read(self.records, &self.cgroups, &id, earlier.remove(&id)) else { continue };
            let sample = known.cgroup().map(|cgroup| self.sample(known.entry(), known.state(), cgroup));
            // The cgroup of a container that has just ended is gone.
            samples.extend(sample.filter(|sample| !sample.stats.is_empty()));
            self.known.insert(id, known);
        }
        self.before.retain(|id, _| samples.iter().any(|sample| sample.id == *id));
        Ok(samples)
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
        let cgroup = Cgroup::open(&self.cgroups, &record.cgroup)?;
        Ok(cgroup.map(|cgroup| self.sample(entry, &state, &cgroup)))
    }

    fn sample(&mut self, entry: &Entry, state: &State, cgroup: &Cgroup) -> Sample {
        let record = &entry.record;
        let (now, stats) = (Instant::now(), cgroup.stats());
        let earlier = self.before.insert(record.id.clone(), (now, stats.clone()));
        let rates = earlier.map_or_else(Rates::default, |(then, earlier)| rates(&earlier, &stats, now - then));
        let own_network = state.pid.filter(|_| record.request.network == NetworkMode::Bridge);
        let (received, sent) = own_network.and_then(traffic).unzip();
        Sample {
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
        }
    }

    /// Returns the usage of the host's GPUs. Without a driver that answers, there are none.
    ///
    /// This starts a process that queries the driver, so it costs much more than the other samples.
    pub(crate) fn gpus(&self) -> Result<Vec<Usage>, Report> {
        gpus(self.records)
    }
}

/// Returns the usage of the host's GPUs, like [`Sampler::gpus`].
pub(crate) fn gpus(records: &Records) -> Result<Vec<Usage>, Report> {
    let Ok(inventory) = gpu::inventory(&launch::driver_root()) else { return Ok(Vec::new()) };
    usage_by(&inventory, records, &records.ids_of_all()?.into_iter().collect())
}

/// Returns the usage of each GPU by containers and processes.
pub(crate) fn gpu_usage(inventory: &Inventory, records: &Records) -> Result<Vec<Usage>, Report> {
    usage_by(inventory, records, &records.list()?.into_iter().map(|entry| entry.record.id).collect())
}

fn usage_by(inventory: &Inventory, records: &Records, ids: &BTreeSet<String>) -> Result<Vec<Usage>, Report> {
    let leases = lease::living(&records.run_dir().join("gpus"))?;
    Ok(usage::usage(inventory, &leases, ids, Path::new("/proc")))
}

/// Adds to each container its shares of the GPUs.
pub(crate) fn share_gpus(samples: &mut [Sample], gpus: &[Usage]) {
    samples.iter_mut().for_each(|sample| sample.gpus = usage::shares(gpus, &sample.id));
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
}
