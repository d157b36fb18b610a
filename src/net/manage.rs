//! Creating and removing named networks.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use super::bridge::{lock, make};
use super::join::{last_file, members};
use super::link::Netlink;
use super::{BRIDGE, Bridge, Endpoint, NetError, lease, nft};
use crate::network::{BUILT_IN, Network, NetworkError, Networks};
use crate::request::{Subnet, is_network_name};
use crate::sys::netns;

/// A network to create.
#[derive(Debug, Default)]
pub(crate) struct NewNetwork {
    pub name: String,
    /// `None` means a free one.
    pub subnet: Option<Subnet>,
    pub gateway: Option<Ipv4Addr>,
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    /// The range from which a free one is taken, from the host's configuration.
    pub range: Option<Subnet>,
    /// The default bridge's configured network.
    pub default: Option<Ipv4Addr>,
}

/// Creates a network and its bridge.
pub(crate) fn create(state_dir: &Path, networks: &Networks, new: NewNetwork) -> Result<Network, NetError> {
    let NewNetwork { name, subnet, gateway, internal, labels, range, default } = new;
    if !is_network_name(&name) {
        return Err(NetworkError::Name(name).into());
    }
    let _lock = lock(state_dir)?;
    if BUILT_IN.contains(&name.as_str()) || networks.read(&name)?.is_some() {
        return Err(NetError::NameTaken(name));
    }
    let all = networks.list()?;
    let subnet = choose(&name, subnet, &all, range, default)?;
    let gateway = gateway.unwrap_or(subnet.first_host());
    if !subnet.is_host(gateway) {
        let why = format!("the network has the addresses {subnet}");
        return Err(NetError::Address { ip: gateway, why, network: name });
    }
    let id = loop {
        // The bridge's name has the first digits. A bridge of another root may have them too.
        let id = crate::names::new_container_id();
        if netns::index(&format!("gpurun-{}", &id[..8])) == 0 {
            break id;
        }
    };
    let network = Network { id, name, created: crate::clock::now(), subnet, gateway, internal, labels };
    // The record first: a bridge without a record would never be removed.
    networks.write(&network)?;
    // The bridge is here from now on, so that its route keeps others from choosing the same addresses.
    let made = Netlink::open().and_then(|netlink| make(&netlink, &Bridge::from(network.clone())));
    if let Err(error) = made {
        let _ = networks.remove(&network.name);
        return Err(error);
    }
    Ok(network)
}

/// The addresses of a new network: those that were asked for, or free ones.
fn choose(
    name: &str,
    subnet: Option<Subnet>,
    all: &[Network],
    range: Option<Subnet>,
    default: Option<Ipv4Addr>,
) -> Result<Subnet, NetError> {
    let routes = fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let routes = lease::parse_routes(&routes, "", false);
    if let Some(subnet) = subnet {
        let overlap = |why: String| Err(NetError::Overlap { network: name.to_owned(), subnet, why });
        if let Some(other) = all.iter().find(|other| other.subnet.overlaps(subnet)) {
            return overlap(format!("the network `{}` ({})", other.name, other.subnet));
        }
        let is_near = |(address, prefix): &&(Ipv4Addr, u8)| lease::overlaps(subnet, &[(*address, *prefix)]);
        return match routes.iter().find(is_near) {
            Some((address, prefix)) => overlap(format!("the host's route to {address}/{prefix}")),
            None => Ok(subnet),
        };
    }
    let mut taken = routes;
    taken.extend(all.iter().map(|other| (other.subnet.address, other.subnet.prefix)));
    // The default bridge, which may not exist yet, keeps its network.
    let default = default.or_else(|| {
        (netns::index(BRIDGE) == 0).then(|| lease::free_subnet(None, &taken)).flatten().map(|net| net.address)
    });
    taken.extend(default.map(|default| (default, 24)));
    lease::free_subnet(range, &taken).ok_or_else(|| match range {
        Some(range) => NetError::RangeInUse { network: name.to_owned(), range },
        None => NetError::NoSubnet,
    })
}

/// Removes a network, its bridge and its rules, if no running container is connected to it.
pub(crate) fn remove(state_dir: &Path, networks: &Networks, name: &str) -> Result<Network, NetError> {
    let _lock = lock(state_dir)?;
    let network = networks.find(name)?;
    let bridge = Bridge::from(network.clone());
    let containers: Vec<String> =
        members(state_dir, &bridge.device)?.into_iter().map(|(_, lease, _)| lease.name).collect();
    if !containers.is_empty() {
        return Err(NetError::InUse { network: network.name, containers });
    }
    let index = netns::index(&bridge.device);
    if index != 0 {
        Netlink::open()?.remove(index)?;
    }
    nft::forget(&bridge);
    let _ = fs::remove_file(state_dir.join(last_file(&bridge)));
    networks.remove(&network.name)?;
    Ok(network)
}

/// The running containers that are connected to networks: ID, name, endpoint.
pub(crate) fn connected(state_dir: &Path) -> Result<Vec<(String, String, Endpoint)>, NetError> {
    let all = super::bridge::live(state_dir)?;
    let of = |(id, lease): (String, lease::Lease)| {
        lease.endpoints.into_iter().map(move |endpoint| (id.clone(), lease.name.clone(), endpoint))
    };
    Ok(all.into_iter().flat_map(of).collect())
}
