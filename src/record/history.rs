//! What is known of removed containers, for `gpurun events`.
//!
//! `/run/gpurun/removed` has a JSON object for each removed container, in the order of the removals, and
//! `/run/gpurun/removed.old` has earlier ones. A line is one write(2) in append mode, so there is no lock. A file that has
//! reached [`MOST`] bytes replaces the old one. Who removes a container's record writes the line; a removal that was
//! killed, and one of a record that cannot be read, have none. Lines that cannot be parsed are skipped.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state::State;
use super::types::Record;

/// The size of a file, in bytes, from which the next line begins a new file.
const MOST: u64 = 512 << 10;
/// The labels of a container are left out if they are longer than this.
const MOST_LABELS: usize = 16 << 10;

/// A container that was removed, with its last run. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub created: u64,
    pub started: Option<u64>,
    pub finished: Option<u64>,
    pub exit_code: Option<u8>,
    pub removed: u64,
}

impl Removed {
    fn new(record: &Record, state: &State) -> Self {
        let labels: BTreeMap<String, String> = record.request.labels.iter().cloned().collect();
        let length: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.request.image.clone(),
            labels: if length > MOST_LABELS { BTreeMap::new() } else { labels },
            created: record.created,
            started: state.started,
            finished: state.finished.filter(|_| state.started.is_some()),
            exit_code: state.exit_code.filter(|_| state.started.is_some()),
            removed: crate::clock::now(),
        }
    }
}

fn files(run_dir: &Path) -> [PathBuf; 2] {
    [run_dir.join("removed.old"), run_dir.join("removed")]
}

/// Notes that a container was removed. A failure is not reported: the removal is done all the same.
pub(crate) fn note_removal(run_dir: &Path, record: &Record, state: &State) {
    let [old, new] = files(run_dir);
    let note = || -> std::io::Result<()> {
        if new.metadata().is_ok_and(|metadata| metadata.len() >= MOST) {
            std::fs::rename(&new, &old)?;
        }
        let mut line = serde_json::to_vec(&Removed::new(record, state))?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).mode(0o600).open(&new)?.write_all(&line)
    };
    if let Err(error) = note() {
        tracing::debug!("cannot write `{}`: {error}", new.display());
    }
}

/// The removed containers, the earliest first.
#[must_use]
pub(crate) fn removed(run_dir: &Path) -> Vec<Removed> {
    let texts = files(run_dir).into_iter().filter_map(|path| std::fs::read(path).ok());
    let lines = texts.flat_map(|text| {
        let lines = text.split(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).ok());
        lines.flatten().collect::<Vec<Removed>>()
    });
    lines.collect()
}

/// The sizes of the files, which change with every removal.
#[must_use]
pub(crate) fn mark(run_dir: &Path) -> [u64; 2] {
    files(run_dir).map(|path| path.metadata().map_or(0, |metadata| metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn removals_are_kept_up_to_a_size() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(removed(dir.path()), []);
        let mut record = fixture::record("0123", "lab");
        let state = State { started: Some(1), finished: Some(2), exit_code: Some(3), ..State::default() };
        note_removal(dir.path(), &record, &state);
        let first = removed(dir.path()).remove(0);
        assert_eq!((first.id.as_str(), first.exit_code, first.finished), (record.id.as_str(), Some(3), Some(2)));
        // It has never run.
        note_removal(dir.path(), &record, &State { finished: Some(2), exit_code: Some(125), ..State::default() });
        assert_eq!((removed(dir.path())[1].exit_code, removed(dir.path())[1].finished), (None, None));
        // A line of a process that was killed.
        let file = dir.path().join("removed");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"id\":\n").unwrap();
        record.request.labels = vec![("long".into(), "x".repeat(15 << 10))];
        (0..100).for_each(|_| note_removal(dir.path(), &record, &state));
        let (sizes, kept) = (mark(dir.path()), removed(dir.path()).len());
        assert!(sizes.iter().all(|size| *size < MOST + (32 << 10)) && (34..102).contains(&kept), "{sizes:?} {kept}");
        record.request.labels = vec![("long".into(), "x".repeat(17 << 10))];
        note_removal(dir.path(), &record, &state);
        assert_eq!(removed(dir.path()).pop().unwrap().labels, BTreeMap::new());
    }
}
