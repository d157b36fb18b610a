//! The last steps of pid 1, between libcontainer's set-up and its program.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor as WorkloadExecutor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use super::failure::{DEVICES, Failure, send_failure};
use super::late::Late;
use super::pipes::ABOUT_TO_EXECUTE;
use super::{CreateRequest, DeviceCheck, RuntimeError};
use crate::spec::seccomp::Filter;
use crate::sys::{caps, process, seccomp};

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
    /// What libcontainer has left to this process.
    late: Option<Late>,
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
            late: None,
            supervisor: Rc::new(supervisor),
            failures: Rc::new(failures),
        })
    }

    /// Adds the steps that libcontainer leaves out.
    pub(super) fn with(mut self, late: Option<Late>) -> Self {
        self.late = late;
        self
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
        if let Some(Err(failure)) = self.late.as_ref().map(Late::apply) {
            self.send_failure(&failure);
            return Err(ExecutorValidationError::ArgValidationError(failure.step));
        }
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
        // Without a reader, no one waits for this start.
        let _ = nix::unistd::write(&*self.failures, ABOUT_TO_EXECUTE);
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
