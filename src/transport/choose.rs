//! Finds the one image for a platform from a manifest or an index. The search is the same for a layout on disk and for
//! a registry.

use std::collections::{BTreeSet, HashSet};

use super::budget::Budget;
use super::source_image::parse_config;
use super::{Blob, SourceError, SourceImage, SourceLayer};
use crate::image::{Descriptor, Document, Manifest, Platform};
use crate::names::Digest;

/// An index of an index of an index. No tool nests deeper.
const MAX_NESTING: usize = 4;

/// The source of an image's documents and blobs. Implementations verify the digest and size of a descriptor before they
/// return a document.
pub(super) trait Documents {
    /// Returns a manifest or an index.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;
    /// Returns a layer by the location of its bytes, without reading them.
    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError>;
    /// Returns the name of a document for an error message.
    fn name(&self, descriptor: &Descriptor) -> String;
}

/// Maximum number of other platforms that an error names.
const MAX_OTHERS: usize = 20;

/// A search through the indexes, which records the images that it skipped.
pub(super) struct Search<'a> {
    documents: &'a dyn Documents,
    platform: &'a Platform,
    /// Platforms of images that do not match.
    others: BTreeSet<String>,
    /// Manifests and indexes without a match, and whether their platform was known to match. They are not read again.
    passed: HashSet<(Digest, bool)>,
    pub budget: Budget,
}

impl<'a> Search<'a> {
    pub(super) fn new(documents: &'a dyn Documents, platform: &'a Platform, budget: Budget) -> Self {
        Self { documents, platform, others: BTreeSet::new(), passed: HashSet::new(), budget }
    }

    /// Returns the platforms of the skipped images, if there are any.
    pub(super) fn refusal(self) -> Option<String> {
        let more = if self.others.len() > MAX_OTHERS { ", and others" } else { "" };
        let named = self.others.into_iter().take(MAX_OTHERS).collect::<Vec<_>>().join(", ");
        (!named.is_empty()).then(|| named + more)
    }

    fn pass_over(&mut self, platform: &Platform) {
        // One more than the error names is enough to know that there are more.
        if self.others.len() <= MAX_OTHERS {
            self.others.insert(platform.to_string().chars().take(60).collect());
        }
    }

    pub(super) fn choose(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<SourceImage>, SourceError> {
        if depth > MAX_NESTING {
            return Err(SourceError::Nesting(MAX_NESTING));
        }
        if let Some(platform) = &entry.platform
            && !platform.runs_on(self.platform)
        {
            // buildkit's attestations have the platform unknown/unknown.
            if platform.os != "unknown" {
                self.pass_over(platform);
            }
            return Ok(None);
        }
        let settled = entry.platform.is_some();
        if self.passed.contains(&(entry.digest, settled)) {
            return Ok(None);
        }
        self.budget.document()?;
        let bytes = self.documents.manifest(entry)?;
        self.budget.read(bytes.len())?;
        let document = Document::parse(&bytes)
            .map_err(|cause| SourceError::Document { member: self.documents.name(entry), cause })?;
        let found = self.document(document, bytes, settled, depth)?;
        if found.is_none() {
            self.passed.insert((entry.digest, settled));
        }
        Ok(found)
    }

    /// Returns the image of a document that was already read. `settled` means that its platform is known to match.
    pub(super) fn document(
        &mut self,
        document: Document,
        bytes: Vec<u8>,
        settled: bool,
        depth: usize,
    ) -> Result<Option<SourceImage>, SourceError> {
        match document {
            // A single image is used whatever its platform is, because there is no alternative.
            Document::Manifest(manifest) => self.image(&manifest, bytes, settled || depth == 0),
            Document::Index(entries) => {
                let images = entries.iter().filter(|entry| entry.is_manifest_or_index());
                for entry in by_fitness(images, self.platform) {
                    if let Some(image) = self.choose(entry, depth + 1)? {
                        return Ok(Some(image));
                    }
                }
                Ok(None)
            }
        }
    }

    /// `settled` means that the platform is known to match, or that there is no alternative. Otherwise the config
    /// decides.
    fn image(
        &mut self,
        manifest: &Manifest,
        bytes: Vec<u8>,
        settled: bool,
    ) -> Result<Option<SourceImage>, SourceError> {
        self.budget.document()?;
        let config_bytes = self.documents.config(&manifest.config)?;
        self.budget.read(config_bytes.len())?;
        let config = parse_config(&config_bytes, &self.documents.name(&manifest.config), manifest.layers.len())?;
        if let Some(platform) = config.platform().filter(|platform| !settled && !platform.runs_on(self.platform)) {
            self.pass_over(&platform);
            return Ok(None);
        }
        let layers = manifest.layers.iter().zip(&config.diff_ids).map(|(layer, diff_id)| {
            let blob = self.documents.layer(layer)?;
            Ok(SourceLayer { diff_id: *diff_id, digest: Some(layer.digest), blob })
        });
        Ok(Some(SourceImage {
            id: manifest.config.digest,
            names: Vec::new(),
            tags: Vec::new(),
            layers: layers.collect::<Result<_, SourceError>>()?,
            config,
            config_bytes,
            manifest_bytes: Some(bytes),
            repo_digests: Vec::new(),
        }))
    }
}

/// Sorts the entries by how well they match the platform, best first. Equal matches keep the order of the index, and
/// entries without a platform come last.
fn by_fitness<'a>(entries: impl Iterator<Item = &'a Descriptor>, platform: &Platform) -> Vec<&'a Descriptor> {
    let mut entries: Vec<_> = entries.collect();
    let rank = |offered: &Platform| offered.rank(platform).unwrap_or(u32::MAX - 1);
    entries.sort_by_cached_key(|entry| entry.platform.as_ref().map_or(u32::MAX, rank));
    entries
}
