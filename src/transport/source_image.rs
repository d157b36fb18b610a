//! An image as a source has it.

use super::blob::Blob;
use super::error::SourceError;
use crate::image::{DocumentError, ImageConfig, MAX_LAYERS};
use crate::names::{Digest, Reference};

/// An image in a source. Its documents are verified.
#[derive(Debug)]
pub struct SourceImage {
    /// The digest of the config.
    pub id: Digest,
    pub names: Vec<Reference>,
    /// The layout's `ref.name` annotations, which need not be valid image names (`latest`).
    pub tags: Vec<String>,
    pub config: ImageConfig,
    pub config_bytes: Vec<u8>,
    /// Verbatim, if the source has one (a docker-archive has none).
    pub manifest_bytes: Option<Vec<u8>>,
    /// One layer for each diff ID of the config, in the same order.
    pub layers: Vec<SourceLayer>,
    /// The digests by which a registry identifies the image: that of its manifest, and that of the index that it was
    /// chosen from.
    pub repo_digests: Vec<Digest>,
}

impl SourceImage {
    /// Removes duplicate names.
    pub(super) fn name_once(&mut self) {
        let mut seen = std::collections::HashSet::new();
        self.names.retain(|name| seen.insert(name.clone()));
    }
}

/// A layer of a source.
#[derive(Debug, Clone)]
pub struct SourceLayer {
    pub diff_id: Digest,
    /// Digest of the compressed bytes, if a manifest names it.
    pub digest: Option<Digest>,
    pub blob: Blob,
}

pub(super) fn parse_config(bytes: &[u8], member: &str, layers: usize) -> Result<ImageConfig, SourceError> {
    let failed = |cause| SourceError::Document { member: member.into(), cause };
    if layers > MAX_LAYERS {
        return Err(failed(DocumentError::TooManyLayers { found: layers, limit: MAX_LAYERS }));
    }
    let config = ImageConfig::parse(bytes).map_err(failed)?;
    if config.diff_ids.len() == layers {
        Ok(config)
    } else {
        Err(failed(DocumentError::LayerCount { diff_ids: config.diff_ids.len(), layers }))
    }
}
