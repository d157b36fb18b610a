//! A container's record on disk: what was asked, where it stands, and how a person finds it again.
//!
//! ```text
//! /var/lib/gpurun/containers/
//!     .lock                 flock: names are reserved and records removed under it
//!     ID/                   flock: its record is being changed, or read by its supervisor
//!         record.json       what was asked: written before anything is made (intent first); its line `check` is the digest of the others
//!         state.json        where it stands: replaced whole by the supervisor, or by reconcile when the supervisor died
//!         secrets.json      mode 0600: how a person logs in to this container's Jupyter
//!         upper/ work/      the overlay's writable side
//!         log log.1         output (supervise)
//! /run/gpurun/ID/
//!     alive                 record lock of the supervisor: its proof of life
//!     launching             record lock of the command that is starting one
//!     step.json             instead of record.json: a build's step
//!     state.json            instead of the one above, while there is no room for that
//! ```
//!
//! Rules. `record.json` is never changed in place: who changes it (`rename`, `update`, a supervisor) takes the lock of the container's directory, reads it anew
//! and replaces it whole, so that none writes over what another wrote. That lock is held for as long as this takes, and no other is waited for under it. `state.json` has one writer: the living supervisor, else whoever holds the
//! reconcile lock. A container whose state says `running` and whose `alive` lock nobody holds is dead, whatever the file says.
//! `/run/gpurun/ID` exists as long as anything of the container might have to be cleared away, and is removed last.
//!
//! A record that cannot be read ([`Unreadable`]) is still a container: its directory's name is its id, by which it is listed and removed, and what it has
//! written stays until then. It stands in nobody else's way.

mod find;
mod state;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use find::{FindError, Found};
pub use state::{LimitRow, OomRow, Phase, PublishedPort, State, Usage};

use crate::durable::{self, FileLock, ProcessLock};
use crate::image::digest_of;
use crate::names::ContainerName;
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
    #[error("the record `{}` is damaged: its digest is not the one that it tells", path.display())]
    Altered { path: PathBuf },
    #[error("the record `{}` is that of another container, {}", path.display(), short(id))]
    Misplaced { path: PathBuf, id: String },
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
            Self::Damaged { path, .. } | Self::Misplaced { path, .. } => Some(way_out(path)),
            Self::Altered { path } => {
                Some(format!("{}; whoever changed it by hand takes its line `check` out", way_out(path)))
            }
            Self::Version { path, .. } => Some(format!("use the gpurun that made it; {}", way_out(path))),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("gpurun needs root: try `sudo gpurun …`".into())
            }
            Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Some(
                "the disk is full: `gpurun rm` containers that are not needed (`gpurun ps -a`), `gpurun image prune`, or choose another disk with `--root DIR`".into(),
            ),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Some("choose places that can be written with `--root DIR` and `--run-dir DIR`".into())
            }
            Self::Io { path, .. } if path.ends_with("record.json") => Some(way_out(path)),
            Self::Io { .. } => None,
        }
    }
}

/// What is left to do with a container whose file `path` cannot be used.
fn way_out(path: &Path) -> String {
    let dir = path.parent().unwrap_or(path);
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "`gpurun rm -f {}` removes the container with all its files; what it has written lies in `{}`",
        short(&id),
        dir.join("upper").display()
    )
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

