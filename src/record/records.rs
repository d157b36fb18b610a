//! All containers of one root: creating, listing and locking their records.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::binding;
use super::entry::{Entry, Launching};
use super::error::{FindError, RecordError};
use super::files::make_dir;
use super::format::{name_in, read_record};
use super::paths::{DISPOSABLE, STEP, control_socket, holder, is_id, is_idle};
use super::types::{Record, Secrets};
use crate::durable::FileLock;
use crate::report::Report;

/// All containers of one root.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    containers: PathBuf,
    run: PathBuf,
}

/// A container whose record cannot be read. The paths of its files, locks and socket are still known.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub id: String,
    /// The name in the damaged text, if one can be found. It is only for display, never for finding the container.
    pub name: Option<String>,
    /// The error in its record.
    pub error: RecordError,
    run_dir: PathBuf,
}

impl Records {
    /// Opens the records below a root, and creates missing directories (mode 0700, because layers contain other users'
    /// files). A run directory other than the root's is refused while the root is in use.
    pub(crate) fn open(root: &Path, run: &Path) -> Result<Self, RecordError> {
        let containers = root.join("containers");
        make_dir(&containers)?;
        let is_new = !run.exists();
        make_dir(run)?;
        if let Err(error) = binding::bind(&containers, run) {
            if is_new {
                // Another command may use it by now: then it is not empty.
                let _ = std::fs::remove_dir(run);
            }
            return Err(error);
        }
        Ok(Self { containers, run: run.to_path_buf() })
    }

    /// Names the records below a root for reading alone. Creates nothing, and does not check the run directory.
    pub(crate) fn look_at(root: &Path, run: &Path) -> Self {
        Self { containers: root.join("containers"), run: run.to_path_buf() }
    }

    #[must_use]
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The lock for reserving names and cleaning up dead containers.
    pub(crate) fn lock(&self) -> Result<FileLock, RecordError> {
        let path = self.containers.join(".lock");
        FileLock::exclusive(&path).map_err(|source| RecordError::Io { action: "lock", path, source })
    }

    /// Writes a new container's record and takes its `launching` lock. Until that lock is dropped, no command cleans up
    /// the container.
    ///
    /// The record of an auto-removed container (`--rm`) is not synced to the disk: after a power failure it would only
    /// be removed.
    pub(crate) fn create(&self, record: &Record, secrets: Option<&Secrets>) -> Result<(Entry, Launching), RecordError> {
        let _lock = self.lock()?;
        if !record.step {
            self.check_name(&record.name, None)?;
        }
        let entry = self.entry(record.clone());
        entry.write_new(secrets).map(|launching| (entry.clone(), launching)).inspect_err(|_| {
            // A directory that cannot be removed now is an orphan, which the next command removes.
            for dir in [&entry.dir, &entry.run_dir] {
                let _ = crate::sys::tree::remove(dir);
            }
        })
    }

    /// Refuses a name that another container (other than `except`) has.
    pub(crate) fn check_name(&self, name: &str, except: Option<&str>) -> Result<(), RecordError> {
        match self.list()?.into_iter().find(|entry| entry.record.name == name && Some(&*entry.record.id) != except) {
            Some(other) => Err(RecordError::NameTaken {
                name: name.to_owned(),
                user: other.record.owner.name(),
                id: other.record.id,
            }),
            None => Ok(()),
        }
    }

    /// All containers with a readable record, the oldest first. Directories without a record (from a launch that was
    /// killed at its first step) are left to [`Records::orphans`]. Unreadable records are skipped with a warning, and
    /// do not affect the others.
    pub(crate) fn list(&self) -> Result<Vec<Entry>, RecordError> {
        let (entries, unreadable) = self.list_all()?;
        for container in unreadable {
            tracing::warn!("{}", Report::from(container.error));
        }
        Ok(entries)
    }

