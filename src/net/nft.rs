//! The packet filter: one table of ours, `inet gpurun`, with maps that hold an element for each published port.
//!
//! The chains are the same for every container; a container only adds and removes elements, each by one run of `nft`. Nobody else's table is
//! touched. A drop in another table's forward chain (docker's, ufw's) cannot be overruled from here: where iptables' FORWARD policy is DROP,
//! an accept for our bridge is put into docker's own chain for such rules, DOCKER-USER, if it is there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::{BRIDGE, NetError, Published};

/// The table as text for `nft -f`: idempotent, but for the elements that stand already.
pub(super) fn table(network: Ipv4Addr) -> String {
    format!(
        "add table inet gpurun
add map inet gpurun any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet gpurun own {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add chain inet gpurun loopback {{ type filter hook prerouting priority raw; }}
add chain inet gpurun prerouting {{ type nat hook prerouting priority dstnat; }}
add chain inet gpurun output {{ type nat hook output priority -100; }}
add chain inet gpurun postrouting {{ type nat hook postrouting priority srcnat; }}
add chain inet gpurun forward {{ type filter hook forward priority filter; }}
flush chain inet gpurun loopback
flush chain inet gpurun prerouting
flush chain inet gpurun output
flush chain inet gpurun postrouting
flush chain inet gpurun forward
add rule inet gpurun loopback iifname != lo ip daddr 127.0.0.0/8 drop
add rule inet gpurun prerouting dnat ip addr . port to ip daddr . meta l4proto . th dport map @own
add rule inet gpurun prerouting fib daddr type local dnat ip addr . port to meta l4proto . th dport map @any
add rule inet gpurun output dnat ip addr . port to ip daddr . meta l4proto . th dport map @own
add rule inet gpurun output fib daddr type local dnat ip addr . port to meta l4proto . th dport map @any
add rule inet gpurun postrouting ip saddr {network}/24 oifname != {BRIDGE} masquerade
add rule inet gpurun postrouting ip saddr 127.0.0.0/8 oifname {BRIDGE} masquerade
add rule inet gpurun postrouting ip saddr {network}/24 oifname {BRIDGE} ct status dnat masquerade
add rule inet gpurun forward oifname {BRIDGE} ct status dnat accept
add rule inet gpurun forward oifname {BRIDGE} ct state established,related accept
add rule inet gpurun forward iifname {BRIDGE} accept
add rule inet gpurun forward oifname {BRIDGE} drop
"
    )
}

/// The elements of a container's ports, for `add` or `delete`.
pub(super) fn elements(verb: &str, ip: Ipv4Addr, ports: &[Published]) -> String {
    let mut text = String::new();
    for port in ports {
        let Published { host_ip, host_port, container_port, protocol } = port;
        let _ = if host_ip.is_unspecified() {
            writeln!(text, "{verb} element inet gpurun any {{ {protocol} . {host_port} : {ip} . {container_port} }}")
        } else {
            writeln!(
                text,
                "{verb} element inet gpurun own {{ {host_ip} . {protocol} . {host_port} : {ip} . {container_port} }}"
            )
        };
    }
    text
}

/// Runs `nft -f -`.
pub(super) fn apply(text: &str) -> Result<(), NetError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
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

/// Lets our packets through a docker host's filter, whose FORWARD policy is DROP.
pub(super) fn pass_docker() {
    let iptables = |args: &[&str]| {
        Command::new("iptables")
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !iptables(&["-w", "-n", "-L", "DOCKER-USER"]) {
        return;
    }
    for direction in ["-i", "-o"] {
        let rule = ["DOCKER-USER", direction, BRIDGE, "-j", "ACCEPT"];
        let with = |verb: &'static str| -> Vec<&str> { ["-w", verb].into_iter().chain(rule).collect() };
        if !iptables(&with("-C")) {
            iptables(&with("-I"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    #[test]
    fn ports_become_elements() {
        let port = |host_ip: [u8; 4], protocol| Published {
            host_ip: host_ip.into(),
            host_port: 8080,
            container_port: 80,
            protocol,
        };
        let ports = [port([0, 0, 0, 0], Protocol::Tcp), port([127, 0, 0, 1], Protocol::Udp)];
        assert_eq!(
            elements("add", [10, 89, 0, 2].into(), &ports),
            "add element inet gpurun any { tcp . 8080 : 10.89.0.2 . 80 }\nadd element inet gpurun own { 127.0.0.1 . udp . 8080 : 10.89.0.2 . 80 }\n"
        );
    }
}
