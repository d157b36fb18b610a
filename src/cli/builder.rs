//! `gpurun builder` and `gpurun buildx`, docker's names for what belongs to builds. `build` below them is `gpurun build`
//! (see `synonyms`).

use clap::{Args, Subcommand};

use super::print;
use super::versions::BUILDX_VERSION;
use crate::report::Report;

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
