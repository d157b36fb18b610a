//! Creates the container's first process without libcontainer.
//!
//! libcontainer takes about 600 system calls and three processes for this: it checks procfs again for each mount, scans
//! the mount table for each cgroup controller, and then waits for a grace period of the kernel (see
//! `cgroup::Entrance`). Here, the supervisor forks once. The new process enters the cgroup by itself (version 1) or is
//! created in it (version 2), makes the mounts that depend on its namespaces, and changes its root directory. From there
//! on it does the same as a process of `exec`.
//!
//! ```text
//! supervisor   clone(namespaces) ─────────────────────────> waits ──> "go"
//! first process   cgroup, mounts, root, user, checks ──> "ready" ──> waits ──> executes the program
//! ```
//!
//! Both hold one end of a socket. The process ends with the supervisor (PDEATHSIG). libcontainer creates the containers
//! for which this module does not have everything ([`can`]): those with hooks or kernel parameters, and those with a
//! mount that `early` does not make.
//!
//! The root directory is untrusted. Before the root changes, destinations are resolved inside it by the kernel
//! (`rootfs`). Afterwards, absolute paths cannot leave it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use super::error::Relayed;
use super::exec::{self, Step, failed, failed_nix};
use super::executor::{Executor, Failure};
use super::{CreateRequest, RuntimeError, Stdio, early, masks, nodes};
use crate::cgroup::Entrance;
use crate::rootfs;
use crate::spec::Rlimit;
use crate::sys::process::{self, Fork};
use crate::sys::{caps, mount, pty, rlimit};

/// What the process sends when it waits for its start, and what it then receives.
const READY: u8 = b'r';
const GO: u8 = b'g';

/// What it sends when the kernel has not given it the CPUs of its cgroup.
const UNBOUND: u8 = b'u';

/// What a container is created from.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) entrance: Entrance,
    /// The spec that is left when the early mounts are made.
    pub(super) spec: Value,
}

/// A first process that waits for its start.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) pid: i32,
    pub(super) socket: UnixStream,
    /// The master of its terminal.
    pub(super) pty: Option<OwnedFd>,
}

/// Whether this module can create the container of a spec whose early mounts are made.
pub(super) fn can(request: &CreateRequest<'_>, spec: &Value) -> bool {
    let is_empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    let known = ["mount", "ipc", "uts", "cgroup", "pid", "network"];
    let mut namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    // Without no-new-privileges, the filter is loaded after the start, with a capability that libcontainer keeps.
    let process = request.process;
    (process.no_new_privileges || process.seccomp.is_none())
        && is_empty(&spec["linux"]["sysctl"])
        && namespaces.all(|one| known.iter().any(|name| one["type"] == *name))
        && nodes::can(spec)
        && early::can_make(spec, &early::LATE)
}

/// Creates the process. `None`: the kernel cannot create a process in a cgroup with all of its limits, and nothing was
/// done. The caller must be single-threaded.
pub(super) fn create(
    request: &CreateRequest<'_>,
    own: &mut Own,
    executor: &Executor,
) -> Result<Option<Waiting>, RuntimeError> {
    let sys = |what: &'static str| move |error: io::Error| RuntimeError::Sys(what, error);
    let pair = || UnixStream::pair().map_err(sys("make a socket"));
    // As libcontainer does to the process in which it runs: no process of the container can read the supervisor's
    // memory.
    process::set_undumpable().map_err(sys("hide gpurun's own process"))?;
    let (mut socket, far) = pair()?;
    let terminal = matches!(request.stdio, Stdio::Pty { .. }).then(pair).transpose()?;
    let cgroup = own.entrance.open().map_err(sys("open the container's cgroup"))?;
    let (flags, _) = namespaces(&own.spec);
    let forked = process::fork_into(flags, cgroup.as_ref().map(AsFd::as_fd));
    let pid = match forked {
        Ok(Fork::Child) => {
            drop(socket);
            let terminal = terminal.as_ref().map(|(_, far)| far);
            let failure = become_first(request, own, executor, (far, terminal));
            executor.send_failure(&failure);
            process::exit_now(1)
        }
        Ok(Fork::Parent(pid)) => pid,
        Err(_) if cgroup.is_some() => return Ok(None),
        Err(error) => return Err(sys("start the container's first process")(error)),
    };
    drop(far);
    let mut answer = [0];
    match socket.read_exact(&mut answer) {
        Ok(()) if answer == [READY] => {}
        Ok(()) => {
            let _ = waitpid(Pid::from_raw(pid), None);
            return Ok(None);
        }
        Err(_) => return Err(ended_early(pid)),
    }
    let pty = match terminal {
        Some((near, _)) => Some(process::receive_fd(near.as_fd()).map_err(sys("receive the container's terminal"))?),
        None => None,
    };
    Ok(Some(Waiting { pid, socket, pty }))
}

