//! Making a container with youki's libcontainer, and entering one by ourselves. The only room that names libcontainer.
//!
//! [`create`] builds the container from `<bundle>/config.json` up to the moment before its process is executed; [`Created::start`] lets it go
//! on. [`exec`] joins a running container by setns: libcontainer's own tenant drops the seccomp filter and skips user namespaces.
//!
//! Everything here must run in a SINGLE-THREADED process: libcontainer's raw clone3 deadlocks otherwise (checked). What libcontainer 0.7.0
//! does wrong, and where it is put right:
//!
//! | what | put right by |
//! |---|---|
//! | SIGPIPE stays ignored, the signal mask is inherited | `executor`: defaults for all signals before exec |
//! | the tenant has no seccomp filter | `exec`, ours; for pid 1 the filter is loaded in `executor` |
//! | `noNewPrivileges: false` with a filter fails | left unset; CAP_SYS_ADMIN is kept until `executor` has loaded the filter |
//! | resources are written a second time, by other rules than ours | left out of what libcontainer reads: the cgroup room has written them |
//! | HOME unset runs the image's NSS | `launch` always sets HOME |
//! | memory.swap.max = 0 is never written, controllers' errors are lost, no device program on v2 | the cgroup room writes and reads back |
//! | oomScoreAdj is written to the caller | left out as well, written to pid 1 before it starts |
//! | the umask of whoever called is inherited | 022 in `executor` and `exec`, as in docker |
//! | errors say little | ERROR events of its tracing, its children's too, are captured and attached (`capture`) |
//! | zombies, and the state directory after an early error, stay behind a failed create | killed, reaped, removed here |
//!
//! On disk: `<state_root>/<id>` is libcontainer's own, `<state_root>/bundle` the spec that it reads, `<state_root>/console` a socket for the
//! time of a create. [`create`] removes all of them when it fails, [`Created::delete`] at the end. The cgroup is its maker's to remove. No
//! locks: one supervisor per container.

mod capture;
mod exec;
mod executor;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::wait::waitpid;
use serde_json::Value;

pub use capture::capture_errors;
use capture::{Words, capture};
pub use exec::{ExecChild, ExecRequest, exec};
use executor::{Executor, Failure};

use crate::report::{EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, Explain};
use crate::spec::seccomp::Filter;
use crate::sys::{process, pty};

/// The container's own pid 1 (src/init), as a file's bytes.
pub const INIT_PAYLOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// What was being done where it may fail for want of a capability.
const OOM_SCORE: &str = "set the container's OOM score";

/// Where a container's standard streams go.
#[derive(Debug)]
pub enum Stdio {
    /// A pty of the container's own; the size is rows and columns.
    Pty {
        size: Option<(u16, u16)>,
    },
    Fds {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

#[derive(Debug)]
pub struct CreateRequest<'a> {
    pub id: &'a str,
    /// The directory with `config.json`: what hooks read. libcontainer gets a copy of it with a few fields changed (see above).
    pub bundle: &'a Path,
    /// A directory for libcontainer's own state.
    pub state_root: &'a Path,
    pub stdio: Stdio,
    pub seccomp: Option<&'a Filter>,
    pub no_new_privileges: bool,
    /// Effective and permitted capabilities of the process, a bit for each.
    pub held_capabilities: u64,
    pub oom_score_adj: Option<i32>,
    /// The program that must exist and be executable: the one behind our own init, where that is pid 1.
    pub check: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("a container cannot be made by a process with {0} threads")]
    Threads(usize),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {0}")]
    Sys(&'static str, #[source] std::io::Error),
    #[error("the OCI spec `{}` cannot be understood", path.display())]
    Spec { path: PathBuf, source: serde_json::Error },
    #[error("cannot create the container: {said}")]
    Create { said: String, source: Box<libcontainer::error::LibcontainerError> },
    #[error("cannot start the container: {said}")]
    Start { said: String, source: Box<libcontainer::error::LibcontainerError> },
    #[error("cannot delete the container `{id}`: {said}")]
    Delete { id: String, said: String, source: Box<libcontainer::error::LibcontainerError> },
    #[error("cannot execute `{program}`: {why}")]
    Execute { program: String, why: String, not_found: bool },
    #[error("cannot enter the working directory `{}` of the container", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot enter the container: {step}")]
    Enter { step: String, source: std::io::Error },
}

impl Explain for RuntimeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Execute { not_found: true, .. } => {
                Some("is it in the image, and in its PATH? `gpurun run … IMAGE ls /bin` shows what there is".into())
            }
            Self::Sys(OOM_SCORE, source) if source.raw_os_error() == Some(libc::EACCES) => {
                Some("a score below gpurun's own takes CAP_SYS_RESOURCE; ask for a higher one".into())
            }
            // fork(2): the kernel's word for a full pids.max.
            Self::Enter { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => Some(
                "the container may have as many processes as its `--pids-limit` allows: `gpurun stats` shows both"
                    .into(),
            ),
            Self::Directory { .. } => {
                Some("make it in the image, or in what is mounted there; or name another with `-w DIR`".into())
            }
            _ => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Execute { not_found: true, .. } => EXIT_NOT_FOUND,
            Self::Execute { .. } => EXIT_CANNOT_EXECUTE,
            _ => crate::report::EXIT_GPURUN,
        }
    }
}

