//! The layer cache: maps a key to the result of a step. The key covers everything that the step depends on.
//!
//! ```text
//! <root>/build/cache/<key>.json    result of the step: a layer's diff ID, an image ID, or nothing
//! <root>/build/locks/<xx>          flock by the first two digits of the key: two builds make a shared step once
//! <root>/build/mounts/<hash>       directory of a `RUN --mount=type=cache`
//! <root>/build/mounts/<hash>.lock  flock of such a directory, if its sharing mode is `private` or `locked`
//! <root>/build/mounts.lock         flock: shared by the steps that use a cache mount, exclusive for their removal
//! ```
//!
//! The modification time of a record is the time when a build used it last.
//!
//! A record is only a hint. It counts as long as an image in the store holds the layers, and each step leaves an
//! intermediate image that does. The record is written after that image. So a record never names an incomplete layer,
//! no matter when a build is killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::durable::{self, FileLock};
use crate::names::Digest;
use crate::report::Report;

/// Part of every key. A new value invalidates the results of all older versions of gpurun.
const VERSION: &str = "gpurun build 1";

/// A key under construction.
#[derive(Debug, Clone)]
pub(super) struct Key(Sha256);

impl Key {
    #[must_use]
    pub(super) fn new(what: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add(VERSION).add(what);
        key
    }

