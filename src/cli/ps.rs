//! `gpurun ps`: lists containers, one per line.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::filter::Filters;
use super::format::{self, Format, Titles};
use super::view::{self, Images, View};
use super::{Context, image, print};
use crate::clock::now;
use crate::gpu::Given;
use crate::record::{HealthStatus, Phase, PublishedPort, RecordError, Records, State, StopReason, Unreadable, short};
use crate::report::Report;
use crate::request::NetworkMode;
use crate::template::Value;

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Show all containers, not only the running ones
    #[arg(short, long)]
    all: bool,
    /// Print only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Show the N newest containers, running or not
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true, default_value_t = -1, hide_default_value = true, value_parser = last)]
    last: i64,
    /// Show the newest container, running or not
    #[arg(short, long)]
    latest: bool,
    /// Select containers: status=exited, name=TEXT, label=KEY[=VALUE], ancestor=IMAGE, user=NAME, volume=NAME, publish=PORT, restart-policy=always, …
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print a table of chosen fields (`table {{.ID}}\t{{.Names}}`), JSON lines (`json`), or a Go template for each container
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not truncate IDs and commands
    #[arg(long, alias = "notruncate")]
    no_trunc: bool,
    /// Show the size of each container's files
    #[arg(short, long)]
    size: bool,
    /// Print no titles
    #[arg(long)]
    noheading: bool,
    /// Sort by created (newest first), command, id, image, names, runningfor, size or status
    #[arg(
        long,
        value_name = "FIELD",
        default_value = "created",
        hide_default_value = true,
        hide_possible_values = true
    )]
    sort: Sort,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    Created,
    Command,
    Id,
    Image,
    Names,
    Runningfor,
    Size,
    Status,
}

fn last(text: &str) -> Result<i64, crate::units::UnitError> {
    crate::units::parse_whole(text, &(-1..=i64::from(u32::MAX)))
}

const FILTERS: [&str; 15] = [
    "id",
    "name",
    "label",
    "status",
    "exited",
    "ancestor",
    "before",
    "since",
    "volume",
    "network",
    "publish",
    "expose",
    "health",
    "user",
    "restart-policy",
];

/// The kinds of restart policies, and podman's other name for `no`.
const POLICIES: [&str; 5] = ["no", "always", "unless-stopped", "on-failure", "none"];

/// docker's states, and podman's word for an exited container.
const STATES: [&str; 8] = ["created", "running", "paused", "restarting", "exited", "removing", "dead", "stopped"];

const TITLES: &Titles = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
    ("Gpus", "GPU"),
    ("User", "USER"),
    ("Url", "URL"),
];

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    /// The user who created the container. `None` if the record cannot be read.
    owner: Option<String>,
    image: String,
    command: String,
    /// Nanoseconds since 1970. `None` if the record cannot be read.
    created: Option<u64>,
    status: String,
    /// `None` if the record cannot be read.
    phase: Option<Phase>,
    exit_code: Option<u8>,
    oom_killed: bool,
    /// `None` if the container has no health check.
    health: Option<HealthStatus>,
    /// The limit at which the container was stopped.
    stop_reason: Option<StopReason>,
    ports: Vec<String>,
    /// What only the tables and `--format` show.
    #[serde(skip)]
    shown: Shown,
    url: Option<String>,
    /// The GPU request.
    gpus: Option<String>,
    /// The selected GPUs.
    gpu_devices: Vec<Given>,
}

#[derive(Debug, Default)]
struct Shown {
    /// Consecutive ports are one range.
    ports: String,
    state: &'static str,
    size: String,
    labels: BTreeMap<String, String>,
    mounts: String,
    volumes: usize,
    network: String,
    platform: String,
}

