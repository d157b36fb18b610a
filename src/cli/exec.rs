//! `gpurun exec`: runs another command in a running container, under the same restrictions as its pid 1.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::detach::DetachKeys;
use super::relay::{self, Ends, Outcome, Relay};
use super::session::take_signals;
use super::{Context, attach, print};
use crate::cgroup;
use crate::launch;
use crate::record::{Entry, OomRow, State};
use crate::report::Report;
use crate::request::{Seccomp, UserSpec, parse_env, parse_env_file, parse_workdir};
use crate::rootfs::{self, users};
use crate::runtime::{self, ExecRequest, RuntimeError, Stdio};
use crate::spec::Process;
use crate::spec::seccomp::Filter;
use crate::supervise::oom::{Victim, lines};
use crate::sys;
use crate::sys::tty::window_size;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Run the command in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal for the command
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; `KEY` alone passes on the caller's value, and `'KEY*'` those of all matching names
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one `KEY=VALUE` per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside the container (default: the container's)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User, and optionally group (default: the container's)
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Grant the command all capabilities; the container's device and seccomp filters stay
    #[arg(long)]
    privileged: bool,
    /// Keys that detach from the command and leave it running
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// Name or ID of the container; the beginning is enough where it is unambiguous
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Command and its arguments; everything after CONTAINER belongs to it
    #[arg(required = true)]
    command: Vec<String>,
}

pub(super) fn run(args: &ExecArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    super::step::check_exec(&entry)?;
    let state = entry.state()?;
    let not_running = || {
        Report::new(format!("container `{}` is not running", entry.record.name))
            .with_hint(format!("start it with `gpurun start {}`", entry.record.name))
    };
    if state.paused {
        let name = &entry.record.name;
        return Err(Report::new(format!("container `{name}` is paused"))
            .with_hint(format!("resume it with `gpurun resume {name}`")));
    }
    let (Some(pid), Some(start)) = (state.pid, state.pid_start) else { return Err(not_running()) };
    let target = sys::process::open_pidfd(pid).map_err(|_| not_running())?;
    // The pid may have been reused. The pidfd is open now, so a matching start time proves that it refers to the right
    // process.
    if sys::process::start_time(pid) != Some(start) {
        return Err(not_running());
    }
    if args.tty && args.interactive && !args.detach {
        attach::need_terminal()?;
    }
    let detach = DetachKeys::parse(&args.detach_keys)?;
    let process = process(args, &entry, pid)?;
    let cgroup_procs = cgroup_procs(&entry)?;
    let failed = |error: std::io::Error| Report::new("cannot create the command's streams").with_cause(error);
    let (stdio, ends) = match (args.tty, args.detach) {
        (true, _) => {
            let size = window_size(std::io::stdout()).or_else(|| window_size(std::io::stdin()));
            (Stdio::Pty { size }, Ends::default())
        }
        (false, true) => (relay::nothing().map_err(failed)?, Ends::default()),
        (false, false) => relay::pipes(args.interactive).map_err(failed)?,
    };
    let request = ExecRequest { target: &target, cgroup_procs, process, stdio };
    let kills = oom_kills(&entry)?;
    let signals = take_signals()?;
    let child = runtime::exec(&request).map_err(|error| no_directory(error, &entry.record.name))?;
    // From here on, only the command holds its ends of the streams, so that this process sees when it closes one.
    drop(request);
    if args.detach {
        return relay::drain_on(&child.pty.into_iter().collect::<Vec<_>>()).map(|()| 0);
    }
    let mut relay = Relay::new(child, ends, args.interactive, signals, detach).map_err(failed)?;
    let outcome = relay.run()?;
    // A background process of the command may keep writing, and a command that was detached from keeps its terminal.
    relay::drain_on(&relay.leave())?;
    match outcome {
        Outcome::Detached => {
            print::say("\ngpurun: left running");
            Ok(0)
        }
        Outcome::Exited(code) => {
            if code == KILLED {
                report_oom(&entry, &state, kills)?;
            }
            Ok(code)
        }
    }
}

/// Converts the error for a missing working directory to a report with the container's name and a hint.
fn no_directory(error: RuntimeError, name: &str) -> Report {
    let RuntimeError::Directory { path, source } = error else { return error.into() };
    let path = path.display().to_string();
    let quoted = print::quoted(&path);
    match source.kind() {
        ErrorKind::NotFound => Report::new(format!("container `{name}` has no directory `{path}`")).with_hint(format!(
            "create it with `gpurun exec -w / {name} mkdir -p {quoted}`, or choose another directory with `-w DIR`"
        )),
        ErrorKind::NotADirectory => Report::new(format!("`{path}` in container `{name}` is not a directory"))
            .with_hint("choose another directory with `-w DIR`"),
        _ => Report::new(format!("cannot enter the directory `{path}` in container `{name}`"))
            .with_cause(source)
            .with_hint("choose another directory with `-w DIR`"),
    }
}

/// The exit code of a command that was killed by SIGKILL, or that passes on the exit code of such a child.
const KILLED: u8 = 128 + libc::SIGKILL as u8;
/// Time limit for the supervisor to learn of an OOM kill from the kernel's log.
const OOM_PATIENCE: Duration = Duration::from_secs(3);

