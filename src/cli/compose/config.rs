//! `gpurun compose config`: prints what the compose files mean.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::print;
use super::args::{self, ComposeArgs};
use crate::compose::{Raw, Source};
use crate::report::Report;
use crate::sys::process::CallerUmask;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Output format: yaml or json
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Format>,
    /// Only check the files, and print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Print the names of the services
    #[arg(long)]
    services: bool,
    /// Print the names of the volumes
    #[arg(long, conflicts_with = "services")]
    volumes: bool,
    /// Print the names of the profiles
    #[arg(long, conflicts_with_all = ["services", "volumes"])]
    profiles: bool,
    /// Print the names of the images
    #[arg(long, conflicts_with_all = ["services", "volumes", "profiles"])]
    images: bool,
    /// Print the hash of each named service's configuration, or of all (`*`)
    #[arg(long, value_name = "SERVICE,…", conflicts_with_all = ["services", "volumes", "profiles", "images"])]
    hash: Option<String>,
    /// Print variables as they are in the files, without the values that need them
    #[arg(long, conflicts_with = "hash")]
    no_interpolate: bool,
    /// Print what the files say, without default networks, full names of resources and implied dependencies
    #[arg(long, conflicts_with_all = ["hash", "no_interpolate"])]
    no_normalize: bool,
    /// List the variables that the files use, with their defaults
    #[arg(long, conflicts_with_all = ["services", "volumes", "profiles", "images", "hash", "no_normalize"])]
    variables: bool,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print these services and their dependencies only
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

pub(super) fn run(args: &ConfigArgs, compose: &ComposeArgs) -> Result<u8, Report> {
    let text = match (args.variables, args.no_interpolate) {
        (true, _) => variables(args, compose)?,
        (false, true) => raw(args, compose)?,
        (false, false) => resolved(args, compose)?,
    };
    if args.quiet {
        return Ok(0);
    }
    match &args.output {
        Some(path) => {
            let _umask = CallerUmask::enter();
            std::fs::write(path, text)
                .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
        }
        // A string of the files may contain terminal controls. YAML and JSON escape them, and most names cannot contain
        // any.
        None if args.images || args.variables => print::out(&text)?,
        None => print::raw(&text)?,
    }
    Ok(0)
}

/// The variables of the files, in the columns of docker.
fn variables(args: &ConfigArgs, compose: &ComposeArgs) -> Result<String, Report> {
    let raw = Raw::load(&compose.source()?, &args.names)?;
    let all = raw.variables();
    let failed = |error: serde_json::Error| Report::new("cannot print as JSON").with_cause(error);
    match args.format {
        // JSON is YAML too.
        Some(_) => Ok(print::ascii_controls(&serde_json::to_string_pretty(&all).map_err(failed)?) + "\n"),
        None => {
            let row = |variable: &crate::compose::Variable| {
                let (name, required) = (variable.name.clone(), variable.required.to_string());
                vec![name, required, variable.default_value.clone(), variable.presence_value.clone()]
            };
            let rows: Vec<Vec<String>> = all.values().map(row).collect();
            Ok(print::table(&["NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"], &rows))
        }
    }
}

/// The files with their variables.
fn raw(args: &ConfigArgs, compose: &ComposeArgs) -> Result<String, Report> {
    let raw = Raw::load(&compose.source()?, &args.names)?;
    for notice in &raw.notices {
        print::say(&format!("gpurun: {notice}"));
    }
    Ok(if args.services {
        lines(raw.service_names())
    } else if args.volumes {
        lines(raw.volume_names())
    } else if args.profiles {
        lines(raw.profiles())
    } else if args.images {
        lines(raw.images())
    } else {
        match args.format.unwrap_or(Format::Yaml) {
            Format::Yaml => raw.to_yaml(),
            Format::Json => raw.to_json(),
        }
    })
}

fn resolved(args: &ConfigArgs, compose: &ComposeArgs) -> Result<String, Report> {
    let source = Source { as_written: args.no_normalize, ..compose.source()? };
    let project = args::load(&source, &args.names, true)?;
    args::say(&project.notices);
    Ok(if args.services {
        lines(project.service_names())
    } else if args.volumes {
        lines(project.volume_names())
    } else if args.profiles {
        lines(project.profiles())
    } else if args.images {
        lines(project.service_names().map(|name| project.image(name)))
    } else if let Some(hash) = &args.hash {
        let all: Vec<&str> = project.service_names().collect();
        let mut names: Vec<&str> = if hash == "*" { all.clone() } else { hash.split(',').collect() };
        names.sort_unstable();
        if let Some(name) = names.iter().find(|name| !all.contains(name)) {
            return Err(Report::new(format!("there is no service `{name}`"))
                .with_hint(format!("the services are: {}", all.join(", "))));
        }
        lines(names.iter().map(|name| format!("{name} {}", project.hash(name))))
    } else {
        match args.format.unwrap_or(Format::Yaml) {
            Format::Yaml => project.to_yaml(),
            Format::Json => project.to_json(),
        }
    })
}

fn lines(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    names.into_iter().map(|name| format!("{}\n", name.as_ref())).collect()
}
