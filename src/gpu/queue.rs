//! The queue of the commands that wait for idle GPUs (`--wait`): one file per command.
//!
//! ```text
//! /run/gpurun/gpus/.lock              the leases' lock, held while a command joins or a launch takes GPUs
//! /run/gpurun/gpus/queue/N-ID.json    a ticket: its number, the container, its user and request. The waiting command
//!                                     holds an flock on it
//! ```
//!
//! A ticket is valid while its flock is held, so that a command that dies leaves the queue, however it dies. The command
//! removes its ticket at the end, and the next command that joins removes those of dead commands. Numbers only rise while
//! the queue is not empty.
//!
//! The order is strict: only the first ticket may take GPUs. GPUs that are idle but too few for the first ticket are
//! reserved for it by that, so that a later ticket for one GPU cannot starve an earlier one for two. A launch without a
//! ticket does not overtake either: it is refused while the queue is not empty. A container that already has a lease
//! keeps its place.
//!
//! The removal of a ticket by another command tells the waiting one to give up: see [`evict`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lease::LeaseError;
use crate::durable::FileLock;
use crate::sys::lock::{Flock, FlockArg};

/// A command in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiter {
    /// Id of the container.
    pub id: String,
    pub container: String,
    /// The user who started the command.
    pub user: String,
    /// The GPU request: `2`.
    pub gpus: String,
    /// Nanoseconds since 1970.
    pub since: u64,
    /// The process that waits.
    pub pid: u32,
}

/// A place in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    path: PathBuf,
    number: u64,
    lock: Flock,
}

/// The directory of the tickets.
fn dir(leases: &Path) -> PathBuf {
    leases.join("queue")
}

/// The path, number and container id of every ticket file, in the order of the queue.
fn files(leases: &Path) -> Result<Vec<(PathBuf, u64, String)>, LeaseError> {
    let dir = dir(leases);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LeaseError::new("list", dir, source)),
    };
    let parse = |path: PathBuf| {
        let (number, id) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_once('-')?;
        let (number, id) = (number.parse().ok()?, id.to_owned());
        Some((path, number, id))
    };
    let mut all: Vec<_> = entries.flatten().filter_map(|entry| parse(entry.path())).collect();
    all.sort_by_key(|(_, number, _)| *number);
    Ok(all)
}

