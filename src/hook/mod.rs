//! OCI hooks: which of them a container gets, and how each is run.
//!
//! Definitions are JSON files in the hooks.d format 1.0.0 (oci-hooks(5) of containers/common). They come, in this order, from what is
//! built into gpurun (`hooks/` of the project), from the host's directories, and from `--hooks-dir`; a later file replaces an earlier
//! one of the same file name, so that an empty rule in `/etc` can switch one off. Among one stage they run in the order of file names.
//!
//! In the container's spec no hook stands by itself: each is wrapped in [`shim`], because libcontainer's own runner kills only the hook
//! on a timeout (not its children), spawns a thread to keep the time, and reports neither the hook's name nor what it said.
//!
//! ```text
//! <report dir>/<stage>-<NN>-<name>.json    what the shim saw, one file for each hook that failed or said something
//! ```
//! The directory belongs to the container (below its run directory) and is removed with it. No locks: one writer per file.

mod definition;
mod nvidia;
mod report;
pub mod shim;

use std::path::{Path, PathBuf};

pub use definition::{Circumstances, Command, Definition, DefinitionError, HOST_DIRS, builtin, matching, read_dirs};
pub use nvidia::{PlainWords, explain as explain_nvidia};
pub use report::{HookFailure, HookReport, Outcome, failures};

use crate::spec::{HookEntry, Stage};

/// A `PATH` for hooks that set none: nothing else of gpurun's own environment reaches them.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a hook may take that says nothing about it.
pub const DEFAULT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

/// A hook that was chosen for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// What errors call it: the definition's file name without `.json`.
    pub name: String,
    pub stage: Stage,
    pub command: Command,
}

/// The chosen hooks as entries of the OCI spec, each behind `program hook-shim …`.
///
/// `program` is an executable gpurun (`/proc/self/exe` in the process that runs libcontainer). `report_dir` must exist by then.
#[must_use]
pub fn spec_entries(chosen: &[Chosen], program: &Path, report_dir: &Path) -> Vec<(Stage, HookEntry)> {
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
