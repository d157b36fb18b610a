//! Staging directories of loads, and the sweep of leftovers of dead processes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::files::length;
use super::files::make_dir;
use super::find::parse_hex;
use super::{Store, StoreError};
use crate::durable::FileLock;

/// A directory below `tmp/` that exists as long as this value. Its lock shows other processes that it is in use.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    _lock: FileLock,
    abandoned: AtomicBool,
}

impl Staging {
    /// Creates the directory under the store's lock, so that no sweep runs between mkdir and flock.
    pub(super) fn new(store: &Store) -> Result<Self, StoreError> {
        let _store_lock = store.lock()?;
        Self::new_locked(store)
    }

    /// The same for callers that hold the store's lock.
    pub(super) fn new_locked(store: &Store) -> Result<Self, StoreError> {
        let tmp = store.root.join("tmp");
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| StoreError::io("create", &tmp)(io::Error::other(error)))?;
        let dir = tmp.join(hex::encode(random));
        make_dir(&dir, 0o700)?;
        let path = dir.join("lock");
        let lock = FileLock::exclusive(&path).map_err(StoreError::io("lock", &path))?;
        Ok(Self { dir, _lock: lock, abandoned: AtomicBool::new(false) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory behind as a killed process would. The owner failed halfway, and the next command cleans up,
    /// here and in the store.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if *self.abandoned.get_mut() {
            return;
        }
        // The next command sweeps what cannot be removed now.
        let _ = crate::sys::tree::remove(&self.dir);
    }
}

impl Store {
    /// Creates a directory for files that are needed only while this process runs.
    pub(crate) fn scratch(&self) -> Result<Staging, StoreError> {
        Staging::new(self)
    }

    /// Removes leftovers of dead processes, unless another process holds the lock. A later command sweeps then.
    pub(super) fn sweep_if_free(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        let mut entries = fs::read_dir(&tmp).map_err(StoreError::io("read", &tmp))?;
        if entries.next().is_none() {
            return Ok(());
        }
        let path = self.lock_path();
        match FileLock::try_exclusive(&path).map_err(StoreError::io("lock", &path))? {
            Some(_lock) => self.sweep(),
            None => Ok(()),
        }
    }

    /// Requires the exclusive lock.
    fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        let mut dead = Vec::new();
        for entry in fs::read_dir(&tmp).map_err(StoreError::io("read", &tmp))? {
            let path = entry.map_err(StoreError::io("read", &tmp))?.path();
            if is_dead(&path) {
                dead.push(path);
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        self.collect_garbage()?;
        // The next command tries again if a directory cannot be emptied.
        dead.iter().filter(|path| path.is_dir()).for_each(|path| drop(empty(path)));
        if self.forget_names_of_nothing().is_ok() {
            // Remove the directories themselves last, because they mark unfinished work. It does not matter if their
            // owners remove them at the same moment. If one stays for another reason, the next command tries again.
            dead.iter().for_each(|path| drop(remove(path)));
        }
        Ok(())
    }

    /// Removes the names of images that a dead process had started to remove.
    fn forget_names_of_nothing(&self) -> Result<(), StoreError> {
        let mut names = match self.names() {
            // `verify` reports it.
            Err(error) if error.is_damage() => return Ok(()),
            other => other?,
        };
        let mut gone = Vec::new();
        for (name, id) in names.all() {
            if let (None, Ok(name)) = (length(&self.image_dir(&id))?, name.parse()) {
                gone.push(name);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        gone.iter().for_each(|name| names.remove(name));
        self.write_names(&names)
    }

    /// Removes layers, indexes and rendered trees that no image uses. Requires the exclusive lock. Returns the bytes
    /// freed.
    pub(super) fn collect_garbage(&self) -> Result<u64, StoreError> {
        let (images, damaged) = self.list_all()?;
        if !damaged.is_empty() {
            // The layers of a damaged image are unknown, so all layers stay until it is repaired.
            return Ok(0);
        }
        let layer =
            |hex: &str| parse_hex(hex).is_some_and(|id| images.iter().any(|image| image.diff_ids.contains(&id)));
        let chain = |hex: &str| parse_hex(hex).is_some_and(|id| images.iter().any(|image| image.chain_id == id));
        let mut freed = 0;
        for (directory, suffix, named) in [
            ("layers", ".tar", &layer as &dyn Fn(&str) -> bool),
            ("images", ".erofs", &chain),
            ("images", ".side", &chain),
            ("dirs", "", &chain),
        ] {
            let dir = self.root.join(directory);
            for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
                let path = entry.map_err(StoreError::io("read", &dir))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                // The names distinguish image directories, side files and temporary files of atomic writes.
                let Some(stem) = name.strip_suffix(suffix).filter(|stem| parse_hex(stem).is_some()) else { continue };
                if !named(stem) {
                    freed += path.symlink_metadata().map_or(0, |metadata| metadata.len());
                    remove(&path)?;
                }
            }
        }
        Ok(freed)
    }
}

/// Whether an entry of `tmp/` is no longer in use. After an I/O error it counts as in use, and stays for a later
/// command.
fn is_dead(path: &Path) -> bool {
    let is_gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let lock = path.join("lock");
    match lock.symlink_metadata().and_then(|_| FileLock::try_exclusive(&lock)) {
        Ok(free) => free.is_some(),
        // Either it is not a staging directory (a file, a removed image), or its owner is just removing it.
        Err(error) => is_gone(&error),
    }
}

/// Removes the content of a directory. The empty directory still serves as a mark, and the disk may need the space.
pub(super) fn empty(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        remove(&entry.map_err(StoreError::io("read", dir))?.path())?;
    }
    Ok(())
}

/// Removes a file or a directory tree, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => crate::sys::tree::remove(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
