//! `gpurun compose up` and `create`: create and start the containers of a project, in the order of their dependencies (see
//! `start`).
//!
//! A container is kept if it was made from the same configuration (its hash is a label) and the same image. Otherwise it
//! is replaced.

use clap::Args;

use super::super::Context;
use super::super::resources::seconds;
use super::super::session::take_signals;
use super::args::{CheckRun, ComposeArgs};
use super::start::{Choice, Progress, Recreate, Starter};
use super::{lock, logs};
use crate::compose::{Plans, Project};
use crate::durable::FileLock;
use crate::report::Report;

/// The flags of `up` and `create`.
#[derive(Debug, Args)]
struct CreateFlags {
    /// Build images before starting
    #[arg(long)]
    build: bool,
    /// Do not build images, even if they are missing
    #[arg(long, conflicts_with = "build")]
    no_build: bool,
    /// When to pull images: always, missing or never (default: each service's `pull_policy`)
    #[arg(long, value_name = "POLICY", value_parser = ["always", "missing", "never", "build"], hide_possible_values = true)]
    pull: Option<String>,
    /// Do not show the progress of pulls
    #[arg(long)]
    quiet_pull: bool,
    /// Replace containers even if nothing has changed
    #[arg(long)]
    force_recreate: bool,
    /// Keep containers even if their configuration has changed
    #[arg(long, conflicts_with = "force_recreate")]
    no_recreate: bool,
    /// Replace the containers of the services that the named ones depend on
    #[arg(long, conflicts_with = "no_recreate")]
    always_recreate_deps: bool,
    /// Accepted for compatibility: a container that is replaced always gets new anonymous volumes
    #[arg(short = 'V', long)]
    renew_anon_volumes: bool,
    /// Number of containers of a service
    #[arg(long, value_name = "SERVICE=N")]
    scale: Vec<String>,
    /// Remove containers of services that the files no longer define
    #[arg(long)]
    remove_orphans: bool,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    flags: CreateFlags,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Start in the background
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    flags: CreateFlags,
    /// Create the containers without starting them, as `compose create` does
    #[arg(long, conflicts_with_all = ["detach", "wait", "abort_on_container_exit", "exit_code_from"])]
    no_start: bool,
    /// Wait until the services run and are healthy; implies `--detach`
    #[arg(long)]
    wait: bool,
    /// Longest time for `--wait`, in seconds (default: no limit)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    wait_timeout: Option<u64>,
    /// Do not start the services that the named ones depend on
    #[arg(long)]
    no_deps: bool,
    /// Stop all containers when one ends
    #[arg(long, conflicts_with = "detach")]
    abort_on_container_exit: bool,
    /// Exit with the status of this service's container; implies `--abort-on-container-exit`
    #[arg(long, value_name = "SERVICE", conflicts_with = "detach")]
    exit_code_from: Option<String>,
    /// Show the output of this service only; may be given more than once
    #[arg(long, value_name = "SERVICE", conflicts_with = "attach_dependencies")]
    attach: Vec<String>,
    /// Show the output of the services that the named ones depend on too
    #[arg(long)]
    attach_dependencies: bool,
    /// Do not show the output of this service; may be given more than once
    #[arg(long, value_name = "SERVICE")]
    no_attach: Vec<String>,
    /// Seconds between the stop signal and SIGKILL for containers that are replaced or stopped (default: the container's)
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    timeout: Option<u64>,
    /// Print log lines without color
    #[arg(long)]
    no_color: bool,
    /// Print log lines without the name of their container
    #[arg(long)]
    no_log_prefix: bool,
    /// Print the time of each log line
    #[arg(long)]
    timestamps: bool,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

pub(super) fn create(
    args: &CreateArgs,
    compose: &ComposeArgs,
    context: &Context,
    check: CheckRun,
) -> Result<u8, Report> {
    let project = compose.project(&args.services, true)?;
    let mut plans = compose.plans(&project)?;
    scale(&mut plans, &args.flags.scale)?;
    let starter = Starter { context, project: &project, plans: &plans, timeout: None, starts: false };
    let _lock = prepare(&starter, &args.flags, check)?;
    starter.start(&recreate(&args.flags, &args.services), &Progress::default())?;
    Ok(0)
}

/// Checks the services, gets their images, locks the project, and handles the containers of other services.
fn prepare(starter: &Starter<'_>, flags: &CreateFlags, check: CheckRun) -> Result<Option<FileLock>, Report> {
    starter.check(check)?;
    let all = flags.build || flags.pull.as_deref() == Some("build");
    starter.images(all, flags.no_build, flags.pull.as_deref(), flags.quiet_pull)?;
    let lock = lock::of_project(starter.context, &starter.project.name)?;
    starter.orphans(flags.remove_orphans)?;
    Ok(lock)
}

pub(super) fn run(args: &UpArgs, compose: &ComposeArgs, context: &Context, check: CheckRun) -> Result<u8, Report> {
    let project = compose.project(&args.services, !args.no_deps)?;
    let mut plans = compose.plans(&project)?;
    scale(&mut plans, &args.flags.scale)?;
    if let Some(service) = args.exit_code_from.as_ref().filter(|name| !plans.services.contains_key(*name)) {
        return Err(Report::new(format!("there is no service `{service}` for `--exit-code-from`")));
    }
    let shown = shown(args, &project)?;
    let since = crate::clock::now();
    let starter = Starter { context, project: &project, plans: &plans, timeout: args.timeout, starts: !args.no_start };
    let lock = prepare(&starter, &args.flags, check)?;
    let progress = Progress::default();
    if args.detach || args.wait || args.no_start || context.dry_run {
        starter.start(&recreate(&args.flags, &args.services), &progress)?;
        drop(lock);
        if args.wait && !context.dry_run {
            starter.wait(args.wait_timeout)?;
        }
        return Ok(0);
    }
    // From here on, ctrl-c stops what has been started.
    let signals = take_signals()?;
    let (started, interrupted) = logs::interruptible(
        &signals,
        || progress.cancel(),
        || starter.start(&recreate(&args.flags, &args.services), &progress),
    );
    let services: Vec<String> = plans.services.keys().cloned().collect();
    let foreground = logs::Foreground {
        project: &project.name,
        services: &services,
        shown: &shown,
        signals: &signals,
        abort: args.abort_on_container_exit || args.exit_code_from.is_some(),
        exit_code_from: args.exit_code_from.as_deref(),
        timeout: args.timeout,
        style: logs::Style::new(compose.ansi, args.no_color, args.no_log_prefix, args.timestamps),
        since,
    };
    if interrupted {
        return logs::stop_all(context, &foreground).map(|()| 130);
    }
    started?;
    // Other commands may change the project while its output is shown.
    drop(lock);
    logs::foreground(context, &foreground)
}

/// The services whose output `up` shows. As in docker, those are the named ones, as far as their `attach` says nothing else.
fn shown(args: &UpArgs, project: &Project) -> Result<Vec<String>, Report> {
    let all: Vec<&str> = project.service_names().collect();
    for (flag, names) in [("--attach", &args.attach), ("--no-attach", &args.no_attach)] {
        if let Some(name) = names.iter().find(|name| !all.contains(&name.as_str())) {
            return Err(Report::new(format!("there is no service `{name}` for `{flag}`"))
                .with_hint(format!("the services are: {}", all.join(", "))));
        }
    }
    let named = |name: &str| args.services.is_empty() || args.services.iter().any(|service| service == name);
    let is_shown = |name: &str| match &args.attach[..] {
        [] => project.attaches(name) && (args.attach_dependencies || named(name)),
        chosen => chosen.iter().any(|service| service == name),
    };
    let hidden = |name: &str| args.no_attach.iter().any(|service| service == name);
    Ok(all.into_iter().filter(|name| is_shown(name) && !hidden(name)).map(str::to_owned).collect())
}

/// Which containers are replaced: those of the named services, and those of the services that they depend on.
fn recreate(args: &CreateFlags, named: &[String]) -> Choice {
    let (named_ones, others) = match (args.force_recreate, args.no_recreate, args.always_recreate_deps) {
        (_, true, _) => (Recreate::None, Recreate::None),
        (true, _, deps) => (Recreate::All, if deps { Recreate::All } else { Recreate::Changed }),
        (_, _, true) => (Recreate::Changed, Recreate::All),
        _ => (Recreate::Changed, Recreate::Changed),
    };
    Choice { named: named.to_vec(), named_ones, others }
}

fn scale(plans: &mut Plans, texts: &[String]) -> Result<(), Report> {
    for text in texts {
        let wrong =
            |why: &str| Report::usage(format!("`--scale {text}` {why}")).with_hint("for example `--scale worker=3`");
        let (name, number) = text.split_once('=').ok_or_else(|| wrong("is not `SERVICE=N`"))?;
        let number: u32 = number.parse().map_err(|_| wrong("has no number"))?;
        let plan = plans.services.get_mut(name).ok_or_else(|| wrong("names no service"))?;
        if number > 1 && plan.container_name.is_some() {
            return Err(wrong("cannot be used: a service with `container_name` has one container only"));
        }
        plan.scale = number;
    }
    Ok(())
}
