//! The texts of resolv.conf and hosts in a container. Pure.

use std::net::Ipv4Addr;

/// The container's resolv.conf: the host's, without name servers that only the host's own loopback reaches. Where that leaves none, the ones
/// that systemd-resolved forwards to (its own file), or public ones as docker does. `--dns` replaces the servers.
#[must_use]
pub fn resolv_conf(host: &str, systemd_resolved: &str, dns: &[String]) -> String {
    let server = |line: &str| line.trim().strip_prefix("nameserver").map(|ip| ip.trim().to_owned());
    let usable = |text: &str| -> Vec<String> {
        text.lines().filter_map(server).filter(|ip| !ip.starts_with("127.") && ip != "::1").collect()
    };
    let mut servers = dns.to_vec();
    if servers.is_empty() {
        servers = usable(host);
    }
    if servers.is_empty() {
        servers = usable(systemd_resolved);
    }
    if servers.is_empty() {
        servers = vec!["8.8.8.8".into(), "8.8.4.4".into()];
    }
    let mut text: String = host
        .lines()
        .filter(|line| server(line).is_none() && !line.trim().starts_with(['#', ';']) && !line.trim().is_empty())
        .map(|line| format!("{line}\n"))
        .collect();
    text.extend(servers.iter().map(|server| format!("nameserver {server}\n")));
    text
}

/// The container's hosts: loopback, itself, the host's side of the bridge under docker's and podman's names, and `--add-host`.
#[must_use]
pub fn hosts(hostname: &str, ip: Option<Ipv4Addr>, gateway: Option<Ipv4Addr>, add: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own = ip.unwrap_or(Ipv4Addr::LOCALHOST);
    text.push_str(&format!("{own}\t{hostname}\n"));
    if let Some(gateway) = gateway {
        text.push_str(&format!("{gateway}\thost.docker.internal host.containers.internal\n"));
    }
    add_hosts(&text, add, gateway)
}

/// Adds `NAME:IP` lines; `host-gateway` for an IP is the host's side of the bridge.
#[must_use]
pub fn add_hosts(text: &str, add: &[String], gateway: Option<Ipv4Addr>) -> String {
    let mut text = text.to_owned();
    for line in add {
        if let Some((name, ip)) = line.split_once(':') {
            let ip = match (ip, gateway) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                (ip, _) => ip.to_owned(),
            };
            text.push_str(&format!("{ip}\t{name}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_name_servers_are_replaced() {
        let resolved = "nameserver 10.0.0.53\nsearch lab.example\n";
        assert_eq!(
            resolv_conf("# c\nsearch a.b\nnameserver 127.0.0.53\n", resolved, &[]),
            "search a.b\nnameserver 10.0.0.53\n"
        );
        assert_eq!(resolv_conf("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", "", &[]), "nameserver 192.0.2.1\n");
        assert_eq!(resolv_conf("", "", &[]), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        assert_eq!(resolv_conf("nameserver 192.0.2.1\n", "", &["1.1.1.1".into()]), "nameserver 1.1.1.1\n");
    }

    #[test]
    fn hosts_name_everybody() {
        let text = hosts(
            "box",
            Some([10, 0, 0, 2].into()),
            Some([10, 0, 0, 1].into()),
            &["db:192.0.2.7".into(), "gw:host-gateway".into()],
        );
        for line in ["127.0.0.1\tlocalhost", "10.0.0.2\tbox", "192.0.2.7\tdb", "10.0.0.1\tgw"] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }
}
