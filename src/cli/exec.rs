//! `gpurun exec`: another command in a running container, held as its pid 1 is.

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;

use super::detach::DetachKeys;
use super::session::take_signals;
use super::{Context, attach, print};
use crate::cgroup;
use crate::record::{Entry, OomRow, State};
use crate::report::Report;
use crate::request::{parse_env, parse_env_file};
use crate::rootfs::{self, users};
use crate::runtime::{self, ExecChild, ExecRequest, RuntimeError, Stdio};
use crate::spec::seccomp::Filter;
use crate::spec::{Capabilities, Rlimit};
use crate::supervise::oom::{Victim, lines};
use crate::sys::tty::{TerminalMode, window_size};
use crate::sys::{exe, process, pty};

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Leave it running and return
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; `KEY` alone passes your own on
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory (default: the container's)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User, and group if wanted (default: the container's)
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Keys that leave the command to itself
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// The container: name, id, or an unambiguous beginning of one
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub fn run(args: &ExecArgs, context: &Context) -> Result<u8, Report> {
    // A process of the container may look at ours from inside: it must find nothing that it can write to.
    exe::ensure_sealed()
        .map_err(|error| Report::new("cannot execute gpurun again from a sealed handle").with_cause(error))?;
    let entry = context.records()?.find(&args.container)?;
    let state = entry.state()?;
    let not_running = || {
        Report::new(format!("container `{}` is not running", entry.record.name))
            .with_hint(format!("start it with `gpurun start {}`", entry.record.name))
    };
    if state.paused {
        let name = &entry.record.name;
        return Err(Report::new(format!("container `{name}` is paused"))
            .with_hint(format!("let it go on with `gpurun resume {name}`")));
    }
    let (Some(pid), Some(start)) = (state.pid, state.pid_start) else { return Err(not_running()) };
    let target = process::open_pidfd(pid).map_err(|_| not_running())?;
    // The pid may be another process's by now: looked at after the pidfd is open, the start time decides.
    if process::start_time(pid) != Some(start) {
        return Err(not_running());
    }
    if args.tty && args.interactive && !args.detach {
        attach::need_terminal()?;
    }
    let detach = DetachKeys::parse(&args.detach_keys)?;
    let filter = filter(&entry)?;
    let mut request = request(args, &entry, &target, pid, filter.as_ref())?;
    request.stdio = stdio(args)?;
    let kills = oom_kills(&entry)?;
    let child = runtime::exec(&request).map_err(|error| no_directory(error, &entry.record.name))?;
    if args.detach {
        return Ok(0);
    }
    let code = relay(args, child, detach)?;
    if code == KILLED {
        tell_of_oom(&entry, &state, kills)?;
    }
    Ok(code)
}

/// A working directory that is not there, in words that name the container and a way out.
fn no_directory(error: RuntimeError, name: &str) -> Report {
    let RuntimeError::Directory { path, source } = error else { return error.into() };
    let path = path.display().to_string();
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    let word = if plain { path.clone() } else { format!("'{}'", path.replace('\'', r"'\''")) };
    match source.kind() {
        ErrorKind::NotFound => Report::new(format!("container `{name}` has no directory `{path}`"))
            .with_hint(format!("`gpurun exec {name} mkdir -p {word}` makes it; `-w DIR` names another")),
        ErrorKind::NotADirectory => Report::new(format!("`{path}` in container `{name}` is not a directory"))
            .with_hint("name another with `-w DIR`"),
        _ => Report::new(format!("cannot enter the directory `{path}` in container `{name}`"))
            .with_cause(source)
            .with_hint("name another with `-w DIR`"),
    }
}

/// The exit code of what was killed by SIGKILL, here or one process further down.
const KILLED: u8 = 128 + libc::SIGKILL as u8;
/// How long the supervisor, which reads the kernel's log, may take to know of a kill.
const OOM_PATIENCE: Duration = Duration::from_secs(3);

