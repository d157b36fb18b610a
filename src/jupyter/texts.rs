//! What a person is told when the notebook is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::auth::Auth;

/// Where the notebook is, for people (Display) and programs (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Announcement {
    /// `JupyterLab 4.4.1`
    pub server: String,
    /// Opens on this machine.
    pub url: String,
    /// Opens from other machines; none where the port is published on the loopback address only.
    pub network_url: Option<String>,
    /// What a person far away types to reach it.
    pub tunnel: String,
    /// Ends the container.
    pub stop: String,
    #[serde(skip)]
    by_password: bool,
}

/// `http://HOST:PORT/BASE/`, with the token where there is one.
#[must_use]
pub fn url(host: &str, port: u16, base_url: &str, auth: &Auth) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let base = base_url.trim_matches('/');
    let path = if base.is_empty() { String::new() } else { format!("{base}/") };
    let query = match auth {
        Auth::Token(token) => format!("?token={}", token.reveal()),
        Auth::Password(_) | Auth::Hash(_) => String::new(),
    };
    format!("http://{host}:{port}/{path}{query}")
}

/// `published` is the address and port on the host; `hostname` the host's name, `person` who logs in to it, `container` its name.
#[must_use]
pub fn announce(
    server: &str,
    published: (IpAddr, u16),
    base_url: &str,
    auth: &Auth,
    hostname: &str,
    person: &str,
    container: &str,
) -> Announcement {
    let (ip, port) = published;
    let local = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::from(Ipv6Addr::LOCALHOST),
        other => other,
    };
    let outside = if ip.is_unspecified() { Some(hostname.to_owned()) } else { Some(ip.to_string()) };
    let target = if local.is_ipv6() { format!("[{local}]") } else { local.to_string() };
    Announcement {
        server: server.to_owned(),
        url: url(&local.to_string(), port, base_url, auth),
        network_url: outside.filter(|_| !ip.is_loopback()).map(|host| url(&host, port, base_url, auth)),
        tunnel: format!("ssh -N -L {port}:{target}:{port} {person}@{hostname}"),
        stop: format!("gpurun stop {container}"),
        by_password: !matches!(auth, Auth::Token(_)),
    }
}

impl std::fmt::Display for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.by_password {
            "log in with the password"
        } else {
            "the address holds the token: keep it to yourself"
        };
        writeln!(f, "{} is ready ({how})", self.server)?;
        writeln!(f, "  open        {}", self.url)?;
        if let Some(url) = &self.network_url {
            writeln!(f, "  or          {url}")?;
        }
        writeln!(f, "  from afar   {}", self.tunnel)?;
        writeln!(f, "              and then open the first address there")?;
        write!(f, "  stop        {}", self.stop)
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
        assert_eq!(url("127.0.0.1", 8888, "/", &password), "http://127.0.0.1:8888/");
        assert_eq!(url("::1", 8888, "/user/a/", &token), "http://[::1]:8888/user/a/?token=abc");
    }

    #[test]
    fn announcements() {
        let token = Auth::Token(Secret::new("abc"));
        let local =
            announce("JupyterLab 4.4.1", ("127.0.0.1".parse().unwrap(), 8889), "/", &token, "gpubox", "alice", "nb");
        insta::assert_snapshot!(local);
        let password = Auth::Hash("sha1:a:b".into());
        let open = announce(
            "Jupyter Notebook 6.0.3",
            ("0.0.0.0".parse().unwrap(), 8888),
            "/",
            &password,
            "gpubox",
            "alice",
            "nb",
        );
        insta::assert_snapshot!(open);
        assert_eq!(serde_json::to_value(&open).unwrap()["network_url"], "http://gpubox:8888/");
    }
}
