//! The packet filter: one table, `inet gpurun`, with maps that have one element for each published port.
//!
//! The table has chains that are the same for all containers, and two chains for each bridge, which a map finds by the
//! bridge's name. Runs of `nft` create the former once per boot, and the latter when the first container connects to a
//! network. A container only adds and removes elements, with messages that this module sends directly. The names of the
//! chains contain the table's version, and the bridges with their networks. So two requests detect a table that is
//! missing, that lost its rules (`systemctl restart nftables` flushes the ruleset), or that an older gpurun created.
//! Such a table is created again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::lease::Lease;
use super::nfnetlink::{Attributes, Message, Netfilter, SUBSYSTEM_NFTABLES};
use super::types::DEVICES;
use super::{Bridge, NetError, Published};
use crate::request::Protocol;

/// The search path for `nft` and `iptables`, whatever the caller's PATH is.
pub(super) const PROGRAMS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// The version of the chains. Increase it with every change.
const VERSION: u32 = 3;
const TABLE: &str = "gpurun";
/// NFPROTO_INET
pub(super) const INET: u8 = 1;

/// What the table lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// The chains of these bridges.
    Bridges(Vec<Bridge>),
    /// The table is missing, incomplete, or made by another version or for another network.
    Everything,
}

/// Creates the table if it is missing, incomplete, or made by another version. Adds the chains of the bridges and the
/// missing elements of the leases.
///
/// A new table has no chains and no elements of other run directories. The next command with each of those run
/// directories adds them.
pub(super) fn ensure(netfilter: &Netfilter, bridges: &[Bridge], leases: &[(String, Lease)]) -> Result<(), NetError> {
    let failed = |source| NetError::Filter { action: "read the table `inet gpurun`", source };
    // One run for each part: `nft` adds the elements of a map with intervals before the chains that they name. Until a
    // bridge has its chains, its packets are dropped.
    let all = || std::iter::once(base()).chain(bridges.iter().map(part)).try_for_each(|text| run(&text));
    match lack(netfilter, bridges).map_err(failed)? {
        Lack::Nothing => {}
        Lack::Everything => all()?,
        Lack::Bridges(missing) => {
            // For example, a network that was removed has left its addresses behind.
            if let Err(error) = missing.iter().try_for_each(|bridge| run(&part(bridge))) {
                tracing::debug!("{error}");
                all()?;
            }
        }
    }
    for (id, ip, ports) in missing(netfilter, leases).map_err(failed)? {
        publish(netfilter, id, ip, &ports)?;
    }
    Ok(())
}

/// Whether the table exists with all of its rules and those of these bridges. `nft flush ruleset` removes the table, and
/// `nft flush table` removes its rules.
pub(super) fn lack(netfilter: &Netfilter, bridges: &[Bridge]) -> io::Result<Lack> {
    const GET_CHAIN: u8 = 4;
    const GET_RULE: u8 = 7;
    let look = Message::new(SUBSYSTEM_NFTABLES, GET_CHAIN, INET).text(1, TABLE).text(3, &marker());
    match netfilter.request(&look) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Lack::Everything),
        Err(error) => return Err(error),
    }
    let mut found = BTreeMap::<String, usize>::new();
    netfilter.dump(&Message::new(SUBSYSTEM_NFTABLES, GET_RULE, INET).text(1, TABLE), |_, rule| {
        // Kernels that do not support the filter return the rules of all tables.
        if let (Some(TABLE), Some(chain)) = (rule.name(1), rule.name(2)) {
            *found.entry(chain.to_owned()).or_default() += 1;
        }
    })?;
    let has = |(chain, rules): (&String, &usize)| found.get(chain).is_some_and(|found| found >= rules);
    if !rule_counts(&base()).iter().all(has) {
        return Ok(Lack::Everything);
    }
    let lacks = |bridge: &&Bridge| !rule_counts(&part(bridge)).iter().all(has);
    let missing: Vec<Bridge> = bridges.iter().filter(lacks).cloned().collect();
    // A bridge that has another network now, or that lost a part of its rules.
    let in_part =
        |bridge: &Bridge| found.keys().any(|chain| chain.contains(&format!("_{}_", chain_name(&bridge.device))));
    Ok(match missing {
        missing if missing.iter().any(in_part) => Lack::Everything,
        missing if missing.is_empty() => Lack::Nothing,
        missing => Lack::Bridges(missing),
    })
}

