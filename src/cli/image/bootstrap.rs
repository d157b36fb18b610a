//! `gpurun image bootstrap`: creates a base image without a registry.

use clap::Args;

use super::text::print;
use crate::build::{Bootstrap, bootstrap};
use crate::cli::print::say;
use crate::names::Reference;
use crate::report::Report;
use crate::store::Store;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun image bootstrap debian:bookworm-slim\n  gpurun image bootstrap ubuntu:24.04 --include python3,git\n\n\
        This command needs mmdebstrap. It uses this host's apt sources and proxy if the host runs the same release. SOURCE_DATE_EPOCH makes the image reproducible."
)]
pub(crate) struct BootstrapArgs {
    /// Distribution and name of the image: debian:SUITE, debian:SUITE-slim or ubuntu:RELEASE
    #[arg(value_name = "NAME:TAG")]
    pub name: Reference,
    /// Additional packages, separated by commas
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    pub include: Vec<String>,
    /// Mirror to take packages from
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Create the image again if it is in the store
    #[arg(long)]
    pub force: bool,
    /// Print only the image's ID
    #[arg(short, long)]
    pub quiet: bool,
}

pub(super) fn run(store: &Store, args: &BootstrapArgs) -> Result<(), Report> {
    if !args.force && store.contains(&args.name.to_string())? {
        let image = store.resolve(&args.name.to_string())?;
        if !args.quiet {
            say(&format!("`{}` is already in the store; `--force` creates it again", args.name.familiar()));
        }
        return print(&format!("{}\n", image.id));
    }
    let clamp = crate::cli::moment::source_date_epoch(None)?;
    let asked =
        Bootstrap { name: args.name.clone(), include: args.include.clone(), mirror: args.mirror.clone(), clamp };
    if !args.quiet {
        say(&format!("creating `{}` from its distribution's packages", args.name.familiar()));
    }
    let id = bootstrap(store, &asked, &mut |line| say(line))?;
    print(&format!("{id}\n"))
}
