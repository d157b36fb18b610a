//! `gpurun lab`: guided experiments.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::cgroup::Host;
use crate::lab::{self, LABS, Lab, Line, Verdict};
use crate::report::Report;

#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// The experiments, a line each
    List {
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Run experiments; `all` runs every one
    Run {
        /// JSON, a line for each thing shown
        #[arg(long)]
        json: bool,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct PayloadArgs {
    #[arg(long)]
    enter: Vec<PathBuf>,
    #[arg(last = true)]
    words: Vec<String>,
}

pub fn payload(args: &PayloadArgs) -> u8 {
    lab::payload::main(&args.enter, &args.words)
}

/// Clears away what killed labs left.
pub fn sweep() -> Result<(), Report> {
    lab::sweep(&Host::probe(Path::new("/"))?)
}

pub fn run(args: &LabArgs) -> Result<u8, Report> {
    match &args.command {
        LabCommand::List { json } => list(*json),
        LabCommand::Run { json, names } => {
            let labs: Vec<&Lab> = if names.iter().any(|name| name == "all") {
                LABS.iter().collect()
            } else {
                names.iter().map(|name| known(name)).collect::<Result<_, _>>()?
            };
            let mut code = 0;
            for lab in labs {
                code = code.max(run_one(lab, *json)?);
            }
            Ok(code)
        }
    }
}

fn known(name: &str) -> Result<&'static Lab, Report> {
    lab::find(name).ok_or_else(|| {
        let names: Vec<_> = LABS.iter().map(|lab| lab.name).collect();
        Report::usage(format!("there is no lab `{name}`")).with_hint(format!("there are {}", names.join(", ")))
    })
}

fn list(json: bool) -> Result<u8, Report> {
    if json {
        let all: Vec<_> = LABS
            .iter()
            .map(|lab| serde_json::json!({ "name": lab.name, "title": lab.title, "about": lab.about }))
            .collect();
        print::json(&all)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = LABS.iter().map(|lab| vec![lab.name.to_owned(), lab.title.to_owned()]).collect();
    print::out(&print::table(&["NAME", "WHAT IT SHOWS"], &rows))?;
    Ok(0)
}

const WIDTH: usize = 80;

fn run_one(lab: &Lab, json: bool) -> Result<u8, Report> {
    let line = |value: &serde_json::Value| print::line(&value.to_string());
    if json {
        line(&serde_json::json!({ "kind": "lab", "name": lab.name, "title": lab.title, "about": lab.about }))?;
    } else {
        print::out(&format!("{}\n{}\n", lab.title, print::wrapped(lab.about, "  ", WIDTH)))?;
    }
    let mut failed = None;
    let verdict = lab::run(lab, &mut |shown: Line| {
        let done = if json { line(&serde_json::json!(shown)) } else { print::out(&text(&shown)) };
        if let Err(report) = done {
            failed = Some(report);
        }
    })?;
    if let Some(report) = failed {
        return Err(report);
    }
    if json {
        line(&serde_json::json!(verdict))?;
    } else {
        let words = match &verdict {
            Verdict::Expected(text) => format!("as the kernel promises: {text}"),
            Verdict::Unexpected(text) => format!("NOT as the kernel promises: {text}"),
            Verdict::Impossible(text) => format!("not on this host: {text}"),
        };
        print::out(&format!("\n{}\n", print::wrapped(&format!("=> {words}"), "", WIDTH)))?;
    }
    Ok(u8::from(matches!(verdict, Verdict::Unexpected(_))))
}

fn text(line: &Line) -> String {
    match line {
        Line::Say { text } => print::wrapped(&format!("- {text}"), "", WIDTH),
        Line::Command { text } => format!("  $ {text}\n"),
        Line::Numbers { phase, files } => {
            files.iter().map(|(file, value)| format!("  {phase:<7} {file:<28} {value}\n")).collect()
        }
    }
}
