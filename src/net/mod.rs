//! A container's network: a namespace held by descriptor, a leg of a bridge, NAT, published ports.
//!
//! ```text
//! container 10.89.x.y ── eth0 ═ veth ── gpurun0 (10.89.x.1/24) ── nft table `inet gpurun`: masquerade out, DNAT in ── host, outside
//!
//! /run/gpurun/net/.lock       flock: addresses and rules are given out and taken back under it
//!                 subnet      the bridge's network, chosen once so that it overlaps no route of the host
//!                 last        the address given out last
//!                 ID.json     one container's lease: owner (pid, start time), address, ports, veth
//! ```
//!
//! The namespace and the veth pair live by the supervisor's descriptor: when it dies, the kernel removes both. What outlives it are the lease
//! and the elements of the nft maps, which [`reconcile`] removes. A lease is written before what it names is made, and removed last. Each
//! published port is held by a bound socket of the supervisor, so that nobody else takes it, and a port in use is an error before
//! anything starts.
//!
//! The bridge, the table's chains and `net.ipv4.ip_forward = 1` belong to the host: made once a boot, looked at with every start and
//! mended where somebody else's hand was on them, and never removed, for other programs may rely on forwarding by now.
//!
//! 127.0.0.0/8 is not opened to neighbours: `route_localnet` is set on our bridge alone, nothing with a loopback address comes in from
//! there, and ports published on 127.0.0.1 are found by connections that this host makes itself, not by packets from outside.
//!
//! There is no IPv6 on the bridge: ports are published on IPv4, and a container must not be able to advertise itself as the host's router.
//!
//! Runs in the supervisor: synchronous, no threads.

mod bridge;
mod conntrack;
pub mod files;
mod firewalls;
mod holders;
mod lease;
mod link;
mod nfnetlink;
mod nft;
mod ports;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use ports::{PortError, PortSpec, Protocol};

use crate::report::{Explain, Report};
use crate::request::NetworkMode;
use crate::sys::netns;

/// The bridge that all containers of this host share.
pub const BRIDGE: &str = "gpurun0";

/// Where `nft` and `iptables` are looked for, whatever the person's own PATH is.
const PROGRAMS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

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
    /// What the person should know: what was changed on the host, what is in the way.
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    Link { action: String, source: io::Error },
    #[error("cannot {action}")]
    Filter { action: &'static str, source: io::Error },
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
            Self::Nft { .. } | Self::Filter { .. } => {
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
            let (ports, holders) = holders::hold(request)?;
            let namespace = netns::create().map_err(NetError::Namespace)?;
            match bridge::join(request, &namespace, &ports) {
                Ok(joined) => Ok(Network {
                    namespace: Some(namespace),
                    ip: Some(joined.ip),
                    gateway: Some(joined.gateway),
                    ports,
                    holders,
                    notes: joined.notes,
                }),
                Err(error) => {
                    // The first error leads; what cannot be taken back now is found by reconcile.
                    let _ = teardown(request.state_dir, request.id);
                    Err(error)
                }
            }
        }
    }
}

/// Takes back what a container's network left outside its supervisor. Idempotent. The supervisor itself keeps the device until it drops the
/// [`Network`] and the last process in it ends.
pub fn teardown(state_dir: &Path, id: &str) -> Result<(), NetError> {
    bridge::leave(state_dir, id, |_| true)
}

/// Takes back what containers that live no more have left. Idempotent.
///
/// A lease whose owner lives is let alone even if its container is not among `living`: it may have been started since that list was made.
pub fn reconcile(state_dir: &Path, living: &[String]) -> Result<(), Report> {
    for id in lease::all(state_dir)? {
        if !living.contains(&id) {
            bridge::leave(state_dir, &id, |lease| !lease.owner.lives())?;
        }
    }
    Ok(())
}
