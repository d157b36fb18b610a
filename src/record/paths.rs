//! The names of a container's files, and what its locks say.

use std::path::{Path, PathBuf};

use super::error::RecordError;
use crate::durable::{FileLock, ProcessLock};

/// The record of a build's step, in /run. There it is in no list, its environment (which may contain a secret) is never
/// written to a disk, and reconcile removes it as an orphan once no process runs it.
pub(super) const STEP: &str = "step.json";

/// The lock that the supervisor's forks inherit: see [`super::Entry::hold_forks`].
pub(super) const FORKS: &str = "forks";
/// The mark of a directory that may be removed when it has no record.
pub(super) const DISPOSABLE: &str = "disposable";

/// The path of the diagnostics of the container `id`. The file is outside the container's directory, so that it can be
/// read after the container is removed.
#[must_use]
pub(crate) fn diagnostics(root: &Path, id: &str) -> PathBuf {
    root.join("logs").join(format!("{id}.log"))
}

pub(super) fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control")
}

/// Whether all processes have ended that a supervisor with this directory in /run has forked: see
/// [`super::Entry::hold_forks`].
pub(crate) fn forks_have_ended(run_dir: &Path) -> Result<bool, RecordError> {
    let path = run_dir.join(FORKS);
    if !path.exists() {
        return Ok(true);
    }
    match FileLock::try_exclusive(&path) {
        Ok(lock) => Ok(lock.is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(RecordError::Io { action: "examine the lock", path, source }),
    }
}

/// Whether no process is running or starting the container of this directory in /run.
pub(crate) fn is_idle(run_dir: &Path) -> Result<bool, RecordError> {
    Ok(holder(&run_dir.join("alive"))?.is_none() && holder(&run_dir.join("launching"))?.is_none())
}

/// The pid of the supervisor of the container of this directory in /run, if it lives.
pub(crate) fn supervisor_of(run_dir: &Path) -> Result<Option<i32>, RecordError> {
    holder(&run_dir.join("alive"))
}

/// The pid of the process that holds the given lock file, if any.
pub(crate) fn holder(path: &Path) -> Result<Option<i32>, RecordError> {
    ProcessLock::holder(path).map_err(|source| RecordError::Io {
        action: "examine the lock",
        path: path.to_path_buf(),
        source,
    })
}

pub(super) fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
