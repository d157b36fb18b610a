//! A container's record on disk: what was asked, where it stands, and how a person finds it again.
//!
//! ```text
//! /var/lib/gpurun/containers/
//!     .lock                 flock: names are reserved and records removed under it
//!     ID/
//!         record.json       what was asked: written before anything is made (intent first)
//!         state.json        where it stands: replaced whole by the supervisor, or by reconcile when the supervisor died
//!         secrets.json      mode 0600: how a person logs in to this container's Jupyter
//!         upper/ work/      the overlay's writable side
//!         log log.1         output (supervise)
//! /run/gpurun/ID/
//!     alive                 record lock of the supervisor: its proof of life
//!     launching             record lock of the command that is starting one
//!     step.json             instead of record.json: a build's step
//! ```
//!
//! Rules. `record.json` is never changed in place (`rename` and `update` replace it whole). `state.json` has one writer: the living supervisor, else whoever holds the
//! reconcile lock. A container whose state says `running` and whose `alive` lock nobody holds is dead, whatever the file says.
//! `/run/gpurun/ID` exists as long as anything of the container might have to be cleared away, and is removed last.

mod find;
mod state;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use find::FindError;
pub use state::{LimitRow, OomRow, Phase, PublishedPort, State, Usage};

use crate::durable::{self, FileLock, ProcessLock};
use crate::report::{Explain, Report};
use crate::request::{Request, RestartPolicy};
use crate::spec::AskedLimits;

/// The record of a build's step, in /run: there nobody lists it, its environment (which may hold a secret) reaches no disk, and as soon
/// as nobody runs it, it is an orphan that is cleared away.
const STEP: &str = "step.json";

/// Version of the record's format.
const VERSION: u32 = 1;

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// 64 hex digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    pub request: Request,
    /// A step of a build: no container that a person could see, and the builder's to remove.
    #[serde(default)]
    pub step: bool,
}

/// How a person logs in: never in `record.json`, which `inspect` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Secrets {
    Token(String),
    /// Hashes of one password in Jupyter's forms, the preferred one first: which of them the image can check is seen at the launch.
    Hashes(Vec<String>),
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the record `{}` cannot be read", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the record `{}` has format version {version}, this gpurun knows version {VERSION}", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("the name `{name}` is taken by container {}", short(id))]
    NameTaken { name: String, id: String },
}

impl Explain for RecordError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NameTaken { name, .. } => {
                Some(format!("remove it with `gpurun rm -f {name}`, or choose another `--name`"))
            }
            Self::Damaged { path, .. } => Some(format!(
                "the container cannot be started any more; remove it with `rm -r {}`",
                path.parent().unwrap_or(path).display()
            )),
            Self::Version { .. } => Some("use the gpurun that made it, or remove the container with it".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("gpurun needs root: try `sudo gpurun …`".into())
            }
            Self::Io { .. } => None,
        }
    }
}

/// The twelve digits that a person sees.
#[must_use]
pub fn short(id: &str) -> &str {
    &id[..id.len().min(12)]
}

/// All containers of one root.
#[derive(Debug, Clone)]
pub struct Records {
    containers: PathBuf,
    run: PathBuf,
}

/// One container: its record and the paths that belong to it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub record: Record,
    /// `/var/lib/gpurun/containers/ID`
    pub dir: PathBuf,
    /// `/run/gpurun/ID`
    pub run_dir: PathBuf,
}

impl Records {
    /// Opens the records below a root, making the directories that are missing (mode 0700: layers hold other people's files).
    pub fn open(root: &Path, run: &Path) -> Result<Self, RecordError> {
        let containers = root.join("containers");
        for dir in [&containers, &run.to_path_buf()] {
            make_dir(dir)?;
        }
        Ok(Self { containers, run: run.to_path_buf() })
    }

    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The lock under which names are given out and dead containers cleared away.
    pub fn lock(&self) -> Result<FileLock, RecordError> {
        let path = self.containers.join(".lock");
        FileLock::exclusive(&path).map_err(|source| RecordError::Io { action: "lock", path, source })
    }

