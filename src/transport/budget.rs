//! Limits on the cost of finding the images of one source. A source is untrusted: an index may list another index a
//! thousand times, and an archive one config three thousand times. Nothing is therefore read twice, and all data that
//! is read, kept and returned is counted.

use super::SourceError;

/// Maximum number of images of a source.
const MAX_IMAGES: u64 = 1000;
/// Maximum number of names of all images of a source together.
const MAX_NAMES: u64 = 10_000;
/// Maximum bytes of manifests and configs that are kept until the images are in the store.
const MAX_KEPT: u64 = 32 << 20;
/// Maximum bytes of all manifests, indexes and configs that are read.
const MAX_READ: u64 = 256 << 20;
/// Maximum number of these documents that are read from an archive or a directory.
const MAX_DOCUMENTS: u64 = 5000;
/// The same for a registry, where each document is a request. An index for thirty platforms that names none of them
/// needs sixty requests.
const MAX_REQUESTS: u64 = 200;

/// The remaining budget.
#[derive(Debug)]
pub(super) struct Budget {
    max_documents: u64,
    documents: u64,
    read: u64,
    kept: u64,
    images: u64,
    names: u64,
}

impl Budget {
    pub(super) fn of_files() -> Self {
        Self::new(MAX_DOCUMENTS)
    }

    pub(super) fn of_registry() -> Self {
        Self::new(MAX_REQUESTS)
    }

    fn new(max_documents: u64) -> Self {
        Self { max_documents, documents: 0, read: 0, kept: 0, images: 0, names: 0 }
    }

    /// Counts a document that is about to be read.
    pub(super) fn document(&mut self) -> Result<(), SourceError> {
        count(&mut self.documents, 1, self.max_documents, "manifests, indexes and configs")
    }

    /// Counts the bytes of a document.
    pub(super) fn read(&mut self, bytes: usize) -> Result<(), SourceError> {
        count(&mut self.read, bytes, MAX_READ, "bytes of manifests, indexes and configs")
    }

    /// Counts an image, and the bytes of its documents.
    pub(super) fn image(&mut self, bytes: usize) -> Result<(), SourceError> {
        count(&mut self.images, 1, MAX_IMAGES, "images")?;
        count(&mut self.kept, bytes, MAX_KEPT, "bytes of the manifests and configs of its images")
    }

    pub(super) fn names(&mut self, names: usize) -> Result<(), SourceError> {
        count(&mut self.names, names, MAX_NAMES, "names of images")
    }
}

fn count(sum: &mut u64, more: usize, limit: u64, what: &'static str) -> Result<(), SourceError> {
    *sum = sum.saturating_add(more as u64);
    if *sum > limit { Err(SourceError::TooMany { what, limit }) } else { Ok(()) }
}
