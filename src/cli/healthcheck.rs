//! `gpurun healthcheck run`: runs a container's health check now, as podman does.
//!
//! The container's supervisor runs it, so that the result counts like that of any other check.

use clap::{Args, Subcommand};

use super::containers::send_to;
use super::{Context, attach, print};
use crate::control::{FromSupervisor, ToSupervisor};
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    #[command(subcommand)]
    command: HealthcheckCommand,
}

#[derive(Debug, Subcommand)]
enum HealthcheckCommand {
    /// Run the health check of a container now; the exit status is 1 if it fails
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Exit with status 0 even if the check fails
    #[arg(long)]
    ignore_result: bool,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// The exit status after a check that has failed.
const FAILED: u8 = 1;

pub(super) fn run(args: &HealthcheckArgs, context: &Context) -> Result<u8, Report> {
    let HealthcheckCommand::Run(args) = &args.command;
    let entry = context.records()?.find(&args.container)?;
    let name = &entry.record.name;
    if entry.supervisor()?.is_none() {
        return Err(Report::new(format!("container `{name}` is not running"))
            .with_hint(format!("start it with `gpurun start {name}`")));
    }
    let connection = attach::connect(&entry, &ToSupervisor::CheckHealth)?;
    send_to(&connection, &ToSupervisor::CheckHealth)?;
    let exit_code = loop {
        let answer = connection
            .receive::<FromSupervisor>()
            .map_err(|error| Report::new("cannot parse the message of the container's supervisor").with_cause(error))?;
        match answer {
            Some(FromSupervisor::Checked { exit_code }) => break exit_code,
            Some(FromSupervisor::Done(Err(report))) => return Err(report),
            Some(FromSupervisor::Exited(_)) | None => {
                return Err(Report::new(format!("container `{name}` ended before its health check")));
            }
            Some(_) => {}
        }
    };
    if exit_code == 0 {
        return Ok(0);
    }
    print::out("unhealthy\n")?;
    Ok(if args.ignore_result { 0 } else { FAILED })
}
