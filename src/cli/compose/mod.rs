//! `gpurun compose`: services from compose files. One file per group of subcommands.
//!
//! A project has no state of its own: its containers are found by their labels. Each container is started, stopped and
//! removed by the gpurun command that does this for any other container (see `child`).

mod act;
mod args;
mod build;
pub(super) mod child;
mod config;
mod containers;
mod end;
mod group;
mod lock;
mod logs;
mod networks;
mod once;
mod show;
mod start;
mod up;

use clap::{Args, Subcommand};

use args::{CheckRun, ComposeArgs};

use super::Context;
use crate::report::Report;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun compose build && gpurun compose up -d\n  gpurun compose logs -f\n  gpurun compose -f compose.yaml -f gpu.yaml config --services\n  gpurun compose down\n\nThe files are compose.yaml, compose.yml, docker-compose.yml or docker-compose.yaml, in this directory or above, with their override files. docs/compose.md lists the keys and the differences from docker."
)]
pub(super) struct ComposeCommand {
    #[command(flatten)]
    args: ComposeArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the images of services
    Build(build::BuildArgs),
    /// Merge and resolve the compose files, and print the result
    #[command(visible_alias = "convert")]
    Config(config::ConfigArgs),
    /// Create the containers of a project, without starting them
    Create(up::CreateArgs),
    /// Copy files between a service's container and this host
    Cp(once::CpArgs),
    /// Stop and remove the containers of a project
    Down(end::DownArgs),
    /// Execute a command in a service's container
    Exec(once::ExecArgs),
    /// List the images of the containers
    Images(show::ImagesArgs),
    /// Send a signal to the containers
    Kill(end::KillArgs),
    /// Show the output of services
    Logs(logs::LogsArgs),
    /// List the projects on this host
    Ls(show::LsArgs),
    /// Pause the containers of services
    Pause(end::ServicesArgs),
    /// Print the address of a published port
    Port(show::PortArgs),
    /// List the containers of a project
    Ps(show::PsArgs),
    /// Pull the images of services
    Pull(build::PullArgs),
    /// Restart the containers of services
    Restart(end::StopArgs),
    /// Remove stopped containers
    Rm(end::RmArgs),
    /// Run a command in a new container of a service
    Run(once::RunArgs),
    /// Start the containers that exist
    Start(end::ServicesArgs),
    /// Stop the containers of services
    Stop(end::StopArgs),
    /// Show the processes of each container
    Top(show::TopArgs),
    /// Resume the paused containers of services
    Unpause(end::ServicesArgs),
    /// Create and start the containers of a project
    Up(up::UpArgs),
    /// Show the version of docker compose whose command line gpurun follows
    Version(show::VersionArgs),
    /// Wait until the containers of services have ended
    Wait(end::WaitArgs),
}

impl ComposeCommand {
    /// Returns whether the command reads files of the caller only, or none, so that every user may run it.
    pub(super) fn reads_only(&self) -> bool {
        matches!(self.command, Command::Config(_) | Command::Version(_))
    }
}

pub(super) fn run(command: &ComposeCommand, context: &Context, check: CheckRun) -> Result<u8, Report> {
    let args = &command.args;
    let context = &Context { dry_run: args.dry_run, ..context.clone() };
    match &command.command {
        Command::Build(build) => build::run(build, args, context),
        Command::Config(config) => config::run(config, args),
        Command::Create(create) => up::create(create, args, context, check),
        Command::Cp(cp) => once::cp(cp, args, context),
        Command::Down(down) => end::down(down, args, context),
        Command::Exec(exec) => once::exec(exec, args, context),
        Command::Images(images) => show::images(images, args, context),
        Command::Kill(kill) => end::kill(kill, args, context),
        Command::Logs(logs) => logs::run(logs, args, context),
        Command::Ls(ls) => show::ls(ls, context),
        Command::Pause(pause) => end::pause(pause, args, context, true),
        Command::Unpause(pause) => end::pause(pause, args, context, false),
        Command::Port(port) => show::port(port, args, context),
        Command::Ps(ps) => show::ps(ps, args, context),
        Command::Pull(pull) => build::pull_command(pull, args, context),
        Command::Restart(restart) => end::restart(restart, args, context),
        Command::Rm(rm) => end::rm(rm, args, context),
        Command::Run(run) => once::run(run, args, context, check),
        Command::Start(start) => end::start(start, args, context),
        Command::Stop(stop) => end::stop_command(stop, args, context),
        Command::Top(top) => show::top(top, args, context),
        Command::Up(up) => up::run(up, args, context, check),
        Command::Version(version) => show::version(version),
        Command::Wait(wait) => end::wait(wait, args, context),
    }
}
