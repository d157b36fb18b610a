//! What pid 1 does between libcontainer's set-up and its program.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor as WorkloadExecutor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use serde::{Deserialize, Serialize};

use super::{CreateRequest, RuntimeError};
use crate::spec::seccomp::Filter;
use crate::sys::{caps, process, seccomp};

/// Why a program could not be executed, on its way through a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// What was being done; the empty text: executing the program itself.
    pub step: String,
    pub errno: i32,
}

impl Failure {
    pub(super) fn into_error(self, program: &str) -> RuntimeError {
        let source = std::io::Error::from_raw_os_error(self.errno);
        if !self.step.is_empty() {
            return RuntimeError::Enter { step: self.step, source };
        }
        let program = program.to_owned();
        match self.errno {
            libc::ENOENT if program.contains('/') => RuntimeError::Execute {
                program,
                why: "there is no such file in the image, or the interpreter that it names is missing".into(),
                not_found: true,
            },
            libc::ENOENT | libc::ENOTDIR => RuntimeError::Execute {
                program,
                why: "there is no such program in the container's PATH".into(),
                not_found: true,
            },
            libc::EACCES | libc::EISDIR => {
                RuntimeError::Execute { program, why: "it is not an executable file".into(), not_found: false }
            }
            libc::ENOEXEC => RuntimeError::Execute {
                program,
                why: "it is no program for this machine (wrong architecture, or a script without `#!`)".into(),
                not_found: false,
            },
            _ => RuntimeError::Execute { program, why: source.to_string(), not_found: false },
        }
    }
}

/// Everything that the last steps before exec need, prepared by the parent.
#[derive(Debug, Clone)]
pub(super) struct Executor {
    args: Vec<CString>,
    program: String,
    check: String,
    filter: Option<Filter>,
    no_new_privileges: bool,
    held: u64,
    oom_score_adj: Option<i32>,
    failures: Rc<OwnedFd>,
}

impl Executor {
    pub(super) fn new(request: &CreateRequest<'_>, args: Vec<String>, failures: OwnedFd) -> Result<Self, RuntimeError> {
        let program = args.first().cloned().unwrap_or_default();
        Ok(Self {
            args: c_strings(&args)?,
            program,
            check: request.check.to_owned(),
            filter: request.seccomp.cloned(),
            no_new_privileges: request.no_new_privileges,
            held: request.held_capabilities,
            oom_score_adj: request.oom_score_adj,
            failures: Rc::new(failures),
        })
    }

    fn tell(&self, failure: &Failure) {
        tell(&self.failures, failure);
    }

    /// The order matters: the filter is loaded while it still may be, and is the last thing before exec otherwise.
    fn finish(&self) -> Result<(), Failure> {
        let step = |step: &str| {
            let step = step.to_owned();
            move |error: std::io::Error| Failure { step, errno: error.raw_os_error().unwrap_or(libc::EIO) }
        };
        if let Some(score) = self.oom_score_adj {
            std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(step("set the OOM score"))?;
        }
        process::set_parent_death_signal(libc::SIGKILL).map_err(step("tie the container to its supervisor"))?;
        process::default_signals();
        if let Some(filter) = &self.filter {
            seccomp::load(&filter.0).map_err(step("load the seccomp filter"))?;
        }
        if !self.no_new_privileges {
            caps::set(self.held).map_err(step("drop capabilities"))?;
        }
        Ok(())
    }
}

impl WorkloadExecutor for Executor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // From here on the container dies with its supervisor, also while it waits for the start.
        if let Err(error) = process::set_parent_death_signal(libc::SIGKILL) {
            return Err(ExecutorValidationError::ArgValidationError(error.to_string()));
        }
        // Already in the container's root: a missing program is an error before anything runs.
        let env = environment(spec);
        if let Err(errno) = find(&self.check, &env) {
            self.tell(&Failure { step: String::new(), errno: errno as i32 });
            return Err(ExecutorValidationError::ArgValidationError(self.check.clone()));
        }
        Ok(())
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is given to execve as the spec has it, in its order.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let env = environment(spec);
        if let Err(failure) = self.finish() {
            self.tell(&failure);
            return Err(ExecutorError::Other(failure.step));
        }
        let errno = execute(&self.program, &self.args, &env);
        self.tell(&Failure { step: String::new(), errno: errno as i32 });
        process::exit_now(if errno == nix::Error::ENOENT { 127 } else { 126 })
    }
}

fn environment(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default()
}

pub(super) fn c_strings(texts: &[String]) -> Result<Vec<CString>, RuntimeError> {
    let convert = |text: &String| {
        CString::new(text.as_str())
            .map_err(|error| RuntimeError::Sys("pass a text with a NUL byte to a program", error.into()))
    };
    texts.iter().map(convert).collect()
}

pub(super) fn tell(pipe: &OwnedFd, failure: &Failure) {
    if let (Ok(copy), Ok(bytes)) = (pipe.try_clone(), serde_json::to_vec(failure)) {
        // Nobody listening any more is no reason for anything else.
        let _ = std::fs::File::from(copy).write_all(&bytes);
    }
}

/// The program's path: as it stands where it has a slash, else the first executable file of that name along PATH.
pub(super) fn find(program: &str, env: &[String]) -> Result<PathBuf, nix::Error> {
    if program.is_empty() {
        return Err(nix::Error::ENOENT);
    }
    if program.contains('/') {
        return executable(Path::new(program)).map(|()| PathBuf::from(program));
    }
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut first_error = None;
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
        match executable(&path) {
            Ok(()) => return Ok(path),
            // "Not there" is the weakest word.
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => {}
            Err(errno) => drop(first_error.get_or_insert(errno)),
        }
    }
    Err(first_error.unwrap_or(nix::Error::ENOENT))
}

fn executable(path: &Path) -> Result<(), nix::Error> {
    use std::os::unix::fs::PermissionsExt;
    let metadata =
        std::fs::metadata(path).map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if metadata.is_dir() {
        return Err(nix::Error::EISDIR);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(nix::Error::EACCES);
    }
    Ok(())
}

/// Replaces the process; answers only if that fails.
pub(super) fn execute(program: &str, args: &[CString], env: &[String]) -> nix::Error {
    let path = match find(program, env) {
        Ok(path) => path,
        Err(errno) => return errno,
    };
    let (Ok(path), Ok(env)) = (CString::new(path.into_os_string().into_encoded_bytes()), c_strings(env)) else {
        return nix::Error::EINVAL;
    };
    process::execve(&path, args, &env)
}
