//! Who has which address: one file a container.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{NetError, Published};
use crate::durable::{self, Owner};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub owner: Owner,
    pub name: String,
    pub ip: Ipv4Addr,
    pub veth: String,
    pub ports: Vec<Published>,
}

fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.json"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_path_buf();
    move |source| NetError::Io { action, path, source }
}

/// Ids of all leases.
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

pub(super) fn exists(state_dir: &Path, id: &str) -> Result<bool, NetError> {
    let path = path(state_dir, id);
    path.try_exists().map_err(io_error("look for", &path))
}

pub(super) fn read(state_dir: &Path, id: &str) -> Result<Option<Lease>, NetError> {
    let path = path(state_dir, id);
    match fs::read(&path) {
        // A half-written one cannot be (it is renamed into place); one of another version is as good as none.
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

pub(super) fn remove(state_dir: &Path, id: &str) -> Result<(), NetError> {
    let path = path(state_dir, id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// The next address of the network after `last` that nobody has; `.1` is the bridge's own.
pub(super) fn free_address(network: Ipv4Addr, last: Option<Ipv4Addr>, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    const USABLE: u32 = 253;
    let after = last.map_or(0, |last| u32::from(last).wrapping_sub(u32::from(network)).wrapping_sub(1) % USABLE);
    (0..USABLE)
        .map(|step| Ipv4Addr::from(u32::from(network) + 2 + (after + step) % USABLE))
        .find(|ip| !taken.contains(ip))
}

/// The first /24 of gpurun's ranges that no route of the host overlaps; three ranges, because a VPN often has one of them as a whole.
pub(super) fn free_subnet(routes: &[(Ipv4Addr, u8)]) -> Option<Ipv4Addr> {
    let overlaps = |network: u32, route: u32, length: u8| {
        let shorter = length.min(24);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        length > 0 && network & mask == route & mask
    };
    [Ipv4Addr::new(10, 89, 0, 0), Ipv4Addr::new(172, 30, 0, 0), Ipv4Addr::new(192, 168, 0, 0)]
        .into_iter()
        .flat_map(|range| (0..256u32).map(move |third| u32::from(range) + third * 256))
        .find(|network| !routes.iter().any(|(route, length)| overlaps(*network, u32::from(*route), *length)))
        .map(Ipv4Addr::from)
}

/// Networks of the host's routing table, from /proc/net/route's text: those of our bridge (`true`), or all others.
pub(super) fn parse_routes(text: &str, bridge: bool) -> Vec<(Ipv4Addr, u8)> {
    // The kernel prints the four bytes as the machine's own number.
    let number = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u32::from_be);
    text.lines()
        .skip(1)
        .filter(|line| (line.split_whitespace().next() == Some(super::BRIDGE)) == bridge)
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
        assert_eq!(free_subnet(&[]), Some(ip(10, 89, 0)));
        assert_eq!(free_subnet(&[(ip(0, 0, 0), 0)]), Some(ip(10, 89, 0)), "a default route overlaps nothing");
        assert_eq!(free_subnet(&[(ip(10, 89, 0), 23)]), Some(ip(10, 89, 2)));
        assert_eq!(free_subnet(&[(Ipv4Addr::new(10, 89, 0, 64), 26)]), Some(ip(10, 89, 1)));
        let vpn = [(ip(10, 0, 0), 8), (ip(172, 16, 0), 12)];
        assert_eq!(free_subnet(&vpn), Some(ip(192, 168, 0)));
        assert_eq!(free_subnet(&[vpn[0], vpn[1], (ip(192, 168, 0), 16)]), None);
    }

    #[test]
    fn routes_are_read_from_the_kernels_table() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                    gpurun0\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(parse_routes(text, true), [(Ipv4Addr::new(10, 89, 0, 0), 24)]);
        assert_eq!(parse_routes(text, false), [(Ipv4Addr::UNSPECIFIED, 0), (Ipv4Addr::new(172, 17, 0, 0), 16)]);
    }

    #[test]
    fn addresses_run_out() {
        let network = Ipv4Addr::new(10, 89, 0, 0);
        let (mut taken, mut last) = (BTreeSet::new(), None);
        for _ in 0..253 {
            last = free_address(network, last, &taken);
            assert!(taken.insert(last.unwrap()));
        }
        assert_eq!(taken.first().map(|ip| ip.octets()[3]), Some(2));
        assert_eq!(taken.last().map(|ip| ip.octets()[3]), Some(254));
        assert_eq!(free_address(network, last, &taken), None);
    }

    #[test]
    fn an_address_rests_before_it_is_used_again() {
        let ip = |last| Ipv4Addr::new(10, 89, 0, last);
        let next = |last, taken: &[u8]| free_address(ip(0), last, &taken.iter().map(|last| ip(*last)).collect());
        assert_eq!(next(None, &[]), Some(ip(2)));
        assert_eq!(next(Some(ip(2)), &[]), Some(ip(3)));
        assert_eq!(next(Some(ip(2)), &[3, 4]), Some(ip(5)));
        assert_eq!(next(Some(ip(254)), &[]), Some(ip(2)));
        assert_eq!(next(Some(ip(254)), &[2]), Some(ip(3)));
        // Of another network, from a time before the bridge's was chosen anew: anything will do.
        assert!(next(Some(Ipv4Addr::new(172, 30, 0, 9)), &[]).is_some());
    }
}