fn ended_early(pid: i32) -> RuntimeError {
    let how = match waitpid(Pid::from_raw(pid), None) {
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("was ended by {signal}"),
        _ => "ended early".to_owned(),
    };
    let reason = format!("its first process {how}");
    RuntimeError::Create { source: Relayed::new(vec![reason.clone()]).into(), reason }
}

/// Lets the process execute its program.
pub(super) fn start(socket: &mut UnixStream) -> io::Result<()> {
    socket.write_all(&[GO])
}

/// The namespaces to create with the process, and the paths of those to join. The cgroup namespace is created later,
/// because its root is the cgroup of the process that creates it.
fn namespaces(spec: &Value) -> (CloneFlags, Vec<PathBuf>) {
    let (mut flags, mut paths) = (CloneFlags::empty(), Vec::new());
    for namespace in spec["linux"]["namespaces"].as_array().into_iter().flatten() {
        if let Some(path) = namespace["path"].as_str() {
            paths.push(path.into());
            continue;
        }
        flags |= match namespace["type"].as_str() {
            Some("mount") => CloneFlags::CLONE_NEWNS,
            Some("ipc") => CloneFlags::CLONE_NEWIPC,
            Some("uts") => CloneFlags::CLONE_NEWUTS,
            Some("pid") => CloneFlags::CLONE_NEWPID,
            Some("network") => CloneFlags::CLONE_NEWNET,
            _ => CloneFlags::empty(),
        };
    }
    (flags, paths)
}

pub(super) fn has_namespace(spec: &Value, kind: &str) -> bool {
    spec["linux"]["namespaces"].as_array().into_iter().flatten().any(|namespace| namespace["type"] == kind)
}

/// The whole life of the new process in gpurun. Returns only on failure.
fn become_first(
    request: &CreateRequest<'_>,
    own: &mut Own,
    executor: &Executor,
    (mut socket, terminal): (UnixStream, Option<&UnixStream>),
) -> Failure {
    if !own.entrance.has_sets() {
        let _ = socket.write_all(&[UNBOUND]);
        process::exit_now(1);
    }
    let prepared = enter(request, own, executor)
        .and_then(|()| change_root(&own.spec))
        .and_then(|()| streams(request, terminal))
        .and_then(|()| restrict(request))
        .and_then(|()| executor.check(&request.process.env));
    if let Err(failure) = prepared {
        return failure;
    }
    let mut go = [0];
    let started = socket.write_all(&[READY]).and_then(|()| socket.read_exact(&mut go));
    match started {
        Ok(()) if go == [GO] => executor.execute(&request.process.env),
        _ => Failure::step("wait for the start", libc::EPIPE),
    }
}

/// Enters the cgroup and the namespaces, and makes the mounts that depend on them.
fn enter(request: &CreateRequest<'_>, own: &mut Own, executor: &Executor) -> Step {
    executor.tie()?;
    // For lists of processes. A program that is executed brings its own name.
    nix::sys::prctl::set_name(c"gpurun-first").map_err(failed_nix("set its name"))?;
    nix::unistd::setsid().map_err(failed_nix("start a session"))?;
    let root = root_path(&own.spec);
    let root = rootfs::open_root(&root).map_err(|_| Failure::step("open the container's root", libc::ENOENT))?;
    // Before the cgroup, whose device filter may not allow it.
    nodes::make(&own.spec, &root).map_err(failed("create the container's devices"))?;
    own.entrance.enter().map_err(failed("enter the container's cgroup"))?;
    let (_, paths) = namespaces(&own.spec);
    for path in paths {
        let step = "join a namespace of another container or network";
        let namespace = File::open(path).map_err(failed(step))?;
        nix::sched::setns(namespace, CloneFlags::empty()).map_err(failed_nix(step))?;
    }
    if has_namespace(&own.spec, "cgroup") {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed_nix("create a cgroup namespace"))?;
    }
    names(&own.spec)?;
    if request.process.no_new_privileges {
        caps::set_no_new_privileges().map_err(failed("set no-new-privileges"))?;
    }
    let none = None::<&Path>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed_nix("make the mounts private"))?;
    early::make_late(&mut own.spec).map_err(|destination| Failure::step(format!("mount `{destination}`"), libc::EINVAL))
}

