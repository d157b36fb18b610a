//! Connecting containers to networks, and disconnecting them.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::bridge::{is_own, live, lock, no_ipv6, of_attachment, open_netfilter, prepare};
use super::lease::{self, Lease};
use super::link::Netlink;
use super::nfnetlink::Netfilter;
use super::{BRIDGE, Bridge, Endpoint, NetError, Published, Request, conntrack, names, nft};
use crate::durable::{self, Owner};
use crate::request::Attachment;
use crate::sys::netns;

/// The first digits of an ID, by which a container is found as well.
const SHORT_ID: usize = 12;

/// A container's connections.
pub(super) struct Joined {
    pub endpoints: Vec<Endpoint>,
    pub notes: Vec<String>,
}

/// Connects the namespace to the networks and publishes its ports.
pub(super) fn join(request: &Request<'_>, namespace: &OwnedFd, ports: &[Published]) -> Result<Joined, NetError> {
    let Request { id, state_dir, .. } = *request;
    let _lock = lock(state_dir)?;
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    // This start may follow a killed supervisor, before any reconcile.
    if let Some(old) = lease::read(state_dir, id)? {
        clear(&netfilter, &old)?;
    }
    let mut leases = lease::read_all(state_dir)?;
    leases.retain(|(other, _)| other != id);
    let (mut bridges, mut notes) = (Vec::new(), Vec::new());
    for attachment in request.attachments {
        let (bridge, note) = of_attachment(attachment, state_dir, request.networks, request.subnet, &leases)?;
        bridges.push(bridge);
        notes.extend(note);
    }
    let prepared = prepare(&bridges, &netlink, &netfilter, &leases)?;
    notes.splice(0..0, prepared);
    let mut lease = Lease {
        owner: Owner::me(),
        user: request.user.into(),
        name: request.name.to_owned(),
        host_netns: netns::current(),
        ports: ports.to_vec(),
        endpoints: Vec::new(),
        hosts: Some(request.hosts.to_owned()),
    };
    let place = Place { id, hostname: request.hostname, state_dir, namespace, netlink: &netlink, leases: &leases };
    for (attachment, bridge) in request.attachments.iter().zip(bridges) {
        place.add(&mut lease, attachment, bridge)?;
    }
    place.set_default_route(&lease)?;
    announce(&netfilter, id, &lease)?;
    netfilter.keep();
    names::publish(state_dir, &lease.endpoints)?;
    Ok(Joined { endpoints: lease.endpoints, notes })
}

/// Directs the published ports to the container.
fn announce(netfilter: &Netfilter, id: &str, lease: &Lease) -> Result<(), NetError> {
    let Some(target) = lease.target() else { return Ok(()) };
    nft::publish(netfilter, id, target.ip, &lease.ports)?;
    conntrack::forget(netfilter, &lease.ports, |end| target.bridge.subnet.contains(end));
    Ok(())
}

/// Connects a running container to one more network. Called by its supervisor.
pub(crate) fn connect(
    request: &Request<'_>,
    namespace: &OwnedFd,
    attachment: &Attachment,
) -> Result<(Vec<Endpoint>, Vec<String>), NetError> {
    let Request { id, state_dir, .. } = *request;
    let _lock = lock(state_dir)?;
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    let mut leases = lease::read_all(state_dir)?;
    let position = leases.iter().position(|(other, _)| other == id);
    let (_, mut lease) = position.map(|position| leases.swap_remove(position)).ok_or_else(|| gone(state_dir, id))?;
    let (bridge, note) = of_attachment(attachment, state_dir, request.networks, request.subnet, &leases)?;
    if lease.endpoints.iter().any(|known| known.bridge.device == bridge.device) {
        let (container, network) = (lease.name, bridge.network);
        return Err(NetError::Connected { container, network });
    }
    leases.push((id.to_owned(), lease.clone()));
    let mut notes = prepare(std::slice::from_ref(&bridge), &netlink, &netfilter, &leases)?;
    leases.pop();
    notes.extend(note);
    let place = Place { id, hostname: request.hostname, state_dir, namespace, netlink: &netlink, leases: &leases };
    let had_target = lease.target().is_some();
    let connected = place.add(&mut lease, attachment, bridge).and_then(|()| place.set_default_route(&lease));
    let connected = connected.and_then(|()| if had_target { Ok(()) } else { announce(&netfilter, id, &lease) });
    if let Err(error) = connected {
        // What was added of this endpoint; the first error is the one to report.
        if let Some(endpoint) = lease.endpoints.pop() {
            let _ = unplug(&netlink, &endpoint);
        }
        let _ = lease::write(state_dir, id, &lease);
        return Err(error);
    }
    netfilter.keep();
    names::publish(state_dir, &lease.endpoints)?;
    Ok((lease.endpoints, notes))
}

