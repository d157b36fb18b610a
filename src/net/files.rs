//! The contents of a container's resolv.conf and hosts. All functions are pure.

use std::net::{IpAddr, Ipv4Addr};

use super::dns;
use crate::request::HostEntry;

/// What a container's resolv.conf has instead of the host's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DnsSettings<'a> {
    pub servers: &'a [IpAddr],
    /// `.` alone means no search list.
    pub search: &'a [String],
    pub options: &'a [String],
    /// Whether the container has a resolver.
    pub has_resolver: bool,
}

/// docker's servers for a host that has none.
const PUBLIC: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The address in a line of resolv.conf that names a server.
fn server(line: &str) -> Option<&str> {
    line.trim().strip_prefix("nameserver").map(str::trim)
}

/// The servers to which a container's resolver forwards: those that were asked for, or the host's. It reaches those on
/// the host's loopback too. Servers on the loopback of the container, which `--dns` may name, are not reached from there.
#[must_use]
pub(crate) fn upstreams(host: &str, systemd_resolved: &str, asked: &[IpAddr]) -> Vec<IpAddr> {
    let outside: Vec<IpAddr> = asked.iter().filter(|server| !server.is_loopback()).copied().collect();
    let of = |text: &str| text.lines().filter_map(server).filter_map(|ip| ip.parse().ok()).collect();
    let public = || PUBLIC.iter().filter_map(|ip| ip.parse().ok()).collect();
    let lists = [outside, of(host), of(systemd_resolved)];
    lists.into_iter().find(|list| !list.is_empty()).unwrap_or_else(public)
}

/// The container's resolv.conf: the host's, without name servers on the host's loopback. If no server remains, it uses
/// the upstream servers of systemd-resolved (from its own file) or, as docker does, public ones. What was asked for
/// replaces the host's servers, search list or options.
///
/// With a resolver, only that is named, unless a server on the container's own loopback was asked for: such a server may
/// forward to the resolver. As in docker, names without a dot are looked up as they are first.
#[must_use]
pub(crate) fn resolv_conf(host: &str, systemd_resolved: &str, asked: &DnsSettings<'_>) -> String {
    let usable = |text: &str| -> Vec<String> {
        let servers = text.lines().filter_map(server).filter(|ip| !ip.starts_with("127.") && *ip != "::1");
        servers.map(str::to_owned).collect()
    };
    let mut servers: Vec<String> = asked.servers.iter().map(ToString::to_string).collect();
    if asked.has_resolver && !asked.servers.iter().any(IpAddr::is_loopback) {
        servers = vec![dns::ADDRESS.to_string()];
    }
    if servers.is_empty() {
        servers = usable(host);
    }
    if servers.is_empty() {
        servers = usable(systemd_resolved);
    }
    if servers.is_empty() {
        servers = PUBLIC.map(str::to_owned).to_vec();
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
    let mut options = text.lines().filter(|line| line.trim().starts_with("options"));
    if asked.has_resolver && !options.any(|line| line.contains("ndots:")) {
        text.push_str("options ndots:0\n");
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
        let none = DnsSettings::default();
        let resolved = "nameserver 10.0.0.53\nsearch lab.example\n";
        assert_eq!(
            resolv_conf("# c\nsearch a.b\nnameserver 127.0.0.53\n", resolved, &none),
            "search a.b\nnameserver 10.0.0.53\n"
        );
        assert_eq!(resolv_conf("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", "", &none), "nameserver 192.0.2.1\n");
        assert_eq!(resolv_conf("", "", &none), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        assert_eq!(
            resolv_conf("nameserver 192.0.2.1\n", "", &DnsSettings { servers: &["1.1.1.1".parse().unwrap()], ..none }),
            "nameserver 1.1.1.1\n"
        );
    }

    #[test]
    fn a_resolver_stands_between_the_container_and_the_servers() {
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        let asked: [IpAddr; 2] = ["1.1.1.1".parse().unwrap(), "2606::1".parse().unwrap()];
        let text = |host: &str, servers: &[IpAddr], options: &[String]| {
            resolv_conf(host, "", &DnsSettings { servers, options, has_resolver: true, ..DnsSettings::default() })
        };
        let host = "search a.b\noptions edns0\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n";
        let resolver = "search a.b\noptions edns0\nnameserver 127.0.0.11\noptions ndots:0\n";
        assert_eq!(text(host, &[], &[]), resolver);
        assert_eq!(text(host, &asked, &[]), resolver);
        assert_eq!(text("", &[], &["ndots:2".into()]), "nameserver 127.0.0.11\noptions ndots:2\n");
        // A server in the container itself.
        assert_eq!(text("", &[own], &[]), "nameserver 127.0.0.1\noptions ndots:0\n");
        assert_eq!(upstreams(host, "", &[]), ["127.0.0.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(upstreams(host, "", &asked), asked);
        assert_eq!(upstreams(host, "", &[own, asked[0]]), asked[..1]);
        assert_eq!(upstreams(host, "", &[own]), upstreams(host, "", &[]));
        assert_eq!(upstreams("", "nameserver 10.0.0.53\n", &[]), ["10.0.0.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(upstreams("", "", &[]).len(), 2);
    }

    #[test]
    fn search_lists_and_options_are_replaced() {
        let host = "search a.b\ndomain a\noptions rotate\nnameserver 192.0.2.1\n";
        let text = |search: &[&str], options: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            resolv_conf(
                host,
                "",
                &DnsSettings { search: &own(search), options: &own(options), ..DnsSettings::default() },
            )
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
