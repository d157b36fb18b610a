//! `gpurun compose ps`, `ls`, `images`, `port` and `top`: what a project consists of.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::super::filter::Filters;
use super::super::versions::COMPOSE_VERSION;
use super::super::view::{Images, View};
use super::super::{Context, format, print, ps};
use super::args::{ComposeArgs, index};
use super::child;
use super::containers::{self, Container};
use crate::compose::labels;
use crate::record::{Phase, short};
use crate::report::Report;
use crate::template;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Show stopped containers too
    #[arg(short, long)]
    all: bool,
    /// Print only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Do not truncate commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only the names of services
    #[arg(long)]
    services: bool,
    /// Print a table, JSON lines (`json`), or a Go template for each container
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// Show containers with this status only: created, running, paused, restarting or exited
    #[arg(long, value_name = "STATUS")]
    status: Vec<String>,
    /// Select containers: status=STATUS
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Show stopped projects too
    #[arg(short, long)]
    all: bool,
    /// Select projects: name=TEXT
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// Print only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Print only the number
    #[arg(long)]
    short: bool,
    /// Output format: pretty or json
    #[arg(short, long, value_name = "FORMAT", default_value = "pretty", value_parser = ["pretty", "json"])]
    format: String,
}

/// Programs compare the number with that of the compose that they need.
pub(super) fn version(args: &VersionArgs) -> Result<u8, Report> {
    if args.short {
        print::out(&format!("{COMPOSE_VERSION}\n"))?;
    } else if args.format == "json" {
        print::out(&format!("{{\"version\":\"v{COMPOSE_VERSION}\"}}\n"))?;
    } else {
        print::out(&format!("Docker Compose version v{COMPOSE_VERSION} (gpurun {})\n", env!("CARGO_PKG_VERSION")))?;
    }
    Ok(0)
}

#[derive(Debug, Args)]
pub(super) struct PortArgs {
    /// Protocol: tcp or udp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: String,
    /// Number of the container, if the service has several
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = index)]
    index: u32,
    /// Service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Port in the container
    #[arg(value_name = "PORT")]
    port: u16,
}

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

/// A container as `docker compose ps --format json` describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    image: String,
    command: String,
    project: String,
    service: String,
    state: &'static str,
    status: String,
    health: &'static str,
    exit_code: u8,
    ports: String,
    publishers: Vec<Publisher>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Publisher {
    #[serde(rename = "URL")]
    url: String,
    target_port: u16,
    published_port: u16,
    protocol: String,
}

fn state(container: &Container) -> &'static str {
    match container.state.phase {
        Phase::Running if container.state.paused => "paused",
        Phase::Running => "running",
        Phase::Restarting => "restarting",
        Phase::Created => "created",
        Phase::Exited => "exited",
    }
}

/// Returns the health of a running container, or nothing.
fn health(container: &Container) -> &'static str {
    let found = container.state.health.as_ref().filter(|_| container.is_running());
    found.map_or("", |health| health.status.name())
}

fn status(container: &Container) -> String {
    let ago = |nanos: Option<u64>| {
        nanos.map(|nanos| print::ago(crate::clock::now().saturating_sub(nanos))).unwrap_or_default()
    };
    match state(container) {
        "running" => match health(container) {
            "" => format!("Up {}", ago(container.state.started)),
            "starting" => format!("Up {} (health: starting)", ago(container.state.started)),
            health => format!("Up {} ({health})", ago(container.state.started)),
        },
        "paused" => format!("Up {} (Paused)", ago(container.state.started)),
        "exited" => {
            format!("Exited ({}) {} ago", container.state.exit_code.unwrap_or(0), ago(container.state.finished))
        }
        "restarting" => format!("Restarting ({})", container.state.exit_code.unwrap_or(0)),
        _ => "Created".to_owned(),
    }
}

fn row(container: &Container, project: &str, images: &Images, context: &Context, whole: bool) -> Row {
    let request = &container.entry.record.request;
    let view = View::new(&container.entry, &container.state, images, &context.root);
    Row {
        id: container.entry.record.id.clone(),
        name: container.name().to_owned(),
        image: request.image.clone(),
        command: ps::command(&view, whole),
        project: project.to_owned(),
        service: container.service.clone(),
        state: state(container),
        status: status(container),
        health: health(container),
        exit_code: container.state.exit_code.unwrap_or(0),
        ports: ps::ports_shown(&view),
        publishers: ps::published(&container.state)
            .iter()
            .map(|port| Publisher {
                url: port.host_ip.clone(),
                target_port: port.container_port,
                published_port: port.host_port,
                protocol: port.protocol.clone(),
            })
            .collect(),
    }
}