pub(super) fn run(args: &PsArgs, context: &Context) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let filters = Filters::parse(&args.filter, &FILTERS)?;
    filters.only("status", &STATES)?;
    filters.only("health", &["none", "starting", "healthy", "unhealthy"])?;
    filters.only("restart-policy", &POLICIES)?;
    let records = context.records()?;
    let (entries, unreadable) = records.list_all()?;
    let most = if args.latest { 1 } else { args.last };
    // As in docker, these show containers that do not run, too.
    let all = args.all || most >= 0 || filters.has("status") || filters.has("exited");
    let mut rows = Vec::new();
    for container in unreadable {
        let live = container.supervisor()?.is_some();
        if (all || live) && args.filter.is_empty() && most < 0 {
            rows.push(unreadable_row(&container, live));
        }
        tracing::warn!("{}", Report::from(container.error));
    }
    let images = Images::new(context.store().ok());
    let select = Select::new(&filters, &records, context)?;
    let with_size = args.size || format.uses("Size");
    for entry in &entries {
        let state = entry.state_shown()?;
        let live = matches!(state.phase, Phase::Running | Phase::Restarting);
        let view = View::new(entry, &state, &images, &context.root);
        if (all || live) && select.takes(&view)? {
            rows.push(row(&view, args.no_trunc, with_size));
        }
    }
    // Newest first, as in docker.
    rows.reverse();
    if let Ok(most) = usize::try_from(most) {
        rows.truncate(most);
    }
    sort(&mut rows, args.sort);
    if args.json {
        print::json(&rows)?;
        return Ok(0);
    }
    let id = |row: &Row| if args.no_trunc { row.id.clone() } else { short(&row.id).to_owned() };
    if !matches!(format, Format::Table) {
        let rows: Vec<Value> = rows.iter().map(|row| fields(row, id(row))).collect();
        format.print(TITLES, &rows, args.noheading)?;
        return Ok(0);
    }
    if args.quiet {
        print::out(&rows.iter().map(|row| id(row) + "\n").collect::<String>())?;
        return Ok(0);
    }
    table(&rows, id, args)?;
    Ok(0)
}

/// Sorts the rows, which are by age. Rows that are equal keep their order.
fn sort(rows: &mut [Row], by: Sort) {
    match by {
        Sort::Created => {}
        Sort::Command => rows.sort_by(|one, other| one.command.cmp(&other.command)),
        Sort::Id => rows.sort_by(|one, other| one.id.cmp(&other.id)),
        Sort::Image => rows.sort_by(|one, other| one.image.cmp(&other.image)),
        Sort::Names => rows.sort_by(|one, other| one.name.cmp(&other.name)),
        Sort::Runningfor => rows.sort_by_key(|row| row.created),
        Sort::Size => rows.sort_by(|one, other| one.shown.size.cmp(&other.shown.size)),
        Sort::Status => rows.sort_by(|one, other| one.status.cmp(&other.status)),
    }
}

/// The IDs of the containers, running or not, that filters select.
pub(super) fn selected(filters: &[String], context: &Context) -> Result<Vec<String>, Report> {
    let filters = Filters::parse(filters, &FILTERS)?;
    filters.only("status", &STATES)?;
    filters.only("restart-policy", &POLICIES)?;
    let records = context.records()?;
    let images = Images::new(context.store().ok());
    let select = Select::new(&filters, &records, context)?;
    let mut ids = Vec::new();
    for entry in &records.list()? {
        let state = entry.state_shown()?;
        if select.takes(&View::new(entry, &state, &images, &context.root))? {
            ids.push(entry.record.id.clone());
        }
    }
    Ok(ids)
}

/// The fields of every container for `gpurun system df --verbose`, the newest first.
pub(super) fn usage_rows(context: &Context) -> Result<Vec<Value>, Report> {
    let images = Images::new(context.store().ok());
    let mut rows = Vec::new();
    for entry in context.records()?.list()? {
        let state = entry.state_shown()?;
        let view = View::new(&entry, &state, &images, &context.root);
        let mut row = row(&view, false, false);
        row.shown.size = image::size(view::size_of(&entry.dir));
        rows.push(fields(&row, short(&row.id).to_owned()));
    }
    rows.reverse();
    Ok(rows)
}

