//! `gpurun inspect`: prints all data about containers, images, volumes and networks as JSON, in docker's shape.
//!
//! A container has docker's keys, as editors and scripts read them. gpurun's own details (the request, the limits as
//! the kernel has them, the GPUs) is below the key `Gpurun`.

mod container;

use clap::Args;
use serde_json::Value;

use super::Context;
use super::format::print_all;
use super::view::{Images, View};
use crate::report::Report;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun inspect lab\n  gpurun inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' lab\n  gpurun inspect -f '{{json .Gpurun.Limits}}' lab"
)]
pub(super) struct InspectArgs {
    /// Print a Go template for each object, or a JSON object per line (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Kind of the objects [default: the first one that exists, in this order]
    #[arg(long, value_name = "container|image|volume|network")]
    r#type: Option<Kind>,
    /// Show the sizes of containers' files
    #[arg(short, long)]
    size: bool,
    /// Accepted for symmetry: the output is always JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Show the newest container
    #[arg(short, long, conflicts_with_all = ["names", "type"])]
    latest: bool,
    /// Names or IDs of containers, images, volumes or networks
    #[arg(required_unless_present = "latest", value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Container,
    Image,
    Volume,
    Network,
}

pub(super) fn run(args: &InspectArgs, context: &Context) -> Result<u8, Report> {
    let (mut all, mut first) = (Vec::new(), None);
    let newest = if args.latest { vec![super::chosen::newest(&context.records()?)?] } else { Vec::new() };
    for name in args.names.iter().chain(&newest) {
        match object(args, name, context) {
            Ok(value) => all.push(value),
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    // As in docker, what was found is printed before the error.
    print_all(args.format.as_deref(), &all)?;
    first.map_or(Ok(0), Err)
}

fn object(args: &InspectArgs, name: &str, context: &Context) -> Result<Value, Report> {
    let wants = |kind| args.r#type.is_none_or(|wanted| wanted == kind);
    let records = context.records()?;
    let mut missing = None;
    if wants(Kind::Container) {
        match records.find(name) {
            Ok(entry) => {
                let state = entry.state()?;
                let images = Images::new(context.store().ok());
                let view = View::new(&entry, &state, &images, &context.root);
                return Ok(container::json(&view, args.size));
            }
            Err(report) => drop(missing.get_or_insert(report)),
        }
    }
    if wants(Kind::Image) {
        let store = context.store()?;
        match store.resolve(name) {
            Ok(image) => return Ok(super::image::inspect_json(&store, &image)),
            Err(error) => drop(missing.get_or_insert_with(|| super::image::in_store(error))),
        }
    }
    if wants(Kind::Volume) {
        match super::volume::find(context, name) {
            Ok(volume) => return Ok(volume),
            Err(report) => drop(missing.get_or_insert(report)),
        }
    }
    if wants(Kind::Network) {
        match super::network::found(context, name) {
            Ok(network) => return Ok(network),
            Err(report) => drop(missing.get_or_insert(report)),
        }
    }
    Err(missing.unwrap_or_else(|| Report::new(format!("there is no `{name}`"))))
}
