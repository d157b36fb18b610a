//! What can be wrong with a store, and with a name that is looked up in it.

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
pub enum StoreError {
    #[error("cannot {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the image store `{root}` has the format `{found}`, which this gpurun does not know")]
    Format { root: PathBuf, found: String },
    #[error("`{path}` is damaged: it does not tell the format of an image store")]
    NoFormat { path: PathBuf },
    #[error("the stored image `{id}` is damaged")]
    Damaged {
        id: String,
        #[source]
        cause: DocumentError,
    },
    #[error("`{path}` is damaged: its digest is not its name")]
    Changed { path: PathBuf },
    #[error("`{path}` is damaged")]
    Json {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("`{path}` is damaged: its digest is not the one that it tells")]
    Altered { path: PathBuf },
    #[error("cannot scan the layer `{layer}`")]
    Scan {
        layer: Digest,
        #[source]
        cause: ScanError,
    },
    #[error("the archive `{path}`, from which the image runs, is gone or was changed")]
    Archive { path: PathBuf },
    #[error("the layers of the image cannot be merged")]
    Merge(#[source] MergeError),
    #[error("the index of the image cannot be written")]
    Index {
        #[source]
        cause: Box<erofs::WriteError>,
    },
}

impl StoreError {
    /// Whether the trouble is one image's own.
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
            Self::Io { cause, .. } => match cause.raw_os_error()? {
                libc::EACCES | libc::EPERM => Some("the image store belongs to root: run it with `sudo`".into()),
                libc::ENOSPC => Some(
                    "the disk is full: `gpurun image rm` what is not needed, or choose another disk with `--root`"
                        .into(),
                ),
                libc::EROFS => Some("choose a place that can be written with `--root DIR`".into()),
                _ => None,
            },
            Self::Archive { path } => Some(format!(
                "run from it again, or `gpurun image load {}` to keep a copy in the store",
                path.display()
            )),
            Self::NoFormat { path } => Some(format!(
                "write it anew with `echo gpurun store 1 | sudo tee {}`, then see what else is damaged with `gpurun image verify`",
                path.display()
            )),
            Self::Format { .. } => Some("use the gpurun that made it, or another place with `--root DIR`".into()),
            Self::Damaged { .. }
            | Self::Changed { .. }
            | Self::Altered { .. }
            | Self::Json { .. }
            | Self::Scan { .. } => {
                Some("`gpurun image verify --repair` takes the damaged files away; then load the image again".into())
            }
            _ => None,
        }
    }
}

/// An image that cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("no image `{name}` is in the store")]
    NotFound { name: String, known: Vec<String> },
    #[error("`{prefix}` is the beginning of several image ids: {}", ids.join(", "))]
    Ambiguous { prefix: String, ids: Vec<String> },
    #[error("`{0}` is not an image name or id")]
    BadName(String),
    #[error("cannot look up the image `{name}`")]
    Store {
        name: String,
        #[source]
        cause: StoreError,
    },
}

impl Explain for ResolveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { known, .. } if known.is_empty() => Some("load one with `gpurun image load FILE`".into()),
            Self::NotFound { known, .. } => {
                let shown: Vec<_> = known.iter().take(5).map(|name| format!("`{name}`")).collect();
                let more = if known.len() > 5 { " and more" } else { "" };
                Some(format!(
                    "the store has {}{more}; see `gpurun image ls`, or load one with `gpurun image load FILE`",
                    shown.join(", ")
                ))
            }
            Self::Ambiguous { .. } => Some("give more digits".into()),
            Self::Store { cause, .. } => cause.hint(),
            Self::BadName(_) => Some(
                "write `name`, `name:tag`, `registry:port/name:tag`, the name in lower case, or an id; `gpurun image ls` lists them"
                    .into(),
            ),
        }
    }
}
