//! Joining the bridge and leaving it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::lease::{self, Lease};
use super::link::Netlink;
use super::nfnetlink::Netfilter;
use super::{BRIDGE, NetError, Published, Request, conntrack, firewalls, nft};
use crate::durable::{self, FileLock, Owner};
use crate::sys::netns;

/// What a container has on the bridge.
pub(super) struct Joined {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub notes: Vec<String>,
}

/// Gives the namespace a leg of the bridge and publishes its ports.
pub(super) fn join(request: &Request<'_>, namespace: &OwnedFd, ports: &[Published]) -> Result<Joined, NetError> {
    let Request { id, state_dir, .. } = *request;
    let _lock = lock(state_dir)?;
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    // A start after a killed supervisor's, before anybody reconciled.
    if let Some(old) = lease::read(state_dir, id)? {
        clear(&netfilter, &old)?;
    }
    let mut leases = Vec::new();
    for other in lease::all(state_dir)? {
        leases.extend(lease::read(state_dir, &other)?.filter(|_| other != id).map(|lease| (other, lease)));
    }
    let (network, notes) = prepare(state_dir, &netlink, &netfilter, &leases)?;
    let taken: BTreeSet<Ipv4Addr> = leases.iter().map(|(_, lease)| lease.ip).collect();
    let gateway = Ipv4Addr::from(u32::from(network) + 1);
    let ip = lease::free_address(network, last_address(state_dir), &taken).ok_or(NetError::NoAddress)?;
    let veth = format!("gp{}", &id[..10.min(id.len())]);
    // Intent first: from here on reconcile knows what to look for.
    let lease =
        Lease { owner: Owner::me(), name: request.name.to_owned(), ip, veth: veth.clone(), ports: ports.to_vec() };
    lease::write(state_dir, id, &lease)?;
    remember_address(state_dir, ip)?;
    // The device of a namespace that the kernel has not got round to removing.
    netlink.remove(&veth)?;
    let [_, b, c, d] = ip.octets();
    netlink.veth(&veth, netns::index(BRIDGE), namespace, [0x02, 0x67, 0x00, b, c, d])?;
    netlink.hairpin(&veth)?;
    netns::inside(namespace, || -> Result<(), NetError> {
        let inner = Netlink::open()?;
        let index = netns::index("eth0");
        no_ipv6("eth0")?;
        inner.address(index, ip, 24)?;
        inner.up(index)?;
        inner.default_route(gateway)
    })
    .map_err(NetError::Namespace)??;
    nft::publish(&netfilter, id, ip, ports)?;
    conntrack::forget(&netfilter, ports, |end| u32::from(end) & 0xffff_ff00 == u32::from(network));
    netfilter.keep();
    Ok(Joined { ip, gateway, notes })
}

/// Takes back a container's elements, device and lease, if the lease says so; what is not there is no error.
pub(super) fn leave(state_dir: &Path, id: &str, wanted: impl Fn(&Lease) -> bool) -> Result<(), NetError> {
    if !lease::exists(state_dir, id)? {
        return Ok(());
    }
    let _lock = lock(state_dir)?;
    // Read under the lock: the container may have been started anew just now, with a lease of its own.
    match lease::read(state_dir, id)? {
        Some(lease) if !wanted(&lease) => return Ok(()),
        Some(lease) => {
            let netfilter = open_netfilter()?;
            clear(&netfilter, &lease)?;
            netfilter.keep();
            // The owner's namespace goes with its descriptors, and the device with it, without anybody waiting for it; asking for it takes 30 ms.
            if lease.owner != Owner::me() {
                Netlink::open()?.remove(&lease.veth)?;
            }
        }
        None => {}
    }
    lease::remove(state_dir, id)
}

fn clear(netfilter: &Netfilter, lease: &Lease) -> Result<(), NetError> {
    nft::withdraw(netfilter, &lease.ports)
        .map_err(|source| NetError::Filter { action: "take published ports out of the table `inet gpurun`", source })?;
    conntrack::forget(netfilter, &lease.ports, |end| end == lease.ip);
    Ok(())
}

