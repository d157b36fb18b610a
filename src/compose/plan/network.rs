//! The networks of a project, and how the containers of a service are connected to them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::super::error::Wrong;
use super::super::project::Project;
use super::super::service::{Attachment, Network, Pool};
use super::super::value::Node;
use super::files::csv;
use super::maker::{Flags, Maker};
use crate::request::{DEFAULT_NETWORK, Subnet, is_network_name, parse_alias};

/// A network of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProjectNetwork {
    /// Its name in the compose files.
    pub(crate) key: String,
    /// Its name on this host.
    pub(crate) name: String,
    /// It must exist, and the project neither creates nor removes it.
    pub(crate) external: bool,
    pub(crate) subnet: Option<Subnet>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) internal: bool,
    pub(crate) labels: BTreeMap<String, String>,
}

impl ProjectNetwork {
    /// Returns the hash of the network's settings.
    pub(crate) fn hash(&self) -> String {
        use sha2::Digest;
        let Self { subnet, gateway, internal, labels, .. } = self;
        let subnet = subnet.map(|subnet| subnet.to_string());
        let text = serde_json::json!([subnet, gateway, internal, labels]).to_string();
        hex::encode(sha2::Sha256::digest(text))
    }
}

/// How the containers of a service are connected to one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    network: String,
    aliases: Vec<String>,
    ip: Option<String>,
    mac: Option<String>,
}

impl Connection {
    /// Returns the flag of `run` for a container of the service itself.
    pub(crate) fn flag(&self) -> String {
        let options = self.aliases.iter().map(|alias| format!("alias={alias}"));
        let options = options.chain(self.ip.iter().map(|ip| format!("ip={ip}")));
        let options: Vec<String> = options.chain(self.mac.iter().map(|mac| format!("mac-address={mac}"))).collect();
        if options.is_empty() {
            return self.plain_flag();
        }
        let fields = std::iter::once(format!("name={}", self.network)).chain(options);
        format!("--network={}", fields.map(|field| csv(&field)).collect::<Vec<_>>().join(","))
    }

    /// Returns the flag of `run` for another container with the service's settings, without its names and addresses.
    pub(crate) fn plain_flag(&self) -> String {
        format!("--network={}", self.network)
    }
}

impl Project {
    /// Plans the networks that the enabled services use.
    pub(super) fn networks(&self) -> Result<Vec<ProjectNetwork>, Wrong> {
        let all = self.rest.get("networks").and_then(Node::as_map).into_iter().flatten();
        all.map(|(key, node)| network(key, node)).collect()
    }

    /// Returns the names under which other services reach a service because of their `links`, each with the service
    /// that has the link. Services that are not enabled count too, so that the result is the same for each command.
    pub(in crate::compose) fn links_to(&self, service: &str) -> Vec<(String, String)> {
        let links = |node: &Node| -> Vec<String> {
            let list = node.get("links").and_then(Node::as_list).unwrap_or_default();
            let of_service = |text: &str| {
                let (target, alias) = text.split_once(':')?;
                (target == service && alias != service).then(|| alias.to_owned())
            };
            list.iter().filter_map(|node| of_service(node.as_text()?)).collect()
        };
        let of_service = |(name, node): (&str, &Node)| {
            links(node).into_iter().map(|alias| (alias, name.to_owned())).collect::<Vec<_>>()
        };
        let mut all: Vec<(String, String)> = self.every_service().flat_map(of_service).collect();
        all.sort();
        all
    }
}

fn network(key: &str, node: &Node) -> Result<ProjectNetwork, Wrong> {
    let path = format!("networks.{key}");
    let wrong = |below: &str, reason: String| {
        let first = below.split('.').next().unwrap_or_default();
        Wrong::new(node.get(first).map_or(node.at, |node| node.at), format!("{path}.{below}"), reason)
    };
    let network: Network = serde_json::from_value(node.to_json())
        .map_err(|error| Wrong::new(node.at, &path, format!("a value has an unexpected form: {error}")))?;
    let Network { name, external, driver, internal, ipam, labels } = network;
    if !is_network_name(&name) {
        return Err(wrong("name", format!("`{name}` is not a network's name")));
    }
    for (below, driver) in [("driver", driver), ("ipam.driver", ipam.driver)] {
        if let Some(driver) = driver.filter(|driver| !["", "bridge", "default"].contains(&driver.as_str())) {
            return Err(wrong(below, format!("gpurun has no driver `{driver}`: a network is a bridge of this host"))
                .with_hint("remove the driver; `network_mode: host` uses this host's network"));
        }
    }
    let (subnet, gateway) = addresses(&ipam.config).map_err(|reason| wrong("ipam.config", reason))?;
    Ok(ProjectNetwork { key: key.to_owned(), name, external, subnet, gateway, internal, labels })
}

