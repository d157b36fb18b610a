//! Sources and destinations of images: docker-archive tars (`docker save`, `podman save`), OCI image layouts (as a
//! directory or as a tar), and registries.
//!
//! A transport finds the images in a source, reads and verifies their small documents (manifest, config), and returns
//! the location of each layer's bytes ([`Blob`]). It decompresses nothing and writes nothing. Members of an archive are
//! found by scanning its headers. Blobs of a directory are opened below its descriptor, and symbolic links are refused.
//! No name in a source becomes a path on the host.

mod archive;
mod blob;
mod budget;
mod choose;
mod error;
mod files;
mod layout;
mod members;
pub(crate) mod pack;
pub(crate) mod registry;
mod source;
mod source_image;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

pub(crate) use blob::{Blob, BlobReader};
pub(crate) use error::SourceError;
use files::Files;
pub use source::Source;
pub(crate) use source::SourceNameError;
pub(crate) use source_image::{SourceImage, SourceLayer};

use crate::image::Platform;
use crate::names::Reference;

/// Opens a source directory, and finds its images.
pub(crate) fn open_directory(path: &Path, platform: &Platform) -> Result<Vec<SourceImage>, SourceError> {
    let root = blob::Directory::open(path).map_err(|cause| SourceError::Read { path: path.into(), cause })?;
    let files = Files::Directory(Arc::new(root));
    if !files.has(layout::MARK) {
        return Err(SourceError::Unknown { path: path.into() });
    }
    layout::images(&files, path, platform)
}

/// Finds the images of an archive (an uncompressed tar).
pub fn open_archive(file: File, path: &Path, platform: &Platform) -> Result<Vec<SourceImage>, SourceError> {
    let members = members::Members::scan(file, path)?;
    let files = Files::Archive(members);
    // The output of a current `docker save` has both formats: the layout has the digests, and the docker manifest has
    // the names.
    if files.has(layout::MARK) && files.has(layout::INDEX) {
        let mut images = layout::images(&files, path, platform)?;
        if files.has(archive::MANIFEST) {
            archive::add_names(&files, &mut images)?;
        }
        return Ok(images);
    }
    if files.has(archive::MANIFEST) {
        return archive::images(&files, path);
    }
    Err(SourceError::Unknown { path: path.into() })
}

/// Returns the one image that `pick` refers to, by a name of the image or by the layout's `ref.name`.
pub(crate) fn pick(images: Vec<SourceImage>, pick: &str, path: &Path) -> Result<Vec<SourceImage>, SourceError> {
    let named: Option<Reference> = pick.parse().ok();
    let labels = |image: &SourceImage| -> Vec<String> {
        image.names.iter().map(Reference::familiar).chain(image.tags.iter().cloned()).collect()
    };
    let labels: std::collections::BTreeSet<String> = images.iter().flat_map(labels).collect();
    let means = |image: &SourceImage| {
        image.tags.iter().any(|tag| tag == pick) || named.as_ref().is_some_and(|name| image.names.contains(name))
    };
    match images.into_iter().find(means) {
        Some(image) => Ok(vec![image]),
        None => Err(SourceError::NotInside { path: path.into(), pick: pick.into(), found: listed(&labels) }),
    }
}

fn listed(labels: &std::collections::BTreeSet<String>) -> String {
    labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ")
}
