//! OCI image layouts: `oci-layout`, `index.json`, `blobs/sha256/…`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::budget::Budget;
use super::choose::Search;
use super::files::Files;
use super::{SourceError, SourceImage};
use crate::image::{Descriptor, Document, Platform};
use crate::names::{Digest, Reference};

pub(super) const MARK: &str = "oci-layout";
pub(super) const INDEX: &str = "index.json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

pub(super) fn images(files: &Files, path: &Path, platform: &Platform) -> Result<Vec<SourceImage>, SourceError> {
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
    let mut search = Search::new(files, platform, Budget::of_files());
    let mut images: Vec<SourceImage> = Vec::new();
    // Indices of the images, by manifest and by id. If an image is listed again, only its names are added.
    let (mut by_manifest, mut by_id): (HashMap<Digest, usize>, HashMap<Digest, usize>) = Default::default();
    // Each entry of the top index is a separate image. An index below it is one image for several platforms.
    for entry in entries.iter().filter(|entry| entry.is_manifest_or_index()) {
        let at = match by_manifest.get(&entry.digest) {
            Some(at) => *at,
            None => {
                let Some(image) = search.choose(entry, 0)? else { continue };
                let at = *by_id.entry(image.id).or_insert(images.len());
                if at == images.len() {
                    search
                        .budget
                        .image(image.config_bytes.len() + image.manifest_bytes.as_ref().map_or(0, Vec::len))?;
                    images.push(image);
                }
                by_manifest.insert(entry.digest, at);
                at
            }
        };
        search.budget.names(2)?;
        images[at].names.extend(name(entry));
        images[at].tags.extend(annotation(entry, REF_NAME).map(str::to_owned));
    }
    images.iter_mut().for_each(SourceImage::name_once);
    if !images.is_empty() {
        return Ok(images);
    }
    match search.refusal() {
        None => Err(SourceError::Empty { path: path.into() }),
        Some(found) => {
            Err(SourceError::Platform { origin: path.display().to_string(), wanted: platform.to_string(), found })
        }
    }
}

/// Returns the name of an index entry: containerd's full name, or else the layout's, unless that is a bare tag
/// (`latest`).
fn name(entry: &Descriptor) -> Option<Reference> {
    let full = annotation(entry, "io.containerd.image.name");
    let short = annotation(entry, REF_NAME).filter(|name| name.contains(['/', ':']));
    full.or(short)?.parse().ok()
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.get(key).map(String::as_str)
}
