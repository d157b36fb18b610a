//! The commands that gpurun runs itself as: no person types them.
//!
//! They have a parser of their own. Building the whole command line's takes a millisecond, and every start of a container has two of these
//! processes or more.

use std::path::{Path, PathBuf};

use clap::{Args, Parser};

use super::lab;
use crate::report::Report;
use crate::supervise;

#[derive(Debug, Parser)]
#[command(name = "gpurun", bin_name = "gpurun", disable_help_subcommand = true)]
enum Internal {
    Supervise(SuperviseArgs),
    LabPayload(lab::PayloadArgs),
    HookShim(HookShimArgs),
    GpuProbe(GpuProbeArgs),
    GpuParams,
}

const NAMES: [&str; 5] = ["supervise", "lab-payload", "hook-shim", "gpu-probe", "gpu-params"];

/// Whether this process is one of them.
pub fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| NAMES.iter().any(|name| first == *name))
}

pub fn main() -> Result<u8, Report> {
    match Internal::parse() {
        Internal::Supervise(args) => supervise(&args.root, &args.run_dir, &args.id),
        Internal::LabPayload(args) => Ok(lab::payload(&args)),
        Internal::HookShim(args) => Ok(crate::hook::shim::main(args.args)),
        Internal::GpuProbe(args) => Ok(crate::gpu::nvml::main(&args.library)),
        Internal::GpuParams => crate::gpu::params::main().map(|()| 0),
    }
}

#[derive(Debug, Args)]
struct SuperviseArgs {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    id: String,
}

fn supervise(root: &Path, run_dir: &Path, id: &str) -> Result<u8, Report> {
    super::need_root()?;
    let client = supervise::inherited_client();
    supervise::detach_from_terminal()?;
    supervise::main(root, run_dir, id, client)?;
    Ok(0)
}

#[derive(Debug, Args)]
struct HookShimArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
struct GpuProbeArgs {
    library: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parser_knows_the_names_and_no_person_s_command_is_among_them() {
        let own: Vec<String> = Internal::command().get_subcommands().map(|command| command.get_name().into()).collect();
        assert_eq!(own, NAMES);
        let all = super::super::Cli::command();
        assert!(NAMES.iter().all(|name| all.find_subcommand(name).is_none()));
    }
}
