//! The command of a container: what PID 1 runs.

use super::process;
use crate::image::Config;
use crate::report::Report;
use crate::request::{Payload, Request};

/// The path of gpurun's init in the container. It is in /dev, which is a tmpfs, so that the image's files stay
/// untouched.
pub(super) const INIT_PATH: &str = "/dev/gpurun-init";

/// The command of a container: the arguments of PID 1, and the program whose absence is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub args: Vec<String>,
    pub program: String,
}

/// Whether gpurun's init is mounted in the container.
pub(super) fn uses_init(request: &Request) -> bool {
    request.init || matches!(request.payload, Payload::Jupyter(_))
}

/// Returns the command of PID 1 from the request and the image.
pub(super) fn command(request: &Request, image: &Config) -> Result<Command, Report> {
    let Payload::Command(words) = &request.payload else {
        return Ok(Command { args: vec![INIT_PATH.into()], program: INIT_PATH.into() });
    };
    let mut args = process::command(&image.entrypoint, &image.cmd, request.entrypoint.as_deref(), words);
    let Some(program) = args.first().cloned() else {
        return Err(Report::new(format!(
            "the image `{}` has no command of its own, and none was given",
            request.image
        ))
        .with_hint(format!("`gpurun run … {} COMMAND`", request.image)));
    };
    if request.init {
        args.insert(0, INIT_PATH.into());
    }
    Ok(Command { args, program })
}
