//! `gpurun builder prune | du` and `gpurun buildx`, docker's names for what belongs to builds. `build` below them is
//! `gpurun build` (see `synonyms`).

use clap::{Args, Subcommand};

use super::confirm::confirm;
use super::filter::Filters;
use super::image::{CachePart, CacheSelection, cache_parts, prune_cache, size};
use super::versions::BUILDX_VERSION;
use super::{Context, moment, print, view};
use crate::report::{EXIT_USAGE, Report};
use crate::units::parse_memory;

#[derive(Debug, Args)]
pub(super) struct BuilderArgs {
    #[command(subcommand)]
    command: BuilderCommand,
}

#[derive(Debug, Subcommand)]
enum BuilderCommand {
    /// Show the disk usage of the build cache
    Du(DuArgs),
    /// Remove the build cache
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct DuArgs {
    /// Select parts: until=TIME of the last use, type=regular|exec.cachemount
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Remove steps whose layers an image has, too
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Select parts: until=TIME of the last use, type=regular|exec.cachemount
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Keep this much of what was used last
    #[arg(long, visible_alias = "reserved-space", alias = "max-used-space", value_name = "SIZE")]
    keep_storage: Option<String>,
}

const FILTERS: [&str; 3] = ["until", "unused-for", "type"];

fn selection(filters: &[String]) -> Result<CacheSelection, Report> {
    let filters = Filters::parse(filters, &FILTERS)?;
    let mut until = None;
    for key in ["unused-for", "until"] {
        let time = |text: &str| moment::parse(&format!("--filter {key}"), text);
        until = filters.values(key).last().map(time).transpose()?.or(until);
    }
    let kinds = filters.values("type").map(str::to_owned).collect();
    Ok(CacheSelection { until, kinds, ..CacheSelection::default() })
}

pub(super) fn run(args: &BuilderArgs, context: &Context) -> Result<u8, Report> {
    match &args.command {
        BuilderCommand::Du(args) => du(args, context),
        BuilderCommand::Prune(args) => prune(args, context),
    }
}

fn du(args: &DuArgs, context: &Context) -> Result<u8, Report> {
    let selection = selection(&args.filter)?;
    let mut parts = cache_parts(context)?;
    parts.retain(|part| selection.takes(part));
    parts.sort_by_key(|part| std::cmp::Reverse(part.used));
    let cells: Vec<Vec<String>> = parts
        .iter()
        .map(|part| vec![part.id.clone(), part.is_reclaimable().to_string(), size(part.size), view::ago(part.used)])
        .collect();
    print::show_table(&["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"], &cells)?;
    let sum =
        |is_wanted: &dyn Fn(&&CachePart) -> bool| size(parts.iter().filter(is_wanted).map(|part| part.size).sum());
    print::out(&format!("Reclaimable:  {}\nTotal:        {}\n", sum(&|part| part.is_reclaimable()), sum(&|_| true)))?;
    Ok(0)
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, Report> {
    let mut selection = selection(&args.filter)?;
    selection.all = args.all;
    if let Some(text) = &args.keep_storage {
        let refused =
            |error| Report::from(error).under(format!("cannot use `--keep-storage {text}`")).with_exit_code(EXIT_USAGE);
        selection.keep = parse_memory(text).map_err(refused)?;
    }
    if !args.force {
        let which = if args.all { "the whole build cache" } else { "the build cache that no image shares" };
        confirm(which, "gpurun builder prune --force")?;
    }
    let (ids, bytes) = prune_cache(context, &selection)?;
    if !ids.is_empty() {
        print::out(&format!("Deleted build cache objects:\n{}\n\n", ids.join("\n")))?;
    }
    print::out(&format!("Total reclaimed space: {}\n", size(bytes)))?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(super) struct BuildxArgs {
    #[command(subcommand)]
    command: BuildxCommand,
}

#[derive(Debug, Subcommand)]
enum BuildxCommand {
    /// Show the version of docker buildx whose command line gpurun follows
    Version,
}

/// Programs look for a number of three parts, and for whether the command exists.
pub(super) fn buildx(args: &BuildxArgs) -> Result<u8, Report> {
    match args.command {
        BuildxCommand::Version => {
            print::out(&format!("gpurun/buildx v{BUILDX_VERSION} gpurun-{}\n", env!("CARGO_PKG_VERSION")))?;
        }
    }
    Ok(0)
}
