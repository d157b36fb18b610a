//! A part of a container's cgroup: processes that end together while the rest of the container runs on.
//!
//! ```text
//! v2             /sys/fs/cgroup/gpurun/ID/NAME
//! v1, hybrid     /sys/fs/cgroup/freezer/gpurun/ID/NAME
//! ```
//!
//! The part has no limits of its own, so its processes count toward the container's. Under version 1 only the freezer
//! has it: a process is in the container's own cgroup of every other controller, because a new memory cgroup would not
//! count toward its parent everywhere. The part is removed with the container's cgroup.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cgroup, CgroupError, Missing};

/// How many times the processes are listed in one pass, until the list does not change any more.
const LISTS: usize = 10;

/// The files of a part, which a helper process may use as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The files through which a process with one thread enters, by writing `0`.
    pub entry_files: Vec<PathBuf>,
    dir: PathBuf,
    is_v2: bool,
}

impl Cgroup {
    /// Creates a part for what `flag` asks for, or opens it if it exists.
    pub(crate) fn part(&self, name: &str, flag: &'static str) -> Result<Part, CgroupError> {
        let above = if self.is_v2 { self.v2.as_ref() } else { self.dirs.get("freezer") };
        let missing = || CgroupError::NoController { flag, controller: "freezer".into(), why: Missing::Kernel };
        let above = above.ok_or_else(missing)?;
        let dir = above.join(name);
        match fs::create_dir(&dir) {
            Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Io { action: "create the cgroup", path: dir, source });
            }
            _ => {}
        }
        let inside = |file: PathBuf| match file.strip_prefix(above) {
            Ok(name) => dir.join(name),
            Err(_) => file,
        };
        let entry_files = self.entry_files().into_iter().map(inside).collect();
        Ok(Part { entry_files, dir, is_v2: self.is_v2 })
    }
}

impl Part {
    /// Sends SIGKILL to every process of the part, without waiting for their ends. Returns whether there was none.
    pub(crate) fn kill(&self) -> bool {
        let dir = &self.dir;
        if list(dir).is_empty() {
            return true;
        }
        if self.is_v2 && fs::write(dir.join("cgroup.kill"), "1").is_ok() {
            return false;
        }
        // While frozen, no process forks after the list has been read. A frozen process dies when it is thawed.
        let (file, frozen, thawed) =
            if self.is_v2 { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
        let _ = fs::write(dir.join(file), frozen);
        let mut before = Vec::new();
        for _ in 0..LISTS {
            let pids = list(dir);
            for pid in &pids {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
            }
            if pids == before {
                break;
            }
            before = pids;
        }
        let _ = fs::write(dir.join(file), thawed);
        false
    }
}

/// The processes in a cgroup. Zombies of another pid namespace appear as 0.
fn list(dir: &Path) -> Vec<i32> {
    let text = crate::sys::file::read_control(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}
