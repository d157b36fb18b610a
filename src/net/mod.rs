//! A container's networks: a namespace held by descriptor, ports on bridges, names, NAT, and published ports.
//!
//! ```text
//! container 10.89.x.y ─ eth0 ═ veth ─ gpurun0 (10.89.x.1/24)       ─┬─ nft table `inet gpurun`: masquerade out, DNAT in ─ host
//!           10.89.z.y ─ eth1 ═ veth ─ gpurun-ab12cd34 (10.89.z.1/24) ─┘
//!
//! /run/gpurun/net/.lock       flock: protects the allocation and release of addresses and rules
//!                 subnet      the default bridge's network, chosen once so that it overlaps no route of the host
//!                 last*       the address allocated last, on each bridge
//!                 ID.json     one container's lease: owner (pid, start time), addresses, ports, devices
//!                 ID.names    the names that its resolver answers, removed before the lease
//! ```
//!
//! The namespace and the veth pairs are held by the supervisor's descriptor. When the supervisor dies, the kernel
//! removes them. The lease and the elements of the nft maps remain, and [`reconcile`] removes them. A lease is written
//! before its resources are created, and removed last. A bound socket of the supervisor holds each published port, so
//! that no other program takes it, and so that a port in use is an error before anything starts.
//!
//! The default bridge, the table's chains and `net.ipv4.ip_forward = 1` belong to the host. They are created once per
//! boot and never removed, because other programs may rely on forwarding by then. The bridge of a named network is
//! created with the network, again after a reboot when a container connects to it, and removed with the network. Every
//! start checks them, and while containers run, every command does too ([`repair`]): a deleted bridge or a flushed
//! ruleset disconnects running containers and opens their unpublished ports to the network.
//!
//! An address is unique on its bridge across all run directories, because the name of the container's host-side device
//! contains it.
//!
//! Containers of different networks do not reach each other, except through published ports. Those of an internal
//! network reach neither other networks nor this host, and they have no default route.
//!
//! The containers of a named network find each other by name: through their hosts files ([`names`]) and a resolver
//! ([`dns`]). On the default bridge they have no names.
//!
//! 127.0.0.0/8 is not opened to neighbors. `route_localnet` is set only on gpurun's bridges, packets with a loopback
//! address that come from a bridge are dropped, and ports published on 127.0.0.1 only accept connections from this
//! host.
//!
//! There is no IPv6 on the bridges. Ports are published on IPv4, and a container must not be able to advertise itself as
//! the host's router.
//!
//! This module runs in the supervisor, synchronously and without threads.

mod bridge;
mod conntrack;
mod dns;
mod error;
pub(crate) mod files;
mod firewalls;
mod holders;
mod join;
mod lease;
mod link;
mod manage;
mod names;
mod nfnetlink;
mod nft;
mod types;

use std::net::Ipv4Addr;
use std::path::Path;

pub(crate) use dns::{RESOLVE, Resolver, main as resolve_main};
pub use error::NetError;
pub(crate) use join::{connect, disconnect, rename};
pub(crate) use manage::{NewNetwork, connected, create, remove};
pub(crate) use types::{BRIDGE, Bridge, Endpoint, Published};
pub use types::{Network, Request};

use crate::network::Networks;
use crate::report::Report;
use crate::request::{NetworkMode, Subnet};
use crate::sys::netns;

/// Sets up the network of a container. A failure leaves nothing behind.
pub fn setup(request: &Request<'_>) -> Result<Network, NetError> {
    match request.mode {
        NetworkMode::Host => Ok(Network::default()),
        NetworkMode::None => {
            let namespace = netns::create().map_err(NetError::Namespace)?;
            Ok(Network { namespace: Some(namespace), ..Network::default() })
        }
        NetworkMode::Bridge => {
            // The ports come first, so that a port in use is detected before anything is created.
            let (ports, holders) = holders::hold(request)?;
            let namespace = netns::create().map_err(NetError::Namespace)?;
            let joined = join::join(request, &namespace, &ports).and_then(|joined| {
                let resolver = Resolver::start(request.state_dir, request.id, &namespace, request.servers)?;
                Ok((joined, resolver))
            });
            match joined {
                Ok((join::Joined { endpoints, notes }, resolver)) => {
                    let mut network = Network { namespace: Some(namespace), endpoints, ports, ..Network::default() };
                    (network.holders, network.notes, network.resolver) = (holders, notes, resolver);
                    let first = network.first().cloned();
                    network.ip = first.as_ref().map(|first| first.ip);
                    network.gateway = first.filter(|first| !first.bridge.internal).map(|first| first.bridge.gateway);
                    Ok(network)
                }
                Err(error) => {
                    // The first error is the one to report. Anything that cannot be removed now is left to reconcile.
                    let _ = teardown(request.state_dir, request.id);
                    Err(error)
                }
            }
        }
    }
}

/// Removes the parts of a container's network that are outside its supervisor. Idempotent. The device remains until the
/// supervisor drops the [`Network`] and the last process in the namespace ends.
pub fn teardown(state_dir: &Path, id: &str) -> Result<(), NetError> {
    join::leave(state_dir, id, |_| true)
}

/// Prepares the bridge (with the configured network, if it is new) and its rules for future containers, or returns why
/// this host cannot. Returns notices.
pub(crate) fn prepare(
    state_dir: &Path,
    networks: &Networks,
    subnet: Option<Ipv4Addr>,
) -> Result<Vec<String>, NetError> {
    bridge::make_ready(state_dir, networks, subnet)
}

/// The addresses of the default bridge and this host's own, if it has been chosen.
pub(crate) fn default_network(state_dir: &Path) -> Option<(Subnet, Ipv4Addr)> {
    let text = std::fs::read_to_string(state_dir.join("subnet")).ok()?;
    let bridge = Bridge::default_with(text.trim().parse().ok()?);
    Some((bridge.subnet, bridge.gateway))
}

/// Writes the names of a container's neighbors into its new hosts file.
pub(crate) fn write_names(state_dir: &Path, id: &str) -> Result<(), NetError> {
    names::write_own(state_dir, id)
}

/// Restores the network of running containers after the bridge, its ports, the table or its elements were removed, or
/// forwarding was turned off. Every command calls this. If nothing is wrong, it costs a few requests to the kernel.
/// Returns one notice for each repair.
pub fn repair(state_dir: &Path) -> Result<Vec<String>, NetError> {
    bridge::repair(state_dir)
}

/// Removes the network resources of containers that are no longer alive. Idempotent.
///
/// `dead` are containers whose supervisor has released its locks. Its process may still be there: the kernel closes the
/// files of a killed process before it ends. A lease whose owner is alive is kept even if its container is neither in
/// `dead` nor in `live`, because it may have been started after those lists were made.
pub fn reconcile(state_dir: &Path, live: &[String], dead: &[String]) -> Result<(), Report> {
    for id in lease::all(state_dir)? {
        if !live.contains(&id) {
            join::leave(state_dir, &id, |lease| dead.contains(&id) || !lease.owner.lives())?;
        }
    }
    Ok(())
}
