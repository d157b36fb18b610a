//! Commands that change running containers: update, pause, resume.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, FromArgMatches};

use super::chosen::ChosenFlags;
use super::containers::{for_each, running, send_to};
use super::launching::limits_text;
use super::resources::{ResourceFlags, TimeFlags};
use super::{Context, print};
use crate::control::{Connection, FromSupervisor, ToSupervisor};
use crate::launch;
use crate::record::{Entry, LimitRow, Records, State};
use crate::report::Report;
use crate::request::{LimitsRequest, RestartPolicy, TimeLimits};

#[derive(Debug, Args)]
#[command(
    after_help = "The new limits are read back from the kernel. If the kernel refuses one of them, all limits stay as they were. 0 removes a limit of memory, CPUs or time. `--timeout` counts from the start of the container. name all CPUs to remove `--cpuset-cpus`.\n\n\
    Examples:\n  gpurun update notebook --memory 4g\n  gpurun update notebook --cpus 2 --pids-limit 500 --verbose\n  gpurun update notebook --timeout 12h --idle-timeout 2h"
)]
pub(super) struct UpdateArgs {
    #[command(flatten)]
    limits: ResourceFlags,
    #[command(flatten)]
    times: TimeFlags,
    /// Restart policy: no, always, unless-stopped, on-failure[:N]
    #[arg(long, value_name = "POLICY", value_parser = NonEmptyStringValueParser::new())]
    restart: Option<String>,
    /// Print the new limits of running containers as JSON
    #[arg(long)]
    json: bool,
    /// Names or IDs of containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    /// All running containers that are not in this state yet
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: ChosenFlags,
    /// Names or IDs of containers
    #[arg(required_unless_present_any = ["all", "cidfile", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// What `update` changes.
pub(super) struct Changes {
    limits: LimitsRequest,
    restart: Option<RestartPolicy>,
    times: Option<TimeLimits>,
}

impl Changes {
    fn of(args: &UpdateArgs) -> Result<Self, Report> {
        let limits = args.limits.limits()?;
        let times = Some(args.times.changes()?).filter(|times| *times != TimeLimits::default());
        let restart = args.restart.as_deref().map(str::parse::<RestartPolicy>).transpose()?;
        if limits == LimitsRequest::default() && restart.is_none() && times.is_none() {
            return Err(Report::usage("no limit to update was specified")
                .with_hint(format!("name one: `gpurun update {} --memory 4g`", args.containers.join(" "))));
        }
        Ok(Self { limits, restart, times })
    }

    /// Parses the flags of `update` for one container, as typed without the command and the container.
    pub(super) fn parse(flags: &[&str], container: &str) -> Result<Self, Report> {
        let words = ["update"].iter().chain(flags).copied().chain(["--", container]);
        let command = UpdateArgs::augment_args(clap::Command::new("update").disable_help_flag(true));
        let parsed = command.args_override_self(true).try_get_matches_from(words);
        let args = parsed.and_then(|matches| UpdateArgs::from_arg_matches(&matches)).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Report::usage(line.strip_prefix("error: ").unwrap_or(line))
                .with_hint("`gpurun update --help` lists the flags")
        })?;
        if args.containers != [container] || args.json {
            return Err(Report::usage("only flags of `gpurun update` for limits can be used here")
                .with_hint("for example `--memory 4g --cpus 2`"));
        }
        Self::of(&args)
    }

    /// Changes one container. Returns the new limits if it runs, as read back from the kernel.
    pub(super) fn apply(&self, records: &Records, entry: &Entry) -> Result<Option<Vec<LimitRow>>, Report> {
        let (limits, restart, times) = (Box::new(self.limits.clone()), self.restart, self.times);
        if entry.supervisor()?.is_some() {
            return ask(entry, &ToSupervisor::Update { limits, restart, times }).map(Some);
        }
        at_rest(records, entry, &limits, restart, times).map(|()| None)
    }
}