/// The ports of each lease for which the table has no element.
pub(super) fn missing<'a>(
    netfilter: &Netfilter,
    leases: &'a [(String, Lease)],
) -> io::Result<Vec<(&'a str, Ipv4Addr, Vec<Published>)>> {
    const GET_ELEMENT: u8 = 13;
    if leases.iter().all(|(_, lease)| lease.ports.is_empty()) {
        return Ok(Vec::new());
    }
    let mut present = BTreeSet::new();
    for map in ["any", "own"] {
        let look = Message::new(SUBSYSTEM_NFTABLES, GET_ELEMENT, INET).text(1, TABLE).text(2, map);
        netfilter.dump(&look, |_, answer| {
            let elements = answer.nested(3).into_iter().flat_map(Attributes::list);
            let keys = elements.filter_map(|element| element.nested(1)?.bytes(1).map(<[u8]>::to_vec));
            present.extend(keys.map(|key| (map, key)));
        })?;
    }
    let lacking = leases.iter().filter_map(|(id, lease)| {
        let ports: Vec<Published> = lease.ports.iter().filter(|port| !present.contains(&key(port))).copied().collect();
        let target = lease.target().filter(|_| !ports.is_empty())?;
        Some((id.as_str(), target.ip, ports))
    });
    Ok(lacking.collect())
}

/// The number of rules of each chain in a table's text: all lines in chains that are not declarations.
fn rule_counts(text: &str) -> BTreeMap<String, usize> {
    let (mut counts, mut chain) = (BTreeMap::new(), None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chain = Some(name.to_owned());
        } else if line == "}" {
            chain = None;
        } else if let Some(chain) = chain.as_ref().filter(|_| !line.starts_with("type ")) {
            *counts.entry(chain.clone()).or_default() += 1;
        }
    }
    counts
}

fn marker() -> String {
    format!("v{VERSION}")
}

fn chain_name(device: &str) -> String {
    device.replace('-', "_")
}

/// The end of the names of a bridge's chains.
fn key_of(bridge: &Bridge) -> String {
    let [a, b, c, d] = bridge.subnet.address.octets();
    let kind = if bridge.internal { "internal" } else { "open" };
    format!("{}_{a}_{b}_{c}_{d}_{}_{kind}", chain_name(&bridge.device), bridge.subnet.prefix)
}

fn comment(id: &str) -> String {
    format!("gpurun:{}", &id[..12.min(id.len())])
}

/// The table without bridges, as text for `nft -f`. It replaces any existing table of this name.
///
/// - `raw`: `route_localnet` is on for gpurun's bridges, so that loopback connections of the host can leave through
///   them. In the other direction, packets with a loopback address from a container are dropped, whether they target
///   services on 127.0.0.1 or pretend to come from there.
/// - `input`: containers of an internal network do not reach this host.
/// - `prerouting` skips loopback addresses: packets for 127.0.0.1 from a neighbor are left to the kernel, which drops
///   them.
/// - `forward`: packets from a bridge go through that bridge's own chain, and those of a bridge without one are dropped.
///   Containers receive only packets to published ports and replies to their own connections.
fn base() -> String {
    let marker = marker();
    format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  map any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map own {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map sources {{ type ifname : verdict; }}
  map homes {{ type ipv4_addr : verdict; flags interval; }}
  set internal {{ type ifname; }}
  chain {marker} {{
  }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"{DEVICES}\" ip saddr 127.0.0.0/8 drop
    iifname \"{DEVICES}\" ip daddr 127.0.0.0/8 drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @internal ct state established,related accept
    iifname @internal drop
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
    ip saddr 127.0.0.0/8 oifname \"{DEVICES}\" masquerade
    ip saddr vmap @homes
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname vmap @sources
    iifname \"{DEVICES}\" drop
    oifname \"{DEVICES}\" ct status dnat accept
    oifname \"{DEVICES}\" ct state established,related accept
    oifname \"{DEVICES}\" drop
  }}
}}
"
    )
}

