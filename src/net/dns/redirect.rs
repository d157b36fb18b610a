//! The rules in a container's network that lead 127.0.0.11:53 to the resolver's ports.
//!
//! The rules rewrite the port of queries and of answers, without connection tracking: a container's network has none, and
//! it would cost all of its connections. Both rewrites are made where a packet leaves its socket, before any rule of the
//! container's own, and the packets are exempt from tracking.

use std::io;
use std::net::Ipv4Addr;

use super::super::nfnetlink::{Message, Netfilter, SUBSYSTEM_NFTABLES};

/// The resolver's address.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
pub(super) const PORT: u16 = 53;

const TABLE: &str = "gpurun_dns";
const CHAIN: &str = "output";
/// NFPROTO_IPV4
const IPV4: u8 = 2;

/// The offsets of the fields in the headers.
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// A protocol, the resolver's port, and the offset of the checksum.
struct Carried {
    protocol: u8,
    port: u16,
    checksum: u32,
}

/// Adds the rules to the network in which `netfilter` was opened.
pub(super) fn add(netfilter: &Netfilter, udp: u16, tcp: u16) -> io::Result<()> {
    let carried = [
        Carried { protocol: libc::IPPROTO_UDP as u8, port: udp, checksum: 6 },
        Carried { protocol: libc::IPPROTO_TCP as u8, port: tcp, checksum: 16 },
    ];
    let mut messages = vec![table(), chain()];
    for carried in &carried {
        messages.push(rule(carried, (DESTINATION_ADDRESS, DESTINATION_PORT), PORT, carried.port));
        messages.push(rule(carried, (SOURCE_ADDRESS, SOURCE_PORT), carried.port, PORT));
    }
    netfilter.transaction(&messages)
}

fn message(kind: u8) -> Message {
    Message::new(SUBSYSTEM_NFTABLES, kind, IPV4).create()
}

fn number(message: Message, kind: u16, value: u32) -> Message {
    message.attribute(kind, &value.to_be_bytes())
}

fn table() -> Message {
    const NEW_TABLE: u8 = 0;
    message(NEW_TABLE).text(1, TABLE)
}

/// `type filter hook output priority raw`
fn chain() -> Message {
    const NEW_CHAIN: u8 = 3;
    const LOCAL_OUT: u32 = 3;
    const RAW: i32 = -300;
    let chain = message(NEW_CHAIN).text(1, TABLE).text(3, CHAIN);
    let chain = chain.nest(4, |hook| number(hook, 1, LOCAL_OUT).attribute(2, &RAW.to_be_bytes()));
    chain.text(7, "filter")
}

/// `ip saddr/daddr 127.0.0.11 udp sport/dport FROM notrack udp sport/dport set TO`
fn rule(carried: &Carried, (address, port): (u32, u32), from: u16, to: u16) -> Message {
    const NEW_RULE: u8 = 6;
    message(NEW_RULE).text(1, TABLE).text(2, CHAIN).nest(4, |list| {
        let list = compare(load(list, Header::Network, address, 4), &ADDRESS.octets());
        let list = compare(protocol(list), &[carried.protocol]);
        let list = compare(load(list, Header::Transport, port, 2), &from.to_be_bytes());
        let list = expression(list, "notrack", |data| data);
        let list = expression(list, "immediate", |data| {
            number(data, 1, REGISTER).nest(2, |value| value.attribute(1, &to.to_be_bytes()))
        });
        store(list, port, carried.checksum)
    })
}

/// NFT_REG_1, the register that all expressions use.
const REGISTER: u32 = 1;

/// A header, as NFTA_PAYLOAD_BASE numbers it.
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

fn expression(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |element| element.text(1, name).nest(2, fill))
}

fn load(list: Message, header: Header, offset: u32, length: u32) -> Message {
    expression(list, "payload", |data| {
        let data = number(number(data, 1, REGISTER), 2, header as u32);
        number(number(data, 3, offset), 4, length)
    })
}

/// Writes two bytes of the transport header, and corrects its checksum.
fn store(list: Message, offset: u32, checksum: u32) -> Message {
    const INTERNET_CHECKSUM: u32 = 1;
    expression(list, "payload", |data| {
        let data = number(number(data, 5, REGISTER), 2, Header::Transport as u32);
        let data = number(number(data, 3, offset), 4, 2);
        number(number(data, 6, INTERNET_CHECKSUM), 7, checksum)
    })
}

fn protocol(list: Message) -> Message {
    const L4PROTO: u32 = 16;
    expression(list, "meta", |data| number(number(data, 1, REGISTER), 2, L4PROTO))
}

fn compare(list: Message, value: &[u8]) -> Message {
    const EQUAL: u32 = 0;
    expression(list, "cmp", |data| number(number(data, 1, REGISTER), 2, EQUAL).nest(3, |data| data.attribute(1, value)))
}
