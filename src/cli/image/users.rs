//! The users of images: containers, builds and mounts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cli::Context;
use crate::names::Digest;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::rootfs::images;
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
        images::is_kept(&self.images, &image.chain_id.hex())
    }

    /// Returns the users of all images, read once. A command that removes images must call this again under the store's
    /// lock.
    pub(super) fn users(&self, store: &Store) -> Users {
        // If the users cannot be determined, every image counts as used.
        self.look_for_users(store).unwrap_or_else(|report| Users { unknown: Some(report), ..Users::default() })
    }

    pub(super) fn look_for_users(&self, store: &Store) -> Result<Users, Report> {
        let mut users = Users::default();
        let mounted = store.list()?.into_iter().filter(|image| self.is_mounted(image));
        users.by_id.extend(mounted.map(|image| (image.id.to_string(), User::Mount)));
        let records = Records::open(&self.context.root, &self.context.run_dir)?;
        let (entries, unreadable) = records.list_all()?;
        let steps = records.steps()?;
        let id = |entry: &Entry| entry.record.image.to_string();
        for step in &steps {
            users.by_id.entry(id(step)).or_insert(User::Build);
        }
        for entry in &entries {
            users.by_id.entry(id(entry)).or_insert_with(|| User::Container(entry.record.name.clone()));
            for (_, image) in entry.record.request.mounted_images() {
                users.by_id.entry(image.to_string()).or_insert_with(|| User::Container(entry.record.name.clone()));
            }
        }
        users.unknown = unreadable.into_iter().next().map(|container| container.error.into());
        Ok(users)
    }
}

/// The users of each image.
#[derive(Default)]
pub(super) struct Users {
    pub(super) by_id: BTreeMap<String, User>,
    /// The reason why the list may be incomplete.
    pub(super) unknown: Option<Report>,
}

impl Users {
    pub(super) fn of(&self, id: &Digest) -> Option<User> {
        self.by_id.get(&id.to_string()).cloned().or_else(|| self.unknown.clone().map(User::Unknown))
    }
}
