//! `gpurun image bootstrap`: a base image without any registry.

use clap::Args;

use super::print;
use crate::build::{Bootstrap, bootstrap};
use crate::cli::print::say;
use crate::names::Reference;
use crate::report::Report;
use crate::store::Store;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun image bootstrap debian:bookworm-slim\n  gpurun image bootstrap ubuntu:24.04 --include python3,git\n\n\
        Needs mmdebstrap. The host's apt sources and proxy are used where it runs the same release. SOURCE_DATE_EPOCH makes it reproducible."
)]
pub struct BootstrapArgs {
    /// debian:SUITE, debian:SUITE-slim or ubuntu:RELEASE: the name that the image gets
    #[arg(value_name = "NAME:TAG")]
    pub name: Reference,
    /// Packages to install besides the essential ones
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    pub include: Vec<String>,
    /// Take packages from there
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Make it anew even if the store has it
    #[arg(long)]
    pub force: bool,
    /// Print the image's id alone
    #[arg(short, long)]
    pub quiet: bool,
}

pub(super) fn run(store: &Store, args: &BootstrapArgs) -> Result<(), Report> {
    if !args.force && store.contains(&args.name.to_string())? {
        let image = store.resolve(&args.name.to_string())?;
        if !args.quiet {
            say(&format!("`{}` is in the store already; `--force` makes it anew", args.name.familiar()));
        }
        return print(&format!("{}\n", image.id));
    }
    let clamp = crate::cli::build::source_date_epoch(None)?;
    let asked =
        Bootstrap { name: args.name.clone(), include: args.include.clone(), mirror: args.mirror.clone(), clamp };
    if !args.quiet {
        say(&format!("making `{}` from its distribution's packages", args.name.familiar()));
    }
    let id = bootstrap(store, &asked, &mut |line| say(line))?;
    print(&format!("{id}\n"))
}
