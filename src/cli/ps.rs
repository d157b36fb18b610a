//! `gpurun ps`: the containers, a line each.

use clap::Args;
use serde::Serialize;

use super::{Context, print};
use crate::gpu::Given;
use crate::record::{Entry, Phase, State, Unreadable, short};
use crate::report::Report;
use crate::request::Payload;
use crate::supervise::log::now;

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that have ended too
    #[arg(short, long)]
    all: bool,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// JSON, an array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    image: String,
    command: String,
    /// Nanoseconds since 1970; none where the record cannot be read.
    created: Option<u64>,
    status: String,
    /// None where the record cannot be read.
    phase: Option<Phase>,
    exit_code: Option<u8>,
    oom_killed: bool,
    ports: Vec<String>,
    url: Option<String>,
    /// As asked for.
    gpus: Option<String>,
    /// As given.
    gpu_devices: Vec<Given>,
}

pub fn run(args: &PsArgs, context: &Context) -> Result<u8, Report> {
    let mut rows = Vec::new();
    let (entries, unreadable) = context.records()?.list_all()?;
    for container in unreadable {
        let living = container.supervisor()?.is_some();
        if args.all || living {
            rows.push(unreadable_row(&container, living));
        }
        tracing::warn!("{}", Report::from(container.error));
    }
    for entry in entries {
        let state = entry.state_shown()?;
        let living = matches!(state.phase, Phase::Running | Phase::Restarting);
        if args.all || living {
            rows.push(row(&entry, &state));
        }
    }
    // The newest first, as docker.
    rows.reverse();
    if args.json {
        print::json(&rows)?;
        return Ok(0);
    }
    let id = |row: &Row| if args.no_trunc { row.id.clone() } else { short(&row.id).to_owned() };
    if args.quiet {
        print::out(&rows.iter().map(|row| id(row) + "\n").collect::<String>())?;
        return Ok(0);
    }
    let with_gpus = rows.iter().any(|row| row.gpus.is_some());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let ago = |created| format!("{} ago", print::ago(now().saturating_sub(created)));
            let age = row.created.map_or_else(|| "-".to_owned(), ago);
            let where_ = row.url.clone().unwrap_or_else(|| row.ports.join(", "));
            let mut cells =
                vec![id(row), row.name.clone(), row.image.clone(), row.command.clone(), age, row.status.clone()];
            cells.extend(with_gpus.then(|| gpus(row)));
            cells.push(where_);
            cells
        })
        .collect();
    let mut titles = vec!["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"];
    if with_gpus {
        titles.insert(6, "GPU");
    }
    print::out(&print::table(&titles, &cells))?;
    Ok(0)
}

/// The numbers of those that it has, or had; what was asked for where it never got any.
fn gpus(row: &Row) -> String {
    match row.gpu_devices.is_empty() {
        true => row.gpus.clone().unwrap_or_default(),
        false => row.gpu_devices.iter().map(|given| given.index.as_str()).collect::<Vec<_>>().join(","),
    }
}

fn row(entry: &Entry, state: &State) -> Row {
    let request = &entry.record.request;
    let command = match &request.payload {
        Payload::Jupyter(_) => "(jupyter)".to_owned(),
        Payload::Command(words) if words.is_empty() => "(image's)".to_owned(),
        Payload::Command(words) => shorten(&words.join(" "), 24),
    };
    let ports = state
        .ports
        .iter()
        .map(|port| format!("{}:{}->{}/{}", port.host_ip, port.host_port, port.container_port, port.protocol))
        .collect();
    Row {
        id: entry.record.id.clone(),
        name: entry.record.name.clone(),
        image: request.image.clone(),
        command,
        created: Some(entry.record.created),
        status: status(state),
        phase: Some(state.phase),
        exit_code: state.exit_code,
        oom_killed: state.oom_killed,
        ports,
        url: state.url.clone(),
        gpus: request.gpus.clone(),
        gpu_devices: state.gpus.clone(),
    }
}

/// Of a container whose record cannot be read the id is known, by which it can be removed, and whether it runs.
fn unreadable_row(container: &Unreadable, living: bool) -> Row {
    let dash = || "-".to_owned();
    Row {
        id: container.id.clone(),
        // A guess from a damaged text looks like one.
        name: container.name.as_ref().map_or_else(dash, |name| format!("{name}?")),
        image: dash(),
        command: dash(),
        created: None,
        status: if living { "Up (unreadable record)".into() } else { "Unreadable record".into() },
        phase: None,
        exit_code: None,
        oom_killed: false,
        ports: Vec::new(),
        url: None,
        gpus: None,
        gpu_devices: Vec::new(),
    }
}

/// docker's words: `Up 2 minutes`, `Exited (137) 1 hour ago`, with the cause where the kernel's memory limit was it.
pub fn status(state: &State) -> String {
    let since = |moment: Option<u64>| print::ago(now().saturating_sub(moment.unwrap_or_else(now)));
    match state.phase {
        Phase::Created => "Created".into(),
        Phase::Running if state.paused => format!("Up {} (Paused)", since(state.started)),
        Phase::Running if state.oom_killed => format!("Up {} (a process was OOMKilled)", since(state.started)),
        Phase::Running => format!("Up {}", since(state.started)),
        Phase::Restarting => format!("Restarting ({})", state.exit_code.unwrap_or(0)),
        Phase::Exited => {
            let oom = if state.oom_killed { " OOMKilled" } else { "" };
            format!("Exited ({}){oom} {} ago", state.exit_code.unwrap_or(0), since(state.finished))
        }
    }
}

fn shorten(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_how_it_ended() {
        let state = State {
            phase: Phase::Exited,
            exit_code: Some(137),
            oom_killed: true,
            finished: Some(now()),
            ..State::default()
        };
        assert_eq!(status(&state), "Exited (137) OOMKilled less than a second ago");
        assert_eq!(status(&State::default()), "Created");
    }

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("äbcd", 4), "äbcd");
    }
}