    /// All containers, those with readable records and the others.
    pub(crate) fn list_all(&self) -> Result<(Vec<Entry>, Vec<Unreadable>), RecordError> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids(&self.containers)? {
            let (dir, run_dir) = self.paths(&id);
            let path = dir.join("record.json");
            match read_record(&path, &id) {
                Ok(Some(record)) => entries.push(self.entry(record)),
                Ok(None) if self.is_lost(&id) => {
                    unreadable.push(Unreadable { name: None, id, error: RecordError::Lost { path }, run_dir });
                }
                Ok(None) => {}
                Err(error) => unreadable.push(Unreadable { name: name_in(&path), id, error, run_dir }),
            }
        }
        entries.sort_by(|a, b| (a.record.created, &a.record.id).cmp(&(b.record.created, &b.record.id)));
        unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((entries, unreadable))
    }

    /// The ids of all containers that have a directory, with and without a readable record, in their order.
    pub(crate) fn ids_of_all(&self) -> Result<Vec<String>, RecordError> {
        let mut ids = self.ids(&self.containers)?;
        ids.sort();
        Ok(ids)
    }

    /// The steps of running builds. They are in no list, but they still need their images.
    pub(crate) fn steps(&self) -> Result<Vec<Entry>, RecordError> {
        let mut steps = Vec::new();
        for id in self.ids(&self.run)? {
            // The remains of a killed build need no image.
            if is_idle(&self.run.join(&id))? {
                continue;
            }
            steps.extend(read_record(&self.run.join(&id).join(STEP), &id)?.map(|record| self.entry(record)));
        }
        Ok(steps)
    }

    /// The ids of directories here or in /run without a record, left by a killed launch or removal. A record that
    /// cannot be accessed or is lost counts as existing, because an orphan is removed with all its files.
    pub(crate) fn orphans(&self, in_run: &[String]) -> Result<Vec<String>, RecordError> {
        let mut ids = self.ids(&self.containers)?;
        ids.extend(in_run.iter().cloned());
        ids.sort();
        ids.dedup();
        // The list reports records that cannot be accessed. No other container has to wait for them.
        ids.retain(|id| matches!(self.containers.join(id).join("record.json").try_exists(), Ok(false)));
        ids.retain(|id| !self.is_lost(id));
        Ok(ids)
    }

    /// Whether a directory without a record contains the files of a container. In case of doubt it does.
    pub(crate) fn is_lost(&self, id: &str) -> bool {
        let (dir, run_dir) = self.paths(id);
        let absent =
            |path: PathBuf| matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        !absent(dir.join("upper")) && absent(dir.join(DISPOSABLE)) && absent(run_dir.join(STEP))
    }

    /// Removes the record of a container, the first step of its removal. From then on its files may be removed by any
    /// command.
    pub(crate) fn remove_record(&self, id: &str) -> Result<(), RecordError> {
        let dir = self.paths(id).0;
        // The removal must also work on a full disk. Without the mark, it only cannot be finished by another command.
        let _ = fs::write(dir.join(DISPOSABLE), "");
        let path = dir.join("record.json");
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The entries of a container's directory without the mark that it may be removed, which must be the last one to
    /// be removed.
    pub(crate) fn files(&self, id: &str) -> Vec<PathBuf> {
        let dir = self.paths(id).0;
        let all = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        all.filter(|path| path.file_name().is_none_or(|name| name != DISPOSABLE)).collect()
    }

    /// The ids that have a directory in /run, and so may need a clean-up.
    pub(crate) fn ids_in_run(&self) -> Result<Vec<String>, RecordError> {
        self.ids(&self.run)
    }

    /// The paths of a container, whether or not it has a record.
    #[must_use]
    pub(crate) fn paths(&self, id: &str) -> (PathBuf, PathBuf) {
        (self.containers.join(id), self.run.join(id))
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<Entry>, RecordError> {
        let (dir, run_dir) = self.paths(id);
        let record = match read_record(&dir.join("record.json"), id)? {
            Some(record) => Some(record),
            None => read_record(&run_dir.join(STEP), id)?,
        };
        Ok(record.map(|record| self.entry(record)))
    }

    /// Reads a container again, for the holder of its lock. An older copy may be outdated, and writing it would undo
    /// other changes.
    pub(crate) fn again(&self, entry: &Entry) -> Result<Entry, Report> {
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

impl Unreadable {
    /// The pid of the supervisor, if it is alive.
    pub(crate) fn supervisor(&self) -> Result<Option<i32>, RecordError> {
        holder(&self.run_dir.join("alive"))
    }

    #[must_use]
    pub(crate) fn control_socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::format::check_line;
    use crate::record::{Found, short};
    use crate::request::{LimitsRequest, RestartPolicy, TimeLimits};

    fn records() -> (tempfile::TempDir, Records) {
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        (base, records)
    }

    /// The only unreadable container, which only a removal finds.
    #[track_caller]
    fn unreadable(records: &Records) -> Unreadable {
        let (readable, mut unreadable) = records.list_all().unwrap();
        assert!(readable.is_empty() && unreadable.len() == 1, "{readable:?} {unreadable:?}");
        let container = unreadable.remove(0);
        assert!(matches!(records.snapshot().unwrap().find_any(&container.id[..6]).unwrap(), Found::Unreadable(_)));
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
        assert_eq!(records.orphans(&records.ids_in_run().unwrap()).unwrap(), [lost.clone(), torn.clone()]);
        fs::write(records.paths(&torn).0.join("record.json"), "{").unwrap();
        assert_eq!(
            records.orphans(&records.ids_in_run().unwrap()).unwrap(),
            std::slice::from_ref(&lost),
            "a record that cannot be understood is one"
        );
        assert!(matches!(unreadable(&records).error, RecordError::Damaged { .. }));
        // A file system error that root gets too: a link to itself. It must not block other containers.
        fs::remove_dir_all(records.paths(&torn).0).unwrap();
        let path = records.paths(&lost).0.join("record.json");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(records.orphans(&records.ids_in_run().unwrap()).unwrap().is_empty());
        assert!(matches!(unreadable(&records).error, RecordError::Io { action: "read", .. }));
    }

    #[test]
    fn every_flipped_bit_of_a_record_shows() {
        let (_base, records) = records();
        let record = crate::fixture::record(&"c".repeat(64), "web");
        let (entry, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let path = entry.dir.join("record.json");
        let whole = fs::read(&path).unwrap();
        let same = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_record(&path, &record.id).map(|read| format!("{:?}", read.unwrap()))
        };
        let wanted = format!("{record:?}");
        assert_eq!(same(&whole).unwrap(), wanted);
        for at in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            // A flip in the key `check` itself may make it a record without a check. Then the rest of the record must
            // be unchanged.
            if let Ok(read) = same(&bytes) {
                assert_eq!(read, wanted, "bit {at}");
            }
        }
        // A record as an older gpurun wrote it, or after a manual edit that removed the check.
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(same(&[lines[0], &lines[2..].concat()].concat()).unwrap(), wanted);
    }

    #[test]
    fn what_came_meanwhile_is_not_written_over() {
        let (_base, records) = records();
        let record = crate::fixture::record(&"f".repeat(64), "web");
        let (found, launching) = records.create(&record, None).unwrap();
        drop(launching);
        // Another command changes the record between the read and the lock.
        let limits = LimitsRequest { memory: Some("64m".parse().unwrap()), ..LimitsRequest::default() };
        records
            .get(&record.id)
            .unwrap()
            .unwrap()
            .change(limits.clone(), RestartPolicy::No, TimeLimits::default())
            .unwrap();
        records.again(&found).unwrap().rename("other").unwrap();
        let now = records.get(&record.id).unwrap().unwrap().record;
        assert_eq!((now.name.as_str(), now.request.limits), ("other", limits));
        fs::remove_dir_all(&found.dir).unwrap();
        assert_eq!(records.again(&found).unwrap_err().message, "there is no container `web`");
    }

    #[test]
    fn two_who_change_a_record_at_once_keep_each_others_change() {
        let (_base, records) = records();
        let record = crate::fixture::record(&"a".repeat(64), "web");
        let (mut rename, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let limits = LimitsRequest { memory: Some("64m".parse().unwrap()), ..LimitsRequest::default() };
        let mut update = rename.clone();
        let (wanted, (done, is_done)) = (limits.clone(), std::sync::mpsc::channel());
        let mut other = None;
        rename
            .amend(|record| {
                // The record has been read but not written yet: the worst moment for a concurrent change.
                other = Some(std::thread::spawn(move || {
                    update.change(limits, RestartPolicy::Always, TimeLimits::default()).unwrap();
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
        let record = crate::fixture::record(&"d".repeat(64), "web");
        let (entry, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let path = entry.dir.join("record.json");
        let text = fs::read_to_string(&path).unwrap();
        // The version counts only if the check matches.
        let newer = text.replace("\"version\": 1", "\"version\": 3");
        fs::write(&path, &newer).unwrap();
        let container = unreadable(&records);
        assert!(matches!(container.error, RecordError::Altered { .. }), "{}", container.error);
        assert_eq!(container.name.as_deref(), Some("web"));
        let rest = newer.splitn(3, '\n').nth(2).unwrap();
        fs::write(&path, check_line(rest.as_bytes()) + rest).unwrap();
        assert!(matches!(unreadable(&records).error, RecordError::Version { version: 3, .. }));
        // A copy of a container's directory is not that container, and removing it must not remove the original.
        fs::write(&path, &text).unwrap();
        let copy = records.paths(&"e".repeat(64)).0;
        make_dir(&copy).unwrap();
        fs::rename(&path, copy.join("record.json")).unwrap();
        assert!(matches!(&unreadable(&records).error, RecordError::Misplaced { id, .. } if *id == record.id));
    }
}
