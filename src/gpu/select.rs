//! Selects the units that a container gets.
//!
//! `all` and `device=…` are explicit: the container shares these units with others, and the caller gets a notice that
//! names them. `N` and `free:N` select idle units: no lease, no compute process, and almost no memory in use. Among
//! these, units near the container's CPUs and near each other are preferred. With `--share-gpu`, `N` and `free:N`
//! select the least used units that no container has reserved.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::{Busy, Reason};
use super::inventory::Unit;
use super::lease::{Lease, Ledger, Taker};
use super::root::inside;
use super::selection::Selection;
use super::vendor::{Container, Gpus};
use super::{step, usage};
use crate::request::{GpuRequest, Which};
use crate::units::CpuSet;

/// A GPU without compute processes counts as idle if less memory than this is in use. A desktop uses some, and so does
/// a driver after its start.
const IDLE_MEMORY: u64 = 512 << 20;

/// Selects the units for a request.
pub(super) fn select<'a>(
    request: &GpuRequest,
    share: bool,
    container: &Container<'_>,
    gpus: &'a dyn Gpus,
    ledger: &Ledger,
) -> Result<Selection<'a>, Reason> {
    let inventory = gpus.inventory();
    let taker = &container.taker;
    let mut opaque = Vec::new();
    let has = |unit: &&Unit| container.step.is_none() || step::has(container.root, unit);
    let present: Vec<&Unit> = inventory.units.iter().filter(has).collect();
    if let Some(step) = container.step.filter(|_| present.is_empty()) {
        return Err(Reason::NoneInStep { step: step.to_owned() });
    }
    let (units, exclusive) = match &request.which {
        Which::All => (present, false),
        Which::Devices(devices) => {
            let mut selected: Vec<&Unit> = Vec::new();
            for device in devices {
                let found = gpus.resolve(device);
                if found.is_empty() && !gpus.is_opaque(device) {
                    return Err(Reason::NoSuchGpu { device: device.clone(), there: inventory.listing() });
                }
                if found.is_empty() {
                    opaque.push(device.clone());
                }
                for unit in found.into_iter().map(|at| &inventory.units[at]) {
                    if let Some(step) = container.step.filter(|_| !has(&unit)) {
                        let there = super::inventory::listing(&present);
                        return Err(Reason::NotInStep { device: device.clone(), step: step.to_owned(), there });
                    }
                    if !selected.iter().any(|other| other.name == unit.name) {
                        selected.push(unit);
                    }
                }
            }
            (selected, false)
        }
        Which::Count(wanted) | Which::Free(wanted) => {
            let nodes = numa_nodes(container.root, container.cpus);
            let search = Search { share, taker, ledger, nodes: &nodes };
            (search.idle(&present, *wanted, container.step)?, !share)
        }
    };
    let shared = units.iter().filter_map(|unit| shared_with(taker, unit, ledger)).collect();
    let by_count = matches!(request.which, Which::Count(_) | Which::Free(_));
    Ok(Selection { units, opaque, exclusive, by_count, shared })
}

/// The search for a number of units.
struct Search<'s> {
    share: bool,
    /// The container that takes the units. Its own lease from an earlier run does not count.
    taker: &'s Taker,
    ledger: &'s Ledger,
    /// NUMA nodes of the container's CPUs.
    nodes: &'s BTreeSet<u32>,
}