/// The address given out last. The next one is sought from there on: an address rests before it is used again, for devices and neighbours'
/// tables outlive a container for a moment.
fn last_address(state_dir: &Path) -> Option<Ipv4Addr> {
    fs::read_to_string(state_dir.join("last")).ok()?.trim().parse().ok()
}

fn remember_address(state_dir: &Path, ip: Ipv4Addr) -> Result<(), NetError> {
    let path = state_dir.join("last");
    durable::write_atomic_volatile(&path, format!("{ip}\n").as_bytes()).map_err(|source| NetError::Io {
        action: "write",
        path,
        source,
    })
}

fn open_netfilter() -> Result<Netfilter, NetError> {
    Netfilter::open().map_err(|source| NetError::Filter { action: "open a socket to the packet filter", source })
}

fn lock(state_dir: &Path) -> Result<FileLock, NetError> {
    let failed = |action| {
        let path = state_dir.to_path_buf();
        move |source| NetError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(failed("make the directory"))?;
    FileLock::exclusive(&state_dir.join(".lock")).map_err(failed("lock"))
}

/// The bridge, its table, the host's forwarding and its firewalls: each looked at every time, and set only where it is not as it must be. The
/// network's address, and what the person should know.
fn prepare(
    state_dir: &Path,
    netlink: &Netlink,
    netfilter: &Netfilter,
    leases: &[(String, Lease)],
) -> Result<(Ipv4Addr, Vec<String>), NetError> {
    let network = choose_network(state_dir, leases)?;
    let gateway = Ipv4Addr::from(u32::from(network) + 1);
    netlink.bridge(BRIDGE, gateway)?;
    // Before it comes up, or it would listen to router advertisements for a moment.
    no_ipv6(BRIDGE)?;
    let index = netns::index(BRIDGE);
    netlink.address(index, gateway, 24)?;
    netlink.up(index)?;
    sysctl(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
    nft::ensure(netfilter, network, leases)?;
    let mut notes = firewalls::pass(netfilter);
    // Last: not a moment of forwarding without the table.
    if sysctl("net/ipv4/ip_forward", "1")? {
        notes.push("this host now forwards packets between its networks (`net.ipv4.ip_forward` was 0)".into());
    }
    for note in &notes {
        tracing::warn!("{note}");
    }
    Ok((network, notes))
}

/// The bridge's network: as it was chosen, as the bridge has it, or a free one.
fn choose_network(state_dir: &Path, leases: &[(String, Lease)]) -> Result<Ipv4Addr, NetError> {
    let path = state_dir.join("subnet");
    let stands = netns::index(BRIDGE) != 0;
    let known = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<Ipv4Addr>().ok());
    // Without bridge and containers nothing ties us to the old choice, which may lie in the way of a route by now.
    if let Some(network) = known.filter(|_| stands || !leases.is_empty()) {
        return Ok(network);
    }
    let routes = fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let own = lease::parse_routes(&routes, true).into_iter().find(|(_, length)| *length == 24);
    let network = match own {
        Some((network, _)) => network,
        None => lease::free_subnet(&lease::parse_routes(&routes, false)).ok_or(NetError::NoSubnet)?,
    };
    durable::write_atomic_volatile(&path, format!("{network}\n").as_bytes()).map_err(|source| NetError::Io {
        action: "write",
        path,
        source,
    })?;
    Ok(network)
}

fn no_ipv6(device: &str) -> Result<(), NetError> {
    match sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(NetError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Sets a kernel parameter where it has another value; whether it had.
fn sysctl(key: &str, value: &str) -> Result<bool, NetError> {
    let path = Path::new("/proc/sys").join(key);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(false);
    }
    match fs::write(&path, value) {
        Ok(()) => Ok(true),
        Err(source) => Err(NetError::Io { action: "set the kernel parameter", path, source }),
    }
}
