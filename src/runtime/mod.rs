//! Creates containers with youki's libcontainer, and enters them with code of its own. This is the only module that
//! uses libcontainer.
//!
//! [`create`] builds the container from `<bundle>/config.json` up to the moment before its process executes its
//! program. [`Created::start`] lets the process continue. [`exec`] joins a running container with setns, because
//! libcontainer's own tenant process drops the seccomp filter and skips user namespaces.
//!
//! Everything here must run in a SINGLE-THREADED process. Otherwise libcontainer's raw clone3 deadlocks (verified). The
//! table lists the bugs and limitations of libcontainer 0.7.0, and where they are worked around:
//!
//! | problem | workaround |
//! |---|---|
//! | SIGPIPE stays ignored, the signal mask is inherited | `executor` resets all signals before exec |
//! | the tenant process has no seccomp filter | `exec` loads it; for pid 1, `executor` loads it |
//! | `noNewPrivileges: false` with a filter fails | left unset; CAP_SYS_ADMIN is kept until the filter is loaded |
//! | resources are written a second time, by other rules | left out of its spec; the cgroup module writes them |
//! | HOME unset runs the image's NSS | `launch` always sets HOME |
//! | memory.swap.max = 0 is never written, controllers' errors are lost | the cgroup module writes and reads back |
//! | no device program under version 2 | the cgroup module loads one |
//! | oomScoreAdj is written to the caller | left out of its spec, and written to pid 1 before it starts |
//! | the umask of the caller is inherited | `executor` and `exec` set 022, as docker does |
//! | errors contain little detail | ERROR events of its tracing, also from its children, are captured (`capture`) |
//! | seventy system calls for each mount | `early` makes those that need no namespace of the container |
//! | seventy calls for `/proc`, and as many for capabilities | `late` does these steps in pid 1 |
//! | the mount table is scanned for each cgroup controller | `creator` enters the cgroup |
//! | a failed create leaves zombies, and after an early error the state directory | killed, reaped and removed here |
//!
//! On disk, `<state_root>/<id>` is libcontainer's own state, `<state_root>/bundle` is the spec that it reads, and
//! `<state_root>/console` is a socket that exists during a create. [`create`] removes all of them when it fails, and
//! [`Created::delete`] removes them at the end. The creator of the cgroup removes the cgroup. There are no locks,
//! because each container has only one supervisor.

mod capture;
mod creator;
mod devices;
mod drain;
mod early;
mod error;
#[cfg(test)]
mod error_tests;
mod exec;
mod executor;
mod failure;
mod inner;
mod late;
mod masks;
mod pipes;
mod request;
mod socket;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use creator::Failed;
pub use error::RuntimeError;
use error::{Cause, OOM_SCORE};
use inner::{Inner, adapt_spec};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::{WaitStatus, waitpid};
use pipes::{pipe, read_failure, read_outcome};
pub use request::{CreateRequest, Stdio};

use capture::{CapturedErrors, capture};
pub(crate) use devices::{DeviceCheck, DeviceFault, NodeCheck};
pub(crate) use drain::{EXEC_DRAIN, exec_drain_main, spawn_drain};
pub use exec::{EXEC_HELPER, ExecChild, ExecRequest, exec, exec_helper_main};
use executor::Executor;

use crate::cgroup::Entrance;
use crate::sys::{process, pty};

/// The bytes of gpurun's own init (src/init), which runs as pid 1.
pub const INIT_PAYLOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// A container whose pid 1 waits to execute its program, or has executed it.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// In clock ticks since boot.
    pub start_time: u64,
    /// The master of its terminal.
    pub pty: Option<OwnedFd>,
    handle: Handle,
    failures: File,
    captured: CapturedErrors,
    program: String,
    id: String,
    state_root: PathBuf,
}

/// How the container is started and deleted.
#[derive(Debug)]
enum Handle {
    /// By libcontainer, which runs the hooks.
    Container(Box<Container>),
    /// By a connection to the socket on which pid 1 waits. There are no hooks.
    Socket,
}

