//! Commands for existing containers: start, restart, stop, kill, rm, rename, wait.
//!
//! Each command takes several names, processes all of them even after an error, prints the names that succeeded, and
//! exits with the first error.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signalfd::SignalFd;

use super::attach::{self, Interrupt, connect};
use super::chosen::ChosenFlags;
use super::detach::DetachKeys;
use super::launching::Launch;
use super::resources::seconds;
use super::session::{Event, Keys, Session, attachment, no_signals, pending, take_signals};
use super::waiting::Waiting;
use super::{Context, print};
use crate::control::{Connection, FromSupervisor, ToSupervisor};
use crate::gpu::queue;
use crate::launch::{self, Spawned};
use crate::names::ContainerName;
use crate::record::{Entry, Found, HealthStatus, Phase, RecordError, Records, State, Unreadable, history, short};
use crate::report::Report;
use crate::request::{IpcMode, MountRequest, MountSource, parse_signal};
use crate::supervise::diagnostics;

const KEYS: &str = "ctrl-p,ctrl-q";

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Attach to the container's output, and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Forward signals to the container; `false` leaves the container running
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that detach from the container and leave it running
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = KEYS)]
    detach_keys: String,
    /// Start all containers that do not run
    #[arg(long, conflicts_with_all = ["containers", "attach", "interactive"])]
    all: bool,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RestartArgs {
    /// Seconds between the stop signal and SIGKILL (default: the container's)
    #[arg(short, long, alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    time: Option<u64>,
    /// Signal to send instead of the container's stop signal
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Restart all containers, or with --running, those that run
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    /// Restart all running containers
    #[arg(long, conflicts_with = "containers")]
    running: bool,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "running", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Seconds between the stop signal and SIGKILL (default: the container's)
    #[arg(short, long, alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    time: Option<u64>,
    /// Signal to send instead of the container's stop signal
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Stop all running containers
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Signal to send, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", allow_hyphen_values = true)]
    signal: String,
    /// Send the signal to all running containers
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Kill a running container first
    #[arg(short, long)]
    force: bool,
    /// Accepted for compatibility: the container's anonymous volumes are always removed
    #[arg(short, long)]
    volumes: bool,
    /// First remove the containers that use the network, PID or IPC namespace or the volumes of another one
    #[arg(long)]
    depend: bool,
    /// Remove all containers; with --force, also the running ones
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    /// With --force, stop a running container gracefully: seconds between the stop signal and SIGKILL
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    time: Option<u64>,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RenameArgs {
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// New name of the container
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait for this state instead of the end, and print -1 for a container that runs
    #[arg(long, value_name = "STATE", default_value = "stopped", hide_default_value = true)]
    condition: Condition,
    /// Print -1 for a container that does not exist
    #[arg(long)]
    ignore: bool,
    /// Accepted for compatibility with podman: a wait needs no interval
    #[arg(short, long, hide = true, value_name = "INTERVAL")]
    interval: Option<String>,
    /// Names or IDs of containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// A state that `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Condition {
    #[value(aliases = ["exited", "not-running"])]
    Stopped,
    Running,
    Paused,
    #[value(alias = "next-exit")]
    NextExit,
    Removed,
    Healthy,
    Unhealthy,
}

pub(super) fn start(args: &StartArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    if args.attach || args.interactive {
        let [container] = &args.containers[..] else {
            return Err(Report::usage("only one container can be started with `--attach` or `--interactive`")
                .with_hint("start the others with `gpurun start NAME`"));
        };
        return start_attached(args, &records.find(container)?, context);
    }
    let idle = args.all.then(|| ids(&records, false)).transpose()?;
    let names = args.chosen.names(&args.containers, idle, &records, context)?;
    let mut all = records.snapshot()?;
    for_each(&names, |name| start_one(&all.find(name)?, context))
}

fn start_attached(args: &StartArgs, entry: &Entry, context: &Context) -> Result<u8, Report> {
    let tty = entry.record.request.tty;
    let keys = if args.interactive && entry.record.request.interactive { Keys::Typed { tty } } else { Keys::Ignored };
    if keys == (Keys::Typed { tty: true }) {
        attach::need_terminal()?;
    }
    let signals = take_signals()?;
    let detach = DetachKeys::parse(&args.detach_keys)?;
    let first = attachment(keys, tty);
    let (spawned, launch) = spawn(entry, context, &first, &signals)?;
    let mut session = Session::new(spawned, signals, keys, detach);
    launch.wait_running(&mut session)?;
    session.begin_keys();
    attach::relay(&mut session, Interrupt::of(tty, args.sig_proxy))
}

/// Starts a container. A running container is left unchanged, as in docker.
pub(super) fn start_one(entry: &Entry, context: &Context) -> Result<(), Report> {
    start_by(entry, context, true)
}

/// Does the same. `cancels` is whether ctrl-c cancels the start.
fn start_by(entry: &Entry, context: &Context, cancels: bool) -> Result<(), Report> {
    // A supervisor that is still cleaning up does not mean that the container runs.
    let deadline = Instant::now() + PATIENCE;
    while entry.supervisor()?.is_some() {
        if entry.state_shown()?.phase != Phase::Exited || Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    let signals = take_signals()?;
    let (spawned, launch) = spawn(entry, context, &[], &signals)?;
    let signals = if cancels { signals } else { no_signals()? };
    let mut session = Session::new(spawned, signals, Keys::Ignored, DetachKeys::parse("")?);
    launch.wait_running(&mut session).map(drop)
}

/// Waits for the container's GPUs if it is to wait, and starts its supervisor.
fn spawn<'a>(
    entry: &Entry,
    context: &'a Context,
    first: &'a [ToSupervisor],
    signals: &SignalFd,
) -> Result<(Spawned, Launch<'a>), Report> {
    super::step::check_start(entry)?;
    // The records were cleaned up when this command began.
    let records = Records::open(&context.root, &context.run_dir)?;
    let launching = {
        // Without this lock, another command could remove the directory before `launching` is held.
        let _lock = records.lock()?;
        std::fs::create_dir_all(&entry.run_dir)
            .map_err(|error| Report::new(format!("cannot create `{}`", entry.run_dir.display())).with_cause(error))?;
        entry.launching()?
    };
    let mut launch = Launch::new(context, records, entry.clone(), first, false);
    Ok((launch.begin(launching, signals)?, launch))
}

pub(super) fn restart(args: &RestartArgs, context: &Context) -> Result<u8, Report> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    let records = context.records()?;
    let every = match (args.running, args.all) {
        (true, _) => Some(running(&records)?),
        (false, true) => Some(records.list()?.into_iter().map(|entry| entry.record.id).collect()),
        _ => None,
    };
    let names = args.chosen.names(&args.containers, every, &records, context)?;
    let mut all = records.snapshot()?;
    // A stop and its start belong together: ctrl-c takes effect after them.
    let signals = take_signals()?;
    let mut interrupted = None;
    for_each(&names, |name| {
        let entry = all.find_whole(name)?;
        interrupted = interrupted.or_else(|| pending(&signals));
        if let Some(signal) = interrupted {
            return Err(Report::new(format!("container `{name}` is not restarted: the command was interrupted"))
                .with_exit_code(128 + signal as u8));
        }
        if entry.supervisor()?.is_some() {
            // Do not stop a container that cannot be started again.
            launch::check_restart(&context.root, &entry, &entry.state()?).map_err(|report| {
                let name = &entry.record.name;
                report.under(format!("cannot restart container `{name}`, which is left running"))
            })?;
            stop_by(&entry, args.time, signal)?;
        }
        start_by(&entry, context, false)
    })
    .map(|code| interrupted.or_else(|| pending(&signals)).map_or(code, |signal| 128 + signal as u8))
}

pub(super) fn stop(args: &StopArgs, context: &Context) -> Result<u8, Report> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    let records = context.records()?;
    let every = match args.all {
        // Those that wait come first: they would get the GPUs of the others.
        true => Some(waiting(&records)?.into_iter().chain(running(&records)?).collect()),
        false => None,
    };
    let names = args.chosen.names(&args.containers, every, &records, context)?;
    let mut all = records.snapshot()?;
    for_each(&names, |name| {
        let entry = all.find_whole(name)?;
        if end_wait(&records, &entry)? {
            let name = &entry.record.name;
            print::say(&format!("gpurun: container `{name}` does not wait for idle GPUs any more"));
        }
        // It is not an error to stop a stopped container.
        if entry.supervisor()?.is_some() { stop_by(&entry, args.time, signal) } else { Ok(()) }
    })
}

