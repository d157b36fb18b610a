//! Reading and writing the files of one cgroup, and removing it.

use super::error::CgroupError;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    // A directory has one link for its name, one for `.`, and one for the `..` of each directory in it.
    if dir.metadata().map_or(true, |metadata| metadata.nlink() == 2) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Creates a cgroup, with those above it. It is not an error if it exists.
pub(super) fn create_dir(dir: &Path) -> Result<(), CgroupError> {
    let created = match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir),
        created => created,
    };
    created.map_err(|source| CgroupError::Io { action: "create the cgroup", path: dir.to_path_buf(), source })
}

pub(super) fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) if source.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline => {
                return Err(CgroupError::Io { action: "remove the cgroup", path: dir.to_path_buf(), source });
            }
            Err(_) => {
                children(dir).iter().try_for_each(|child| remove_dir(child))?;
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
        }
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    match crate::sys::file::read_control(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(CgroupError::Io { action: "read", path: path.to_path_buf(), source }),
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Io { action: "write", path: path.to_path_buf(), source })
}

/// Returns the number after a key in a flat-keyed file (`oom_kill 3`).
pub(crate) fn keyed(path: &Path, key: &str) -> Option<u64> {
    value(&crate::sys::file::read_control(path).ok()?, key)
}

/// Returns the number after a key in the text of such a file.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
