//! The users of images (containers, builds and mounts), and the removal of a container's image with the container.

use std::collections::BTreeMap;
use std::path::Path;

use crate::names::Digest;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::rootfs::images;
use crate::store::{Image, Store, User};

/// The users of each image.
#[derive(Default)]
pub(crate) struct ImageUsers {
    by_id: BTreeMap<String, User>,
    /// The reason why the list may be incomplete.
    unknown: Option<Report>,
}

impl ImageUsers {
    /// Returns the users of all images, read once. A command that removes images must call this again under the store's
    /// lock.
    pub(crate) fn find(root: &Path, run_dir: &Path, store: &Store) -> Self {
        // If the users cannot be determined, every image counts as used.
        Self::look(root, run_dir, store).unwrap_or_else(|report| Self { unknown: Some(report), ..Self::default() })
    }

    fn look(root: &Path, run_dir: &Path, store: &Store) -> Result<Self, Report> {
        let mut users = Self::default();
        let mounted = store.list()?.into_iter().filter(|image| is_mounted(run_dir, image));
        users.by_id.extend(mounted.map(|image| (image.id.to_string(), User::Mount)));
        let records = Records::open(root, run_dir)?;
        let (entries, unreadable) = records.list_all()?;
        let id = |entry: &Entry| entry.record.image.to_string();
        for step in &records.steps()? {
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

    pub(crate) fn of(&self, id: &Digest) -> Option<User> {
        self.by_id.get(&id.to_string()).cloned().or_else(|| self.unknown.clone().map(User::Unknown))
    }
}

/// Returns whether `gpurun image mount` keeps the image mounted.
pub(crate) fn is_mounted(run_dir: &Path, image: &Image) -> bool {
    images::is_kept(&run_dir.join("images"), &image.chain_id.hex())
}

/// Removes the image of a container that was removed (`--rmi`): the name that the container was started with, and the
/// image too if it has no other name and no user. The next command unmounts it.
pub(crate) fn remove_image(root: &Path, run_dir: &Path, entry: &Entry) -> Result<(), Report> {
    let store = Store::open(root)?;
    let name = &entry.record.request.image;
    // An archive that runs in place is not in the store, and a name may refer to another image by now.
    if !store.resolve(name).is_ok_and(|image| image.id == entry.record.image) {
        return Ok(());
    }
    let users = std::cell::OnceCell::new();
    let in_use = |id: &Digest| users.get_or_init(|| ImageUsers::find(root, run_dir, &store)).of(id);
    store.remove(name, false, &in_use)?;
    Ok(())
}
