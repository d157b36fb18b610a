//! An image of the store.

use super::located::InPlace;
use crate::image::{Config, Platform};
use crate::names::{Digest, Reference};

/// An image of the store.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The digest of the config.
    pub id: Digest,
    pub names: Vec<Reference>,
    /// The command and its settings.
    pub config: Config,
    pub architecture: String,
    pub os: String,
    pub variant: String,
    /// RFC 3339, from the image. May be empty.
    pub created: String,
    pub chain_id: Digest,
    /// Lowest layer first.
    pub diff_ids: Vec<Digest>,
    /// Total size of its layers' tars, in bytes.
    pub size: u64,
    /// Size of each layer's tar, lowest first.
    pub layer_sizes: Vec<u64>,
    /// Seconds since 1970.
    pub loaded_at: u64,
    /// Digest of the manifest that it was loaded with.
    pub manifest_digest: Option<Digest>,
    /// Whether it is a step of a build, which is not listed.
    pub intermediate: bool,
    /// Set if the image runs directly from an archive that contains its layers.
    pub in_place: Option<InPlace>,
}

impl Image {
    /// Returns the name for display: the first name, or else the short id.
    pub(crate) fn label(&self) -> String {
        self.names.first().map_or_else(|| self.short_id(), Reference::familiar)
    }

    /// Whether it is an image without a name that is not a step of a build.
    pub(crate) fn is_dangling(&self) -> bool {
        self.names.is_empty() && !self.intermediate
    }

    /// Returns the platform of the image. Old images have none.
    pub(crate) fn platform(&self) -> Option<Platform> {
        (!self.architecture.is_empty()).then(|| Platform::new(&self.os, &self.architecture, Some(&self.variant)))
    }

    pub(crate) fn short_id(&self) -> String {
        self.id.hex()[..12].to_string()
    }
}
