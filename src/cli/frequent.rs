//! The commands that start processes in containers, parsed without the definitions of all others.
//!
//! The complete definition has some seventy commands, and takes a millisecond to build: a twentieth of a container's start. For
//! `run` and `exec`, [`parse`] builds only the root's flags and those of the command. Whatever it does not accept (a mistake, `--help`)
//! is parsed again with the complete definition, whose messages are better.

use std::ffi::OsString;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::context::Globals;
use super::{command_line, exec, jupyter, run};

/// The command line, as far as it is defined here.
#[derive(Parser)]
#[command(name = "gpurun", subcommand_negates_reqs = true)]
pub(super) struct Short {
    #[command(flatten)]
    pub globals: Globals,
    #[command(flatten)]
    pub jupyter: jupyter::JupyterArgs,
    #[command(subcommand)]
    pub command: Frequent,
}

#[derive(Subcommand)]
pub(super) enum Frequent {
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
}

/// Parses the arguments that follow the program name. `None` if they do not begin with one of the commands, or are not valid.
/// `complete` adds the host's configuration to a definition, without the default of `--memory-swap` if the result `mixes_limits`.
pub(super) fn parse(
    args: &[OsString],
    complete: impl Fn(clap::Command, Option<&str>) -> clap::Command,
    mixes_limits: fn(&ArgMatches) -> bool,
) -> Option<Short> {
    if !["run", "exec"].iter().any(|name| args.first().is_some_and(|first| first == name)) {
        return None;
    }
    let mut command = complete(Short::command(), None);
    let args = command_line::prepare(&command, args.to_vec());
    let args: Vec<OsString> = std::iter::once("gpurun".into()).chain(args).collect();
    let mut matches = command.try_get_matches_from_mut(&args).ok()?;
    if mixes_limits(&matches) {
        matches = complete(Short::command(), Some("memory_swap")).try_get_matches_from_mut(&args).ok()?;
    }
    Short::from_arg_matches_mut(&mut matches).ok()
}