/// A container whose pid 1 waits to be executed, or has been.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// The master of its terminal.
    pub pty: Option<OwnedFd>,
    container: Box<ContainerHandle>,
    failures: File,
    words: Words,
    program: String,
    state_root: PathBuf,
    has_poststop: bool,
}

struct ContainerHandle(Container);

impl std::fmt::Debug for ContainerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Container")
    }
}

/// Everything that a container needs before its cgroup is there.
#[derive(Debug)]
pub struct Prepared<'a> {
    request: CreateRequest<'a>,
    inner: Inner,
    failures: File,
    executor: Executor,
    console: Option<Console>,
}

/// Creates the container; its process waits for [`Created::start`].
pub fn create(request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
    prepare(request)?.create()
}

/// The first half of [`create`], which makes nothing but files: a launch does it while it waits for the kernel to be ready for moves between
/// cgroups ([`crate::cgroup::Host::prime_moves`]).
pub fn prepare(request: CreateRequest<'_>) -> Result<Prepared<'_>, RuntimeError> {
    let threads = process::thread_count();
    if threads != 1 {
        return Err(RuntimeError::Threads(threads));
    }
    let inner = write_inner_spec(&request)?;
    let (failures, failure_end) = pipe()?;
    let executor = Executor::new(&request, &inner.args, failure_end)?;
    let console = match &request.stdio {
        Stdio::Pty { .. } => Some(Console::bind(request.state_root)?),
        Stdio::Fds { .. } => None,
    };
    Ok(Prepared { request, inner, failures, executor, console })
}

impl Prepared<'_> {
    /// The second half: processes.
    pub fn create(self) -> Result<Created, RuntimeError> {
        let Self { request, inner, failures, executor, console } = self;
        let before = process::children();
        // Mount points that libcontainer makes in the image's root must be open to the container's user.
        let umask = process::usual_umask();
        let (built, mut words) = capture(|| build(&request, &inner.dir, executor, console.as_ref()));
        nix::sys::stat::umask(umask);
        let container = match built {
            Ok(container) => container,
            Err(source) => {
                end_strays(&before);
                clear(request.state_root, request.id);
                return Err(create_error(failures, source, &words.take(), request.check, &inner.cwd));
            }
        };
        let pid = container.pid().map_or(0, |pid| pid.as_raw());
        finish(&request, container, inner.has_poststop, console, failures, words).inspect_err(|_| {
            // Its pid 1 waits for a start that will not come.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            end_strays(&before);
            clear(request.state_root, request.id);
        })
    }
}

/// Removes what libcontainer and this room have written. Nothing of it is worth an error: it lies under /run.
fn clear(state_root: &Path, id: &str) {
    for name in [id, "bundle"] {
        let _ = std::fs::remove_dir_all(state_root.join(name));
    }
    let _ = std::fs::remove_file(state_root.join(CONSOLE));
}

