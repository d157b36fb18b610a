//! The contents of a container's resolv.conf and hosts. All functions are pure.

use std::net::{IpAddr, Ipv4Addr};

use crate::request::HostEntry;

/// What a container's resolv.conf has instead of the host's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resolver<'a> {
    pub servers: &'a [IpAddr],
    /// `.` alone means no search list.
    pub search: &'a [String],
    pub options: &'a [String],
}

/// The container's resolv.conf: the host's, without name servers on the host's loopback. If no server remains, it uses
/// the upstream servers of systemd-resolved (from its own file) or, as docker does, public ones. What was asked for
/// replaces the host's servers, search list or options.
#[must_use]
pub(crate) fn resolv_conf(host: &str, systemd_resolved: &str, asked: &Resolver<'_>) -> String {
    let server = |line: &str| line.trim().strip_prefix("nameserver").map(|ip| ip.trim().to_owned());
    let usable = |text: &str| -> Vec<String> {
        text.lines().filter_map(server).filter(|ip| !ip.starts_with("127.") && ip != "::1").collect()
    };
    let mut servers: Vec<String> = asked.servers.iter().map(ToString::to_string).collect();
    if servers.is_empty() {
        servers = usable(host);
    }
    if servers.is_empty() {
        servers = usable(systemd_resolved);
    }
    if servers.is_empty() {
        servers = vec!["8.8.8.8".into(), "8.8.4.4".into()];
    }
    let replaced = |line: &str| match line.split_whitespace().next() {
        Some("search" | "domain") => !asked.search.is_empty(),
        Some("options") => !asked.options.is_empty(),
        _ => false,
    };
    let mut text: String = host
        .lines()
        .filter(|line| server(line).is_none() && !line.trim().starts_with(['#', ';']) && !line.trim().is_empty())
        .filter(|line| !replaced(line))
        .map(|line| format!("{line}\n"))
        .collect();
    text.extend(servers.iter().map(|server| format!("nameserver {server}\n")));
    if !asked.search.is_empty() && asked.search != ["."] {
        text.push_str(&format!("search {}\n", asked.search.join(" ")));
    }
    if !asked.options.is_empty() {
        text.push_str(&format!("options {}\n", asked.options.join(" ")));
    }
    text
}

/// The container's hosts file: loopback, the container, the host's bridge address under docker's and podman's names,
/// and `--add-host`.
#[must_use]
pub(crate) fn hosts(hostname: &str, ip: Option<Ipv4Addr>, gateway: Option<Ipv4Addr>, add: &[HostEntry]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own = ip.unwrap_or(Ipv4Addr::LOCALHOST);
    text.push_str(&format!("{own}\t{hostname}\n"));
    if let Some(gateway) = gateway {
        text.push_str(&format!("{gateway}\thost.docker.internal host.containers.internal\n"));
    }
    add_hosts(&text, add, gateway)
}

/// Adds the entries of `--add-host`. `gateway` is the address of this host that the container reaches. Without one,
/// an entry for it is left out.
#[must_use]
pub(crate) fn add_hosts(text: &str, add: &[HostEntry], gateway: Option<Ipv4Addr>) -> String {
    let mut text = text.to_owned();
    for HostEntry { name, address } in add {
        if let Some(ip) = address.resolve(gateway) {
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
        let none = Resolver::default();
        let resolved = "nameserver 10.0.0.53\nsearch lab.example\n";
        assert_eq!(
            resolv_conf("# c\nsearch a.b\nnameserver 127.0.0.53\n", resolved, &none),
            "search a.b\nnameserver 10.0.0.53\n"
        );
        assert_eq!(resolv_conf("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", "", &none), "nameserver 192.0.2.1\n");
        assert_eq!(resolv_conf("", "", &none), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        assert_eq!(
            resolv_conf("nameserver 192.0.2.1\n", "", &Resolver { servers: &["1.1.1.1".parse().unwrap()], ..none }),
            "nameserver 1.1.1.1\n"
        );
    }

    #[test]
    fn search_lists_and_options_are_replaced() {
        let host = "search a.b\ndomain a\noptions rotate\nnameserver 192.0.2.1\n";
        let text = |search: &[&str], options: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            resolv_conf(host, "", &Resolver { servers: &[], search: &own(search), options: &own(options) })
        };
        assert_eq!(text(&[], &[]), host);
        assert_eq!(text(&["x.y", "z"], &[]), "options rotate\nnameserver 192.0.2.1\nsearch x.y z\n");
        assert_eq!(text(&["."], &["ndots:2"]), "nameserver 192.0.2.1\noptions ndots:2\n");
    }

    #[test]
    fn hosts_name_everybody() {
        let text = hosts(
            "box",
            Some([10, 0, 0, 2].into()),
            Some([10, 0, 0, 1].into()),
            &["db:192.0.2.7".parse().unwrap(), "gw:host-gateway".parse().unwrap()],
        );
        for line in ["127.0.0.1\tlocalhost", "10.0.0.2\tbox", "192.0.2.7\tdb", "10.0.0.1\tgw"] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }
}
