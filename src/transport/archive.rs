//! Tars: their members by name, and docker's `manifest.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::{Blob, Files, SourceError, SourceImage, SourceLayer, parse_config};
use crate::image::digest_of;
use crate::layer::{EntryKind, tar};
use crate::names::Digest;

pub(super) const MANIFEST: &str = "manifest.json";

/// `docker save` wrote repeated layers as links to each other, never longer than one step.
const MAX_LINKS: usize = 8;

#[derive(Debug)]
pub(super) struct Members {
    file: Arc<File>,
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    Regular {
        offset: u64,
        len: u64,
    },
    /// The member that it leads to, cleaned.
    Link(String),
    Other,
}

impl Members {
    pub fn scan(file: File, path: &Path) -> Result<Self, SourceError> {
        let len = file.metadata().map_err(|cause| SourceError::Read { path: path.into(), cause })?.len();
        let entries = tar::scan_file(&file, 0, len).map_err(|cause| SourceError::Tar { path: path.into(), cause })?;
        let mut members = BTreeMap::new();
        for entry in entries {
            let Ok(name) = std::str::from_utf8(&entry.path) else { continue };
            let Some(name) = clean("", name) else { continue };
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            let member = match &entry.kind {
                EntryKind::File(data) => match data.segments.as_slice() {
                    [] if data.size == 0 => Member::Regular { offset: 0, len: 0 },
                    [one] if one.len == data.size => Member::Regular { offset: one.offset, len: one.len },
                    _ => Member::Other,
                },
                EntryKind::Symlink(target) => link(parent, target),
                EntryKind::HardLink(target) => link("", target),
                EntryKind::Directory => continue,
                _ => Member::Other,
            };
            members.insert(name, member);
        }
        Ok(Self { file: Arc::new(file), members })
    }

    pub fn find(&self, member: &str) -> Result<Blob, SourceError> {
        let mut name = clean("", member).ok_or_else(|| SourceError::Missing { member: member.into() })?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                Some(Member::Regular { offset, len }) => return Ok(Blob::range(self.file.clone(), *offset, *len)),
                Some(Member::Link(target)) => name = target.clone(),
                Some(Member::Other) => break,
                None => return Err(SourceError::Missing { member: member.into() }),
            }
        }
        Err(SourceError::NotRegular { member: member.into() })
    }
}

fn link(parent: &str, target: &[u8]) -> Member {
    std::str::from_utf8(target).ok().and_then(|target| clean(parent, target)).map_or(Member::Other, Member::Link)
}

/// A member's name as a key: `./` and `..` resolved by letter; `None` when it leaves the archive.
fn clean(parent: &str, name: &str) -> Option<String> {
    let mut components: Vec<&str> = Vec::new();
    let parent = if name.starts_with('/') { "" } else { parent };
    for component in parent.split('/').chain(name.split('/')) {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()?),
            _ => components.push(component),
        }
    }
    (!components.is_empty()).then(|| components.join("/"))
}

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

/// The images of a docker-archive.
pub(super) fn images(files: &Files, path: &Path) -> Result<Vec<SourceImage>, SourceError> {
    let images = items(files)?.into_iter().map(|item| image(files, item)).collect::<Result<Vec<_>, _>>()?;
    if images.is_empty() { Err(SourceError::Empty { path: path.into() }) } else { Ok(images) }
}

fn image(files: &Files, item: Item) -> Result<SourceImage, SourceError> {
    let layers = item.layers.unwrap_or_default();
    let config_bytes = files.document(&item.config)?;
    let config = parse_config(&config_bytes, &item.config, layers.len())?;
    let id = digest_of(&config_bytes);
    // The config's name is its digest: then it must be true.
    if let Some(expected) = told_digest(&item.config).filter(|told| *told != id) {
        return Err(SourceError::Digest { member: item.config, expected, found: id });
    }
    let layers = layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(layer, diff_id)| Ok(SourceLayer { diff_id: *diff_id, digest: None, blob: files.blob(layer)? }));
    let layers = layers.collect::<Result<_, SourceError>>()?;
    let names = item.repo_tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()).collect();
    Ok(SourceImage { id, names, tags: Vec::new(), config, config_bytes, manifest_bytes: None, layers })
}

/// Adds the names of docker's manifest to images found by their layout.
pub(super) fn add_names(files: &Files, images: &mut [SourceImage]) -> Result<(), SourceError> {
    for item in items(files)? {
        let Some(id) = told_digest(&item.config) else { continue };
        for image in images.iter_mut().filter(|image| image.id == id) {
            let names = item.repo_tags.iter().flatten().filter_map(|tag| tag.parse().ok());
            for name in names {
                if !image.names.contains(&name) {
                    image.names.push(name);
                }
            }
        }
    }
    Ok(())
}

/// `<hex>.json` or `blobs/sha256/<hex>`.
fn told_digest(member: &str) -> Option<Digest> {
    let last = member.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}
