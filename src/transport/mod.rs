//! Where images come from and go to: docker-archive tars (`docker save`, `podman save`), OCI image layouts, as a directory or as a tar,
//! and registries.
//!
//! A transport finds the images in a source, reads and checks their small documents (manifest, config), and says where each layer's
//! bytes lie ([`Blob`]); it inflates nothing and writes nothing. Members of an archive are found by scanning its headers, blobs of a
//! directory are opened below its descriptor with links refused: no name in a source becomes a path of the host.

mod archive;
mod blob;
mod choose;
mod layout;
pub mod pack;
pub mod registry;
mod source;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use blob::{Blob, BlobReader};
pub use source::{Source, SourceNameError};

use crate::image::{Descriptor, DocumentError, ImageConfig, Platform, digest_of};
use crate::layer::tar::ScanError;
use crate::names::{Digest, Reference};
use crate::report::Explain;

/// An image in a source, its documents checked.
#[derive(Debug)]
pub struct SourceImage {
    /// The digest of the config.
    pub id: Digest,
    pub names: Vec<Reference>,
    /// The layout's own words for it, which need not be names (`latest`).
    pub tags: Vec<String>,
    pub config: ImageConfig,
    pub config_bytes: Vec<u8>,
    /// Verbatim, where the source has one (a docker-archive has none).
    pub manifest_bytes: Option<Vec<u8>>,
    /// As many as the config has diff ids, in their order.
    pub layers: Vec<SourceLayer>,
}

/// A layer as the source holds it.
#[derive(Debug, Clone)]
pub struct SourceLayer {
    pub diff_id: Digest,
    /// Digest of the packed bytes, where a manifest tells it.
    pub digest: Option<Digest>,
    pub blob: Blob,
}

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
    #[error("`{member}` of the image archive has {found} bytes, its descriptor says {expected}")]
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
    #[error("no image for `{wanted}` is in `{origin}`; there is: {found}")]
    Platform { origin: String, wanted: String, found: String },
    #[error("no image is in `{path}`")]
    Empty { path: PathBuf },
    #[error("`{path}` has no image `{pick}`; there is: {found}")]
    NotInside { path: PathBuf, pick: String, found: String },
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
}

impl Explain for SourceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                Some("make one with `docker save -o image.tar NAME` or `podman save -o image.tar NAME`".into())
            }
            Self::Tar { .. } | Self::Size { .. } | Self::Digest { .. } => {
                Some("the file is damaged or incomplete: save or copy it again".into())
            }
            Self::Missing { .. } => Some("the archive is incomplete: save it again with all layers".into()),
            Self::Platform { wanted, .. } => Some(format!(
                "an image for `{wanted}` is needed here; `--platform` takes another one, to look into it or to hand it on"
            )),
            Self::Registry(cause) => cause.hint(),
            Self::Document { cause, .. } => cause.hint(),
            Self::Read { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                Some("`gpurun image load` takes the path of a file or directory, or `-` for standard input".into())
            }
            _ => None,
        }
    }
}

/// Opens a source and finds its images; `file` is a tar (already inflated), when the source is not a directory.
pub fn open_directory(path: &Path, platform: &Platform) -> Result<Vec<SourceImage>, SourceError> {
    let root = blob::Directory::open(path).map_err(|cause| SourceError::Read { path: path.into(), cause })?;
    let files = Files::Directory(Arc::new(root));
    if !files.has(layout::MARK) {
        return Err(SourceError::Unknown { path: path.into() });
    }
    layout::images(&files, path, platform)
}

/// Finds the images of an archive (an uncompressed tar).
pub fn open_archive(file: File, path: &Path, platform: &Platform) -> Result<Vec<SourceImage>, SourceError> {
    let members = archive::Members::scan(file, path)?;
    let files = Files::Archive(members);
    // A `docker save` of today is both: the layout tells digests, the docker manifest tells names.
    if files.has(layout::MARK) && files.has(layout::INDEX) {
        let mut images = layout::images(&files, path, platform)?;
        if files.has(archive::MANIFEST) {
            archive::add_names(&files, &mut images)?;
        }
        return Ok(images);
    }
    if files.has(archive::MANIFEST) {
        return archive::images(&files, path);
    }
    Err(SourceError::Unknown { path: path.into() })
}

/// The one image that `pick` means: a name that it has, or the layout's own word for it.
pub fn pick(images: Vec<SourceImage>, pick: &str, path: &Path) -> Result<Vec<SourceImage>, SourceError> {
    let named: Option<Reference> = pick.parse().ok();
    let words = |image: &SourceImage| -> Vec<String> {
        image.names.iter().map(Reference::familiar).chain(image.tags.iter().cloned()).collect()
    };
    let words: std::collections::BTreeSet<String> = images.iter().flat_map(words).collect();
    let means = |image: &SourceImage| {
        image.tags.iter().any(|tag| tag == pick) || named.as_ref().is_some_and(|name| image.names.contains(name))
    };
    match images.into_iter().find(means) {
        Some(image) => Ok(vec![image]),
        None => Err(SourceError::NotInside { path: path.into(), pick: pick.into(), found: listed(&words) }),
    }
}

fn listed(words: &std::collections::BTreeSet<String>) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" ")
}

/// The named files of a source.
#[derive(Debug)]
enum Files {
    Directory(Arc<blob::Directory>),
    Archive(archive::Members),
}

impl Files {
    fn has(&self, member: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.open_file(member).is_ok(),
            Self::Archive(members) => members.find(member).is_ok(),
        }
    }

    fn blob(&self, member: &str) -> Result<Blob, SourceError> {
        match self {
            Self::Directory(directory) => Blob::in_directory(directory, member),
            Self::Archive(members) => members.find(member),
        }
    }

    /// A whole small file.
    fn document(&self, member: &str) -> Result<Vec<u8>, SourceError> {
        let limit = crate::image::MAX_DOCUMENT;
        let blob = self.blob(member)?;
        if blob.len > limit {
            return Err(SourceError::TooLarge { member: member.into(), limit });
        }
        blob.read_all().map_err(|cause| SourceError::Blob { member: member.into(), cause })
    }

    /// A whole small blob, with the digest and size that a descriptor promised.
    fn verified(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, SourceError> {
        let member = blob_path(digest);
        let bytes = self.document(&member)?;
        if bytes.len() as u64 != size {
            return Err(SourceError::Size { member, expected: size, found: bytes.len() as u64 });
        }
        let found = digest_of(&bytes);
        if found != *digest {
            return Err(SourceError::Digest { member, expected: *digest, found });
        }
        Ok(bytes)
    }
}

impl choose::Documents for Files {
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.verified(&descriptor.digest, descriptor.size)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.verified(&descriptor.digest, descriptor.size)
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let member = blob_path(&descriptor.digest);
        let blob = self.blob(&member)?;
        if blob.len != descriptor.size {
            return Err(SourceError::Size { member, expected: descriptor.size, found: blob.len });
        }
        Ok(blob)
    }

    fn name(&self, descriptor: &Descriptor) -> String {
        blob_path(&descriptor.digest)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn parse_config(bytes: &[u8], member: &str, layers: usize) -> Result<ImageConfig, SourceError> {
    let failed = |cause| SourceError::Document { member: member.into(), cause };
    let config = ImageConfig::parse(bytes).map_err(failed)?;
    if config.diff_ids.len() == layers {
        Ok(config)
    } else {
        Err(failed(DocumentError::LayerCount { diff_ids: config.diff_ids.len(), layers }))
    }
}