/// The IDs of all containers that run.
pub(super) fn running(records: &Records) -> Result<Vec<String>, Report> {
    ids(records, true)
}

/// The IDs of all containers that run, or of those that do not.
fn ids(records: &Records, run: bool) -> Result<Vec<String>, Report> {
    let mut ids = Vec::new();
    for entry in records.list()? {
        if entry.supervisor()?.is_some() == run {
            ids.push(entry.record.id);
        }
    }
    Ok(ids)
}

/// The IDs of all containers that wait for idle GPUs.
fn waiting(records: &Records) -> Result<Vec<String>, Report> {
    Ok(queue::waiting(&records.run_dir().join("gpus"))?.into_iter().map(|waiter| waiter.id).collect())
}

/// Stops a container with another signal than its own, if one is given.
fn stop_by(entry: &Entry, timeout: Option<u64>, signal: Option<i32>) -> Result<(), Report> {
    let Some(number) = signal else { return stop_one(entry, timeout) };
    let message = ToSupervisor::Signal { number, stops: true };
    let Some(connection) = connect_living(entry, &message)? else { return Ok(()) };
    send_to(&connection, &message)?;
    let patience = Duration::from_secs(timeout.unwrap_or(entry.record.request.stop_timeout));
    let deadline = Instant::now().checked_add(patience);
    // Other messages may come before the last one.
    while let Some(left) = deadline.map_or(Some(ANSWER), |deadline| deadline.checked_duration_since(Instant::now())) {
        if connection.wait(left) {
            match receive(&connection)? {
                None | Some(FromSupervisor::Exited(_)) => return wait_gone(entry),
                Some(_) => {}
            }
        }
    }
    stop_one(entry, Some(0))
}

