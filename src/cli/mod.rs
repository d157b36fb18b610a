//! The command line: arguments, output, exit codes. Each command has its own file. The flags of a command are
//! documented only in its `--help`.

mod attach;
mod boot;
mod boot_unit;
mod build;
mod build_output;
mod build_result;
mod builder;
mod change;
mod chosen;
mod command_line;
mod commit;
mod completion;
mod compose;
mod confirm;
mod containers;
mod context;
mod copy;
mod create;
mod detach;
mod disk_usage;
mod docker_hints;
mod doctor;
mod events;
mod exec;
mod exists;
mod explain;
mod filter;
mod flags;
mod format;
mod frequent;
mod gpu_queue;
mod gpus;
mod healthcheck;
#[cfg(test)]
mod help_tests;
mod image;
mod info;
mod inspect;
mod internal;
mod jupyter;
mod lab;
mod launching;
mod login;
mod logs;
mod moment;
mod network;
mod network_ids;
mod new_container;
mod own_program;
mod port;
mod prepare;
mod print;
mod ps;
mod relay;
mod request;
mod resources;
mod run;
mod session;
mod shim;
mod stats;
mod step;
mod storage;
mod synonyms;
mod system;
#[cfg(test)]
mod tests;
mod token;
mod top;
mod url;
mod usage_errors;
mod versions;
mod view;
mod volume;
mod volume_use;
mod waiting;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use context::need_root;
pub(crate) use context::{Context, Globals};

use crate::config::Config;
use crate::report::{EXIT_CANNOT_EXECUTE, EXIT_FAILURE, EXIT_GPURUN, EXIT_NOT_FOUND, EXIT_USAGE, Report};
use crate::supervise::diagnostics;

/// Run an image as a hard-limited container: `gpurun --image IMAGE` starts Jupyter in it, `gpurun run IMAGE COMMAND` any other command
#[derive(Debug, Parser)]
#[command(
    name = "gpurun",
    version,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  gpurun image load jupyter.tar\n  gpurun --image jupyter --mem 2g --cpus 1.5 -p 8888:8888\n  gpurun run --rm -it jupyter bash\n  gpurun ps -a"
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    jupyter: jupyter::JupyterArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<run::RunArgs>),
    /// Create a new container without starting it
    Create(Box<create::CreateArgs>),
    /// List containers
    Ps(ps::PsArgs),
    /// Execute a command in a running container
    Exec(exec::ExecArgs),
    /// Fetch the logs of a container
    Logs(logs::LogsArgs),
    /// Attach this terminal to a running container
    Attach(attach::AttachArgs),
    /// Start one or more stopped containers
    Start(containers::StartArgs),
    /// Restart one or more containers
    Restart(containers::RestartArgs),
    /// Stop one or more running containers gracefully
    Stop(containers::StopArgs),
    /// Send a signal to one or more running containers
    Kill(containers::KillArgs),
    /// Remove one or more containers
    Rm(containers::RmArgs),
    /// Rename a container
    Rename(containers::RenameArgs),
    /// List the published ports of a container
    Port(port::PortArgs),
    /// Print the URL of a running notebook, with its token
    Url(url::UrlArgs),
    /// Explain what limits become in the kernel, what they do, and why
    Explain(Box<explain::ExplainArgs>),
    /// Examine this host, with a hint for each finding
    Doctor(doctor::DoctorArgs),
    /// Run guided experiments with the kernel's limits, a few seconds each
    Lab(lab::LabArgs),
    /// Change the limits of one or more containers, running or not
    Update(Box<change::UpdateArgs>),
    /// Pause all processes of one or more containers until `resume`
    Pause(change::PauseArgs),
    /// Resume one or more paused containers
    #[command(visible_alias = "unpause")]
    Resume(change::PauseArgs),
    /// Show the resource usage of containers: memory, CPU, processes, I/O, pressure
    Stats(stats::StatsArgs),
    /// Show the events of containers as they happen
    Events(events::EventsArgs),
    /// Run the health check of a container
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Wait until one or more containers have ended, and print their exit codes
    Wait(containers::WaitArgs),
    /// Show details of containers or images as JSON
    Inspect(inspect::InspectArgs),
    /// Create an image from a container's changes
    Commit(commit::CommitArgs),
    /// Copy files between a container and this host
    Cp(copy::CopyArgs),
    /// List the files that a container has added, changed or deleted
    Diff(commit::DiffArgs),
    /// Export the files of a container as a tar archive
    Export(commit::ExportArgs),
    /// Build an image from a Containerfile
    Build(Box<build::BuildArgs>),
    /// Manage the build cache: disk usage, prune
    Builder(builder::BuilderArgs),
    /// Build images under docker's other name for it
    Buildx(builder::BuildxArgs),
    /// Define and run services with compose files
    Compose(Box<compose::ComposeCommand>),
    /// Manage images: load, pull, list, inspect, remove and more
    Image(image::ImageArgs),
    /// Show a live screen of all running containers, or the processes of one
    Top(top::TopArgs),
    /// Manage containers: docker's longer names, and `prune`
    Container(system::ContainerArgs),
    /// Start containers when this host boots: enable, disable, status
    Boot(boot::BootArgs),
    /// Show disk usage, and remove what is not used
    System(system::SystemArgs),
    /// Manage volumes: list, create, inspect, remove
    Volume(volume::VolumeArgs),
    /// Manage networks: list, create, inspect, remove, connect
    Network(network::NetworkArgs),
    /// Remove names of an image, and keep the image
    Untag(image::UntagArgs),
    /// Log in to a registry
    Login(login::LoginArgs),
    /// Log out from a registry
    Logout(login::LogoutArgs),
    /// Search a registry for images
    Search(login::SearchArgs),
    /// Show the versions of gpurun and of this host's kernel
    Version(info::VersionArgs),
    /// Show the number of containers and images, and facts about this host
    Info(info::InfoArgs),
    /// List this host's GPUs, the containers that hold them and the processes that use them
    Gpus(gpus::GpusArgs),
    /// Hash a password for Jupyter
    Token(token::TokenArgs),
    /// Make `docker` and `docker-compose` run gpurun, on a host without docker
    Shim(shim::ShimArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write the man pages
    #[command(hide = true)]
    Man(completion::ManArgs),
}

