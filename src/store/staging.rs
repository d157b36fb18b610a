//! A loader's workplace, and the sweep of what dead ones left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::load::length;
use super::{Store, StoreError, make_dir, parse_hex};
use crate::durable::FileLock;

/// A directory below `tmp/` that lives as long as this value; its lock proves it to others.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
    _lock: FileLock,
    abandoned: AtomicBool,
}

impl Staging {
    /// Made under the store's lock: between mkdir and flock a sweep must not come.
    pub fn new(store: &Store) -> Result<Self, StoreError> {
        let _store_lock = store.lock()?;
        Self::new_locked(store)
    }

    /// For those that hold the store's lock.
    pub fn new_locked(store: &Store) -> Result<Self, StoreError> {
        let tmp = store.root.join("tmp");
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| StoreError::io("create", &tmp)(io::Error::other(error)))?;
        let dir = tmp.join(hex::encode(random));
        make_dir(&dir, 0o700)?;
        let path = dir.join("lock");
        let lock = FileLock::exclusive(&path).map_err(StoreError::io("lock", &path))?;
        Ok(Self { dir, _lock: lock, abandoned: AtomicBool::new(false) })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Leaves it as a dead process would: its owner failed half way, and the next command clears up, here and in the store.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if *self.abandoned.get_mut() {
            return;
        }
        // What cannot be removed now is swept by the next command.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Store {
    /// Clears what dead processes left, unless somebody works on the store right now (then they or the next one will).
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

    /// Only under the lock, taken alone.
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
        // The next command tries again what cannot be emptied.
        dead.iter().filter(|path| path.is_dir()).for_each(|path| drop(empty(path)));
        if self.forget_names_of_nothing().is_ok() {
            // The marks last. What their owners remove at the same moment is as good as removed; what stays for another reason, the next
            // command tries.
            dead.iter().for_each(|path| drop(remove(path)));
        }
        Ok(())
    }

    /// Names of images that a dead process had begun to remove.
    fn forget_names_of_nothing(&self) -> Result<(), StoreError> {
        let mut names = match self.names() {
            // For `verify` to tell.
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

    /// Removes layers, indexes and drawn trees that no image names; only under the lock, taken alone. Returns the bytes freed.
    pub(super) fn collect_garbage(&self) -> Result<u64, StoreError> {
        let (images, damaged) = self.list_all()?;
        if !damaged.is_empty() {
            // Nobody knows which layers they need: all stay until that is settled.
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
                // Image directories, side files and temporaries of atomic writes are told apart by their names.
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

/// Whether nobody works in what lies in `tmp/` any more. Where the disk cannot tell, somebody does: it stays for a later command.
fn is_dead(path: &Path) -> bool {
    let is_gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let lock = path.join("lock");
    match lock.symlink_metadata().and_then(|_| FileLock::try_exclusive(&lock)) {
        Ok(free) => free.is_some(),
        // Not a workplace at all (a file, a removed image), or one that its owner is just taking away.
        Err(error) => is_gone(&error),
    }
}

/// Removes what is in a directory: as a mark it is as good without, and the disk may need the room.
pub(super) fn empty(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        remove(&entry.map_err(StoreError::io("read", dir))?.path())?;
    }
    Ok(())
}

/// Removes a file or a directory with all in it, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
