//! `gpurun hook-shim`: runs one hook so that it can neither hang nor fail silently.
//!
//! libcontainer starts the shim with the hook's environment and the container's state on stdin. The shim runs the hook
//! in its own process group, with the bundle as working directory (as runc does) and the state on stdin. The state is
//! in a memory file, so that a hook that never reads it blocks no writer. The shim keeps the end of the hook's stderr.
//! It kills the hook and everything that the hook has started if the time limit passes, the hook fails, or the shim's
//! parent ends: a killed supervisor must leave no hook behind. A process that a successful hook leaves running stays, as
//! with other runtimes. The shim has one thread and handles no signals.

use std::ffi::OsString;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};

use super::report::{self, HookReport, Outcome, Running};
use super::{Chosen, DEFAULT_TIMEOUT};
use crate::report::{EXIT_USAGE, Report, say};

/// The subcommand's name.
pub(crate) const SUBCOMMAND: &str = "hook-shim";
/// How many bytes of the end of a hook's stderr are kept.
pub(crate) const KEPT_STDERR: usize = 64 << 10;
/// Upper limit of a hook's `timeout`, which may be any number. A longer one has no effect in practice, and would
/// overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Larger inputs are not a container state.
const MAX_STATE: u64 = 4 << 20;
/// Interval between two checks of the hook and of the shim's parent.
const TICK: Duration = Duration::from_millis(5);

/// How long the processes of a failed hook may take to end after they are killed.
const END: Duration = Duration::from_secs(2);

/// The parameters of the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shim {
    pub name: String,
    pub stage: String,
    pub timeout: Duration,
    /// Destination of the [`HookReport`].
    pub report: Option<PathBuf>,
    pub path: PathBuf,
    /// The argument vector, including the program's own name.
    pub args: Vec<OsString>,
}

/// Returns the command line for a hook, starting with `gpurun`.
#[must_use]
pub(crate) fn arguments(hook: &Chosen, report: &Path) -> Vec<String> {
    let timeout = hook.command.timeout.unwrap_or(DEFAULT_TIMEOUT.as_secs());
    let mut line = vec![
        "gpurun".to_owned(),
        SUBCOMMAND.to_owned(),
        hook.name.clone(),
        hook.stage.key().to_owned(),
        timeout.to_string(),
        report.display().to_string(),
        hook.command.path.display().to_string(),
    ];
    line.extend(hook.command.args.iter().cloned());
    line
}

/// Parses the command line of [`arguments`], from the arguments after the subcommand.
#[must_use]
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Option<Shim> {
    let mut argv = argv.into_iter();
    let mut text = || argv.next()?.into_string().ok();
    let (name, stage, timeout) = (text()?, text()?, text()?.parse().ok()?);
    let (report, path) = (PathBuf::from(argv.next()?), PathBuf::from(argv.next()?));
    let mut args: Vec<OsString> = argv.collect();
    if args.is_empty() {
        args.push(path.clone().into_os_string());
    }
    let timeout = Duration::from_secs(timeout).min(LONGEST);
    Some(Shim { name, stage, timeout, report: Some(report), path, args })
}

/// The subcommand. Takes the arguments after `hook-shim`, and returns the exit status. Errors go to stderr, which
/// libcontainer passes on.
#[must_use]
pub(crate) fn main(argv: impl IntoIterator<Item = OsString>) -> u8 {
    // libcontainer closes no descriptors before it starts a hook. The hook must not inherit them.
    let _ = crate::sys::process::close_on_exec_from(3);
    crate::sys::process::default_signals();
    crate::sys::process::ignore_signal(libc::SIGPIPE);
    // Processes that leave the hook's process group become children of the shim when their parent ends.
    let _ = crate::sys::process::adopt_orphans();
    let Some(shim) = parse(argv) else {
        say(&format!("error: `gpurun {SUBCOMMAND}` is an internal command of gpurun"));
        return EXIT_USAGE;
    };
    let mut state = Vec::new();
    if let Err(error) = io::stdin().lock().take(MAX_STATE).read_to_end(&mut state) {
        let what = format!("cannot read the container's state for the hook `{}`", shim.name);
        say(&Report::new(what).with_cause(error).to_string());
        return crate::report::EXIT_GPURUN;
    }
    let report = shim.run(&state);
    let code = exit_code(&report.outcome);
    shim.keep(&report);
    if let Some(failure) = report.failure() {
        say(&Report::from(failure).to_string());
    }
    code
}

fn exit_code(outcome: &Outcome) -> u8 {
    let code = match outcome {
        Outcome::Exit(code) => *code,
        Outcome::Signal(number) => 128 + number,
        Outcome::TimedOut(_) => 124,
        Outcome::Abandoned => 128 + Signal::SIGKILL as i32,
        Outcome::CannotStart(_) => 127,
    };
    u8::try_from(code).unwrap_or(1)
}

