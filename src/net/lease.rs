//! The address leases of containers, one file for each container.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dns::table;
use super::{Bridge, Endpoint, NetError, Published};
use crate::durable::{self, Owner};
use crate::request::Subnet;

/// The network resources of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub(super) struct Lease {
    pub owner: Owner,
    /// The container's name.
    pub name: String,
    /// The user who started the container. Leases of gpurun 0.1 do not name it.
    pub user: String,
    /// The network namespace (its inode) that contains the bridges. Leases of gpurun 0.1 do not name it.
    pub host_netns: Option<u64>,
    pub ports: Vec<Published>,
    /// One for each network that the container is connected to, in the order of its interfaces.
    pub endpoints: Vec<Endpoint>,
    /// The container's hosts file, which gets the names of other containers.
    pub hosts: Option<PathBuf>,
}

/// The fields of the file. Release 0.1 has the first address and its device only.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    owner: Owner,
    name: String,
    #[serde(default)]
    user: String,
    ip: Ipv4Addr,
    veth: String,
    /// The device's index, once it exists. The name alone does not prove that the device is this container's: see
    /// [`super::bridge`].
    #[serde(default)]
    veth_index: Option<u32>,
    #[serde(default)]
    host_netns: Option<u64>,
    ports: Vec<Published>,
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    hosts: Option<PathBuf>,
}

impl From<Lease> for Stored {
    fn from(lease: Lease) -> Self {
        let first = lease.first();
        Self {
            ip: first.map_or(Ipv4Addr::UNSPECIFIED, |first| first.ip),
            veth: first.map(|first| first.veth.clone()).unwrap_or_default(),
            veth_index: first.and_then(|first| first.veth_index),
            owner: lease.owner,
            name: lease.name,
            user: lease.user,
            host_netns: lease.host_netns,
            ports: lease.ports,
            endpoints: Some(lease.endpoints),
            hosts: lease.hosts,
        }
    }
}

impl From<Stored> for Lease {
    fn from(stored: Stored) -> Self {
        let Stored { owner, name, user, ip, veth, veth_index, host_netns, ports, endpoints, hosts } = stored;
        let earlier = || {
            let [a, b, c, _] = ip.octets();
            let bridge = Bridge::default_with(Ipv4Addr::new(a, b, c, 0));
            vec![Endpoint::new(bridge, ip, "eth0".into(), veth, veth_index)]
        };
        Self { owner, name, user, host_netns, ports, endpoints: endpoints.unwrap_or_else(earlier), hosts }
    }
}

impl Lease {
    /// The endpoint to which the published ports lead.
    pub(super) fn target(&self) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| !endpoint.bridge.internal)
    }

    /// That endpoint or, without one, the first.
    pub(super) fn first(&self) -> Option<&Endpoint> {
        self.target().or(self.endpoints.first())
    }
}

fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.json"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_path_buf();
    move |source| NetError::Io { action, path, source }
}

/// The ids of all leases.
pub(super) fn all(state_dir: &Path) -> Result<Vec<String>, NetError> {
    let entries = match fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", state_dir)(error)),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names
        .filter_map(|name| name.strip_suffix(".json").filter(|id| !id.starts_with('.')).map(str::to_owned))
        .collect())
}

/// All readable leases, with the IDs of their containers.
pub(super) fn read_all(state_dir: &Path) -> Result<Vec<(String, Lease)>, NetError> {
    let mut leases = Vec::new();
    for id in all(state_dir)? {
        leases.extend(read(state_dir, &id)?.map(|lease| (id, lease)));
    }
    Ok(leases)
}

pub(super) fn exists(state_dir: &Path, id: &str) -> Result<bool, NetError> {
    let path = path(state_dir, id);
    path.try_exists().map_err(io_error("look for", &path))
}

