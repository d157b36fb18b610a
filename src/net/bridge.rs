//! The bridges and what all containers share: creating them, checking them, and repairing them.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::lease::{self, Lease};
use super::link::Netlink;
use super::nfnetlink::Netfilter;
use super::types::BRIDGE;
use super::{Bridge, Endpoint, NetError, firewalls, nft};
use crate::durable::{self, FileLock};
use crate::network::Networks;
use crate::request::{Attachment, Subnet};
use crate::sys::netns;

/// Restores parts of the network that were removed while containers run: the bridges, their ports, the packet filter's
/// table and elements, and forwarding. Returns one notice for each repair. If nothing is wrong, nothing is written.
pub(super) fn repair(state_dir: &Path) -> Result<Vec<String>, NetError> {
    if live(state_dir)?.is_empty() {
        return Ok(Vec::new());
    }
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    if faults(&netlink, &netfilter, state_dir, &live(state_dir)?)?.is_empty() {
        netfilter.keep();
        return Ok(Vec::new());
    }
    let _lock = lock(state_dir)?;
    // Check again under the lock: a start or another command may have repaired the network in the meantime.
    let leases = live(state_dir)?;
    let mut notices = faults(&netlink, &netfilter, state_dir, &leases)?;
    if !leases.is_empty() && !notices.is_empty() {
        notices.extend(prepare(&[], &netlink, &netfilter, &leases)?);
        for endpoint in endpoints(&leases) {
            reattach(&netlink, endpoint)?;
        }
    }
    netfilter.keep();
    Ok(notices)
}

fn endpoints(leases: &[(String, Lease)]) -> impl Iterator<Item = &Endpoint> {
    leases.iter().flat_map(|(_, lease)| &lease.endpoints)
}

/// The bridges to which containers are connected.
fn in_use(leases: &[(String, Lease)]) -> Vec<Bridge> {
    let mut bridges: Vec<Bridge> = Vec::new();
    for Endpoint { bridge, .. } in endpoints(leases) {
        if bridges.iter().all(|known| known.device != bridge.device) {
            bridges.push(bridge.clone());
        }
    }
    bridges
}

fn routes() -> String {
    fs::read_to_string("/proc/self/net/route").unwrap_or_default()
}

/// The network of a bridge device that is up.
fn network_of(routes: &str, device: &str) -> Option<Subnet> {
    let (address, prefix) = lease::parse_routes(routes, device, true).into_iter().next()?;
    Some(Subnet { address, prefix })
}

/// The faults in the network of running containers, as notices.
fn faults(
    netlink: &Netlink,
    netfilter: &Netfilter,
    state_dir: &Path,
    leases: &[(String, Lease)],
) -> Result<Vec<String>, NetError> {
    let failed = |source| NetError::Filter { action: "read the table `inet gpurun`", source };
    let (routes, bridges) = (routes(), in_use(leases));
    let mut faults: Vec<String> = bridges
        .iter()
        .filter(|bridge| network_of(&routes, &bridge.device) != Some(bridge.subnet))
        .map(|Bridge { device, .. }| {
            format!("the bridge `{device}` was removed or changed while containers ran: it was set up again")
        })
        .collect();
    if !faults.is_empty() {
        return Ok(faults);
    }
    if nft::lack(netfilter, &bridges).map_err(failed)? != nft::Lack::Nothing {
        faults.push("the table `inet gpurun` was removed or changed while containers ran: it was written again".into());
    } else if !nft::missing(netfilter, leases).map_err(failed)?.is_empty() {
        faults.push("published ports were missing from the table `inet gpurun`: they were added again".into());
    }
    for (_, lease) in leases {
        for Endpoint { bridge, veth, veth_index, .. } in &lease.endpoints {
            let (index, bridge_index) = (netns::index(veth), netns::index(&bridge.device));
            if index != 0 && is_own(veth, *veth_index, index) && netlink.bridge_of(index)? != Some(bridge_index) {
                faults.push(format!(
                    "`{}` was no longer connected to the bridge `{}`: it was connected again",
                    lease.name, bridge.device
                ));
            }
        }
    }
    if !forwards() {
        faults.push("IPv4 forwarding (`net.ipv4.ip_forward`) was turned off: it was turned on again".into());
    }
    if !faults.is_empty() {
        tracing::debug!("network below `{}`: {faults:?}", state_dir.display());
    }
    Ok(faults)
}