/// Returns the names of all executable commands (`run`, `image load`), including hidden ones, for tests that must cover
/// every command.
#[must_use]
pub fn command_names() -> Vec<String> {
    let mut names = Vec::new();
    let mut todo: Vec<(String, clap::Command)> =
        Cli::command().get_subcommands().map(|command| (command.get_name().to_owned(), command.clone())).collect();
    while let Some((name, command)) = todo.pop() {
        // A command may do something both by itself and with a subcommand.
        if !command.has_subcommands() || !command.is_subcommand_required_set() {
            names.push(name.clone());
        }
        todo.extend(command.get_subcommands().map(|below| (format!("{name} {}", below.get_name()), below.clone())));
    }
    names
}

/// Parses the command line, runs the command, and prints the error if there is one.
pub fn main() -> ExitCode {
    crate::sys::process::choose_umask();
    crate::sys::process::choose_dispositions();
    init_tracing();
    let called_as = shim::name();
    if called_as.is_none() && internal::is_meant() {
        return finish(internal::main());
    }
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match called_as.map(|name| shim::translate(name, std::mem::take(&mut args))) {
        None => {}
        Some(Ok(shim::Called::Gpurun(list))) => args = list,
        Some(Ok(shim::Called::Version(text))) => return finish(print::out(&text).map(|()| 0)),
        Some(Err(report)) => return finish(Err(report)),
    }
    if args.first().is_some_and(|first| first == compose::child::NAME) {
        match compose::child::arguments() {
            Ok(list) => args = list,
            Err(report) => return finish(Err(report)),
        }
    }
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => return finish(Err(Codes::meant(&args).of(error.into()))),
    };
    let cli = match parse(&config, args.clone()) {
        Ok(cli) => cli,
        Err(error) => return refused(&error, &args),
    };
    let done = Context::new(&cli.globals).and_then(|context| dispatch(cli, &context));
    finish(done.map_err(|report| Codes::meant(&args).of(report)))
}

/// Returns the definition of the complete command line, formatted for this terminal.
fn command() -> clap::Command {
    arranged(synonyms::named(Cli::command())).term_width(print::width().unwrap_or(print::WIDTH).min(MAX_WIDTH))
}

/// Returns the definition of the command line in which docker's other names have all their arguments.
fn complete() -> clap::Command {
    arranged(synonyms::complete(Cli::command()))
}

