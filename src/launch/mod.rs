//! The pipeline from a recorded request to a running container, with its undo stack.
//!
//! ```text
//! image mount → private mount namespace → overlay → guards → user, files, mount points → network → spec → bundle → cgroup with its
//!   limits → hooks and create (libcontainer) → limits read back → start → (Jupyter)
//! ```
//!
//! Runs in the supervisor, single-threaded. Every step that makes something outside this process says how to take it back before the next
//! one begins; a failure takes everything back in reverse, and the first error leads. What a SIGKILL leaves between two steps is what
//! [`reconcile`] clears: its table names every resource.

mod container;
mod files;
mod gpus;
mod inside;
mod jupyter;
mod mounts;
mod plan;
pub mod process;
mod readback;
mod reconcile;
mod scaffold;
mod spawn;
mod streams;
mod undo;

use std::path::Path;

pub use container::{Container, Ending};
pub use gpus::{driver_root, preview as preview_gpus};
pub use inside::{Inside, inside};
pub use plan::{check, check_limits};
pub use reconcile::{clear_run_dir, reconcile, remove, remove_unreadable, sweep_images};
pub use scaffold::Scaffold;
pub use spawn::{Spawned, spawn};
pub use streams::{Stream, Streams};

use crate::cgroup::Verified;
use crate::record::{Entry, LimitRow, Records};
use crate::report::Report;
use undo::Undo;

/// What a person may want to hear while the launch goes on.
#[derive(Debug)]
pub enum Progress {
    Notice(String),
    /// What only matters to who asked for more.
    Detail(String),
    Limits(Vec<LimitRow>),
}

/// The cgroup below which a container's lies unless `--cgroup-parent` names another.
const CGROUP_PARENT: &str = "/gpurun";

/// A container's cgroup below every controller.
#[must_use]
pub fn cgroup_path(parent: Option<&str>, id: &str) -> String {
    format!("{}/{id}", parent.unwrap_or(CGROUP_PARENT))
}

/// A row of the read-back table as the record keeps it.
#[must_use]
pub fn row(verified: Verified) -> LimitRow {
    LimitRow {
        flag: verified.flag.to_owned(),
        oci: verified.oci.to_owned(),
        file: verified.file.display().to_string(),
        asked: verified.asked,
        kernel: verified.kernel,
        effective: verified.effective,
        note: verified.note,
    }
}

/// Which boot of the host this is.
#[must_use]
pub fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Makes the container, with its limits in place and read back, but does not start its process.
pub fn create(
    root: &Path,
    records: &Records,
    entry: &Entry,
    tell: &mut dyn FnMut(Progress),
) -> Result<Container, Report> {
    let mut undo = Undo::default();
    match container::build(root, records, entry, tell, &mut undo) {
        Ok(mut container) => {
            container.undo = undo;
            Ok(container)
        }
        Err(mut report) => {
            report.afterwards = undo.run();
            Err(report)
        }
    }
}

/// Dies here if a test asked for it: `GPURUN_KILL_AT=STEP` proves that a SIGKILL between two steps leaves nothing that the next command
/// does not clear away. Not in release builds.
pub fn step(name: &str) {
    tracing::debug!("launch: {name}");
    #[cfg(debug_assertions)]
    if std::env::var_os("GPURUN_KILL_AT").is_some_and(|at| at == name) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