/// Disconnects a running container from a network. Called by its supervisor. Returns the remaining endpoints.
pub(crate) fn disconnect(
    state_dir: &Path,
    id: &str,
    namespace: &OwnedFd,
    network: &str,
) -> Result<Vec<Endpoint>, NetError> {
    let _lock = lock(state_dir)?;
    let (netlink, netfilter) = (Netlink::open()?, open_netfilter()?);
    let mut lease = lease::read(state_dir, id)?.ok_or_else(|| gone(state_dir, id))?;
    let Some(position) = lease.endpoints.iter().position(|known| known.bridge.network == network) else {
        return Err(NetError::NotConnected { container: lease.name, network: network.to_owned() });
    };
    let before = lease.target().map(|target| target.bridge.device.clone());
    let endpoint = lease.endpoints.remove(position);
    if before.as_ref() == Some(&endpoint.bridge.device) {
        clear_ports(&netfilter, &lease, endpoint.ip)?;
    }
    unplug(&netlink, &endpoint)?;
    lease::write(state_dir, id, &lease)?;
    let leases = Vec::new();
    let place = Place { id, hostname: "", state_dir, namespace, netlink: &netlink, leases: &leases };
    place.set_default_route(&lease)?;
    if before.as_ref() == Some(&endpoint.bridge.device) {
        announce(&netfilter, id, &lease)?;
    }
    netfilter.keep();
    names::left(state_dir, id, &lease, &endpoint)?;
    names::publish(state_dir, &[endpoint])?;
    Ok(lease.endpoints)
}

/// Gives a running container another name.
pub(crate) fn rename(state_dir: &Path, id: &str, name: &str) -> Result<(), NetError> {
    if !lease::exists(state_dir, id)? {
        return Ok(());
    }
    let _lock = lock(state_dir)?;
    let Some(mut lease) = lease::read(state_dir, id)? else { return Ok(()) };
    name.clone_into(&mut lease.name);
    for endpoint in &mut lease.endpoints {
        if let Some(first) = endpoint.names.first_mut() {
            name.clone_into(first);
        }
    }
    lease::write(state_dir, id, &lease)?;
    names::publish(state_dir, &lease.endpoints)
}

