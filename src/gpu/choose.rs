//! Which of the host's units a container gets.
//!
//! `all` and `device=…` are what a person insists on: they share, and say with whom. `N` and `free:N` take units that are idle: nobody's lease,
//! no process that computes, next to no memory in use; near the container's CPUs and near each other where there is a choice. With
//! `--share-gpu` they take the least used ones that nobody has for himself.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::GpuError;
use super::host::inside;
use super::inventory::{Inventory, Unit};
use super::lease::{Lease, Ledger, Taker};
use super::selection::{Selection, Which};
use super::usage;
use crate::units::CpuSet;

/// Memory in use below which a GPU without a process that computes counts as idle: a desktop's, or what is left of a driver's start.
const IDLE_MEMORY: u64 = 512 << 20;

/// What was decided.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub units: Vec<&'a Unit>,
    /// Names that only NVIDIA's own tool can judge, because this host's NVML cannot be asked.
    pub unknown: Vec<String>,
    pub exclusive: bool,
    /// A person said how many, not which.
    pub by_number: bool,
    /// `GPU 0 is also used by …`
    pub shared: Vec<String>,
}

/// What the choice depends on, beside the host.
pub(super) struct Wish<'a> {
    pub asked: &'a str,
    pub selection: &'a Selection,
    pub share: bool,
    /// Its own lease, of an earlier run, is no hindrance.
    pub taker: &'a Taker,
    /// NUMA nodes of the container's CPUs.
    pub nodes: &'a BTreeSet<u32>,
}

pub(super) fn choose<'a>(wish: &Wish<'_>, inventory: &'a Inventory, ledger: &Ledger) -> Result<Choice<'a>, GpuError> {
    let mut unknown = Vec::new();
    let (units, exclusive) = match &wish.selection.which {
        Which::All => (inventory.units.iter().collect(), false),
        Which::Devices(devices) => {
            let mut chosen: Vec<&Unit> = Vec::new();
            for device in devices {
                let found = inventory.resolve(device);
                match (found.is_empty(), only_nvidia_knows(inventory, device)) {
                    (true, true) => unknown.push(device.clone()),
                    (true, false) => {
                        let there = inventory.listing();
                        let (asked, device) = (wish.asked.to_owned(), device.clone());
                        return Err(GpuError::NoSuchGpu { asked, device, there });
                    }
                    (false, _) => {
                        let new = found.into_iter().map(|at| &inventory.units[at]);
                        let new: Vec<&Unit> =
                            new.filter(|unit| !chosen.iter().any(|other| other.name == unit.name)).collect();
                        chosen.extend(new);
                    }
                }
            }
            (chosen, false)
        }
        Which::Count(wanted) | Which::Free(wanted) => (free(wish, inventory, ledger, *wanted)?, !wish.share),
    };
    let shared = units.iter().filter_map(|unit| shared_with(wish.taker, unit, ledger)).collect();
    let by_number = matches!(wish.selection.which, Which::Count(_) | Which::Free(_));
    Ok(Choice { units, unknown, exclusive, by_number, shared })
}

/// A name of the right shape on a host that does not tell its names.
pub(super) fn only_nvidia_knows(inventory: &Inventory, device: &str) -> bool {
    let lower = device.to_ascii_lowercase();
    let mig = lower.starts_with("mig-")
        || device.contains("gpu:")
        || device.split(':').all(|part| part.parse::<u16>().is_ok());
    let hidden = lower.starts_with("gpu-") && inventory.host.gpus.iter().any(|gpu| gpu.uuid.is_none());
    inventory.readings.is_err() && (hidden || (mig && device.contains(['-', ':'])))
}

