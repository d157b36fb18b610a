//! The hooks of hooks.d that apply to a container.

use std::fs;
use std::path::PathBuf;

use crate::gpu::Edits;
use crate::hook;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{MountSource, Request};

/// The directories of hook definitions, each with whether it may be missing.
pub(super) fn dirs(request: &Request) -> Vec<(PathBuf, bool)> {
    let host = hook::HOST_DIRS.iter().map(|dir| (PathBuf::from(dir), true));
    host.chain(request.hooks_dirs.iter().map(|dir| (dir.clone(), false))).collect()
}

/// The annotations of a container. Hooks may match them.
pub(super) fn annotations(request: &Request, gpus: &Edits) -> Vec<(String, String)> {
    request.labels.iter().chain(&request.annotations).chain(&gpus.annotations).cloned().collect()
}

/// Reads the definitions, and selects the hooks that apply.
pub(super) fn matching(
    request: &Request,
    annotations: &[(String, String)],
    args: &[String],
) -> Result<Vec<hook::Chosen>, Report> {
    let definitions = hook::read_dirs(&dirs(request))?;
    let about = hook::Circumstances {
        annotations,
        command: args.first().map_or("", String::as_str),
        has_bind_mounts: request.mounts.iter().any(|mount| matches!(mount.source, MountSource::Bind { .. })),
    };
    Ok(hook::matching(&definitions, &about)?)
}

/// Creates an empty directory for the hooks' reports, if there are hooks. Reports from the hooks of an earlier run no
/// longer matter.
pub(super) fn make_reports(entry: &Entry, hooks: &[hook::Chosen]) -> Result<PathBuf, Report> {
    let reports = entry.run_dir.join("hooks");
    let _ = fs::remove_dir_all(&reports);
    if hooks.is_empty() {
        return Ok(reports);
    }
    fs::create_dir_all(&reports)
        .map_err(|error| Report::new(format!("cannot create `{}`", reports.display())).with_cause(error))?;
    Ok(reports)
}