/// The file name of this socket in libcontainer's directory.
const NOTIFY: &str = "notify.sock";
/// Why a connection to it fails.
const NO_ANSWER: &str = "its first process does not wait for the start any more";
/// Why a start fails whose process has accepted the connection.
const ENDED_EARLY: &str = "its first process ended before it executed the program";

/// Everything that a container needs before its cgroup exists.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    request: CreateRequest<'a>,
    inner: Inner,
    failures: File,
    executor: Executor,
    console: Option<Console>,
}

/// Creates the container. Its process waits for [`Created::start`].
pub fn create(request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
    prepare(request, None)?.create()
}

/// The first half of [`create`], which creates only files. A launch runs it while it waits for the kernel to be ready
/// for moves between cgroups ([`crate::cgroup::Host::prime_moves`]). `entrance` is how to enter the cgroup without
/// libcontainer, where that is possible (see `creator`).
pub(crate) fn prepare(request: CreateRequest<'_>, entrance: Option<Entrance>) -> Result<Prepared<'_>, RuntimeError> {
    let threads = process::thread_count();
    if threads != 1 {
        return Err(RuntimeError::Threads(threads));
    }
    let inner = adapt_spec(&request, entrance)?;
    let (failures, failure_end) = pipe()?;
    let executor = Executor::new(&request, &inner.args, failure_end)?;
    let console = match &request.stdio {
        Stdio::Pty { .. } => Some(Console::bind(request.state_root)?),
        Stdio::Fds { .. } => None,
    };
    Ok(Prepared { request, inner, failures, executor, console })
}

impl Prepared<'_> {
    /// Whether libcontainer puts the container into the cgroup of its spec, in all hierarchies.
    pub(crate) fn needs_cgroup_path(&self) -> bool {
        !self.inner.is_apart()
    }

    /// The second half of [`create`], which creates processes.
    pub(crate) fn create(self) -> Result<Created, RuntimeError> {
        let Self { request, mut inner, failures, executor, console } = self;
        let before = process::children();
        // The mount points that libcontainer creates in the image's root must be accessible to the container's user.
        let umask = process::usual_umask();
        let (built, mut captured) = capture(|| first_process(&request, &mut inner, executor, console.as_ref()));
        nix::sys::stat::umask(umask);
        let (pid, handle) = match built {
            Ok(built) => built,
            Err(failed) => {
                end_strays(&before);
                clear(request.state_root, request.id);
                return Err(match failed {
                    Failed::Own(error) => error,
                    Failed::Runtime(source) => {
                        create_error(failures, source, &captured.take(), request.program, &inner.cwd)
                    }
                });
            }
        };
        finish(&request, (pid, handle), console, failures, captured).inspect_err(|_| {
            // Its pid 1 waits for a start that will not happen.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            end_strays(&before);
            clear(request.state_root, request.id);
        })
    }
}

/// Creates the container's first process. Drops the executor, whose end of the pipe would otherwise keep it open.
fn first_process(
    request: &CreateRequest<'_>,
    inner: &mut Inner,
    executor: Executor,
    console: Option<&Console>,
) -> Result<(i32, Handle), Failed> {
    if inner.is_apart() {
        let work = |inner: &Inner, late| Ok(pid_of(&build(request, inner, executor.clone().with(late), console)?));
        if let Some(pid) = creator::create(inner, request.process, work)? {
            return Ok((pid, Handle::Socket));
        }
        inner.without_entrance().map_err(Failed::Own)?;
    }
    let container = build(request, inner, executor, console).map_err(Failed::Runtime)?;
    Ok((pid_of(&container), Handle::Container(Box::new(container))))
}

fn pid_of(container: &Container) -> i32 {
    container.pid().map_or(0, |pid| pid.as_raw())
}