/// Stops a container gracefully, and waits until it has ended. Without a timeout, the container's own applies.
pub(super) fn stop_one(entry: &Entry, timeout: Option<u64>) -> Result<(), Report> {
    let stop = ToSupervisor::Stop { timeout };
    let Some(connection) = connect_living(entry, &stop)? else { return Ok(()) };
    send_to(&connection, &stop)?;
    let patience = Duration::from_secs(timeout.unwrap_or(entry.record.request.stop_timeout));
    let began = Instant::now();
    wait_answer(entry, &connection, patience.saturating_add(ANSWER))?;
    let state = wait_end(&connection)?;
    // The container's process ignores the signal, and each stop takes this long.
    if !patience.is_zero() && began.elapsed() >= patience && state.is_some_and(|state| state.exit_code == Some(KILLED))
    {
        let (name, seconds) = (&entry.record.name, patience.as_secs());
        print::say(&format!(
            "gpurun: container `{name}` did not end within {seconds} s of its stop signal, and was killed"
        ));
    }
    wait_gone(entry)
}

/// The exit code of a container that SIGKILL has ended.
const KILLED: u8 = 128 + libc::SIGKILL as u8;

/// Connects to a supervisor that was just found. The result is `None` if the container has ended since.
fn connect_living(entry: &Entry, message: &ToSupervisor) -> Result<Option<Connection>, Report> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(connection) = attach::connect_if_running(entry, message)? {
            return Ok(Some(connection));
        }
        // A supervisor that begins has no socket yet, and one that ends has none any more.
        if entry.supervisor()?.is_none() {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return connect(entry, message).map(Some);
        }
        std::thread::sleep(LOOK);
    }
}

