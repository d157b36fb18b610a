//! A further process in a running container: cgroup, namespaces, terminal, identity, capabilities and filter as pid 1 has them.
//!
//! Three processes: the caller; a helper that enters the cgroup and the namespaces; and the process itself, made by the helper inside the
//! pid namespace as a child of the CALLER (CLONE_PARENT), so that the caller gets its exit status by waitpid.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};

use super::executor::{Failure, c_strings, execute, tell};
use super::{RuntimeError, Stdio, pipe, read_failure};
use crate::spec::Rlimit;
use crate::spec::seccomp::Filter;
use crate::sys::process::Fork;
use crate::sys::{caps, process, pty, seccomp};

/// What is to run, and as what.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The container's pid 1.
    pub target: &'a OwnedFd,
    /// The `cgroup.procs` files by which the process enters.
    pub cgroup_procs: Vec<PathBuf>,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The bounding set, a bit for each capability; root holds all of it.
    pub capabilities: u64,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub seccomp: Option<&'a Filter>,
    pub oom_score_adj: Option<i32>,
    pub stdio: Stdio,
}

/// The process, a child of the caller.
#[derive(Debug)]
pub struct ExecChild {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub pty: Option<OwnedFd>,
}

/// Starts the process and waits until its program has been executed.
pub fn exec(request: &ExecRequest<'_>) -> Result<ExecChild, RuntimeError> {
    let program = request.args.first().cloned().unwrap_or_default();
    let (mut failures, failure_end) = pipe()?;
    let (pid_reader, pid_end) = pipe()?;
    let sys = |what: &'static str| move |error: std::io::Error| RuntimeError::Sys(what, error);
    let (terminal, terminal_end) = UnixStream::pair().map_err(sys("make a socket"))?;
    let helper = match process::fork(false).map_err(sys("fork"))? {
        Fork::Child => {
            drop((pid_reader, terminal));
            enter(request, &failure_end, pid_end, &terminal_end)
        }
        Fork::Parent(pid) => pid,
    };
    drop((failure_end, pid_end, terminal_end));
    let pid = read_pid(pid_reader);
    let _ = waitpid(Pid::from_raw(helper), None);
    let failure = read_failure(&mut failures);
    let Some(pid) = pid else {
        let failure = failure.unwrap_or(Failure::step("the helper ended without a word", libc::ECHILD));
        return Err(failure.into_error(&program, &[]));
    };
    if let Some(failure) = failure {
        let _ = waitpid(Pid::from_raw(pid), None);
        return Err(failure.into_error(&program, &[]));
    }
    let pidfd = process::open_pidfd(pid).map_err(sys("open the new process"))?;
    let pty = match request.stdio {
        Stdio::Pty { .. } => Some(process::receive_fd(terminal.as_fd()).map_err(sys("receive the terminal"))?),
        Stdio::Fds { .. } => None,
    };
    Ok(ExecChild { pid, pidfd, pty })
}

fn read_pid(mut reader: File) -> Option<i32> {
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut reader, &mut bytes).ok()?;
    Some(i32::from_ne_bytes(bytes))
}

type Step = Result<(), Failure>;

fn failed(step: &str) -> impl Fn(std::io::Error) -> Failure {
    let step = step.to_owned();
    move |error| Failure::step(&step, error.raw_os_error().unwrap_or(libc::EIO))
}

fn failed_nix(step: &str) -> impl Fn(nix::Error) -> Failure {
    let step = step.to_owned();
    move |errno| Failure::step(&step, errno as i32)
}

/// The helper: never returns.
fn enter(request: &ExecRequest<'_>, failures: &OwnedFd, pid_end: OwnedFd, terminal: &UnixStream) -> ! {
    if let Err(failure) = enter_namespaces(request) {
        tell(failures, &failure);
        process::exit_now(1);
    }
    match process::fork(true) {
        Ok(Fork::Parent(pid)) => {
            let _ = File::from(pid_end).write_all(&pid.to_ne_bytes());
            process::exit_now(0)
        }
        Ok(Fork::Child) => {
            drop(pid_end);
            become_process(request, failures, terminal)
        }
        Err(error) => {
            tell(failures, &failed("fork in the container")(error));
            process::exit_now(1)
        }
    }
}

fn enter_namespaces(request: &ExecRequest<'_>) -> Step {
    // Nobody in the container may trace the helper, which still has the host's files open.
    process::set_undumpable().map_err(failed("hide from the container's processes"))?;
    for file in &request.cgroup_procs {
        std::fs::write(file, "0").map_err(failed(&format!("enter the cgroup by `{}`", file.display())))?;
    }
    if let Some(score) = request.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(failed("set the OOM score"))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(request.target, namespaces).map_err(failed_nix("enter the namespaces"))
}