/// Removes the files of libcontainer and of this module. Errors are ignored, because the files are below /run.
fn clear(state_root: &Path, id: &str) {
    for name in [id, "bundle"] {
        let _ = crate::sys::tree::remove(&state_root.join(name));
    }
    let _ = std::fs::remove_file(state_root.join(CONSOLE));
}

fn build(
    request: &CreateRequest<'_>,
    inner: &Inner,
    executor: Executor,
    console: Option<&Console>,
) -> Result<Container, Cause> {
    let mut builder = ContainerBuilder::new(request.id.to_owned(), SyscallType::default())
        .with_root_path(request.state_root)?
        .with_console_socket(console.map(|console| console.path.clone()))
        .with_executor(executor)
        .validate_id()?;
    if let Stdio::Fds { stdin, stdout, stderr } = &request.stdio {
        let (stdin, stdout, stderr) = (stdin.try_clone()?, stdout.try_clone()?, stderr.try_clone()?);
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    // Its processes are children of the supervisor, also if a process of the container's cgroup runs this.
    Ok(builder.as_init(&inner.dir).with_systemd(false).with_detach(true).as_sibling(inner.is_apart()).build()?)
}

fn finish(
    request: &CreateRequest<'_>,
    (pid, handle): (i32, Handle),
    console: Option<Console>,
    failures: File,
    captured: CapturedErrors,
) -> Result<Created, RuntimeError> {
    let sys = |what: &'static str| move |error: std::io::Error| RuntimeError::Sys(what, error);
    let pidfd = process::open_pidfd(pid).map_err(sys("open the container's process"))?;
    let no_start = || std::io::Error::other("its start time cannot be read");
    let start_time = process::start_time(pid).ok_or_else(no_start).map_err(sys("identify the container's process"))?;
    if let Some(score) = request.process.oom_score_adj {
        // This process writes the score, because pid 1 may no longer be root or able to open its own file.
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(sys(OOM_SCORE))?;
    }
    let pty = console.map(Console::receive).transpose()?;
    if let (Some(master), Stdio::Pty { size: Some((rows, columns)) }) = (&pty, &request.stdio) {
        pty::set_window_size(master.as_fd(), *rows, *columns);
    }
    Ok(Created {
        pid,
        pidfd,
        start_time,
        pty,
        handle,
        failures,
        captured,
        program: request.program.to_owned(),
        id: request.id.to_owned(),
        state_root: request.state_root.to_path_buf(),
    })
}

impl Created {
    /// Lets pid 1 execute its program, and waits until it has. Hooks of the stage `poststart` have then run, too.
    pub fn start(&mut self) -> Result<(), RuntimeError> {
        match &mut self.handle {
            Handle::Container(container) => {
                let (started, mut captured) = capture(|| container.start());
                started.map_err(|source| RuntimeError::Start {
                    reason: reason(&captured.take()),
                    source: source.into(),
                })?;
            }
            Handle::Socket => socket::connect(&self.state_root.join(&self.id), NOTIFY)
                .map_err(|error| RuntimeError::Start { reason: NO_ANSWER.into(), source: error.into() })?,
        }
        // The pipe ends when the program is executed, and when the process ends before that.
        let outcome = read_outcome(&mut self.failures);
        match outcome.failure {
            Some(failure) => Err(failure.into_error(&self.program, &self.captured.take())),
            None if outcome.is_begun || self.is_killed() => Ok(()),
            None => Err(RuntimeError::Start {
                reason: ENDED_EARLY.into(),
                source: std::io::Error::from_raw_os_error(libc::ECHILD).into(),
            }),
        }
    }

    /// Whether pid 1, which is ending, was killed. Its supervisor then says by whom or for what, as for a program.
    fn is_killed(&self) -> bool {
        matches!(process::end_of_child(&self.pidfd, END), Some(WaitStatus::Signaled(..)))
    }

    /// Sends a signal to pid 1, and never to another process that reuses its pid.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        process::signal(&self.pidfd, number)
    }

    /// Kills the remaining processes, runs `poststop` hooks, and removes all files. The creator of the cgroup removes
    /// the cgroup.
    pub fn delete(mut self) -> Result<(), RuntimeError> {
        // libcontainer may refuse to delete a container that was killed a moment ago (a race), so wait for its end
        // first.
        let _ = self.signal(libc::SIGKILL);
        process::wait_pidfd(&self.pidfd, END);
        let id = std::mem::take(&mut self.id);
        let Handle::Container(mut container) = self.handle else {
            // Only libcontainer's directory is left.
            clear(&self.state_root, &id);
            return Ok(());
        };
        let (deleted, mut captured) = capture(|| container.delete(true));
        clear(&self.state_root, &id);
        deleted.map_err(|source| RuntimeError::Delete { id, reason: reason(&captured.take()), source: source.into() })
    }
}