    /// Writes a new container's record and takes its `launching` lock: from here until the lock is dropped, nobody clears it away.
    ///
    /// The record of an auto-removed container (`--rm`) is not forced to the disk: after a power cut it would only be removed.
    pub fn create(&self, record: &Record, secrets: Option<&Secrets>) -> Result<(Entry, ProcessLock), RecordError> {
        let _lock = self.lock()?;
        if !record.step {
            self.check_name(&record.name, None)?;
        }
        let entry = self.entry(record.clone());
        make_dir(&entry.run_dir)?;
        let launching = entry.launching()?;
        make_dir(&entry.dir)?;
        if let Some(secrets) = secrets {
            put(&entry.dir.join("secrets.json"), secrets, !record.request.auto_remove)?;
        }
        let path = if record.step { entry.run_dir.join(STEP) } else { entry.dir.join("record.json") };
        put(&path, record, !record.request.auto_remove)?;
        Ok((entry, launching))
    }

    /// Refuses a name that another container (than `except`) has.
    pub fn check_name(&self, name: &str, except: Option<&str>) -> Result<(), RecordError> {
        match self.list()?.into_iter().find(|entry| entry.record.name == name && Some(&*entry.record.id) != except) {
            Some(other) => Err(RecordError::NameTaken { name: name.to_owned(), id: other.record.id }),
            None => Ok(()),
        }
    }

    /// Every container that has a readable record, oldest first. Directories without a record (a launch that was killed at its first
    /// step) are left to [`Records::orphans`]. One that cannot be read is left out, with a word: the others are none the worse for it.
    pub fn list(&self) -> Result<Vec<Entry>, RecordError> {
        let (entries, unreadable) = self.list_all()?;
        for error in unreadable {
            tracing::warn!("{}", Report::from(error));
        }
        Ok(entries)
    }

    /// The containers with readable records, and what is wrong with the others: for those who ask what nobody needs.
    pub fn list_all(&self) -> Result<(Vec<Entry>, Vec<RecordError>), RecordError> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids(&self.containers)? {
            match get::<Record>(&self.containers.join(&id).join("record.json")) {
                Ok(Some(record)) => entries.push(self.entry(record)),
                Ok(None) => {}
                Err(error) => unreadable.push(error),
            }
        }
        entries.sort_by(|a, b| (a.record.created, &a.record.id).cmp(&(b.record.created, &b.record.id)));
        Ok((entries, unreadable))
    }

    /// Ids that have a directory here or in /run but no record: what a killed launch or removal left. A record that cannot be looked at is
    /// none the less one: an orphan is removed with all its files.
    pub fn orphans(&self) -> Result<Vec<String>, RecordError> {
        let mut ids = self.ids(&self.containers)?;
        ids.extend(self.ids(&self.run)?);
        ids.sort();
        ids.dedup();
        let mut orphans = Vec::new();
        for id in ids {
            let path = self.containers.join(&id).join("record.json");
            match path.try_exists() {
                Ok(true) => {}
                Ok(false) => orphans.push(id),
                Err(source) => return Err(RecordError::Io { action: "look for", path, source }),
            }
        }
        Ok(orphans)
    }

    /// Ids that have a directory in /run: those that may have something to clear away.
    pub fn ids_in_run(&self) -> Result<Vec<String>, RecordError> {
        self.ids(&self.run)
    }

    /// The paths of a container, whether or not it has a record.
    #[must_use]
    pub fn paths(&self, id: &str) -> (PathBuf, PathBuf) {
        (self.containers.join(id), self.run.join(id))
    }

    pub fn get(&self, id: &str) -> Result<Option<Entry>, RecordError> {
        let (dir, run_dir) = self.paths(id);
        let record = match get::<Record>(&dir.join("record.json"))? {
            Some(record) => Some(record),
            None => get::<Record>(&run_dir.join(STEP))?,
        };
        Ok(record.map(|record| self.entry(record)))
    }

    fn entry(&self, record: Record) -> Entry {
        let (dir, run_dir) = self.paths(&record.id);
        Entry { record, dir, run_dir }
    }

    fn ids(&self, dir: &Path) -> Result<Vec<String>, RecordError> {
        let failed = |source| RecordError::Io { action: "list", path: dir.to_path_buf(), source };
        let mut ids = Vec::new();
        for item in fs::read_dir(dir).map_err(failed)? {
            let name = item.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_id(name)) {
                ids.push(name.to_owned());
            }
        }
        Ok(ids)
    }
}

impl Entry {
    /// Where the container stands by its file; a container that never ran has no state file.
    pub fn state(&self) -> Result<State, RecordError> {
        Ok(get(&self.dir.join("state.json"))?.unwrap_or_default())
    }

