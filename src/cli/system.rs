//! `gpurun system df | prune`, and `gpurun container prune`.

use clap::{Args, Subcommand};

use super::confirm::confirm;
use super::disk_usage::{self, DfArgs};
use super::exists::{ExistsArgs, existence};
use super::filter::Filters;
use super::view::{Images, View};
use super::{Context, image, moment, network, print, view, volume};
use crate::launch;
use crate::record::{Phase, State, history};
use crate::report::Report;
use crate::supervise::diagnostics;

#[derive(Debug, Args)]
pub(super) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Show the disk usage of images, containers, volumes and the build cache
    Df(DfArgs),
    /// Remove containers that do not run, unused networks and images, and the build cache
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Remove all images without a container, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Remove unused volumes too; with `--all`, also those with a name
    #[arg(long)]
    volumes: bool,
    /// Select what is removed: until=TIME, label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ContainerArgs {
    #[command(subcommand)]
    command: ContainerCommand,
}

#[derive(Debug, Subcommand)]
enum ContainerCommand {
    /// Exit with status 0 if a container exists, and with 1 if not
    Exists(ExistsArgs),
    /// Remove all containers that do not run
    Prune(ContainerPruneArgs),
}

#[derive(Debug, Args)]
struct ContainerPruneArgs {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Select containers: until=TIME, label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(super) fn run(args: &SystemArgs, context: &Context) -> Result<u8, Report> {
    match &args.command {
        SystemCommand::Df(args) => disk_usage::df(args, context),
        SystemCommand::Prune(args) => prune(args, context),
    }
}

pub(super) fn container(args: &ContainerArgs, context: &Context) -> Result<u8, Report> {
    let args = match &args.command {
        ContainerCommand::Exists(args) => return Ok(existence(!context.records()?.snapshot()?.lacks(&args.name))),
        ContainerCommand::Prune(args) => args,
    };
    if !args.force {
        confirm("all containers that do not run", "gpurun container prune --force")?;
    }
    let (ids, bytes) = prune_containers(&args.filter, context)?;
    deleted("Containers", &ids)?;
    print::out(&format!("Total reclaimed space: {}\n", image::size(bytes)))?;
    Ok(0)
}

fn deleted(what: &str, names: &[String]) -> Result<(), Report> {
    if names.is_empty() {
        return Ok(());
    }
    print::out(&format!("Deleted {what}:\n{}\n\n", names.join("\n")))
}

/// Removes the containers that do not run. Returns their IDs and the size of their files in bytes.
fn prune_containers(filters: &[String], context: &Context) -> Result<(Vec<String>, u64), Report> {
    let filters = Filters::parse(filters, &["until", "label"])?;
    let until = filters.values("until").last().map(|text| moment::parse("--filter until", text)).transpose()?;
    let records = context.records()?;
    let images = Images::new(context.store().ok());
    let (mut ids, mut bytes) = (Vec::new(), 0);
    let _lock = records.lock()?;
    for entry in records.list()? {
        let state = entry.state_shown()?;
        let view = View::new(&entry, &state, &images, &context.root);
        let is_wanted = until.is_none_or(|until| entry.record.created < until) && filters.labels(&view.labels());
        if !is_wanted || is_up(&state) || !entry.is_idle()? {
            continue;
        }
        // Its volumes would be lost for the container that uses them.
        if launch::user_of_volumes(&records, &entry)?.is_some() {
            continue;
        }
        bytes += view::size_of(&entry.dir);
        launch::remove(&records, &entry)?;
        history::note_removal(records.run_dir(), &entry.record, &state);
        diagnostics::remove(&entry.diagnostics());
        ids.push(entry.record.id.clone());
    }
    Ok((ids, bytes))
}

fn is_up(state: &State) -> bool {
    matches!(state.phase, Phase::Running | Phase::Restarting)
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, Report> {
    let filters = Filters::parse(&args.filter, &["until", "label"])?;
    if args.volumes && filters.has("until") {
        return Err(Report::usage(
            "`--filter until` and `--volumes` cannot be used together: a volume has no last use",
        )
        .with_hint("omit one of them"));
    }
    if !args.force {
        let images = if args.all { "all images without a container" } else { "all images without a name" };
        let volumes = if args.volumes { ", all unused volumes" } else { "" };
        let what =
            format!("all containers that do not run, all unused networks{volumes}, {images} and the build cache");
        confirm(&what, "gpurun system prune --force")?;
    }
    let (ids, mut bytes) = prune_containers(&args.filter, context)?;
    deleted("Containers", &ids)?;
    deleted("Networks", &network::prune_unused(&args.filter, context)?)?;
    if args.volumes {
        let volumes = volume::PruneArgs { all: args.all, force: true, filter: args.filter.clone() };
        let (names, freed) = volume::prune_unused(&volumes, context)?;
        deleted("Volumes", &names)?;
        bytes += freed;
    }
    bytes += image::prune_for_system(context, args.all, &args.filter)?;
    // They are made again when they are needed.
    let drivers = context.root.join("drivers");
    crate::rootfs::driver_layer::prune(&drivers).map_err(|error| {
        Report::new(format!("cannot remove the unused layers of drivers in `{}`", drivers.display())).with_cause(error)
    })?;
    // As in docker, a part of the build cache has no labels.
    if !filters.has("label") && !filters.has("label!") {
        let until = filters.values("until").last().map(|text| moment::parse("--filter until", text)).transpose()?;
        let selection = image::CacheSelection { all: args.all, until, ..image::CacheSelection::default() };
        let (parts, freed) = image::prune_cache(context, &selection)?;
        deleted("build cache objects", &parts)?;
        bytes += freed;
    }
    print::out(&format!("Total reclaimed space: {}\n", image::size(bytes)))?;
    Ok(0)
}
