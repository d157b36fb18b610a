//! The last steps of pid 1, between libcontainer's set-up and its program.

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

use super::{CreateRequest, DeviceCheck, DeviceFault, RuntimeError};
use crate::spec::seccomp::Filter;
use crate::sys::{caps, process, seccomp};

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
const DEVICES: &str = "check the devices";

impl Failure {
    pub(super) fn step(step: impl Into<String>, errno: i32) -> Self {
        Self { step: step.into(), errno, found: None }
    }

    pub(super) fn directory(path: &Path, errno: i32) -> Self {
        Self { step: DIRECTORY.to_owned(), errno, found: Some(path.display().to_string()) }
    }

    fn device(fault: &DeviceFault) -> Self {
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

/// Everything that the last steps before exec need, prepared by the parent.
#[derive(Debug, Clone)]
pub(super) struct Executor {
    args: Vec<CString>,
    program: String,
    check: String,
    filter: Option<Filter>,
    no_new_privileges: bool,
    held: u64,
    umask: Option<u32>,
    passed_fds: Vec<i32>,
    devices: Option<Rc<DeviceCheck>>,
    /// The supervisor's pidfd, to check whether the supervisor is still alive.
    supervisor: Rc<OwnedFd>,
    failures: Rc<OwnedFd>,
}

impl Executor {
    pub(super) fn new(request: &CreateRequest<'_>, args: &[String], failures: OwnedFd) -> Result<Self, RuntimeError> {
        let program = args.first().cloned().unwrap_or_default();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let supervisor =
            process::open_pidfd(own).map_err(|error| RuntimeError::Sys("open gpurun's own process", error))?;
        Ok(Self {
            args: c_strings(args)?,
            program,
            check: request.program.to_owned(),
            filter: request.process.seccomp.clone(),
            no_new_privileges: request.process.no_new_privileges,
            held: request.process.held().0,
            umask: request.process.umask,
            passed_fds: request.passed_fds.to_vec(),
            devices: request.devices.clone(),
            supervisor: Rc::new(supervisor),
            failures: Rc::new(failures),
        })
    }

    fn send_failure(&self, failure: &Failure) {
        send_failure(&self.failures, failure);
    }

    /// Ties the container's life to its supervisor. A supervisor that died before this call sends no signal any more,
    /// and getppid(2) returns 0 for any parent outside the pid namespace. So its pidfd is checked.
    fn tie(&self) -> std::io::Result<()> {
        process::set_parent_death_signal(libc::SIGKILL)?;
        if process::wait_pidfd(&*self.supervisor, std::time::Duration::ZERO) {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    }

    /// The order matters: without no-new-privileges, the filter can only be loaded before the capabilities are dropped.
    fn finish(&self) -> Result<(), Failure> {
        let step = |step: &str| {
            let step = step.to_owned();
            move |error: std::io::Error| Failure::step(step, error.raw_os_error().unwrap_or(libc::EIO))
        };
        self.tie().map_err(step("tie the container to its supervisor"))?;
        process::default_signals();
        process::set_umask(self.umask);
        self.passed_fds.iter().try_for_each(|fd| process::keep_on_exec(*fd)).map_err(step("pass on a descriptor"))?;
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
        if let Err(error) = self.tie() {
            return Err(ExecutorValidationError::ArgValidationError(error.to_string()));
        }
        // This already runs in the container's root, so a missing program is an error before any program runs.
        let env = environment(spec);
        if let Err(errno) = find(&self.check, &env) {
            self.send_failure(&Failure::step("", errno as i32));
            return Err(ExecutorValidationError::ArgValidationError(self.check.clone()));
        }
        // All hooks except those of the last stage have run, and this process has its final user, root and cgroup.
        if let Some(Err(fault)) = self.devices.as_ref().map(|devices| devices.run()) {
            self.send_failure(&Failure::device(&fault));
            return Err(ExecutorValidationError::ArgValidationError(DEVICES.to_owned()));
        }
        Ok(())
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `exec` passes the spec's environment to execve itself, in the order of the spec.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let env = environment(spec);
        if let Err(failure) = self.finish() {
            self.send_failure(&failure);
            return Err(ExecutorError::Other(failure.step));
        }
        let failure = execute(&self.program, &self.args, &env);
        self.send_failure(&failure);
        process::exit_now(if failure.errno == libc::ENOENT { 127 } else { 126 })
    }
}

fn environment(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default()
}

pub(super) fn c_strings(texts: &[String]) -> Result<Vec<CString>, RuntimeError> {
    let convert = |text: &String| {
        CString::new(text.as_str())
            .map_err(|error| RuntimeError::Sys("pass a string with a NUL byte to a program", error.into()))
    };
    texts.iter().map(convert).collect()
}

pub(super) fn send_failure(pipe: &OwnedFd, failure: &Failure) {
    if let (Ok(copy), Ok(bytes)) = (pipe.try_clone(), serde_json::to_vec(failure)) {
        // The reader may be gone. That is not an error here.
        let _ = std::fs::File::from(copy).write_all(&bytes);
    }
}

/// The program's path: the name itself if it contains a slash, otherwise the first executable file of that name in
/// PATH.
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
            // Any other error is more specific than "not found".
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

/// Replaces this process with the program. Returns only on failure.
pub(super) fn execute(program: &str, args: &[CString], env: &[String]) -> Failure {
    let path = match find(program, env) {
        Ok(path) => path,
        Err(errno) => return Failure::step("", errno as i32),
    };
    let found = Some(path.display().to_string());
    let (Ok(path), Ok(env)) = (CString::new(path.into_os_string().into_encoded_bytes()), c_strings(env)) else {
        return Failure::step("pass its environment", libc::EINVAL);
    };
    let errno = process::execve(&path, args, &env);
    Failure { step: String::new(), errno: errno as i32, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    #[test]
    fn a_program_is_found_as_execvp_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let (good, plain) = (make("b/tool", 0o755), make("a/tool", 0o644));
        make("a/closed", 0o600);
        let env = [format!("PATH={0}/none:{0}/a:{0}/b", dir.path().display())];
        assert_eq!(find("tool", &env), Ok(good), "a file that is not executable does not end the search");
        assert_eq!(find("closed", &env), Err(nix::Error::EACCES), "but is the better word where nothing else is found");
        assert_eq!(find("nothing", &env), Err(nix::Error::ENOENT));
        assert_eq!(find("", &env), Err(nix::Error::ENOENT));
        assert_eq!(find(plain.to_str().unwrap(), &env), Err(nix::Error::EACCES));
        assert_eq!(find(dir.path().to_str().unwrap(), &env), Err(nix::Error::EISDIR));
    }

    #[test]
    fn every_failure_has_its_message_and_exit_code() {
        let case = |program: &str, errno: i32, found: Option<&str>| {
            let failure = Failure { step: String::new(), errno, found: found.map(str::to_owned) };
            let report = Report::from(failure.into_error(program, &[]));
            (report.exit_code, report.message)
        };
        for (program, errno, found, code, captured) in [
            ("x", libc::ENOENT, None, 127, "PATH"),
            ("/x", libc::ENOENT, None, 127, "no such file"),
            ("/a/x", libc::ENOTDIR, None, 127, "no such file"),
            ("x", libc::ENOENT, Some("/bin/x"), 127, "interpreter that `/bin/x` names"),
            ("x", libc::EACCES, None, 126, "not an executable file"),
            ("/", libc::EISDIR, None, 126, "directory"),
            ("x", libc::ENOEXEC, Some("/bin/x"), 126, "architecture"),
            ("x", libc::E2BIG, Some("/bin/x"), 126, "Argument list too long"),
        ] {
            let (exit, message) = case(program, errno, found);
            assert!(exit == code && message.contains(captured), "{program} {errno}: {exit} {message}");
        }
    }
}