/// A container whose record cannot be read. Where its files, its locks and its supervisor's socket are is known all the same.
#[derive(Debug)]
pub struct Unreadable {
    pub id: String,
    /// As far as the damaged text shows it: for a person's eye, never to find it by.
    pub name: Option<String>,
    /// What is wrong with its record.
    pub error: RecordError,
    run_dir: PathBuf,
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
        put_record(&path, record, !record.request.auto_remove)?;
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
        for container in unreadable {
            tracing::warn!("{}", Report::from(container.error));
        }
        Ok(entries)
    }

    /// The containers with readable records, and the others.
    pub fn list_all(&self) -> Result<(Vec<Entry>, Vec<Unreadable>), RecordError> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids(&self.containers)? {
            let (dir, run_dir) = self.paths(&id);
            let path = dir.join("record.json");
            match read_record(&path, &id) {
                Ok(Some(record)) => entries.push(self.entry(record)),
                Ok(None) => {}
                Err(error) => unreadable.push(Unreadable { name: name_in(&path), id, error, run_dir }),
            }
        }
        entries.sort_by(|a, b| (a.record.created, &a.record.id).cmp(&(b.record.created, &b.record.id)));
        unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((entries, unreadable))
    }

    /// The steps of builds that run now: they are in no list, and need their images all the same.
    pub fn steps(&self) -> Result<Vec<Entry>, RecordError> {
        let mut steps = Vec::new();
        for id in self.ids(&self.run)? {
            // What a killed build left needs nothing.
            if is_idle(&self.run.join(&id))? {
                continue;
            }
            steps.extend(read_record(&self.run.join(&id).join(STEP), &id)?.map(|record| self.entry(record)));
        }
        Ok(steps)
    }

    /// Ids that have a directory here or in /run but no record: what a killed launch or removal left. A record that cannot be looked at is
    /// none the less one: an orphan is removed with all its files.
    pub fn orphans(&self) -> Result<Vec<String>, RecordError> {
        let mut ids = self.ids(&self.containers)?;
        ids.extend(self.ids(&self.run)?);
        ids.sort();
        ids.dedup();
        // The list tells of what cannot be looked at; no other container has to wait for that to be settled.
        ids.retain(|id| matches!(self.containers.join(id).join("record.json").try_exists(), Ok(false)));
        Ok(ids)
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
        let record = match read_record(&dir.join("record.json"), id)? {
            Some(record) => Some(record),
            None => read_record(&run_dir.join(STEP), id)?,
        };
        Ok(record.map(|record| self.entry(record)))
    }

    /// A container as it is now, for who holds the lock: what was read before may be behind, and would be written over what came since.
    pub fn again(&self, entry: &Entry) -> Result<Entry, Report> {
        let gone = || FindError::None(entry.record.name.clone());
        Ok(self.get(&entry.record.id)?.ok_or_else(gone)?)
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
        if let Some(state) = get(&self.spare_state())? {
            return Ok(state);
        }
        Ok(get(&self.dir.join("state.json"))?.unwrap_or_default())
    }

    /// The state for a list of many, which one that cannot be read must not end. It is that of a container that runs: its supervisor writes it anew when
    /// something changes, and those of the others are written anew by every command.
    pub fn state_shown(&self) -> Result<State, RecordError> {
        match self.state() {
            Err(RecordError::Damaged { .. }) => Ok(State { phase: Phase::Running, ..State::default() }),
            state => state,
        }
    }

    /// Replaces the state. Only the living supervisor, or the holder of [`Records::lock`] when there is none, may call this.
    ///
    /// What the disk has no room for lies in /run until it can be written: it is an error all the same, but nobody is told that a container
    /// runs which has ended. (A container may be the one that filled the disk: with its log, say.)
    pub fn write_state(&self, state: &State) -> Result<(), RecordError> {
        let durable = !self.record.request.auto_remove && state.phase == Phase::Exited;
        let spare = self.spare_state();
        if let Err(error) = put(&self.dir.join("state.json"), state, durable) {
            // Where /run has no room either, reconcile finds what the file above says to be untrue.
            let _ = put(&spare, state, false);
            return Err(error);
        }
        match fs::remove_file(&spare) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { action: "remove", path: spare, source })
            }
            _ => Ok(()),
        }
    }

    /// Where the state is while the disk has no room for it.
    #[must_use]
    pub fn spare_state(&self) -> PathBuf {
        self.run_dir.join("state.json")
    }

    pub fn secrets(&self) -> Result<Option<Secrets>, RecordError> {
        get(&self.dir.join("secrets.json"))
    }

    /// Renames the container. The caller holds [`Records::lock`] and has checked the name.
    pub fn rename(&mut self, name: &str) -> Result<(), RecordError> {
        self.amend(|record| {
            name.clone_into(&mut record.name);
            Ok(())
        })
    }

    /// Replaces the limits and the restart policy. Only the living supervisor may call this. A failure leaves the record as it was.
    pub fn change(&mut self, limits: AskedLimits, restart: RestartPolicy) -> Result<(), RecordError> {
        self.amend(|record| {
            (record.request.limits, record.request.restart) = (limits, restart);
            Ok(())
        })
    }

    /// The same for a container that nobody runs or starts, by what is to become of its request. A supervisor that starts meanwhile reads the
    /// record when this is done, or is met here: it does not run by limits that the record has no more.
    pub fn change_at_rest(
        &mut self,
        change: impl FnOnce(&Request) -> Result<(AskedLimits, RestartPolicy), Report>,
    ) -> Result<(), Report> {
        let run_dir = self.run_dir.clone();
        self.amend(|record| {
            if !is_idle(&run_dir)? {
                return Err(Report::new(format!("container `{}` is being started by another command", record.name)));
            }
            (record.request.limits, record.request.restart) = change(&record.request)?;
            Ok(())
        })
    }

    /// Changes the record as it is on the disk now, whatever was read of it before: a supervisor's `update` and another command's `rename` may come
    /// at the same moment, and each keeps what the other wrote.
    fn amend<E: From<RecordError>>(&mut self, change: impl FnOnce(&mut Record) -> Result<(), E>) -> Result<(), E> {
        let _lock = self.record_lock()?;
        let path = self.dir.join("record.json");
        let gone = || RecordError::Io { action: "read", path: path.clone(), source: io::ErrorKind::NotFound.into() };
        let mut record = read_record(&path, &self.record.id)?.ok_or_else(gone)?;
        change(&mut record)?;
        put_record(&path, &record, true)?;
        self.record = record;
        Ok(())
    }

    /// Held while the record is changed. What is decided by the record and by who runs the container is decided under it: see `Supervisor::new`.
    pub fn record_lock(&self) -> Result<FileLock, RecordError> {
        FileLock::of_dir(&self.dir).map_err(|source| RecordError::Io { action: "lock", path: self.dir.clone(), source })
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
        is_idle(&self.run_dir)
    }

    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }

    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Unreadable {
    /// The supervisor's pid while it lives.
    pub fn supervisor(&self) -> Result<Option<i32>, RecordError> {
        holder(&self.run_dir.join("alive"))
    }

    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }
}

fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control")
}

/// Whether nobody is running or starting the container of this directory in /run.
pub fn is_idle(run_dir: &Path) -> Result<bool, RecordError> {
    Ok(holder(&run_dir.join("alive"))?.is_none() && holder(&run_dir.join("launching"))?.is_none())
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
    put_bytes(path, &to_bytes(path, value)?, durable)
}

fn to_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec_pretty(value).map_err(|source| RecordError::Damaged { path: path.to_path_buf(), source })
}

fn put_bytes(path: &Path, bytes: &[u8], durable: bool) -> Result<(), RecordError> {
    let written =
        if durable { durable::write_atomic(path, bytes) } else { durable::write_atomic_volatile(path, bytes) };
    written.map_err(|source| RecordError::Io { action: "write", path: path.to_path_buf(), source })
}

/// Writes a record with a first line `check`, the digest of all others: a bit that flips in a limit would make another limit, and nobody would
/// know. Over the text, not over the values, so that a gpurun with more fields, or fewer, can check it too.
fn put_record(path: &Path, record: &Record, durable: bool) -> Result<(), RecordError> {
    let plain = to_bytes(path, record)?;
    let rest = plain.strip_prefix(b"{\n").unwrap_or(&plain);
    put_bytes(path, &[check_line(rest).as_bytes(), rest].concat(), durable)
}

fn check_line(rest: &[u8]) -> String {
    format!("{{\n  \"check\": \"{}\",\n", digest_of(rest))
}

/// The record of the container `id`. (One without a check comes from an older gpurun.)
fn read_record(path: &Path, id: &str) -> Result<Option<Record>, RecordError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let told = bytes.split_inclusive(|byte| *byte == b'\n').take(2).map(<[u8]>::len).sum();
    let (head, rest) = bytes.split_at(told);
    if head.starts_with(b"{\n  \"check\": ") && head != check_line(rest).as_bytes() {
        return Err(RecordError::Altered { path: path.to_path_buf() });
    }
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
    let record: Record = parse(path, &bytes)?;
    // A copy of a directory, say: its paths would be the other container's.
    if record.id == id {
        Ok(Some(record))
    } else {
        Err(RecordError::Misplaced { path: path.to_path_buf(), id: record.id })
    }
}

/// The name in a record that cannot be used: its line, if that is whole.
fn name_in(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("  \"name\": \"")?.strip_suffix("\","))?;
    name.parse::<ContainerName>().ok().map(|name| name.to_string())
}