/// How many processes of the container the kernel has killed for memory.
fn oom_kills(entry: &Entry) -> Result<u64, Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    let path = crate::launch::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &entry.record.id);
    Ok(cgroup::Cgroup::open(&host, &path)?.and_then(|cgroup| cgroup.oom_kills()).unwrap_or(0))
}

/// Says what the container's own terminal is told, where the kernel killed a process for memory while this command ran. SIGKILL by itself is no
/// sign of that: the counter is.
fn tell_of_oom(entry: &Entry, before: &State, kills_before: u64) -> Result<(), Report> {
    let known = before.ooms.last().map_or(0, |oom| oom.at_us);
    let deadline = Instant::now() + OOM_PATIENCE;
    while oom_kills(entry)? > kills_before {
        let state = entry.state()?;
        let news: Vec<OomRow> = state.ooms.iter().filter(|oom| oom.at_us > known).cloned().collect();
        if !news.is_empty() {
            lines(&news, &Victim::new(&entry.record, &state))
                .iter()
                .for_each(|line| print::say(&format!("gpurun: {line}")));
            return Ok(());
        }
        if Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The filter that the container was started with; `None`: it is unconfined.
fn filter(entry: &Entry) -> Result<Option<Filter>, Report> {
    let path = entry.run_dir.join("seccomp.bpf");
    match std::fs::read(&path) {
        Ok(bytes) => Filter::from_bytes(&bytes)
            .map(Some)
            .ok_or_else(|| Report::new(format!("the seccomp filter `{}` is damaged", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Report::new(format!("cannot read `{}`", path.display())).with_cause(error)),
    }
}

/// What pid 1 was given, with what was asked for here on top.
fn request<'a>(
    args: &ExecArgs,
    entry: &Entry,
    target: &'a OwnedFd,
    pid: i32,
    filter: Option<&'a Filter>,
) -> Result<ExecRequest<'a>, Report> {
    let path = entry.run_dir.join("config.json");
    let spec = Spec::load(&path)
        .map_err(|error| Report::new(format!("cannot read `{}`", path.display())).with_cause(error))?;
    let damaged = || Report::new(format!("`{}` describes no process", path.display()));
    let process = spec.process().as_ref().ok_or_else(damaged)?;
    let mut env = process.env().clone().unwrap_or_default();
    for (name, value) in environment(args)? {
        env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
        env.push(format!("{name}={value}"));
    }
    if args.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let (mut uid, mut gid) = (process.user().uid(), process.user().gid());
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    if let Some(asked) = &args.user {
        let root = rootfs::open_root(Path::new(&format!("/proc/{pid}/root")))?;
        let user = users::lookup(&root, asked)?;
        (uid, gid, groups) = (user.uid, user.gid, user.groups);
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", user.home.display()));
    }
    let host = cgroup::Host::probe(Path::new("/"))?;
    let cgroup = cgroup::Cgroup::open(
        &host,
        &crate::launch::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &entry.record.id),
    )?
    .ok_or_else(|| Report::new(format!("the cgroup of container `{}` is gone", entry.record.name)))?;
    let asked = &entry.record.request;
    let rlimits = process.rlimits().clone().unwrap_or_default();
    Ok(ExecRequest {
        target,
        cgroup_procs: cgroup.procs_files(),
        args: args.command.clone(),
        env,
        cwd: args.workdir.as_deref().map_or_else(|| Ok(process.cwd().clone()), super::request::workdir)?,
        uid,
        gid,
        groups,
        capabilities: Capabilities::resolve(&asked.cap_add, &asked.cap_drop)?.0,
        rlimits: rlimits
            .iter()
            .map(|limit| Rlimit { name: limit.typ().to_string(), soft: limit.soft(), hard: limit.hard() })
            .collect(),
        no_new_privileges: asked.no_new_privileges,
        seccomp: filter,
        oom_score_adj: asked.oom_score_adj,
        stdio: Stdio::Pty { size: None },
    })
}

fn environment(args: &ExecArgs) -> Result<Vec<(String, String)>, Report> {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut all = Vec::new();
    for path in &args.env_file {
        all.extend(parse_env_file(&super::request::read_small_text(path, 1 << 20)?, lookup)?);
    }
    for text in &args.env {
        all.extend(parse_env(text, lookup)?);
    }
    Ok(all)
}

fn stdio(args: &ExecArgs) -> Result<Stdio, Report> {
    if args.tty {
        let size = window_size(std::io::stdout()).or_else(|| window_size(std::io::stdin()));
        return Ok(Stdio::Pty { size });
    }
    let failed = |error: std::io::Error| Report::new("cannot pass the standard streams on").with_cause(error);
    let null =
        || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from).map_err(failed);
    let pass = |stream: std::os::fd::BorrowedFd<'_>| stream.try_clone_to_owned().map_err(failed);
    if args.detach {
        return Ok(Stdio::Fds { stdin: null()?, stdout: null()?, stderr: null()? });
    }
    let stdin = if args.interactive { pass(std::io::stdin().as_fd())? } else { null()? };
    Ok(Stdio::Fds { stdin, stdout: pass(std::io::stdout().as_fd())?, stderr: pass(std::io::stderr().as_fd())? })
}

