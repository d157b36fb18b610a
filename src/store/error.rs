//! Errors of a store, and of a lookup in it.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::DocumentError;
use crate::layer::erofs;
use crate::layer::merge::MergeError;
use crate::layer::tar::ScanError;
use crate::names::Digest;
use crate::report::Explain;

/// A store that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the image store `{root}` has the format `{found}`, which this version of gpurun does not support")]
    Format { root: PathBuf, found: String },
    #[error("`{path}` is damaged: it does not name the format of an image store")]
    NoFormat { path: PathBuf },
    #[error("the stored image `{id}` is damaged")]
    Damaged {
        id: String,
        #[source]
        cause: DocumentError,
    },
    #[error("`{path}` is damaged: its digest does not match its name")]
    Changed { path: PathBuf },
    #[error("`{path}` is damaged")]
    Json {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("`{path}` is damaged: its digest does not match its contents")]
    Altered { path: PathBuf },
    #[error("cannot scan the layer `{layer}`")]
    Scan {
        layer: Digest,
        #[source]
        cause: ScanError,
    },
    #[error("the archive `{path}`, from which the image runs, was removed or changed")]
    Archive { path: PathBuf },
    #[error("the headers of the layers need more than {} MiB of memory", super::limits::MAX_HEADERS >> 20)]
    Headers,
    #[error("cannot merge the layers of the image")]
    Merge(#[source] MergeError),
    #[error("cannot write the index of the image")]
    Index {
        #[source]
        cause: Box<erofs::WriteError>,
    },
}

impl StoreError {
    /// Whether the error concerns a single image.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Changed { .. } | Self::Altered { .. } | Self::Json { .. })
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |cause| Self::Io { action, path, cause }
    }
}

impl Explain for StoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io { cause, .. } => system_hint(cause),
            Self::Index { cause } => {
                let first: &(dyn std::error::Error + 'static) = &**cause;
                let mut causes = std::iter::successors(Some(first), |error| error.source());
                system_hint(causes.find_map(|error| error.downcast_ref())?)
            }
            Self::Archive { path } => Some(format!(
                "run from it again, or `gpurun image load {}` to keep a copy in the store",
                path.display()
            )),
            Self::NoFormat { path } => Some(format!(
                "write it again with `echo gpurun store 1 | sudo tee {}`, then look for other damage with `gpurun \
                 image verify`",
                path.display()
            )),
            Self::Format { .. } => Some(
                "use the version of gpurun that created it, or another store with `--root \
                                         DIR`"
                    .into(),
            ),
            Self::Damaged { .. }
            | Self::Changed { .. }
            | Self::Altered { .. }
            | Self::Json { .. }
            | Self::Scan { .. } => {
                Some("remove the damaged files with `gpurun image verify --repair`, then load the image again".into())
            }
            _ => None,
        }
    }
}

/// The hint for an error of the system at a file of the store.
fn system_hint(error: &std::io::Error) -> Option<String> {
    match error.raw_os_error()? {
        libc::EACCES | libc::EPERM => Some("run gpurun with `sudo`: the image store belongs to root".into()),
        libc::ENOSPC => {
            Some("remove unused images with `gpurun image rm`, or choose another disk with `--root`".into())
        }
        libc::EROFS => Some("choose a writable directory with `--root DIR`".into()),
        _ => None,
    }
}

/// An image that cannot be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("the store has no image `{name}`")]
    NotFound { name: String, known: Vec<String> },
    #[error("`{prefix}` matches several image IDs: {}", ids.join(", "))]
    Ambiguous { prefix: String, ids: Vec<String> },
    #[error("`{0}` is not an image name or ID")]
    BadName(String),
    #[error("cannot look up the image `{name}`")]
    Store {
        name: String,
        #[source]
        cause: StoreError,
    },
}

impl ResolveError {
    /// The hint for a command that only makes sense for an existing image: it does not suggest to load an image, for
    /// example to remove it.
    pub(crate) fn hint_in_store(&self) -> Option<String> {
        match self {
            Self::NotFound { known, .. } if known.is_empty() => Some("the store has no images".into()),
            Self::NotFound { known, .. } => Some(format!("the store has {}; see `gpurun image ls`", some_of(known))),
            _ => self.hint(),
        }
    }
}

fn some_of(known: &[String]) -> String {
    let shown: Vec<_> = known.iter().take(5).map(|name| format!("`{name}`")).collect();
    let more = if known.len() > 5 { " and more" } else { "" };
    format!("{}{more}", shown.join(", "))
}

impl Explain for ResolveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { known, .. } if known.is_empty() => {
                Some("get one with `gpurun image pull NAME` or `gpurun image load FILE`".into())
            }
            Self::NotFound { known, .. } => Some(format!(
                "the store has {}; see `gpurun image ls`, or get it with `gpurun image pull NAME` or `gpurun image load FILE`",
                some_of(known)
            )),
            Self::Ambiguous { .. } => Some("write more digits".into()),
            Self::Store { cause, .. } => cause.hint(),
            Self::BadName(_) => Some(
                "write `name`, `name:tag`, `registry:port/name:tag`, with the name in lower case, or an ID; `gpurun \
                 image ls` lists them"
                    .into(),
            ),
        }
    }
}
