//! Files of the store.

use std::fs;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::StoreError;

pub(super) fn open(path: &Path) -> Result<File, StoreError> {
    File::open(path).map_err(StoreError::io("open", path))
}

pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StoreError::io("read", path)(cause)),
    }
}

/// Whether `path` exists. An I/O error must not count as missing: a missing file is created or loaded again, or its
/// names and layers are removed.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    Ok(length(path)?.is_some())
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(StoreError::io("create", path))
}

/// Returns the length of a file, or `None` if it does not exist. An I/O error does not count as missing.
pub(crate) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StoreError::io("read", path)(cause)),
    }
}