impl Search<'_> {
    fn idle<'a>(&self, units: &[&'a Unit], wanted: u32, step: Option<&str>) -> Result<Vec<&'a Unit>, Reason> {
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        if units.len() < count {
            let there = units.len();
            return Err(match step {
                Some(step) => Reason::TooManyInStep { wanted, there, step: step.to_owned() },
                None => Reason::TooMany { wanted, there },
            });
        }
        let mut candidates: Vec<&Unit> = units.iter().copied().filter(|unit| self.may_have(unit)).collect();
        if candidates.len() < count {
            let busy = units.iter().filter(|unit| !self.may_have(unit)).map(|unit| self.holders(unit));
            let (busy, free) = (Busy::list(busy.collect::<Vec<_>>().into_iter()), candidates.len());
            return Err(match self.share {
                true => Reason::NoneShareable { wanted, free, busy },
                false => Reason::NoneIdle { wanted, free, busy },
            });
        }
        // The sort is stable, so units that compare equal stay in the host's order.
        candidates.sort_by_key(|unit| {
            let used = unit.memory.map_or(0, |memory| memory.used);
            let others = self.ledger.on(&unit.name, &self.taker.id).count();
            let near = unit.numa_node.is_none_or(|node| self.nodes.is_empty() || self.nodes.contains(&node));
            (self.share && !is_idle(unit), if self.share { (others, used) } else { (0, 0) }, !near)
        });
        Ok(self.together(&candidates, count))
    }

    fn may_have(&self, unit: &Unit) -> bool {
        let mut leases = self.ledger.on(&unit.name, &self.taker.id);
        match self.share {
            true => !leases.any(|lease| lease.exclusive),
            false => is_idle(unit) && leases.next().is_none(),
        }
    }

    /// Of equally good candidates, prefers those of one NUMA node, if one node has enough of them.
    fn together<'a>(&self, candidates: &[&'a Unit], count: usize) -> Vec<&'a Unit> {
        let first: Vec<&Unit> = candidates.iter().copied().take(count).collect();
        if self.share || first.iter().all(|unit| unit.numa_node == first[0].numa_node) {
            return first;
        }
        let nodes: Vec<Option<u32>> = candidates.iter().map(|unit| unit.numa_node).collect();
        let fits = |node: &Option<u32>| {
            let near = self.nodes.is_empty() || node.is_none_or(|node| self.nodes.contains(&node));
            near && nodes.iter().filter(|other| *other == node).count() >= count
        };
        match nodes.iter().find(|node| fits(node)) {
            Some(node) => candidates.iter().copied().filter(|unit| unit.numa_node == *node).take(count).collect(),
            None => first,
        }
    }

    /// `GPU 0 (GPU-…): container `lab` of ada for 2 hours; 10.2 GiB of 80.0 GiB in use by python3 [4242] of ada`
    fn holders(&self, unit: &Unit) -> String {
        let leases = self.ledger.on(&unit.name, &self.taker.id);
        let mut parts: Vec<String> = leases.map(|lease| holder(lease, self.taker.now)).collect();
        let processes: Vec<String> = unit.processes.iter().map(|process| usage::process_name(process.pid)).collect();
        let by = if processes.is_empty() { String::new() } else { format!(" by {}", processes.join(", ")) };
        if let Some(memory) = unit.memory.filter(|memory| !processes.is_empty() || memory.used >= IDLE_MEMORY) {
            parts.push(format!("{} of {} in use{by}", gib(memory.used), gib(memory.total)));
        } else if !by.is_empty() {
            parts.push(format!("in use{by}"));
        }
        format!("GPU {} ({}): {}", unit.index, unit.name, parts.join("; "))
    }
}

fn is_idle(unit: &Unit) -> bool {
    unit.processes.is_empty() && unit.memory.is_none_or(|memory| memory.used < IDLE_MEMORY)
}

/// Returns the notice for a unit that other containers hold.
pub(super) fn shared_with(taker: &Taker, unit: &Unit, ledger: &Ledger) -> Option<String> {
    let others: Vec<String> = ledger.on(&unit.name, &taker.id).map(|lease| holder(lease, taker.now)).collect();
    (!others.is_empty()).then(|| format!("GPU {} is also held by {}", unit.index, others.join(" and ")))
}

fn holder(lease: &Lease, now: u64) -> String {
    format!("container `{}` of {} for {}", lease.name, lease.user, crate::units::age(now.saturating_sub(lease.since)))
}

/// `10.2 GiB`
#[must_use]
pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Returns the NUMA nodes of a set of CPUs, from sysfs below `root`. The result is empty if the container's CPUs are
/// not restricted, or the kernel has no NUMA nodes.
fn numa_nodes(root: &Path, cpus: Option<&CpuSet>) -> BTreeSet<u32> {
    let Some(cpus) = cpus else { return BTreeSet::new() };
    let dir = inside(root, Path::new("/sys/devices/system/node"));
    let nodes = std::fs::read_dir(dir).into_iter().flatten().flatten();
    nodes
        .filter_map(|entry| {
            let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let list: CpuSet = std::fs::read_to_string(entry.path().join("cpulist")).ok()?.trim().parse().ok()?;
            (!list.0.is_disjoint(&cpus.0)).then_some(node)
        })
        .collect()
}
