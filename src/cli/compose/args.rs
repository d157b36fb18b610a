//! The flags of all commands, and the project that they name.

use std::path::PathBuf;

use clap::Args;

use super::containers;
use crate::cli::{Context, print};
use crate::compose::{Plans, Project, Source};
use crate::report::Report;
use crate::units::{UnitError, parse_whole};

/// Parses docker's number of operations at the same time, -1 for any.
fn operations(text: &str) -> Result<i64, UnitError> {
    parse_whole(text, &(-1..=i32::MAX.into()))
}

/// Parses the number of a container of a service.
pub(super) fn index(text: &str) -> Result<u32, UnitError> {
    parse_whole(text, &(1..=1000)).map(|number| number as u32)
}

/// The flags that say which project a command is about.
#[derive(Debug, Args)]
pub(crate) struct ComposeArgs {
    /// Compose file; may be given more than once, and `-` is standard input (default: the files that are found)
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,
    /// Name of the project (default: the `name` of the files, or the directory's)
    #[arg(short, long, value_name = "NAME")]
    pub(super) project_name: Option<String>,
    /// Enable services with this profile; may be given more than once
    #[arg(long, value_name = "PROFILE")]
    pub(super) profile: Vec<String>,
    /// File with variables for the compose files [default: .env]
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Base directory of relative paths (default: that of the first file)
    #[arg(long, value_name = "DIR")]
    pub(super) project_directory: Option<PathBuf>,
    /// When to print service names in color
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub(super) ansi: Ansi,
    /// Accepted for compatibility: a build shows its steps on a terminal and prints lines elsewhere
    #[arg(long, value_name = "HOW", value_parser = ["auto", "tty", "plain", "quiet", "json"], hide_possible_values = true)]
    progress: Option<String>,
    /// Accepted for compatibility: containers always start in parallel
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = operations)]
    parallel: Option<i64>,
    /// Print what the command would do, and change nothing
    #[arg(long, global = true)]
    pub(super) dry_run: bool,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    compatibility: bool,
}

/// When output has colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Ansi {
    Auto,
    Always,
    Never,
}

/// A project's name, and its files where they were read.
pub(super) struct Scope {
    pub(super) name: String,
    pub(super) project: Option<Project>,
}

impl Scope {
    /// Returns the services that the files define.
    pub(super) fn services(&self) -> Vec<String> {
        self.project.as_ref().map(Project::all_service_names).unwrap_or_default()
    }
}

impl ComposeArgs {
    pub(super) fn source(&self) -> Result<Source, Report> {
        let current_directory = std::env::current_dir()
            .map_err(|error| Report::new("cannot read the current directory").with_cause(error))?;
        // A variable that is not UTF-8 cannot be named in a compose file.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Source {
            files: self.file.clone(),
            directory: self.project_directory.clone(),
            env_files: self.env_file.clone(),
            name: self.project_name.clone(),
            profiles: self.profile.clone(),
            as_written: false,
            current_directory,
            environment,
        })
    }

    /// Loads the project and prints the notices about its files.
    pub(super) fn project(&self, services: &[String], dependencies: bool) -> Result<Project, Report> {
        let project = load(&self.source()?, services, dependencies)?;
        say(&project.notices);
        Ok(project)
    }

    /// Plans the services of a project and prints the notices about keys without an effect.
    pub(super) fn plans(&self, project: &Project) -> Result<Plans, Report> {
        let plans = project.plans()?;
        say(&plans.notices);
        Ok(plans)
    }

    /// Returns the project for commands about existing containers, which need its name only.
    pub(super) fn scope(&self, services: &[String]) -> Result<Scope, Report> {
        let source = self.source()?;
        if source.files.is_empty()
            && let Some(name) = source.fixed_name()?
        {
            let project = crate::compose::load(&source, services, true).ok();
            return Ok(Scope { name, project });
        }
        let project = load(&source, services, true)?;
        Ok(Scope { name: project.name.clone(), project: Some(project) })
    }

    /// Returns one container of a service.
    pub(super) fn container(
        &self,
        context: &Context,
        service: &str,
        index: u32,
    ) -> Result<containers::Container, Report> {
        let scope = self.scope(&[])?;
        let mut all = containers::of(context, &scope.name)?;
        containers::select(&mut all, &[service.to_owned()], &scope.services())?;
        let count = all.len();
        all.into_iter().find(|container| container.number == index).ok_or_else(|| {
            let report = Report::new(format!("service `{service}` has no container {index}"));
            match count {
                0 => report.with_hint(format!("start it with `gpurun compose up -d {service}`")),
                count => report.with_hint(format!("it has {count}: use `--index N`")),
            }
        })
    }
}

/// Loads a project. If that fails, the notices about its files are printed: a variable without a value is often the cause.
pub(super) fn load(source: &Source, services: &[String], dependencies: bool) -> Result<Project, Report> {
    crate::compose::load(source, services, dependencies).map_err(|error| {
        say(&error.notices);
        error.into()
    })
}

/// Prints notices.
pub(super) fn say(notices: &[String]) {
    for notice in notices {
        print::say(&format!("gpurun: {notice}"));
    }
}

/// Checks the arguments of `run` without running anything.
pub(crate) type CheckRun = fn(&[String]) -> Result<(), Report>;
