//! The names of kept files.
//!
//! The kept files are an image with the name `localhost/slurm/job<JOB>/uid<UID>:<NAME>`, a layer on the step's image. The end
//! of the job removes it.

use super::grammar::ContainerName;
use super::request::StepRequest;
use crate::names::Reference;

/// Returns the name of the image with the files of a step.
pub(super) fn reference(request: &StepRequest, name: &ContainerName) -> String {
    format!("localhost/slurm/job{}/uid{}:{}", request.job, request.caller.uid, name.name)
}

/// Whether a name is one of those.
pub(super) fn is_kept(reference: &Reference) -> bool {
    reference.domain == "localhost" && (reference.path == "slurm" || reference.path.starts_with("slurm/"))
}
