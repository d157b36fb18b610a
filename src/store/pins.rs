//! Keeps the layers that a build reads, even if their images are removed from the store in the meantime.
//!
//! A build resolves its images once and reads their layers while it runs, without a name or a container that refers to
//! them. It therefore links every layer that it uses into its own staging directory. A concurrent removal then only
//! removes the name and the index, which are created again if necessary. The space is freed when the build ends,
//! however it ends. The alternative is to refuse the removal, as for a container. This would require a record of the
//! builds that use each image, and `prune` would need to know the builds that use each step.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::{exists, read_optional};
use super::staging::Staging;
use super::{Image, Store, StoreError};
use crate::layer::Tree;
use crate::names::Digest;

/// Links to layers. They are removed with this value, or after its process ends.
#[derive(Debug)]
pub(crate) struct Pins<'a> {
    pub(super) store: &'a Store,
    staging: Staging,
}

impl Store {
    pub(crate) fn pins(&self) -> Result<Pins<'_>, StoreError> {
        Ok(Pins { store: self, staging: Staging::new(self)? })
    }
}

impl Pins<'_> {
    /// Pins an image's layers, and returns its config. Returns `None` if the image was removed since it was found.
    pub(crate) fn image(&self, image: &Image) -> Result<Option<Vec<u8>>, StoreError> {
        let _hold = self.store.hold()?;
        let Some(config) = read_optional(&self.store.image_dir(&image.id).join("config.json"))? else {
            return Ok(None);
        };
        self.link(&image.diff_ids)?;
        Ok(Some(config))
    }

    /// Whether an image with these layers is complete. If so, pins the layers.
    pub(crate) fn chain(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        let _hold = self.store.hold()?;
        if !self.store.has_chain(diff_ids)? {
            return Ok(false);
        }
        self.link(diff_ids)?;
        Ok(true)
    }

    /// Returns the merged tree of a stack of pinned layers, and the tars that it points into.
    pub(crate) fn tree(&self, diff_ids: &[Digest]) -> Result<(Tree, Vec<File>), StoreError> {
        super::scan::tree(diff_ids, &|diff_id| self.path(diff_id))
    }

    fn link(&self, diff_ids: &[Digest]) -> Result<(), StoreError> {
        diff_ids.iter().try_for_each(|diff_id| self.add(diff_id, &self.store.layer_path(diff_id)))
    }

    pub(super) fn add(&self, diff_id: &Digest, tar: &Path) -> Result<(), StoreError> {
        match fs::hard_link(tar, self.path(diff_id)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::io("link", tar)(error)),
            _ => Ok(()),
        }
    }

    /// Returns the path of a layer, if it is pinned.
    pub(super) fn find(&self, diff_id: &Digest) -> Result<Option<PathBuf>, StoreError> {
        let path = self.path(diff_id);
        Ok(exists(&path)?.then_some(path))
    }

    fn path(&self, diff_id: &Digest) -> PathBuf {
        self.staging.path().join(format!("{}.tar", diff_id.hex()))
    }
}
