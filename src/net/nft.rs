//! The packet filter: one table of ours, `inet gpurun`, with maps that hold an element for each published port.
//!
//! The chains are the same for every container and are made by one run of `nft`, once a boot; a container only adds and removes elements, by
//! hand-made messages. The table's version and network stand in it as the name of an empty chain, so that a table which somebody flushed
//! (`systemctl restart nftables` does), or which an older gpurun made, is seen at a glance and made anew, with the elements of all leases.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::lease::Lease;
use super::nfnetlink::{Message, Netfilter, SUBSYSTEM_NFTABLES};
use super::{BRIDGE, NetError, Protocol, Published};

/// Raised with every change of the chains.
const VERSION: u32 = 2;
const TABLE: &str = "gpurun";
/// NFPROTO_INET
pub(super) const INET: u8 = 1;

/// Makes the table, unless the one that stands is ours, whole and for this network.
pub(super) fn ensure(netfilter: &Netfilter, network: Ipv4Addr, leases: &[(String, Lease)]) -> Result<(), NetError> {
    const GET_CHAIN: u8 = 4;
    let look = Message::new(SUBSYSTEM_NFTABLES, GET_CHAIN, INET).text(1, TABLE).text(3, &marker(network));
    match netfilter.request(&look) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(source) => return Err(NetError::Filter { action: "look at the table `inet gpurun`", source }),
    }
    let mut text = table(network);
    // One element a line, the last lease of a port wins: two leases of one port mean that one of them is a dead container's.
    let ports: BTreeMap<_, _> = leases
        .iter()
        .flat_map(|(id, lease)| lease.ports.iter().map(move |port| (key(port), (id, lease.ip, port))))
        .collect();
    for (id, ip, port) in ports.into_values() {
        let Published { host_ip, host_port, container_port, protocol } = port;
        let comment = comment(id);
        let (map, host) = match host_ip.is_unspecified() {
            true => ("any", String::new()),
            false => ("own", format!("{host_ip} . ")),
        };
        let _ = writeln!(
            text,
            "add element inet {TABLE} {map} {{ {host}{protocol} . {host_port} comment \"{comment}\" : {ip} . {container_port} }}"
        );
    }
    run(&text)
}

fn marker(network: Ipv4Addr) -> String {
    let [a, b, c, d] = network.octets();
    format!("v{VERSION}_{a}_{b}_{c}_{d}")
}

fn comment(id: &str) -> String {
    format!("gpurun:{}", &id[..12.min(id.len())])
}

/// The table as text for `nft -f`, in place of whatever stands under its name.
///
/// - `raw`: `route_localnet` is on for our bridge, so that the host's own loopback connections may go out there. The other way round,
///   nothing with a loopback address comes in from a container: neither to services on 127.0.0.1, nor in the guise of one who asks from there.
/// - `prerouting` leaves loopback addresses alone: a neighbour that sends packets for 127.0.0.1 to us is left to the kernel, which drops them.
/// - `forward`: to containers goes only what was published and what they asked for. The last line but two: no foreign sender's addresses.
fn table(network: Ipv4Addr) -> String {
    let marker = marker(network);
    format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  map any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map own {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  chain {marker} {{
  }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname {BRIDGE} ip saddr 127.0.0.0/8 drop
    iifname {BRIDGE} ip daddr 127.0.0.0/8 drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 127.0.0.0/8 return
    dnat ip addr . port to ip daddr . meta l4proto . th dport map @own
    fib daddr type local dnat ip addr . port to meta l4proto . th dport map @any
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    dnat ip addr . port to ip daddr . meta l4proto . th dport map @own
    fib daddr type local dnat ip addr . port to meta l4proto . th dport map @any
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {network}/24 oifname != {BRIDGE} masquerade
    ip saddr 127.0.0.0/8 oifname {BRIDGE} masquerade
    ip saddr {network}/24 oifname {BRIDGE} ct status dnat masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {BRIDGE} ip saddr != {network}/24 drop
    oifname {BRIDGE} ct status dnat accept
    oifname {BRIDGE} ct state established,related accept
    iifname {BRIDGE} accept
    oifname {BRIDGE} drop
  }}
}}
"
    )
}