impl Shim {
    /// Runs the hook until it ends, its time limit passes, or this process's parent ends.
    #[must_use]
    pub(crate) fn run(&self, state: &[u8]) -> HookReport {
        let (started, parent) = (Instant::now(), getppid());
        let mut stderr = Tail::default();
        let _running = self.announce();
        let outcome = match self.spawn(state) {
            Err(error) => Outcome::CannotStart(error.to_string()),
            Ok((mut child, mut pipe)) => {
                let outcome = watch(&child, &mut pipe, &mut stderr, started + self.timeout, parent)
                    .unwrap_or_else(|| Outcome::TimedOut(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)));
                if outcome != Outcome::Exit(0) {
                    kill_group(&child);
                }
                // Reap the hook only now. Until here, the zombie kept its process group number from being reused.
                let _ = child.wait();
                if outcome != Outcome::Exit(0) {
                    crate::sys::process::kill_children(END);
                }
                stderr.drain(&mut pipe);
                outcome
            }
        };
        HookReport {
            hook: self.name.clone(),
            stage: self.stage.clone(),
            path: self.path.clone(),
            outcome,
            stderr: stderr.into_text(),
        }
    }

    fn spawn(&self, state: &[u8]) -> io::Result<(Child, io::PipeReader)> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut command = Process::new(&self.path);
        if let Some((first, rest)) = self.args.split_first() {
            command.arg0(first).args(rest);
        }
        if let Some(bundle) = bundle(state) {
            command.current_dir(bundle);
        }
        command.stdin(memory_file(state)?).stdout(Stdio::null()).stderr(writer).process_group(0);
        let child = command.spawn()?;
        // `command` holds the other end of the pipe. While it exists, the hook's stderr never reaches its end.
        drop(command);
        Ok((child, reader))
    }

    /// Tells a waiting command which hook is running. A hook of the container's own namespaces may be unable to reach
    /// the directory, and then the command has no notice to print.
    fn announce(&self) -> Option<Announced> {
        let path = report::running_file(self.report.as_ref()?);
        let running = Running {
            hook: self.name.clone(),
            stage: self.stage.clone(),
            path: self.path.clone(),
            timeout: self.timeout.as_secs(),
        };
        crate::durable::write_atomic_volatile(&path, &serde_json::to_vec(&running).ok()?).ok()?;
        Some(Announced(path))
    }

    /// Writes the report if the hook failed or wrote to stderr. An error here must not hide the hook's.
    pub(super) fn keep(&self, report: &HookReport) {
        let Some(path) = &self.report else { return };
        if report.outcome == Outcome::Exit(0) && report.stderr.is_empty() {
            return;
        }
        let written = serde_json::to_vec(report)
            .map_err(io::Error::from)
            .and_then(|bytes| crate::durable::write_atomic_volatile(path, &bytes));
        if let Err(error) = written {
            let path = path.display();
            say(&format!("warning: cannot store the output of the hook `{}` in `{path}`: {error}", self.name));
        }
    }
}

/// The file that names the running hook. It exists as long as this value.
struct Announced(PathBuf);

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the bundle of the state, if it is a directory that is visible to this process. To a createContainer hook it
/// is not.
fn bundle(state: &[u8]) -> Option<PathBuf> {
    #[derive(serde::Deserialize)]
    struct State {
        bundle: PathBuf,
    }
    let State { bundle } = serde_json::from_slice(state).ok()?;
    bundle.is_dir().then_some(bundle)
}

fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create(c"container-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Waits for the hook itself, without reaping it. A child of the hook that keeps stderr open does not delay the return.
/// `None`: the time limit passed.
fn watch(child: &Child, pipe: &mut io::PipeReader, stderr: &mut Tail, end: Instant, parent: Pid) -> Option<Outcome> {
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
    loop {
        let open = stderr.drain(pipe);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::Exited(_, code)) => return Some(Outcome::Exit(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(Outcome::Signal(signal as i32)),
            _ => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        if getppid() != parent {
            return Some(Outcome::Abandoned);
        }
        let wait = left.min(TICK);
        if open {
            let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
        } else {
            std::thread::sleep(wait);
        }
    }
}

/// Kills the hook's process group, whose number is the hook's pid (`process_group(0)`).
fn kill_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // ESRCH means that the group is empty.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// The end of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    /// Reads the available data. Returns false at the end of the stream.
    fn drain(&mut self, pipe: &mut io::PipeReader) -> bool {
        let mut buffer = [0; 16 << 10];
        // The number of reads is limited, so that a hook that writes faster than the shim reads cannot evade its time
        // limit.
        for _ in 0..64 {
            match pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * KEPT_STDERR {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        if let Some(over) = self.bytes.len().checked_sub(KEPT_STDERR).filter(|over| *over > 0) {
            self.bytes.drain(..over);
            self.cut = true;
        }
    }

    fn into_text(mut self) -> String {
        self.shorten();
        let text = String::from_utf8_lossy(&self.bytes);
        // Remove the hook's terminal control sequences, because the text is printed to the caller's terminal.
        let clean: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        if self.cut { format!("[…]\n{clean}") } else { clean }
    }
}