fn get<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RecordError> {
    read(path)?.map(|bytes| parse(path, &bytes)).transpose()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RecordError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Io { action: "read", path: path.to_path_buf(), source }),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(bytes).map_err(|source| RecordError::Damaged { path: path.to_path_buf(), source })
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

    fn records() -> (tempfile::TempDir, Records) {
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        (base, records)
    }

    /// The only unreadable container, which no command but a removal finds.
    #[track_caller]
    fn unreadable(records: &Records) -> Unreadable {
        let (readable, mut unreadable) = records.list_all().unwrap();
        assert!(readable.is_empty() && unreadable.len() == 1, "{readable:?} {unreadable:?}");
        let container = unreadable.remove(0);
        assert!(matches!(records.find_any(&container.id[..6]).unwrap(), Found::Unreadable(_)));
        let refusal = records.find(&container.id[..6]).unwrap_err();
        let hint = refusal.hint.unwrap_or_default();
        assert!(hint.contains(&format!("gpurun rm -f {}", short(&container.id))), "{hint}");
        assert_eq!(refusal.message, container.error.to_string());
        container
    }

    #[test]
    fn a_record_that_cannot_be_looked_at_makes_no_orphan() {
        let (_base, records) = records();
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
        assert!(matches!(unreadable(&records).error, RecordError::Damaged { .. }));
        // An error of the file system that root gets too: a link that leads to itself. No other container has to wait for its end.
        fs::remove_dir_all(records.paths(&torn).0).unwrap();
        let path = records.paths(&lost).0.join("record.json");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(records.orphans().unwrap().is_empty());
        assert!(matches!(unreadable(&records).error, RecordError::Io { action: "read", .. }));
    }

    #[test]
    fn every_flipped_bit_of_a_record_shows() {
        let (_base, records) = records();
        let record = crate::testing::record(&"c".repeat(64), "web");
        let (entry, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let path = entry.dir.join("record.json");
        let whole = fs::read(&path).unwrap();
        let same = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_record(&path, &record.id).map(|read| serde_json::to_value(read.unwrap()).unwrap())
        };
        let wanted = serde_json::to_value(&record).unwrap();
        assert_eq!(same(&whole).unwrap(), wanted);
        for at in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            // In the check's own word it may pass for a record without a check: then all of the record is as it was.
            if let Ok(read) = same(&bytes) {
                assert_eq!(read, wanted, "bit {at}");
            }
        }
        // As an older gpurun wrote it, or as a person who changed it by hand leaves it.
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(same(&[lines[0], &lines[2..].concat()].concat()).unwrap(), wanted);
    }

    #[test]
    fn what_came_meanwhile_is_not_written_over() {
        let (_base, records) = records();
        let record = crate::testing::record(&"f".repeat(64), "web");
        let (found, launching) = records.create(&record, None).unwrap();
        drop(launching);
        // Another command's, between the look and the lock.
        let limits = AskedLimits { memory: Some("64m".into()), ..AskedLimits::default() };
        records.get(&record.id).unwrap().unwrap().change(limits.clone(), RestartPolicy::No).unwrap();
        records.again(&found).unwrap().rename("other").unwrap();
        let now = records.get(&record.id).unwrap().unwrap().record;
        assert_eq!((now.name.as_str(), now.request.limits), ("other", limits));
        fs::remove_dir_all(&found.dir).unwrap();
        assert_eq!(records.again(&found).unwrap_err().message, "there is no container `web`");
    }

    #[test]
    fn two_who_change_a_record_at_once_keep_each_others_change() {
        let (_base, records) = records();
        let record = crate::testing::record(&"a".repeat(64), "web");
        let (mut rename, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let limits = AskedLimits { memory: Some("64m".into()), ..AskedLimits::default() };
        let mut update = rename.clone();
        let (wanted, (done, is_done)) = (limits.clone(), std::sync::mpsc::channel());
        let mut other = None;
        rename
            .amend(|record| {
                // The record is read, and not written yet: the worst moment for somebody else to write it.
                other = Some(std::thread::spawn(move || {
                    update.change(limits, RestartPolicy::Always).unwrap();
                    done.send(()).unwrap();
                    update
                }));
                assert!(is_done.recv_timeout(std::time::Duration::from_millis(200)).is_err(), "it has to wait");
                record.name = "other".into();
                Ok::<(), RecordError>(())
            })
            .unwrap();
        let update = other.unwrap().join().unwrap();
        let now = records.get(&record.id).unwrap().unwrap().record;
        assert_eq!((&*now.name, &now.request.limits, now.request.restart), ("other", &wanted, RestartPolicy::Always));
        assert_eq!(update.record.name, "other", "who comes second knows of the first");
    }

    #[test]
    fn what_is_wrong_with_a_record_is_told_apart() {
        let (_base, records) = records();
        let record = crate::testing::record(&"d".repeat(64), "web");
        let (entry, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let path = entry.dir.join("record.json");
        let text = fs::read_to_string(&path).unwrap();
        // Of another version only if the check agrees.
        let newer = text.replace("\"version\": 1", "\"version\": 3");
        fs::write(&path, &newer).unwrap();
        let container = unreadable(&records);
        assert!(matches!(container.error, RecordError::Altered { .. }), "{}", container.error);
        assert_eq!(container.name.as_deref(), Some("web"));
        let rest = newer.splitn(3, '\n').nth(2).unwrap();
        fs::write(&path, check_line(rest.as_bytes()) + rest).unwrap();
        assert!(matches!(unreadable(&records).error, RecordError::Version { version: 3, .. }));
        // A copy of a container's directory is not that container: to remove it must not remove the other.
        fs::write(&path, &text).unwrap();
        let copy = records.paths(&"e".repeat(64)).0;
        make_dir(&copy).unwrap();
        fs::rename(&path, copy.join("record.json")).unwrap();
        assert!(matches!(&unreadable(&records).error, RecordError::Misplaced { id, .. } if *id == record.id));
    }
}