/// Map, key bytes.
fn key(port: &Published) -> (&'static str, Vec<u8>) {
    let protocol = match port.protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    };
    // Each part of a concatenation fills whole registers of four bytes.
    let [high, low] = port.host_port.to_be_bytes();
    let rest = [protocol, 0, 0, 0, high, low, 0, 0];
    match port.host_ip.is_unspecified() {
        true => ("any", rest.to_vec()),
        false => ("own", [&port.host_ip.octets()[..], &rest].concat()),
    }
}

/// A message that adds or deletes one element; several in one transaction are as cheap as a list in one message.
fn element(adds: Option<(&str, Ipv4Addr)>, port: &Published) -> Message {
    const NEW_ELEMENT: u8 = 12;
    const DELETE_ELEMENT: u8 = 14;
    const VALUE: u16 = 1;
    let (map, key) = key(port);
    let kind = if adds.is_some() { NEW_ELEMENT } else { DELETE_ELEMENT };
    let message = Message::new(SUBSYSTEM_NFTABLES, kind, INET);
    let message = if adds.is_some() { message.create() } else { message };
    message.text(1, TABLE).text(2, map).nest(3, |list| {
        list.nest(1, |element| {
            let element = element.nest(1, |data| data.attribute(VALUE, &key));
            let Some((id, ip)) = adds else { return element };
            let [high, low] = port.container_port.to_be_bytes();
            let target = [&ip.octets()[..], &[high, low, 0, 0]].concat();
            // What `nft list` shows behind the element: kind 0 (comment), length, text.
            let text = comment(id);
            let note = [&[0, text.len() as u8 + 1], text.as_bytes(), &[0]].concat();
            element.nest(2, |data| data.attribute(VALUE, &target)).attribute(6, &note)
        })
    })
}

/// Sends the ports' packets to a container. The caller holds each port, so an element that stands for one already is a dead container's.
pub(super) fn publish(netfilter: &Netfilter, id: &str, ip: Ipv4Addr, ports: &[Published]) -> Result<(), NetError> {
    let add = || {
        let messages: Vec<Message> = ports.iter().map(|port| element(Some((id, ip)), port)).collect();
        netfilter.transaction(&messages)
    };
    let result = match add() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY)) => {
            withdraw(netfilter, ports).and_then(|()| add())
        }
        other => other,
    };
    result.map_err(|source| NetError::Filter { action: "publish the ports in the table `inet gpurun`", source })
}

/// The other way round; elements that are not there, and a table that is not, are no error.
pub(super) fn withdraw(netfilter: &Netfilter, ports: &[Published]) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    };
    let messages: Vec<Message> = ports.iter().map(|port| element(None, port)).collect();
    match netfilter.transaction(&messages) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // One by one: an element that was never added must not keep the others from being deleted.
            messages.iter().try_for_each(|message| gone(netfilter.transaction(std::slice::from_ref(message))))
        }
        other => other,
    }
}

/// Runs `nft -f -`.
pub(super) fn run(text: &str) -> Result<(), NetError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", super::PROGRAMS)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetError::NoNft)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why on stderr.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetError::NoNft)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NetError::Nft {
        said: said.lines().find(|line| !line.trim().is_empty()).unwrap_or("nft gave up").trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fill_registers() {
        let port = |host_ip: [u8; 4], protocol| Published {
            host_ip: host_ip.into(),
            host_port: 0x1f90,
            container_port: 80,
            protocol,
        };
        assert_eq!(key(&port([0; 4], Protocol::Tcp)), ("any", vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0]));
        assert_eq!(
            key(&port([127, 0, 0, 1], Protocol::Udp)),
            ("own", vec![127, 0, 0, 1, 17, 0, 0, 0, 0x1f, 0x90, 0, 0])
        );
    }

    #[test]
    fn the_table_names_its_version_and_network() {
        assert!(table([10, 89, 3, 0].into()).contains(&format!("chain v{VERSION}_10_89_3_0 {{")));
    }
}
