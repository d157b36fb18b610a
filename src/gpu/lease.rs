//! Who has which GPU: one file a container.
//!
//! ```text
//! /run/gpurun/gpus/.lock       flock: held while leases are looked at and a choice is written down
//! /run/gpurun/gpus/ID.json     the container, its owner (pid and start time of its supervisor), its units by name, since when, for itself or not
//! ```
//!
//! A lease counts as long as its owner lives; the owner takes it away at the end, and whoever looks next removes those of the dead. (Not an
//! flock for each GPU: a descriptor of it would live on in every clone of the supervisor, and so outlive it.) Leases are by UUID, because numbers
//! may change, and are for gpurun's own containers: other programs show by NVML.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, FileLock, Owner};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the GPU lease `{}`", .path.display())]
pub struct LeaseError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl crate::report::Explain for LeaseError {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    owner: Owner,
    /// The container's.
    pub id: String,
    pub name: String,
    /// Who started it.
    pub user: String,
    /// Nanoseconds since 1970.
    pub since: u64,
    /// Names of units: UUIDs.
    pub units: Vec<String>,
    /// Taken as a free one, for itself.
    pub exclusive: bool,
}

/// Who is about to take GPUs.
#[derive(Debug, Clone)]
pub struct Taker {
    pub id: String,
    pub name: String,
    pub user: String,
    /// Nanoseconds since 1970.
    pub now: u64,
}

/// All leases, with nobody else looking while it exists.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    leases: Vec<Lease>,
    /// None where nothing will be taken.
    _lock: Option<FileLock>,
}

impl Ledger {
    /// Waits for its turn, then reads; leases of the dead are removed.
    pub fn open(dir: &Path) -> Result<Self, LeaseError> {
        let failed = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| LeaseError { action, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the directory of", dir))?;
        let lock = dir.join(".lock");
        let lock = FileLock::exclusive(&lock).map_err(failed("lock", &lock))?;
        let mut leases = Vec::new();
        for (path, lease) in read_all(dir)? {
            match lease {
                Some(lease) if lease.owner.lives() => leases.push(lease),
                // One of another version is as good as none, and so is one of the dead.
                _ => drop(fs::remove_file(path)),
            }
        }
        Ok(Self { dir: dir.to_path_buf(), leases, _lock: Some(lock) })
    }

    /// As it is now, for a look: nobody waits, and nothing is removed.
    pub fn peek(dir: &Path) -> Result<Self, LeaseError> {
        Ok(Self { dir: dir.to_path_buf(), leases: living(dir)?, _lock: None })
    }

    /// The leases on a unit, but those of `except`.
    pub fn on<'a>(&'a self, unit: &'a str, except: &'a str) -> impl Iterator<Item = &'a Lease> {
        self.leases.iter().filter(move |lease| lease.id != except && lease.units.iter().any(|name| name == unit))
    }

    /// Writes down that this process has these units for a container, from now until [`release`].
    pub fn take(&self, taker: &Taker, units: Vec<String>, exclusive: bool) -> Result<(), LeaseError> {
        let lease = Lease {
            owner: Owner::me(),
            id: taker.id.clone(),
            name: taker.name.clone(),
            user: taker.user.clone(),
            since: taker.now,
            units,
            exclusive,
        };
        let path = path(&self.dir, &taker.id);
        let failed = |source| LeaseError { action: "write", path: path.clone(), source };
        let bytes = serde_json::to_vec(&lease).map_err(|error| failed(error.into()))?;
        durable::write_atomic_volatile(&path, &bytes).map_err(failed)
    }
}

/// Gives back what a container had.
pub fn release(dir: &Path, id: &str) -> Result<(), LeaseError> {
    let path = path(dir, id);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LeaseError { action: "remove", path, source }),
        _ => Ok(()),
    }
}

/// The leases of the living, without waiting for anybody: for showing.
pub fn living(dir: &Path) -> Result<Vec<Lease>, LeaseError> {
    Ok(read_all(dir)?.into_iter().filter_map(|(_, lease)| lease).filter(|lease| lease.owner.lives()).collect())
}

fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.json"))
}

fn read_all(dir: &Path) -> Result<Vec<(PathBuf, Option<Lease>)>, LeaseError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LeaseError { action: "list", path: dir.to_path_buf(), source }),
    };
    let mut all = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match fs::read(&path) {
            Ok(bytes) => all.push((path, serde_json::from_slice(&bytes).ok())),
            // Given back meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(LeaseError { action: "read", path, source }),
        }
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taker(id: &str) -> Taker {
        Taker { id: id.into(), name: format!("name-{id}"), user: "ada".into(), now: 1 }
    }

    #[test]
    fn a_lease_is_seen_given_back_and_dies_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("gpus");
        Ledger::open(&dir).unwrap().take(&taker("a"), vec!["GPU-1".into()], true).unwrap();
        let ledger = Ledger::open(&dir).unwrap();
        assert_eq!(ledger.on("GPU-1", "b").map(|lease| lease.name.as_str()).collect::<Vec<_>>(), ["name-a"]);
        assert_eq!(ledger.on("GPU-1", "a").count() + ledger.on("GPU-2", "b").count(), 0);
        assert!(FileLock::try_exclusive(&dir.join(".lock")).unwrap().is_none(), "one at a time");
        drop(ledger);
        release(&dir, "a").unwrap();
        release(&dir, "a").unwrap();
        assert!(living(&dir).unwrap().is_empty());

        // A process that has ended: its lease is nobody's.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let text = serde_json::json!({
            "owner": { "pid": child.id(), "start_time": 1 }, "id": "d", "name": "dead", "user": "x", "since": 1,
            "units": ["GPU-1"], "exclusive": true,
        });
        child.wait().unwrap();
        fs::write(path(&dir, "d"), text.to_string()).unwrap();
        fs::write(path(&dir, "torn"), "{").unwrap();
        assert!(living(&dir).unwrap().is_empty());
        assert_eq!(Ledger::open(&dir).unwrap().on("GPU-1", "b").count(), 0);
        assert!(!path(&dir, "d").exists() && !path(&dir, "torn").exists());
    }
}
