//! The record of an image that runs from an archive.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::StoreError;
use crate::image::digest_of;
use crate::layer::{Entry, tar};

/// The position of a layer's tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    pub path: PathBuf,
    pub start: u64,
    pub len: u64,
}

/// The content of `located.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InPlace {
    /// Path of the archive that it runs from, for display.
    pub archive: PathBuf,
    /// One for each layer, lowest first.
    pub layers: Vec<Stretch>,
    pub(super) files: Vec<Stamp>,
    /// Whether the digests of the layers were verified.
    pub(super) checked: bool,
    /// The digest of this record without this field. It distinguishes damage of the record from a change of the
    /// archive. (Records of older gpurun versions lack it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) check: Option<String>,
}

/// The identity of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) len: u64,
    /// Seconds and nanoseconds of mtime and ctime.
    pub(super) times: [i64; 4],
}

impl Stamp {
    pub(super) fn of(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self::from(path, &file.metadata()?))
    }

    pub(super) fn from(path: &Path, meta: &fs::Metadata) -> Self {
        Self {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            times: [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()],
        }
    }
}

impl InPlace {
    /// Serializes the record, to be written to `path`.
    pub(super) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let located = Self { check: Some(self.check(path)?), ..self.clone() };
        serde_json::to_vec_pretty(&located).map_err(|cause| StoreError::Json { path: path.into(), cause })
    }

    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, StoreError> {
        let mut located: Self =
            serde_json::from_slice(bytes).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        match located.check.take() {
            Some(check) if check != located.check(path)? => Err(StoreError::Altered { path: path.into() }),
            _ => Ok(located),
        }
    }

    pub(super) fn check(&self, path: &Path) -> Result<String, StoreError> {
        let plain = Self { check: None, ..self.clone() };
        let bytes = serde_json::to_vec(&plain).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        Ok(digest_of(&bytes).to_string())
    }

    /// Returns a key that distinguishes this archive, in its current state, from others with the same image.
    pub(super) fn key(&self) -> String {
        let hash = Sha256::digest(format!("{:?}{:?}{}", self.layers, self.files, self.checked));
        hex::encode(&hash[..8])
    }

    pub(super) fn unchanged(&self) -> bool {
        self.files.iter().all(|stamp| stamp.path.metadata().is_ok_and(|now| Stamp::from(&stamp.path, &now) == *stamp))
    }

    /// Whether an open file is one of the recorded files, unchanged.
    pub(super) fn knows(&self, path: &Path, file: &File) -> io::Result<bool> {
        Ok(self.files.contains(&Stamp::of(path, file)?))
    }

    /// Opens one of the recorded files, if it is unchanged.
    pub(crate) fn open(&self, path: &Path) -> Result<File, StoreError> {
        let file = super::files::open(path)?;
        match self.knows(path, &file).map_err(StoreError::io("read", path))? {
            true => Ok(file),
            false => Err(StoreError::Archive { path: self.archive.clone() }),
        }
    }
}

impl Stretch {
    pub(crate) fn open(&self) -> Result<File, StoreError> {
        super::files::open(&self.path)
    }

    /// The whole of a file.
    pub(crate) fn whole(path: PathBuf) -> Result<Self, StoreError> {
        let len = path.metadata().map_err(StoreError::io("read", &path))?.len();
        Ok(Self { path, start: 0, len })
    }

    /// Returns the entries of the layer, with the positions of their data in the file.
    pub(crate) fn scan(&self, file: &File) -> Result<Vec<Entry>, tar::ScanError> {
        self.scan_within(file, tar::MAX_HEADER_MEMORY).map(|(entries, _)| entries)
    }

    /// Like [`Self::scan`], with a limit of `max_memory` bytes for the entries. Also returns the memory that they take.
    pub(crate) fn scan_within(&self, file: &File, max_memory: usize) -> Result<(Vec<Entry>, usize), tar::ScanError> {
        let (mut entries, memory) = tar::scan_file_within(file, self.start, self.len, max_memory)?;
        entries.iter_mut().for_each(|entry| entry.shift(self.start));
        Ok((entries, memory))
    }
}
