//! The lock of a project: one command at a time creates or removes its containers and networks.
//!
//! Without it, two `up` find the same container missing, and the second one cannot create it. The lock is a file below the run
//! directory, `compose/PROJECT.lock`, which contains the process ID of its holder and stays after the lock is released. The
//! kernel releases the lock when the process ends or executes another program. `stop` and `kill` do not take it, so that
//! they work while `up` waits for a service. Builds and pulls do not need it.

use std::path::Path;

use super::super::{Context, print};
use crate::durable::FileLock;
use crate::report::Report;

/// Waits until no other command holds the lock of the project. `None` with `--dry-run`, which changes nothing.
pub(super) fn of_project(context: &Context, project: &str) -> Result<Option<FileLock>, Report> {
    if context.dry_run {
        return Ok(None);
    }
    let directory = context.run_dir.join("compose");
    let path = directory.join(format!("{project}.lock"));
    take(&directory, &path, project)
        .map(Some)
        .map_err(|error| Report::new(format!("cannot lock `{}`", path.display())).with_cause(error))
}

fn take(directory: &Path, path: &Path, project: &str) -> std::io::Result<FileLock> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let lock = match FileLock::try_exclusive(path)? {
        Some(lock) => lock,
        None => {
            print::say(&format!("gpurun: waiting for another command of the project `{project}`{}", holder(path)));
            FileLock::exclusive(path)?
        }
    };
    std::fs::write(path, std::process::id().to_string())?;
    Ok(lock)
}

/// The process that holds the lock, if it has written its ID already.
fn holder(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.parse::<u32>().map_or_else(|_| String::new(), |pid| format!(" (process {pid})"))
}
