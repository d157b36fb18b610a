//! Removing images and names.

use std::fs;

use super::{Found, ResolveError, Staging, Store, StoreError};
use crate::durable;
use crate::names::{Digest, Reference};
use crate::report::Explain;

/// What a removal did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub untagged: Vec<Reference>,
    /// The image itself, when nothing names it any more.
    pub deleted: Option<Digest>,
    /// Bytes of layers and indexes that went with it.
    pub freed: u64,
}

/// An image that is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the image `{image}` is in use by the container `{container}`")]
    InUse { image: String, container: String },
    #[error("the image `{id}` has several names: {}", names.join(", "))]
    SeveralNames { id: String, names: Vec<String> },
    #[error("cannot remove the image `{image}`")]
    Store {
        image: String,
        #[source]
        cause: StoreError,
    },
}

impl Explain for RemoveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Resolve(error) => error.hint(),
            Self::InUse { container, .. } => Some(format!("remove the container first: `gpurun rm -f {container}`")),
            Self::SeveralNames { .. } => Some("remove it by each of its names, or all at once with `--force`".into()),
            Self::Store { cause, .. } => cause.hint(),
        }
    }
}

impl Store {
    /// Removes a name, and with its last name the image; by id, the image with its name (with all of them by `force`).
    ///
    /// `in_use` tells the container that needs an image, if any: such an image is never removed. It is asked under the store's lock,
    /// which [`Store::hold`] keeps away between resolving an image and putting its user on record.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Option<String>,
    ) -> Result<Removed, RemoveError> {
        let failed = |cause| RemoveError::Store { image: name.into(), cause };
        let _lock = self.lock().map_err(failed)?;
        let image = self.resolve(name)?;
        let mut names = self.names().map_err(failed)?;
        let by_name =
            super::names::candidates(name).into_iter().find(|candidate| names.get(candidate) == Some(image.id));
        let by_name = by_name.filter(|_| name.parse::<Digest>().is_err());
        let untagged = match by_name {
            Some(reference) => vec![reference],
            None if image.names.len() > 1 && !force => {
                let names = image.names.iter().map(|name| format!("`{}`", name.familiar())).collect();
                return Err(RemoveError::SeveralNames { id: image.short_id(), names });
            }
            None => image.names.clone(),
        };
        let deletes = untagged.len() == image.names.len();
        if deletes && let Some(container) = in_use(&image.id) {
            return Err(RemoveError::InUse { image: image.label(), container });
        }
        for reference in &untagged {
            names.remove(reference);
        }
        let mut removed = Removed { untagged, ..Removed::default() };
        if !deletes {
            self.write_names(&names).map_err(failed)?;
            return Ok(removed);
        }
        // The workplace is the mark by which a sweep knows, should this process die, that garbage is left.
        let staging = Staging::new_locked(self).map_err(failed)?;
        self.write_names(&names).map_err(failed)?;
        let dir = self.image_dir(&image.id);
        fs::rename(&dir, staging.path().join("image")).map_err(StoreError::io("remove", &dir)).map_err(failed)?;
        let images = self.root.join("images");
        durable::sync_dir(&images).map_err(StoreError::io("sync", &images)).map_err(failed)?;
        removed.freed = self.collect_garbage().map_err(failed)?;
        removed.deleted = Some(image.id);
        Ok(removed)
    }

    /// The id that a name means now, for those who only need to know whether there is one.
    pub fn contains(&self, name: &str) -> Result<bool, StoreError> {
        Ok(match self.find(name, &self.names()?)? {
            Found::One(id) => self.image_dir(&id).exists(),
            Found::Several(_) => true,
            Found::None | Found::BadName => false,
        })
    }
}
