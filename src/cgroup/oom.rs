//! Hearing of OOM kills: v2's `memory.events`, v1's `memory.oom_control` with an eventfd; and whose limit it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Cgroup;

/// A descriptor that becomes ready when the kernel killed (or came close to killing) for memory.
#[derive(Debug)]
pub enum OomWatch {
    V1(EventFd),
    V2(File),
}

impl Cgroup {
    /// Watches for OOM kills, where the memory controller is there.
    #[must_use]
    pub fn oom_watch(&self) -> Option<OomWatch> {
        let memory = self.dirs.get("memory")?;
        let watch = if self.is_v2 { OomWatch::v2(memory) } else { OomWatch::v1(memory) };
        watch.inspect_err(|error| tracing::warn!("cannot watch for OOM kills in {}: {error}", memory.display())).ok()
    }

    /// How many processes the kernel has killed here for memory.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.dirs.get("memory")?;
        keyed(&memory.join(if self.is_v2 { "memory.events" } else { "memory.oom_control" }), "oom_kill")
    }
}

/// The memory limit of a cgroup, the container's own or an ancestor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The cgroup's path below the mount.
    pub cgroup: String,
    pub file: PathBuf,
    /// Bytes; `None`: unlimited.
    pub limit: Option<u64>,
}

impl Cgroup {
    /// The container's cgroup (`path` below the mount) and its ancestors, the own one first, each with its directory.
    fn levels(&self, path: &str) -> Vec<(String, PathBuf)> {
        let Some(memory) = self.dirs.get("memory") else { return Vec::new() };
        let mut levels = Vec::new();
        let (mut path, mut dir) = (path.trim_end_matches('/'), memory.as_path());
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
        let limit = fs::read_to_string(&file).ok().and_then(|text| super::files::bytes(text.trim()));
        Ceiling { cgroup, file, limit }
    }

    /// The cgroup that the kernel's log names, which may show more of the tree than is mounted here.
    #[must_use]
    pub fn ceiling_of(&self, path: &str, in_log: &str) -> Option<Ceiling> {
        let (cgroup, dir) = self.levels(path).into_iter().find(|(level, _)| in_log.ends_with(level.as_str()))?;
        Some(self.ceiling(cgroup, &dir))
    }

    /// Whose limit was reached as far as the counters tell, for where the kernel's log cannot be read: the nearest cgroup that ran against its
    /// own. `None`: nobody's, so it was the host that was out of memory.
    ///
    /// Version 2 counts `oom` where the limit is (`memory.events.local`), `oom_kill` where the process was; version 1 counts failed charges, of
    /// memory with swap not on every kernel (6.18 does not): there the peak is compared with the limit.
    #[must_use]
    pub fn ceiling_by_counters(&self, path: &str) -> Option<Ceiling> {
        let hit = |dir: &Path| match self.is_v2 {
            true => keyed(&dir.join("memory.events.local"), "oom").is_some_and(|count| count > 0),
            false => {
                failed_charges(dir).is_some_and(|count| count > 0) || full(dir, "memory.") || full(dir, "memory.memsw.")
            }
        };
        let (cgroup, dir) = self.levels(path).into_iter().find(|(_, dir)| hit(dir))?;
        Some(self.ceiling(cgroup, &dir))
    }

    /// What the kernel has counted of the memory limit: `memory.events`, or what version 1 has of it.
    #[must_use]
    pub fn memory_events(&self) -> BTreeMap<String, u64> {
        let Some(memory) = self.dirs.get("memory") else { return BTreeMap::new() };
        if self.is_v2 {
            return counters(&fs::read_to_string(memory.join("memory.events")).unwrap_or_default());
        }
        let mut events = BTreeMap::new();
        events.extend(failed_charges(memory).map(|count| ("failcnt".to_owned(), count)));
        events
            .extend(keyed(&memory.join("memory.oom_control"), "oom_kill").map(|count| ("oom_kill".to_owned(), count)));
        events
    }
}

/// Under version 1: how often the memory limit, or that of memory and swap together, was met. Where both are the same, it is the second.
pub(super) fn failed_charges(memory: &Path) -> Option<u64> {
    let count = |file: &str| fs::read_to_string(memory.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(count("memory.failcnt")? + count("memory.memsw.failcnt").unwrap_or(0))
}

/// Whether version 1's limit of memory, or of memory and swap, was ever used up.
fn full(memory: &Path, which: &str) -> bool {
    let bytes = |file: &str| fs::read_to_string(memory.join(format!("{which}{file}"))).ok()?.trim().parse::<u64>().ok();
    bytes("max_usage_in_bytes").zip(bytes("limit_in_bytes")).is_some_and(|(peak, limit)| peak >= limit)
}

/// `max 35` a line.
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
        // kernfs answers poll only for what changed since the last read.
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

    /// Makes it ready for the next event. `false`: there will be none (the cgroup is gone).
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

/// The number behind a key of a flat-keyed file (`oom_kill 3`).
pub(super) fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container `/lab/ID` of version 2 below a directory, with these files.
    fn cgroup(dir: &Path, files: &[(&str, &str)]) -> Cgroup {
        fs::create_dir_all(dir.join("lab/ID")).unwrap();
        for (path, text) in files {
            fs::write(dir.join(path), text).unwrap();
        }
        let own = dir.join("lab/ID");
        Cgroup { dirs: [("memory".to_owned(), own.clone())].into(), v2: Some(own), is_v2: true }
    }

    #[test]
    fn the_limit_that_the_log_names_is_found_whatever_lies_above_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = cgroup(dir.path(), &[("lab/memory.max", "33554432\n"), ("lab/ID/memory.max", "max\n")]);
        let found = |log: &str| cgroup.ceiling_of("/lab/ID", log).map(|ceiling| (ceiling.cgroup, ceiling.limit));
        assert_eq!(found("/lab"), Some(("/lab".into(), Some(32 << 20))));
        assert_eq!(found("/docker/x/lab"), Some(("/lab".into(), Some(32 << 20))));
        assert_eq!(found("/docker/x/lab/ID"), Some(("/lab/ID".into(), None)));
        assert_eq!(found("/docker/x"), None);
    }

    #[test]
    fn without_the_log_the_counters_tell_whose_limit_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let events = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n";
        let none = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n";
        let (own, above) = ("lab/ID/memory.events.local", "lab/memory.events.local");
        let both = cgroup(dir.path(), &[(own, none), (above, events), ("lab/ID/memory.events", events)]);
        assert_eq!(both.ceiling_by_counters("/lab/ID").unwrap().cgroup, "/lab");
        assert_eq!(both.memory_events()["max"], 9);
        fs::write(dir.path().join(own), events).unwrap();
        assert_eq!(both.ceiling_by_counters("/lab/ID").unwrap().cgroup, "/lab/ID");
        for file in [own, above] {
            fs::write(dir.path().join(file), none).unwrap();
        }
        assert_eq!(both.ceiling_by_counters("/lab/ID"), None);
    }
}