/// Whether a process holds the ticket.
fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    Flock::lock(file, FlockArg::SharedNonblock).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Returns the commands that wait, in the order of the queue.
pub(crate) fn waiting(leases: &Path) -> Result<Vec<Waiter>, LeaseError> {
    let all = files(leases)?.into_iter().filter(|(path, ..)| is_held(path));
    // A ticket may be removed at any time.
    Ok(all.filter_map(|(path, ..)| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect())
}

/// The first command in the queue, if a container without a lease must wait behind it.
pub(super) fn ahead_of(leases: &Path, id: &str) -> Result<Option<(Waiter, usize)>, LeaseError> {
    let all = waiting(leases)?;
    let count = all.len();
    Ok(all.into_iter().next().filter(|first| first.id != id).map(|first| (first, count)))
}

/// Removes the tickets of a container that has its GPUs now.
pub(super) fn leave(leases: &Path, id: &str) {
    for (path, _, other) in files(leases).unwrap_or_default() {
        if other == id {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the ticket of a container, so that its command leaves the queue at once. Returns the command if there is one.
pub(crate) fn evict(leases: &Path, id: &str) -> Result<Option<Waiter>, LeaseError> {
    let held = files(leases)?.into_iter().find(|(path, _, other)| other == id && is_held(path));
    let Some((path, ..)) = held else { return Ok(None) };
    // The command may end or start its container at any time.
    let waiter = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LeaseError::new("remove", path, source)),
        _ => Ok(waiter),
    }
}

impl Ticket {
    /// Joins the queue at its end.
    pub(crate) fn join(leases: &Path, waiter: &Waiter) -> Result<Self, LeaseError> {
        let failed = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| LeaseError::new(action, path, source)
        };
        let dir = dir(leases);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(failed("create the directory of", &dir))?;
        let lock = leases.join(".lock");
        let _lock = FileLock::exclusive(&lock).map_err(failed("lock", &lock))?;
        let before = files(leases)?;
        let number = before.last().map_or(1, |(_, number, _)| number + 1);
        for (path, ..) in before.iter().filter(|(path, ..)| !is_held(path)) {
            let _ = fs::remove_file(path);
        }
        let path = dir.join(format!("{number:012}-{}.json", waiter.id));
        let new = dir.join(format!(".{}.new", waiter.id));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed("create", &new))?;
        let bytes = serde_json::to_vec(waiter).map_err(|error| failed("write", &new)(error.into()))?;
        file.write_all(&bytes).map_err(failed("write", &new))?;
        // The lock belongs to the file and not to its name, so that the ticket is held when it appears.
        let lock = Flock::lock(file, FlockArg::ExclusiveNonblock).map_err(failed("lock", &new))?;
        fs::rename(&new, &path).map_err(failed("rename", &new))?;
        Ok(Self { path, number, lock })
    }

    /// The number of commands before this one, and of all.
    pub(crate) fn position(&self, leases: &Path) -> Result<(usize, usize), LeaseError> {
        let all = files(leases)?;
        let held: Vec<u64> = all
            .into_iter()
            .filter(|(path, number, _)| *number == self.number || is_held(path))
            .map(|(_, number, _)| number)
            .collect();
        Ok((held.iter().filter(|number| **number < self.number).count(), held.len()))
    }

    /// Whether the ticket's file is still this one. The launch removes it when it takes the GPUs, and another command may
    /// have its number then.
    pub(crate) fn is_valid(&self) -> bool {
        let own = self.lock.metadata().ok().map(|about| about.ino());
        own.is_some() && fs::metadata(&self.path).ok().map(|about| about.ino()) == own
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_valid() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(id: &str) -> Waiter {
        Waiter {
            id: id.into(),
            container: format!("name-{id}"),
            user: "ada".into(),
            gpus: "1".into(),
            since: 1,
            pid: 1,
        }
    }

    #[test]
    fn tickets_keep_their_order_and_leave_with_their_holder() {
        let dir = tempfile::tempdir().unwrap();
        let leases = dir.path().join("gpus");
        let ids = || waiting(&leases).unwrap().into_iter().map(|waiter| waiter.id).collect::<Vec<_>>();
        assert!(ids().is_empty() && ahead_of(&leases, "a").unwrap().is_none());
        let mut tickets: Vec<Ticket> =
            (0..12).map(|number| Ticket::join(&leases, &waiter(&format!("c{number}"))).unwrap()).collect();
        assert_eq!(ids(), (0..12).map(|number| format!("c{number}")).collect::<Vec<_>>());
        assert_eq!(tickets[10].position(&leases).unwrap(), (10, 12));
        assert_eq!(ahead_of(&leases, "c0").unwrap(), None);
        assert_eq!(
            ahead_of(&leases, "other").unwrap().map(|(first, count)| (first.id, count)),
            Some(("c0".into(), 12))
        );
        drop(tickets.remove(0));
        assert_eq!(tickets[9].position(&leases).unwrap(), (9, 11));
        // A file without a holder is no ticket, and the next command removes it.
        let stale = leases.join("queue/000000000001-dead.json");
        fs::write(&stale, serde_json::to_vec(&waiter("dead")).unwrap()).unwrap();
        assert_eq!(ids()[0], "c1");
        let last = Ticket::join(&leases, &waiter("last")).unwrap();
        assert!(!stale.exists());
        assert_eq!(last.position(&leases).unwrap(), (11, 12));
        // Another command removes a ticket.
        assert_eq!(evict(&leases, "c5").unwrap().map(|waiter| waiter.container), Some("name-c5".into()));
        assert!(!tickets[4].is_valid() && tickets[5].is_valid() && evict(&leases, "c5").unwrap().is_none());
        assert_eq!(last.position(&leases).unwrap(), (10, 11));
        // The launch took the GPUs: the ticket of another command with the same name stays.
        leave(&leases, "last");
        fs::write(&last.path, b"{}").unwrap();
        let path = last.path.clone();
        drop(last);
        assert!(path.exists());
    }
}