/// Returns the subnet and the gateway. Pools of IPv6 addresses have no effect.
fn addresses(pools: &[Pool]) -> Result<(Option<Subnet>, Option<Ipv4Addr>), String> {
    let is_six = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(':'));
    let mut pools = pools.iter().filter(|pool| !is_six(&pool.subnet) && !is_six(&pool.gateway));
    let Some(pool) = pools.next() else { return Ok((None, None)) };
    if pools.next().is_some() {
        return Err("a network has one IPv4 subnet".to_owned());
    }
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let subnet = text(&pool.subnet)
        .map(|text| text.parse::<Subnet>().map_err(|why| format!("cannot use the subnet `{text}`: {why}")))
        .transpose()?;
    let gateway = text(&pool.gateway)
        .map(|text| text.parse::<Ipv4Addr>().map_err(|_| format!("`{text}` is not an IPv4 address")))
        .transpose()?;
    match (subnet, gateway) {
        (None, Some(gateway)) => Err(format!("the gateway `{gateway}` needs a `subnet`")),
        (Some(subnet), Some(gateway)) if !subnet.is_host(gateway) => {
            Err(format!("the gateway `{gateway}` is not an address of `{subnet}`"))
        }
        addresses => Ok(addresses),
    }
}

impl Maker<'_> {
    /// Adds the flags that do not depend on a network of the project, and returns the connections to those networks.
    pub(super) fn network(&self, flags: &mut Flags) -> Result<Vec<Connection>, Wrong> {
        let service = self.service;
        flags.each("--dns", &service.dns);
        flags.each("--dns-search", &service.dns_search);
        flags.each("--dns-option", &service.dns_opt);
        flags.each("--add-host", service.extra_hosts.iter().map(|line| line.replacen('=', ":", 1)));
        let connections = match service.network_mode.as_deref().filter(|mode| !mode.is_empty()) {
            Some("bridge" | "default") => Vec::new(),
            Some(mode) => {
                flags.add("--network", self.namespace(mode));
                Vec::new()
            }
            None => self.connections()?,
        };
        if connections.is_empty() {
            flags.option("--mac-address", service.mac_address.as_ref());
            if !service.links.is_empty() {
                return Err(self
                    .wrong("links", "the containers find each other by name on a network of the project only")
                    .with_hint("remove `network_mode`"));
            }
        }
        Ok(connections)
    }

    /// The networks in the order of the container's interfaces: the default route and published ports use the first
    /// that is not internal.
    fn connections(&self) -> Result<Vec<Connection>, Wrong> {
        let none = Attachment::default();
        let own = self.service.networks.iter().map(|(key, attachment)| (key, attachment.as_ref().unwrap_or(&none)));
        let mut own: Vec<(&String, &Attachment)> = own.collect();
        own.sort_by_key(|(key, attachment)| (-attachment.gw_priority, -attachment.priority, *key));
        let mut all = own
            .into_iter()
            .map(|(key, attachment)| self.connection(key, attachment))
            .collect::<Result<Vec<Connection>, Wrong>>()?;
        if let Some(first) = all.first_mut() {
            first.mac = first.mac.take().or_else(|| self.service.mac_address.clone());
        }
        Ok(all)
    }

    fn connection(&self, key: &str, attachment: &Attachment) -> Result<Connection, Wrong> {
        let network = self.project.rest.get("networks").and_then(|networks| networks.get(key));
        let name = network.and_then(|node| node.get("name")).and_then(Node::as_text).unwrap_or(key).to_owned();
        let mut aliases = attachment.aliases.clone();
        // The default bridge, as an external network, has no names.
        if name != DEFAULT_NETWORK {
            // Names of services may be longer than those of hosts.
            aliases.extend(parse_alias(self.name));
            aliases.extend(self.linked(key)?);
        }
        aliases.sort();
        aliases.dedup();
        Ok(Connection {
            network: name,
            aliases,
            ip: attachment.ipv4_address.clone(),
            mac: attachment.mac_address.clone(),
        })
    }

    /// Returns the names that `links` of other services on a network give to this one. A name of a network is the same
    /// for all of its containers.
    fn linked(&self, network: &str) -> Result<Vec<String>, Wrong> {
        let project = self.project;
        let is_on = |service: &str| {
            let node = project.every_service().find(|(name, _)| *name == service).map(|(_, node)| node);
            node.is_some_and(|node| node.get("networks").is_some_and(|networks| networks.get(network).is_some()))
        };
        let mut aliases = Vec::new();
        for (alias, from) in project.links_to(self.name).into_iter().filter(|(_, from)| is_on(from)) {
            let taken = |reason: String| {
                let at = project.services.get(&from).map_or(self.node.at, |node| node.at);
                Err(Wrong::new(at, format!("services.{from}.links"), reason)
                    .with_hint("give each service a name of its own"))
            };
            if is_on(&alias) {
                return taken(format!("`{alias}` cannot name `{}`: it is the name of a service", self.name));
            }
            let others = project.every_service().map(|(name, _)| name).filter(|name| *name != self.name);
            for other in others.filter(|other| is_on(other)) {
                if project.links_to(other).iter().any(|(name, from)| *name == alias && is_on(from)) {
                    return taken(format!("`{alias}` names both `{}` and `{other}`", self.name));
                }
            }
            aliases.push(alias);
        }
        Ok(aliases)
    }
}
