//! The layer cache: maps a key to the result of a step. The key covers everything that the step depends on.
//!
//! ```text
//! <root>/build/cache/<key>.json    result of the step: a layer's diff ID, an image ID, or nothing
//! <root>/build/locks/<xx>          flock by the first two digits of the key: two builds make a shared step once
//! <root>/build/mounts/<hash>       directory of a `RUN --mount=type=cache`
//! <root>/build/mounts/<hash>.lock  flock of such a directory, if its sharing mode is `private` or `locked`
//! ```
//!
//! A record is only a hint. It counts as long as an image in the store holds the layers, and each step leaves an
//! intermediate image that does. The record is written after that image. So a record never names an incomplete layer,
//! no matter when a build is killed.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

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

    /// The recorded result of a step, if there is one. A damaged record counts as missing.
    #[must_use]
    pub(crate) fn find(&self, key: &Digest) -> Option<Made> {
        serde_json::from_slice(&fs::read(self.record(key)).ok()?).ok()
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
}