/// Time limit for a supervisor that begins or ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time limit for a supervisor to stop a container, in addition to the stop timeout.
const ANSWER: Duration = Duration::from_secs(30);

/// A wait that is longer than this has no end in practice, and would overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Returns an error if the supervisor neither reports the container's exit nor closes the connection in time.
fn wait_answer(entry: &Entry, connection: &Connection, time: Duration) -> Result<(), Report> {
    // Hooks of the stage poststop run before the answer.
    let mut waiting = Waiting::new(&entry.run_dir);
    let end = Instant::now() + time.min(LONGEST);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let next = waiting.until().saturating_duration_since(Instant::now());
        if connection.wait(if left.is_zero() { next } else { left.min(next) }) {
            return Ok(());
        }
        waiting.notice();
        if left.is_zero() && waiting.hook().is_none() {
            break;
        }
    }
    let pid = entry.supervisor()?.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    Err(Report::new(format!("the supervisor of container `{}` (pid {pid}) does not answer", entry.record.name))
        .with_hint(format!("`kill -9 {pid}` ends it, and the container with it")))
}

pub(super) fn kill(args: &KillArgs, context: &Context) -> Result<u8, Report> {
    // As in podman, the signal may be written as for kill(1): `-s -HUP`.
    let number = parse_signal(args.signal.strip_prefix('-').unwrap_or(&args.signal))?;
    let records = context.records()?;
    let every = args.all.then(|| running(&records)).transpose()?;
    let names = args.chosen.names(&args.containers, every, &records, context)?;
    let mut all = records.snapshot()?;
    for_each(&names, |name| {
        let entry = all.find_whole(name)?;
        let stops = number == libc::SIGKILL;
        let signal = ToSupervisor::Signal { number, stops };
        let connection = connect(&entry, &signal)?;
        send_to(&connection, &signal)?;
        if stops {
            wait_answer(&entry, &connection, ANSWER)?;
            wait_end(&connection)?;
            wait_gone(&entry)?;
        }
        Ok(())
    })
}

pub(super) fn rm(args: &RmArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let every = match args.all {
        true => Some(records.list()?.into_iter().map(|entry| entry.record.id).collect()),
        false => None,
    };
    let mut names = args.chosen.names(&args.containers, every, &records, context)?;
    if args.depend {
        names = with_dependents(&names, &records)?;
    }
    let mut all = records.snapshot()?;
    if args.force {
        // As in docker, what does not exist is no failure then.
        names.retain(|name| match name.is_empty() || !all.lacks(name) {
            true => true,
            false => {
                // The search also warns about containers whose records, and so names, cannot be read.
                if let Err(report) = all.find_any(name) {
                    print::say(&format!("gpurun: {}", report.message));
                }
                false
            }
        });
    }
    for_each(&names, |name| {
        let entry = match all.find_any(name)? {
            Found::Whole(entry) => entry,
            Found::Unreadable(container) if args.force => return remove_unreadable(&records, &container),
            // This error already contains a hint.
            Found::Unreadable(container) => return Err(container.error.into()),
        };
        match args.force {
            true => {
                if let (Some(time), Some(_)) = (args.time, entry.supervisor()?) {
                    stop_one(&entry, Some(time))?;
                }
                remove_by_force(&records, &entry)?;
            }
            false => remove_idle(&records, &entry)?,
        }
        all.forget(&entry.record.id);
        Ok(())
    })
}

