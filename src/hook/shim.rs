//! `gpurun hook-shim`: runs one hook so that it can neither hang nor fail without a word.
//!
//! libcontainer starts the shim with the hook's environment and the container's state on stdin. The shim runs the hook in a process
//! group of its own, in the bundle as working directory (as runc does), with that state on stdin (a memory file: a hook that never
//! reads it blocks nobody), keeps the end of its stderr, and kills the whole group when the time is over, the hook failed, or whoever
//! waits for it is gone (a killed supervisor must leave no hook behind). One thread, no signals handled.

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

use super::report::{HookReport, Outcome};
use super::{Chosen, DEFAULT_TIMEOUT};
use crate::report::{EXIT_USAGE, Report, say};

/// The subcommand's name.
pub const SUBCOMMAND: &str = "hook-shim";
/// How much of a hook's stderr is kept: its end.
pub const KEPT_STDERR: usize = 64 << 10;
/// A container state larger than this is not one.
const MAX_STATE: u64 = 4 << 20;
/// Between two looks at a hook and at whoever waits for it.
const TICK: Duration = Duration::from_millis(5);

/// Everything the shim has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    pub name: String,
    pub stage: String,
    pub timeout: Duration,
    /// Where [`HookReport`] goes.
    pub report: Option<PathBuf>,
    pub path: PathBuf,
    /// With the program's own name first.
    pub args: Vec<OsString>,
}

/// The command line for a hook, with `gpurun` as its first word.
#[must_use]
pub fn arguments(hook: &Chosen, report: &Path) -> Vec<String> {
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

/// What [`arguments`] wrote, from the words after the subcommand's name.
#[must_use]
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Shim> {
    let mut words = words.into_iter();
    let mut text = || words.next()?.into_string().ok();
    let (name, stage, timeout) = (text()?, text()?, text()?.parse().ok()?);
    let (report, path) = (PathBuf::from(words.next()?), PathBuf::from(words.next()?));
    let mut args: Vec<OsString> = words.collect();
    if args.is_empty() {
        args.push(path.clone().into_os_string());
    }
    Some(Shim { name, stage, timeout: Duration::from_secs(timeout), report: Some(report), path, args })
}

/// The subcommand: words after `hook-shim` in, exit status out. Errors go to stderr, which libcontainer hands through.
#[must_use]
pub fn main(words: impl IntoIterator<Item = OsString>) -> u8 {
    let Some(shim) = parse(words) else {
        say(&format!("error: `gpurun {SUBCOMMAND}` is for gpurun's own use"));
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
    /// Runs the hook to its end, or to the end of its time, or of this process's parent.
    #[must_use]
    pub fn run(&self, state: &[u8]) -> HookReport {
        let (started, parent) = (Instant::now(), getppid());
        let mut stderr = Tail::default();
        let outcome = match self.spawn(state) {
            Err(error) => Outcome::CannotStart(error.to_string()),
            Ok((mut child, mut pipe)) => {
                let outcome = watch(&child, &mut pipe, &mut stderr, started + self.timeout, parent)
                    .unwrap_or_else(|| Outcome::TimedOut(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)));
                if outcome != Outcome::Exit(0) {
                    kill_group(&child);
                }
                // Reaped only now: until here the zombie kept the group's number from being given to somebody else.
                let _ = child.wait();
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
        // `command` holds the pipe's other end: as long as it lives, the end of the hook's stderr would never come.
        drop(command);
        Ok((child, reader))
    }

    /// Writes the report where something went wrong or was said; an error here must not hide the hook's.
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
            say(&format!("warning: what the hook `{}` said could not be kept in `{path}`: {error}", self.name));
        }
    }
}

/// The state's bundle, where it is a directory that this process sees (a createContainer hook does not).
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

/// Waits for the hook itself, without reaping it; a child of its that keeps stderr open keeps nobody waiting. `None`: the time is over.
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

/// Ends what the hook started: its process group, whose number is its pid (`process_group(0)`).
fn kill_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // ESRCH says that nobody is left.
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
    /// Takes what is there; false at the end of the stream.
    fn drain(&mut self, pipe: &mut io::PipeReader) -> bool {
        let mut buffer = [0; 16 << 10];
        // Not for ever: one that writes faster than it is read must not outrun its time.
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
        // Terminal control sequences of a hook have no business on a person's terminal.
        let clean: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        if self.cut { format!("[…]\n{clean}") } else { clean }
    }
}