/// Returns how many processes of the container the OOM killer has killed.
fn oom_kills(entry: &Entry) -> Result<u64, Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    Ok(cgroup::Cgroup::open(&host, &entry.record.cgroup)?.and_then(|cgroup| cgroup.oom_kills()).unwrap_or(0))
}

/// Prints the OOM message that the container's own terminal would show, if the OOM killer was active while this command
/// ran. The counter shows this reliably; SIGKILL alone does not.
fn report_oom(entry: &Entry, before: &State, kills_before: u64) -> Result<(), Report> {
    let known = before.ooms.last().map_or(0, |oom| oom.at_us);
    let deadline = Instant::now() + OOM_PATIENCE;
    while oom_kills(entry)? > kills_before {
        let state = entry.state()?;
        let news: Vec<OomRow> = state.ooms.iter().filter(|oom| oom.at_us > known).cloned().collect();
        if !news.is_empty() {
            lines(&news, &Victim::new(&entry.record)).iter().for_each(|line| print::say(&format!("gpurun: {line}")));
            return Ok(());
        }
        if Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns the seccomp filter with which the container was started, or `None` if its record says that it has none. A
/// missing or damaged filter is an error, because without it the command could do things that the container must not
/// do.
fn filter(entry: &Entry) -> Result<Option<Filter>, Report> {
    if entry.record.request.seccomp == Seccomp::Unconfined {
        return Ok(None);
    }
    let path = entry.run_dir.join("seccomp.bpf");
    let name = &entry.record.name;
    let refused = |report: Report| report.with_hint(format!("restart the container: `gpurun restart {name}`"));
    match std::fs::read(&path).map(|bytes| Filter::from_bytes(&bytes)) {
        Ok(Some(filter)) => Ok(Some(filter)),
        Ok(None) => Err(refused(Report::new(format!(
            "cannot load the seccomp filter of container `{name}`: `{}` is damaged",
            path.display()
        )))),
        Err(error) => Err(refused(
            Report::new(format!("cannot read the seccomp filter `{}` of container `{name}`", path.display()))
                .with_cause(error),
        )),
    }
}

/// Returns the groups that the container's processes have regardless of their user: `--group-add` and the groups of the
/// GPU devices.
fn added_groups(entry: &Entry, root: &OwnedFd) -> Result<Vec<u32>, Report> {
    let path = entry.run_dir.join(launch::ADDED_GROUPS);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Report::new(format!("cannot read `{}`", path.display())).with_cause(error)),
        // The container was started by an earlier version of gpurun.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let added = entry.record.request.group_add.iter();
            added.map(|group| users::group(root, group).map_err(Report::from)).collect()
        }
        Err(error) => Err(Report::new(format!("cannot read `{}`", path.display())).with_cause(error)),
    }
}

/// Returns the process to run: PID 1's restrictions, and the flags of this command. The bundle says what PID 1 has,
/// also if a supervisor of another release has started it.
fn process(args: &ExecArgs, entry: &Entry, pid: i32) -> Result<Process, Report> {
    let path = entry.run_dir.join("config.json");
    let failed = |error: std::io::Error| Report::new(format!("cannot read `{}`", path.display())).with_cause(error);
    let spec = std::fs::read(&path).map_err(failed)?;
    let mut process = Process::of_spec(&spec, filter(entry)?).map_err(|error| failed(error.into()))?;
    process.args.clone_from(&args.command);
    for (name, value) in environment(args)? {
        process.env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
        process.env.push(format!("{name}={value}"));
    }
    if args.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
        process.env.push("TERM=xterm".into());
    }
    if args.privileged {
        process.capabilities = launch::own_capabilities();
    }
    if let Some(user) = &args.user {
        let root = rootfs::open_root(Path::new(&format!("/proc/{pid}/root")))?;
        let user = users::lookup(&root, &UserSpec::of(user))?;
        (process.uid, process.gid, process.groups) = (user.uid, user.gid, user.groups);
        for group in added_groups(entry, &root)? {
            if group != process.gid && !process.groups.contains(&group) {
                process.groups.push(group);
            }
        }
        process.env.retain(|entry| !entry.starts_with("HOME="));
        process.env.push(format!("HOME={}", user.home.display()));
    }
    if let Some(dir) = &args.workdir {
        process.cwd = parse_workdir(dir)?;
    }
    Ok(process)
}

/// Returns the files through which a process enters the container's cgroup.
fn cgroup_procs(entry: &Entry) -> Result<Vec<PathBuf>, Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    let cgroup = cgroup::Cgroup::open(&host, &entry.record.cgroup)?;
    let gone = || Report::new(format!("the cgroup of container `{}` does not exist", entry.record.name));
    Ok(cgroup.ok_or_else(gone)?.entry_files())
}

fn environment(args: &ExecArgs) -> Result<Vec<(String, String)>, Report> {
    let caller = super::resources::caller_env();
    let mut all = Vec::new();
    for path in &args.env_file {
        all.extend(parse_env_file(&super::request::read_small_text(path, 1 << 20)?, &caller)?);
    }
    for text in &args.env {
        all.extend(parse_env(text, &caller)?);
    }
    Ok(all)
}
