//! The commands with which gpurun runs itself. Users do not call them.
//!
//! They have a separate parser. Building the parser of the complete command line takes a millisecond, and every
//! container start runs two or more of these processes.

use std::path::PathBuf;

use clap::{Args, Parser};

use super::lab;
use crate::report::Report;
use crate::{launch, net, runtime, spank, supervise};

#[derive(Debug, Parser)]
#[command(name = "gpurun", bin_name = "gpurun", disable_help_subcommand = true)]
enum Internal {
    Supervise(SuperviseArgs),
    LabPayload(lab::PayloadArgs),
    HookShim(HookShimArgs),
    GpuProbe(GpuProbeArgs),
    GpuParams,
    ExecHelper(Descriptors),
    ExecDrain(Descriptors),
    HealthCheck(Descriptors),
    WatchProbe(SuperviseArgs),
    Resolve(ResolveArgs),
    StepKeeper(StepKeeperArgs),
    StepEnter(StepEnterArgs),
    StepClean(StepCleanArgs),
}

const NAMES: [&str; 13] = [
    "supervise",
    "lab-payload",
    "hook-shim",
    "gpu-probe",
    "gpu-params",
    runtime::EXEC_HELPER,
    runtime::EXEC_DRAIN,
    launch::HEALTH_CHECK,
    supervise::probe::SUBCOMMAND,
    net::RESOLVE,
    launch::STEP_KEEPER,
    spank::STEP_ENTER,
    spank::STEP_CLEAN,
];

/// Returns whether this process runs an internal command.
pub(super) fn is_meant() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| NAMES.iter().any(|name| first == *name))
}

/// Returns whether this process is a supervisor.
pub(super) fn is_supervisor() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == NAMES[0])
}

pub(super) fn main() -> Result<u8, Report> {
    match Internal::parse() {
        Internal::Supervise(args) => supervise(&args),
        Internal::LabPayload(args) => Ok(lab::payload(&args)),
        Internal::HookShim(args) => Ok(crate::hook::shim::main(args.args)),
        Internal::GpuProbe(args) => Ok(crate::gpu::nvidia::nvml::main(&args.library)),
        Internal::ExecHelper(args) => Ok(runtime::exec_helper_main(&args.fds)),
        Internal::ExecDrain(args) => Ok(runtime::exec_drain_main(&args.fds)),
        Internal::HealthCheck(args) => Ok(launch::health_check_main(&args.fds)),
        Internal::WatchProbe(args) => supervise::probe::main(&args.root, &args.run_dir, &args.id),
        Internal::Resolve(args) => net::resolve_main(&args.fds, args.servers),
        Internal::StepKeeper(args) => step_keeper(args),
        Internal::StepEnter(args) => step_enter(args),
        Internal::StepClean(args) => step_clean(args),
        Internal::GpuParams => crate::gpu::nvidia::params::main().map(|()| 0),
    }
}

#[derive(Debug, Args)]
struct SuperviseArgs {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    /// The descriptor of the socket of the command that started it
    #[arg(long)]
    client: Option<i32>,
    id: String,
}

fn supervise(args: &SuperviseArgs) -> Result<u8, Report> {
    super::context::need_root()?;
    let client = args.client.and_then(crate::sys::process::take_inherited_fd);
    supervise::detach_from_terminal()?;
    supervise::diagnostics::begin(crate::record::diagnostics(&args.root, &args.id));
    let done =
        crate::launch::inherit::choose().and_then(|()| supervise::main(&args.root, &args.run_dir, &args.id, client));
    // Standard error is /dev/null.
    done.map(|()| 0).inspect_err(|report| tracing::error!("{report}"))
}

#[derive(Debug, Args)]
struct StepKeeperArgs {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    /// The pidfd of the command that launches the container
    #[arg(long)]
    client: i32,
    /// The pidfd of the step's slurmstepd
    #[arg(long)]
    daemon: Option<i32>,
    id: String,
}

fn step_keeper(args: StepKeeperArgs) -> Result<u8, Report> {
    supervise::detach_from_terminal()?;
    let take = crate::sys::process::take_inherited_fd;
    let client = take(args.client).ok_or_else(|| Report::new("the command's descriptor is not open"))?;
    let daemon = args.daemon.and_then(take);
    launch::step_keeper_main(&args.root, &args.run_dir, &args.id, client, daemon).map(|()| 0)
}

/// The directories have the defaults of the other commands.
#[derive(Debug, Args)]
struct StepEnterArgs {
    #[command(flatten)]
    globals: super::Globals,
}

fn step_enter(args: StepEnterArgs) -> Result<u8, Report> {
    super::context::need_root()?;
    let context = super::Context::new(&args.globals)?;
    context.check()?;
    spank::step_enter_main(context.root, context.run_dir).map(|()| 0)
}

#[derive(Debug, Args)]
struct StepCleanArgs {
    #[command(flatten)]
    globals: super::Globals,
    /// The number of the job
    job: u32,
}

fn step_clean(args: StepCleanArgs) -> Result<u8, Report> {
    super::context::need_root()?;
    let context = super::Context::new(&args.globals)?;
    context.check()?;
    spank::step_clean_main(context.root, context.run_dir, args.job).map(|()| 0)
}

#[derive(Debug, Args)]
struct Descriptors {
    fds: Vec<i32>,
}

#[derive(Debug, Args)]
struct ResolveArgs {
    #[arg(long = "fd")]
    fds: Vec<i32>,
    servers: Vec<std::net::IpAddr>,
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
    fn internal_names_are_not_user_commands() {
        let own: Vec<String> = Internal::command().get_subcommands().map(|command| command.get_name().into()).collect();
        assert_eq!(own, NAMES);
        let all = super::super::Cli::command();
        assert!(NAMES.iter().all(|name| all.find_subcommand(name).is_none()));
    }
}
