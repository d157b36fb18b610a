//! `gpurun compose down`, `stop`, `start`, `restart`, `rm`, `kill` and `wait`: the life of containers that exist.

use clap::Args;

use super::super::resources::seconds;
use super::super::{Context, print};
use super::args::{ComposeArgs, Scope};
use super::containers::{self, Container, stop_order};
use super::group::{parallel, remove, stop, words};
use super::{act, child, lock, networks};
use crate::durable::FileLock;
use crate::report::Report;
use crate::request::parse_signal;

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    /// Remove the project's named volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Remove the services' images: all, or local (those without a name of their own)
    #[arg(long, value_name = "WHICH", value_parser = ["all", "local"])]
    rmi: Option<String>,
    /// Remove containers of services that the files no longer define
    #[arg(long)]
    remove_orphans: bool,
    /// Seconds between the stop signal and SIGKILL (default: the container's)
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    timeout: Option<u64>,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Seconds between the stop signal and SIGKILL (default: the container's)
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    timeout: Option<u64>,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Stop the containers first
    #[arg(short, long)]
    stop: bool,
    /// Accepted for compatibility: anonymous volumes are always removed
    #[arg(short, long)]
    volumes: bool,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// Signal to send, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL")]
    signal: String,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Remove the project when the first container ends
    #[arg(long)]
    down_project: bool,
    /// Services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

pub(super) fn down(args: &DownArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let scope = compose.scope(&[])?;
    let _lock = lock::of_project(context, &scope.name)?;
    let mut all = containers::every(context, &scope.name)?;
    let whole = args.services.is_empty();
    if whole {
        if let Some(project) = &scope.project {
            let known = project.all_service_names();
            let orphans = all.iter().any(|container| !known.contains(&container.service) && !container.oneoff);
            if orphans && !args.remove_orphans {
                all.retain(|container| known.contains(&container.service) || container.oneoff);
                print::say(
                    "gpurun: containers of services that the files do not define are left; `--remove-orphans` removes them",
                );
            }
        }
    } else {
        containers::select(&mut all, &args.services, &scope.services())?;
    }
    let has_networks = !networks::of(context, &scope.name)?.is_empty();
    if all.is_empty() && whole && !has_networks && !args.volumes && args.rmi.is_none() {
        print::say(&format!("gpurun: there is nothing to remove for the project `{}`", scope.name));
    }
    let images: Vec<(String, String)> =
        all.iter().map(|container| (container.service.clone(), container.entry.record.request.image.clone())).collect();
    remove(context, all, args.timeout, false)?;
    if !whole {
        return Ok(0);
    }
    networks::remove(context, &scope.name)?;
    let contents = containers::contents_directory(context, &scope.name);
    let removed = if context.dry_run { Ok(()) } else { std::fs::remove_dir_all(&contents) };
    if let Err(error) = removed.or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }) {
        return Err(Report::new(format!("cannot remove `{}`", contents.display())).with_cause(error));
    }
    if args.volumes {
        remove_volumes(context, &scope)?;
    }
    if let Some(which) = &args.rmi {
        remove_images(context, &scope, which == "all", &images)?;
    }
    Ok(0)
}

/// Removes the named volumes of the project. External volumes stay.
fn remove_volumes(context: &Context, scope: &Scope) -> Result<(), Report> {
    let Some(project) = &scope.project else {
        return Err(Report::usage("`--volumes` needs the compose files, which name the volumes")
            .with_hint("run the command in the directory of the files, or name them with `-f FILE`"));
    };
    let volumes = crate::volume::Volumes::new(&context.root);
    let mut first = None;
    for name in project.own_volumes() {
        // A volume that no container has used yet does not exist.
        if volumes.get(&name).is_err() {
            continue;
        }
        match act::run(context, &words(&["volume", "rm", &name]))?.check() {
            Ok(_) => act::announce(context, &format!(" Volume {name}  Removed")),
            Err(report) if first.is_none() => first = Some(report),
            Err(report) => print::say(&report.to_string()),
        }
    }
    first.map_or(Ok(()), Err)
}

fn remove_images(context: &Context, scope: &Scope, all: bool, used: &[(String, String)]) -> Result<(), Report> {
    let mut names: Vec<String> = used
        .iter()
        .filter(|(service, image)| all || *image == format!("{}-{service}", scope.name))
        .map(|(_, image)| image.clone())
        .collect();
    // Also those of services without containers.
    if let Some(project) = &scope.project {
        let services = project.service_names().filter(|service| all || !project.has_image(service));
        names.extend(services.map(|service| project.image(service)));
    }
    names.sort_unstable();
    names.dedup();
    let store = context.store()?;
    names.retain(|name| store.resolve(name).is_ok());
    for name in &names {
        match act::run(context, &words(&["image", "rm", name]))?.check() {
            Ok(_) => act::announce(context, &format!(" Image {name}  Removed")),
            // Another project may use it.
            Err(report) => print::say(&format!("gpurun: {}", report.message)),
        }
    }
    Ok(())
}

/// Returns the containers of the named services.
fn chosen(compose: &ComposeArgs, context: &Context, services: &[String]) -> Result<(Scope, Vec<Container>), Report> {
    let scope = compose.scope(&[])?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, services, &scope.services())?;
    Ok((scope, all))
}