/// The chains of one bridge, as text for `nft -f`.
///
/// - `from`: packets from the bridge must have an address of its network. They may go to the same bridge, to published
///   ports on other bridges, and out. From an internal network they go nowhere else.
/// - `nat`: packets that leave the network get the host's address.
fn part(bridge: &Bridge) -> String {
    let Bridge { device, subnet, internal, .. } = bridge;
    let key = key_of(bridge);
    let rules = match internal {
        true => "    drop\n".to_owned(),
        false => format!(
            "    ct state established,related accept
    oifname \"{DEVICES}\" ct status dnat accept
    oifname \"{DEVICES}\" drop
    accept
"
        ),
    };
    let is_internal = match internal {
        true => format!("  set internal {{ type ifname; elements = {{ \"{device}\" }}; }}\n"),
        false => String::new(),
    };
    format!(
        "table inet {TABLE} {{
  chain from_{key} {{
    ip saddr != {subnet} drop
    oifname \"{device}\" accept
{rules}  }}
  chain nat_{key} {{
    oifname != \"{device}\" masquerade
    ct status dnat masquerade
  }}
  map sources {{ type ifname : verdict; elements = {{ \"{device}\" : goto from_{key} }}; }}
  map homes {{ type ipv4_addr : verdict; flags interval; elements = {{ {subnet} : goto nat_{key} }}; }}
{is_internal}}}
"
    )
}

/// Removes the chains of a network. Missing ones are not an error.
pub(super) fn forget(bridge: &Bridge) {
    let Bridge { device, subnet, .. } = bridge;
    let key = key_of(bridge);
    for line in [
        format!("delete element inet {TABLE} sources {{ \"{device}\" }}"),
        format!("delete element inet {TABLE} homes {{ {subnet} }}"),
        format!("delete element inet {TABLE} internal {{ \"{device}\" }}"),
        format!("delete chain inet {TABLE} from_{key}"),
        format!("delete chain inet {TABLE} nat_{key}"),
    ] {
        if let Err(error) = run(&line) {
            tracing::debug!("{line}: {error}");
        }
    }
}

/// Returns the map and the bytes of the key.
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

/// A message that adds or deletes one element. Several messages in one transaction cost no more than a list in one
/// message.
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
            // The comment that `nft list` shows for the element: kind 0 (comment), the length, and the text.
            let text = comment(id);
            let note = [&[0, text.len() as u8 + 1], text.as_bytes(), &[0]].concat();
            element.nest(2, |data| data.attribute(VALUE, &target)).attribute(6, &note)
        })
    })
}

/// Directs the ports' packets to a container. The caller holds each port, so an existing element belongs to a dead
/// container.
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

/// Removes the elements of the ports. Missing elements and a missing table are not an error.
pub(super) fn withdraw(netfilter: &Netfilter, ports: &[Published]) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    };
    let messages: Vec<Message> = ports.iter().map(|port| element(None, port)).collect();
    match netfilter.transaction(&messages) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // Delete them one by one, so that a missing element does not keep the others from being deleted.
            messages.iter().try_for_each(|message| gone(netfilter.transaction(std::slice::from_ref(message))))
        }
        other => other,
    }
}

/// Runs `nft -f -`.
pub(super) fn run(text: &str) -> Result<(), NetError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", PROGRAMS)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetError::NoNft)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the program ends without reading its input, it reports the reason on stderr.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetError::NoNft)?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(NetError::Nft {
        reason: reason
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("nft failed without a message")
            .trim()
            .to_owned(),
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
    fn rules_are_counted_without_declarations() {
        let counts = rule_counts(&base());
        let expected = [("raw", 2), ("input", 2), ("prerouting", 3), ("output", 2), ("postrouting", 2), ("forward", 5)];
        assert_eq!(counts, expected.map(|(chain, count)| (chain.to_owned(), count)).into());
    }

    #[test]
    fn chains_name_their_version_and_network() {
        assert!(base().contains(&format!("chain v{VERSION} {{")));
        let mut bridge = Bridge::default_with([10, 89, 3, 0].into());
        let counts = |bridge: &Bridge| rule_counts(&part(bridge)).into_iter().collect::<Vec<_>>();
        let expected =
            [("from_gpurun0_10_89_3_0_24_open".to_owned(), 6), ("nat_gpurun0_10_89_3_0_24_open".to_owned(), 2)];
        assert_eq!(counts(&bridge), expected);
        bridge.internal = true;
        assert_eq!(counts(&bridge)[0], ("from_gpurun0_10_89_3_0_24_internal".to_owned(), 3));
        assert!(part(&bridge).contains("set internal"));
    }
}
