//! Starts another process in a running container, with pid 1's cgroup, namespaces, capabilities and filter.
//!
//! Three processes take part: the caller; a helper, which is this program executed again (`gpurun exec-helper`) and
//! which enters the cgroup and the namespaces; and the process itself. Under version 2, the helper is replaced by a
//! second one, which is created in the cgroup. The helper creates the process inside the pid namespace as a child of the
//! CALLER (CLONE_PARENT), so that the caller gets its exit status from waitpid.
//!
//! A process of the container that has CAP_SYS_PTRACE can attach to the new process as soon as that is in the pid
//! namespace, before it executes its program. It gains nothing that it did not have before:
//!
//! - the memory is the helper's, which was executed with an empty environment and contains only the request;
//! - the descriptors are the process's own streams and two pipes, for reporting its pid and a failure. The caller
//!   checks that the pid is that of its own child;
//! - the streams are pipes, a terminal of the container, or a null device of this process's own, because the host's
//!   `/dev/null` could be changed through `/proc/self/fd`;
//! - the process has dropped the host's capabilities, identity and keyring before it is created, because the helper
//!   does everything that needs them. The seccomp filter is loaded before that as well, if the container has
//!   CAP_SYS_PTRACE;
//! - the executable is sealed (see [`crate::sys::exe`]).
//!
//! Without CAP_SYS_PTRACE, no process of the container can attach: the helper and its child are not dumpable.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid, setsid};
use serde::{Deserialize, Serialize};

use super::executor::{c_strings, execute};
use super::failure::{Failure, Step, failed, failed_nix, send_failure};
use super::pipes::{pipe, read_failure};
use super::{RuntimeError, Stdio};
use crate::cgroup::Entrance;
use crate::spec::{Process, Rlimit};
use crate::sys::process::Fork;
use crate::sys::{self, caps, exe, keyring, mount, pty, seccomp};

/// The name of the helper's subcommand.
pub const EXEC_HELPER: &str = "exec-helper";

/// The process to start, and its identity and restrictions.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The container's pid 1.
    pub target: &'a OwnedFd,
    /// The files through which the process enters the cgroup (`Cgroup::entry_files`).
    pub cgroup_procs: Vec<PathBuf>,
    pub process: Process,
    pub stdio: Stdio,
}

/// The started process, a child of the caller.
#[derive(Debug)]
pub struct ExecChild {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub pty: Option<OwnedFd>,
}

/// The request in the form that is passed to the helper.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    cgroup_procs: Vec<PathBuf>,
    process: Process,
    /// Whether to open a terminal. Otherwise the process uses the helper's streams.
    terminal: bool,
    /// The terminal's rows and columns.
    size: Option<(u16, u16)>,
}

impl Order {
    fn of(request: &ExecRequest<'_>) -> Self {
        Self {
            cgroup_procs: request.cgroup_procs.clone(),
            process: request.process.clone(),
            terminal: matches!(request.stdio, Stdio::Pty { .. }),
            size: match request.stdio {
                Stdio::Pty { size } => size,
                Stdio::Fds { .. } => None,
            },
        }
    }
}

