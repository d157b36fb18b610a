//! The entries that gpurun and the hooks create in a container's root before its process runs: mount points, the
//! directories above them, and links from GPU hooks. `commit`, `diff` and `build` leave them out.
//!
//! `containers/ID/scaffold.json` is written between create and start of the first launch, when the upper directory
//! contains nothing else. An entry is identified by its inode and change time, so an entry that the container has
//! changed since is the container's. A later launch with hooks or GPUs recreates links and ld.so.cache, and without
//! further care they would count as the container's. So [`before`] notes which entries are still unchanged when the
//! launch begins, and [`note`] adds what the launch has changed or created. No process of the container runs between
//! the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::hook;
use crate::layer::diff::Keep;
use crate::record::Entry;
use crate::report::Report;

/// The maximum number of entries. gpurun and the hooks never create more.
const MOST: usize = 20_000;

/// The entries, by their path relative to the root.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Scaffold(BTreeMap<String, Mark>);

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Mark {
    directory: bool,
    inode: u64,
    changed: (i64, i64),
    mode: u32,
    owner: (u32, u32),
}

impl Scaffold {
    /// Reads the container's scaffold. A container that was never started has none.
    pub(crate) fn of(entry: &Entry) -> Result<Self, Report> {
        let path = file(entry);
        let failed =
            |cause: &dyn std::fmt::Display| Report::new(format!("cannot read `{}`", path.display())).with_cause(cause);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether an entry of the upper directory is the container's own.
    #[must_use]
    pub(crate) fn keep(&self, path: &[u8], stat: &FileStat) -> Keep {
        let Some(mark) = std::str::from_utf8(path).ok().and_then(|path| self.0.get(path)) else { return Keep::Yes };
        let same_meta = (stat.st_mode, stat.st_uid, stat.st_gid) == (mark.mode, mark.owner.0, mark.owner.1);
        if mark.directory {
            return if same_meta { Keep::IfNotEmpty } else { Keep::Yes };
        }
        let untouched = (stat.st_ino, (stat.st_ctime, stat.st_ctime_nsec)) == (mark.inode, mark.changed);
        if untouched { Keep::No } else { Keep::Yes }
    }
}

fn file(entry: &Entry) -> PathBuf {
    entry.dir.join("scaffold.json")
}

/// The state of the upper directory when a later launch begins.
#[derive(Debug)]
pub(super) struct Before {
    /// Scaffold entries that are unchanged since they were noted.
    untouched: BTreeSet<String>,
    /// Later changes have a change time after this.
    since: SystemTime,
}

/// Inspects the upper directory of a container that has run before. Returns `None` if this is the first launch, or if
/// the launch writes nothing into the root.
pub(super) fn before(entry: &Entry) -> Result<Option<Before>, Report> {
    let request = &entry.record.request;
    let hooks = hook::HOST_DIRS.iter().any(|dir| Path::new(dir).exists());
    if !hooks && request.gpus.is_none() && request.devices.is_empty() && request.hooks_dirs.is_empty() {
        return Ok(None);
    }
    if !file(entry).exists() {
        return Ok(None);
    }
    let upper = entry.dir.join("upper");
    let scaffold = Scaffold::of(entry)?;
    let same = |(path, mark): &(&String, &Mark)| {
        upper.join(path).symlink_metadata().is_ok_and(|metadata| Mark::of(&metadata) == **mark)
    };
    let untouched = scaffold.0.iter().filter(same).map(|(path, _)| path.clone()).collect();
    let since = now(&entry.dir)
        .map_err(|error| Report::new(format!("cannot write in `{}`", entry.dir.display())).with_cause(error))?;
    Ok(Some(Before { untouched, since }))
}

/// The current time of the file system, after waiting for its clock to advance: change times have a granularity of some
/// milliseconds.
fn now(dir: &Path) -> io::Result<SystemTime> {
    let path = dir.join(".scaffold-clock");
    let read = || -> io::Result<SystemTime> {
        fs::write(&path, b"x")?;
        Ok(changed(&path.symlink_metadata()?))
    };
    let time = read()?;
    // The loop is bounded, so that a clock that is set back cannot block the launch.
    for _ in 0..100 {
        if read()? > time {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::remove_file(&path)?;
    Ok(time)
}

fn changed(metadata: &fs::Metadata) -> SystemTime {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).unwrap_or(0))
}

/// Notes all entries of the upper directory if the container has not run yet. Otherwise adds the changes of this
/// launch.
pub(super) fn note(entry: &Entry, before: Option<&Before>) -> Result<(), Report> {
    let path = file(entry);
    let failed = |error: io::Error| {
        Report::new("cannot record which files were added to the container's root").with_cause(error)
    };
    let upper = entry.dir.join("upper");
    let mut scaffold = Scaffold::default();
    match (path.try_exists().map_err(failed)?, before) {
        (false, _) => walk(&upper, Path::new(""), &mut scaffold).map_err(failed)?,
        // A second complete note would include the container's own files.
        (true, None) => return Ok(()),
        (true, Some(before)) => {
            scaffold = Scaffold::of(entry)?;
            scaffold.renew(&upper, before);
        }
    }
    let bytes = serde_json::to_vec(&scaffold).map_err(|error| failed(error.into()))?;
    durable::write_atomic_volatile(&path, &bytes).map_err(failed)
}

impl Mark {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            directory: metadata.is_dir(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
        }
    }
}