/// The process itself: never returns.
fn become_process(request: &ExecRequest<'_>, failures: &OwnedFd, terminal: &UnixStream) -> ! {
    let prepared = prepare(request, terminal);
    let failure = match prepared {
        Ok(args) => execute(request.args.first().map_or("", String::as_str), &args, &request.env),
        Err(failure) => failure,
    };
    tell(failures, &failure);
    process::exit_now(126)
}

fn prepare(request: &ExecRequest<'_>, terminal: &UnixStream) -> Result<Vec<std::ffi::CString>, Failure> {
    setsid().map_err(failed_nix("begin a session"))?;
    streams(request, terminal)?;
    for limit in &request.rlimits {
        set_rlimit(limit)?;
    }
    if request.no_new_privileges {
        caps::set_no_new_privileges().map_err(failed("set no-new-privileges"))?;
    }
    enter_directory(request)?;
    identity(request)?;
    process::close_on_exec_from(3).map_err(failed("close the host's descriptors"))?;
    process::default_signals();
    process::usual_umask();
    c_strings(&request.args).map_err(|_| Failure::step("pass its arguments", libc::EINVAL))
}

fn streams(request: &ExecRequest<'_>, terminal: &UnixStream) -> Step {
    use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
    let put = |stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd| {
        dup2_stdin(stdin)
            .and_then(|_| dup2_stdout(stdout))
            .and_then(|_| dup2_stderr(stderr))
            .map_err(failed_nix("set up the standard streams"))
    };
    match &request.stdio {
        Stdio::Fds { stdin, stdout, stderr } => put(stdin, stdout, stderr).map(drop),
        Stdio::Pty { size } => {
            let (master, slave) = pty::open().map_err(failed("open a terminal in the container"))?;
            nix::unistd::fchown(&slave, Some(Uid::from_raw(request.uid)), None)
                .map_err(failed_nix("give the terminal to the user"))?;
            // Before the program runs: an editor asks once, at its start.
            if let Some((rows, columns)) = *size {
                pty::set_window_size(master.as_fd(), rows, columns);
            }
            process::send_fd(terminal.as_fd(), master.as_fd()).map_err(failed("hand over the terminal"))?;
            put(&slave, &slave, &slave)?;
            pty::make_controlling(&slave).map_err(failed("take the terminal"))
        }
    }
}

fn set_rlimit(limit: &Rlimit) -> Step {
    crate::sys::rlimit::set(&limit.name, limit.soft, limit.hard)
        .map_err(failed(&format!("set the limit `{}`", limit.name)))
}

/// The directory is entered before the user changes, as runtimes do, so that root may use one that the user cannot; and it must lie in the
/// container (CVE-2024-21626: a path such as /proc/self/fd/7 leads out of it).
fn enter_directory(request: &ExecRequest<'_>) -> Step {
    nix::unistd::chdir(&request.cwd).map_err(|errno| Failure::directory(&request.cwd, errno as i32))?;
    let inside = nix::unistd::getcwd().is_ok_and(|path| path.starts_with(Path::new("/")));
    let what = || format!("enter the directory `{}`, which is not in the container", request.cwd.display());
    if inside { Ok(()) } else { Err(Failure::step(what(), libc::EXDEV)) }
}

fn identity(request: &ExecRequest<'_>) -> Step {
    let (uid, gid) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
    let groups: Vec<Gid> = request.groups.iter().copied().map(Gid::from_raw).collect();
    let step = failed("drop capabilities");
    caps::bound(request.capabilities).map_err(&step)?;
    // Without no-new-privileges the filter can only be loaded while CAP_SYS_ADMIN is held; it allows what follows.
    if let Some(filter) = request.seccomp.filter(|_| !request.no_new_privileges) {
        seccomp::load(&filter.0).map_err(failed("load the seccomp filter"))?;
    }
    setgroups(&groups).map_err(failed_nix("set the groups"))?;
    setresgid(gid, gid, gid).map_err(failed_nix("set the group"))?;
    setresuid(uid, uid, uid).map_err(failed_nix("set the user"))?;
    let held = if request.uid == 0 { request.capabilities } else { 0 };
    caps::set(held).map_err(&step)?;
    if let Some(filter) = request.seccomp.filter(|_| request.no_new_privileges) {
        seccomp::load(&filter.0).map_err(failed("load the seccomp filter"))?;
    }
    Ok(())
}