/// Prints docker's table, with a column for GPUs if a container has any, and one for users if a container belongs to
/// another user than root.
fn table(rows: &[Row], id: impl Fn(&Row) -> String, args: &PsArgs) -> Result<(), Report> {
    let with_size = args.size;
    let with_gpus = rows.iter().any(|row| row.gpus.is_some());
    let with_users = rows.iter().any(|row| row.owner.as_deref().is_some_and(|owner| owner != "root"));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let age = row.created.map_or_else(|| "-".to_owned(), view::ago);
            let where_ = row.url.clone().unwrap_or_else(|| row.shown.ports.clone());
            let mut cells = vec![id(row), row.image.clone(), row.command.clone(), age, row.status.clone()];
            cells.extend(with_gpus.then(|| gpus(row)));
            cells.extend(with_users.then(|| row.owner.clone().unwrap_or_else(|| "-".to_owned())));
            cells.extend([where_, row.name.clone()]);
            cells.extend(with_size.then(|| row.shown.size.clone()));
            cells
        })
        .collect();
    let mut titles = vec!["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS"];
    titles.extend(with_gpus.then_some("GPU"));
    titles.extend(with_users.then_some("USER"));
    titles.extend(["PORTS", "NAMES"]);
    titles.extend(with_size.then_some("SIZE"));
    print::show_rows(&titles, &cells, args.noheading)
}

/// The containers that `before` and `since` name, and the images that `ancestor` names, looked up once.
struct Select<'a> {
    filters: &'a Filters,
    before: Option<u64>,
    since: Option<u64>,
    ancestors: Vec<String>,
}

impl<'a> Select<'a> {
    fn new(filters: &'a Filters, records: &Records, context: &Context) -> Result<Self, Report> {
        let created = |key: &str| -> Result<Option<u64>, Report> {
            let times = filters.values(key).map(|name| Ok(records.find(name)?.record.created));
            Ok(times.collect::<Result<Vec<_>, Report>>()?.into_iter().max())
        };
        let mut ancestors = Vec::new();
        for name in filters.values("ancestor") {
            // An image that does not exist has no containers.
            ancestors.extend(context.store()?.resolve(name).ok().map(|image| image.id.to_string()));
        }
        Ok(Self { filters, before: created("before")?, since: created("since")?, ancestors })
    }

    /// Whether a container has a network of this name, or with an ID that begins so.
    fn network(&self, wanted: &str, view: &View<'_>) -> bool {
        let by_id = view.state.networks.iter().filter_map(|one| one.bridge.id.as_deref());
        view.networks().iter().any(|name| name == wanted)
            || (wanted.len() >= 12 && by_id.into_iter().any(|id| id.starts_with(wanted)))
    }