/// Sets the names of a new UTS namespace.
fn names(spec: &Value) -> Step {
    if !has_namespace(spec, "uts") {
        return Ok(());
    }
    if let Some(name) = spec["hostname"].as_str() {
        nix::unistd::sethostname(name).map_err(failed_nix("set the host name"))?;
    }
    match spec["domainname"].as_str() {
        Some(name) => process::set_domain_name(name).map_err(failed("set the domain name")),
        None => Ok(()),
    }
}

fn root_path(spec: &Value) -> PathBuf {
    spec["root"]["path"].as_str().unwrap_or_default().into()
}

/// Makes the container's root the root of this process, and removes the host's mounts from its namespace (the way of
/// pivot_root(2) that needs no directory for the old root).
fn change_root(spec: &Value) -> Step {
    let step = failed_nix("change the root directory");
    nix::unistd::chdir(&root_path(spec)).map_err(&step)?;
    nix::unistd::pivot_root(".", ".").map_err(&step)?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).map_err(&step)?;
    nix::unistd::chdir("/").map_err(&step)?;
    let root = rootfs::open_root(Path::new("/")).map_err(|_| Failure::step("open the root directory", libc::ENOENT))?;
    masks::apply(spec, &root)?;
    if spec["root"]["readonly"] == true {
        mount::set(&root, mount::Attr::RDONLY, false).map_err(failed("make the root read-only"))?;
    }
    Ok(())
}

/// Sets up the standard streams. Those that are the host's null device become the container's.
fn streams(request: &CreateRequest<'_>, terminal: Option<&UnixStream>) -> Step {
    match (&request.stdio, terminal) {
        (Stdio::Pty { size }, Some(terminal)) => {
            let slave = exec::open_terminal(request.process.uid, *size, terminal)?;
            exec::use_terminal(&slave)?;
            pty::make_controlling(io::stdin()).map_err(failed("take the terminal"))?;
            nodes::console(&slave).map_err(failed("create `/dev/console`"))
        }
        (Stdio::Fds { stdin, stdout, stderr }, _) => {
            let step = failed_nix("set up the standard streams");
            let null = File::options().read(true).write(true).open("/dev/null").map_err(failed("open `/dev/null`"))?;
            if !exec::is_null(null.as_fd()) {
                return Err(Failure::step("open `/dev/null`, which is another device", libc::ENODEV));
            }
            let own = |fd: &'_ OwnedFd| -> io::Result<OwnedFd> {
                let fd: BorrowedFd<'_> = if exec::is_null(fd.as_fd()) { null.as_fd() } else { fd.as_fd() };
                fd.try_clone_to_owned()
            };
            let copy = |fd: &OwnedFd| own(fd).map_err(failed("set up the standard streams"));
            nix::unistd::dup2_stdin(copy(stdin)?).map_err(&step)?;
            nix::unistd::dup2_stdout(copy(stdout)?).map_err(&step)?;
            nix::unistd::dup2_stderr(copy(stderr)?).map_err(&step)
        }
        (Stdio::Pty { .. }, None) => Err(Failure::step("set up the terminal", libc::ENOTTY)),
    }
}

/// Enters the working directory, and drops everything that the container's process must not have.
fn restrict(request: &CreateRequest<'_>) -> Step {
    let process = request.process;
    exec::enter_directory(&process.cwd)?;
    for Rlimit { name, soft, hard } in &process.rlimits {
        rlimit::set(name, *soft, *hard).map_err(failed(&format!("set the limit `{name}`")))?;
    }
    process::close_on_exec_from(3).map_err(failed("close the host's descriptors"))?;
    exec::identity(process)?;
    // A change of the identity resets it.
    process::set_undumpable().map_err(failed("hide from the container's processes"))
}
