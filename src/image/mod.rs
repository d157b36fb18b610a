//! The documents of an image: manifest, index and config. The parsers are strict enough that callers can trust their
//! results, and no stricter.
//!
//! All input here is hostile. The parsers take bytes (callers limit their number to [`MAX_DOCUMENT`]), return types
//! without contradictions (as many layers as diff IDs, valid digests), and do not access the disk.

mod config;
mod document;
mod error;
mod manifest;
mod platform;

pub(crate) use error::DocumentError;
use sha2::Digest as _;

pub(crate) use config::Config;
pub use config::ImageConfig;
pub(crate) use document::History;
pub use document::ImageDocument;
pub use manifest::Document;
pub(crate) use manifest::{Compression, Descriptor, Manifest, OCI_MANIFEST, write_manifest};
pub use platform::Platform;
pub(crate) use platform::architecture;

use crate::names::Digest;

/// The maximum size of manifests, indexes and configs. containerd's limit for a manifest is 8 MiB too.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// The maximum number of layers of one image. docker creates at most 127, and an EROFS index supports this number of
/// devices.
pub(crate) const MAX_LAYERS: usize = 1000;

/// The sha256 digest of some bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}
