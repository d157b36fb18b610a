//! Errors of a container's network.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::network;
use crate::report::{EXIT_GPURUN, Explain};
use crate::request::Subnet;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot create a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    Link { action: String, source: io::Error },
    #[error("cannot {action}")]
    Filter { action: &'static str, source: io::Error },
    #[error("cannot set the packet filter: {reason}")]
    Nft { reason: String },
    #[error("cannot run `nft`")]
    NoNft(#[source] io::Error),
    #[error("cannot start the resolver of the container's network")]
    Resolver(#[source] io::Error),
    #[error("cannot publish port {port}: it is in use{by}")]
    PortInUse { port: String, by: String },
    #[error("cannot publish port {port}")]
    Port { port: String, source: io::Error },
    #[error("cannot choose a network for the bridge: the host has routes to every private network")]
    NoSubnet,
    #[error("cannot create the network `{network}`: all networks of the range {range} are in use")]
    RangeInUse { network: String, range: Subnet },
    #[error("cannot use the configured network {0}/24 for the bridge: a route of the host overlaps it")]
    SubnetInUse(Ipv4Addr),
    #[error("cannot assign an address: all addresses of the network `{0}` are in use")]
    NoAddress(String),
    #[error("cannot assign the address {ip}: {why}")]
    Address { ip: Ipv4Addr, why: String, network: String },
    #[error("cannot create the network `{0}`: there is a network of this name")]
    NameTaken(String),
    #[error("cannot create the network `{network}` with {subnet}: {why} overlaps it")]
    Overlap { network: String, subnet: Subnet, why: String },
    #[error("cannot connect to the network `{network}`: a route of the host overlaps its {subnet}")]
    RouteOverlaps { network: String, subnet: Subnet },
    #[error("cannot remove the network `{network}`: {} connected to it", list(containers))]
    InUse { network: String, containers: Vec<String> },
    #[error("container `{container}` is connected to the network `{network}` already")]
    Connected { container: String, network: String },
    #[error("container `{container}` is not connected to the network `{network}`")]
    NotConnected { container: String, network: String },
    #[error(transparent)]
    Network(#[from] network::NetworkError),
}

/// Container names for a message.
fn list(containers: &[String]) -> String {
    match containers {
        [one] => format!("container `{one}` is"),
        [one, other] => format!("containers `{one}` and `{other}` are"),
        [first, .., last] => format!("containers `{first}` to `{last}` ({} containers) are", containers.len()),
        [] => "a container is".into(),
    }
}

impl Explain for NetError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Network(error) => error.exit_code(),
            Self::NameTaken(_)
            | Self::Overlap { .. }
            | Self::InUse { .. }
            | Self::Connected { .. }
            | Self::NotConnected { .. } => 1,
            _ => EXIT_GPURUN,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Network(error) => return error.hint(),
            Self::Address { network, .. } => {
                format!("omit `--ip`, or choose a free address: `gpurun network inspect {network}` lists the others")
            }
            Self::NameTaken(name) if network::BUILT_IN.contains(&name.as_str()) => {
                "choose another name: every host has this network".into()
            }
            Self::NameTaken(name) => {
                format!("use it, or remove it first with `gpurun network rm {name}`")
            }
            Self::Overlap { .. } => "omit `--subnet`, or choose another one; `ip route` shows the host's routes".into(),
            Self::RouteOverlaps { network, .. } => {
                format!("remove the route, or create the network again: `gpurun network rm {network}`")
            }
            Self::InUse { network, containers } => match containers.first() {
                Some(container) => format!(
                    "disconnect it with `gpurun network disconnect {network} {container}`, or remove it with `gpurun rm -f {container}`"
                ),
                None => return None,
            },
            Self::Connected { network, .. } | Self::NotConnected { network, .. } => {
                format!("`gpurun network inspect {network}` lists the connected containers")
            }
            Self::NoNft(_) => {
                "install it with `apt install nftables`, or use `--network host` or `--network none`, which need no \
                 packet filter"
                    .into()
            }
            Self::PortInUse { .. } => {
                "publish another port with `-p PORT:CONTAINER`, or any free port with `-p CONTAINER`".into()
            }
            Self::Port { source, .. } if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                "name an address of this host; `ip address` lists them".into()
            }
            Self::SubnetInUse(_) => {
                "set another `subnet` in `/etc/gpurun/config.toml`; `ip route` shows the host's routes".into()
            }
            Self::RangeInUse { .. } => {
                "choose addresses with `--subnet`, or remove networks with `gpurun network prune`; \
                                        `range` is set in `/etc/gpurun/config.toml`"
                    .into()
            }
            Self::NoSubnet | Self::NoAddress(_) => "use `--network host`, or remove containers".into(),
            Self::Nft { .. } | Self::Filter { .. } => {
                "check that the kernel has nf_tables and nf_nat; `nft list ruleset` prints the current rules".into()
            }
            _ => return None,
        })
    }
}
