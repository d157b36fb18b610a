//! Errors of a source of images.

use std::io;
use std::path::PathBuf;

use super::registry;
use crate::image::DocumentError;
use crate::layer::tar::ScanError;
use crate::names::Digest;
use crate::report::Explain;

/// A source that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("`{path}` is neither a docker archive nor an OCI image layout")]
    Unknown { path: PathBuf },
    #[error("`{path}` is not a readable tar archive")]
    Tar {
        path: PathBuf,
        #[source]
        cause: ScanError,
    },
    #[error("cannot read `{member}` of the image archive")]
    Blob {
        member: String,
        #[source]
        cause: io::Error,
    },
    #[error("the image archive has no file `{member}`")]
    Missing { member: String },
    #[error("`{member}` of the image archive is not a regular file")]
    NotRegular { member: String },
    #[error("`{member}` of the image archive has {found} bytes, but its descriptor declares {expected}")]
    Size { member: String, expected: u64, found: u64 },
    #[error("`{member}` of the image archive is larger than {limit} bytes")]
    TooLarge { member: String, limit: u64 },
    #[error("`{member}` of the image archive has the digest `{found}`, not `{expected}`")]
    Digest { member: String, expected: Digest, found: Digest },
    #[error("cannot use `{member}` of the image")]
    Document {
        member: String,
        #[source]
        cause: DocumentError,
    },
    #[error("cannot use `{member}` of the image archive")]
    Json {
        member: String,
        #[source]
        cause: serde_json::Error,
    },
    #[error("the image layout has the version `{0}`, not `1.0.0`")]
    LayoutVersion(String),
    #[error("an index of the image layout is nested more than {0} levels deep")]
    Nesting(usize),
    #[error("`{origin}` has no image for `{wanted}`; it has: {found}")]
    Platform { origin: String, wanted: String, found: String },
    #[error("the source has more than {limit} {what}")]
    TooMany { what: &'static str, limit: u64 },
    #[error("`{path}` contains no image")]
    Empty { path: PathBuf },
    #[error("`{path}` has no image `{pick}`; it has: {found}")]
    NotInside { path: PathBuf, pick: String, found: String },
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
}

impl Explain for SourceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                Some("create one with `docker save -o image.tar NAME` or `podman save -o image.tar NAME`".into())
            }
            Self::Tar { .. } | Self::Size { .. } | Self::Digest { .. } => {
                Some("save or copy the file again; it is damaged or incomplete".into())
            }
            Self::Missing { .. } => Some("save the archive again with all layers; it is incomplete".into()),
            Self::Platform { wanted, .. } => Some(format!(
                "use an image for `{wanted}`; to inspect or copy one of the others, select it with `--platform \
                 PLATFORM`"
            )),
            Self::TooMany { .. } => {
                Some("save fewer images at a time, or choose one: `docker-archive:FILE:NAME`".into())
            }
            Self::Registry(cause) => cause.hint(),
            Self::Document { cause, .. } => cause.hint(),
            Self::Read { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                Some("check the path: it must be an image archive or the directory of an OCI layout".into())
            }
            _ => None,
        }
    }
}
