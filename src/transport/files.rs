//! The files of an archive or a layout, by name.

use std::sync::Arc;

use super::blob::Blob;
use super::error::SourceError;
use super::{blob, choose, members};
use crate::image::{Descriptor, digest_of};
use crate::names::Digest;

/// The files of a source, by name.
#[derive(Debug)]
pub(super) enum Files {
    Directory(Arc<blob::Directory>),
    Archive(members::Members),
}

impl Files {
    pub(super) fn has(&self, member: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.open_file(member).is_ok(),
            Self::Archive(members) => members.find(member).is_ok(),
        }
    }

    pub(super) fn blob(&self, member: &str) -> Result<Blob, SourceError> {
        match self {
            Self::Directory(directory) => Blob::in_directory(directory, member),
            Self::Archive(members) => members.find(member),
        }
    }

    /// Reads a whole small file.
    pub(super) fn document(&self, member: &str) -> Result<Vec<u8>, SourceError> {
        let limit = crate::image::MAX_DOCUMENT;
        let blob = self.blob(member)?;
        if blob.len > limit {
            return Err(SourceError::TooLarge { member: member.into(), limit });
        }
        blob.read_all().map_err(|cause| SourceError::Blob { member: member.into(), cause })
    }

    /// Reads a whole small blob, and verifies the digest and size of its descriptor.
    pub(super) fn verified(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, SourceError> {
        let member = blob_path(digest);
        let bytes = self.document(&member)?;
        if bytes.len() as u64 != size {
            return Err(SourceError::Size { member, expected: size, found: bytes.len() as u64 });
        }
        let found = digest_of(&bytes);
        if found != *digest {
            return Err(SourceError::Digest { member, expected: *digest, found });
        }
        Ok(bytes)
    }
}

impl choose::Documents for Files {
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.verified(&descriptor.digest, descriptor.size)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.verified(&descriptor.digest, descriptor.size)
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let member = blob_path(&descriptor.digest);
        let blob = self.blob(&member)?;
        if blob.len != descriptor.size {
            return Err(SourceError::Size { member, expected: descriptor.size, found: blob.len });
        }
        Ok(blob)
    }

    fn name(&self, descriptor: &Descriptor) -> String {
        blob_path(&descriptor.digest)
    }
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
