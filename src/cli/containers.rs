//! Commands about containers that exist: start, restart, stop, kill, rm, rename, wait.
//!
//! Each takes several names, does what it can for every one of them, prints the names it is done with, and ends with the first error.

use std::time::{Duration, Instant};

use clap::Args;

use super::attach::{self, Interrupt, connect};
use super::detach::DetachKeys;
use super::resources::seconds;
use super::session::{Event, Keys, Session, take_signals};
use super::{Context, print};
use crate::launch::{self, Spawned};
use crate::names::ContainerName;
use crate::record::{Entry, Found, RecordError, Records, State, Unreadable, short};
use crate::report::Report;
use crate::supervise::protocol::{Connection, FromSupervisor, ToSupervisor};

const KEYS: &str = "ctrl-p,ctrl-q";

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Attach to the container's output and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = KEYS)]
    detach_keys: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Seconds from the stop signal to SIGKILL (default: the container's own)
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    time: Option<u64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds from the stop signal to SIGKILL (default: the container's own)
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    time: Option<u64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill the container first if it runs
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RenameArgs {
    container: String,
    name: String,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub fn start(args: &StartArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    if args.attach || args.interactive {
        let [container] = &args.containers[..] else {
            return Err(Report::usage("only one container can be started attached"));
        };
        return start_attached(args, &records.find(container)?, context);
    }
    for_each(&args.containers, |name| start_one(&records.find(name)?, context))
}

fn start_attached(args: &StartArgs, entry: &Entry, context: &Context) -> Result<u8, Report> {
    let tty = entry.record.request.tty;
    let keys = if args.interactive && entry.record.request.interactive { Keys::Typed { tty } } else { Keys::Ignored };
    let signals = take_signals()?;
    let spawned = spawn(entry, context)?;
    let mut session = Session::new(spawned, signals, keys, DetachKeys::parse(&args.detach_keys)?);
    session.attach(tty)?;
    super::run::wait_running(&mut session, context.verbose)?;
    session.begin_keys();
    attach::relay(&mut session, if tty { Interrupt::Ignore } else { Interrupt::Forward })
}

/// Starts a container that is not running; one that runs is left as it is, as with docker.
fn start_one(entry: &Entry, context: &Context) -> Result<(), Report> {
    if entry.supervisor()?.is_some() {
        return Ok(());
    }
    let mut session = Session::new(spawn(entry, context)?, take_signals()?, Keys::Ignored, DetachKeys::parse("")?);
    super::run::wait_running(&mut session, context.verbose).map(|_| ())
}

fn spawn(entry: &Entry, context: &Context) -> Result<Spawned, Report> {
    std::fs::create_dir_all(&entry.run_dir)
        .map_err(|error| Report::new(format!("cannot make `{}`", entry.run_dir.display())).with_cause(error))?;
    let launching = entry.launching()?;
    launch::spawn(&context.root, &context.run_dir, entry, launching)
}

pub fn restart(args: &RestartArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = records.find(name)?;
        if entry.supervisor()?.is_some() {
            stop_one(&entry, args.time)?;
        }
        start_one(&entry, context)
    })
}

pub fn stop(args: &StopArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = records.find(name)?;
        // Stopping what has stopped is no error.
        if entry.supervisor()?.is_some() { stop_one(&entry, args.time) } else { Ok(()) }
    })
}

fn stop_one(entry: &Entry, timeout: Option<u64>) -> Result<(), Report> {
    let connection = connect(entry)?;
    tell(&connection, &ToSupervisor::Stop { timeout })?;
    wait_end(&connection)?;
    wait_gone(entry)
}

pub fn kill(args: &KillArgs, context: &Context) -> Result<u8, Report> {
    let number = super::request::signal_number(&args.signal)?;
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = records.find(name)?;
        let connection = connect(&entry)?;
        let stops = number == libc::SIGKILL;
        tell(&connection, &ToSupervisor::Signal { number, stops })?;
        if stops {
            wait_end(&connection)?;
            wait_gone(&entry)?;
        }
        Ok(())
    })
}

pub fn rm(args: &RmArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = match records.find_any(name)? {
            Found::Whole(entry) => entry,
            Found::Unreadable(container) if args.force => return remove_unreadable(&records, &container),
            // The way out is in it.
            Found::Unreadable(container) => return Err(container.error.into()),
        };
        if entry.supervisor()?.is_some() {
            if !args.force {
                return Err(Report::new(format!("container `{}` is running", entry.record.name)).with_hint(format!(
                    "stop it first with `gpurun stop {0}`, or use `gpurun rm -f {0}`",
                    entry.record.name
                )));
            }
            stop_one(&entry, Some(0))?;
        }
        remove(&records, &entry)
    })
}