    fn takes(&self, view: &View<'_>) -> Result<bool, Report> {
        let (record, state, filters) = (&view.entry.record, view.state, self.filters);
        let name = |pattern: &str| {
            let pattern = pattern.strip_prefix("^/").map_or_else(|| pattern.to_owned(), |rest| format!("^{rest}"));
            regex::Regex::new(&pattern)
                .map_or_else(|_| record.name.contains(&pattern), |form| form.is_match(&record.name))
        };
        let exited = |code: &str| {
            state.phase == Phase::Exited
                && code.parse().is_ok_and(|code: i64| Some(code) == state.exit_code.map(i64::from))
        };
        let mounts = view.mounts();
        let volume = |wanted: &str| {
            let at = std::path::Path::new(wanted);
            mounts.iter().any(|mount| {
                mount.name.as_deref() == Some(wanted) || mount.destination == at || mount.source.as_deref() == Some(at)
            })
        };
        let publish = |port: &str| {
            let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            let (first, last) = port.split_once('-').unwrap_or((port, port));
            let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
            range.is_some_and(|(first, last)| {
                let is_in =
                    |port: &PublishedPort| port.protocol == protocol && (first..=last).contains(&port.container_port);
                state.ports.iter().any(is_in)
            })
        };
        let health = state.health.as_ref().map_or("none", |health| health.status.name());
        let exposed = view.exposed();
        let expose = |port: &str| {
            let wanted = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
            exposed.contains(&wanted) || publish(port)
        };
        // As in podman, a regular expression at the beginning of the ID.
        let id = |id: &str| {
            let pattern = format!("^(?:{})", id.to_ascii_lowercase());
            regex::Regex::new(&pattern).is_ok_and(|form| form.is_match(&record.id))
        };
        Ok(filters.any("id", id)
            && filters.any("name", name)
            && filters.labels(&view.labels())
            && filters
                .any("status", |status| status == view.status() || (status == "stopped" && view.status() == "exited"))
            && filters.any("exited", exited)
            && filters.any("restart-policy", |kind| {
                record.request.restart.to_string().split(':').next() == Some(if kind == "none" { "no" } else { kind })
            })
            && (!filters.has("ancestor") || self.ancestors.contains(&record.image.to_string()))
            && self.before.is_none_or(|time| record.created < time)
            && self.since.is_none_or(|time| record.created > time)
            && filters.any("volume", volume)
            && filters.any("network", |network| self.network(network, view))
            && filters.any("publish", publish)
            && filters.any("expose", expose)
            && filters.any("health", |wanted| wanted == health)
            && filters.any("user", |user| record.owner.is_called(user)))
    }
}

/// The fields of a container for `--format`, with docker's names.
fn fields(row: &Row, id: String) -> Value {
    let mut fields = format::row([
        ("ID", id.into()),
        ("Names", row.name.as_str().into()),
        ("Image", row.image.as_str().into()),
        ("Command", format!("{:?}", row.command).into()),
        ("CreatedAt", row.created.map_or_else(String::new, view::moment).into()),
        ("RunningFor", row.created.map_or_else(String::new, view::ago).into()),
        ("Ports", row.shown.ports.as_str().into()),
        ("State", row.shown.state.into()),
        ("Status", row.status.as_str().into()),
        ("Size", row.shown.size.as_str().into()),
        ("Labels", joined(&row.shown.labels).into()),
        ("Mounts", row.shown.mounts.as_str().into()),
        ("LocalVolumes", row.shown.volumes.to_string().into()),
        ("Networks", row.shown.network.as_str().into()),
        ("Platform", row.shown.platform.as_str().into()),
        ("Gpus", gpus(row).into()),
        ("User", row.owner.clone().unwrap_or_default().into()),
        ("Url", row.url.clone().unwrap_or_default().into()),
    ]);
    if let Value::Fields(fields) = &mut fields {
        fields.insert("Label".into(), Value::Lookup(row.shown.labels.clone()));
    }
    fields
}

