//! Commands that change running containers: update, pause, resume.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::containers::{for_each, send_to};
use super::resources::{ResourceFlags, TimeFlags};
use super::run::limits_text;
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
    /// Names or IDs of containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) fn update(args: &UpdateArgs, context: &Context) -> Result<u8, Report> {
    let asked = args.limits.limits()?;
    let times = Some(args.times.changes()?).filter(|times| *times != TimeLimits::default());
    let restart = args.restart.as_deref().map(str::parse::<RestartPolicy>).transpose()?;
    if asked == LimitsRequest::default() && restart.is_none() && times.is_none() {
        return Err(Report::usage("no limit to update was specified")
            .with_hint(format!("name one: `gpurun update {} --memory 4g`", args.containers.join(" "))));
    }
    let records = context.records()?;
    let mut all = Vec::new();
    let each = |name: &str| {
        let entry = records.find_whole(name)?;
        let limits = Box::new(asked.clone());
        let runs = entry.supervisor()?.is_some();
        let rows = if runs {
            ask(&entry, &ToSupervisor::Update { limits, restart, times })?
        } else {
            at_rest(&records, &entry, &limits, restart, times)?
        };
        if context.verbose && runs {
            print::write_stderr(&limits_text(&rows));
        } else if context.verbose {
            let name = &entry.record.name;
            print::say(&format!(
                "gpurun: `{name}` is not running: the limits are valid on this host and apply at its next start"
            ));
        }
        all.extend(rows);
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
) -> Result<Vec<LimitRow>, Report> {
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
    Ok(Vec::new())
}

pub(super) fn pause(args: &PauseArgs, paused: bool, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = records.find_whole(name)?;
        ask(&entry, &ToSupervisor::Pause { paused, held: false }).map(drop)
    })
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