    /// Replaces the state. Only the living supervisor, or the holder of [`Records::lock`] when there is none, may call this.
    pub fn write_state(&self, state: &State) -> Result<(), RecordError> {
        let durable = !self.record.request.auto_remove && state.phase == Phase::Exited;
        put(&self.dir.join("state.json"), state, durable)
    }

    pub fn secrets(&self) -> Result<Option<Secrets>, RecordError> {
        get(&self.dir.join("secrets.json"))
    }

    /// Renames the container. The caller holds [`Records::lock`] and has checked the name.
    pub fn rename(&mut self, name: &str) -> Result<(), RecordError> {
        name.clone_into(&mut self.record.name);
        put(&self.dir.join("record.json"), &self.record, true)
    }

    /// Replaces the limits and the restart policy. Only the living supervisor, or the holder of [`Records::lock`] when there is none, may
    /// call this. A failure leaves the record as it was.
    pub fn change(&mut self, limits: AskedLimits, restart: RestartPolicy) -> Result<(), RecordError> {
        let mut record = self.record.clone();
        (record.request.limits, record.request.restart) = (limits, restart);
        put(&self.dir.join("record.json"), &record, true)?;
        self.record = record;
        Ok(())
    }

    /// The lock that says "a command is starting this container".
    pub fn launching(&self) -> Result<ProcessLock, RecordError> {
        let path = self.run_dir.join("launching");
        match ProcessLock::try_take(&path) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(RecordError::Io {
                action: "start, because another command is starting it:",
                path,
                source: io::ErrorKind::ResourceBusy.into(),
            }),
            Err(source) => Err(RecordError::Io { action: "lock", path, source }),
        }
    }

    /// The supervisor's pid while it lives.
    pub fn supervisor(&self) -> Result<Option<i32>, RecordError> {
        holder(&self.run_dir.join("alive"))
    }

    /// Whether nobody is running or starting this container.
    pub fn is_idle(&self) -> Result<bool, RecordError> {
        Ok(self.supervisor()?.is_none() && holder(&self.run_dir.join("launching"))?.is_none())
    }

    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control")
    }

    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// Whether a process holds the given lock file.
pub fn holder(path: &Path) -> Result<Option<i32>, RecordError> {
    ProcessLock::holder(path).map_err(|source| RecordError::Io {
        action: "look at the lock",
        path: path.to_path_buf(),
        source,
    })
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn make_dir(path: &Path) -> Result<(), RecordError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| RecordError::Io {
        action: "make the directory",
        path: path.to_path_buf(),
        source,
    })
}

fn put<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<(), RecordError> {
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|source| RecordError::Damaged { path: path.to_path_buf(), source })?;
    let written =
        if durable { durable::write_atomic(path, &bytes) } else { durable::write_atomic_volatile(path, &bytes) };
    written.map_err(|source| RecordError::Io { action: "write", path: path.to_path_buf(), source })
}

fn get<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RecordError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { action: "read", path: path.to_path_buf(), source }),
    };
    let damaged = |source| RecordError::Damaged { path: path.to_path_buf(), source };
    // A record of a later format may differ in any field: look at its version first.
    #[derive(Deserialize)]
    struct Versioned {
        version: Option<u32>,
    }
    if let Some(version) = serde_json::from_slice::<Versioned>(&bytes).ok().and_then(|probe| probe.version)
        && version != VERSION
    {
        return Err(RecordError::Version { path: path.to_path_buf(), version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

impl Record {
    #[must_use]
    pub fn new(id: String, name: String, created: u64, request: Request) -> Self {
        Self { version: VERSION, id, name, created, request, step: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_looked_at_makes_no_orphan() {
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        let (lost, torn) = ("a".repeat(64), "b".repeat(64));
        for id in [&lost, &torn] {
            make_dir(&records.paths(id).0).unwrap();
        }
        assert_eq!(records.orphans().unwrap(), [lost.clone(), torn.clone()]);
        fs::write(records.paths(&torn).0.join("record.json"), "{").unwrap();
        assert_eq!(
            records.orphans().unwrap(),
            std::slice::from_ref(&lost),
            "a record that cannot be understood is one"
        );
        let (readable, unreadable) = records.list_all().unwrap();
        assert!(readable.is_empty() && matches!(unreadable[..], [RecordError::Damaged { .. }]), "{unreadable:?}");
        // An error of the file system that root gets too: a link that leads to itself.
        let path = records.paths(&lost).0.join("record.json");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let error = records.orphans().unwrap_err();
        assert!(matches!(error, RecordError::Io { action: "look for", .. }), "{error}");
    }
}