/// The fields of `ps --format`, with their titles.
const TITLES: &format::Titles = &[
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("Project", "PROJECT"),
    ("Service", "SERVICE"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Health", "HEALTH"),
    ("ExitCode", "EXIT CODE"),
    ("Ports", "PORTS"),
];

pub(super) fn ps(args: &PsArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let format = format::Format::parse(&args.format)?;
    let scope = compose.scope(&[])?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, &args.names, &scope.services())?;
    let filters = Filters::parse(&args.filter, &["status"])?;
    all.retain(|container| {
        let found = match args.status.is_empty() {
            true => args.all || !args.filter.is_empty() || container.is_running(),
            false => args.status.iter().any(|status| status == state(container)),
        };
        found && (args.filter.is_empty() || filters.any("status", |status| status == state(container)))
    });
    if args.quiet {
        return print::out(&all.iter().map(|c| format!("{}\n", c.entry.record.id)).collect::<String>()).map(|()| 0);
    }
    if args.services {
        let mut names: Vec<&str> = all.iter().map(|container| container.service.as_str()).collect();
        names.dedup();
        return print::out(&names.iter().map(|name| format!("{name}\n")).collect::<String>()).map(|()| 0);
    }
    let images = Images::new(context.store().ok());
    // JSON is for programs, which get the whole command.
    let whole = args.no_trunc || matches!(format, format::Format::Json);
    let rows: Vec<Row> = all.iter().map(|container| row(container, &scope.name, &images, context, whole)).collect();
    match format {
        format::Format::Table => {}
        // docker prints one object in each line.
        format::Format::Json => return rows.iter().try_for_each(print::json_line).map(|()| 0),
        format => {
            let fields = |row| Ok(template::Value::from_json(&serde_json::to_value(row)?, &[]));
            let fields: Result<Vec<_>, serde_json::Error> = rows.iter().map(fields).collect();
            let fields = fields.map_err(|error| Report::new("cannot describe the containers").with_cause(error))?;
            return format.print(TITLES, &fields, false).map(|()| 0);
        }
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .zip(&all)
        .map(|(row, container)| {
            let age = print::ago(crate::clock::now().saturating_sub(container.entry.record.created));
            vec![
                row.name.clone(),
                row.image.clone(),
                row.command.clone(),
                row.service.clone(),
                format!("{age} ago"),
                row.status.clone(),
                row.ports.clone(),
            ]
        })
        .collect();
    print::show_table(&["NAME", "IMAGE", "COMMAND", "SERVICE", "CREATED", "STATUS", "PORTS"], &cells)?;
    Ok(0)
}

pub(super) fn ls(args: &LsArgs, context: &Context) -> Result<u8, Report> {
    let filters = Filters::parse(&args.filter, &["name"])?;
    let mut rows = Vec::new();
    for (name, all) in containers::all(context)? {
        if !filters.any("name", |text| name.contains(text)) {
            continue;
        }
        let count = |wanted: &str| all.iter().filter(|container| state(container) == wanted).count();
        let kinds = ["created", "exited", "paused", "restarting", "running"];
        let status: Vec<String> =
            kinds.iter().filter(|kind| count(kind) > 0).map(|kind| format!("{kind}({})", count(kind))).collect();
        let files = all.iter().find_map(|container| container.label(labels::FILES)).unwrap_or_default().to_owned();
        if args.all || count("running") > 0 {
            rows.push((name, status.join(", "), files));
        }
    }
    if args.quiet {
        return print::out(&rows.iter().map(|(name, ..)| format!("{name}\n")).collect::<String>()).map(|()| 0);
    }
    if args.format == Format::Json {
        let all: Vec<serde_json::Value> = rows
            .iter()
            .map(|(name, status, files)| serde_json::json!({"Name": name, "Status": status, "ConfigFiles": files}))
            .collect();
        return print::json(&all).map(|()| 0);
    }
    let cells: Vec<Vec<String>> = rows.into_iter().map(|(name, status, files)| vec![name, status, files]).collect();
    print::show_table(&["NAME", "STATUS", "CONFIG FILES"], &cells)?;
    Ok(0)
}

pub(super) fn images(args: &ImagesArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let scope = compose.scope(&[])?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, &args.names, &scope.services())?;
    let store = context.store()?;
    let (mut cells, mut json, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for container in &all {
        let request = &container.entry.record.request;
        let digest = container.entry.record.image.to_string();
        let id = digest.strip_prefix("sha256:").unwrap_or(&digest).to_owned();
        let size = store.resolve(&digest).map(|image| image.size).unwrap_or(0);
        let last = request.image.rsplit('/').next().unwrap_or_default();
        let (repository, tag) = match last.rsplit_once(':') {
            Some((_, tag)) => (request.image[..request.image.len() - tag.len() - 1].to_owned(), tag.to_owned()),
            None => (request.image.clone(), "latest".to_owned()),
        };
        let name = container.name().to_owned();
        json.push(serde_json::json!({
            "ID": digest, "ContainerName": name, "Repository": repository, "Tag": tag, "Size": size,
        }));
        cells.push(vec![name, repository, tag, short(&id).to_owned(), crate::units::format_memory(size)]);
        ids.push(id);
    }
    if args.quiet {
        ids.sort();
        ids.dedup();
        return print::out(&ids.iter().map(|id| format!("{id}\n")).collect::<String>()).map(|()| 0);
    }
    if args.format == Format::Json {
        return print::json(&json).map(|()| 0);
    }
    print::show_table(&["CONTAINER", "REPOSITORY", "TAG", "IMAGE ID", "SIZE"], &cells)?;
    Ok(0)
}

pub(super) fn port(args: &PortArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let container = compose.container(context, &args.service, args.index)?;
    let found =
        container.state.ports.iter().find(|port| port.container_port == args.port && port.protocol == args.protocol);
    match found {
        Some(port) => print::out(&format!("{}:{}\n", port.host_ip, port.host_port)).map(|()| 0),
        None => Err(Report::new(format!(
            "port {}/{} of service `{}` is not published",
            args.port, args.protocol, args.service
        ))
        .with_hint("publish it under `ports` of the service, and run `gpurun compose up -d`")),
    }
}

/// Most bytes of a container's list of processes.
const TOP: u64 = 1 << 20;

/// Shows the processes of each container, with the container's own `ps`.
pub(super) fn top(args: &TopArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let scope = compose.scope(&[])?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, &args.names, &scope.services())?;
    for container in all.iter().filter(|container| container.is_running()) {
        print::out(&format!("{}\n", container.name()))?;
        let words = ["exec", container.name(), "ps"].map(str::to_owned);
        print::out(&child::run_bounded(context, &words, TOP)?)?;
        print::out("\n")?;
    }
    Ok(0)
}
