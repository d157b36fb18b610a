//! Reads and writes the JSON files of a container.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RecordError;
use crate::durable;

pub(super) fn make_dir(path: &Path) -> Result<(), RecordError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| RecordError::Io {
        action: "create the directory",
        path: path.to_path_buf(),
        source,
    })
}

pub(super) fn put<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<(), RecordError> {
    put_bytes(path, &to_bytes(path, value)?, durable)
}

pub(super) fn to_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec_pretty(value).map_err(|source| RecordError::Damaged { path: path.to_path_buf(), source })
}

pub(super) fn put_bytes(path: &Path, bytes: &[u8], durable: bool) -> Result<(), RecordError> {
    let written =
        if durable { durable::write_atomic(path, bytes) } else { durable::write_atomic_volatile(path, bytes) };
    written.map_err(|source| RecordError::Io { action: "write", path: path.to_path_buf(), source })
}

pub(super) fn get<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RecordError> {
    read(path)?.map(|bytes| parse(path, &bytes)).transpose()
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, RecordError> {
    match durable::read_bounded(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Io { action: "read", path: path.to_path_buf(), source }),
    }
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(bytes).map_err(|source| RecordError::Damaged { path: path.to_path_buf(), source })
}
