//! The names of images that are not for all users.
//!
//! ```text
//! localhost/slurm/job<JOB>/uid<UID>:<NAME>    the kept files, a layer on the step's image; the end of the job removes it
//! localhost/slurm/kept/uid<UID>:<NAME>        the same with `container_scope=global` in plugstack.conf; nothing removes it
//! localhost/slurm/uid<UID>/<IMAGE>            an image that was pulled with a login of the user
//! ```

use super::grammar::ContainerName;
use super::request::StepRequest;
use crate::names::Reference;

/// The plugin sets it for files that the jobs of a user share.
const SCOPE: &str = "GPURUN_SLURM_GLOBAL";

/// Whether kept files belong to a user, and not to a job.
pub(super) fn is_global() -> bool {
    std::env::var_os(SCOPE).is_some()
}

/// Returns the name of the image with the files of a step.
pub(super) fn reference(request: &StepRequest, name: &ContainerName) -> String {
    let uid = request.caller.uid;
    match is_global() {
        true => format!("localhost/slurm/kept/uid{uid}:{}", name.name),
        false => format!("localhost/slurm/job{}/uid{uid}:{}", request.job, name.name),
    }
}

/// Returns the name of an image that only one user may use. A colon of a port becomes `__`, which no other name contains, and a
/// digest becomes a tag.
pub(super) fn of_user(uid: u32, image: &Reference) -> String {
    let tag = match (&image.digest, &image.tag) {
        (Some(digest), _) => digest.to_string().replace(':', "-"),
        (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
    };
    format!("localhost/slurm/uid{uid}/{}/{}:{tag}", image.domain.to_lowercase().replace(':', "__"), image.path)
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
    fn a_pulled_image_belongs_to_a_user() {
        let digest = format!("a.io/b@sha256:{}", "0".repeat(64));
        for (image, expected) in [
            ("torch", "localhost/slurm/uid7/docker.io/library/torch:latest"),
            ("localhost:5000/a/b:1", "localhost/slurm/uid7/localhost__5000/a/b:1"),
            (&digest, &format!("localhost/slurm/uid7/a.io/b:sha256-{}", "0".repeat(64))),
        ] {
            let name = of_user(7, &image.parse().unwrap());
            assert_eq!(name, expected);
            let reference: Reference = name.parse().unwrap();
            assert!(is_kept(&reference) && !is_of_job(&reference, 7));
        }
    }

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
