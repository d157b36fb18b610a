//! Disk usage of the store: every byte below its root, by purpose.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::find::parse_hex;
use super::{Image, Store, StoreError};
use crate::names::Digest;

/// Bytes on disk (blocks, not lengths). A file with several links is counted once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub layers: u64,
    /// `*.erofs` and `*.side`.
    pub indexes: u64,
    /// Configs, manifests, records, names.
    pub documents: u64,
    /// Trees rendered as plain files, if the kernel cannot mount an index.
    pub rendered: u64,
    /// Staging directories of running loads.
    pub in_progress: u64,
    pub containers: u64,
    pub volumes: u64,
    /// The directories themselves, the lock, and foreign files.
    pub other: u64,
    /// Number of layers.
    pub layer_count: usize,
    /// Bytes of each layer, to compute the sums of images.
    pub by_layer: BTreeMap<Digest, u64>,
}

impl Usage {
    pub(crate) fn total(&self) -> u64 {
        self.layers
            + self.indexes
            + self.documents
            + self.rendered
            + self.in_progress
            + self.containers
            + self.volumes
            + self.other
    }

    /// Returns for each image the bytes of its layers, and of those that no other image has.
    pub(crate) fn of_images(&self, images: &[Image]) -> Vec<(u64, u64)> {
        let distinct = |image: &Image| image.diff_ids.iter().copied().collect::<HashSet<Digest>>();
        let mut owners: HashMap<Digest, usize> = HashMap::new();
        for diff_id in images.iter().flat_map(distinct) {
            *owners.entry(diff_id).or_default() += 1;
        }
        let bytes = |diff_id: &Digest| self.by_layer.get(diff_id).copied().unwrap_or(0);
        let sums = |image: &Image| {
            let mine = distinct(image);
            let own = mine.iter().filter(|diff_id| owners.get(diff_id) == Some(&1));
            (mine.iter().map(bytes).sum(), own.map(bytes).sum())
        };
        images.iter().map(sums).collect()
    }

    /// Returns the bytes of layers that only images outside `kept` have.
    pub(crate) fn only_outside(&self, kept: &[&Image]) -> u64 {
        let kept: HashSet<Digest> = kept.iter().flat_map(|image| image.diff_ids.iter().copied()).collect();
        self.by_layer.iter().filter(|(id, _)| !kept.contains(id)).map(|(_, bytes)| bytes).sum()
    }
}

impl Store {
    /// Walks everything below the root. Files that are created or removed in the meantime may or may not be counted.
    pub(crate) fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        let mut seen = HashSet::new();
        // Walk the final directories first: a layer that a load pinned with a link counts as a layer.
        for name in ["layers", "images", "archives", "dirs", "tmp", "containers", "volumes"] {
            let dir = self.root().join(name);
            walk(&dir, &mut seen, &mut |path, blocks, is_dir| {
                let below = path.strip_prefix(&dir).unwrap_or(path);
                usage.count(name, below, blocks, is_dir);
            })?;
        }
        walk(self.root(), &mut seen, &mut |path, blocks, is_dir| match path.file_name() {
            Some(name) if name == "names.json" || name == "digests.json" => usage.documents += blocks,
            _ => usage.count("", path, blocks, is_dir),
        })?;
        Ok(usage)
    }
}

impl Usage {
    fn count(&mut self, place: &str, below: &Path, blocks: u64, is_dir: bool) {
        let name = below.file_name().unwrap_or_default().to_string_lossy();
        let at_top = below.components().count() == 1;
        let stem = |suffix: &str| name.strip_suffix(suffix).and_then(parse_hex).filter(|_| at_top && !is_dir);
        match place {
            "layers" => match stem(".tar") {
                Some(id) => {
                    self.layers += blocks;
                    self.layer_count += 1;
                    self.by_layer.insert(id, blocks);
                }
                None => self.other += blocks,
            },
            "images" if stem(".erofs").is_some() || stem(".side").is_some() => self.indexes += blocks,
            "images" if !at_top || parse_hex(&name).is_some() => self.documents += blocks,
            "archives" if name.ends_with(".erofs") || name.ends_with(".side") => self.indexes += blocks,
            "archives" => self.documents += blocks,
            "dirs" if !below.as_os_str().is_empty() => self.rendered += blocks,
            "tmp" if !below.as_os_str().is_empty() => self.in_progress += blocks,
            "containers" => self.containers += blocks,
            "volumes" => self.volumes += blocks,
            _ => self.other += blocks,
        }
    }
}

/// Calls `visit` for every inode at and below `path` that is not in `seen`, with its path, its bytes on disk, and
/// whether it is a directory.
fn walk(
    path: &Path,
    seen: &mut HashSet<(u64, u64)>,
    visit: &mut dyn FnMut(&Path, u64, bool),
) -> Result<(), StoreError> {
    let failed = |error: io::Error| match error.kind() {
        // Removed since its directory was read, or renamed in order to be removed.
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(StoreError::io("read", path)(error)),
    };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return failed(error),
    };
    if seen.insert((metadata.dev(), metadata.ino())) {
        visit(path, metadata.blocks() * 512, metadata.is_dir());
    } else {
        // Another link of a file, or a directory that was already walked.
        return Ok(());
    }
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return failed(error),
        };
        for entry in entries {
            walk(&entry.map_err(StoreError::io("read", path))?.path(), seen, visit)?;
        }
    }
    Ok(())
}
