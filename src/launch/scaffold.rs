//! What gpurun and the hooks put into a container's root before its process ran: mount points, the directories above them, what a GPU hook
//! linked in. `commit`, `diff` and `build` leave it out.
//!
//! `containers/ID/scaffold.json` is written once, between create and start of the first launch, when the upper directory holds nothing
//! else. An entry is known again by its inode and change time: what the container changed since is the container's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::layer::diff::Keep;
use crate::record::Entry;
use crate::report::Report;

/// More than this was not put there by gpurun.
const MOST: usize = 20_000;

/// The entries, by path from the root.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Scaffold(BTreeMap<String, Mark>);

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Mark {
    directory: bool,
    inode: u64,
    changed: (i64, i64),
    mode: u32,
    owner: (u32, u32),
}

impl Scaffold {
    /// The container's scaffold; one that was never started has none.
    pub fn of(entry: &Entry) -> Result<Self, Report> {
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
    pub fn keep(&self, path: &[u8], stat: &FileStat) -> Keep {
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

/// Notes what stands in the upper directory of a container that has not run yet.
pub(super) fn note(entry: &Entry) -> Result<(), Report> {
    let path = file(entry);
    let failed = |error: io::Error| Report::new("cannot note what was put into the container's root").with_cause(error);
    // A second note would count the container's own files among what was put there.
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let mut scaffold = Scaffold::default();
    walk(&entry.dir.join("upper"), Path::new(""), &mut scaffold).map_err(failed)?;
    let bytes = serde_json::to_vec(&scaffold).map_err(|error| failed(error.into()))?;
    durable::write_atomic_volatile(&path, &bytes).map_err(failed)
}

/// Nobody else is in there yet.
fn walk(upper: &Path, at: &Path, scaffold: &mut Scaffold) -> io::Result<()> {
    for entry in fs::read_dir(upper.join(at))? {
        let path = at.join(entry?.file_name());
        let metadata = upper.join(&path).symlink_metadata()?;
        let mark = Mark {
            directory: metadata.is_dir(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
        };
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