fn remove(records: &Records, entry: &Entry) -> Result<(), Report> {
    let _lock = records.lock()?;
    // A container with --rm has removed itself by now.
    if records.get(&entry.record.id)?.is_none() {
        return Ok(());
    }
    if !entry.is_idle()? {
        return Err(Report::new(format!("container `{}` is being started by another command", entry.record.name)));
    }
    launch::remove(records, entry)
}

/// Stops what may run of it, and removes it by its id.
fn remove_unreadable(records: &Records, container: &Unreadable) -> Result<(), Report> {
    let id = short(&container.id);
    if let Some(pid) = container.supervisor()? {
        // The supervisor knows what was asked for, and needs no record to take it down.
        match Connection::connect(&container.control_socket()) {
            Ok(connection) => {
                tell(&connection, &ToSupervisor::Stop { timeout: Some(0) })?;
                wait_end(&connection)?;
            }
            Err(error) => {
                return Err(Report::new(format!("cannot reach the supervisor of container {id}"))
                    .with_cause(error)
                    .with_hint(format!("`kill -9 {pid}` ends it, and the container with it; then try again")));
            }
        }
        wait_supervisor(id, || container.supervisor())?;
    }
    launch::remove_unreadable(records, &container.id)
}

pub fn rename(args: &RenameArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let name: ContainerName = args.name.parse()?;
    let entry = records.find(&args.container)?;
    let _lock = records.lock()?;
    let mut entry = records.again(&entry)?;
    records.check_name(&name.to_string(), Some(&entry.record.id))?;
    entry.rename(&name.to_string())?;
    if let Ok(connection) = Connection::connect(&entry.control_socket()) {
        // For what it says from now on. One that goes at this moment says nothing more.
        let _ = connection.send(&ToSupervisor::Rename { name: name.to_string() });
    }
    Ok(0)
}

pub fn wait(args: &WaitArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let mut first = None;
    for name in &args.containers {
        match wait_one(&records, name) {
            Ok(state) => print::out(&format!("{}\n", state.exit_code.unwrap_or(0)))?,
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    first.map_or(Ok(0), Err)
}

fn wait_one(records: &Records, name: &str) -> Result<State, Report> {
    let entry = records.find(name)?;
    if let Ok(connection) = Connection::connect(&entry.control_socket())
        && let Some(state) = wait_end(&connection)?
    {
        return Ok(state);
    }
    Ok(entry.state()?)
}

/// Reads until the container has ended for good. `None`: the supervisor went without a word.
fn wait_end(connection: &Connection) -> Result<Option<State>, Report> {
    loop {
        let message = connection
            .receive::<FromSupervisor>()
            .map_err(|error| Report::new("cannot understand the container's supervisor").with_cause(error))?;
        match message {
            None => return Ok(None),
            Some(FromSupervisor::Exited(state)) => return Ok(Some(*state)),
            Some(_) => {}
        }
    }
}

/// After its last word the supervisor still has to exit; until then its lock is held.
fn wait_gone(entry: &Entry) -> Result<(), Report> {
    wait_supervisor(&entry.record.name, || entry.supervisor())
}

fn wait_supervisor(name: &str, supervisor: impl Fn() -> Result<Option<i32>, RecordError>) -> Result<(), Report> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Some(pid) = supervisor()? {
        crate::sys::process::wait_pid_gone(pid, deadline.saturating_duration_since(Instant::now()));
        if Instant::now() >= deadline {
            return Err(Report::new(format!("the supervisor of container `{name}` (pid {pid}) does not end")));
        }
    }
    Ok(())
}

pub(super) fn tell(connection: &Connection, message: &ToSupervisor) -> Result<(), Report> {
    connection.send(message).map_err(|error| Report::new("cannot reach the container's supervisor").with_cause(error))
}

/// Does one thing for every name; the first error is the command's.
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

/// Ends a session's container and waits for it: what a bare launch does when Jupyter did not come up.
pub fn stop_session(session: &mut Session) -> Result<(), Report> {
    session.send(&ToSupervisor::Stop { timeout: None })?;
    loop {
        match session.next(None, None)? {
            Event::Message(FromSupervisor::Exited(_)) | Event::HungUp => return Ok(()),
            _ => {}
        }
    }
}
