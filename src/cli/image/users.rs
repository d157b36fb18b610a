//! The users of images: containers, builds and mounts.

use std::path::PathBuf;

use crate::cli::Context;
use crate::launch::{ImageUsers, is_mounted};
use crate::names::Digest;
use crate::store::{Image, Store, User};

/// Returns the user of an image, if there is one.
pub(super) type Usages<'a> = dyn Fn(&Digest) -> Option<User> + 'a;

/// Creates a new lookup of image users.
pub(super) type NewUsages<'a> = dyn Fn() -> Box<Usages<'a>> + 'a;

/// The location of the image mounts.
pub(super) struct Mounts<'a> {
    pub(super) images: PathBuf,
    pub(super) context: &'a Context,
}

impl Mounts<'_> {
    /// Returns whether `gpurun image mount` keeps the image mounted.
    pub(super) fn is_mounted(&self, image: &Image) -> bool {
        is_mounted(&self.context.run_dir, image)
    }

    /// Returns the users of all images, read once. A command that removes images must call this again under the store's
    /// lock.
    pub(super) fn users(&self, store: &Store) -> ImageUsers {
        ImageUsers::find(&self.context.root, &self.context.run_dir, store)
    }
}
