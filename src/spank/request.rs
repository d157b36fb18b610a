//! The request of the plugin: texts `KEY=VALUE`, each with a NUL at its end.

use std::path::PathBuf;

use super::caller::Caller;
use super::grammar::{self, ContainerName, MountOption};
use crate::report::Report;

/// What a step on this node asks for.
#[derive(Debug)]
pub(super) struct StepRequest {
    pub job: u32,
    step: u32,
    pub caller: Caller,
    /// The number of tasks on this node.
    pub tasks: usize,
    /// The batch script, for a container in which `sbatch` runs it.
    pub script: Option<PathBuf>,
    pub options: Options,
    /// The environment of the job.
    pub env: Vec<(String, String)>,
}

/// The options of `srun`, parsed.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub image: Option<String>,
    pub mounts: Vec<MountOption>,
    pub workdir: Option<String>,
    pub name: Option<ContainerName>,
    pub save: Option<PathBuf>,
    pub mount_home: bool,
    pub remap_root: bool,
    pub entrypoint: bool,
    pub entrypoint_log: bool,
    pub read_only: bool,
    /// The variables of the job that win over the image's.
    pub env: Vec<String>,
}

impl StepRequest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Report> {
        let wrong = || Report::new("cannot understand the request of the Slurm plugin").with_hint(HINT);
        let mut request = Self {
            job: 0,
            step: 0,
            caller: Caller { uid: u32::MAX, gid: u32::MAX, groups: Vec::new() },
            tasks: 0,
            script: None,
            options: Options::default(),
            env: Vec::new(),
        };
        for text in bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty()) {
            let text = String::from_utf8_lossy(text);
            let (key, value) = text.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u32>().map_err(|_| wrong());
            match key {
                "job" => request.job = number()?,
                "step" => request.step = number()?,
                "uid" => request.caller.uid = number()?,
                "gid" => request.caller.gid = number()?,
                "group" => request.caller.groups.push(number()?),
                "tasks" => request.tasks = number()? as usize,
                "script" => request.script = Some(value.into()),
                "variable" => {
                    request.env.extend(value.split_once('=').map(|(name, value)| (name.into(), value.into())))
                }
                _ => request.options.set(key, value)?,
            }
        }
        if request.tasks == 0 || request.caller.uid == u32::MAX || request.caller.gid == u32::MAX {
            return Err(wrong());
        }
        Ok(request)
    }

    /// Returns the name of the step, without its job.
    pub(super) fn step_name(&self) -> String {
        match self.step {
            BATCH => "batch".into(),
            INTERACTIVE => "interactive".into(),
            step => step.to_string(),
        }
    }

    /// Returns a variable of the job.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The numbers of special steps (slurm.h: `SLURM_BATCH_SCRIPT`, `SLURM_INTERACTIVE_STEP`).
const BATCH: u32 = 0xffff_fffb;
const INTERACTIVE: u32 = 0xffff_fffa;

/// For a plugin and a gpurun of different releases.
const HINT: &str = "build the plugin from the same release as gpurun: \
    `sudo /usr/local/share/doc/gpurun/hooks/slurm/build /usr/lib/gpurun_spank.so`";

impl Options {
    fn set(&mut self, key: &str, value: &str) -> Result<(), Report> {
        let is = || grammar::flag(key, value);
        match key {
            "image" => self.image = Some(value.into()),
            "mounts" => self.mounts = grammar::mounts(value)?,
            "workdir" => self.workdir = Some(grammar::workdir(value)?),
            "name" => self.name = Some(value.parse()?),
            "save" => self.save = Some(grammar::save(value)?),
            "mount-home" => self.mount_home = is()?,
            "remap-root" => self.remap_root = is()?,
            "entrypoint" => self.entrypoint = is()?,
            "entrypoint-log" => self.entrypoint_log = is()?,
            "writable" => self.read_only = !is()?,
            "readonly" => self.read_only = is()?,
            "env" => self.env = grammar::variables(value)?,
            _ => {
                return Err(Report::new(format!("cannot understand `{}` of the Slurm plugin", key.escape_debug()))
                    .with_hint(HINT));
            }
        }
        Ok(())
    }

    /// Refuses what gpurun does not have.
    pub(super) fn check(&self) -> Result<(), Report> {
        if self.remap_root {
            return Err(Report::usage(
                "cannot use `--container-remap-root`: it needs a user namespace, which gpurun does not use in a step",
            )
            .with_hint("omit it: the program runs as you, and files in the image keep their owners"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "job=7\0step=0\0uid=1000\0gid=1000\0group=27\0tasks=2\0";

    fn parse(text: &str) -> Result<StepRequest, String> {
        StepRequest::parse(format!("{START}{text}").as_bytes()).map_err(|report| report.message)
    }

    #[test]
    fn a_request_has_options_and_variables() {
        let request =
            parse("image=torch\0writable=0\0variable=A=1=2\0variable=broken\0variable=B=\0env=A,B\0mount-home=1\0")
                .unwrap();
        assert_eq!((request.job, request.tasks), (7, 2));
        assert_eq!(request.caller, Caller { uid: 1000, gid: 1000, groups: vec![27] });
        assert!(request.options.read_only && request.options.mount_home && !request.options.entrypoint);
        assert_eq!(
            (request.variable("A"), request.variable("B"), request.variable("C")),
            (Some("1=2"), Some(""), None)
        );
    }

    #[test]
    fn another_plugins_request_is_an_error() {
        assert!(parse("color=blue\0").unwrap_err().contains("`color`"));
        assert!(parse("nothing\0").is_err() && parse("uid=-1\0").is_err());
        assert!(StepRequest::parse(b"job=1\0tasks=1\0gid=1\0").is_err(), "without a user, it would be root's");
        assert!(StepRequest::parse(b"").is_err());
    }
}