fn free<'a>(
    wish: &Wish<'_>,
    inventory: &'a Inventory,
    ledger: &Ledger,
    wanted: u32,
) -> Result<Vec<&'a Unit>, GpuError> {
    let count = usize::try_from(wanted).unwrap_or(usize::MAX);
    let there = inventory.units.len();
    if there < count {
        return Err(GpuError::TooMany { asked: wish.asked.to_owned(), wanted, there });
    }
    let may_have = |unit: &&Unit| match wish.share {
        true => !ledger.on(&unit.name, &wish.taker.id).any(|lease| lease.exclusive),
        false => is_idle(unit) && ledger.on(&unit.name, &wish.taker.id).next().is_none(),
    };
    let mut candidates: Vec<&Unit> = inventory.units.iter().filter(may_have).collect();
    if candidates.len() < count {
        let busy: Vec<&Unit> = inventory.units.iter().filter(|unit| !may_have(unit)).collect();
        let busy = Busy::list(busy.into_iter().map(|unit| holders(wish, unit, ledger)));
        let (asked, free) = (wish.asked.to_owned(), candidates.len());
        return Err(match wish.share {
            true => GpuError::NoneShared { asked, wanted, free, busy },
            false => GpuError::NoneFree { asked, wanted, free, busy },
        });
    }
    // Sorting is stable: among equals, the host's order counts.
    candidates.sort_by_key(|unit| {
        let used = unit.memory.map_or(0, |memory| memory.used);
        let others = ledger.on(&unit.name, &wish.taker.id).count();
        let near = unit.numa_node.is_none_or(|node| wish.nodes.is_empty() || wish.nodes.contains(&node));
        (wish.share && !is_idle(unit), if wish.share { (others, used) } else { (0, 0) }, !near)
    });
    Ok(together(&candidates, count, wish))
}

/// Of candidates that are equally good, those of one NUMA node, where one has enough of them.
fn together<'a>(candidates: &[&'a Unit], count: usize, wish: &Wish<'_>) -> Vec<&'a Unit> {
    let first: Vec<&Unit> = candidates.iter().copied().take(count).collect();
    if wish.share || first.iter().all(|unit| unit.numa_node == first[0].numa_node) {
        return first;
    }
    let nodes: Vec<Option<u32>> = candidates.iter().map(|unit| unit.numa_node).collect();
    let fits = |node: &Option<u32>| {
        let near = wish.nodes.is_empty() || node.is_none_or(|node| wish.nodes.contains(&node));
        near && nodes.iter().filter(|other| *other == node).count() >= count
    };
    match nodes.iter().find(|node| fits(node)) {
        Some(node) => candidates.iter().copied().filter(|unit| unit.numa_node == *node).take(count).collect(),
        None => first,
    }
}

pub(super) fn is_idle(unit: &Unit) -> bool {
    unit.processes.is_empty() && unit.memory.is_none_or(|memory| memory.used < IDLE_MEMORY)
}

pub(super) fn shared_with(taker: &Taker, unit: &Unit, ledger: &Ledger) -> Option<String> {
    let others: Vec<String> = ledger.on(&unit.name, &taker.id).map(|lease| who(lease, taker.now)).collect();
    (!others.is_empty()).then(|| format!("GPU {} is also held by {}", unit.index, others.join(" and ")))
}

/// `GPU 0 (GPU-…): container `lab` of ada for 2 hours; 10.2 GiB of 80.0 GiB in use by python3 [4242] of ada`
fn holders(wish: &Wish<'_>, unit: &Unit, ledger: &Ledger) -> String {
    let mut words: Vec<String> =
        ledger.on(&unit.name, &wish.taker.id).map(|lease| who(lease, wish.taker.now)).collect();
    let processes: Vec<String> = unit.processes.iter().map(|process| usage::process_name(process.pid)).collect();
    let by = if processes.is_empty() { String::new() } else { format!(" by {}", processes.join(", ")) };
    if let Some(memory) = unit.memory.filter(|memory| !processes.is_empty() || memory.used >= IDLE_MEMORY) {
        words.push(format!("{} of {} in use{by}", gib(memory.used), gib(memory.total)));
    } else if !by.is_empty() {
        words.push(format!("in use{by}"));
    }
    format!("GPU {} ({}): {}", unit.index, unit.name, words.join("; "))
}

fn who(lease: &Lease, now: u64) -> String {
    format!("container `{}` of {} for {}", lease.name, lease.user, crate::units::age(now.saturating_sub(lease.since)))
}

/// `10.2 GiB`
#[must_use]
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// One line for each unit that cannot be had, as a chain of causes.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy {
    line: String,
    next: Option<Box<Busy>>,
}

impl Busy {
    fn list(lines: impl DoubleEndedIterator<Item = String>) -> Option<Box<Self>> {
        lines.rev().fold(None, |next, line| Some(Box::new(Self { line, next })))
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Busy {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.next.as_ref().map(|next| &**next as _)
    }
}

/// The NUMA nodes of a set of CPUs, by sysfs below `root`; empty where the container may run anywhere, or the kernel knows no nodes.
#[must_use]
pub fn numa_nodes(root: &Path, cpus: Option<&CpuSet>) -> BTreeSet<u32> {
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