fn gone(state_dir: &Path, id: &str) -> NetError {
    NetError::Io {
        action: "read",
        path: state_dir.join(format!("{id}.json")),
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// Removes the host's device of an endpoint, and the container's with it.
fn unplug(netlink: &Netlink, endpoint: &Endpoint) -> Result<(), NetError> {
    let index = netns::index(&endpoint.veth);
    if index != 0 && is_own(&endpoint.veth, endpoint.veth_index, index) { netlink.remove(index) } else { Ok(()) }
}

/// How long a chosen address is waited for. The kernel removes the device of a container that has ended a little later, in
/// the background.
const DEVICE_GONE: Duration = Duration::from_secs(5);

/// Where endpoints are added: a container's namespace.
struct Place<'a> {
    id: &'a str,
    hostname: &'a str,
    state_dir: &'a Path,
    namespace: &'a OwnedFd,
    netlink: &'a Netlink,
    /// The leases of all other containers.
    leases: &'a [(String, Lease)],
}

impl Place<'_> {
    /// Adds one endpoint to the lease: an address, a device in the container, and its names.
    fn add(&self, lease: &mut Lease, attachment: &Attachment, bridge: Bridge) -> Result<(), NetError> {
        let interface = self.inside(|| {
            let name = (0..).map(|number| format!("eth{number}")).find(|name| netns::index(name) == 0);
            Ok(name.unwrap_or_default())
        })?;
        let prefix = bridge.subnet.prefix;
        let endpoint = self.claim(lease, attachment, bridge, interface)?;
        self.netlink.hairpin(&endpoint.veth)?;
        self.inside(|| {
            let inner = Netlink::open()?;
            let index = netns::index(&endpoint.interface);
            no_ipv6(&endpoint.interface)?;
            inner.address(index, endpoint.ip, prefix)?;
            inner.up(index)
        })
    }

    /// Claims an address. Writes the lease, then creates the veth pair, whose host-side name contains the address.
    ///
    /// The name makes the address unique on the bridge. Leases belong to one run directory and are written under its
    /// lock, but the kernel refuses a second device with the same name from any process.
    fn claim(
        &self,
        lease: &mut Lease,
        attachment: &Attachment,
        bridge: Bridge,
        interface: String,
    ) -> Result<Endpoint, NetError> {
        let others = self.leases.iter().flat_map(|(_, lease)| &lease.endpoints);
        let on_bridge = others.filter(|other| other.bridge.device == bridge.device);
        let mut taken: BTreeSet<Ipv4Addr> = on_bridge.map(|other| other.ip).collect();
        taken.insert(bridge.gateway);
        let position = lease.endpoints.len();
        let began = Instant::now();
        loop {
            let ip = match attachment.ip {
                Some(ip) => self.fixed(ip, &bridge, &taken)?,
                None => lease::free_address(bridge.subnet, self.last_address(&bridge), &taken)
                    .ok_or_else(|| NetError::NoAddress(bridge.network.clone()))?,
            };
            let mut endpoint = Endpoint::new(bridge.clone(), ip, interface.clone(), device(&bridge, ip), None);
            endpoint.mac = attachment.mac.unwrap_or(endpoint.mac);
            endpoint.aliases.clone_from(&attachment.aliases);
            endpoint.names = self.names(&lease.name, &bridge, attachment);
            // Write the intent first: from here on reconcile finds the device.
            lease.endpoints.truncate(position);
            lease.endpoints.push(endpoint.clone());
            lease::write(self.state_dir, self.id, lease)?;
            let bridge_index = netns::index(&bridge.device);
            let (namespace, inner) = (self.namespace.as_fd(), &endpoint.interface);
            match self.netlink.veth(&endpoint.veth, bridge_index, namespace, inner, endpoint.mac) {
                Ok(()) => {}
                // A container of another run directory has this address, or had it until a moment ago.
                Err(NetError::Link { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                    if attachment.ip.is_some() && began.elapsed() < DEVICE_GONE {
                        std::thread::sleep(Duration::from_millis(10));
                    } else {
                        taken.insert(ip);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            endpoint.veth_index = Some(netns::index(&endpoint.veth));
            lease.endpoints[position] = endpoint.clone();
            lease::write(self.state_dir, self.id, lease)?;
            self.remember_address(&bridge, ip)?;
            return Ok(endpoint);
        }
    }

    /// Checks an address that the caller has chosen.
    fn fixed(&self, ip: Ipv4Addr, bridge: &Bridge, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, NetError> {
        let wrong = |why: String| Err(NetError::Address { ip, why, network: bridge.network.clone() });
        let has_it = |lease: &Lease| lease.endpoints.iter().any(|other| other.ip == ip);
        if !bridge.subnet.is_host(ip) {
            return wrong(format!("the network `{}` has the addresses {}", bridge.network, bridge.subnet));
        }
        if ip == bridge.gateway {
            return wrong("it is this host's address on the network".into());
        }
        match self.leases.iter().find(|(_, lease)| has_it(lease)) {
            Some((_, lease)) if taken.contains(&ip) => wrong(format!("container `{}` has it", lease.name)),
            _ if taken.contains(&ip) => wrong("it is in use".into()),
            _ => Ok(ip),
        }
    }

    /// The names of the container on a network, as docker has them: its name, its aliases, its short ID, its host name.
    fn names(&self, name: &str, bridge: &Bridge, attachment: &Attachment) -> Vec<String> {
        if bridge.id.is_none() {
            return Vec::new();
        }
        let short = &self.id[..SHORT_ID.min(self.id.len())];
        let mut names = vec![name.to_owned()];
        // Only what cannot be taken for something else in a hosts file: no space, no line break, no `#`.
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        for name in attachment.aliases.iter().map(String::as_str).chain([short, self.hostname]) {
            if is_name(name) && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Sets the default route through the first network that leads out, if there is none.
    fn set_default_route(&self, lease: &Lease) -> Result<(), NetError> {
        let Some(target) = lease.target() else { return Ok(()) };
        self.inside(|| match Netlink::open()?.default_route(target.bridge.gateway) {
            // The route through a network that was connected earlier.
            Err(NetError::Link { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        })
    }

    fn inside<T>(&self, run: impl FnOnce() -> Result<T, NetError>) -> Result<T, NetError> {
        netns::inside(self.namespace, run).map_err(NetError::Namespace)?
    }

    /// The address allocated last. The search for the next one starts after it, so that an address is not reused at
    /// once: devices and neighbor tables outlive a container for a moment.
    fn last_address(&self, bridge: &Bridge) -> Option<Ipv4Addr> {
        fs::read_to_string(self.state_dir.join(last_file(bridge))).ok()?.trim().parse().ok()
    }

    fn remember_address(&self, bridge: &Bridge, ip: Ipv4Addr) -> Result<(), NetError> {
        let path = self.state_dir.join(last_file(bridge));
        durable::write_atomic_volatile(&path, format!("{ip}\n").as_bytes()).map_err(|source| NetError::Io {
            action: "write",
            path,
            source,
        })
    }
}

pub(super) fn last_file(bridge: &Bridge) -> String {
    if bridge.id.is_none() { "last".into() } else { format!("last-{}", bridge.device) }
}

/// The host-side device of an address on a bridge.
fn device(bridge: &Bridge, ip: Ipv4Addr) -> String {
    let host = u32::from(ip) - u32::from(bridge.subnet.address);
    match bridge.device.strip_prefix("gpurun-") {
        Some(id) => format!("gp{}-{host:x}", &id[..6.min(id.len())]),
        None => format!("{BRIDGE}-{host}"),
    }
}

/// Removes a container's elements, devices and lease if `wanted` accepts the lease. Missing parts are not an error.
pub(super) fn leave(state_dir: &Path, id: &str, wanted: impl Fn(&Lease) -> bool) -> Result<(), NetError> {
    if !lease::exists(state_dir, id)? {
        return Ok(());
    }
    let _lock = lock(state_dir)?;
    // Read the lease under the lock: the container may have just been started again, with a new lease.
    match lease::read(state_dir, id)? {
        Some(lease) if !wanted(&lease) => return Ok(()),
        Some(lease) => {
            let netfilter = open_netfilter()?;
            clear(&netfilter, &lease)?;
            netfilter.keep();
            // The owner's namespace disappears with its descriptors, and the device with it, without any wait. An
            // explicit removal takes 30 ms.
            if lease.owner != Owner::me() {
                let netlink = Netlink::open()?;
                lease.endpoints.iter().try_for_each(|endpoint| unplug(&netlink, endpoint))?;
            }
            lease::remove(state_dir, id)?;
            names::publish(state_dir, &lease.endpoints)?;
        }
        None => {}
    }
    lease::remove(state_dir, id)
}

fn clear(netfilter: &Netfilter, lease: &Lease) -> Result<(), NetError> {
    match lease.target() {
        Some(target) => clear_ports(netfilter, lease, target.ip),
        None => Ok(()),
    }
}

fn clear_ports(netfilter: &Netfilter, lease: &Lease, ip: Ipv4Addr) -> Result<(), NetError> {
    nft::withdraw(netfilter, &lease.ports)
        .map_err(|source| NetError::Filter { action: "remove published ports from the table `inet gpurun`", source })?;
    conntrack::forget(netfilter, &lease.ports, |end| end == ip);
    Ok(())
}

/// The names and addresses of the running containers on a network.
pub(super) fn members(state_dir: &Path, device: &str) -> Result<Vec<(String, Lease, Endpoint)>, NetError> {
    let mut members = Vec::new();
    for (id, lease) in live(state_dir)? {
        if let Some(endpoint) = lease.endpoints.iter().find(|endpoint| endpoint.bridge.device == device).cloned() {
            members.push((id, lease, endpoint));
        }
    }
    Ok(members)
}
