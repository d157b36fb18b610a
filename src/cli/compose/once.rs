//! `gpurun compose exec`, `run` and `cp`: one command in a service's container, or in a new one.

use std::io::IsTerminal;

use clap::Args;

use super::super::Context;
use super::args::{CheckRun, ComposeArgs, index};
use super::start::{Choice, Progress, Starter, command};
use super::{act, child, lock};
use crate::compose::{Connection, Plans};
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Run the command in the background
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Number of the container, if the service has several
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = index)]
    index: u32,
    /// Do not allocate a terminal (default: one is allocated if the caller has one)
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// User, and optionally group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Run in the background, and print the container's name
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Overwrite the service's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Do not start the services that this one depends on
    #[arg(long)]
    no_deps: bool,
    /// Do not allocate a terminal
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Publish a port
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish the service's ports
    #[arg(short = 'P', long)]
    service_ports: bool,
    /// User, and optionally group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Mount a path of this host or a named volume
    #[arg(short, long, value_name = "SOURCE:DIR[:ro]")]
    volume: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Give the container the names of the service on its networks
    #[arg(long)]
    use_aliases: bool,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Build the image first
    #[arg(long)]
    build: bool,
    /// Service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Command and its arguments (default: the service's)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct CpArgs {
    /// Number of the container, if the service has several
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = index)]
    index: u32,
    /// Path of this host, or SERVICE:PATH
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Path of this host, or SERVICE:PATH
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

/// Returns whether the caller has a terminal for a command.
fn has_terminal(no_tty: bool) -> bool {
    !no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

pub(super) fn exec(args: &ExecArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let container = compose.container(context, &args.service, args.index)?;
    let mut all = vec!["exec".to_owned()];
    if args.detach {
        all.push("--detach".to_owned());
    } else {
        all.push("--interactive".to_owned());
        all.extend(has_terminal(args.no_tty).then(|| "--tty".to_owned()));
    }
    all.extend(args.env.iter().map(|text| format!("--env={text}")));
    all.extend(args.user.as_ref().map(|user| format!("--user={user}")));
    all.extend(args.workdir.as_ref().map(|dir| format!("--workdir={dir}")));
    all.push(container.name().to_owned());
    all.extend(args.command.iter().cloned());
    if context.dry_run {
        act::announce(context, &format!(" Container {}  Executed {}", container.name(), args.command.join(" ")));
        return Ok(0);
    }
    Err(child::replace(context, &all))
}

pub(super) fn run(args: &RunArgs, compose: &ComposeArgs, context: &Context, check: CheckRun) -> Result<u8, Report> {
    let names = [args.service.clone()];
    let project = compose.project(&names, !args.no_deps)?;
    let mut plans = compose.plans(&project)?;
    let Some(mut plan) = plans.services.remove(&args.service) else {
        return Err(Report::new(format!("there is no service `{}`", args.service)));
    };
    // The dependencies first, as `up` starts them.
    let others = Starter { context, project: &project, plans: &plans, timeout: None, starts: true };
    project.check_files(&args.service)?;
    others.images(args.build, false, None, false)?;
    others.check(check)?;
    let lock = lock::of_project(context, &project.name)?;
    others.start(&Choice::CHANGED, &Progress::default())?;
    drop(lock);
    let own = Plans { services: [(args.service.clone(), plan.clone())].into(), ..plans.clone() };
    let starter = Starter { context, project: &project, plans: &own, timeout: None, starts: true };
    starter.images(args.build, false, None, false)?;
    if let Some(entrypoint) = &args.entrypoint {
        plan.entrypoint = Some(Some(entrypoint.clone()).filter(|text| !text.is_empty()).into_iter().collect());
        plan.command.clear();
    }
    if !args.command.is_empty() {
        plan.command.clone_from(&args.command);
    }
    let name = args.name.clone().unwrap_or_else(|| {
        let id = crate::names::new_container_id();
        format!("{}-{}-run-{}", project.name, args.service, &id[..12.min(id.len())])
    });
    let mut all = vec!["run".to_owned(), format!("--name={name}")];
    if args.detach {
        all.push("--detach".to_owned());
    } else {
        all.push("--interactive".to_owned());
        all.extend(has_terminal(args.no_tty).then(|| "--tty".to_owned()));
    }
    all.extend(args.rm.then(|| "--rm".to_owned()));
    all.extend(starter.labels(&plan, 1, true));
    all.extend(args.label.iter().map(|text| format!("--label={text}")));
    if args.service_ports {
        all.extend(plan.ports.iter().cloned());
    }
    all.extend(args.publish.iter().map(|text| format!("--publish={text}")));
    let connection = if args.use_aliases { Connection::flag } else { Connection::plain_flag };
    all.extend(plan.connections.iter().map(connection));
    let mut common = starter.common(&plan)?;
    // What the caller gives takes the place of what the file gives.
    let without = |flag: &str, common: &mut Vec<String>| common.retain(|other| !other.starts_with(flag));
    without("--restart=", &mut common);
    if args.user.is_some() {
        without("--user=", &mut common);
    }
    if args.workdir.is_some() {
        without("--workdir=", &mut common);
    }
    all.extend(common);
    all.extend(args.env.iter().map(|text| format!("--env={text}")));
    all.extend(args.user.as_ref().map(|user| format!("--user={user}")));
    all.extend(args.workdir.as_ref().map(|dir| format!("--workdir={dir}")));
    all.extend(args.volume.iter().map(|text| format!("--volume={text}")));
    let (entrypoint, command) = command(&plan);
    all.extend(entrypoint);
    all.push(plan.image.clone());
    all.extend(command);
    if context.dry_run {
        act::announce(context, &format!(" Container {name}  Started"));
        return Ok(0);
    }
    if args.detach {
        child::run(context, &all)?.check()?;
        return super::super::print::out(&format!("{name}\n")).map(|()| 0);
    }
    Err(child::replace_hidden(context, &all))
}

pub(super) fn cp(args: &CpArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let place = |text: &str| -> Result<String, Report> {
        match text.split_once(':') {
            Some((service, path)) if !service.contains('/') && !service.starts_with('.') && !service.is_empty() => {
                let container = compose.container(context, service, args.index)?;
                Ok(format!("{}:{path}", container.name()))
            }
            _ => Ok(text.to_owned()),
        }
    };
    let arguments = ["cp".to_owned(), place(&args.source)?, place(&args.destination)?];
    if context.dry_run {
        act::announce(context, &format!(" Copied {} to {}", arguments[1], arguments[2]));
        return Ok(0);
    }
    Err(child::replace(context, &arguments))
}
