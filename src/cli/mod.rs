//! The command line: arguments, printing, exit codes. One file a command; a command's `--help` is the only place where its flags are
//! documented.

mod attach;
mod build;
mod build_output;
mod change;
mod commit;
mod containers;
mod copy;
mod detach;
mod doctor;
mod events;
mod exec;
mod explain;
mod flags;
mod gpus;
mod image;
mod inspect;
mod internal;
mod jupyter;
mod lab;
mod logs;
mod misread;
mod print;
mod ps;
mod request;
mod resources;
mod run;
mod session;
mod stats;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::record::Records;
use crate::report::{EXIT_USAGE, Report};

/// Run an image as a hard-limited container: `gpurun --image IMAGE` starts Jupyter in it, `gpurun run IMAGE COMMAND` anything else.
#[derive(Debug, Parser)]
#[command(
    name = "gpurun",
    version,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  gpurun image load jupyter.tar\n  gpurun --image jupyter --mem 2g --cpus 1.5 -v \"$PWD\":/work/share -p 8888:8888\n  gpurun run --rm -it jupyter bash\n  gpurun ps -a"
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    jupyter: jupyter::JupyterArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where everything lies.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global")]
pub struct Globals {
    /// Directory of images, containers and volumes
    #[arg(long, global = true, value_name = "DIR", env = "GPURUN_ROOT", default_value = "/var/lib/gpurun")]
    pub root: PathBuf,
    /// Directory of what does not survive a reboot
    #[arg(long, global = true, value_name = "DIR", env = "GPURUN_RUN", default_value = "/run/gpurun")]
    pub run_dir: PathBuf,
    /// Say more; `-v` is taken by volumes, as in docker
    #[arg(long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<run::RunArgs>),
    /// List containers
    Ps(ps::PsArgs),
    /// Run another command in a running container
    Exec(exec::ExecArgs),
    /// Show a container's output
    Logs(logs::LogsArgs),
    /// Attach this terminal to a running container
    Attach(attach::AttachArgs),
    /// Start containers that have ended
    Start(containers::StartArgs),
    /// Stop and start containers
    Restart(containers::RestartArgs),
    /// Stop containers in good order
    Stop(containers::StopArgs),
    /// Send a signal to containers
    Kill(containers::KillArgs),
    /// Remove containers
    Rm(containers::RmArgs),
    /// Give a container another name
    Rename(containers::RenameArgs),
    /// Show what limits become in the kernel, what they do, and why
    Explain(Box<explain::ExplainArgs>),
    /// Look for what is wrong with this host, with a way out for each finding
    Doctor(doctor::DoctorArgs),
    /// Guided experiments with the kernel's limits, a few seconds each
    Lab(lab::LabArgs),
    /// Change limits of containers, running or not
    Update(Box<change::UpdateArgs>),
    /// Freeze containers: their processes get no CPU time until `resume`
    Pause(change::PauseArgs),
    /// Let paused containers go on
    #[command(visible_alias = "unpause")]
    Resume(change::PauseArgs),
    /// Show what containers use: memory, CPU, processes, I/O, pressure
    Stats(stats::StatsArgs),
    /// Show what happens to containers, as it happens
    Events(events::EventsArgs),
    /// Wait until containers have ended and print their exit codes
    Wait(containers::WaitArgs),
    /// Show everything about containers or images, as JSON
    Inspect(inspect::InspectArgs),
    /// Make an image of what a container has changed
    Commit(commit::CommitArgs),
    /// Copy files into or out of a container
    Cp(copy::CopyArgs),
    /// List the files that a container has added, changed or deleted
    Diff(commit::DiffArgs),
    /// Write all files of a container as a tar
    Export(commit::ExportArgs),
    /// Build an image from a Containerfile
    Build(Box<build::BuildArgs>),
    /// Load, list, inspect and remove images
    Image(image::ImageArgs),
    /// List the host's GPUs, and who uses which
    Gpus(gpus::GpusArgs),
    /// Print the hash of a Jupyter password
    Token(token::TokenArgs),
}

