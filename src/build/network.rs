//! Selects the network of a build's `RUN` steps.
//!
//! The default is the bridge, because on the host's network an untrusted Containerfile could reach every service that
//! listens only on loopback. If the host cannot make a bridge (no `nft`, or a kernel without bridges), the steps use
//! the host's network, and a notice reports it. On the host's network a step never has CAP_NET_RAW, which would let it
//! read and forge the traffic of other processes.

use std::net::IpAddr;

use super::engine::Engine;
use super::hostca;
use super::hostca::HostFile;
use super::state::PREDEFINED;
use crate::config::Config;
use crate::net;
use crate::network::Networks;
use crate::report::Report;
use crate::request::NetworkMode;

/// The network that a step requests. `None` means the default.
pub(super) fn asked(flag: Option<&str>, build: Option<NetworkMode>) -> Result<Option<NetworkMode>, Report> {
    match flag {
        None | Some("default") => Ok(build),
        Some("none") => Ok(Some(NetworkMode::None)),
        // Like BuildKit's entitlement `network.host`: the caller allows this network, not the author of the
        // Containerfile.
        Some("host") if build == Some(NetworkMode::Host) => Ok(build),
        Some("host") => Err(Report::new("`RUN --network=host` is allowed only in a build on the host's network")
            .with_hint("if you trust the Containerfile, run `gpurun build --network host …`")),
        Some(other) => Err(Report::new(format!("invalid `RUN --network={other}`: use `default`, `none` or `host`"))),
    }
}

impl Engine<'_> {
    /// Decides the network of a step that is about to run.
    pub(super) fn network(&mut self, asked: Option<NetworkMode>) -> NetworkMode {
        if let Some(mode) = asked.or(self.network.default) {
            return mode;
        }
        let mode = match self.prepare_bridge() {
            Ok(notes) => {
                notes.iter().for_each(|note| self.output.notice(note));
                NetworkMode::Bridge
            }
            Err(report) => {
                let causes: String = report.causes.iter().map(|cause| format!(": {cause}")).collect();
                self.output.notice(&format!(
                    "this host has no bridge for `RUN` ({}{causes}): it uses the host's network, without CAP_NET_RAW; \
                     `--network none` gives it none",
                    report.message
                ));
                NetworkMode::Host
            }
        };
        self.network.default = Some(mode);
        mode
    }

    fn prepare_bridge(&self) -> Result<Vec<String>, Report> {
        let subnet = Config::load()?.network.subnet.map(|subnet| subnet.0);
        let networks = Networks::new(&self.options.root);
        Ok(net::prepare(&self.records.run_dir().join("net"), &networks, subnet)?)
    }

    /// Reports each setting that cannot work in a step on the bridge, once per build.
    pub(super) fn check_reach(&mut self, network: NetworkMode, env: &[(String, String)], files: &[HostFile]) {
        if network != NetworkMode::Bridge {
            return;
        }
        let is_proxy = |name: &str| PREDEFINED.contains(&name) && !name.eq_ignore_ascii_case("no_proxy");
        let proxies = env.iter().filter(|(name, _)| is_proxy(name)).cloned();
        for (name, value) in proxies.chain(hostca::addresses(files)) {
            for address in value.split_whitespace().filter_map(loopback) {
                let line = format!("`{name}` ({address})");
                if self.network.unreachable.contains(&line) {
                    continue;
                }
                self.output.notice(&format!(
                    "{line} is on this host's loopback, which `RUN` does not reach from the bridge: use `--network host`"
                ));
                self.network.unreachable.push(line);
            }
        }
    }

    /// A hint for a failed step.
    pub(super) fn reach_hint(&self) -> Option<String> {
        let first = self.network.unreachable.first()?;
        Some(format!("{first} is on this host's loopback: `gpurun build --network host …` reaches it"))
    }
}

/// The host and port of a URL on the loopback interface, without the user and password.
fn loopback(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => address.split(':').next()?,
    };
    let host = host.to_ascii_lowercase();
    let is_loopback = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    };
    is_loopback.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_on_the_loopback_are_recognized() {
        for (url, want) in [
            ("http://127.0.0.1:3128", Some("127.0.0.1:3128")),
            ("http://me:secret@localhost:3128/x", Some("localhost:3128")),
            ("127.1.2.3:80", Some("127.1.2.3:80")),
            ("https://[::1]:3141/simple", Some("[::1]:3141")),
            ("http://pip.localhost/simple", Some("pip.localhost")),
            ("http://10.0.0.1:3128", None),
            ("https://pypi.org/simple?localhost", None),
            ("http://localhost.example/", None),
        ] {
            assert_eq!(loopback(url), want, "{url}");
        }
    }

    #[test]
    fn the_containerfile_does_not_choose_the_hosts_network() {
        let (host, none, bridge) = (Some(NetworkMode::Host), Some(NetworkMode::None), Some(NetworkMode::Bridge));
        for (flag, build, want) in [
            (None, None, Some(None)),
            (Some("default"), host, Some(host)),
            (Some("default"), bridge, Some(bridge)),
            (Some("none"), host, Some(none)),
            (Some("host"), host, Some(host)),
            (Some("host"), None, None),
            (Some("host"), bridge, None),
            (Some("bridge"), None, None),
        ] {
            assert_eq!(asked(flag, build).ok(), want, "{flag:?} {build:?}");
        }
    }
}
