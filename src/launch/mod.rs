//! The pipeline from a recorded request to a running container, with its undo stack.
//!
//! ```text
//! acquire   limits, image mount → private mount namespace → overlay → guards → user → network → GPUs → files, mounts
//! plan      pure: the OCI spec, the process, Jupyter
//! create    bundle → cgroup with its limits → hooks and create (libcontainer) → limits read back
//! start     PID 1 → (Jupyter)
//! ```
//!
//! The pipeline runs in the supervisor, which is single-threaded. Each step that creates something outside this process
//! registers its undo action before the next step begins. A failure runs all undo actions in reverse order, and the
//! first error is the one that is reported. After a SIGKILL between two steps, [`reconcile`] cleans up: its table lists
//! every resource.

mod acquire;
mod activity;
mod boot;
mod check;
mod command;
mod container;
mod context;
mod create;
mod driver_files;
mod entering;
mod facts;
mod files;
mod filling;
mod gpus;
mod guard;
mod health;
mod home;
mod hooks;
mod host_ca;
mod hostname;
mod image_mounts;
mod image_users;
pub(crate) mod inherit;
mod inside;
mod ipc;
mod joined;
mod jupyter;
mod keeper;
mod masks;
mod mounted;
mod mounts;
mod nested;
mod opens;
mod peer;
mod pid;
mod places;
mod plan;
pub(crate) mod process;
mod progress;
mod propagation;
mod readback;
mod recheck;
mod reconcile;
mod rlimits;
mod scaffold;
mod secrets;
mod shared;
mod spawn;
mod step_keeper;
mod streams;
mod undo;

use std::path::Path;

pub(crate) use activity::Activity;
pub(crate) use boot::starts_at_boot;
pub(crate) use check::{check, check_limits};
pub(crate) use container::{Container, Created, Ending};
pub(crate) use context::ADDED_GROUPS;
pub(crate) use facts::own_capabilities;
pub(crate) use gpus::{
    are_ready as gpus_are_ready, available as gpus_available, driver_root, preview as preview_gpus, step_gpus,
};
pub(crate) use health::{Answer, HEALTH_CHECK, Running as RunningCheck, health_check_main};
pub(crate) use image_users::{ImageUsers, is_mounted, remove_image};
pub(crate) use inside::{Inside, inside};
pub(crate) use ipc::check_shareable;
pub(crate) use mounts::{listed_mounts, user_of_volumes};
pub(crate) use progress::{Progress, step};
pub(crate) use recheck::check_restart;
pub(crate) use reconcile::{
    clear_run_dir, reconcile, remove, remove_own, remove_unreadable, repair_network, sweep_images,
};
pub(crate) use scaffold::Scaffold;
pub(crate) use spawn::{Spawned, spawn};
pub(crate) use step_keeper::{STEP_KEEPER, step_keeper_main};
pub(crate) use streams::Stream;

use context::Launch;
use facts::HostFacts;
use undo::Undo;

use crate::record::{Entry, Records};
use crate::report::Report;

/// Creates the container with its limits in place and verified, but does not start its process. `root` is the root of
/// the store, and `tell` receives the events of the launch.
pub(crate) fn create(
    root: &Path,
    records: &Records,
    entry: &Entry,
    tell: &mut dyn FnMut(Progress),
) -> Result<Created, Report> {
    let launch = Launch { root, records, entry };
    let mut undo = Undo::default();
    run_stages(launch, tell, &mut undo).map_err(|mut report| {
        report.afterwards = undo.run();
        report
    })
}

/// The stages of a launch.
fn run_stages(launch: Launch<'_>, tell: &mut dyn FnMut(Progress), undo: &mut Undo) -> Result<Created, Report> {
    let (acquired, handles) = acquire::acquire(launch, tell, undo)?;
    let facts = HostFacts::read(&handles.host, &acquired.cgroup);
    let plan = plan::plan(launch.request(), &acquired, &facts)?;
    create::create(launch, plan, handles, tell, undo)
}
