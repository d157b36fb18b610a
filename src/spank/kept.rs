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

/// Whether a name is one of a job.
pub(super) fn is_of_job(reference: &Reference, job: u32) -> bool {
    is_kept(reference) && reference.path.starts_with(&format!("slurm/job{job}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_files_belong_to_a_job() {
        let name = |text: &str| text.parse::<Reference>().unwrap();
        let kept = name("localhost/slurm/job7/uid1000:lab");
        assert!(is_kept(&kept) && is_of_job(&kept, 7) && !is_of_job(&kept, 70) && !is_of_job(&kept, 1));
        for other in ["slurm/job7/uid1:x", "localhost/slurmy/job7/uid1:x", "localhost/a/slurm/job7/uid1:x"] {
            assert!(!is_kept(&name(other)), "{other}");
        }
    }
}
