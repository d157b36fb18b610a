//! Which containers use a volume, and the file systems of volumes with options.

use std::collections::BTreeSet;
use std::path::Path;

use crate::durable::FileLock;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::request::MountSource;
use crate::volume::Volumes;

/// The containers that use a named volume.
pub(super) fn users(entries: &[Entry], name: &str) -> Vec<String> {
    let uses = |entry: &&Entry| named(entry).any(|known| known == name);
    entries.iter().filter(uses).map(|entry| entry.record.name.clone()).collect()
}

fn named(entry: &Entry) -> impl Iterator<Item = &String> {
    entry.record.request.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume { name: Some(name), .. } => Some(name),
        _ => None,
    })
}

/// Whether a container that runs, or that is being launched, uses a named volume. One whose use is unknown counts as
/// used.
pub(super) fn is_in_use(records: &Records, name: &str) -> bool {
    let Ok((entries, unreadable)) = records.list_all() else { return true };
    let is_idle = |entry: &Entry| entry.is_idle().is_ok_and(|is_idle| is_idle);
    !unreadable.is_empty() || entries.iter().any(|entry| named(entry).any(|known| known == name) && !is_idle(entry))
}

/// Mounts the file systems of a container's volumes. They stay mounted while the caller holds the locks, or the lock of
/// the container's launch.
pub(super) fn mount_all(root: &Path, entry: &Entry) -> Result<Vec<FileLock>, Report> {
    let volumes = Volumes::new(root);
    // A container may mount a volume more than once.
    let names: BTreeSet<&String> = named(entry).collect();
    let locks = names.into_iter().map(|name| volumes.mount(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(locks.into_iter().flatten().collect())
}