/// Starts the process, and waits until it has executed its program.
pub fn exec(request: &ExecRequest<'_>) -> Result<ExecChild, RuntimeError> {
    let program = request.process.args.first().cloned().unwrap_or_default();
    let (mut failures, failure_end) = pipe()?;
    let (pid_reader, pid_end) = pipe()?;
    let sys = |what: &'static str| move |error: std::io::Error| RuntimeError::Sys(what, error);
    let (terminal, terminal_end) = UnixStream::pair().map_err(sys("make a socket"))?;
    let order =
        serde_json::to_vec(&Order::of(request)).map_err(|error| sys("pass the request to the helper")(error.into()))?;
    let order = sys::process::memory_file(c"exec-request", &order).map_err(sys("pass the request to the helper"))?;
    let mut command = exe::sealed_command().map_err(sys("execute gpurun from a sealed handle"))?;
    let ends = [order.as_raw_fd(), request.target.as_raw_fd(), failure_end.as_raw_fd(), pid_end.as_raw_fd()];
    let ends = [&ends[..], &[terminal_end.as_raw_fd()]].concat();
    command.arg(EXEC_HELPER).args(ends.iter().map(ToString::to_string)).env_clear().current_dir("/");
    // The helper gets its own process group, because a ctrl-c at the terminal is for the command, and the caller
    // forwards it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // A helper that has not entered the cgroup yet must not outlive a caller that has been killed.
    sys::process::end_with_parent(&mut command);
    sys::process::pass_only(&mut command, &ends);
    stdio(&mut command, &request.stdio).map_err(sys("pass the streams to the helper"))?;
    let mut helper = command.spawn().map_err(sys("start the helper"))?;
    // The command holds copies of the stream descriptors.
    drop((command, failure_end, pid_end, terminal_end));
    let (second, pid) = read_pids(pid_reader);
    let _ = helper.wait();
    if let Some(second) = second {
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(second), None);
    }
    let failure = read_failure(&mut failures);
    let Some(pid) = pid else {
        let failure = failure.unwrap_or(Failure::step("run the helper, which ended early", libc::ECHILD));
        return Err(failure.into_error(&program, &[]));
    };
    if let Some(failure) = failure {
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        return Err(failure.into_error(&program, &[]));
    }
    let pidfd = sys::process::open_pidfd(pid).map_err(sys("open the new process"))?;
    if !sys::process::is_child(&pidfd) {
        return Err(
            Failure::step("run the helper, which named another process", libc::ECHILD).into_error(&program, &[])
        );
    }
    let pty = match request.stdio {
        Stdio::Pty { .. } => Some(sys::process::receive_fd(terminal.as_fd()).map_err(sys("receive the terminal"))?),
        Stdio::Fds { .. } => None,
    };
    Ok(ExecChild { pid, pidfd, pty })
}

fn stdio(command: &mut std::process::Command, stdio: &Stdio) -> std::io::Result<()> {
    use std::process::Stdio as Given;
    match stdio {
        Stdio::Pty { .. } => drop(command.stdin(Given::null()).stdout(Given::null()).stderr(Given::null())),
        Stdio::Fds { stdin, stdout, stderr } => {
            command.stdin(stdin.try_clone()?).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        }
    }
    Ok(())
}

/// The owner of a pid in the pipe.
const SECOND_HELPER: u8 = b'h';
const PROCESS: u8 = b'p';

/// Sends a pid to the caller.
fn send_pid(pipe: &OwnedFd, what: u8, pid: i32) -> nix::Result<()> {
    let mut message = vec![what];
    message.extend(pid.to_ne_bytes());
    nix::unistd::write(pipe, &message).map(drop)
}

/// Reads the pids of the second helper, if there is one, and of the process.
fn read_pids(mut reader: File) -> (Option<i32>, Option<i32>) {
    let mut bytes = Vec::new();
    let _ = reader.read_to_end(&mut bytes);
    let find = |what: u8| {
        let found = bytes.chunks_exact(5).find(|message| message[0] == what)?;
        Some(i32::from_ne_bytes(found[1..].try_into().ok()?))
    };
    (find(SECOND_HELPER), find(PROCESS))
}

/// Runs the helper. `numbers` are the numbers of its descriptors. Once it has the descriptors, it never returns.
#[must_use]
pub fn exec_helper_main(numbers: &[i32]) -> u8 {
    let ends: Vec<OwnedFd> = numbers.iter().filter_map(|&fd| sys::process::take_inherited_fd(fd)).collect();
    let Ok([order, target, failures, pid_end, terminal]) = <[OwnedFd; 5]>::try_from(ends) else {
        return crate::report::EXIT_USAGE;
    };
    let made = hide().and_then(|()| read_order(order)).and_then(|order| {
        // The device filter of the container's cgroup must not apply to this node.
        own_null()?;
        enter_cgroup(&order, &pid_end)?;
        let filter_loaded = enter(&order, &target, &UnixStream::from(terminal))?;
        Ok((order, filter_loaded))
    });
    let (order, filter_loaded) = match made {
        Ok(made) => made,
        Err(failure) => {
            send_failure(&failures, &failure);
            sys::process::exit_now(1);
        }
    };
    drop(target);
    match sys::process::fork(true) {
        Ok(Fork::Parent(pid)) => {
            let _ = send_pid(&pid_end, PROCESS, pid);
            sys::process::exit_now(0)
        }
        Ok(Fork::Child) => {
            drop(pid_end);
            become_process(&order, filter_loaded, &failures)
        }
        Err(error) => {
            send_failure(&failures, &failed("fork in the container")(error));
            sys::process::exit_now(1)
        }
    }
}