fn joined(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Returns the indexes of the container's current or last GPUs, or the GPU request if it never had any.
fn gpus(row: &Row) -> String {
    match row.gpu_devices.is_empty() {
        true => row.gpus.clone().unwrap_or_default(),
        false => row.gpu_devices.iter().map(|given| given.index.as_str()).collect::<Vec<_>>().join(","),
    }
}

/// The command of a container on one line, the image's if it has none of its own.
pub(super) fn command(view: &View<'_>, whole: bool) -> String {
    let command = view.command().map_or_else(|| "(image's)".to_owned(), |words| words.join(" "));
    if whole { command } else { shorten(&command, 24) }
}

/// The published ports. A container that has ended keeps its ports on record for its next start, and publishes none.
pub(super) fn published(state: &State) -> &[PublishedPort] {
    if matches!(state.phase, Phase::Running) { &state.ports } else { &[] }
}

/// The published and exposed ports as text.
pub(super) fn ports_shown(view: &View<'_>) -> String {
    let mut shown = port_ranges(published(view.state));
    if view.state.phase == Phase::Running && view.entry.record.request.network == NetworkMode::Bridge {
        let is_published = |port: &String| {
            let known = view.state.ports.iter();
            known.map(|known| format!("{}/{}", known.container_port, known.protocol)).any(|known| known == *port)
        };
        shown.extend(view.exposed().into_iter().filter(|port| !is_published(port)));
    }
    shown.join(", ")
}

fn row(view: &View<'_>, whole: bool, with_size: bool) -> Row {
    let (entry, state) = (view.entry, view.state);
    let request = &entry.record.request;
    let published = published(state);
    let ports = published
        .iter()
        .map(|port| format!("{}:{}->{}/{}", port.host_ip, port.host_port, port.container_port, port.protocol))
        .collect();
    let mounts = view.mounts();
    let source = |mount: &view::Shown| {
        let source = mount.source.as_ref().map(|source| source.display().to_string());
        mount.name.clone().or(source).map(|text| if whole { text } else { shorten(&text, 15) })
    };
    Row {
        id: entry.record.id.clone(),
        name: entry.record.name.clone(),
        owner: Some(entry.record.owner.name()),
        image: request.image.clone(),
        command: command(view, whole),
        created: Some(entry.record.created),
        status: status(state),
        phase: Some(state.phase),
        exit_code: state.exit_code,
        oom_killed: state.oom_killed,
        health: state.health.as_ref().map(|health| health.status),
        stop_reason: state.stop_reason.clone(),
        ports,
        shown: Shown {
            ports: ports_shown(view),
            state: view.status(),
            size: if with_size {
                let (own, image) = view.size();
                format!("{} (virtual {})", image::size(own), image::size(own + image))
            } else {
                "0B".into()
            },
            labels: view.labels(),
            mounts: mounts.iter().filter_map(source).collect::<Vec<_>>().join(","),
            volumes: mounts.iter().filter(|mount| mount.kind == "volume").count(),
            network: view.networks().join(","),
            platform: view
                .image
                .as_ref()
                .and_then(|image| image.platform())
                .map_or_else(String::new, |it| it.to_string()),
        },
        url: state.url.clone(),
        gpus: request.gpus.as_ref().map(ToString::to_string),
        gpu_devices: state.gpus.clone(),
    }
}

/// Formats ports as `0.0.0.0:18000-18005->8000-8005/tcp`. Ports that are consecutive on both sides form one entry.
fn port_ranges(ports: &[PublishedPort]) -> Vec<String> {
    let mut ports: Vec<&PublishedPort> = ports.iter().collect();
    ports.sort_by_key(|port| (&port.host_ip, &port.protocol, port.host_port, port.container_port));
    let follows = |before: &PublishedPort, next: &PublishedPort| {
        (&before.host_ip, &before.protocol) == (&next.host_ip, &next.protocol)
            && before.host_port.checked_add(1) == Some(next.host_port)
            && before.container_port.checked_add(1) == Some(next.container_port)
    };
    let range = |first: u16, last: u16| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let runs = ports.chunk_by(|before, next| follows(before, next));
    runs.map(|run| {
        let (first, last) = (run[0], run[run.len() - 1]);
        let (host, container) =
            (range(first.host_port, last.host_port), range(first.container_port, last.container_port));
        format!("{}:{host}->{container}/{}", first.host_ip, first.protocol)
    })
    .collect()
}

/// Returns a row for a container with an unreadable record. Only its id (which is sufficient to remove it) and whether
/// it is running are known.
fn unreadable_row(container: &Unreadable, live: bool) -> Row {
    let dash = || "-".to_owned();
    Row {
        id: container.id.clone(),
        // The name is a guess from damaged text and is marked as such.
        name: container.name.as_ref().map_or_else(dash, |name| format!("{name}?")),
        owner: None,
        image: dash(),
        command: dash(),
        created: None,
        status: match (&container.error, live) {
            (RecordError::Lost { .. }, true) => "Up (lost record)".into(),
            (RecordError::Lost { .. }, false) => "Lost record".into(),
            (_, true) => "Up (unreadable record)".into(),
            (_, false) => "Unreadable record".into(),
        },
        phase: None,
        exit_code: None,
        oom_killed: false,
        health: None,
        stop_reason: None,
        ports: Vec::new(),
        shown: Shown::default(),
        url: None,
        gpus: None,
        gpu_devices: Vec::new(),
    }
}

/// Formats the status like docker: `Up 2 minutes`, `Exited (137) 1 hour ago`. Adds the cause if it was the kernel's
/// memory limit.
pub(super) fn status(state: &State) -> String {
    let since = |moment: Option<u64>| print::ago(now().saturating_sub(moment.unwrap_or_else(now)));
    match state.phase {
        Phase::Created => "Created".into(),
        Phase::Running if state.paused => format!("Up {} (Paused)", since(state.started)),
        Phase::Running => {
            let health = match state.health.as_ref().map(|health| health.status) {
                None => String::new(),
                Some(HealthStatus::Starting) => " (health: starting)".to_owned(),
                Some(status) => format!(" ({})", status.name()),
            };
            let oom = if state.oom_killed { " (a process was OOMKilled)" } else { "" };
            format!("Up {}{health}{oom}", since(state.started))
        }
        Phase::Restarting => format!("Restarting ({})", state.exit_code.unwrap_or(0)),
        Phase::Exited => {
            let oom = if state.oom_killed { " OOMKilled" } else { "" };
            let limit =
                state.stop_reason.as_ref().map(|reason| format!(" {}", reason.limit.name())).unwrap_or_default();
            format!("Exited ({}){oom}{limit} {} ago", state.exit_code.unwrap_or(0), since(state.finished))
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
    use crate::record::Health;

    #[test]
    fn the_status_says_how_it_ended() {
        let state = State {
            phase: Phase::Exited,
            exit_code: Some(137),
            oom_killed: true,
            finished: Some(now()),
            ..State::default()
        };
        assert_eq!(status(&state), "Exited (137) OOMKilled Less than a second ago");
        assert_eq!(status(&State::default()), "Created");
        let health = Some(Health { status: HealthStatus::Healthy, ..Health::default() });
        let running = State { phase: Phase::Running, started: Some(now()), health, ..State::default() };
        assert_eq!(status(&running), "Up Less than a second (healthy)");
        let starting = State { health: Some(Health::default()), ..running };
        assert_eq!(status(&starting), "Up Less than a second (health: starting)");
    }

    #[test]
    fn ports_in_a_row_are_a_range() {
        let port = |host_ip: &str, host_port, container_port, protocol: &str| PublishedPort {
            host_ip: host_ip.into(),
            host_port,
            container_port,
            protocol: protocol.into(),
        };
        let mut ports: Vec<PublishedPort> = (18000..=18005).map(|n| port("0.0.0.0", n, n - 10000, "tcp")).collect();
        ports.extend([
            port("0.0.0.0", 18006, 80, "tcp"),
            port("0.0.0.0", 18007, 82, "tcp"),
            port("0.0.0.0", 18000, 8000, "udp"),
        ]);
        ports.push(port("127.0.0.1", 65535, 65535, "tcp"));
        ports.reverse();
        assert_eq!(
            port_ranges(&ports),
            [
                "0.0.0.0:18000-18005->8000-8005/tcp",
                "0.0.0.0:18006->80/tcp",
                "0.0.0.0:18007->82/tcp",
                "0.0.0.0:18000->8000/udp",
                "127.0.0.1:65535->65535/tcp"
            ]
        );
        assert_eq!(port_ranges(&[]), [""; 0]);
    }

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("äbcd", 4), "äbcd");
    }
}
