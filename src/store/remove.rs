//! Removing images and names.

use std::fs;

use super::names::Names;
use super::staging::{empty, remove as remove_path};
use super::{Found, Image, ResolveError, Store, StoreError, is_there};
use crate::names::{Digest, Reference};
use crate::report::{Explain, Report};

/// What a removal did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub untagged: Vec<Reference>,
    /// The image itself, when nothing names it any more.
    pub deleted: Option<Digest>,
    /// Bytes of layers and indexes that went with it.
    pub freed: u64,
}

/// Who needs an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A container, by its name.
    Container(String),
    /// A step of a build, while it runs.
    Build,
    /// `gpurun image mount`.
    Mount,
    /// Nobody can say, for this reason: such an image stays.
    Unknown(Report),
}

/// An image that is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the image `{image}` is in use by the container `{container}`")]
    InUse { image: String, container: String },
    #[error("the image `{image}` is in use by a build")]
    Building { image: String },
    #[error("the image `{image}` is mounted")]
    Mounted { image: String },
    #[error("it cannot be told who uses the image `{image}`: {}", .why.message)]
    Unknown { image: String, why: Box<Report> },
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
            Self::Building { .. } => Some("wait until the build has ended, or stop it".into()),
            Self::Unknown { why, .. } => why.hint.clone(),
            Self::Mounted { image } => Some(format!("unmount it first: `gpurun image unmount {image}`")),
            Self::SeveralNames { .. } => Some("remove it by each of its names, or all at once with `--force`".into()),
            Self::Store { cause, .. } => cause.hint(),
        }
    }
}

impl Store {
    /// Removes a name, and with its last name the image; by id, the image with its name (with all of them by `force`).
    ///
    /// `in_use` tells who needs an image, if anybody: such an image is never removed. It is asked under the store's lock,
    /// which [`Store::hold`] keeps away between resolving an image and putting its user on record.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Option<User>,
    ) -> Result<Removed, RemoveError> {
        let failed = |cause| RemoveError::Store { image: name.into(), cause };
        let _lock = self.lock().map_err(failed)?;
        let mut names = self.names().map_err(failed)?;
        // Not by way of its documents: a damaged image can be removed too.
        let id = match self.find(name, &names).map_err(failed)? {
            Found::One(id) if is_there(&self.image_dir(&id)).map_err(failed)? => id,
            // The look-up says why not.
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
        removed.freed = self.take_away(&[id], &names).map_err(failed)?;
        removed.deleted = Some(id);
        Ok(removed)
    }

    /// Removes images, whose names are no longer among `names`. In an order that a disk without room can follow: nothing is written before
    /// something is freed. The images' directories, in `tmp/` until all is done, are the mark by which a sweep knows, should this process
    /// die or fail, that garbage and names of nothing are left.
    fn take_away(&self, ids: &[Digest], names: &Names) -> Result<u64, StoreError> {
        let mut marks = Vec::new();
        for id in ids {
            let (dir, mark) = (self.image_dir(id), self.root.join("tmp").join(format!("removed.{}", id.hex())));
            remove_path(&mark)?;
            fs::rename(&dir, &mark).map_err(StoreError::io("remove", &dir))?;
            marks.push(mark);
        }
        // Before their layers go: whatever is listed after a power cut is whole.
        self.sync("images")?;
        let freed = self.collect_garbage()?;
        if !ids.is_empty() {
            // The layers may be other images', or a mount may hold them: the documents' blocks are free for the names at any rate.
            marks.iter().try_for_each(|mark| empty(mark))?;
            self.write_names(names)?;
        }
        marks.iter().try_for_each(|mark| remove_path(mark))?;
        Ok(freed)
    }

    /// Removes the images that nobody uses and that have no name; `all`: those with names, and the steps of builds, too. Answers what was
    /// removed, and the bytes freed by all of it.
    pub fn prune(
        &self,
        all: bool,
        in_use: &dyn Fn(&Digest) -> Option<User>,
    ) -> Result<(Vec<Removed>, u64), StoreError> {
        let _lock = self.lock()?;
        self.forget_archives(&|id| in_use(id).is_some())?;
        let mut images = self.list()?;
        images.retain(|image| (all || (image.names.is_empty() && !image.intermediate)) && in_use(&image.id).is_none());
        let mut names = self.names()?;
        for name in images.iter().flat_map(|image| &image.names) {
            names.remove(name);
        }
        let freed = self.take_away(&images.iter().map(|image| image.id).collect::<Vec<_>>(), &names)?;
        let removed = |image: Image| Removed { untagged: image.names, deleted: Some(image.id), freed: 0 };
        Ok((images.into_iter().map(removed).collect(), freed))
    }

    /// The id that a name means now, for those who only need to know whether there is one.
    pub fn contains(&self, name: &str) -> Result<bool, StoreError> {
        Ok(match self.find(name, &self.names()?)? {
            Found::One(id) => is_there(&self.image_dir(&id))?,
            Found::Several(_) => true,
            Found::None | Found::BadName => false,
        })
    }
}