fn build(
    request: &CreateRequest<'_>,
    inner: &Path,
    executor: Executor,
    console: Option<&Console>,
) -> Result<Container, Box<libcontainer::error::LibcontainerError>> {
    let mut builder = ContainerBuilder::new(request.id.to_owned(), SyscallType::default())
        .with_root_path(request.state_root)
        .map_err(Box::new)?
        .with_console_socket(console.map(|console| console.path.clone()))
        .with_executor(executor)
        .validate_id()
        .map_err(Box::new)?;
    if let Stdio::Fds { stdin, stdout, stderr } = &request.stdio {
        let copy = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| Box::new(libcontainer::error::LibcontainerError::OtherIO(error)))
        };
        builder = builder.with_stdin(copy(stdin)?).with_stdout(copy(stdout)?).with_stderr(copy(stderr)?);
    }
    builder.as_init(inner).with_systemd(false).with_detach(true).build().map_err(Box::new)
}

fn finish(
    request: &CreateRequest<'_>,
    container: Container,
    has_poststop: bool,
    console: Option<Console>,
    failures: File,
    words: Words,
) -> Result<Created, RuntimeError> {
    let sys = |what: &'static str| move |error: std::io::Error| RuntimeError::Sys(what, error);
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    let pidfd = process::open_pidfd(pid).map_err(sys("open the container's process"))?;
    let no_start = || std::io::Error::other("its start time cannot be read");
    let start_time = process::start_time(pid).ok_or_else(no_start).map_err(sys("identify the container's process"))?;
    if let Some(score) = request.oom_score_adj {
        // From here, since pid 1 itself may be neither root nor allowed to open its own file by now.
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
        container: Box::new(ContainerHandle(container)),
        failures,
        words,
        program: request.check.to_owned(),
        state_root: request.state_root.to_path_buf(),
        has_poststop,
    })
}

impl Created {
    /// Lets pid 1 execute its program, and waits until it has. Hooks of the stage `poststart` have run then, too.
    pub fn start(&mut self) -> Result<(), RuntimeError> {
        let (started, mut words) = capture(|| self.container.0.start());
        if let Err(source) = started {
            return Err(RuntimeError::Start { said: said(&words.take()), source: Box::new(source) });
        }
        // The pipe ends without a word when the program is executed, or when pid 1 is killed: that is for the pidfd to tell.
        match read_failure(&mut self.failures) {
            Some(failure) => Err(failure.into_error(&self.program, &self.words.take())),
            None => Ok(()),
        }
    }

    /// Sends a signal to pid 1, and to no other process that may have got its number.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        process::signal(&self.pidfd, number)
    }

    /// Kills what still runs, lets `poststop` hooks run, and removes everything on disk. The cgroup is left to whoever made it.
    pub fn delete(mut self) -> Result<(), RuntimeError> {
        // libcontainer refuses, or not, by a race, what was killed a moment ago: wait for the end first.
        let _ = self.signal(libc::SIGKILL);
        process::wait_pidfd(&self.pidfd, END);
        let id = self.container.0.id().to_owned();
        if !self.has_poststop {
            // All that is left of libcontainer is a directory. Its own way to remove that takes 1.6 ms for a dozen readings of the mount table.
            clear(&self.state_root, &id);
            return Ok(());
        }
        let (deleted, mut words) = capture(|| self.container.0.delete(true));
        clear(&self.state_root, &id);
        deleted.map_err(|source| RuntimeError::Delete { id, said: said(&words.take()), source: Box::new(source) })
    }
}

/// How long a killed process may take to end: one in uninterruptible sleep needs the device that it waits for.
const END: std::time::Duration = std::time::Duration::from_secs(10);

/// The spec that libcontainer reads.
#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// The process's arguments.
    args: Vec<String>,
    cwd: PathBuf,
    has_poststop: bool,
}

