//! Commands of gpurun that this process runs, and their end with the step.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use super::dirs::Dirs;
use super::tasks::Tasks;
use crate::report::Report;
use crate::sys::process;

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Returns a command's error. It has the form of all errors of gpurun.
    pub(super) fn report(&self, what: String) -> Report {
        let text = self.err.trim().trim_start_matches("gpurun: ").trim_start_matches("error: ");
        match text.is_empty() {
            true => Report::new(what).with_cause(format!("gpurun ended with status {}", self.code)),
            false => Report::new(text.to_owned()),
        }
    }
}

/// Returns a command of gpurun with its directories and a chosen environment.
pub(super) fn gpurun(dirs: &Dirs) -> Result<Command, Report> {
    let mut command = crate::sys::exe::sealed_command()
        .map_err(|error| Report::new("cannot run gpurun for the Slurm step").with_cause(error))?;
    command.env_clear().envs(crate::launch::inherit::environment()).env("HOME", "/nonexistent").current_dir("/");
    command.arg("--root").arg(&dirs.root).arg("--run-dir").arg(&dirs.run_dir);
    Ok(command)
}

/// Runs a command, and ends it when the step ends.
pub(super) fn run(mut command: Command, tasks: &Tasks) -> Result<Ran, Report> {
    let failed = |error: io::Error| Report::new("cannot run gpurun for the Slurm step").with_cause(error);
    let file = || process::memory_file(c"output", b"");
    let (out, err) = (file().map_err(failed)?, file().map_err(failed)?);
    let copy = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
    command.stdin(Stdio::null()).stdout(copy(&out).map_err(failed)?).stderr(copy(&err).map_err(failed)?);
    let child = command.spawn().map_err(failed)?;
    let code = tasks.wait_for(child.id() as i32)?;
    let text = |fd: OwnedFd| -> io::Result<String> {
        let mut file = File::from(fd);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ran { code, out: text(out).map_err(failed)?, err: text(err).map_err(failed)? })
}
