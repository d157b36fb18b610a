//! What a build reads stays readable, whatever is removed from the store meanwhile.
//!
//! A build resolves its images once and reads their layers for as long as it runs, and no name and no container says so. So it links every layer
//! that it knows into a workplace of its own: a removal beside it costs the name and the index, which are made again where they are
//! needed, and the space is free when the build ends, however it ends. (To refuse the removal instead, as for a container, somebody would have
//! to know for each image which builds use it; and `prune` would have to know which of the steps.)

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Draft, Image, Staging, Store, StoreError, is_there, read_if_there};
use crate::layer::Tree;
use crate::names::Digest;

/// Links to layers, gone with this value or with its process.
#[derive(Debug)]
pub struct Pins<'a> {
    store: &'a Store,
    staging: Staging,
}

impl Store {
    pub fn pins(&self) -> Result<Pins<'_>, StoreError> {
        Ok(Pins { store: self, staging: Staging::new(self)? })
    }
}

impl<'a> Pins<'a> {
    /// Pins an image's layers, and answers its config; nothing, if it was removed since it was found.
    pub fn image(&self, image: &Image) -> Result<Option<Vec<u8>>, StoreError> {
        let _hold = self.store.hold()?;
        let Some(config) = read_if_there(&self.store.image_dir(&image.id).join("config.json"))? else {
            return Ok(None);
        };
        self.link(&image.diff_ids)?;
        Ok(Some(config))
    }

    /// Whether an image of these layers is whole and there; then they are pinned.
    pub fn chain(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        let _hold = self.store.hold()?;
        if !self.store.has_chain(diff_ids)? {
            return Ok(false);
        }
        self.link(diff_ids)?;
        Ok(true)
    }

    /// A place to make an image in, on top of what is pinned; its layers are pinned, too.
    pub fn draft(self: &Rc<Self>) -> Result<Draft<'a>, StoreError> {
        Draft::new(self.store, Some(self.clone()))
    }

    /// The merged tree of a stack of pinned layers, and the tars that it points into.
    pub fn tree(&self, diff_ids: &[Digest]) -> Result<(Tree, Vec<File>), StoreError> {
        super::draft::tree(diff_ids, &|diff_id| self.path(diff_id))
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

    /// Where a layer lies that is pinned.
    pub(super) fn find(&self, diff_id: &Digest) -> Result<Option<PathBuf>, StoreError> {
        let path = self.path(diff_id);
        Ok(is_there(&path)?.then_some(path))
    }

    fn path(&self, diff_id: &Digest) -> PathBuf {
        self.staging.path().join(format!("{}.tar", diff_id.hex()))
    }
}
