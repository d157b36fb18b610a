//! A container's network: a namespace held by descriptor, a leg of a bridge, NAT, published ports.
//!
//! ```text
//! container 10.89.x.y ── eth0 ═ veth ── gpurun0 (10.89.x.1/24) ── nft table `inet gpurun`: masquerade out, DNAT in ── host, outside
//!
//! /run/gpurun/net/.lock       flock: addresses and rules are given out and taken back under it
//!                 subnet      the bridge's network, chosen once so that it overlaps no route of the host
//!                 ID.json     one container's lease: address, ports, veth
//! ```
//!
//! The namespace and the veth pair live by the supervisor's descriptor: when it dies, the kernel removes both. What outlives it are the lease
//! and the elements of the nft sets, which [`reconcile`] removes. Each published port is held by a bound socket of the supervisor, so that
//! nobody else takes it, and a port in use is an error before anything starts.
//!
//! 127.0.0.0/8 is not opened to neighbours: `route_localnet` is set on our bridge alone, and packets for loopback addresses that come in on
//! any interface but `lo` are dropped before they are looked at.
//!
//! Runs in the supervisor: synchronous, no threads.

mod bridge;
pub mod files;
mod lease;
mod link;
mod nft;
mod ports;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use serde::{Deserialize, Serialize};

pub use ports::{PortError, PortSpec, Protocol};

use crate::report::{Explain, Report};
use crate::request::NetworkMode;
use crate::sys::netns;

/// The bridge that all containers of this host share.
pub const BRIDGE: &str = "gpurun0";

/// What a container asks for.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub hostname: &'a str,
    pub mode: NetworkMode,
    pub ports: &'a [PortSpec],
    /// `/run/gpurun/net`
    pub state_dir: &'a Path,
}

/// A port as it was published.
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

/// A network that stands, for as long as this is held.
#[derive(Debug, Default)]
pub struct Network {
    /// `None`: the host's own.
    pub namespace: Option<OwnedFd>,
    pub ip: Option<Ipv4Addr>,
    /// The host's side of the bridge.
    pub gateway: Option<Ipv4Addr>,
    pub ports: Vec<Published>,
    /// Sockets that hold the published ports.
    pub holders: Vec<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    Link { action: String, source: io::Error },
    #[error("cannot set the packet filter: {said}")]
    Nft { said: String },
    #[error("cannot run `nft`")]
    NoNft(#[source] io::Error),
    #[error("port {port} is in use{by}")]
    PortInUse { port: String, by: String },
    #[error("cannot publish port {port}")]
    Port { port: String, source: io::Error },
    #[error("no private network is free of the host's own routes")]
    NoSubnet,
    #[error("all addresses of the bridge `{BRIDGE}` are taken")]
    NoAddress,
}

impl Explain for NetError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoNft(_) => {
                "install it: `apt install nftables`; `--network host` and `none` need no packet filter".into()
            }
            Self::PortInUse { .. } => {
                "publish another one: `-p PORT:CONTAINER`, or `-p CONTAINER` for any free port".into()
            }
            Self::Port { source, .. } if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                "name an address of this host; `ip address` shows them".into()
            }
            Self::NoSubnet | Self::NoAddress => "use `--network host`, or remove containers".into(),
            Self::Nft { .. } => {
                "does the kernel have nf_tables and nf_nat? `nft list ruleset` shows what is there".into()
            }
            _ => return None,
        })
    }
}

/// Makes the network of a container; a failure leaves nothing.
pub fn setup(request: &Request<'_>) -> Result<Network, NetError> {
    match request.mode {
        NetworkMode::Host => Ok(Network::default()),
        NetworkMode::None => {
            let namespace = netns::create().map_err(NetError::Namespace)?;
            Ok(Network { namespace: Some(namespace), ..Network::default() })
        }
        NetworkMode::Bridge => {
            // The ports first: what is in use is known before anything is made.
            let (ports, holders) = hold_ports(request)?;
            let namespace = netns::create().map_err(NetError::Namespace)?;
            let joined = bridge::join(request, &namespace, &ports);
            match joined {
                Ok((ip, gateway)) => {
                    Ok(Network { namespace: Some(namespace), ip: Some(ip), gateway: Some(gateway), ports, holders })
                }
                Err(error) => {
                    // The first error leads; what cannot be taken back now is found by reconcile.
                    let _ = teardown(request.state_dir, request.id);
                    Err(error)
                }
            }
        }
    }
}

/// Takes back what a container's network left outside its supervisor.
pub fn teardown(state_dir: &Path, id: &str) -> Result<(), NetError> {
    bridge::leave(state_dir, id)
}

/// Takes back what containers that live no more have left.
pub fn reconcile(state_dir: &Path, living: &[String]) -> Result<(), Report> {
    for id in lease::all(state_dir)? {
        if !living.contains(&id) {
            teardown(state_dir, &id)?;
        }
    }
    Ok(())
}

/// Binds a socket to each port, so that nobody else gets it as long as the container lives.
fn hold_ports(request: &Request<'_>) -> Result<(Vec<Published>, Vec<OwnedFd>), NetError> {
    let (mut ports, mut holders) = (Vec::new(), Vec::new());
    for spec in request.ports {
        let address = SocketAddrV4::new(spec.host_ip, spec.host_port.unwrap_or(0));
        let kind = match spec.protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp => SockType::Datagram,
        };
        let text = format!("{address}/{}", spec.protocol);
        let hold = || -> nix::Result<(OwnedFd, u16)> {
            let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
            let bound: SockaddrIn = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd))?;
            Ok((fd, bound.port()))
        };
        match hold() {
            Ok((fd, host_port)) => {
                holders.push(fd);
                ports.push(Published {
                    host_ip: spec.host_ip,
                    host_port,
                    container_port: spec.container_port,
                    protocol: spec.protocol,
                });
            }
            Err(nix::Error::EADDRINUSE) => {
                let by = who_has(request.state_dir, spec);
                return Err(NetError::PortInUse { port: text, by });
            }
            Err(errno) => return Err(NetError::Port { port: text, source: errno.into() }),
        }
    }
    Ok((ports, holders))
}

/// " by container `x`" where it is one of ours, else nothing: /proc could tell more, but only slowly.
fn who_has(state_dir: &Path, spec: &PortSpec) -> String {
    for id in lease::all(state_dir).unwrap_or_default() {
        let Ok(Some(lease)) = lease::read(state_dir, &id) else { continue };
        let same =
            lease.ports.iter().any(|port| Some(port.host_port) == spec.host_port && port.protocol == spec.protocol);
        if same {
            return format!(" by container `{}`", lease.name);
        }
    }
    " by another program of this host".into()
}