pub(super) fn read(state_dir: &Path, id: &str) -> Result<Option<Lease>, NetError> {
    let path = path(state_dir, id);
    match durable::read_bounded(&path) {
        // A lease is renamed into place, so it is never half-written. A lease of another version counts as none.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

pub(super) fn write(state_dir: &Path, id: &str, lease: &Lease) -> Result<(), NetError> {
    let path = path(state_dir, id);
    let bytes = serde_json::to_vec(lease).map_err(|error| io_error("write", &path)(error.into()))?;
    durable::write_atomic_volatile(&path, &bytes).map_err(io_error("write", &path))
}

/// Removes a lease, and the file with the container's names before it.
pub(super) fn remove(state_dir: &Path, id: &str) -> Result<(), NetError> {
    [table::path(state_dir, id), path(state_dir, id)].iter().try_for_each(|path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    })
}

/// The next free address of the network after `last`. The gateway is in `taken`.
pub(super) fn free_address(subnet: Subnet, last: Option<Ipv4Addr>, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (first, usable) = (u32::from(subnet.first_host()), u32::from(subnet.last()) - u32::from(subnet.first_host()));
    let after = last.filter(|last| subnet.is_host(*last)).map_or(0, |last| u32::from(last) - first + 1);
    // At most one more than those that are taken must be tried.
    let tried = usable.min(u32::try_from(taken.len()).unwrap_or(u32::MAX).saturating_add(1));
    (0..tried).map(|step| Ipv4Addr::from(first + (after + step) % usable)).find(|ip| !taken.contains(ip))
}

/// The ranges from which networks are taken. There are three, because a VPN often covers one of them completely.
const RANGES: [Subnet; 3] = [
    Subnet { address: Ipv4Addr::new(10, 89, 0, 0), prefix: 16 },
    Subnet { address: Ipv4Addr::new(172, 30, 0, 0), prefix: 16 },
    Subnet { address: Ipv4Addr::new(192, 168, 0, 0), prefix: 16 },
];

/// The first /24 in the range, or in gpurun's ranges, that overlaps none of the networks `taken`. A default route does
/// not count.
pub(super) fn free_subnet(range: Option<Subnet>, taken: &[(Ipv4Addr, u8)]) -> Option<Subnet> {
    let ranges = range.map_or(RANGES.to_vec(), |range| vec![range]);
    let all = |range: Subnet| (u32::from(range.address)..=u32::from(range.last())).step_by(256);
    ranges
        .into_iter()
        .flat_map(all)
        .map(|start| Subnet::of_24(Ipv4Addr::from(start)))
        .find(|net| !overlaps(*net, taken))
}

/// Whether a network overlaps one of these routes. A default route does not count.
pub(super) fn overlaps(network: Subnet, routes: &[(Ipv4Addr, u8)]) -> bool {
    routes.iter().any(|(route, length)| {
        let mask = u32::MAX.checked_shl(32 - u32::from((*length).min(network.prefix))).unwrap_or(0);
        *length > 0 && u32::from(network.address) & mask == u32::from(*route) & mask
    })
}

/// Parses the networks of the host's routing table from /proc/net/route: of the device, or of all other devices.
pub(super) fn parse_routes(text: &str, device: &str, own: bool) -> Vec<(Ipv4Addr, u8)> {
    // The kernel prints the four bytes as a number in the machine's byte order.
    let number = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u32::from_be);
    text.lines()
        .skip(1)
        .filter(|line| (line.split_whitespace().next() == Some(device)) == own)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (network, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
            Some((Ipv4Addr::from(network), mask.leading_ones() as u8))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_keeps_clear_of_the_hosts_routes() {
        let ip = |a, b, c| Ipv4Addr::new(a, b, c, 0);
        let free = |routes: &[(Ipv4Addr, u8)]| free_subnet(None, routes).map(|subnet| subnet.address);
        assert_eq!(free(&[]), Some(ip(10, 89, 0)));
        assert_eq!(free(&[(ip(0, 0, 0), 0)]), Some(ip(10, 89, 0)), "a default route overlaps nothing");
        assert_eq!(free(&[(ip(10, 89, 0), 23)]), Some(ip(10, 89, 2)));
        assert_eq!(free(&[(Ipv4Addr::new(10, 89, 0, 64), 26)]), Some(ip(10, 89, 1)));
        let vpn = [(ip(10, 0, 0), 8), (ip(172, 16, 0), 12)];
        assert_eq!(free(&vpn), Some(ip(192, 168, 0)));
        assert_eq!(free(&[vpn[0], vpn[1], (ip(192, 168, 0), 16)]), None);
        let range = "10.7.4.0/23".parse().ok();
        assert_eq!(free_subnet(range, &[(ip(10, 7, 4), 24)]), Some(Subnet::of_24(ip(10, 7, 5))));
        assert_eq!(free_subnet(range, &[(ip(10, 7, 4), 24), (ip(10, 7, 5), 24)]), None);
    }

    #[test]
    fn routes_are_read_from_the_kernels_table() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                    gpurun0\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(parse_routes(text, "gpurun0", true), [(Ipv4Addr::new(10, 89, 0, 0), 24)]);
        assert_eq!(
            parse_routes(text, "gpurun0", false),
            [(Ipv4Addr::UNSPECIFIED, 0), (Ipv4Addr::new(172, 17, 0, 0), 16)]
        );
    }

    #[test]
    fn addresses_run_out() {
        let network = Subnet::of_24(Ipv4Addr::new(10, 89, 0, 0));
        let (mut taken, mut last) = (BTreeSet::from([network.first_host()]), None);
        for _ in 0..253 {
            last = free_address(network, last, &taken);
            assert!(taken.insert(last.unwrap()));
        }
        assert_eq!(taken.first().map(|ip| ip.octets()[3]), Some(1));
        assert_eq!(taken.last().map(|ip| ip.octets()[3]), Some(254));
        assert_eq!(free_address(network, last, &taken), None);
    }

    #[test]
    fn an_address_rests_before_it_is_used_again() {
        let ip = |last| Ipv4Addr::new(10, 89, 0, last);
        let next = |last, taken: &[u8]| {
            free_address(Subnet::of_24(ip(0)), last, &taken.iter().chain([&1]).map(|last| ip(*last)).collect())
        };
        assert_eq!(next(None, &[]), Some(ip(2)));
        assert_eq!(next(Some(ip(2)), &[]), Some(ip(3)));
        assert_eq!(next(Some(ip(2)), &[3, 4]), Some(ip(5)));
        assert_eq!(next(Some(ip(254)), &[]), Some(ip(2)));
        assert_eq!(next(Some(ip(254)), &[2]), Some(ip(3)));
        // The last address is from another network, used before the bridge's network changed. Any free address is
        // valid.
        assert!(next(Some(Ipv4Addr::new(172, 30, 0, 9)), &[]).is_some());
    }
}
