//! OCI image layouts: `oci-layout`, `index.json`, `blobs/sha256/…`.

use std::path::Path;

use serde::Deserialize;

use super::choose::Search;
use super::{Files, SourceError, SourceImage};
use crate::image::{Descriptor, Document, Platform};
use crate::names::Reference;

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
    let mut search = Search::new(files, platform);
    let mut images: Vec<SourceImage> = Vec::new();
    // Each entry of the top index is an image of its own; below it, an index is one image for several platforms.
    for entry in entries.iter().filter(|entry| entry.is_manifest_or_index()) {
        let Some(mut image) = search.choose(entry, 0)? else { continue };
        image.names = name(entry).into_iter().collect();
        image.tags = annotation(entry, REF_NAME).map(str::to_owned).into_iter().collect();
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => {
                known.names.extend(image.names);
                known.tags.extend(image.tags);
            }
            None => images.push(image),
        }
    }
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

/// The name that an index entry gives: containerd's full one, else the layout's, unless that is a bare tag (`latest`).
fn name(entry: &Descriptor) -> Option<Reference> {
    let full = annotation(entry, "io.containerd.image.name");
    let short = annotation(entry, REF_NAME).filter(|name| name.contains(['/', ':']));
    full.or(short)?.parse().ok()
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.get(key).map(String::as_str)
}