/// Sets the defaults of the host's configuration, except that of one flag, as the defaults of the flags. They are parsed
/// like flags, and `--help` shows them.
fn configured(command: clap::Command, config: &Config, except: Option<&str>) -> clap::Command {
    // clap requires defaults with a static lifetime.
    let forever = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let dirs = [("root", &config.root), ("run_dir", &config.run_dir)];
    let command = dirs.into_iter().fold(command, |command, (flag, dir)| match dir {
        Some(dir) => command.mut_arg(flag, |arg| arg.default_value(forever(&dir.to_string_lossy()))),
        None => command,
    });
    config.flags().into_iter().filter(|(flag, _)| Some(*flag) != except).fold(command, |command, (flag, value)| {
        let value = forever(value);
        let launch = command.mut_arg(flag, |arg| arg.default_value(value));
        let defined = ["run", "create"].into_iter().filter(|name| launch.find_subcommand(name).is_some());
        defined.collect::<Vec<_>>().into_iter().fold(launch, |launch, name| {
            launch.mut_subcommand(name, |run| run.mut_arg(flag, |arg| arg.default_value(value)))
        })
    })
}

/// Whether the command line sets the memory, and the configuration its total with swap, which belongs to another memory.
fn mixes_limits(matches: &ArgMatches) -> bool {
    let launch = match matches.subcommand() {
        Some(("run" | "create", launch)) => launch,
        Some(_) => return false,
        None => matches,
    };
    launch.value_source("memory") == Some(ValueSource::CommandLine)
        && launch.value_source("memory_swap") == Some(ValueSource::DefaultValue)
}

/// Longer lines are hard to read.
const MAX_WIDTH: usize = 100;

