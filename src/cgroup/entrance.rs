//! How a process enters a container's cgroup without waiting for the kernel.
//!
//! A process that is moved by another one, or with all of its threads, waits for an RCU grace period (4 to 19 ms
//! measured). The kernel omits the wait in two cases: under version 1, for a thread that moves only itself by writing `0`
//! to the `tasks` file of each hierarchy (for a process with one thread, the result is the same); under version 2, for a
//! process that is created in the cgroup (`CLONE_INTO_CGROUP`, since Linux 5.7).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::host::TASKS;
use super::{Cgroup, Hierarchy, Host, Place};

/// How a process with one thread enters a cgroup.
#[derive(Debug, Clone)]
pub(crate) enum Entrance {
    /// Version 1: the files to which the process writes.
    Tasks(Vec<PathBuf>),
    /// Version 2: the directory of the cgroup, and where the hierarchy is mounted.
    Directory { dir: PathBuf, mount: PathBuf },
}

/// The open files of version 1.
#[derive(Debug)]
pub(crate) struct OpenEntrance(Vec<File>);

impl Host {
    /// The entrance of a cgroup. `None` if no controller of version 1 is mounted.
    #[must_use]
    pub(crate) fn entrance(&self, place: &Place) -> Option<Entrance> {
        if let Hierarchy::V2 { mount } = &self.hierarchy {
            let path = place.of("").trim_start_matches('/');
            return Some(Entrance::Directory { dir: mount.join(path), mount: mount.clone() });
        }
        let mut dirs: Vec<PathBuf> = self.v1_dirs(place).into_iter().map(|(_, dir)| dir).collect();
        dirs.sort();
        dirs.dedup();
        (!dirs.is_empty()).then(|| Entrance::Tasks(dirs.into_iter().map(|dir| dir.join(TASKS)).collect()))
    }
}

impl Entrance {
    /// The entrance for a process that would otherwise write to these files (`Cgroup::entry_files`). `None` if they are
    /// not that of a cgroup of version 2 alone.
    pub(crate) fn of_files(files: &[PathBuf]) -> Option<Self> {
        let [file] = files else { return None };
        let dir = file.parent().filter(|_| file.ends_with("cgroup.procs"))?;
        Some(Self::Directory { dir: dir.to_owned(), mount: dir.to_owned() })
    }

    /// Opens the directory in which the process is to be created. `None` under version 1.
    pub(crate) fn open_dir(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Tasks(_) => Ok(None),
            Self::Directory { dir, .. } => Ok(Some(File::open(dir)?.into())),
        }
    }

    /// Opens the files of version 1. A process that no longer sees them can then still enter.
    pub(crate) fn open(&self) -> io::Result<OpenEntrance> {
        let open = |path: &PathBuf| OpenOptions::new().write(true).open(path);
        let Self::Tasks(files) = self else { return Ok(OpenEntrance(Vec::new())) };
        files.iter().map(open).collect::<io::Result<_>>().map(OpenEntrance)
    }

    /// Whether the calling process, which was created in the cgroup, may use the cgroup's CPUs and memory nodes. Some
    /// kernels before 6.3 leave it those of its parent.
    pub(crate) fn has_sets(&self) -> bool {
        let Self::Directory { dir, .. } = self else { return true };
        let status = crate::sys::file::read_control("/proc/thread-self/status").unwrap_or_default();
        ["cpu", "mem"].into_iter().all(|what| has_set(dir, &status, what))
    }
}

/// Without the controller, there is no such file.
fn has_set(dir: &Path, status: &str, what: &str) -> bool {
    let Ok(set) = crate::sys::file::read_control(dir.join(format!("cpuset.{what}s.effective"))) else { return true };
    let title = if what == "cpu" { "Cpus_allowed_list:" } else { "Mems_allowed_list:" };
    status.lines().any(|line| line.strip_prefix(title).is_some_and(|list| list.trim() == set.trim()))
}

impl OpenEntrance {
    /// Moves the calling process, which must have one thread, into the cgroup.
    pub(crate) fn enter(self) -> io::Result<()> {
        self.0.into_iter().try_for_each(|mut file| file.write_all(b"0"))
    }
}

impl Cgroup {
    /// Returns the first directory of this cgroup that a process is not in, by the kernel's list for the process.
    pub(crate) fn outside(&self, pid: i32) -> io::Result<Option<PathBuf>> {
        let text = crate::sys::file::read_control(format!("/proc/{pid}/cgroup"))?;
        let is_in = |name: &str| is_in(&text, name, self.place.of(name));
        let missing = |(name, _): &(&String, &PathBuf)| !is_in(if self.is_v2 { "" } else { name });
        Ok(self.dirs.iter().find(missing).map(|(_, dir)| dir.clone()))
    }
}

/// Whether the list of a process (cgroups(7)) has it in the cgroup `path` of a controller, or of version 2 for "". The
/// paths in the list may begin above the directory that is mounted.
fn is_in(list: &str, controller: &str, path: &str) -> bool {
    list.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(own)) = (fields.next(), fields.next()) else { return false };
        controllers.split(',').any(|name| name == controller) && own.ends_with(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_a_process_are_compared() {
        let dir = tempfile::tempdir().unwrap();
        let status = "Cpus_allowed:\t3\nCpus_allowed_list:\t0-1\nMems_allowed_list:\t0\n";
        assert!(has_set(dir.path(), status, "cpu"), "there is no controller");
        for (what, set, equal) in
            [("cpu", "0-1\n", true), ("cpu", "1\n", false), ("mem", "0\n", true), ("mem", "0-1", false)]
        {
            std::fs::write(dir.path().join(format!("cpuset.{what}s.effective")), set).unwrap();
            assert_eq!(has_set(dir.path(), status, what), equal, "{what} {set}");
        }
    }

    #[test]
    fn the_list_of_a_process_names_its_cgroups() {
        let list = "7:name=systemd:/\n5:cpu,cpuacct:/docker/x/gpurun/ID\n4:memory:/gpurun\n0::/gpurun/ID\n";
        for (controller, path, inside) in [
            ("cpu", "/gpurun/ID", true),
            ("cpuacct", "/gpurun/ID", true),
            ("memory", "/gpurun/ID", false),
            ("memory", "/gpurun", true),
            ("pids", "/gpurun/ID", false),
            ("", "/gpurun/ID", true),
        ] {
            assert_eq!(is_in(list, controller, path), inside, "{controller} {path}");
        }
    }
}