    /// Adds a part. Its length is hashed too, so that the parts `a`, `bc` and `ab`, `c` give different keys.
    pub(super) fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    #[must_use]
    pub(super) fn digest(&self) -> Digest {
        Digest(self.0.clone().finalize().into())
    }
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Made {
    /// A layer, by its diff ID.
    Layer(String),
    /// The step changed no file.
    Nothing,
    /// An image, by its ID.
    Image(String),
}

/// The cache of one store.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn open(root: &Path) -> Result<Self, Report> {
        let dir = root.join("build");
        for name in ["cache", "locks", "mounts"] {
            let path = dir.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| Report::new(format!("cannot create `{}`", path.display())).with_cause(error))?;
        }
        Ok(Self { dir })
    }

    /// Waits until no other build holds the lock of the step.
    pub(crate) fn lock(&self, key: &Digest) -> Result<FileLock, Report> {
        let path = self.dir.join("locks").join(&key.hex()[..2]);
        FileLock::exclusive(&path)
            .map_err(|error| Report::new(format!("cannot lock `{}`", path.display())).with_cause(error))
    }

    /// The recorded result of a step, if there is one. A damaged record counts as missing. The record counts as used.
    #[must_use]
    pub(crate) fn find(&self, key: &Digest) -> Option<Made> {
        let path = self.record(key);
        let made = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        // Only the order of removal depends on the time.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(made)
    }

    pub(crate) fn remember(&self, key: &Digest, made: &Made) -> Result<(), Report> {
        let path = self.record(key);
        let failed = |error: io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
        let bytes = serde_json::to_vec(made).map_err(|error| failed(error.into()))?;
        durable::write_atomic(&path, &bytes).map_err(failed)
    }

    fn record(&self, key: &Digest) -> PathBuf {
        self.dir.join("cache").join(format!("{}.json", key.hex()))
    }

    /// The directory of the cache mount `id`.
    #[must_use]
    pub(crate) fn mount(&self, id: &str) -> PathBuf {
        self.dir.join("mounts").join(hex::encode(&Sha256::digest(id)[..16]))
    }

    /// Keeps the cache mounts from being removed.
    pub(crate) fn share_mounts(&self) -> io::Result<FileLock> {
        FileLock::shared(&self.dir.join("mounts.lock"))
    }

    /// Returns when a build used each result last, in nanoseconds since 1970. The keys are the digests in [`Made`].
    pub(crate) fn last_used(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for (path, made) in self.records()? {
            if let Made::Layer(digest) | Made::Image(digest) = made {
                let used = modified(&path);
                all.entry(digest).and_modify(|known: &mut u64| *known = used.max(*known)).or_insert(used);
            }
        }
        Ok(all)
    }

    /// Removes the records whose result is gone.
    pub(crate) fn forget(&self, is_there: &dyn Fn(&str) -> bool) -> io::Result<()> {
        for (path, made) in self.records()? {
            match made {
                Made::Layer(digest) | Made::Image(digest) if !is_there(&digest) => gone(fs::remove_file(&path))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The directories of the cache mounts, with the time of their last change in nanoseconds since 1970.
    pub(crate) fn mounts(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.dir.join("mounts"))? {
            let path = entry?.path();
            if path.is_dir() {
                let used = modified(&path);
                all.push((path, used));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Removes directories of cache mounts. Returns whether it did: while a build uses any of them, all are kept.
    pub(crate) fn remove_mounts(&self, paths: &[&Path]) -> io::Result<bool> {
        let Some(_lock) = FileLock::try_exclusive(&self.dir.join("mounts.lock"))? else { return Ok(false) };
        for path in paths {
            // A directory that is partly removed must not be used as a filled cache.
            let doomed = path.with_extension("removed");
            if *path != doomed {
                gone(crate::sys::tree::remove(&doomed))?;
                gone(fs::rename(path, &doomed))?;
                gone(fs::remove_file(path.with_extension("lock")))?;
            }
            gone(crate::sys::tree::remove(&doomed))?;
        }
        Ok(true)
    }

    /// All records that can be read.
    fn records(&self) -> io::Result<Vec<(PathBuf, Made)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.dir.join("cache"))? {
            let path = entry?.path();
            let made = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            all.extend(made.map(|made| (path, made)));
        }
        Ok(all)
    }
}

/// The modification time in nanoseconds since 1970. It is 0 for a file that is gone.
fn modified(path: &Path) -> u64 {
    let time = fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
    time.duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Accepts that a file is gone already.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let key = |parts: &[&str]| {
            let mut key = Key::new("RUN");
            for part in parts {
                key.add(part);
            }
            key.digest()
        };
        assert_ne!(key(&["a", "bc"]), key(&["ab", "c"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }

    #[test]
    fn records_are_found_again_and_damaged_ones_are_none() {
        let base = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(base.path()).expect("opened");
        let key = Key::new("x").digest();
        assert_eq!(cache.find(&key), None);
        cache.remember(&key, &Made::Nothing).expect("written");
        assert_eq!(cache.find(&key), Some(Made::Nothing));
        fs::write(cache.record(&key), "{").expect("written");
        assert_eq!(cache.find(&key), None);
    }

    #[test]
    fn a_record_knows_its_last_use_and_is_forgotten_with_its_result() {
        let base = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(base.path()).expect("opened");
        let (kept, gone) = (Key::new("kept").digest(), Key::new("gone").digest());
        for (key, made) in [(&kept, Made::Layer("a".into())), (&gone, Made::Image("b".into()))] {
            cache.remember(key, &made).expect("written");
            File::open(cache.record(key)).expect("open").set_modified(UNIX_EPOCH).expect("set");
        }
        assert!(cache.find(&kept).is_some());
        let used = cache.last_used().expect("read");
        assert!(used["a"] > 0 && used["b"] == 0, "{used:?}");
        cache.forget(&|digest| digest == "a").expect("removed");
        assert!(cache.find(&kept).is_some() && cache.find(&gone).is_none());
    }

    #[test]
    fn cache_mounts_are_removed_unless_a_step_uses_one() {
        let base = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(base.path()).expect("opened");
        let path = cache.mount("pip");
        fs::create_dir_all(path.join("wheels")).expect("made");
        fs::write(path.with_extension("lock"), "").expect("written");
        let step = cache.share_mounts().expect("locked");
        assert!(!cache.remove_mounts(&[&path]).expect("tried") && path.exists());
        drop(step);
        assert_eq!(cache.mounts().expect("read").len(), 1);
        assert!(cache.remove_mounts(&[&path]).expect("removed"));
        assert_eq!(fs::read_dir(path.parent().expect("a parent")).expect("read").count(), 0);
    }
}
