//! `gpurun network create | ls | inspect | rm | prune | connect | disconnect`: named networks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::change::ask;
use super::confirm::confirm;
use super::exists::{ExistsArgs, existence};
use super::filter::Filters;
use super::format::{self, Format, Titles};
use super::{Context, moment, network_ids, print, view};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::control::ToSupervisor;
use crate::net::{self, Endpoint, NewNetwork};
use crate::network::{Network, NetworkError, Networks};
use crate::record::{Records, short};
use crate::report::Report;
use crate::request::{Attachment, DEFAULT_NETWORK, NetworkMode, Request, Subnet, parse_alias};
use crate::template;

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
enum NetworkCommand {
    /// Connect a container, running or not, to a network
    Connect(ConnectArgs),
    /// Create a network, on which containers find each other by name
    Create(CreateArgs),
    /// Disconnect a container from a network
    Disconnect(DisconnectArgs),
    /// Exit with status 0 if a network exists, and with 1 if not
    Exists(ExistsArgs),
    /// Show details of networks as JSON, with the containers that are connected
    Inspect(InspectArgs),
    /// List networks
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Remove networks that no container uses
    Prune(PruneArgs),
    /// Remove networks
    #[command(alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun network create lab\n  gpurun run -d --name db --network lab postgres\n  gpurun run --rm --network lab box nc db 5432"
)]
struct CreateArgs {
    /// Driver of the network: `bridge`
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// Addresses of the network (default: a free /24)
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    subnet: Option<String>,
    /// This host's address on the network (default: the first one)
    #[arg(long, value_name = "IP")]
    gateway: Option<Ipv4Addr>,
    /// Give the network no route to other networks or to this host
    #[arg(long)]
    internal: bool,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Accepted: containers can always be connected
    #[arg(long, hide = true)]
    attachable: bool,
    /// Name of the network
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
struct ConnectArgs {
    /// Add a name of the container on this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address on the network
    #[arg(long, value_name = "IP")]
    ip: Option<Ipv4Addr>,
    /// Network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or ID of a container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Debug, Args)]
struct DisconnectArgs {
    /// Accepted: a disconnection needs no force
    #[arg(short, long, hide = true)]
    force: bool,
    /// Network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or ID of a container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Print a Go template for each network, or a JSON object per line (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Accepted for symmetry: the output is always JSON
    #[arg(long, hide = true)]
    json: bool,
    /// Names or IDs of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Select networks: name=TEXT, id=ID, label=KEY[=VALUE], driver=bridge, type=custom|builtin, dangling=true
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print a table of chosen fields, JSON lines (`json`), or a Go template for each network
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not truncate the IDs
    #[arg(long)]
    no_trunc: bool,
    /// Print no titles
    #[arg(short = 'n', long)]
    noheading: bool,
    /// Print only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    json: bool,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Select networks: until=TIME, label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Do not fail if a network does not exist
    #[arg(short, long)]
    force: bool,
    /// Accepted for compatibility with podman: a network that a container uses stays
    #[arg(short, long, hide = true, value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<String>,
    /// Names or IDs of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

const TITLES: &Titles = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

pub(super) fn run(args: &NetworkArgs, context: &Context) -> Result<u8, Report> {
    match &args.command {
        NetworkCommand::Connect(args) => connect(args, context),
        NetworkCommand::Create(args) => create(args, context),
        NetworkCommand::Disconnect(args) => disconnect(args, context),
        NetworkCommand::Exists(args) => Ok(existence(find(&all(context)?, &args.name).is_ok())),
        NetworkCommand::Inspect(args) => inspect(args, context),
        NetworkCommand::Ls(args) => ls(args, context),
        NetworkCommand::Prune(args) => prune(args, context),
        NetworkCommand::Rm(args) => rm(args, context),
    }
}

fn state_dir(context: &Context) -> PathBuf {
    context.run_dir.join("net")
}

/// A network as the commands show it, also the three that every host has.
struct Shown {
    id: String,
    name: String,
    driver: &'static str,
    /// Nanoseconds since 1970.
    created: Option<u64>,
    addresses: Option<(Subnet, Ipv4Addr)>,
    internal: bool,
    labels: BTreeMap<String, String>,
    is_built_in: bool,
    /// ID and name of each connected container.
    containers: Vec<(String, String, Endpoint)>,
}

/// All networks, by name.
fn all(context: &Context) -> Result<Vec<Shown>, Report> {
    // Removes the leases of dead containers.
    context.records()?;
    let connected = net::connected(&state_dir(context))?;
    let on = |device: &str| connected.iter().filter(|(.., one)| one.bridge.device == device).cloned().collect();
    let built_in = |name: &str, driver| Shown {
        id: network_ids::built_in(name),
        name: name.to_owned(),
        driver,
        created: None,
        addresses: None,
        internal: false,
        labels: BTreeMap::new(),
        is_built_in: true,
        containers: Vec::new(),
    };
    let mut bridge = Shown { containers: on(net::BRIDGE), ..built_in(DEFAULT_NETWORK, "bridge") };
    bridge.addresses = net::default_network(&state_dir(context));
    let mut all = vec![bridge, built_in("host", "host"), built_in("none", "null")];
    for network in Networks::new(&context.root).list()? {
        let containers = on(&network.device());
        let Network { id, name, created, subnet, gateway, internal, labels } = network;
        all.push(Shown {
            id,
            name,
            driver: "bridge",
            created: Some(created),
            addresses: Some((subnet, gateway)),
            internal,
            labels,
            is_built_in: false,
            containers,
        });
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

impl Shown {
    fn created(&self) -> String {
        self.created.map_or_else(|| "0001-01-01T00:00:00Z".into(), rfc3339)
    }

    fn json(&self) -> Value {
        let config: Vec<Value> = self
            .addresses
            .iter()
            .map(|(subnet, gateway)| json!({ "Subnet": subnet.to_string(), "Gateway": gateway.to_string() }))
            .collect();
        let container = |(id, name, endpoint): &(String, String, Endpoint)| {
            let entry = json!({
                "Name": name,
                "EndpointID": network_ids::endpoint_id(id, endpoint),
                "MacAddress": endpoint.mac.to_string(),
                "IPv4Address": format!("{}/{}", endpoint.ip, endpoint.bridge.subnet.prefix),
                "IPv6Address": "",
            });
            (id.clone(), entry)
        };
        let containers: Map<String, Value> = self.containers.iter().map(container).collect();
        json!({
            "Name": self.name,
            "Id": self.id,
            "Created": self.created(),
            "Scope": "local",
            "Driver": self.driver,
            "EnableIPv4": true,
            "EnableIPv6": false,
            "IPAM": { "Driver": "default", "Options": {}, "Config": config },
            "Internal": self.internal,
            "Attachable": false,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": containers,
            "Options": {},
            "Labels": self.labels,
        })
    }
}

fn find<'a>(all: &'a [Shown], name: &str) -> Result<&'a Shown, Report> {
    if let Some(network) = all.iter().find(|network| network.name == name) {
        return Ok(network);
    }
    let mut by_id = all.iter().filter(|network| !name.is_empty() && network.id.starts_with(name));
    match (by_id.next(), by_id.next()) {
        (Some(network), None) => Ok(network),
        // Who removes or inspects a network does not want to create it.
        (None, _) => Err(Report::from(NetworkError::Missing(name.to_owned()))
            .with_hint("list the networks with `gpurun network ls`")),
        (Some(_), Some(_)) => Err(NetworkError::Ambiguous(name.to_owned()).into()),
    }
}

/// The JSON of a network, for `gpurun inspect`.
pub(super) fn found(context: &Context, name: &str) -> Result<Value, Report> {
    find(&all(context)?, name).map(Shown::json)
}

fn create(args: &CreateArgs, context: &Context) -> Result<u8, Report> {
    if args.driver != "bridge" {
        return Err(Report::usage(format!("there is no network driver `{}`", args.driver)).with_hint(
            "omit `--driver`: a network is a bridge of this host; `--network host` uses this host's network",
        ));
    }
    let subnet = args.subnet.as_deref().map(str::parse::<Subnet>).transpose().map_err(|why| {
        let text = args.subnet.as_deref().unwrap_or_default();
        Report::usage(format!("cannot use `--subnet {text}`: {why}")).with_hint("for example `--subnet 172.28.0.0/16`")
    })?;
    let labels = args.label.iter().map(|text| crate::request::parse_label(text)).collect::<Result<_, _>>()?;
    // Removes the leases of dead containers.
    context.records()?;
    let config = Config::load()?;
    let network = net::create(
        &state_dir(context),
        &Networks::new(&context.root),
        NewNetwork {
            name: args.name.clone(),
            subnet,
            gateway: args.gateway,
            internal: args.internal,
            labels,
            range: config.network.range.map(|range| range.0),
            default: config.network.subnet.map(|subnet| subnet.0),
        },
    )?;
    print::out(&format!("{}\n", network.id))?;
    Ok(0)
}

/// Refuses to change the networks that every host has.
fn own(network: &Shown, action: &str) -> Result<(), Report> {
    if !network.is_built_in {
        return Ok(());
    }
    Err(Report::new(format!("cannot {action} the network `{}`: every host has it", network.name))
        .with_exit_code(1)
        .with_hint("list the networks that you created: `gpurun network ls --filter type=custom`"))
}

fn rm(args: &RmArgs, context: &Context) -> Result<u8, Report> {
    // As in docker, what does not exist is not printed either.
    let mut names = args.networks.clone();
    if args.force {
        let all = all(context)?;
        names.retain(|name| find(&all, name).is_ok());
    }
    super::containers::for_each(&names, |name| {
        let all = all(context)?;
        let network = find(&all, name)?;
        own(network, "remove")?;
        net::remove(&state_dir(context), &Networks::new(&context.root), &network.name)?;
        Ok(())
    })
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, Report> {
    if !args.force {
        confirm("all networks that no container uses", "gpurun network prune --force")?;
    }
    let names = prune_unused(&args.filter, context)?;
    if !names.is_empty() {
        print::out(&format!("Deleted Networks:\n{}\n\n", names.join("\n")))?;
    }
    Ok(0)
}

/// Removes the networks that no container uses, running or not. Returns their names.
pub(super) fn prune_unused(filters: &[String], context: &Context) -> Result<Vec<String>, Report> {
    let filters = Filters::parse(filters, &["until", "label"])?;
    let until = filters.values("until").last().map(|text| moment::parse("--filter until", text)).transpose()?;
    let records = context.records()?;
    let (entries, unreadable) = records.list_all()?;
    if let Some(container) = unreadable.into_iter().next() {
        return Err(Report::from(container.error).under("cannot find out which networks are used"));
    }
    let uses = |name: &str| {
        entries.iter().any(|entry| entry.record.request.attachments().iter().any(|one| one.network == name))
    };
    let mut names = Vec::new();
    for network in all(context)?.into_iter().filter(|network| !network.is_built_in) {
        let is_wanted = until.is_none_or(|until| network.created.is_some_and(|created| created < until));
        if !is_wanted || !filters.labels(&network.labels) || !network.containers.is_empty() || uses(&network.name) {
            continue;
        }
        match net::remove(&state_dir(context), &Networks::new(&context.root), &network.name) {
            Ok(network) => names.push(network.name),
            // A container has been connected in the meantime, or another command has removed it.
            Err(net::NetError::InUse { .. } | net::NetError::Network(NetworkError::Missing(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(names)
}

fn inspect(args: &InspectArgs, context: &Context) -> Result<u8, Report> {
    let all = all(context)?;
    let (mut shown, mut first) = (Vec::new(), None);
    for name in &args.networks {
        match find(&all, name) {
            Ok(network) => shown.push(network.json()),
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    format::print_all(args.format.as_deref(), &shown)?;
    first.map_or(Ok(0), Err)
}

fn ls(args: &LsArgs, context: &Context) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let filters = Filters::parse(&args.filter, &["name", "id", "label", "driver", "scope", "type", "dangling"])?;
    let dangling = filters.truth("dangling")?;
    let mut networks = all(context)?;
    networks.retain(|network| {
        let kind = if network.is_built_in { "builtin" } else { "custom" };
        let is_dangling = !network.is_built_in && network.containers.is_empty();
        dangling.is_none_or(|dangling| dangling == is_dangling)
            && filters.name(&network.name)
            && filters.any("id", |id| network.id.starts_with(id))
            && filters.any("driver", |driver| driver == network.driver)
            && filters.any("scope", |scope| scope == "local")
            && filters.any("type", |wanted| wanted == kind)
            && filters.labels(&network.labels)
    });
    let id = |network: &Shown| if args.no_trunc { network.id.clone() } else { short(&network.id).to_owned() };
    if args.json {
        print::json(&networks.iter().map(Shown::json).collect::<Vec<_>>())?;
    } else if !matches!(format, Format::Table) {
        let rows: Vec<template::Value> = networks.iter().map(|network| fields(network, id(network))).collect();
        format.print(TITLES, &rows, args.noheading)?;
    } else if args.quiet {
        print::out(&networks.iter().map(|network| id(network) + "\n").collect::<String>())?;
    } else {
        let rows: Vec<Vec<String>> = networks
            .iter()
            .map(|network| vec![id(network), network.name.clone(), network.driver.into(), "local".into()])
            .collect();
        print::show_rows(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows, args.noheading)?;
    }
    Ok(0)
}

fn fields(network: &Shown, id: String) -> template::Value {
    let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut row = format::row([
        ("ID", id.into()),
        ("Name", network.name.as_str().into()),
        ("Driver", network.driver.into()),
        ("Scope", "local".into()),
        ("IPv4", "true".into()),
        ("IPv6", "false".into()),
        ("Internal", network.internal.to_string().into()),
        ("Labels", labels.join(",").into()),
        ("CreatedAt", network.created.map_or_else(String::new, view::moment).into()),
    ]);
    if let template::Value::Fields(fields) = &mut row {
        fields.insert("Label".into(), template::Value::Lookup(network.labels.clone()));
    }
    row
}

fn connect(args: &ConnectArgs, context: &Context) -> Result<u8, Report> {
    let aliases = args.alias.iter().map(|text| parse_alias(text)).collect::<Result<_, _>>()?;
    let records = context.records()?;
    let attachment = Attachment { aliases, ip: args.ip, ..Attachment::to(&name_of(context, &args.network)?) };
    attachment.check()?;
    let entry = records.find_whole(&args.container)?;
    if entry.supervisor()?.is_some() {
        ask(&entry, &ToSupervisor::Connect { attachment: Box::new(attachment) })?;
        return Ok(0);
    }
    at_rest(&records, &args.container, |request| {
        let mut networks = request.attachments();
        if networks.iter().any(|known| known.network == attachment.network) {
            let (container, network) = (entry.record.name.clone(), attachment.network.clone());
            return Err(net::NetError::Connected { container, network }.into());
        }
        networks.push(attachment);
        request.networks = Some(networks);
        Ok(())
    })
}

fn disconnect(args: &DisconnectArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let entry = records.find_whole(&args.container)?;
    // The network may have been removed while the container did not run.
    let network = name_of(context, &args.network).unwrap_or_else(|_| args.network.clone());
    if entry.supervisor()?.is_some() {
        ask(&entry, &ToSupervisor::Disconnect { network })?;
        return Ok(0);
    }
    at_rest(&records, &args.container, |request| {
        let mut networks = request.attachments();
        let before = networks.len();
        networks.retain(|known| known.network != network);
        if networks.len() == before {
            return Err(net::NetError::NotConnected { container: entry.record.name.clone(), network }.into());
        }
        request.networks = Some(networks);
        Ok(())
    })
}

/// The name of a network to which a container can be connected.
fn name_of(context: &Context, name: &str) -> Result<String, Report> {
    let all = all(context)?;
    let network = find(&all, name)?;
    if network.is_built_in && network.name != DEFAULT_NETWORK {
        own(network, "connect a container to")?;
    }
    Ok(network.name.clone())
}

/// Changes the networks of a container that does not run.
fn at_rest(
    records: &Records,
    name: &str,
    change: impl FnOnce(&mut Request) -> Result<(), Report>,
) -> Result<u8, Report> {
    let _lock = records.lock()?;
    let mut entry = records.again(&records.find_whole(name)?)?;
    let name = entry.record.name.clone();
    entry.amend_at_rest(|request| {
        if request.network != NetworkMode::Bridge {
            return Err(Report::new(format!("container `{name}` has no network of its own that could be changed"))
                .with_hint("run it with `--network NAME` instead of `host`, `none` or `container:NAME`"));
        }
        change(request)
    })?;
    Ok(0)
}
