//! The networks that a container requests and those that it has.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dns::Resolver;
use crate::network::{self, Networks};
use crate::request::{Attachment, DEFAULT_NETWORK, Mac, NetworkMode, PortSpec, Protocol, Subnet};

/// The bridge that all containers of this host share by default.
pub(crate) const BRIDGE: &str = "gpurun0";
/// All of gpurun's bridges, as the packet filter names them.
pub(super) const DEVICES: &str = "gpurun*";

/// The network that a container requests.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// The user who started the container.
    pub user: &'a str,
    pub hostname: &'a str,
    pub mode: NetworkMode,
    /// The networks of [`NetworkMode::Bridge`], in the order of their interfaces.
    pub attachments: &'a [Attachment],
    pub networks: &'a Networks,
    /// The container's hosts file.
    pub hosts: &'a Path,
    pub ports: &'a [PortSpec],
    /// `/run/gpurun/net`
    pub state_dir: &'a Path,
    /// The default bridge's network from the host's configuration: a /24.
    pub subnet: Option<Ipv4Addr>,
    /// The name servers to which the container's resolver forwards.
    pub servers: &'a [IpAddr],
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub host_ip: Ipv4Addr,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host_ip, self.host_port, self.protocol)
    }
}

/// The bridge of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The network's name.
    pub network: String,
    /// The network's ID. The default bridge has none.
    pub id: Option<String>,
    pub device: String,
    pub subnet: Subnet,
    /// The host's address.
    pub gateway: Ipv4Addr,
    pub internal: bool,
}

impl Bridge {
    /// The default bridge with this /24.
    pub(super) fn default_with(address: Ipv4Addr) -> Self {
        let subnet = Subnet::of_24(address);
        Self {
            network: DEFAULT_NETWORK.into(),
            id: None,
            device: BRIDGE.into(),
            subnet,
            gateway: subnet.first_host(),
            internal: false,
        }
    }
}

impl From<network::Network> for Bridge {
    fn from(network: network::Network) -> Self {
        let device = network.device();
        let network::Network { id, name, subnet, gateway, internal, .. } = network;
        Self { network: name, id: Some(id), device, subnet, gateway, internal }
    }
}

/// A container's connection to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub bridge: Bridge,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// The device in the container.
    pub interface: String,
    /// The device on the host, and its index once it exists.
    pub veth: String,
    pub veth_index: Option<u32>,
    /// What `--network-alias` asked for.
    pub aliases: Vec<String>,
    /// All names of the container on this network, its own name first. Empty on the default bridge.
    pub names: Vec<String>,
}

impl Endpoint {
    pub(super) fn new(bridge: Bridge, ip: Ipv4Addr, interface: String, veth: String, veth_index: Option<u32>) -> Self {
        let [_, b, c, d] = ip.octets();
        let mac = Mac([0x02, 0x67, 0x00, b, c, d]);
        Self { bridge, ip, mac, interface, veth, veth_index, aliases: Vec::new(), names: Vec::new() }
    }
}

/// A container's network, which exists as long as this value.
#[derive(Debug, Default)]
pub struct Network {
    /// The network namespace, or `None` for the host's own.
    pub namespace: Option<OwnedFd>,
    /// The address to which published ports lead or, without such a network, the first one.
    pub ip: Option<Ipv4Addr>,
    /// The host's address on that network, unless the network is internal.
    pub gateway: Option<Ipv4Addr>,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<Published>,
    /// The sockets that hold the published ports.
    pub holders: Vec<OwnedFd>,
    /// The resolver of a container on a named network.
    pub(crate) resolver: Option<Resolver>,
    /// Notices for the caller about changes to the host and about firewalls that block the bridge.
    pub notes: Vec<String>,
}

impl Network {
    /// Whether the child that the supervisor has reaped was the resolver.
    pub(crate) fn reaped(&mut self, pid: i32, is_needed: bool) -> bool {
        self.resolver.as_mut().is_some_and(|resolver| resolver.reaped(pid, is_needed))
    }

    /// The endpoint to which published ports lead or, without such a network, the first one.
    #[must_use]
    pub(crate) fn first(&self) -> Option<&Endpoint> {
        self.endpoints.iter().find(|one| !one.bridge.internal).or(self.endpoints.first())
    }
}
