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
//! | HOME unset runs the image's NSS | `launch` always sets HOME |
//! | memory.swap.max = 0 is never written, controllers' errors are lost, no device program on v2 | the cgroup room writes and reads back |
//! | oomScoreAdj is written to the caller | taken out of what libcontainer reads, set in `executor` |
//! | errors say little | ERROR events of its tracing are captured and attached ([`capture_errors`]) |
//! | zombies after a failed create | reaped here |

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
use nix::sys::wait::{WaitPidFlag, waitpid};
use serde_json::Value;

pub use capture::{Captured, capture_errors};
pub use exec::{ExecChild, ExecRequest, exec};
use executor::{Executor, Failure};

use crate::report::{EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, Explain};
use crate::spec::seccomp::Filter;
use crate::sys::{process, pty};

/// The container's own pid 1 (src/init), as a file's bytes.
pub const INIT_PAYLOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

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
    Create { said: String, source: libcontainer::error::LibcontainerError },
    #[error("cannot start the container")]
    Start(#[source] libcontainer::error::LibcontainerError),
    #[error("cannot execute `{program}`: {why}")]
    Execute { program: String, why: String, not_found: bool },
    #[error("cannot enter the container: {step}")]
    Enter { step: String, source: std::io::Error },
}

impl Explain for RuntimeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Execute { not_found: true, .. } => {
                Some("is it in the image, and in its PATH? `gpurun run … IMAGE ls /bin` shows what there is".into())
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
    program: String,
}

struct ContainerHandle(Container);

impl std::fmt::Debug for ContainerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Container")
    }
}

/// Creates the container; its process waits for [`Created::start`].
pub fn create(request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
    let threads = process::thread_count();
    if threads != 1 {
        return Err(RuntimeError::Threads(threads));
    }
    let inner = request.state_root.join("bundle");
    let args = write_inner_spec(&request, &inner)?;
    let (failures, failure_end) = pipe()?;
    let executor = Executor::new(&request, args, failure_end)?;
    let check = request.check.to_owned();
    let console = match &request.stdio {
        Stdio::Pty { .. } => Some(Console::bind(&request.state_root.join("console"))?),
        Stdio::Fds { .. } => None,
    };
    let captured = Captured::begin();
    let built = build(&request, &inner, executor, console.as_ref());
    let said = captured.end();
    let container = match built {
        Ok(container) => container,
        Err(source) => {
            reap_strays();
            return Err(create_error(failures, source, &said, &check));
        }
    };
    let size = match request.stdio {
        Stdio::Pty { size } => size,
        Stdio::Fds { .. } => None,
    };
    finish(container, console, size, failures, check)
}

fn build(
    request: &CreateRequest<'_>,
    inner: &Path,
    executor: Executor,
    console: Option<&Console>,
) -> Result<Container, libcontainer::error::LibcontainerError> {
    let mut builder = ContainerBuilder::new(request.id.to_owned(), SyscallType::default())
        .with_root_path(request.state_root)?
        .with_console_socket(console.map(|console| console.path.clone()))
        .with_executor(executor)
        .validate_id()?;
    if let Stdio::Fds { stdin, stdout, stderr } = &request.stdio {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(libcontainer::error::LibcontainerError::OtherIO);
        builder = builder.with_stdin(copy(stdin)?).with_stdout(copy(stdout)?).with_stderr(copy(stderr)?);
    }
    builder.as_init(inner).with_systemd(false).with_detach(true).build()
}

fn finish(
    container: Container,
    console: Option<Console>,
    size: Option<(u16, u16)>,
    failures: File,
    program: String,
) -> Result<Created, RuntimeError> {
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    let sys = |what: &'static str| move |error: std::io::Error| RuntimeError::Sys(what, error);
    let pidfd = process::open_pidfd(pid).map_err(sys("open the container's process"))?;
    let start_time = process::start_time(pid).unwrap_or(0);
    let pty = console.map(Console::receive).transpose()?;
    if let (Some(master), Some((rows, columns))) = (&pty, size) {
        pty::set_window_size(master.as_fd(), rows, columns);
    }
    Ok(Created { pid, pidfd, start_time, pty, container: Box::new(ContainerHandle(container)), failures, program })
}

impl Created {
    /// Lets pid 1 execute its program, and waits until it has.
    pub fn start(&mut self) -> Result<(), RuntimeError> {
        self.container.0.start().map_err(RuntimeError::Start)?;
        match read_failure(&mut self.failures) {
            Some(failure) => Err(failure.into_error(&self.program)),
            None => Ok(()),
        }
    }
}

/// The changes that libcontainer's bugs need, in a copy of the spec that it alone reads; answers with the process's arguments.
fn write_inner_spec(request: &CreateRequest<'_>, inner: &Path) -> Result<Vec<String>, RuntimeError> {
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
    // libcontainer would only warn about it; the filter is loaded by our executor.
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("seccomp");
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
    std::fs::create_dir_all(inner).map_err(io("make the directory", inner))?;
    let copy = inner.join("config.json");
    std::fs::write(&copy, spec.to_string()).map_err(io("write", &copy))?;
    Ok(args)
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
    source: libcontainer::error::LibcontainerError,
    said: &[String],
    program: &str,
) -> RuntimeError {
    if let Some(failure) = read_failure(&mut failures) {
        return failure.into_error(program);
    }
    let mut said: Vec<&str> = said.iter().map(String::as_str).collect();
    said.dedup();
    let said = if said.is_empty() { "the runtime gave up".to_owned() } else { said.join("; ") };
    RuntimeError::Create { said, source }
}

/// After a failed create its helper processes are our children, and dead or dying: their exit statuses are of no interest.
fn reap_strays() {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(nix::sys::wait::WaitStatus::StillAlive) => {
                if std::time::Instant::now() > deadline {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Ok(_) => {}
        }
    }
}

/// The socket on which libcontainer hands over the pty's master.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn bind(path: &Path) -> Result<Self, RuntimeError> {
        let make = || -> std::io::Result<std::os::unix::net::UnixListener> {
            let _ = std::fs::remove_file(path);
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
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
