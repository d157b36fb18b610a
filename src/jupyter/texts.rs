//! The message that announces a ready notebook.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use serde::Serialize;

use super::auth::Auth;
use super::tls::Pinned;

/// How to reach the notebook, as text (Display) and for programs (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Announcement {
    /// `JupyterLab 4.4.1`
    pub server: String,
    /// URL for this machine.
    pub url: String,
    /// URL for other machines, with the host's name. `None` if the port is published on the loopback address only.
    pub network_url: Option<String>,
    /// The same with the host's address, for networks that do not resolve its name.
    pub address_url: Option<String>,
    /// The ssh command that makes it reachable from a machine outside the network.
    pub tunnel: String,
    /// The command that stops the container.
    pub stop: String,
    /// With HTTPS, the SHA-256 fingerprint of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(skip)]
    by_password: bool,
}

/// The host that the notebook runs on, and the host's user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host<'a> {
    pub name: &'a str,
    /// The host's address in the network, if it has one.
    pub address: Option<IpAddr>,
    pub user: &'a str,
}

/// `http://HOST:PORT/BASE/`, with the token if there is one.
#[must_use]
pub(crate) fn url(scheme: &str, host: &str, port: u16, base_url: &str, auth: &Auth) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let base = base_url.trim_matches('/');
    let path = if base.is_empty() { String::new() } else { format!("{base}/") };
    let query = match auth {
        Auth::Token(token) => format!("?token={}", token.reveal()),
        Auth::Password(_) | Auth::Hash(_) => String::new(),
    };
    format!("{scheme}://{host}:{port}/{path}{query}")
}

/// Returns the address that this host uses towards other networks. Only looks up the route, and sends nothing.
#[must_use]
pub(crate) fn host_address() -> Option<IpAddr> {
    // A documentation address (RFC 5737), which stands for any address outside.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// `published` is the address and port on the host, and `stop` is the command that stops the container.
#[must_use]
pub(crate) fn announce(
    server: &str,
    published: (IpAddr, u16),
    base_url: &str,
    auth: &Auth,
    host: &Host<'_>,
    stop: &str,
    tls: Option<&Pinned>,
) -> Announcement {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (ip, port) = published;
    let local = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::from(Ipv6Addr::LOCALHOST),
        other => other,
    };
    let everywhere = ip.is_unspecified();
    let outside = if everywhere { Some(host.name.to_owned()) } else { Some(ip.to_string()) };
    let address = host.address.filter(|_| everywhere).map(|address| address.to_string());
    let target = if local.is_ipv6() { format!("[{local}]") } else { local.to_string() };
    Announcement {
        server: server.to_owned(),
        url: url(scheme, &local.to_string(), port, base_url, auth),
        network_url: outside.filter(|_| !ip.is_loopback()).map(|host| url(scheme, &host, port, base_url, auth)),
        address_url: address.map(|address| url(scheme, &address, port, base_url, auth)),
        tunnel: format!("ssh -N -L {port}:{target}:{port} {}@{}", host.user, host.name),
        stop: stop.to_owned(),
        fingerprint: tls.map(Pinned::fingerprint),
        by_password: !matches!(auth, Auth::Token(_)),
    }
}

impl std::fmt::Display for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how =
            if self.by_password { "log in with the password" } else { "the URL contains the token: keep it secret" };
        writeln!(f, "{} is ready ({how})", self.server)?;
        writeln!(f, "  on this host    {}", self.url)?;
        let mut title = "in the network";
        for url in [&self.network_url, &self.address_url].into_iter().flatten() {
            writeln!(f, "  {title:14}  {url}")?;
            title = "";
        }
        writeln!(f, "  through ssh     {}", self.tunnel)?;
        writeln!(f, "                  on your own machine; then open the first URL there")?;
        if let Some(fingerprint) = &self.fingerprint {
            // Two lines of 47 characters.
            let (first, rest) = fingerprint.split_at_checked(48).unwrap_or((fingerprint, ""));
            writeln!(f, "  certificate     SHA-256 {first}")?;
            writeln!(f, "                          {rest}")?;
        }
        write!(f, "  stop it         {}", self.stop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::Secret;
    use super::*;

    #[test]
    fn urls() {
        let password = Auth::Password(Secret::new("geheim"));
        let token = Auth::Token(Secret::new("abc"));
        assert_eq!(url("http", "127.0.0.1", 8888, "/", &password), "http://127.0.0.1:8888/");
        assert_eq!(url("https", "::1", 8888, "/user/a/", &token), "https://[::1]:8888/user/a/?token=abc");
    }

    #[test]
    fn announcements() {
        let token = Auth::Token(Secret::new("abc"));
        let host = Host { name: "gpubox", address: "192.0.2.7".parse().ok(), user: "alice" };
        let local = announce(
            "JupyterLab 4.4.1",
            ("127.0.0.1".parse().unwrap(), 8889),
            "/",
            &token,
            &host,
            "gpurun stop nb",
            None,
        );
        insta::assert_snapshot!(local);
        let password = Auth::Hash("sha1:a:b".into());
        let open = announce(
            "Jupyter Notebook 6.0.3",
            ("0.0.0.0".parse().unwrap(), 8888),
            "/",
            &password,
            &host,
            "gpurun stop nb",
            None,
        );
        insta::assert_snapshot!(open);
        assert_eq!(serde_json::to_value(&open).unwrap()["network_url"], "http://gpubox:8888/");
        assert_eq!(serde_json::to_value(&open).unwrap()["address_url"], "http://192.0.2.7:8888/");
    }
}
