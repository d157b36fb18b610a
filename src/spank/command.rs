//! Commands of gpurun that this process runs, and their end with the step.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::dirs::Dirs;
use super::tasks::Tasks;
use crate::report::{EXIT_GPURUN, Report};
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
    let code = await_child(child.id() as i32, tasks)?.code;
    let text = |fd: OwnedFd| -> io::Result<String> {
        let mut file = File::from(fd);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ran { code, out: text(out).map_err(failed)?, err: text(err).map_err(failed)? })
}

/// Waits for the end of a child, and kills it when all tasks have ended before.
pub(super) fn await_child(pid: i32, tasks: &Tasks) -> Result<Ran, Report> {
    let failed = |error: io::Error| Report::new("cannot wait for a process of gpurun").with_cause(error);
    let child = process::open_pidfd(pid).map_err(failed)?;
    let mut others: Vec<&OwnedFd> = tasks.processes().iter().collect();
    let is_cancelled = loop {
        let fds = std::iter::once(&child).chain(others.iter().copied());
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(failed(errno.into())),
            Ok(_) => {}
        }
        if fds[0].any().unwrap_or(true) {
            break false;
        }
        let ended: Vec<bool> = fds[1..].iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let mut ended = ended.iter();
        others.retain(|_| !ended.next().copied().unwrap_or_default());
        if others.is_empty() {
            let _ = process::signal(&child, libc::SIGKILL);
            break true;
        }
    };
    let status = loop {
        match waitpid(Pid::from_raw(pid), None) {
            Err(nix::Error::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(_) | Err(_) => break i32::from(EXIT_GPURUN),
        }
    };
    if is_cancelled {
        return Err(Report::new("the step has ended before its container was ready"));
    }
    Ok(Ran { code: status, out: String::new(), err: String::new() })
}
