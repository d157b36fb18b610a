//! Tar archives: their members by name, and docker's `manifest.json`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::budget::Budget;
use super::files::Files;
use super::source_image::parse_config;
use super::{SourceError, SourceImage, SourceLayer};
use crate::image::{DocumentError, digest_of};
use crate::names::Digest;

pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

fn items(files: &Files) -> Result<Vec<Item>, SourceError> {
    let bytes = files.document(MANIFEST)?;
    serde_json::from_slice(&bytes).map_err(|cause| SourceError::Json { member: MANIFEST.into(), cause })
}

/// Returns the images of a docker-archive. If an image is listed again, only its names are added, because its config
/// and layers are the same.
pub(super) fn images(files: &Files, path: &Path) -> Result<Vec<SourceImage>, SourceError> {
    let mut budget = Budget::of_files();
    let mut images: Vec<SourceImage> = Vec::new();
    // Indices of the images, by the position of their config in the archive and by id.
    let (mut by_location, mut by_id): (HashMap<_, usize>, HashMap<Digest, usize>) = Default::default();
    for item in items(files)? {
        let blob = files.blob(&item.config)?;
        let known = blob.location().and_then(|location| by_location.get(&location).copied());
        let at = match known {
            Some(at) => at,
            None => {
                budget.document()?;
                let image = image(files, &item)?;
                budget.read(image.config_bytes.len())?;
                let at = *by_id.entry(image.id).or_insert(images.len());
                if at == images.len() {
                    budget.image(image.config_bytes.len())?;
                    images.push(image);
                }
                by_location.extend(blob.location().map(|location| (location, at)));
                at
            }
        };
        check_name(&item.config, images[at].id)?;
        let (layers, expected) = (item.layers.map_or(0, |layers| layers.len()), images[at].layers.len());
        if layers != expected {
            let cause = DocumentError::LayerCount { diff_ids: expected, layers };
            return Err(SourceError::Document { member: item.config, cause });
        }
        let tags = item.repo_tags.unwrap_or_default();
        budget.names(tags.len())?;
        images[at].names.extend(tags.iter().filter_map(|tag| tag.parse().ok()));
    }
    images.iter_mut().for_each(SourceImage::name_once);
    if images.is_empty() { Err(SourceError::Empty { path: path.into() }) } else { Ok(images) }
}

fn image(files: &Files, item: &Item) -> Result<SourceImage, SourceError> {
    let layers = item.layers.as_deref().unwrap_or_default();
    let config_bytes = files.document(&item.config)?;
    let config = parse_config(&config_bytes, &item.config, layers.len())?;
    let id = digest_of(&config_bytes);
    let layers = layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(layer, diff_id)| Ok(SourceLayer { diff_id: *diff_id, digest: None, blob: files.blob(layer)? }));
    let layers = layers.collect::<Result<_, SourceError>>()?;
    Ok(SourceImage {
        id,
        names: Vec::new(),
        tags: Vec::new(),
        config,
        config_bytes,
        manifest_bytes: None,
        layers,
        repo_digests: Vec::new(),
    })
}

/// The name of a config is its digest, so the two must match.
fn check_name(member: &str, found: Digest) -> Result<(), SourceError> {
    match declared_digest(member).filter(|declared| *declared != found) {
        Some(expected) => Err(SourceError::Digest { member: member.into(), expected, found }),
        None => Ok(()),
    }
}

/// Adds the names of docker's manifest to images that were found through the layout.
pub(super) fn add_names(files: &Files, images: &mut [SourceImage]) -> Result<(), SourceError> {
    let mut budget = Budget::of_files();
    let by_id: HashMap<Digest, usize> = images.iter().enumerate().map(|(at, image)| (image.id, at)).collect();
    for item in items(files)? {
        let Some(at) = declared_digest(&item.config).and_then(|id| by_id.get(&id)) else { continue };
        let tags = item.repo_tags.unwrap_or_default();
        budget.names(tags.len())?;
        images[*at].names.extend(tags.iter().filter_map(|tag| tag.parse().ok()));
    }
    images.iter_mut().for_each(SourceImage::name_once);
    Ok(())
}

/// Parses `<hex>.json` or `blobs/sha256/<hex>`.
fn declared_digest(member: &str) -> Option<Digest> {
    let last = member.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}
