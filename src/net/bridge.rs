//! Joining the bridge and leaving it.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::lease::{self, Lease};
use super::link::Netlink;
use super::{BRIDGE, NetError, Published, Request, nft};
use crate::durable::{self, FileLock};
use crate::sys::netns;

/// Gives the namespace a leg of the bridge and publishes its ports; answers its address and the bridge's.
pub(super) fn join(
    request: &Request<'_>,
    namespace: &OwnedFd,
    ports: &[Published],
) -> Result<(Ipv4Addr, Ipv4Addr), NetError> {
    let _lock = lock(request.state_dir)?;
    let netlink = Netlink::open()?;
    let network = prepare(request.state_dir, &netlink)?;
    let gateway = Ipv4Addr::from(u32::from(network) + 1);
    let mut taken = BTreeSet::new();
    for id in lease::all(request.state_dir)? {
        taken.extend(lease::read(request.state_dir, &id)?.map(|lease| lease.ip));
    }
    let ip = lease::free_address(network, &taken).ok_or(NetError::NoAddress)?;
    let veth = format!("gp{}", &request.id[..10.min(request.id.len())]);
    // Intent first: from here on reconcile knows what to look for.
    let lease = Lease { name: request.name.to_owned(), ip, veth: veth.clone(), ports: ports.to_vec() };
    lease::write(request.state_dir, request.id, &lease)?;
    let [_, b, c, d] = ip.octets();
    netlink.veth(&veth, netns::index(BRIDGE), namespace, [0x02, 0x67, 0x00, b, c, d])?;
    netlink.hairpin(&veth)?;
    netns::inside(namespace, || -> Result<(), NetError> {
        let inner = Netlink::open()?;
        let index = netns::index("eth0");
        inner.address(index, ip, 24)?;
        inner.up(index)?;
        inner.default_route(gateway)
    })
    .map_err(NetError::Namespace)??;
    if !ports.is_empty() {
        nft::apply(&nft::elements("add", ip, ports))?;
    }
    Ok((ip, gateway))
}

/// Takes back a container's elements, device and lease; what is not there is no error.
pub(super) fn leave(state_dir: &Path, id: &str) -> Result<(), NetError> {
    let Some(lease) = lease::read(state_dir, id)? else { return lease::remove(state_dir, id) };
    let _lock = lock(state_dir)?;
    // One by one: an element that was never added must not keep the others from being deleted.
    for port in &lease.ports {
        match nft::apply(&nft::elements("delete", lease.ip, std::slice::from_ref(port))) {
            Ok(()) | Err(NetError::Nft { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Netlink::open()?.remove(&lease.veth)?;
    lease::remove(state_dir, id)
}

fn lock(state_dir: &Path) -> Result<FileLock, NetError> {
    let failed = |action| {
        let path = state_dir.to_path_buf();
        move |source| NetError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(failed("make the directory"))?;
    FileLock::exclusive(&state_dir.join(".lock")).map_err(failed("lock"))
}

/// The bridge, its table and the host's forwarding, made once and looked at every time; the network's address.
fn prepare(state_dir: &Path, netlink: &Netlink) -> Result<Ipv4Addr, NetError> {
    let path = state_dir.join("subnet");
    let known = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<Ipv4Addr>().ok());
    // The bridge vanishes with a reboot or by somebody's hand; then the table is made anew as well.
    if let Some(network) = known.filter(|_| netns::index(BRIDGE) != 0) {
        return Ok(network);
    }
    let routes = fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let network = match known {
        Some(network) => network,
        None => lease::free_subnet(&lease::parse_routes(&routes)).ok_or(NetError::NoSubnet)?,
    };
    netlink.bridge(BRIDGE, Ipv4Addr::from(u32::from(network) + 1))?;
    nft::apply(&nft::table(network))?;
    nft::pass_docker();
    sysctl("net/ipv4/ip_forward", "1")?;
    // Loopback addresses may be routed to the bridge, for ports published on 127.0.0.1; what comes from it for them is dropped.
    sysctl(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
    // Written last: it says that all of this stands.
    durable::write_atomic_volatile(&path, format!("{network}\n").as_bytes()).map_err(|source| NetError::Io {
        action: "write",
        path,
        source,
    })?;
    Ok(network)
}

fn sysctl(key: &str, value: &str) -> Result<(), NetError> {
    let path = Path::new("/proc/sys").join(key);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| NetError::Io { action: "set the kernel parameter", path, source })
}
