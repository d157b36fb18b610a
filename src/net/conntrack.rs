//! Removes conntrack entries that would send UDP packets to an address that is no longer valid.
//!
//! The kernel consults the nat chains only for the first packet of a flow, and the result applies as long as the flow's
//! entry exists. A sender that never pauses (syslog, a sensor) keeps its entry alive forever. If the flow began before
//! the port was published, it would never reach the container. If it began with an earlier owner of the port, it would
//! still go to that owner's address. So the entries are removed both when a port is published and when it is withdrawn.
//! TCP does not need this, because its next connection is a new flow.

use std::net::{Ipv4Addr, UdpSocket};

use super::Published;
use super::nfnetlink::{Attributes, Message, Netfilter, SUBSYSTEM_CONNTRACK};
use crate::request::Protocol;

const IPV4: u8 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;

/// Removes the entries of UDP flows to these ports that end at one of `ours` or at this host itself.
///
/// This is best effort. Without conntrack's netlink it does nothing, and the entries expire after three minutes of
/// silence.
pub(super) fn forget(netfilter: &Netfilter, ports: &[Published], ours: impl Fn(Ipv4Addr) -> bool) {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let mut stale = Vec::new();
        let shown = netfilter.dump(&look(port.host_port), |_, flow| {
            let (Some(original), Some(reply)) = (flow.nested(ORIGINAL), flow.nested(REPLY)) else { return };
            let asked_for = tuple(original)
                .filter(|(_, protocol, to)| i32::from(*protocol) == libc::IPPROTO_UDP && *to == port.host_port);
            let (Some((destination, ..)), Some(answers)) = (asked_for, address(reply, 1)) else { return };
            let here = || answers == destination && is_local(destination);
            if (port.host_ip.is_unspecified() || port.host_ip == destination) && (ours(answers) || here()) {
                let zone = flow.bytes(ZONE).map(<[u8]>::to_vec);
                stale.push((flow.bytes(ORIGINAL).unwrap_or_default().to_vec(), zone));
            }
        });
        if let Err(error) = shown {
            tracing::debug!("cannot list the flows to port {}: {error}", port.host_port);
        }
        for (original, zone) in stale {
            // The value of a nested attribute is a list of attributes, and it is sent back unchanged.
            let message = delete().nest(ORIGINAL, |nest| {
                Attributes::new(&original).iter_raw().fold(nest, |nest, (kind, value)| nest.attribute(kind, value))
            });
            let message = zone.iter().fold(message, |message, zone| message.attribute(ZONE, zone));
            // The entry may have expired in the meantime.
            let _ = netfilter.request(&message);
        }
    }
}

/// The request for flows to a UDP port. Kernels before 5.8 ignore the filter and return all flows, so the result is
/// filtered again.
fn look(port: u16) -> Message {
    const GET: u8 = 1;
    const FILTER: u16 = 25;
    const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;
    Message::new(SUBSYSTEM_CONNTRACK, GET, IPV4)
        .nest(ORIGINAL, |original| {
            original
                .nest(2, |protocol| protocol.attribute(1, &[libc::IPPROTO_UDP as u8]).attribute(3, &port.to_be_bytes()))
        })
        .nest(FILTER, |filter| {
            filter.attribute(1, &BY_PROTOCOL_AND_PORT.to_ne_bytes()).attribute(2, &0u32.to_ne_bytes())
        })
}

fn delete() -> Message {
    const DELETE: u8 = 2;
    Message::new(SUBSYSTEM_CONNTRACK, DELETE, IPV4)
}

/// Returns the destination address, the protocol, and the destination port.
fn tuple(tuple: Attributes<'_>) -> Option<(Ipv4Addr, u8, u16)> {
    let protocol = tuple.nested(2)?;
    let port = protocol.bytes(3)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    Some((address(tuple, 2)?, *protocol.bytes(1)?.first()?, port))
}

fn address(tuple: Attributes<'_>, which: u16) -> Option<Ipv4Addr> {
    tuple.nested(1)?.bytes(which)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}

/// Whether an address belongs to this host: the kernel binds sockets only to local addresses.
fn is_local(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}