pub(super) fn update(args: &UpdateArgs, context: &Context) -> Result<u8, Report> {
    let changes = Changes::of(args)?;
    let records = context.records()?;
    let mut all = Vec::new();
    let each = |name: &str| {
        let entry = records.find_whole(name)?;
        let rows = changes.apply(&records, &entry)?;
        match &rows {
            Some(rows) if context.verbose => print::write_stderr(&limits_text(rows)),
            None if context.verbose => print::say(&format!(
                "gpurun: `{}` is not running: the limits are valid on this host and apply at its next start",
                entry.record.name
            )),
            _ => {}
        }
        all.extend(rows.unwrap_or_default());
        Ok(())
    };
    let code = if args.json { quietly(&args.containers, each)? } else { for_each(&args.containers, each)? };
    if args.json {
        print::json(&all)?;
    }
    Ok(code)
}

fn quietly(names: &[String], each: impl FnMut(&str) -> Result<(), Report>) -> Result<u8, Report> {
    names.iter().map(String::as_str).try_for_each(each).map(|()| 0)
}

/// Updates a container that is not running. Its limits are only in its record: they are checked against the host now
/// and enforced at the next start.
fn at_rest(
    records: &Records,
    entry: &Entry,
    asked: &LimitsRequest,
    restart: Option<RestartPolicy>,
    times: Option<TimeLimits>,
) -> Result<(), Report> {
    let _lock = records.lock()?;
    records.again(entry)?.change_at_rest(|request| {
        let merged = request.limits.updated_by(asked);
        launch::check_limits(&merged)?;
        let times = times.map_or(request.time_limits, |asked| request.time_limits.updated_by(&asked));
        Ok((merged, restart.unwrap_or(request.restart), times))
    })?;
    // The limits that were read back during the last run no longer apply to the next one.
    let state = entry.state()?;
    if !state.limits.is_empty() {
        entry.write_state(&State { limits: Vec::new(), ..state })?;
    }
    Ok(())
}

pub(super) fn pause(args: &PauseArgs, paused: bool, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let every = match args.all {
        true => Some(not_yet(&records, paused)?),
        false => None,
    };
    let names = args.chosen.names(&args.containers, every, &records, context)?;
    for_each(&names, |name| {
        let entry = records.find_whole(name)?;
        pause_one(&entry, paused)
    })
}

/// The IDs of the running containers that are not paused, or of those that are.
fn not_yet(records: &Records, paused: bool) -> Result<Vec<String>, Report> {
    let mut ids = running(records)?;
    let mut states = Vec::new();
    for id in &ids {
        states.push(records.find(id)?.state_shown()?.paused);
    }
    let mut states = states.into_iter();
    ids.retain(|_| states.next() == Some(!paused));
    Ok(ids)
}

/// Freezes or thaws every process of a container.
pub(super) fn pause_one(entry: &Entry, paused: bool) -> Result<(), Report> {
    ask(entry, &ToSupervisor::Pause { paused, held: false }).map(drop)
}

/// Sends a request to a container's supervisor and waits for the answer.
pub(super) fn ask(entry: &Entry, message: &ToSupervisor) -> Result<Vec<LimitRow>, Report> {
    ask_on(&super::attach::connect(entry, message)?, entry, message)
}

/// Does the same on a connection that remains open.
pub(super) fn ask_on(connection: &Connection, entry: &Entry, message: &ToSupervisor) -> Result<Vec<LimitRow>, Report> {
    send_to(connection, message)?;
    loop {
        let answer = connection
            .receive::<FromSupervisor>()
            .map_err(|error| Report::new("cannot parse the message of the container's supervisor").with_cause(error))?;
        match answer {
            Some(FromSupervisor::Done(done)) => return done,
            Some(FromSupervisor::Exited(_)) | None => {
                return Err(Report::new(format!(
                    "container `{}` ended before the command was complete",
                    entry.record.name
                )));
            }
            Some(_) => {}
        }
    }
}