/// The names with the IDs of the containers that depend on them, each before what it depends on.
fn with_dependents(names: &[String], records: &Records) -> Result<Vec<String>, Report> {
    let entries = records.list()?;
    let mut snapshot = records.snapshot()?;
    let (mut all, mut known) = (Vec::new(), Vec::new());
    for name in names {
        match snapshot.find(name) {
            Ok(entry) => add_with_dependents(name, &entry.record.id, &entries, &mut known, &mut all),
            // The removal reports it.
            Err(_) => all.push(name.clone()),
        }
    }
    Ok(all)
}

fn add_with_dependents(name: &str, id: &str, entries: &[Entry], known: &mut Vec<String>, all: &mut Vec<String>) {
    if known.iter().any(|other| other == id) {
        return;
    }
    known.push(id.to_owned());
    for user in entries.iter().filter(|entry| depends_on(entry, id)).map(|entry| &entry.record.id) {
        add_with_dependents(user, user, entries, known, all);
    }
    all.push(name.to_owned());
}

/// Whether a container uses a namespace or a volume of another one.
fn depends_on(entry: &Entry, id: &str) -> bool {
    let request = &entry.record.request;
    let ipc = matches!(&request.ipc, IpcMode::Container(other) if other == id);
    let volumes =
        |mount: &MountRequest| matches!(&mount.source, MountSource::VolumeOf { container, .. } if container == id);
    let joined = [&request.network_container, &request.pid_container];
    ipc || joined.iter().any(|other| other.as_deref() == Some(id)) || request.mounts.iter().any(volumes)
}

/// Removes a container that neither runs nor waits for its GPUs.
fn remove_idle(records: &Records, entry: &Entry) -> Result<(), Report> {
    let name = &entry.record.name;
    if entry.supervisor()?.is_some() {
        return Err(Report::new(format!("container `{name}` is running"))
            .with_hint(format!("stop it first with `gpurun stop {name}`, or use `gpurun rm -f {name}`")));
    }
    if queue::waiting(&records.run_dir().join("gpus"))?.iter().any(|waiter| waiter.id == entry.record.id) {
        return Err(Report::new(format!("container `{name}` waits for idle GPUs"))
            .with_hint(format!("`gpurun rm -f {name}` ends the command that waits, and removes the container")));
    }
    remove(records, entry)
}

/// Ends a container if it runs, or the command that waits for its GPUs, and removes it.
pub(super) fn remove_by_force(records: &Records, entry: &Entry) -> Result<(), Report> {
    end_wait(records, entry)?;
    if entry.supervisor()?.is_some() {
        stop_one(entry, Some(0))?;
    }
    remove(records, entry)
}

