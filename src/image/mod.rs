//! What an image says about itself: manifest, index and config, parsed strictly enough to be trusted and no stricter.
//!
//! Everything here was written by a stranger. The parsers take bytes (callers bound their number by [`MAX_DOCUMENT`]), give types
//! without contradictions (as many layers as diff ids, digests that are digests), and touch no disk.

mod config;
mod document;
mod manifest;

use sha2::Digest as _;

pub use config::{Config, ImageConfig};
pub use document::{History, ImageDocument, architecture};
pub use manifest::{Compression, Descriptor, Document, Manifest, OCI_MANIFEST, Platform, write_manifest};

use crate::names::Digest;
use crate::report::Explain;

/// Manifests, indexes and configs larger than this are refused; containerd's limit for a manifest is 8 MiB too.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// A document of an image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the {document} is not valid JSON")]
    Json {
        document: &'static str,
        #[source]
        cause: serde_json::Error,
    },
    #[error("the {document} holds `{value}` where a sha256 digest must stand")]
    Digest { document: &'static str, value: String },
    #[error("the {document} holds a NUL byte in {place}")]
    Nul { document: &'static str, place: String },
    #[error("the media type `{media_type}` of the {document} is not one of an image")]
    MediaType { document: &'static str, media_type: String },
    #[error("the config lists {diff_ids} diff ids, but the manifest {layers} layers")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("the {document} has a size below zero")]
    Size { document: &'static str },
    #[error("the config's `rootfs.type` is `{0}`, not `layers`")]
    RootfsType(String),
}

impl Explain for DocumentError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::MediaType { .. } => {
                Some("it may be a signature, a chart or another artifact: choose an image".into())
            }
            _ => None,
        }
    }
}

/// The sha256 digest of some bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}

fn parse_digest(text: &str, document: &'static str) -> Result<Digest, DocumentError> {
    text.parse().map_err(|_| DocumentError::Digest { document, value: text.escape_debug().take(100).collect() })
}