fn reattach(netlink: &Netlink, endpoint: &Endpoint) -> Result<(), NetError> {
    let Endpoint { bridge, veth, veth_index, .. } = endpoint;
    let (index, bridge) = (netns::index(veth), netns::index(&bridge.device));
    if index == 0 || !is_own(veth, *veth_index, index) || netlink.bridge_of(index)? == Some(bridge) {
        return Ok(());
    }
    netlink.attach(index, bridge)?;
    netlink.hairpin(veth)?;
    netlink.up(index)
}

/// Whether the device at `index` is the lease's. A lease of gpurun 0.1 has no index; its device's name contains the
/// container's ID.
pub(super) fn is_own(veth: &str, recorded: Option<u32>, index: u32) -> bool {
    recorded.map_or(!veth.starts_with(BRIDGE), |own| own == index)
}

/// The leases of running containers.
pub(super) fn live(state_dir: &Path) -> Result<Vec<(String, Lease)>, NetError> {
    let mut leases = lease::read_all(state_dir)?;
    // A command in another network namespace must not set up the bridge, the table and forwarding there.
    let here = |lease: &Lease| lease.host_netns.is_none() || lease.host_netns == netns::current();
    leases.retain(|(_, lease)| lease.owner.lives() && here(lease));
    Ok(leases)
}

fn forwards() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|value| value.trim() == "1")
}

/// Creates the shared parts of the network before the first container needs them.
pub(super) fn make_ready(
    state_dir: &Path,
    networks: &Networks,
    configured: Option<Ipv4Addr>,
) -> Result<Vec<String>, NetError> {
    let _lock = lock(state_dir)?;
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    let leases = live(state_dir)?;
    let (bridge, note) = default_bridge(state_dir, networks, configured, &leases)?;
    let mut notes = prepare(&[bridge], &netlink, &netfilter, &leases)?;
    notes.extend(note);
    netfilter.keep();
    Ok(notes)
}

pub(super) fn open_netfilter() -> Result<Netfilter, NetError> {
    Netfilter::open().map_err(|source| NetError::Filter { action: "open a socket to the packet filter", source })
}