/// Makes the command that waits for the container's GPUs leave the queue, and waits until it has done so. It may have
/// started the container meanwhile. Returns whether there was one.
fn end_wait(records: &Records, entry: &Entry) -> Result<bool, Report> {
    let Some(waiter) = queue::evict(&records.run_dir().join("gpus"), &entry.record.id)? else { return Ok(false) };
    let deadline = Instant::now() + PATIENCE;
    while !entry.is_idle()? && entry.supervisor()?.is_none() {
        if Instant::now() >= deadline {
            let (name, pid) = (&entry.record.name, waiter.pid);
            return Err(Report::new(format!(
                "the command that waits for the GPUs of `{name}` (pid {pid}) does not end"
            ))
            .with_hint(format!("end it with `kill -9 {pid}`, then try again")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

fn remove(records: &Records, entry: &Entry) -> Result<(), Report> {
    let _lock = records.lock()?;
    if let Some(user) = launch::user_of_volumes(records, entry)? {
        return Err(Report::new(format!(
            "cannot remove container `{}`: container `{user}` uses its volumes (`--volumes-from`)",
            entry.record.name
        ))
        .with_hint(format!("remove that one first: `gpurun rm {user}`")));
    }
    // A container with --rm has already removed itself.
    if records.get(&entry.record.id)?.is_none() {
        return Ok(());
    }
    if !entry.is_idle()? {
        return Err(Report::new(format!("container `{}` is being started by another command", entry.record.name)));
    }
    // A state that cannot be read does not prevent the removal.
    let state = entry.state().unwrap_or_default();
    launch::remove(records, entry)?;
    history::note_removal(records.run_dir(), &entry.record, &state);
    diagnostics::remove(&entry.diagnostics());
    Ok(())
}

/// Stops the container if it may be running, and removes it by its id.
fn remove_unreadable(records: &Records, container: &Unreadable) -> Result<(), Report> {
    let id = short(&container.id);
    if let Some(pid) = container.supervisor()? {
        // The supervisor has the request in memory and can stop the container without the record.
        match Connection::connect(&container.control_socket()) {
            Ok(connection) => {
                send_to(&connection, &ToSupervisor::Stop { timeout: Some(0) })?;
                wait_end(&connection)?;
            }
            Err(error) => {
                return Err(Report::new(format!("cannot reach the supervisor of container {id}"))
                    .with_cause(error)
                    .with_hint(format!("end it and the container with `kill -9 {pid}`, then try again")));
            }
        }
        wait_supervisor(id, || container.supervisor())?;
    }
    launch::remove_unreadable(records, &container.id)
}

pub(super) fn rename(args: &RenameArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let name: ContainerName = args.name.parse()?;
    let entry = records.find_whole(&args.container)?;
    let _lock = records.lock()?;
    let mut entry = records.again(&entry)?;
    records.check_name(&name.to_string(), Some(&entry.record.id))?;
    entry.rename(&name.to_string())?;
    if let Ok(connection) = Connection::connect(&entry.control_socket()) {
        // The supervisor uses the new name in later messages. If it is exiting right now, it sends no more messages.
        let _ = connection.send(&ToSupervisor::Rename { name: name.to_string() });
    }
    Ok(0)
}

pub(super) fn wait(args: &WaitArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let mut first = None;
    for name in &args.containers {
        if args.ignore && records.snapshot()?.lacks(name) {
            print::out("-1\n")?;
            continue;
        }
        let waited = match args.condition {
            Condition::Stopped | Condition::NextExit => wait_one(&records, name).map(i32::from),
            Condition::Running => wait_until(&records, name, |state| state.phase == Phase::Running && !state.paused),
            Condition::Paused => wait_until(&records, name, |state| state.paused),
            Condition::Removed => wait_removed(&records, name),
            Condition::Healthy => wait_health(&records, name, HealthStatus::Healthy),
            Condition::Unhealthy => wait_health(&records, name, HealthStatus::Unhealthy),
        };
        match waited {
            Ok(code) => print::out(&format!("{code}\n"))?,
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    first.map_or(Ok(0), Err)
}

/// Waits until a container has ended, also if it is restarted then, as in docker. Returns its exit code.
fn wait_one(records: &Records, name: &str) -> Result<u8, Report> {
    let entry = records.find(name)?;
    if let Ok(connection) = Connection::connect(&entry.control_socket()) {
        loop {
            match receive(&connection)? {
                None => break,
                Some(FromSupervisor::Exited(state)) => return Ok(state.exit_code.unwrap_or(0)),
                Some(FromSupervisor::Restarting { code }) => return Ok(code),
                Some(_) => {}
            }
        }
    }
    Ok(entry.state()?.exit_code.unwrap_or(0))
}

/// The interval at which a state is read that no message announces.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until the state of a container is the wanted one.
fn wait_until(records: &Records, name: &str, wanted: impl Fn(&State) -> bool) -> Result<i32, Report> {
    let entry = records.find(name)?;
    loop {
        let state = records.again(&entry)?.state_shown()?;
        if wanted(&state) {
            return Ok(-1);
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until the health check of a container has found this state.
fn wait_health(records: &Records, name: &str, wanted: HealthStatus) -> Result<i32, Report> {
    let entry = records.find(name)?;
    loop {
        let (entry, name) = (records.again(&entry)?, &entry.record.name);
        let state = entry.state_shown()?;
        let health = state.health.as_ref().map(|health| health.status);
        match (state.phase, health) {
            (Phase::Running, Some(status)) if status == wanted => return Ok(-1),
            (Phase::Running, None) => {
                return Err(Report::new(format!("container `{name}` has no health check"))
                    .with_hint("define one with `--health-cmd` when you create the container"));
            }
            (Phase::Exited, _) => {
                let code = state.exit_code.unwrap_or(0);
                return Err(Report::new(format!(
                    "container `{name}` ended with status {code} before it became {}",
                    wanted.name()
                ))
                .with_hint(format!("see its output with `gpurun logs {name}`")));
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Waits until a container does not exist any more. Returns its last exit code.
fn wait_removed(records: &Records, name: &str) -> Result<i32, Report> {
    let entry = records.find(name)?;
    let mut code = 0;
    while let Some(entry) = records.get(&entry.record.id)? {
        // The supervisor says the exit code before anybody can remove the record.
        let ended = match Connection::connect(&entry.control_socket()) {
            Ok(connection) => wait_end(&connection)?,
            Err(_) => None,
        };
        let exit_code = match ended {
            Some(state) => state.exit_code,
            None => entry.state_shown()?.exit_code,
        };
        code = exit_code.map_or(code, i32::from);
        std::thread::sleep(LOOK);
    }
    Ok(code)
}

fn receive(connection: &Connection) -> Result<Option<FromSupervisor>, Report> {
    connection
        .receive::<FromSupervisor>()
        .map_err(|error| Report::new("cannot parse the message of the container's supervisor").with_cause(error))
}

/// Reads messages until the container has exited for good. Returns `None` if the supervisor closed the connection
/// without a final message.
fn wait_end(connection: &Connection) -> Result<Option<State>, Report> {
    loop {
        match receive(connection)? {
            None => return Ok(None),
            Some(FromSupervisor::Exited(state)) => return Ok(Some(*state)),
            Some(_) => {}
        }
    }
}

/// Waits until the supervisor has exited. It still holds its lock after its last message.
fn wait_gone(entry: &Entry) -> Result<(), Report> {
    wait_supervisor(&entry.record.name, || entry.supervisor())
}

fn wait_supervisor(name: &str, supervisor: impl Fn() -> Result<Option<i32>, RecordError>) -> Result<(), Report> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(pid) = supervisor()? {
        crate::sys::process::wait_pid_gone(pid, deadline.saturating_duration_since(Instant::now()));
        if Instant::now() >= deadline {
            return Err(Report::new(format!("the supervisor of container `{name}` (pid {pid}) does not end")));
        }
    }
    Ok(())
}

/// Sends a message. It is not an error if the supervisor has exited, because its last message can still be read.
pub(super) fn send_to(connection: &Connection, message: &ToSupervisor) -> Result<(), Report> {
    match connection.send(message) {
        Err(error) if ![ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {
            Err(Report::new("cannot reach the container's supervisor").with_cause(error))
        }
        _ => Ok(()),
    }
}

/// Runs an operation for every name. The command reports the first error.
pub(super) fn for_each(names: &[String], mut each: impl FnMut(&str) -> Result<(), Report>) -> Result<u8, Report> {
    let mut first: Option<Report> = None;
    for name in names {
        match each(name) {
            Ok(()) => print::out(&format!("{name}\n"))?,
            Err(report) if first.is_none() => first = Some(report),
            Err(report) => print::say(&report.to_string()),
        }
    }
    first.map_or(Ok(0), Err)
}

/// Stops a session's container and waits for it. A bare launch does this if Jupyter did not start.
pub(super) fn stop_session(session: &mut Session) -> Result<(), Report> {
    session.send(&ToSupervisor::Stop { timeout: None })?;
    loop {
        match session.next(None, None)? {
            Event::Message(FromSupervisor::Exited(_)) | Event::HungUp => return Ok(()),
            _ => {}
        }
    }
}
