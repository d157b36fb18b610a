//! The store's record of an image, in addition to the image's documents.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::image::digest_of;

/// The content of `image.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecord {
    pub chain_id: String,
    pub manifest_digest: Option<String>,
    /// Sizes of the layers' tars, lowest first.
    pub layer_sizes: Vec<u64>,
    pub loaded_at: u64,
    #[serde(default)]
    pub intermediate: bool,
    /// The digest of the record without this field, to detect a flipped bit. (Records of older gpurun versions lack
    /// it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
}

impl ImageRecord {
    /// Serializes the record, to be written to `path`.
    pub(super) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let record = Self { check: Some(self.check(path)?), ..self.clone() };
        serde_json::to_vec_pretty(&record).map_err(|cause| StoreError::Json { path: path.into(), cause })
    }

    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, StoreError> {
        let record: Self =
            serde_json::from_slice(bytes).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        match &record.check {
            Some(check) if *check != record.check(path)? => Err(StoreError::Altered { path: path.into() }),
            _ => Ok(record),
        }
    }

    fn check(&self, path: &Path) -> Result<String, StoreError> {
        let plain = Self { check: None, ..self.clone() };
        let bytes = serde_json::to_vec(&plain).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        Ok(digest_of(&bytes).to_string())
    }
}