/// Prevents other processes from tracing the helper or reading its memory through /proc, as far as the kernel allows
/// it. CAP_SYS_PTRACE overrides this.
fn hide() -> Step {
    sys::process::set_undumpable().map_err(failed("hide from the container's processes"))?;
    keyring::leave_session().map_err(failed("leave the session keyring"))
}

fn read_order(order: OwnedFd) -> Result<Order, Failure> {
    let mut bytes = Vec::new();
    File::from(order).read_to_end(&mut bytes).map_err(failed("read the request"))?;
    serde_json::from_slice(&bytes).map_err(|error| failed("read the request")(error.into()))
}

/// Does everything that needs the host's files, capabilities and identity, which the container does not have.
/// Afterwards the helper has the process's final attributes, except for its session and its pid namespace. Returns
/// whether it also has the seccomp filter.
fn enter(order: &Order, target: &OwnedFd, terminal: &UnixStream) -> Result<bool, Failure> {
    let process = &order.process;
    enter_namespaces(order, target)?;
    crate::sys::rlimit::lift();
    if order.terminal {
        use_terminal(&open_terminal(order, terminal)?)?;
    }
    for Rlimit { name, soft, hard } in &process.rlimits {
        crate::sys::rlimit::set(name, *soft, *hard).map_err(failed(&format!("set the limit `{name}`")))?;
    }
    if process.no_new_privileges {
        caps::set_no_new_privileges().map_err(failed("set no-new-privileges"))?;
    }
    enter_directory(&process.cwd)?;
    sys::process::close_on_exec_from(3).map_err(failed("close the host's descriptors"))?;
    sys::process::default_signals();
    sys::process::set_umask(process.umask);
    identity(process)?;
    // A change of the identity sets this to the host's default, which may be another one (fs.suid_dumpable).
    sys::process::set_undumpable().map_err(failed("hide from the container's processes"))?;
    // A process that can be traced must not be without its filter. Otherwise the filter is loaded as late as possible,
    // because a user's filter may deny calls that are still needed.
    let can_be_traced = process.capabilities.has("CAP_SYS_PTRACE");
    if process.no_new_privileges && can_be_traced {
        load_filter(process)?;
    }
    Ok(can_be_traced || !process.no_new_privileges)
}

fn load_filter(process: &Process) -> Step {
    let Some(filter) = &process.seccomp else { return Ok(()) };
    seccomp::load(&filter.0).map_err(failed("load the seccomp filter"))
}

/// Replaces those of the standard streams that are the host's null device.
fn own_null() -> Step {
    let step = "open a null device";
    let [stdin, stdout, stderr] = [
        mount::is_null(io::stdin().as_fd()),
        mount::is_null(io::stdout().as_fd()),
        mount::is_null(io::stderr().as_fd()),
    ];
    if !(stdin || stdout || stderr) {
        return Ok(());
    }
    let null = mount::private_null().map_err(failed(step))?;
    let mut replaced = Ok(());
    if stdin {
        replaced = replaced.and(dup2_stdin(&null));
    }
    if stdout {
        replaced = replaced.and(dup2_stdout(&null));
    }
    if stderr {
        replaced = replaced.and(dup2_stderr(&null));
    }
    replaced.map_err(failed_nix(step))
}

/// Makes a terminal the helper's standard streams.
fn use_terminal(slave: &OwnedFd) -> Step {
    let all = dup2_stdin(slave).and_then(|()| dup2_stdout(slave)).and_then(|()| dup2_stderr(slave));
    all.map_err(failed_nix("set up the standard streams"))
}

/// Enters the cgroup. Under version 2, the kernel lets a process wait that moves itself (`cgroup::Entrance`). So this
/// process creates a second helper in the cgroup, which goes on instead of it.
fn enter_cgroup(order: &Order, pid_end: &OwnedFd) -> Step {
    if let Some(entrance) = Entrance::of_files(&order.cgroup_procs)
        && matches!(is_second_helper(&entrance, pid_end), Ok(true))
    {
        return Ok(());
    }
    for file in &order.cgroup_procs {
        std::fs::write(file, "0").map_err(failed(&format!("enter the cgroup through `{}`", file.display())))?;
    }
    Ok(())
}