/// How long a killed process may take to end. One in uninterruptible sleep has to wait for its device.
const END: std::time::Duration = std::time::Duration::from_secs(10);

/// Prefers the executor's own message, then libcontainer's log, then its error.
fn create_error(mut failures: File, source: Cause, captured: &[String], program: &str, cwd: &Path) -> RuntimeError {
    if let Some(failure) = read_failure(&mut failures) {
        return failure.into_error(program, captured);
    }
    if let Some(errno) = captured.iter().find_map(|text| no_directory(text)) {
        return RuntimeError::Directory { path: cwd.to_path_buf(), source: errno.into() };
    }
    RuntimeError::Create { reason: reason(captured), source }
}

/// Recognizes the error of libcontainer's chdir, which contains its name: `failed to chdir (e: ENOENT)`.
fn no_directory(text: &str) -> Option<nix::Error> {
    let name = text.strip_prefix("failed to chdir")?;
    let known =
        [nix::Error::ENOENT, nix::Error::ENOTDIR, nix::Error::EACCES, nix::Error::ELOOP, nix::Error::ENAMETOOLONG];
    Some(known.into_iter().find(|errno| name.contains(&format!("{errno:?}"))).unwrap_or(nix::Error::EIO))
}

/// Joins libcontainer's messages; the first one is the closest to the cause. The `frames` only repeat the failure from
/// the outer processes, so they are dropped unless there is nothing else.
fn reason(captured: &[String]) -> String {
    let frames = [
        "failed to initialize container process",
        "failed to run container process",
        "failed to wait for init ready",
        // It cannot remove the cgroup that it sees (`creator`).
        "failed to remove cgroup manager",
    ];
    let relevant: Vec<&str> = captured
        .iter()
        .map(String::as_str)
        .filter(|line| !frames.iter().any(|frame| line.starts_with(frame)))
        .collect();
    match (relevant.is_empty(), captured.first()) {
        (false, _) => relevant.join("; "),
        (true, Some(frame)) => frame.clone(),
        (true, None) => "the runtime failed without a message".to_owned(),
    }
}

/// Kills and reaps the processes that libcontainer left after a failure. They are children of this process that did not
/// exist `before`, and may be dead, dying, or waiting forever.
fn end_strays(before: &[i32]) {
    for pid in process::children().into_iter().filter(|pid| !before.contains(pid)).map(nix::unistd::Pid::from_raw) {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }
}

const CONSOLE: &str = "console";

/// The socket on which libcontainer passes the pty's master.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn bind(state_root: &Path) -> Result<Self, RuntimeError> {
        let path = &state_root.join(CONSOLE);
        let _ = std::fs::remove_file(path);
        let listener = socket::listener(state_root, CONSOLE).map_err(|source| RuntimeError::Io {
            action: "bind the console socket",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self { path: path.to_path_buf(), listener })
    }

    fn receive(self) -> Result<OwnedFd, RuntimeError> {
        let receive = || {
            let (stream, _) = self.listener.accept()?;
            process::receive_fd(stream.as_fd())
        };
        receive().map_err(|error| RuntimeError::Sys("receive the container's terminal", error))
    }
}
