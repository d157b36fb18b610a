//! Removes images and names.

use std::fs;

use super::files::exists;
use super::find::Found;
use super::names::Names;
use super::staging::{empty, remove as remove_path};
use super::{Image, ResolveError, Store, StoreError};
use crate::names::{Digest, Reference};
use crate::report::{Explain, Report};

/// The result of a removal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub untagged: Vec<Reference>,
    /// The image itself, if no name refers to it any more.
    pub deleted: Option<Digest>,
    /// Bytes of layers and indexes that were removed with it.
    pub freed: u64,
}

/// A user of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum User {
    /// A container, by name.
    Container(String),
    /// A step of a build that is running.
    Build,
    /// `gpurun image mount`.
    Mount,
    /// Unknown for this reason. The image is not removed.
    Unknown(Report),
}

/// An image that cannot be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("cannot remove the image `{image}`: the container `{container}` uses it")]
    InUse { image: String, container: String },
    #[error("cannot remove the image `{image}`: a build uses it")]
    Building { image: String },
    #[error("cannot remove the image `{image}`: it is mounted")]
    Mounted { image: String },
    #[error("cannot find out whether the image `{image}` is in use: {}", .why.message)]
    Unknown { image: String, why: Box<Report> },
    #[error("cannot remove the image `{id}`: it has several names: {}", names.join(", "))]
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
            Self::Resolve(error) => error.hint_in_store(),
            Self::InUse { container, .. } => Some(format!("remove the container first: `gpurun rm -f {container}`")),
            Self::Building { .. } => Some("wait until the build has ended, or stop it".into()),
            Self::Unknown { why, .. } => why.hint.clone(),
            Self::Mounted { image } => Some(format!("unmount it first: `gpurun image unmount {image}`")),
            Self::SeveralNames { .. } => Some("remove it by each of its names, or all at once with `--force`".into()),
            Self::Store { cause, .. } => cause.hint(),
        }
    }
}

impl Store {
    /// Removes a name, and the image too if it was the last name. With an id, removes the image and its only name, or
    /// all of its names with `force`.
    ///
    /// `in_use` returns a user of an image, if there is one. Such an image is never removed. It is called under the
    /// store's lock, which [`Store::hold`] keeps others from taking between the resolution of an image and the record
    /// of its user.
    pub(crate) fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Option<User>,
    ) -> Result<Removed, RemoveError> {
        let failed = |cause| RemoveError::Store { image: name.into(), cause };
        let _lock = self.lock().map_err(failed)?;
        let mut names = self.names().map_err(failed)?;
        // Do not read its documents, so that a damaged image can be removed too.
        let id = match self.find(name, &names).map_err(failed)? {
            Found::One(id) if exists(&self.image_dir(&id)).map_err(failed)? => id,
            // The lookup returns the reason.
            _ => self.resolve(name)?.id,
        };
        let all = names.of(&id);
        let label = all.first().map_or_else(|| id.hex()[..12].to_owned(), Reference::familiar);
        let by_name = super::names::candidates(name).into_iter().find(|candidate| names.get(candidate) == Some(id));
        let by_name = by_name.filter(|_| name.parse::<Digest>().is_err());
        let untagged = match by_name {
            Some(reference) => vec![reference],
            None if all.len() > 1 && !force => {
                let names = all.iter().map(|name| format!("`{}`", name.familiar())).collect();
                return Err(RemoveError::SeveralNames { id: id.hex()[..12].to_owned(), names });
            }
            None => all.clone(),
        };
        let deletes = untagged.len() == all.len();
        match in_use(&id).filter(|_| deletes) {
            Some(User::Container(container)) => return Err(RemoveError::InUse { image: label, container }),
            Some(User::Build) => return Err(RemoveError::Building { image: label }),
            Some(User::Mount) => return Err(RemoveError::Mounted { image: label }),
            Some(User::Unknown(why)) => return Err(RemoveError::Unknown { image: label, why: why.into() }),
            None => {}
        }
        for reference in &untagged {
            names.remove(reference);
        }
        let mut removed = Removed { untagged, ..Removed::default() };
        if !deletes {
            self.write_names(&names).map_err(failed)?;
            return Ok(removed);
        }
        removed.freed = self.delete(&[id], &names).map_err(failed)?;
        removed.deleted = Some(id);
        Ok(removed)
    }

    /// Removes images whose names are no longer in `names`. The order works on a full disk: nothing is written before
    /// space is freed. The images' directories stay in `tmp/` until the end. If this process dies or fails, they tell
    /// the next sweep that unused layers and stale names remain.
    fn delete(&self, ids: &[Digest], names: &Names) -> Result<u64, StoreError> {
        let mut marks = Vec::new();
        for id in ids {
            let (dir, mark) = (self.image_dir(id), self.root.join("tmp").join(format!("removed.{}", id.hex())));
            remove_path(&mark)?;
            fs::rename(&dir, &mark).map_err(StoreError::io("remove", &dir))?;
            marks.push(mark);
        }
        // Sync before the layers are removed, so that every image that is listed after a power failure is complete.
        self.sync("images")?;
        let freed = self.collect_garbage()?;
        if !ids.is_empty() {
            // The layers may belong to other images, or a mount may hold them. The blocks of the documents are free for
            // the names in any case.
            marks.iter().try_for_each(|mark| empty(mark))?;
            self.write_names(names)?;
        }
        marks.iter().try_for_each(|mark| remove_path(mark))?;
        Ok(freed)
    }

    /// Removes the images that the caller selects and that are not used, with all their names. Returns the removed
    /// images, and the total number of bytes freed.
    pub(crate) fn prune(
        &self,
        is_selected: &dyn Fn(&Image) -> bool,
        in_use: &dyn Fn(&Digest) -> Option<User>,
    ) -> Result<(Vec<Removed>, u64), StoreError> {
        let _lock = self.lock()?;
        self.forget_archives(&|id| in_use(id).is_some())?;
        let mut images = self.list()?;
        images.retain(|image| is_selected(image) && in_use(&image.id).is_none());
        let mut names = self.names()?;
        for name in images.iter().flat_map(|image| &image.names) {
            names.remove(name);
        }
        let freed = self.delete(&images.iter().map(|image| image.id).collect::<Vec<_>>(), &names)?;
        let removed = |image: Image| Removed { untagged: image.names, deleted: Some(image.id), freed: 0 };
        Ok((images.into_iter().map(removed).collect(), freed))
    }

    /// Whether a name refers to an image, for callers that do not need the image.
    pub(crate) fn contains(&self, name: &str) -> Result<bool, StoreError> {
        Ok(match self.find(name, &self.names()?)? {
            Found::One(id) => exists(&self.image_dir(&id))?,
            Found::Several(_) => true,
            Found::None | Found::BadName => false,
        })
    }
}
