//! The layer cache: which layer a step made, keyed by everything that the step depended on.
//!
//! ```text
//! <root>/build/cache/<key>.json    what the step made: a layer's diff id, or nothing
//! <root>/build/locks/<xx>          flock: two builds that come to the same step make it once
//! <root>/build/mounts/<hash>       what `RUN --mount=type=cache` keeps
//! ```
//!
//! A record is a hint: it counts only while an image of the store holds the layers (each step leaves an intermediate image, which does),
//! and is written after that image. So whatever is killed when, a record never names what is not whole.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::durable::{self, FileLock};
use crate::names::Digest;
use crate::report::Report;

/// Part of every key: another number forgets all that older gpuruns made.
const VERSION: &str = "gpurun build 1";

/// A key under construction.
#[derive(Debug, Clone)]
pub struct Key(Sha256);

impl Key {
    #[must_use]
    pub fn new(what: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add(VERSION).add(what);
        key
    }

    /// Adds a part; its length keeps `a`, `bc` and `ab`, `c` apart.
    pub fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(self.0.clone().finalize().into())
    }
}

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// A layer, by its diff id.
    Layer(String),
    /// It changed no file.
    Nothing,
    /// An image, by its id.
    Image(String),
}

/// The cache of one store.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub fn open(root: &Path) -> Result<Self, Report> {
        let dir = root.join("build");
        for name in ["cache", "locks", "mounts"] {
            let path = dir.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| Report::new(format!("cannot make `{}`", path.display())).with_cause(error))?;
        }
        Ok(Self { dir })
    }

    /// Waits until nobody else makes the step.
    pub fn lock(&self, key: &Digest) -> Result<FileLock, Report> {
        let path = self.dir.join("locks").join(&key.hex()[..2]);
        FileLock::exclusive(&path)
            .map_err(|error| Report::new(format!("cannot lock `{}`", path.display())).with_cause(error))
    }

    /// What the step made, if it is known. A damaged record is none.
    #[must_use]
    pub fn find(&self, key: &Digest) -> Option<Made> {
        serde_json::from_slice(&fs::read(self.record(key)).ok()?).ok()
    }

    pub fn remember(&self, key: &Digest, made: &Made) -> Result<(), Report> {
        let path = self.record(key);
        let failed = |error: io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
        let bytes = serde_json::to_vec(made).map_err(|error| failed(error.into()))?;
        durable::write_atomic(&path, &bytes).map_err(failed)
    }

    fn record(&self, key: &Digest) -> PathBuf {
        self.dir.join("cache").join(format!("{}.json", key.hex()))
    }

    /// The directory of a cache mount.
    #[must_use]
    pub fn mount(&self, id: &str) -> PathBuf {
        self.dir.join("mounts").join(hex::encode(&Sha256::digest(id)[..16]))
    }

    /// Forgets everything; what stands under the cache mounts goes too.
    pub fn clear(root: &Path) -> io::Result<()> {
        match fs::remove_dir_all(root.join("build")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
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
