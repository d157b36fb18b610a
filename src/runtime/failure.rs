//! Failures of a new process, which its creator reads from a pipe.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::devices::DeviceFault;
use super::error::RuntimeError;

/// A step of a new process, or its failure.
pub(super) type Step = Result<(), Failure>;

pub(super) fn failed(step: &str) -> impl Fn(std::io::Error) -> Failure {
    let step = step.to_owned();
    move |error| Failure::step(&step, error.raw_os_error().unwrap_or(libc::EIO))
}

pub(super) fn failed_nix(step: &str) -> impl Fn(nix::Error) -> Failure {
    let step = step.to_owned();
    move |errno| Failure::step(&step, errno as i32)
}

/// A failure to execute the program, in the form that is sent through a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The failed step. An empty string means executing the program itself.
    pub step: String,
    pub errno: i32,
    /// The path of the program or of the working directory, if that is the cause. For a device check, the fault as
    /// JSON.
    pub found: Option<String>,
}

/// The step of entering the working directory.
const DIRECTORY: &str = "enter the working directory";
/// The step of checking the devices. Its fault is in `found`, as JSON.
pub(super) const DEVICES: &str = "check the devices";

impl Failure {
    pub(super) fn step(step: impl Into<String>, errno: i32) -> Self {
        Self { step: step.into(), errno, found: None }
    }

    pub(super) fn directory(path: &Path, errno: i32) -> Self {
        Self { step: DIRECTORY.to_owned(), errno, found: Some(path.display().to_string()) }
    }

    pub(super) fn device(fault: &DeviceFault) -> Self {
        Self { step: DEVICES.to_owned(), errno: libc::ENODEV, found: serde_json::to_string(fault).ok() }
    }

    /// Converts the failure to an error. `captured` are libcontainer's messages, of which there are none for failures of
    /// the program.
    pub(super) fn into_error(self, program: &str, captured: &[String]) -> RuntimeError {
        let source = std::io::Error::from_raw_os_error(self.errno);
        if let (DIRECTORY, Some(path)) = (&*self.step, &self.found) {
            return RuntimeError::Directory { path: path.into(), source };
        }
        if let (DEVICES, Some(Ok(fault))) = (&*self.step, self.found.as_deref().map(serde_json::from_str)) {
            return RuntimeError::Device(fault);
        }
        if !self.step.is_empty() {
            let step = if captured.is_empty() { self.step } else { format!("{} ({})", self.step, captured.join("; ")) };
            return RuntimeError::Enter { step, source };
        }
        let not_found = matches!(self.errno, libc::ENOENT | libc::ENOTDIR);
        let why = match (self.errno, self.found) {
            // The kernel also returns ENOENT for a missing `#!` interpreter or dynamic loader.
            (libc::ENOENT, Some(path)) => format!("the interpreter that `{path}` names is not in the image"),
            (libc::ENOENT | libc::ENOTDIR, _) if program.contains('/') => "there is no such file in the image".into(),
            (libc::ENOENT | libc::ENOTDIR, _) => "there is no such program in the container's PATH".into(),
            (libc::EACCES, _) => "it is not an executable file, or the container's user may not execute it".into(),
            (libc::EISDIR, _) => "it is a directory".into(),
            (libc::ENOEXEC, _) => {
                "it is not a program for this machine (another architecture, or a script without `#!`)".into()
            }
            _ => source.to_string(),
        };
        RuntimeError::Execute { program: program.to_owned(), why, not_found }
    }
}

pub(super) fn send_failure(pipe: &OwnedFd, failure: &Failure) {
    if let (Ok(copy), Ok(bytes)) = (pipe.try_clone(), serde_json::to_vec(failure)) {
        // The reader may be gone. That is not an error here.
        let _ = std::fs::File::from(copy).write_all(&bytes);
    }
}