/// Removes the headings of positional arguments. The heading of a flattened group applies to all arguments after it,
/// including positional ones. Of a flag that is given twice, the last value counts, as in docker. The values of some flags
/// may begin with a hyphen: `--format '-{{.ID}}'`, `--since -5m`.
fn arranged(command: clap::Command) -> clap::Command {
    let arrange = |arg: clap::Arg| {
        let any_value = ["format", "since", "until"].iter().any(|name| arg.get_long() == Some(name));
        let positional = arg.is_positional();
        let arg = if any_value { arg.allow_hyphen_values(true) } else { arg };
        if positional { arg.help_heading(None::<&'static str>) } else { arg }
    };
    command.args_override_self(true).mut_args(arrange).mut_subcommands(arranged)
}

/// Parses the arguments that follow the program name.
fn parse(config: &Config, args: Vec<OsString>) -> Result<Cli, clap::Error> {
    match parse_frequent(config, &args) {
        Some(cli) => Ok(cli),
        None => parse_complete(config, args),
    }
}

/// Parses one of the frequent commands. `None` for all others, and for what is not valid.
fn parse_frequent(config: &Config, args: &[OsString]) -> Option<Cli> {
    let complete = |command, except: Option<&str>| configured(arranged(command), config, except);
    let frequent::Short { globals, jupyter, command } = frequent::parse(args, complete, mixes_limits)?;
    let command = match command {
        frequent::Frequent::Run(run) => Command::Run(run),
        frequent::Frequent::Exec(exec) => Command::Exec(exec),
    };
    Some(Cli { globals, jupyter, command: Some(command) })
}

/// Parses the arguments with the definition of all commands.
fn parse_complete(config: &Config, args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = configured(self::command(), config, None);
    let args = command_line::prepare(&command, synonyms::resolve(&command, args));
    let args: Vec<OsString> = std::iter::once("gpurun".into()).chain(args).collect();
    let mut matches = command.try_get_matches_from_mut(&args)?;
    if mixes_limits(&matches) {
        command = configured(self::command(), config, Some("memory_swap"));
        matches = command.try_get_matches_from_mut(&args)?;
    }
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The exit codes of a command, as docker has them.
#[derive(Clone, Copy)]
enum Codes {
    /// The bare launch.
    Launch,
    /// `run` and `create`: also a wrong command line gives 125, because 2 may be a code of the container's command.
    Run,
    /// `exec`: 126 and 127 are about the command in the container.
    Exec,
    /// All others: 1, whatever failed.
    Other,
}

impl Codes {
    /// Returns the codes of the command that a command line names, whether or not the rest of it is valid.
    fn meant(args: &[OsString]) -> Self {
        let root = Cli::command();
        let path = command_line::path(&root, &synonyms::resolve(&root, args.to_vec()));
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Self::Launch,
            ["run" | "create"] => Self::Run,
            ["exec"] => Self::Exec,
            _ => Self::Other,
        }
    }

    fn of(self, report: Report) -> Report {
        let exit_code = match (self, report.exit_code) {
            (Self::Run, EXIT_USAGE) => EXIT_GPURUN,
            (Self::Exec | Self::Other, EXIT_GPURUN) => EXIT_FAILURE,
            (Self::Other, EXIT_CANNOT_EXECUTE | EXIT_NOT_FOUND) => EXIT_FAILURE,
            (_, code) => code,
        };
        Report { exit_code, ..report }
    }
}

/// Checks the arguments of `run` as `run` itself does before it uses the host.
fn check_run(args: &[String]) -> Result<(), Report> {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let config = Config::load()?;
    match parse(&config, args.clone()) {
        Ok(Cli { command: Some(Command::Run(run)), .. }) => run.check().map(drop),
        Ok(_) => Ok(()),
        Err(error) => Err(usage_errors::explain(&error, &args, &Cli::command()).unwrap_or_else(|| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Report::usage(line.strip_prefix("error: ").unwrap_or(line))
        })),
    }
}

/// Prints help and version on standard output, and errors on standard error.
fn refused(error: &clap::Error, args: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        let printed = error.print().map(|()| 0).or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(0),
            _ => Err(Report::new("cannot write to standard output").with_cause(error)),
        });
        return finish(printed.map_err(|report| Codes::meant(args).of(report)));
    }
    let codes = Codes::meant(args);
    if let Some(report) = usage_errors::explain(error, args, &Cli::command()) {
        return finish(Err(codes.of(report)));
    }
    let _ = error.print();
    ExitCode::from(codes.of(Report::usage("")).exit_code)
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
        context.check()?;
        crate::launch::repair_network(&context.run_dir);
        return jupyter::run(&cli.jupyter, context, containers::remove_by_force);
    };
    // These commands read nothing that requires root, so every user may run them.
    let anybody = match &command {
        Command::Token(_) | Command::Completion(_) | Command::Man(_) => true,
        Command::Version(_) | Command::Buildx(_) => true,
        Command::Login(_) | Command::Logout(_) | Command::Search(_) => true,
        Command::Explain(args) => args.names_no_container(),
        Command::Lab(args) => args.lists(),
        Command::Compose(args) => args.reads_only(),
        Command::Shim(args) => args.reads_only(),
        _ => false,
    };
    if !anybody {
        need_root()?;
        context.check()?;
        crate::launch::repair_network(&context.run_dir);
    }
    match command {
        Command::Run(args) => run::run(&args, context, containers::remove_by_force),
        Command::Create(args) => create::run(&args, context, containers::remove_by_force),
        Command::Port(args) => port::run(&args, context),
        Command::Url(args) => url::run(&args, context),
        Command::Top(args) => top::run(&args, context),
        Command::Container(args) => system::container(&args, context),
        Command::Boot(args) => boot::run(&args, context),
        Command::System(args) => system::run(&args, context),
        Command::Login(args) => login::login(&args),
        Command::Logout(args) => login::logout(&args),
        Command::Search(args) => login::search(&args),
        Command::Volume(args) => volume::run(&args, context),
        Command::Untag(args) => image::untag(&args, context),
        Command::Network(args) => network::run(&args, context),
        Command::Version(args) => info::version(&args),
        Command::Info(args) => info::info(&args, context),
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
        Command::Healthcheck(args) => healthcheck::run(&args, context),
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
        Command::Builder(args) => builder::run(&args, context),
        Command::Buildx(args) => builder::buildx(&args),
        Command::Compose(args) => compose::run(&args, context, check_run),
        Command::Image(args) => image::run(&args, context),
        Command::Gpus(args) => gpus::run(&args, context),
        Command::Token(args) => token::run(&args),
        Command::Shim(args) => shim::run(&args),
        Command::Completion(args) => completion::run(&args, &mut complete()),
        Command::Man(args) => completion::man(&args, self::command()),
    }
}

/// Initializes logging. `GPURUN_LOG=debug` (in the syntax of tracing's EnvFilter) shows internal steps.
fn init_tracing() {
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = tracing_subscriber::EnvFilter::try_from_env("GPURUN_LOG").unwrap_or_else(|_| "gpurun=warn".into());
    // tracing would report a line that cannot be written with `eprintln`, which panics if it cannot write either.
    let lines = tracing_subscriber::fmt::layer().with_writer(diagnostics::writer).log_internal_errors(false);
    // The diagnostics file of a supervisor is read later, so its lines need a time stamp.
    let lines = if internal::is_supervisor() { lines.boxed() } else { lines.without_time().boxed() };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}
