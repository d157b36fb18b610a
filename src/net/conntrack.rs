//! Flows that the kernel remembers, and that would send UDP packets where nobody is any more.
//!
//! The nat chains are asked for the first packet of a flow only; what they said holds as long as the flow is remembered. A sender which
//! never pauses (syslog, a sensor) keeps its flow alive for ever: begun before the port was published it would never reach the
//! container, begun with the port's last owner it would follow that one's address. So both ends of a publication forget them. TCP needs no
//! such thing: its next connection is a new flow.

use std::net::{Ipv4Addr, UdpSocket};

use super::nfnetlink::{Attributes, Message, Netfilter, SUBSYSTEM_CONNTRACK};
use super::{Protocol, Published};

const IPV4: u8 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;

/// Forgets the UDP flows to these ports that end at one of `ours` or at this host itself.
///
/// Best effort: without conntrack's netlink there is nothing to be done, and the flows end by themselves within three minutes of silence.
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
            // The value of a nested attribute is its attributes: it can go back as it came.
            let message = delete().nest(ORIGINAL, |nest| {
                Attributes::new(&original).iter_raw().fold(nest, |nest, (kind, value)| nest.attribute(kind, value))
            });
            let message = zone.iter().fold(message, |message, zone| message.attribute(ZONE, zone));
            // It may have ended by itself meanwhile.
            let _ = netfilter.request(&message);
        }
    }
}

/// Asks for flows to a UDP port. Kernels before 5.8 do not know the filter and show all flows: the answer is looked at anyway.
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

/// Destination address, protocol, destination port.
fn tuple(tuple: Attributes<'_>) -> Option<(Ipv4Addr, u8, u16)> {
    let protocol = tuple.nested(2)?;
    let port = protocol.bytes(3)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    Some((address(tuple, 2)?, *protocol.bytes(1)?.first()?, port))
}

fn address(tuple: Attributes<'_>, which: u16) -> Option<Ipv4Addr> {
    tuple.nested(1)?.bytes(which)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}

/// The kernel lets a socket be bound to the host's own addresses only.
fn is_local(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}
