//! How a process enters a container's cgroup without waiting for the kernel.
//!
//! A process that is moved by another one, or with all of its threads, waits for an RCU grace period (4 to 19 ms
//! measured). The kernel omits the wait for a thread that moves only itself: under version 1, it writes `0` to the
//! `tasks` file of each hierarchy. For a process with one thread, the result is the same.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use super::host::TASKS;
use super::{Cgroup, Host, Place};

/// The files through which a process with one thread enters a cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    tasks: Vec<PathBuf>,
}

/// The open files of an [`Entrance`].
#[derive(Debug)]
pub(crate) struct OpenEntrance(Vec<File>);

impl Host {
    /// The entrance of a cgroup. `None` under version 2, which has no such files for a process of its own.
    #[must_use]
    pub(crate) fn entrance(&self, place: &Place) -> Option<Entrance> {
        let mut dirs: Vec<PathBuf> = self.v1_dirs(place).into_iter().map(|(_, dir)| dir).collect();
        dirs.sort();
        dirs.dedup();
        (!dirs.is_empty()).then(|| Entrance { tasks: dirs.into_iter().map(|dir| dir.join(TASKS)).collect() })
    }
}

impl Entrance {
    /// Opens the files. A process that no longer sees them can then still enter.
    pub(crate) fn open(&self) -> io::Result<OpenEntrance> {
        let open = |path: &PathBuf| OpenOptions::new().write(true).open(path);
        self.tasks.iter().map(open).collect::<io::Result<_>>().map(OpenEntrance)
    }
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