/// Does the same under the lock of the project.
fn locked(
    compose: &ComposeArgs,
    context: &Context,
    services: &[String],
) -> Result<(Option<FileLock>, Scope, Vec<Container>), Report> {
    let scope = compose.scope(&[])?;
    let lock = lock::of_project(context, &scope.name)?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, services, &scope.services())?;
    Ok((lock, scope, all))
}

pub(super) fn stop_command(args: &StopArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let (_, all) = chosen(compose, context, &args.services)?;
    stop(context, all, args.timeout).map(|()| 0)
}

/// Starts containers that exist, in the order of their dependencies.
pub(super) fn start(args: &ServicesArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let (_lock, scope, all) = locked(compose, context, &args.services)?;
    if all.is_empty() {
        return Err(Report::new(format!("the project `{}` has no containers", scope.name))
            .with_hint("create them with `gpurun compose up -d`"));
    }
    start_all(context, all, false)
}

/// Starts the containers that do not run, or with `again`, those that have just been stopped.
fn start_all(context: &Context, all: Vec<Container>, again: bool) -> Result<u8, Report> {
    let mut groups = stop_order(all);
    groups.reverse();
    for group in &groups {
        parallel(group, |container| {
            if again || !container.is_running() {
                act::run(context, &words(&["start", container.name()]))?.check()?;
                act::announce(context, &format!(" Container {}  Started", container.name()));
            }
            Ok(())
        })?;
    }
    Ok(0)
}

/// Pauses or resumes the containers that run.
pub(super) fn pause(args: &ServicesArgs, compose: &ComposeArgs, context: &Context, paused: bool) -> Result<u8, Report> {
    let (_, mut all) = chosen(compose, context, &args.services)?;
    all.retain(|container| container.is_running() && container.state.paused != paused);
    let (command, done) = if paused { ("pause", "Paused") } else { ("resume", "Unpaused") };
    parallel(&all, |container| {
        act::run(context, &words(&[command, container.name()]))?.check()?;
        act::announce(context, &format!(" Container {}  {done}", container.name()));
        Ok(())
    })
    .map(|()| 0)
}

pub(super) fn restart(args: &StopArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let (_lock, scope, all) = locked(compose, context, &args.services)?;
    let mut names: Vec<String> = all.iter().map(|container| container.name().to_owned()).collect();
    // Services that depend on these with `restart: true` are restarted with them.
    let services: Vec<&str> = all.iter().map(|container| container.service.as_str()).collect();
    let every = containers::of(context, &scope.name)?;
    let dependent = every.iter().filter(|other| {
        other.is_running() && other.restarts_with().iter().any(|service| services.contains(&service.as_str()))
    });
    names.extend(dependent.map(|other| other.name().to_owned()));
    let of_names = |mut all: Vec<Container>| {
        all.retain(|container| names.iter().any(|name| name == container.name()));
        all
    };
    stop(context, of_names(every), args.timeout)?;
    // Nothing was stopped with `--dry-run`.
    start_all(context, of_names(containers::of(context, &scope.name)?), context.dry_run)
}

pub(super) fn rm(args: &RmArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let (scope, mut all) = chosen(compose, context, &args.services)?;
    if !args.stop {
        all.retain(|container| !container.is_running());
    }
    if all.is_empty() {
        print::say("gpurun: there are no stopped containers");
        return Ok(0);
    }
    if !args.force && !context.dry_run {
        let names: Vec<&str> = all.iter().map(Container::name).collect();
        print::say(&format!("Going to remove {}", names.join(", ")));
        print::write_stderr("Are you sure? [yN] ");
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .map_err(|error| Report::new("cannot read the answer").with_cause(error))?;
        if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            return Ok(0);
        }
    }
    // The wait for an answer is not under the lock. A container that has gone meanwhile counts as removed.
    let _lock = lock::of_project(context, &scope.name)?;
    remove(context, all, None, false).map(|()| 0)
}

pub(super) fn kill(args: &KillArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    parse_signal(args.signal.strip_prefix('-').unwrap_or(&args.signal))?;
    let (_, mut all) = chosen(compose, context, &args.services)?;
    all.retain(Container::is_running);
    parallel(&all, |container| {
        act::run(context, &words(&["kill", "--signal", &args.signal, container.name()]))?.check()?;
        act::announce(context, &format!(" Container {}  Killed", container.name()));
        Ok(())
    })
    .map(|()| 0)
}

pub(super) fn wait(args: &WaitArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let (_, all) = chosen(compose, context, &args.services)?;
    if all.is_empty() {
        return Err(Report::new("the services have no containers").with_hint("create them with `gpurun compose up -d`"));
    }
    let mut first = 0;
    for (index, container) in all.iter().enumerate() {
        let done = child::run(context, &words(&["wait", container.name()]))?.check()?;
        let code = done.out.trim().parse().unwrap_or(0);
        print::out(&format!("container \"{}\" exited with status code {code}\n", container.name()))?;
        if index == 0 {
            first = code;
        }
    }
    if args.down_project {
        let down = DownArgs { volumes: false, rmi: None, remove_orphans: false, timeout: None, services: Vec::new() };
        self::down(&down, compose, context)?;
    }
    Ok(first)
}
