//! OCI hooks: which hooks a container gets, and how each one runs.
//!
//! Definitions are JSON files in the hooks.d format 1.0.0 (oci-hooks(5) of containers/common). They are read in this
//! order: those built into gpurun (`hooks/` of the project), those of the host's directories, and those of
//! `--hooks-dir`. A later file replaces an earlier one of the same name, so that an empty file in `/etc` disables a
//! definition. Within a stage, hooks run in the order of their file names. Hooks run as root, so a definition, its
//! directory or a program that another user can change is an error.
//!
//! The container's spec runs every hook through [`shim`], because libcontainer's own runner has three shortcomings: on
//! a timeout it kills only the hook and not its children, it spawns a thread to measure the time, and it reports
//! neither the hook's name nor its output.
//!
//! ```text
//! <report dir>/<stage>-<NN>-<name>.json       the shim's report, one file for each hook that failed or wrote to stderr
//! <report dir>/<stage>-<NN>-<name>.running    exists while the hook runs, for the notice of a waiting command
//! ```
//! The directory belongs to the container (it is below the container's run directory) and is removed with it. It needs
//! no locks, because each file has one writer.

mod definition;
#[cfg(test)]
mod error_tests;
mod nvidia;
mod report;
pub(crate) mod shim;

use std::path::{Path, PathBuf};

pub use definition::Circumstances;
pub use definition::Definition;
pub(crate) use definition::{Chosen, DEFAULT_TIMEOUT};
pub(crate) use definition::{Command, HOST_DIRS, builtin, matching, read_dirs};
pub(crate) use report::{HookReport, Outcome, Running, failures, reports, running, shorten};

use crate::spec::{HookEntry, Stage};

/// The `PATH` of hooks that set none. They get nothing else of gpurun's own environment.
pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the selected hooks as entries of the OCI spec, each run through `program hook-shim …`.
///
/// `program` is a gpurun executable (`/proc/self/exe` in the process that runs libcontainer). `report_dir` must exist
/// when the hooks run.
#[must_use]
pub(crate) fn spec_entries(chosen: &[Chosen], program: &Path, report_dir: &Path) -> Vec<(Stage, HookEntry)> {
    chosen
        .iter()
        .enumerate()
        .map(|(number, hook)| {
            let report: PathBuf =
                report_dir.join(format!("{}-{number:02}-{}.json", hook.stage.key(), file_safe(&hook.name)));
            let mut env = hook.command.env.clone();
            if !env.iter().any(|line| line.starts_with("PATH=")) {
                env.push(DEFAULT_PATH.into());
            }
            let entry = HookEntry { path: program.to_owned(), args: shim::arguments(hook, &report), env };
            (hook.stage, entry)
        })
        .collect()
}

fn file_safe(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