/// Passes keys and output between the person's terminal and the command's, signals too, until it ends.
fn relay(args: &ExecArgs, child: ExecChild, mut detach: DetachKeys) -> Result<u8, Report> {
    let signals = take_signals()?;
    let terminal = std::io::stdin().is_terminal() && args.interactive;
    let mode = (terminal && child.pty.is_some()).then(|| TerminalMode::raw(std::io::stdin()).ok()).flatten();
    let mut master = child.pty.map(std::fs::File::from);
    let mut typing = args.interactive;
    let failed = |errno: nix::Error| Report::new("cannot wait for the command").with_cause(errno);
    loop {
        let stdin = std::io::stdin();
        let mut fds =
            vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(master) = &master {
            fds.push(PollFd::new(master.as_fd(), PollFlags::POLLIN));
            if typing {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        let (ended, signalled) = (ready[0], ready[1]);
        if ready.get(2) == Some(&true) && !pass_output(&mut master) {
            master = None;
        }
        if ready.get(3) == Some(&true)
            && let Some(pty) = &mut master
        {
            let mut buffer = [0; 4096];
            let count = std::io::stdin().read(&mut buffer).unwrap_or(0);
            typing = count > 0;
            let (pass, left) =
                if mode.is_some() { detach.feed(&buffer[..count]) } else { (buffer[..count].to_vec(), false) };
            let _ = pty.write_all(&pass);
            if left {
                drop(mode);
                print::say("\ngpurun: left running");
                return Ok(0);
            }
        }
        while signalled && let Ok(Some(info)) = signals.read_signal() {
            match (info.ssi_signo as i32, &master) {
                (libc::SIGWINCH, Some(pty)) => {
                    if let Some((rows, columns)) = window_size(std::io::stdin()) {
                        pty::set_window_size(pty.as_fd(), rows, columns);
                    }
                }
                (libc::SIGWINCH, None) => {}
                (number, _) => drop(process::signal(&child.pidfd, number)),
            }
        }
        if ended {
            while pass_output(&mut master) {}
            drop(mode);
            return match waitpid(Pid::from_raw(child.pid), None).map_err(failed)? {
                WaitStatus::Exited(_, code) => Ok(code as u8),
                WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as u8),
                _ => Ok(0),
            };
        }
    }
}

/// Reads once from the command's terminal; `false`: it is closed.
fn pass_output(master: &mut Option<std::fs::File>) -> bool {
    let mut buffer = [0; 16 * 1024];
    match master.as_mut().map(|pty| pty.read(&mut buffer)) {
        Some(Ok(count)) if count > 0 => {
            let mut out = std::io::stdout().lock();
            out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_ok()
        }
        // A pty's master answers EIO when nobody has it open any more.
        _ => false,
    }
}