/// What every command gets.
#[derive(Debug, Clone)]
pub struct Context {
    pub root: PathBuf,
    pub run_dir: PathBuf,
    pub verbose: bool,
}

impl Context {
    /// The containers' records, after what dead supervisors left has been cleared away.
    pub fn records(&self) -> Result<Records, Report> {
        let records = Records::open(&self.root, &self.run_dir)?;
        crate::launch::reconcile(&records)?;
        lab::sweep()?;
        Ok(records)
    }

    pub fn store(&self) -> Result<crate::store::Store, Report> {
        Ok(crate::store::Store::open(&self.root)?)
    }
}

/// Parses, dispatches, prints the error if there is one.
pub fn main() -> ExitCode {
    init_tracing();
    if internal::is_meant() {
        return finish(internal::main());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
            if let Some(report) = misread::explain(&error, &args) {
                return finish(Err(report));
            }
            // clap prints help on stdout with status 0, errors on stderr with status 2
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let context =
        Context { root: cli.globals.root.clone(), run_dir: cli.globals.run_dir.clone(), verbose: cli.globals.verbose };
    finish(dispatch(cli, &context))
}

fn finish(done: Result<u8, Report>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(report) => {
            print::say(&report.to_string());
            ExitCode::from(report.exit_code)
        }
    }
}

fn dispatch(cli: Cli, context: &Context) -> Result<u8, Report> {
    let Some(command) = cli.command else {
        need_root()?;
        return jupyter::run(&cli.jupyter, context);
    };
    // What only teaches looks at nothing that a student may not see.
    let anybody = match &command {
        Command::Token(_) => true,
        Command::Explain(args) => args.names_no_container(),
        Command::Lab(args) => args.lists(),
        _ => false,
    };
    if !anybody {
        need_root()?;
    }
    match command {
        Command::Run(args) => run::run(&args, context),
        Command::Ps(args) => ps::run(&args, context),
        Command::Exec(args) => exec::run(&args, context),
        Command::Logs(args) => logs::run(&args, context),
        Command::Attach(args) => attach::run(&args, context),
        Command::Start(args) => containers::start(&args, context),
        Command::Restart(args) => containers::restart(&args, context),
        Command::Stop(args) => containers::stop(&args, context),
        Command::Kill(args) => containers::kill(&args, context),
        Command::Rm(args) => containers::rm(&args, context),
        Command::Rename(args) => containers::rename(&args, context),
        Command::Wait(args) => containers::wait(&args, context),
        Command::Explain(args) => explain::run(&args, context),
        Command::Doctor(args) => doctor::run(&args, context),
        Command::Lab(args) => lab::run(&args),
        Command::Update(args) => change::update(&args, context),
        Command::Pause(args) => change::pause(&args, true, context),
        Command::Resume(args) => change::pause(&args, false, context),
        Command::Stats(args) => stats::run(&args, context),
        Command::Events(args) => events::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Commit(args) => commit::commit(&args, context),
        Command::Cp(args) => copy::run(&args, context),
        Command::Diff(args) => commit::diff(&args, context),
        Command::Export(args) => commit::export(&args, context),
        Command::Build(args) => build::run(&args, context),
        Command::Image(args) => image::run(&args, context),
        Command::Gpus(args) => gpus::run(&args, context),
        Command::Token(args) => token::run(&args),
    }
}

fn need_root() -> Result<(), Report> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Report::new("gpurun needs root: it makes namespaces, mounts and cgroups").with_hint("try `sudo gpurun …`"))
}

/// `GPURUN_LOG=debug` (the syntax of tracing's EnvFilter) shows what happens inside.
fn init_tracing() {
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = tracing_subscriber::EnvFilter::try_from_env("GPURUN_LOG").unwrap_or_else(|_| "gpurun=warn".into());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    // A line that cannot be written is told by `eprintln`, which panics where it cannot be written either.
    let lines = lines.log_internal_errors(false).with_filter(filter);
    tracing_subscriber::registry().with(lines).init();
}