pub(super) fn lock(state_dir: &Path) -> Result<FileLock, NetError> {
    let failed = |action| {
        let path = state_dir.to_path_buf();
        move |source| NetError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(failed("create the directory"))?;
    FileLock::exclusive(&state_dir.join(".lock")).map_err(failed("lock"))
}

/// The bridge of a network to which a container connects, and a notice about it. The caller holds the lock.
pub(super) fn of_attachment(
    attachment: &Attachment,
    state_dir: &Path,
    networks: &Networks,
    configured: Option<Ipv4Addr>,
    leases: &[(String, Lease)],
) -> Result<(Bridge, Option<String>), NetError> {
    if attachment.is_default() {
        return default_bridge(state_dir, networks, configured, leases);
    }
    let bridge = Bridge::from(networks.find(&attachment.network)?);
    let Bridge { network, device, subnet, .. } = &bridge;
    if lease::overlaps(*subnet, &lease::parse_routes(&routes(), device, false)) {
        return Err(NetError::RouteOverlaps { network: network.clone(), subnet: *subnet });
    }
    Ok((bridge, None))
}

/// Checks the bridges and those in use, their table, the host's forwarding and its firewalls every time, and changes
/// only those that are wrong. Returns notices for the user.
pub(super) fn prepare(
    bridges: &[Bridge],
    netlink: &Netlink,
    netfilter: &Netfilter,
    leases: &[(String, Lease)],
) -> Result<Vec<String>, NetError> {
    // Leases of dead containers are excluded, because other containers may have published their ports since.
    let live: Vec<_> = leases.iter().filter(|(_, lease)| lease.owner.lives()).cloned().collect();
    let mut all = bridges.to_vec();
    let others = in_use(&live).into_iter().chain(standing_default());
    for bridge in others {
        if all.iter().all(|known| known.device != bridge.device) {
            all.push(bridge);
        }
    }
    all.iter().try_for_each(|bridge| make(netlink, bridge))?;
    nft::ensure(netfilter, &all, &live)?;
    let mut notes = firewalls::pass(netfilter);
    // Forwarding comes last, so that it is never on without the table.
    if sysctl("net/ipv4/ip_forward", "1")? {
        notes.push("this host now forwards packets between its networks (`net.ipv4.ip_forward` was 0)".into());
    }
    Ok(notes)
}

/// The default bridge if it is there. Containers of other run directories may be connected to it.
fn standing_default() -> Option<Bridge> {
    network_of(&routes(), BRIDGE).filter(|network| network.prefix == 24).map(|net| Bridge::default_with(net.address))
}

/// Creates the device of a bridge if it is missing, and sets what it lacks.
pub(super) fn make(netlink: &Netlink, bridge: &Bridge) -> Result<(), NetError> {
    let Bridge { device, gateway, subnet, internal, .. } = bridge;
    netlink.bridge(device, *gateway)?;
    // This must precede bringing the bridge up, or it would briefly accept router advertisements.
    no_ipv6(device)?;
    let index = netns::index(device);
    netlink.address(index, *gateway, subnet.prefix)?;
    netlink.up(index)?;
    if !internal {
        sysctl(&format!("net/ipv4/conf/{device}/route_localnet"), "1")?;
    }
    Ok(())
}

/// The default bridge, and a notice if it does not have the configured network. Its network is the existing bridge's,
/// the one chosen for running containers, the configured one, or a free one.
fn default_bridge(
    state_dir: &Path,
    networks: &Networks,
    configured: Option<Ipv4Addr>,
    leases: &[(String, Lease)],
) -> Result<(Bridge, Option<String>), NetError> {
    let path = state_dir.join("subnet");
    let stands = netns::index(BRIDGE) != 0;
    let known = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<Ipv4Addr>().ok());
    let routes = routes();
    let own = standing_default().map(|bridge| bridge.subnet.address);
    let is_used = || leases.iter().any(|(_, lease)| lease.endpoints.iter().any(|one| one.bridge.device == BRIDGE));
    // Without a bridge and containers, the old choice is not binding, and it may overlap a route by now.
    let network = match (own, known.filter(|_| stands || is_used())) {
        (Some(network), _) | (None, Some(network)) => network,
        (None, None) => {
            let mut taken = lease::parse_routes(&routes, BRIDGE, false);
            taken.extend(networks.list()?.iter().map(|network| (network.subnet.address, network.subnet.prefix)));
            match configured {
                Some(network) if lease::overlaps(Subnet::of_24(network), &taken) => {
                    return Err(NetError::SubnetInUse(network));
                }
                Some(network) => network,
                None => lease::free_subnet(None, &taken).ok_or(NetError::NoSubnet)?.address,
            }
        }
    };
    if known != Some(network) {
        durable::write_atomic_volatile(&path, format!("{network}\n").as_bytes()).map_err(|source| NetError::Io {
            action: "write",
            path,
            source,
        })?;
    }
    let note = configured.filter(|configured| *configured != network).map(|configured| {
        format!(
            "the bridge `{BRIDGE}` keeps its network {network}/24 instead of the configured {configured}/24: \
             stop all containers and run `ip link delete {BRIDGE}` to change it"
        )
    });
    Ok((Bridge::default_with(network), note))
}

pub(super) fn no_ipv6(device: &str) -> Result<(), NetError> {
    match sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1") {
        // The kernel has no IPv6.
        Err(NetError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Sets a kernel parameter if it has another value. Returns whether it did.
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
