//! Watches for OOM kills (`memory.events` in version 2, `memory.oom_control` with an eventfd in version 1) and finds
//! the limit that caused them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Cgroup;
use super::access::keyed;

/// A descriptor that becomes ready when the kernel has killed a process for lack of memory, or has come close to it.
#[derive(Debug)]
pub enum OomWatch {
    V1(EventFd),
    V2(File),
}

impl Cgroup {
    /// Starts to watch for OOM kills, if the memory controller is available.
    #[must_use]
    pub fn oom_watch(&self) -> Option<OomWatch> {
        let memory = self.dirs.get("memory")?;
        let watch = if self.is_v2 { OomWatch::v2(memory) } else { OomWatch::v1(memory) };
        watch.inspect_err(|error| tracing::warn!("cannot watch for OOM kills in {}: {error}", memory.display())).ok()
    }

    /// Returns how many processes the OOM killer has killed in this cgroup.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.dirs.get("memory")?;
        keyed(&memory.join(if self.is_v2 { "memory.events" } else { "memory.oom_control" }), "oom_kill")
    }
}

/// The memory limit of a cgroup, either the container's own or an ancestor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The path of the cgroup below the mount.
    pub cgroup: String,
    pub file: PathBuf,
    /// Bytes. `None` means unlimited.
    pub limit: Option<u64>,
}

impl Cgroup {
    /// Returns the container's cgroup and its ancestors, innermost first, each with its path below the mount and its
    /// directory.
    fn levels(&self) -> Vec<(String, PathBuf)> {
        let Some(memory) = self.dirs.get("memory") else { return Vec::new() };
        let mut levels = Vec::new();
        let (mut path, mut dir) = (self.place.of("memory").trim_end_matches('/'), memory.as_path());
        while !path.is_empty() {
            levels.push((path.to_owned(), dir.to_path_buf()));
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
            let Some(above) = dir.parent() else { break };
            dir = above;
        }
        levels
    }

    fn ceiling(&self, cgroup: String, dir: &Path) -> Ceiling {
        let file = dir.join(if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" });
        let limit = crate::sys::file::read_control(&file).ok().and_then(|text| super::files::bytes(text.trim()));
        Ceiling { cgroup, file, limit }
    }

    /// Returns the limit of the cgroup that the kernel's log names. The path in the log may start above the part of the
    /// hierarchy that is mounted here.
    #[must_use]
    pub fn ceiling_of(&self, in_log: &str) -> Option<Ceiling> {
        let (cgroup, dir) = self.levels().into_iter().find(|(level, _)| in_log.ends_with(level.as_str()))?;
        Some(self.ceiling(cgroup, &dir))
    }

    /// Finds the limit that was reached from the counters, for hosts where the kernel's log cannot be read. This is the
    /// innermost cgroup that has reached its own limit. `None` means that no cgroup has, so the host itself was out of
    /// memory.
    ///
    /// Version 2 counts `oom` in the cgroup with the limit (`memory.events.local`) and `oom_kill` in the cgroup of the
    /// process. Version 1 counts failed charges, but not on every kernel for memory with swap (6.18 does not). There,
    /// the peak is compared with the limit.
    #[must_use]
    pub fn ceiling_by_counters(&self) -> Option<Ceiling> {
        let hit = |dir: &Path| match self.is_v2 {
            true => keyed(&dir.join("memory.events.local"), "oom").is_some_and(|count| count > 0),
            false => {
                failed_charges(dir).is_some_and(|count| count > 0) || full(dir, "memory.") || full(dir, "memory.memsw.")
            }
        };
        let (cgroup, dir) = self.levels().into_iter().find(|(_, dir)| hit(dir))?;
        Some(self.ceiling(cgroup, &dir))
    }

    /// Returns the kernel's counters of the memory limit: `memory.events`, or the equivalents in version 1.
    #[must_use]
    pub fn memory_events(&self) -> BTreeMap<String, u64> {
        let Some(memory) = self.dirs.get("memory") else { return BTreeMap::new() };
        if self.is_v2 {
            return counters(&crate::sys::file::read_control(memory.join("memory.events")).unwrap_or_default());
        }
        let mut events = BTreeMap::new();
        events.extend(failed_charges(memory).map(|count| ("failcnt".to_owned(), count)));
        events
            .extend(keyed(&memory.join("memory.oom_control"), "oom_kill").map(|count| ("oom_kill".to_owned(), count)));
        events
    }
}

/// Returns how often the memory limit or the limit of memory and swap was reached under version 1. If both limits are
/// equal, the kernel counts the latter.
pub(super) fn failed_charges(memory: &Path) -> Option<u64> {
    let count = |file: &str| crate::sys::file::read_control(memory.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(count("memory.failcnt")? + count("memory.memsw.failcnt").unwrap_or(0))
}

/// Returns whether version 1's limit of memory, or of memory and swap, was ever reached.
fn full(memory: &Path, which: &str) -> bool {
    let bytes = |file: &str| {
        crate::sys::file::read_control(memory.join(format!("{which}{file}"))).ok()?.trim().parse::<u64>().ok()
    };
    bytes("max_usage_in_bytes").zip(bytes("limit_in_bytes")).is_some_and(|(peak, limit)| peak >= limit)
}

/// Parses lines of the form `max 35`.
fn counters(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, count)| Some((key.to_owned(), count.trim().parse().ok()?))).collect()
}

