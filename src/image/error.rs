//! Errors of an image's documents.

use crate::names::Digest;
use crate::report::Explain;

/// The error of an image's document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the {document} is not valid JSON")]
    Json {
        document: &'static str,
        #[source]
        cause: serde_json::Error,
    },
    #[error("the {document} has `{value}` in the place of a sha256 digest")]
    Digest { document: &'static str, value: String },
    #[error("the {document} contains a NUL byte in {field}")]
    Nul { document: &'static str, field: String },
    #[error("the media type `{media_type}` of the {document} is not that of an image")]
    MediaType { document: &'static str, media_type: String },
    #[error("the config lists {diff_ids} diff IDs, but the manifest lists {layers} layers")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("the image has {found} layers, and the maximum is {limit}")]
    TooManyLayers { found: usize, limit: usize },
    #[error("the {document} has a negative size")]
    Size { document: &'static str },
    #[error("the config's `rootfs.type` is `{0}`, not `layers`")]
    RootfsType(String),
}

impl Explain for DocumentError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::MediaType { .. } => {
                Some("choose an image; this may be a signature, a chart or another artifact".into())
            }
            _ => None,
        }
    }
}

pub(super) fn parse_digest(text: &str, document: &'static str) -> Result<Digest, DocumentError> {
    text.parse().map_err(|_| DocumentError::Digest { document, value: text.escape_debug().take(100).collect() })
}