impl Scaffold {
    /// Adds the entries that a launch has changed or created. The container may have made the tree of any depth and
    /// size, so this uses no recursion and skips anything that it cannot read. A directory counts only if the launch
    /// has created it, because a new entry changes the times of its directory as well.
    fn renew(&mut self, upper: &Path, before: &Before) {
        self.0.retain(|path, mark| mark.directory || before.untouched.contains(path));
        for (path, mark) in &mut self.0 {
            if let Ok(metadata) = upper.join(path).symlink_metadata()
                && metadata.is_dir() == mark.directory
                && !mark.directory
            {
                *mark = Mark::of(&metadata);
            }
        }
        let mut waiting = vec![PathBuf::new()];
        while let Some(at) = waiting.pop() {
            let dir = upper.join(&at);
            let is_new = |metadata: &fs::Metadata| changed(metadata) > before.since;
            let (Ok(about), Ok(entries)) = (dir.symlink_metadata(), fs::read_dir(&dir)) else { continue };
            let touched = is_new(&about);
            for entry in entries.flatten() {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = at.join(entry.file_name());
                // Creating, renaming or removing an entry changes the times of its directory.
                if touched
                    && let Ok(metadata) = upper.join(&path).symlink_metadata()
                    && is_new(&metadata)
                    && (!is_dir || metadata.created().is_ok_and(|made| made > before.since))
                    && self.0.len() < MOST
                    && let Some(name) = path.to_str()
                {
                    self.0.insert(name.to_owned(), Mark::of(&metadata));
                }
                if is_dir {
                    waiting.push(path);
                }
            }
        }
    }
}

/// Notes every entry. No process of the container has run yet, so the tree contains only entries of gpurun and the
/// hooks.
fn walk(upper: &Path, at: &Path, scaffold: &mut Scaffold) -> io::Result<()> {
    for entry in fs::read_dir(upper.join(at))? {
        let path = at.join(entry?.file_name());
        let metadata = upper.join(&path).symlink_metadata()?;
        let mark = Mark::of(&metadata);
        if scaffold.0.len() >= MOST {
            return Err(io::Error::other(format!("more than {MOST} files")));
        }
        if let Some(name) = path.to_str() {
            scaffold.0.insert(name.to_owned(), mark);
        }
        if metadata.is_dir() {
            walk(upper, &path, scaffold)?;
        }
    }
    Ok(())
}