impl OomWatch {
    pub(super) fn v1(memory: &Path) -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(memory.join("memory.oom_control"))?;
        let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        OpenOptions::new().write(true).open(memory.join("cgroup.event_control"))?.write_all(line.as_bytes())?;
        Ok(Self::V1(event))
    }

    pub(super) fn v2(cgroup: &Path) -> io::Result<Self> {
        let mut file = File::open(cgroup.join("memory.events"))?;
        // kernfs signals poll only for changes since the last read.
        read_again(&mut file)?;
        Ok(Self::V2(file))
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V1(event) => event.as_fd(),
            Self::V2(file) => file.as_fd(),
        }
    }

    #[must_use]
    pub fn poll_flags(&self) -> PollFlags {
        match self {
            Self::V1(_) => PollFlags::POLLIN,
            Self::V2(_) => PollFlags::POLLPRI,
        }
    }

    /// Resets the watch for the next event. Returns `false` if there will be none because the cgroup is gone.
    pub fn clear(&mut self) -> bool {
        match self {
            Self::V1(event) => event.read().is_ok(),
            Self::V2(file) => read_again(file).is_ok(),
        }
    }
}

fn read_again(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    io::copy(&mut file.take(4096), &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Creates a version 2 container `/lab/ID` below a directory, with these files.
    fn cgroup(dir: &Path, files: &[(&str, &str)]) -> Cgroup {
        fs::create_dir_all(dir.join("lab/ID")).unwrap();
        for (path, text) in files {
            fs::write(dir.join(path), text).unwrap();
        }
        let own = dir.join("lab/ID");
        Cgroup {
            dirs: [("memory".to_owned(), own.clone())].into(),
            v2: Some(own),
            is_v2: true,
            place: "/lab/ID".into(),
        }
    }

    #[test]
    fn the_limit_that_the_log_names_is_found_whatever_lies_above_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = cgroup(dir.path(), &[("lab/memory.max", "33554432\n"), ("lab/ID/memory.max", "max\n")]);
        let found = |log: &str| cgroup.ceiling_of(log).map(|ceiling| (ceiling.cgroup, ceiling.limit));
        assert_eq!(found("/lab"), Some(("/lab".into(), Some(32 << 20))));
        assert_eq!(found("/docker/x/lab"), Some(("/lab".into(), Some(32 << 20))));
        assert_eq!(found("/docker/x/lab/ID"), Some(("/lab/ID".into(), None)));
        assert_eq!(found("/docker/x"), None);
    }

    #[test]
    fn without_the_log_the_counters_give_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let events = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n";
        let none = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n";
        let (own, above) = ("lab/ID/memory.events.local", "lab/memory.events.local");
        let both = cgroup(dir.path(), &[(own, none), (above, events), ("lab/ID/memory.events", events)]);
        assert_eq!(both.ceiling_by_counters().unwrap().cgroup, "/lab");
        assert_eq!(both.memory_events()["max"], 9);
        fs::write(dir.path().join(own), events).unwrap();
        assert_eq!(both.ceiling_by_counters().unwrap().cgroup, "/lab/ID");
        for file in [own, above] {
            fs::write(dir.path().join(file), none).unwrap();
        }
        assert_eq!(both.ceiling_by_counters(), None);
    }
}
