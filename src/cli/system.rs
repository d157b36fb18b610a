//! `gpurun system df | prune`, and `gpurun container prune`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::confirm::confirm;
use super::filter::Filters;
use super::format::{self, Format, Titles};
use super::view::{Images, View};
use super::{Context, image, moment, print, view, volume};
use crate::launch;
use crate::record::{Phase, State};
use crate::report::Report;
use crate::supervise::diagnostics;
use crate::template::Value;

#[derive(Debug, Args)]
pub(super) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Show the disk usage of images, containers and volumes
    Df(DfArgs),
    /// Remove containers that do not run, and unused images
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "`gpurun image df` shows what the image store consists of.")]
struct DfArgs {
    /// Print a table of chosen fields, JSON lines (`json`), or a Go template for each row
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print a JSON array, in bytes
    #[arg(long, conflicts_with = "format")]
    json: bool,
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
    /// Select containers: until=TIME, label=KEY[=VALUE]
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
        SystemCommand::Df(args) => df(args, context),
        SystemCommand::Prune(args) => prune(args, context),
    }
}

pub(super) fn container(args: &ContainerArgs, context: &Context) -> Result<u8, Report> {
    let ContainerCommand::Prune(args) = &args.command;
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
        diagnostics::remove(&entry.diagnostics());
        ids.push(entry.record.id.clone());
    }
    Ok((ids, bytes))
}

fn is_up(state: &State) -> bool {
    matches!(state.phase, Phase::Running | Phase::Restarting)
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, Report> {
    if !args.force {
        let images = if args.all { "all images without a container" } else { "all images without a name" };
        let volumes = if args.volumes { ", all unused volumes" } else { "" };
        confirm(&format!("all containers that do not run{volumes} and {images}"), "gpurun system prune --force")?;
    }
    let (ids, mut bytes) = prune_containers(&args.filter, context)?;
    deleted("Containers", &ids)?;
    if args.volumes {
        let volumes = volume::PruneArgs { all: args.all, force: true, filter: Vec::new() };
        let (names, freed) = volume::prune_unused(&volumes, context)?;
        deleted("Volumes", &names)?;
        bytes += freed;
    }
    bytes += image::prune_for_system(context, args.all)?;
    print::out(&format!("Total reclaimed space: {}\n", image::size(bytes)))?;
    Ok(0)
}

const TITLES: &Titles = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

struct Row {
    kind: &'static str,
    total: usize,
    active: usize,
    /// Bytes.
    size: u64,
    reclaimable: u64,
}

impl Row {
    fn reclaimable(&self) -> String {
        let share = (self.size > 0).then(|| format!(" ({}%)", self.reclaimable * 100 / self.size));
        format!("{}{}", image::size(self.reclaimable), share.unwrap_or_default())
    }
}

fn df(args: &DfArgs, context: &Context) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let records = context.records()?;
    let mut containers = Row { kind: "Containers", total: 0, active: 0, size: 0, reclaimable: 0 };
    for entry in records.list()? {
        let size = view::size_of(&entry.dir);
        containers.total += 1;
        containers.size += size;
        match is_up(&entry.state_shown()?) {
            true => containers.active += 1,
            false => containers.reclaimable += size,
        }
    }
    let mut volumes = Row { kind: "Local Volumes", total: 0, active: 0, size: 0, reclaimable: 0 };
    for (used, size) in volume::sizes(context, &records)? {
        volumes.total += 1;
        volumes.size += size;
        volumes.active += usize::from(used);
        volumes.reclaimable += if used { 0 } else { size };
    }
    let (total, active, size, reclaimable) = image::usage_for_system(context)?;
    let images = Row { kind: "Images", total, active, size, reclaimable };
    // Steps are cached as images without a name, which are counted above.
    let cache = Row { kind: "Build Cache", total: 0, active: 0, size: 0, reclaimable: 0 };
    let rows = [images, containers, volumes, cache];
    if args.json {
        let list = rows.iter().map(|row| {
            json!({ "Type": row.kind, "TotalCount": row.total, "Active": row.active, "Size": row.size, "Reclaimable": row.reclaimable })
        });
        print::json(&list.collect::<Vec<_>>())?;
    } else if matches!(format, Format::Table) {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let (total, active) = (row.total.to_string(), row.active.to_string());
                vec![row.kind.to_owned(), total, active, image::size(row.size), row.reclaimable()]
            })
            .collect();
        print::show_table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &cells)?;
    } else {
        let values: Vec<Value> = rows
            .iter()
            .map(|row| {
                format::row([
                    ("Type", row.kind.into()),
                    ("TotalCount", row.total.to_string().into()),
                    ("Active", row.active.to_string().into()),
                    ("Size", image::size(row.size).into()),
                    ("Reclaimable", row.reclaimable().into()),
                ])
            })
            .collect();
        format.print(TITLES, &values)?;
    }
    Ok(0)
}
