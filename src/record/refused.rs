//! The run directory that a root is bound to, and the error for another one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The run directory that `.run` records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    pub(super) run_dir: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) boot_id: Option<String>,
}

/// The error for a refused run directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the run directory `{}` with the containers in `{}`: they run with {}", asked.display(), containers.display(), self.theirs()
)]
pub(crate) struct Refused {
    pub(super) asked: PathBuf,
    pub(super) containers: PathBuf,
    pub(super) known: Option<Binding>,
    /// A process that uses the root.
    pub(super) pid: Option<i32>,
}

impl Refused {
    fn known(&self) -> Option<PathBuf> {
        let of_process = || {
            let text = fs::read(format!("/proc/{}/cmdline", self.pid?)).ok()?;
            let words: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
            let at = words.iter().position(|word| *word == b"--run-dir")?;
            Some(PathBuf::from(String::from_utf8_lossy(words.get(at + 1)?).into_owned()))
        };
        self.known.as_ref().map(|known| known.run_dir.clone()).or_else(of_process)
    }

    fn theirs(&self) -> String {
        match self.known() {
            Some(known) if known == self.asked => "another directory of that name".to_owned(),
            Some(known) => format!("`{}`", known.display()),
            None => "another one".to_owned(),
        }
    }

    pub(super) fn hint(&self) -> String {
        let pid = self.pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
        match self.known() {
            Some(known) if known != self.asked => {
                let known = known.display();
                format!("use that one: `gpurun --run-dir {known} ps`, or `export GPURUN_RUN={known}`")
            }
            Some(known) if self.is_in("1", &known) => {
                "use the mounts in which they were started: `nsenter --mount --target 1 gpurun ps`".to_owned()
            }
            Some(known) if self.is_in(&pid, &known) => {
                format!("use the mounts of a container's supervisor: `nsenter --mount --target {pid} gpurun ps`")
            }
            _ => format!(
                "the directory was replaced while containers ran; `kill -9 {pid}` ends the supervisor of one of them"
            ),
        }
    }

    /// Whether another process sees the root's bound run directory at its path.
    fn is_in(&self, pid: &str, path: &Path) -> bool {
        let root = Path::new("/proc").join(pid).join("root");
        let there = fs::metadata(root.join(path.strip_prefix("/").unwrap_or(path)));
        let known = self.known.as_ref().map(|known| (known.device, known.inode));
        there.is_ok_and(|there| known == Some((there.dev(), there.ino())))
    }
}
