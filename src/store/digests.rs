//! `digests.json`: which image a repository digest refers to.
//!
//! A registry identifies the current content of a tag by the digest of its index or manifest. `docker pull` prints this
//! digest, and registries display it. The id of an image is the digest of its config, so the store must record which
//! image `NAME@sha256:…` refers to. The file maps `domain/path@digest` to ids. Entries of removed images are dropped
//! with the next write. Like `names.json`, it contains its own digest under `""`. A damaged file is treated as missing,
//! because a pull restores its entries.

use std::collections::BTreeMap;

use super::files::read_optional;
use super::names::check;
use super::{Store, StoreError};
use crate::durable;
use crate::names::{Digest, Reference};
use crate::transport::SourceImage;

const CHECK: &str = "";

/// `domain/path@digest` → id.
#[derive(Debug, Default)]
pub(super) struct RepoDigests(BTreeMap<String, String>);

impl RepoDigests {
    fn key(name: &Reference, digest: &Digest) -> String {
        Reference { tag: None, digest: Some(*digest), ..name.clone() }.to_string()
    }

    pub(super) fn get(&self, name: &Reference, digest: &Digest) -> Option<Digest> {
        self.0.get(&Self::key(name, digest))?.parse().ok()
    }

    /// Returns the digests of an image, as references.
    pub(super) fn of(&self, id: &Digest) -> Vec<Reference> {
        let id = id.to_string();
        self.0.iter().filter(|(_, target)| **target == id).filter_map(|(name, _)| name.parse().ok()).collect()
    }
}

impl Store {
    pub(super) fn repo_digests(&self) -> Result<RepoDigests, StoreError> {
        let Some(bytes) = read_optional(&self.root.join("digests.json"))? else { return Ok(RepoDigests::default()) };
        let mut all: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap_or_default();
        let recorded = all.remove(CHECK);
        Ok(if recorded.is_some_and(|recorded| recorded == check(&all)) {
            RepoDigests(all)
        } else {
            RepoDigests::default()
        })
    }

    /// Records the digests that images were pulled by. Requires the exclusive lock.
    pub(super) fn add_repo_digests(&self, images: &[SourceImage]) -> Result<(), StoreError> {
        let mut digests = self.repo_digests()?;
        let before = digests.0.clone();
        for image in images {
            for digest in &image.repo_digests {
                let keys = image.names.iter().map(|name| RepoDigests::key(name, digest));
                digests.0.extend(keys.map(|key| (key, image.id.to_string())));
            }
        }
        if digests.0 == before {
            return Ok(());
        }
        let ids = self.image_ids()?;
        digests.0.retain(|_, id| id.parse().is_ok_and(|id: Digest| ids.binary_search(&id).is_ok()));
        let path = self.root.join("digests.json");
        let sum = check(&digests.0);
        digests.0.insert(CHECK.into(), sum);
        let bytes =
            serde_json::to_vec_pretty(&digests.0).map_err(|cause| StoreError::Json { path: path.clone(), cause })?;
        let temp = self.root.join("tmp").join(format!("digests.{}", std::process::id()));
        durable::write_atomic_by(&temp, &path, &bytes).map_err(StoreError::io("write", &path))
    }

    /// Returns the references of an image by digest: `docker inspect`'s `RepoDigests`.
    pub(crate) fn repo_digests_of(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        Ok(self.repo_digests()?.of(id))
    }
}
