//! Commands that change a living container: update, pause, resume.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::containers::{for_each, tell};
use super::resources::ResourceFlags;
use super::run::limits_text;
use super::{Context, print};
use crate::launch;
use crate::record::{Entry, LimitRow, Records, State};
use crate::report::Report;
use crate::request::RestartPolicy;
use crate::supervise::protocol::{Connection, FromSupervisor, ToSupervisor};

#[derive(Debug, Args)]
#[command(
    after_help = "The new limits are read back from the kernel; if one is refused, all stay as they were. 0 lifts a limit of memory or CPUs; `--cpuset-cpus` is lifted by naming all.\n\n\
    Examples:\n  gpurun update lab --memory 4g\n  gpurun update lab --cpus 2 --pids-limit 500 --verbose"
)]
pub struct UpdateArgs {
    #[command(flatten)]
    limits: ResourceFlags,
    /// What to do when the container's process ends: no, always, unless-stopped, on-failure[:N]
    #[arg(long, value_name = "POLICY", value_parser = NonEmptyStringValueParser::new())]
    restart: Option<String>,
    /// The limits as they stand afterwards, as JSON; none of a container that does not run, where nothing can be read back
    #[arg(long)]
    json: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub fn update(args: &UpdateArgs, context: &Context) -> Result<u8, Report> {
    let asked = args.limits.asked();
    let restart = args.restart.as_deref().map(str::parse::<RestartPolicy>).transpose()?;
    if asked == crate::spec::AskedLimits::default() && restart.is_none() {
        return Err(
            Report::usage("nothing to update").with_hint("name a limit, for example `gpurun update lab --memory 4g`")
        );
    }
    let records = context.records()?;
    let mut all = Vec::new();
    let each = |name: &str| {
        let entry = records.find(name)?;
        let limits = Box::new(asked.clone());
        let runs = entry.supervisor()?.is_some();
        let rows = if runs {
            ask(&entry, &ToSupervisor::Update { limits, restart })?
        } else {
            at_rest(&records, &entry, &limits, restart)?
        };
        if context.verbose && runs {
            print::tell(&limits_text(&rows));
        } else if context.verbose {
            let name = &entry.record.name;
            print::say(&format!(
                "gpurun: `{name}` does not run: checked against this host, and kept for its next start"
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

/// A container that does not run has its limits in its record alone: checked against the host, enforced at its next start.
fn at_rest(
    records: &Records,
    entry: &Entry,
    asked: &crate::spec::AskedLimits,
    restart: Option<RestartPolicy>,
) -> Result<Vec<LimitRow>, Report> {
    let _lock = records.lock()?;
    records.again(entry)?.change_at_rest(|request| {
        let merged = request.limits.updated_by(asked);
        launch::check_limits(&merged)?;
        Ok((merged, restart.unwrap_or(request.restart)))
    })?;
    // What was read back at its last run is no more what it will get.
    let state = entry.state()?;
    if !state.limits.is_empty() {
        entry.write_state(&State { limits: Vec::new(), ..state })?;
    }
    Ok(Vec::new())
}

pub fn pause(args: &PauseArgs, paused: bool, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    for_each(&args.containers, |name| {
        let entry = records.find(name)?;
        ask(&entry, &ToSupervisor::Pause { paused }).map(drop)
    })
}

/// Asks a container's supervisor and waits for its answer.
pub fn ask(entry: &Entry, message: &ToSupervisor) -> Result<Vec<LimitRow>, Report> {
    let connection: Connection = super::attach::connect(entry)?;
    tell(&connection, message)?;
    loop {
        let answer = connection
            .receive::<FromSupervisor>()
            .map_err(|error| Report::new("cannot understand the container's supervisor").with_cause(error))?;
        match answer {
            Some(FromSupervisor::Done(done)) => return done,
            Some(FromSupervisor::Exited(_)) | None => {
                return Err(Report::new(format!("container `{}` ended meanwhile", entry.record.name)));
            }
            Some(_) => {}
        }
    }
}
