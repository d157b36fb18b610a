//! From the tars of layers to their merged tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use super::error::StoreError;
use super::limits::{MAX_HEADERS, MAX_STEPS};
use super::located::Stretch;
use crate::layer::merge::Merger;
use crate::layer::{Entry, Tree, tar};
use crate::names::Digest;
use crate::sys::thread;

/// Returns the merged tree of layers whose tars are at the paths that `path` returns.
pub(crate) fn tree(diff_ids: &[Digest], path: &dyn Fn(&Digest) -> PathBuf) -> Result<(Tree, Vec<File>), StoreError> {
    let stretch = |diff_id: &Digest| Ok((*diff_id, Stretch::whole(path(diff_id))?));
    let stretches = diff_ids.iter().map(stretch).collect::<Result<Vec<_>, StoreError>>()?;
    let tree = tree_of_layers(diff_ids, scan_layers(&stretches, Stretch::open)?)?;
    let sources = tree.sources.iter().map(|diff_id| super::files::open(&path(diff_id))).collect::<Result<_, _>>()?;
    Ok((tree, sources))
}

/// Returns the merged tree of a stack of layers. `layers` has each layer's entries once, even if the layer is listed
/// several times. Without `keep`, they are dropped as soon as they are no longer needed. The steps of the merge are
/// subtracted from `steps`.
pub(super) fn merge_layers(
    diff_ids: &[Digest],
    layers: &mut BTreeMap<Digest, Vec<Entry>>,
    keep: bool,
    steps: &mut u64,
) -> Result<Tree, StoreError> {
    let mut merger = Merger::with_steps(*steps);
    let begun = merger.steps_left();
    for (at, diff_id) in diff_ids.iter().enumerate() {
        let applied = if keep || diff_ids[at + 1..].contains(diff_id) {
            layers.get(diff_id).map(|entries| merger.apply(*diff_id, entries.iter().cloned()))
        } else {
            layers.remove(diff_id).map(|entries| merger.apply(*diff_id, entries))
        };
        applied.transpose().map_err(StoreError::Merge)?;
    }
    *steps -= begun - merger.steps_left();
    Ok(merger.finish())
}

/// Returns the merged tree of layers whose entries are not needed afterwards.
pub(super) fn tree_of_layers(
    diff_ids: &[Digest],
    mut layers: BTreeMap<Digest, Vec<Entry>>,
) -> Result<Tree, StoreError> {
    merge_layers(diff_ids, &mut layers, false, &mut MAX_STEPS.clone())
}

/// Returns the entries of tars. Reads each tar once, and two in parallel. The memory for all entries together is
/// bounded.
pub(super) fn scan_layers(
    layers: &[(Digest, Stretch)],
    open: impl Fn(&Stretch) -> Result<File, StoreError> + Sync,
) -> Result<BTreeMap<Digest, Vec<Entry>>, StoreError> {
    let mut seen = BTreeSet::new();
    let distinct: Vec<_> = layers.iter().filter(|(layer, _)| seen.insert(*layer)).collect();
    let used = AtomicUsize::new(0);
    let scan = |(layer, stretch): &(Digest, Stretch)| {
        let failed = |cause| StoreError::Scan { layer: *layer, cause };
        let left = MAX_HEADERS.saturating_sub(used.load(Ordering::Relaxed)).min(tar::MAX_HEADER_MEMORY);
        let (entries, memory) = stretch.scan_within(&open(stretch)?, left).map_err(failed)?;
        if used.fetch_add(memory, Ordering::Relaxed) + memory > MAX_HEADERS {
            return Err(StoreError::Headers);
        }
        Ok((*layer, entries))
    };
    // Take every other layer: adjacent layers differ in size more than the two halves do.
    let half = |first: usize| distinct.iter().copied().skip(first).step_by(2).map(scan).collect::<Result<Vec<_>, _>>();
    let all = std::thread::scope(|scope| {
        // Without a second thread, scan one after the other.
        let other = thread::scoped(scope, || half(1));
        let mut all = half(0)?;
        all.extend(match other.map(ScopedJoinHandle::join) {
            Ok(Ok(odd)) => odd?,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => half(1)?,
        });
        Ok(all)
    });
    Ok(all?.into_iter().collect())
}
