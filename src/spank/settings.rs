//! What each task gets besides the mount namespace: variables, the working directory and the seccomp filter.

use super::caller::Caller;
use super::image::Provided;
use super::request::StepRequest;
use crate::report::Report;
use crate::spec::Capabilities;
use crate::spec::seccomp::{Profile, compile};

/// Variables of the container's own process that a task has from its job, or that only concern that process. Slurm's
/// CUDA_VISIBLE_DEVICES differs between tasks.
const OWN: [&str; 5] = ["HOME", "HOSTNAME", "TERM", "CUDA_VISIBLE_DEVICES", "PWD"];
const OWN_PREFIXES: [&str; 6] = ["SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_", "GPURUN_"];
/// The host's languages, which an image may not have.
const LANGUAGE: [&str; 3] = ["LANG", "LANGUAGE", "LC_ALL"];

/// Returns the settings in the plugin's format. Variables of the container win over those of the job, except for those that
/// `--container-env` names.
pub(super) fn settings(request: &StepRequest, container: &[(String, String)], image: &Provided) -> Vec<u8> {
    let wins = |name: &str| request.options.env.iter().any(|known| known == name);
    let mut bytes = Vec::new();
    let mut put = |text: String| {
        bytes.extend_from_slice(text.replace('\0', "").as_bytes());
        bytes.push(0);
    };
    for name in LANGUAGE.into_iter().filter(|name| !wins(name)) {
        put(format!("u{name}"));
    }
    let is_own = |name: &str| OWN.contains(&name) || OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    for (name, value) in container.iter().filter(|(name, _)| !name.is_empty() && !is_own(name)) {
        put(format!("{}{name}={value}", if wins(name) { 'd' } else { 's' }));
    }
    put(match (&request.options.workdir, image.image.config.working_dir.as_str()) {
        (Some(dir), _) => format!("w{dir}"),
        (None, "") => "x/".to_owned(),
        (None, dir) => format!("x{dir}"),
    });
    bytes
}

/// Returns docker's default filter for the task's capabilities, as the kernel takes it.
pub(super) fn filter(caller: &Caller) -> Result<Vec<u8>, Report> {
    let held = if caller.uid == 0 { Capabilities::default() } else { Capabilities(0) };
    Ok(compile(&Profile::docker_default(&held))?.to_bytes())
}
