//! The GPUs of a cluster's step: those whose nodes this process may open. The step's device filter decides, in the cgroup
//! of this process.
//!
//! CUDA_VISIBLE_DEVICES does not say which GPUs these are: with a device filter, Slurm counts from 0 in each step.

use std::path::Path;

use super::inventory::Unit;
use super::root::inside;
use super::vendor::Detail;
use super::vendors;

/// Whether this process may open all nodes of a unit. The kernel is asked without an open(2), which would wake the GPU.
pub(super) fn has(root: &Path, unit: &Unit) -> bool {
    unit.nodes.iter().all(|node| may_open(&inside(root, Path::new(&node.path))))
}

/// Whether no device filter denies a node. A node that does not exist is another check's concern.
pub(crate) fn may_open(node: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    access(node, AccessFlags::R_OK | AccessFlags::W_OK) != Err(nix::Error::EPERM)
}

/// Returns the number of GPUs of this host, and how many of them the step has.
pub(crate) fn count(root: &Path) -> (usize, usize) {
    let Ok(gpus) = vendors::first(root, Detail::Presence, None, &mut |_| {}) else { return (0, 0) };
    let units = &gpus.inventory().units;
    (units.len(), units.iter().filter(|unit| has(root, unit)).count())
}
