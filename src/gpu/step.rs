//! The GPUs of a cluster's step: those whose nodes this process may open. The step's device filter decides, in the cgroup
//! of this process.
//!
//! CUDA_VISIBLE_DEVICES does not say which GPUs these are: with a device filter, Slurm counts from 0 in each step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::inventory::Unit;
use super::root::inside;
use super::vendor::Detail;
use super::vendors;

/// The variable that lists the nodes of GPUs, separated by colons, which only other tasks of the step may open. The plugin
/// of Slurm sets it for a container that all tasks share.
pub(crate) const NODES: &str = "GPURUN_STEP_NODES";

/// Whether the step has a unit: this process, or another task that uses the container, may open all its nodes. The kernel is
/// asked without an open(2), which would wake the GPU.
pub(super) fn has(root: &Path, unit: &Unit) -> bool {
    let others = std::env::var(NODES).unwrap_or_default();
    let has = |node: &str| may_open(&inside(root, Path::new(node))) || others.split(':').any(|other| other == node);
    unit.nodes.iter().all(|node| has(&node.path))
}

/// Whether no device filter denies a node. A node that does not exist is another check's concern.
pub(crate) fn may_open(node: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    access(node, AccessFlags::R_OK | AccessFlags::W_OK) != Err(nix::Error::EPERM)
}

/// Returns the nodes of all GPUs of this host, and where they are below the driver's root.
pub(crate) fn nodes(root: &Path) -> Vec<(String, PathBuf)> {
    let Ok(gpus) = vendors::first(root, Detail::Names, None, &mut |_| {}) else { return Vec::new() };
    let all: BTreeSet<&str> =
        gpus.inventory().units.iter().flat_map(|unit| &unit.nodes).map(|node| node.path.as_str()).collect();
    all.into_iter().map(|node| (node.to_owned(), inside(root, Path::new(node)))).collect()
}

/// Returns the number of GPUs of this host, and how many of them the step has.
pub(crate) fn count(root: &Path) -> (usize, usize) {
    let Ok(gpus) = vendors::first(root, Detail::Presence, None, &mut |_| {}) else { return (0, 0) };
    let units = &gpus.inventory().units;
    (units.len(), units.iter().filter(|unit| has(root, unit)).count())
}
