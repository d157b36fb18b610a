//! What the store takes of the disk: every byte below its root, by what it is for.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Image, Store, StoreError, parse_hex};
use crate::names::Digest;

/// Bytes on the disk (blocks, not lengths), each counted once however many names it has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub layers: u64,
    /// `*.erofs` and `*.side`.
    pub indexes: u64,
    /// Configs, manifests, records, names.
    pub documents: u64,
    /// Trees drawn as plain files, where the kernel cannot mount an index.
    pub drawn: u64,
    /// Workplaces of loads that run now.
    pub in_progress: u64,
    pub containers: u64,
    pub volumes: u64,
    /// The directories themselves, the lock, and what somebody else put there.
    pub other: u64,
    /// How many layers there are.
    pub layer_count: usize,
    /// Per layer, for the sums of images.
    pub by_layer: BTreeMap<Digest, u64>,
}

impl Usage {
    pub fn total(&self) -> u64 {
        self.layers
            + self.indexes
            + self.documents
            + self.drawn
            + self.in_progress
            + self.containers
            + self.volumes
            + self.other
    }

    /// Bytes of layers that `image` has, and of those that none of `others` has too.
    pub fn of_image<'a>(&self, image: &Image, others: impl Iterator<Item = &'a Image>) -> (u64, u64) {
        let shared: HashSet<Digest> =
            others.filter(|other| other.id != image.id).flat_map(|other| other.diff_ids.iter().copied()).collect();
        let mine: HashSet<Digest> = image.diff_ids.iter().copied().collect();
        let sum = |ids: &mut dyn Iterator<Item = &Digest>| ids.filter_map(|id| self.by_layer.get(id)).sum();
        (sum(&mut mine.iter()), sum(&mut mine.difference(&shared)))
    }

    /// Bytes of layers that only images outside `kept` have.
    pub fn only_outside(&self, kept: &[&Image]) -> u64 {
        let kept: HashSet<Digest> = kept.iter().flat_map(|image| image.diff_ids.iter().copied()).collect();
        self.by_layer.iter().filter(|(id, _)| !kept.contains(id)).map(|(_, bytes)| bytes).sum()
    }
}

impl Store {
    /// Walks everything below the root. What comes and goes meanwhile is counted or not.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        let mut seen = HashSet::new();
        // What is final first: a layer that a loader pinned by a link counts as a layer.
        for name in ["layers", "images", "archives", "dirs", "tmp", "containers", "volumes"] {
            let dir = self.root().join(name);
            walk(&dir, &mut seen, &mut |path, blocks, is_dir| {
                let below = path.strip_prefix(&dir).unwrap_or(path);
                usage.count(name, below, blocks, is_dir);
            })?;
        }
        walk(self.root(), &mut seen, &mut |path, blocks, is_dir| match path.file_name() {
            Some(name) if name == "names.json" => usage.documents += blocks,
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
            "dirs" if !below.as_os_str().is_empty() => self.drawn += blocks,
            "tmp" if !below.as_os_str().is_empty() => self.in_progress += blocks,
            "containers" => self.containers += blocks,
            "volumes" => self.volumes += blocks,
            _ => self.other += blocks,
        }
    }
}

/// Calls `told` with every inode at and below `path` that was not seen yet: its path, its bytes on the disk, whether it is a directory.
fn walk(path: &Path, seen: &mut HashSet<(u64, u64)>, told: &mut dyn FnMut(&Path, u64, bool)) -> Result<(), StoreError> {
    let failed = |error: io::Error| match error.kind() {
        // Removed since its directory was read, or a rename away from being removed.
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(StoreError::io("read", path)(error)),
    };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return failed(error),
    };
    if seen.insert((metadata.dev(), metadata.ino())) {
        told(path, metadata.blocks() * 512, metadata.is_dir());
    } else {
        // Another name of a file, or a directory that was walked.
        return Ok(());
    }
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return failed(error),
        };
        for entry in entries {
            walk(&entry.map_err(StoreError::io("read", path))?.path(), seen, told)?;
        }
    }
    Ok(())
}
