//! Leases of GPUs: one file per container.
//!
//! ```text
//! /run/gpurun/gpus/.lock       flock, held while leases are read and a choice is recorded
//! /run/gpurun/gpus/ID.json     the container, its owner (pid and start time of its supervisor), the names of its
//!                              units, the time, and whether the lease is exclusive
//! ```
//!
//! A lease is valid while its owner is alive. The owner removes it at the end, and the next reader that holds the lock
//! removes those of dead owners. An flock for each GPU would not work: every clone of the supervisor would inherit its
//! descriptor, so that the lock would outlive the supervisor. Leases name UUIDs, because indices may change. They only
//! cover gpurun's own containers; other programs are visible through NVML.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, FileLock, Owner};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the GPU lease `{}`", .path.display())]
pub(crate) struct LeaseError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl LeaseError {
    pub(super) fn new(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self { action, path, source }
    }
}

impl crate::report::Explain for LeaseError {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    owner: Owner,
    /// Id of the container.
    pub id: String,
    pub name: String,
    /// The user who started the container.
    pub user: String,
    /// Nanoseconds since 1970.
    pub since: u64,
    /// Names of the units: UUIDs.
    pub units: Vec<String>,
    /// Whether the unit is reserved for this container, because it was selected as an idle one.
    pub exclusive: bool,
}

/// The container that takes a lease.
#[derive(Debug, Clone)]
pub(crate) struct Taker {
    pub id: String,
    pub name: String,
    pub user: String,
    /// Nanoseconds since 1970.
    pub now: u64,
}

/// All leases. Holds the lock while it exists, unless it was opened with [`Ledger::peek`].
#[derive(Debug)]
pub(crate) struct Ledger {
    dir: PathBuf,
    leases: Vec<Lease>,
    /// `None` if no lease will be taken.
    _lock: Option<FileLock>,
}

impl Ledger {
    /// Waits for the lock, then reads the leases and removes those of dead owners.
    pub(crate) fn open(dir: &Path) -> Result<Self, LeaseError> {
        let failed = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| LeaseError { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create the directory of", dir))?;
        let lock = dir.join(".lock");
        let lock = FileLock::exclusive(&lock).map_err(failed("lock", &lock))?;
        let mut leases = Vec::new();
        for (path, lease) in read_all(dir)? {
            match lease {
                Some(lease) if lease.owner.lives() => leases.push(lease),
                // Remove a lease of a dead owner, or one that this version cannot parse.
                _ => drop(fs::remove_file(path)),
            }
        }
        Ok(Self { dir: dir.to_path_buf(), leases, _lock: Some(lock) })
    }

    /// Reads the current leases without waiting for the lock and without removing any.
    pub(crate) fn peek(dir: &Path) -> Result<Self, LeaseError> {
        Ok(Self { dir: dir.to_path_buf(), leases: living(dir)?, _lock: None })
    }

    /// Whether the container has a lease.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.leases.iter().any(|lease| lease.id == id)
    }

    /// Returns the leases on a unit, except those of the container `except`.
    pub(crate) fn on<'a>(&'a self, unit: &'a str, except: &'a str) -> impl Iterator<Item = &'a Lease> {
        self.leases.iter().filter(move |lease| lease.id != except && lease.units.iter().any(|name| name == unit))
    }

    /// Records that this process holds these units for a container, until [`release`].
    pub(crate) fn take(&self, taker: &Taker, units: Vec<String>, exclusive: bool) -> Result<(), LeaseError> {
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

/// Releases the lease of a container.
pub(crate) fn release(dir: &Path, id: &str) -> Result<(), LeaseError> {
    let path = path(dir, id);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LeaseError { action: "remove", path, source }),
        _ => Ok(()),
    }
}

/// Returns the leases of live owners without waiting for the lock, for display.
pub(crate) fn living(dir: &Path) -> Result<Vec<Lease>, LeaseError> {
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
            // The lease was released in the meantime.
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

        // A process that has ended, so that its lease is stale.
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