/// The changes that libcontainer's bugs need, in a copy of the spec that it alone reads.
fn write_inner_spec(request: &CreateRequest<'_>) -> Result<Inner, RuntimeError> {
    let path = request.bundle.join("config.json");
    let io = |action: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| RuntimeError::Io { action, path, source }
    };
    let bytes = std::fs::read(&path).map_err(io("read", &path))?;
    let mut spec: Value =
        serde_json::from_slice(&bytes).map_err(|source| RuntimeError::Spec { path: path.clone(), source })?;
    let args = spec["process"]["args"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|arg| arg.as_str().map(str::to_owned))
        .collect();
    let cwd = spec["process"]["cwd"].as_str().unwrap_or("/").into();
    let has_poststop = spec["hooks"]["poststop"].as_array().is_some_and(|hooks| !hooks.is_empty());
    // libcontainer would only warn about it; the filter is loaded by our executor.
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("seccomp");
        linux.remove("resources");
    }
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("oomScoreAdj");
        if !request.no_new_privileges {
            process.remove("noNewPrivileges");
            if request.seccomp.is_some() {
                // Loading a filter needs it. The bounding set stays as asked, so that a hook that looks there is not misled.
                for set in ["effective", "permitted"] {
                    let held = process["capabilities"][set].as_array_mut();
                    if let Some(held) = held.filter(|held| !held.iter().any(|name| name == "CAP_SYS_ADMIN")) {
                        held.push("CAP_SYS_ADMIN".into());
                    }
                }
            }
        }
    }
    let dir = request.state_root.join("bundle");
    std::fs::create_dir_all(&dir).map_err(io("make the directory", &dir))?;
    let copy = dir.join("config.json");
    std::fs::write(&copy, spec.to_string()).map_err(io("write", &copy))?;
    Ok(Inner { dir, args, cwd, has_poststop })
}

fn pipe() -> Result<(File, OwnedFd), RuntimeError> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| RuntimeError::Sys("make a pipe", errno.into()))?;
    Ok((read.into(), write))
}

/// What the child wrote before it gave up; `None`: it has executed its program.
fn read_failure(pipe: &mut File) -> Option<Failure> {
    let mut bytes = Vec::new();
    pipe.take(4096).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The executor's own word is the best; else what libcontainer logged; else its error.
fn create_error(
    mut failures: File,
    source: Box<libcontainer::error::LibcontainerError>,
    words: &[String],
    program: &str,
    cwd: &Path,
) -> RuntimeError {
    if let Some(failure) = read_failure(&mut failures) {
        return failure.into_error(program, words);
    }
    if let Some(errno) = words.iter().find_map(|word| no_directory(word)) {
        return RuntimeError::Directory { path: cwd.to_path_buf(), source: errno.into() };
    }
    RuntimeError::Create { said: said(words), source }
}

/// The error of libcontainer's chdir, which it tells by its name: `failed to chdir (e: ENOENT)`.
fn no_directory(word: &str) -> Option<nix::Error> {
    let name = word.strip_prefix("failed to chdir")?;
    let known =
        [nix::Error::ENOENT, nix::Error::ENOTDIR, nix::Error::EACCES, nix::Error::ELOOP, nix::Error::ENAMETOOLONG];
    Some(known.into_iter().find(|errno| name.contains(&format!("{errno:?}"))).unwrap_or(nix::Error::EIO))
}

/// The first word is the closest to the cause. These frames only say it again, from the processes further out; alone they are kept.
fn said(words: &[String]) -> String {
    let frames =
        ["failed to initialize container process", "failed to run container process", "failed to wait for init ready"];
    let telling: Vec<&str> =
        words.iter().map(String::as_str).filter(|line| !frames.iter().any(|frame| line.starts_with(frame))).collect();
    match (telling.is_empty(), words.first()) {
        (false, _) => telling.join("; "),
        (true, Some(frame)) => frame.clone(),
        (true, None) => "the runtime gave up".to_owned(),
    }
}

/// After a failure the processes that libcontainer made are our children, dead, dying, or waiting for ever: those and no others.
fn end_strays(before: &[i32]) {
    for pid in process::children().into_iter().filter(|pid| !before.contains(pid)).map(nix::unistd::Pid::from_raw) {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }
}

const CONSOLE: &str = "console";

/// The socket on which libcontainer hands over the pty's master.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn bind(state_root: &Path) -> Result<Self, RuntimeError> {
        let path = &state_root.join(CONSOLE);
        let make = || -> std::io::Result<std::os::unix::net::UnixListener> {
            let _ = std::fs::remove_file(path);
            // By way of the directory's descriptor: a socket's address holds 107 bytes, and a state directory's path may be longer.
            let dir = File::open(state_root)?;
            let short = format!("/proc/self/fd/{}/{CONSOLE}", std::os::fd::AsRawFd::as_raw_fd(&dir));
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(short.as_str())?)?;
            listen(&fd, Backlog::new(1)?)?;
            Ok(fd.into())
        };
        let listener = make().map_err(|source| RuntimeError::Io {
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
