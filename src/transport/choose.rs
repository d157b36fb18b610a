//! From a manifest or an index to the one image for a platform: the same search for a layout on disk and for a registry.

use super::{Blob, SourceError, SourceImage, SourceLayer, parse_config};
use crate::image::{Descriptor, Document, Manifest, Platform};

/// An index of an index of an index: no tool makes more.
const MAX_NESTING: usize = 4;

/// Where an image's documents and blobs can be had. What a descriptor promises is checked before anything is answered.
pub(super) trait Documents {
    /// A manifest or an index.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;
    /// A layer: where its bytes are, not the bytes.
    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError>;
    /// What to call a document in an error.
    fn name(&self, descriptor: &Descriptor) -> String;
}

/// A search through the indexes, with what it passed over.
pub(super) struct Search<'a> {
    documents: &'a dyn Documents,
    platform: &'a Platform,
    /// Platforms of images that do not fit.
    others: Vec<String>,
}

impl<'a> Search<'a> {
    pub fn new(documents: &'a dyn Documents, platform: &'a Platform) -> Self {
        Self { documents, platform, others: Vec::new() }
    }

    /// The platforms that there are instead, if the search passed over any.
    pub fn refusal(mut self) -> Option<String> {
        self.others.sort();
        self.others.dedup();
        (!self.others.is_empty()).then(|| self.others.join(", "))
    }

    pub fn choose(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<SourceImage>, SourceError> {
        if depth > MAX_NESTING {
            return Err(SourceError::Nesting(MAX_NESTING));
        }
        if let Some(platform) = &entry.platform
            && !platform.runs_on(self.platform)
        {
            // buildkit's attestations call themselves unknown/unknown.
            if platform.os != "unknown" {
                self.others.push(platform.to_string());
            }
            return Ok(None);
        }
        let bytes = self.documents.manifest(entry)?;
        let document = Document::parse(&bytes)
            .map_err(|cause| SourceError::Document { member: self.documents.name(entry), cause })?;
        self.document(document, bytes, entry.platform.is_some(), depth)
    }

    /// The image of a document that is read already; `settled`: its platform is known to fit.
    pub fn document(
        &mut self,
        document: Document,
        bytes: Vec<u8>,
        settled: bool,
        depth: usize,
    ) -> Result<Option<SourceImage>, SourceError> {
        match document {
            // A lone image is taken as it is: nobody offers a choice.
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

    /// `settled`: the platform is known to fit, or nobody offers a choice; otherwise the config decides.
    fn image(
        &mut self,
        manifest: &Manifest,
        bytes: Vec<u8>,
        settled: bool,
    ) -> Result<Option<SourceImage>, SourceError> {
        let config_bytes = self.documents.config(&manifest.config)?;
        let config = parse_config(&config_bytes, &self.documents.name(&manifest.config), manifest.layers.len())?;
        let platform = Platform { os: config.os.clone(), architecture: config.architecture.clone(), variant: None };
        if !settled && !platform.runs_on(self.platform) {
            self.others.push(platform.to_string());
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
        }))
    }
}

/// The index's order, but what has the very variant that was asked for comes first.
fn by_fitness<'a>(entries: impl Iterator<Item = &'a Descriptor>, platform: &Platform) -> Vec<&'a Descriptor> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| {
        entry.platform.as_ref().is_none_or(|offered| platform.variant.is_some() && offered.variant != platform.variant)
    });
    entries
}