/// Creates the second helper, and ends this process if that one can go on. Returns `true` in the second helper, and
/// `false` or an error in this process if there is none.
fn is_second_helper(entrance: &Entrance, pid_end: &OwnedFd) -> io::Result<bool> {
    let Some(dir) = entrance.open_dir()? else { return Ok(false) };
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match sys::process::fork_into(dir.as_fd(), true)? {
        Fork::Parent(pid) => {
            drop(writer);
            // The caller, whose child it is, waits for it.
            if send_pid(pid_end, SECOND_HELPER, pid).is_err() {
                sys::process::exit_now(1);
            }
            let mut byte = [0];
            match File::from(reader).read(&mut byte) {
                Ok(1) => sys::process::exit_now(0),
                _ => Ok(false),
            }
        }
        Fork::Child => {
            // Some kernels leave it the CPUs of the first helper.
            if !entrance.has_sets() || nix::unistd::write(&writer, &[1]).is_err() {
                sys::process::exit_now(1);
            }
            Ok(true)
        }
    }
}

fn enter_namespaces(order: &Order, target: &OwnedFd) -> Step {
    if let Some(score) = order.process.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(failed(super::error::SCORE_STEP))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(target, namespaces).map_err(failed_nix("enter the namespaces"))
}

/// Opens a terminal in the container's own devpts, and sends its master to the caller.
fn open_terminal(order: &Order, terminal: &UnixStream) -> Result<OwnedFd, Failure> {
    let (master, slave) = pty::open().map_err(failed("open a terminal in the container"))?;
    nix::unistd::fchown(&slave, Some(Uid::from_raw(order.process.uid)), None)
        .map_err(failed_nix("change the owner of the terminal"))?;
    // The size must be set before the program runs: an editor reads it only once, at its start.
    if let Some((rows, columns)) = order.size {
        pty::set_window_size(master.as_fd(), rows, columns);
    }
    sys::process::send_fd(terminal.as_fd(), master.as_fd()).map_err(failed("hand over the terminal"))?;
    Ok(slave)
}

/// Runs the new process. Never returns.
fn become_process(order: &Order, filter_loaded: bool, failures: &OwnedFd) -> ! {
    let process = &order.process;
    let failure = match prepare(order, filter_loaded) {
        Ok(args) => execute(process.args.first().map_or("", String::as_str), &args, &process.env),
        Err(failure) => failure,
    };
    send_failure(failures, &failure);
    sys::process::exit_now(126)
}

fn prepare(order: &Order, filter_loaded: bool) -> Result<Vec<std::ffi::CString>, Failure> {
    let process = &order.process;
    setsid().map_err(failed_nix("start a session"))?;
    if order.terminal {
        pty::make_controlling(io::stdin()).map_err(failed("take the terminal"))?;
    }
    if !filter_loaded {
        load_filter(process)?;
    }
    c_strings(&process.args).map_err(|_| Failure::step("pass its arguments", libc::EINVAL))
}

/// Enters the working directory before the user changes, as other runtimes do, so that root's access applies. The
/// directory must be in the container (CVE-2024-21626: a path such as /proc/self/fd/7 leads out of it).
fn enter_directory(cwd: &Path) -> Step {
    nix::unistd::chdir(cwd).map_err(|errno| Failure::directory(cwd, errno as i32))?;
    let inside = nix::unistd::getcwd().is_ok_and(|path| path.starts_with(Path::new("/")));
    let what = || format!("enter the directory `{}`, which does not exist in the container", cwd.display());
    if inside { Ok(()) } else { Err(Failure::step(what(), libc::EXDEV)) }
}

fn identity(process: &Process) -> Step {
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    let step = failed("drop capabilities");
    caps::bound(process.capabilities.0).map_err(&step)?;
    // Without no-new-privileges, the filter can only be loaded while CAP_SYS_ADMIN is held. The filter allows the calls
    // below.
    if !process.no_new_privileges {
        load_filter(process)?;
    }
    setgroups(&groups).map_err(failed_nix("set the groups"))?;
    setresgid(gid, gid, gid).map_err(failed_nix("set the group"))?;
    setresuid(uid, uid, uid).map_err(failed_nix("set the user"))?;
    caps::set(process.held().0).map_err(&step)
}
