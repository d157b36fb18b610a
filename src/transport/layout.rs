//! OCI image layouts: `oci-layout`, `index.json`, `blobs/sha256/…`.

use std::path::Path;

use serde::Deserialize;

use super::{Files, SourceError, SourceImage, SourceLayer, blob_path, parse_config};
use crate::image::{Descriptor, Document, Manifest, Platform};
use crate::names::Reference;

pub(super) const MARK: &str = "oci-layout";
pub(super) const INDEX: &str = "index.json";

/// An index of an index of an index: no tool makes more.
const MAX_NESTING: usize = 4;

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// A search through the indexes, with what it passed over.
struct Search<'a> {
    files: &'a Files,
    host: Platform,
    /// Platforms of images that do not run here.
    others: Vec<String>,
}

pub(super) fn images(files: &Files, path: &Path) -> Result<Vec<SourceImage>, SourceError> {
    let mark: Mark = serde_json::from_slice(&files.document(MARK)?)
        .map_err(|cause| SourceError::Json { member: MARK.into(), cause })?;
    if mark.version != "1.0.0" {
        return Err(SourceError::LayoutVersion(mark.version.escape_debug().take(40).collect()));
    }
    let bytes = files.document(INDEX)?;
    let document = Document::parse(&bytes).map_err(|cause| SourceError::Document { member: INDEX.into(), cause })?;
    let Document::Index(entries) = document else {
        return Err(SourceError::Unknown { path: path.into() });
    };
    let mut search = Search { files, host: Platform::host(), others: Vec::new() };
    let mut images: Vec<SourceImage> = Vec::new();
    // Each entry of the top index is an image of its own; below it, an index is one image for several platforms.
    for entry in entries.iter().filter(|entry| entry.is_manifest_or_index()) {
        let Some(mut image) = search.choose(entry, 0)? else { continue };
        image.names = name(entry).into_iter().collect();
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    if !images.is_empty() {
        return Ok(images);
    }
    search.others.sort();
    search.others.dedup();
    match search.others.is_empty() {
        true => Err(SourceError::Empty { path: path.into() }),
        false => Err(SourceError::Platform {
            path: path.into(),
            wanted: search.host.to_string(),
            found: search.others.join(", "),
        }),
    }
}

impl Search<'_> {
    fn choose(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<SourceImage>, SourceError> {
        if depth > MAX_NESTING {
            return Err(SourceError::Nesting(MAX_NESTING));
        }
        if let Some(platform) = &entry.platform
            && !platform.runs_on(&self.host)
        {
            // buildkit's attestations call themselves unknown/unknown.
            if platform.os != "unknown" {
                self.others.push(platform.to_string());
            }
            return Ok(None);
        }
        let member = blob_path(&entry.digest);
        let bytes = self.files.verified(&entry.digest, entry.size)?;
        let document = Document::parse(&bytes).map_err(|cause| SourceError::Document { member, cause })?;
        match document {
            Document::Manifest(manifest) => self.image(&manifest, bytes, entry.platform.is_some() || depth == 0),
            Document::Index(entries) => {
                for entry in entries.iter().filter(|entry| entry.is_manifest_or_index()) {
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
        let config_bytes = self.files.verified(&manifest.config.digest, manifest.config.size)?;
        let member = blob_path(&manifest.config.digest);
        let config = parse_config(&config_bytes, &member, manifest.layers.len())?;
        let platform = Platform { os: config.os.clone(), architecture: config.architecture.clone(), variant: None };
        if !settled && !platform.runs_on(&self.host) {
            self.others.push(platform.to_string());
            return Ok(None);
        }
        let layers = manifest.layers.iter().zip(&config.diff_ids).map(|(layer, diff_id)| {
            let member = blob_path(&layer.digest);
            let blob = self.files.blob(&member)?;
            if blob.len != layer.size {
                return Err(SourceError::Size { member, expected: layer.size, found: blob.len });
            }
            Ok(SourceLayer { diff_id: *diff_id, digest: Some(layer.digest), blob })
        });
        let layers = layers.collect::<Result<_, _>>()?;
        let id = manifest.config.digest;
        Ok(Some(SourceImage { id, names: Vec::new(), config, config_bytes, manifest_bytes: Some(bytes), layers }))
    }
}

/// The name that an index entry gives: containerd's full one, else the layout's, unless that is a bare tag (`latest`).
fn name(entry: &Descriptor) -> Option<Reference> {
    let annotation = |key| entry.annotations.get(key).map(String::as_str);
    let full = annotation("io.containerd.image.name");
    let short = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    full.or(short)?.parse().ok()
}
