//! What a sampler knows of a container. Records and states are replaced by a rename, so a file that has the same inode,
//! size and time as before has the same contents.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cgroup::{Cgroup, Host};
use crate::record::{Entry, Phase, Records, State};

/// The inode, size and time of a file. `None` if it does not exist.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A container with a readable record, as of the time when its files were read.
pub(super) struct Known {
    record_stamp: Stamp,
    state_stamps: [Stamp; 2],
    entry: Entry,
    state: State,
    /// The cgroup, if the container runs.
    cgroup: Option<Cgroup>,
}

impl Known {
    /// Reads a container, as far as its files differ from those of `earlier`. Returns `None` if its record cannot be
    /// read.
    pub(super) fn read(records: &Records, cgroups: &Host, id: &str, earlier: Option<Self>) -> Option<Self> {
        let record_stamp = stamp(&records.paths(id).0.join("record.json"));
        let entry = match earlier {
            Some(earlier) if earlier.record_stamp == record_stamp => {
                if earlier.state_stamps == stamps(&earlier.entry) {
                    return Some(earlier);
                }
                earlier.entry
            }
            _ => records.get(id).ok()??,
        };
        // A file that changes after its stamp was taken is read again for the next sample.
        let state_stamps = stamps(&entry);
        let state = entry.state_shown().ok()?;
        let runs = state.phase == Phase::Running;
        let cgroup = runs.then(|| Cgroup::open(cgroups, &entry.record.cgroup).ok().flatten()).flatten();
        // A container that is about to run has no cgroup yet, so its state is read again.
        let state_stamps = if runs && cgroup.is_none() { [None, None] } else { state_stamps };
        Some(Self { record_stamp, state_stamps, entry, state, cgroup })
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }
}

fn stamps(entry: &Entry) -> [Stamp; 2] {
    [stamp(&entry.spare_state()), stamp(&entry.dir.join("state.json"))]
}

fn stamp(path: &Path) -> Stamp {
    let about = fs::metadata(path).ok()?;
    Some((about.ino(), about.size(), about.mtime(), about.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{LimitsRequest, RestartPolicy, TimeLimits};

    #[test]
    fn changes_of_records_and_states_are_noticed() {
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        let record = crate::fixture::record(&"c".repeat(64), "web");
        let (mut entry, launching) = records.create(&record, None).unwrap();
        drop(launching);
        let host = Host::probe(Path::new("/")).unwrap();
        let read = |earlier| Known::read(&records, &host, &record.id, earlier).unwrap();
        let first = read(None);
        assert_eq!((first.entry().record.name.as_str(), first.state().phase), ("web", Phase::Created));
        entry.rename("other").unwrap();
        let second = read(Some(first));
        assert_eq!(second.entry().record.name, "other");
        entry.write_state(&State { phase: Phase::Exited, paused: true, ..State::default() }).unwrap();
        let third = read(Some(second));
        assert!(third.state().paused && third.cgroup().is_none());
        entry.change(LimitsRequest::default(), RestartPolicy::Always, TimeLimits::default()).unwrap();
        assert_eq!(read(Some(third)).entry().record.request.restart, RestartPolicy::Always);
        fs::remove_file(entry.dir.join("record.json")).unwrap();
        assert!(Known::read(&records, &host, &record.id, None).is_none());
    }
}
