//! `-p [IP:][HOST:]CONTAINER[/PROTOCOL]`, ranges included: docker's grammar.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One port to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSpec {
    /// 0.0.0.0: every address of the host.
    pub host_ip: Ipv4Addr,
    /// `None`: any free one.
    pub host_port: Option<u16>,
    pub container_port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortError {
    #[error("`-p {text}`: {what}")]
    Grammar { text: String, what: String },
    #[error("`-p {text}`: ports are published on IPv4 addresses only")]
    Ipv6 { text: String },
}

impl Explain for PortError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Grammar { .. } => {
                "for example `-p 8888:8888`, `-p 127.0.0.1:8888:8888`, `-p 5353:53/udp`, `-p 8000-8003:8000-8003`"
                    .into()
            }
            Self::Ipv6 { .. } => "leave the address out, or name an IPv4 address of this host".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl PortSpec {
    /// Parses one `-p`; a range gives several ports.
    pub fn parse(text: &str) -> Result<Vec<Self>, PortError> {
        let wrong = |what: &str| PortError::Grammar { text: text.to_owned(), what: what.to_owned() };
        let (rest, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(wrong(&format!("there is no protocol `{other}`"))),
        };
        if rest.starts_with('[') {
            return Err(PortError::Ipv6 { text: text.to_owned() });
        }
        let parts: Vec<&str> = rest.split(':').collect();
        let (ip, host, container) = match parts[..] {
            [container] => ("", "", container),
            [host, container] => ("", host, container),
            [ip, host, container] => (ip, host, container),
            _ => return Err(wrong("too many colons")),
        };
        let host_ip = match ip {
            "" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            ip => match ip.parse() {
                Ok(IpAddr::V4(ip)) => ip,
                Ok(IpAddr::V6(_)) => return Err(PortError::Ipv6 { text: text.to_owned() }),
                Err(_) => return Err(wrong(&format!("`{ip}` is not an IP address"))),
            },
        };
        let container = range(container).ok_or_else(|| wrong("the container's port is not a port or a range"))?;
        let host = match host {
            "" | "0" => None,
            host => Some(range(host).ok_or_else(|| wrong("the host's port is not a port or a range"))?),
        };
        if host.is_some_and(|host| host.1 - host.0 != container.1 - container.0) {
            return Err(wrong("the two ranges have different lengths"));
        }
        let one = |offset: u16| Self {
            host_ip,
            host_port: host.map(|host| host.0 + offset),
            container_port: container.0 + offset,
            protocol,
        };
        Ok((0..=container.1 - container.0).map(one).collect())
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(ip: [u8; 4], host: Option<u16>, container: u16, protocol: Protocol) -> PortSpec {
        PortSpec { host_ip: ip.into(), host_port: host, container_port: container, protocol }
    }

    #[test]
    fn ports_parse_as_docker_does() {
        use Protocol::{Tcp, Udp};
        let any = [0, 0, 0, 0];
        let cases = [
            ("80", vec![spec(any, None, 80, Tcp)]),
            ("8080:80", vec![spec(any, Some(8080), 80, Tcp)]),
            ("0:80", vec![spec(any, None, 80, Tcp)]),
            ("127.0.0.1:8080:80/tcp", vec![spec([127, 0, 0, 1], Some(8080), 80, Tcp)]),
            ("127.0.0.1::80", vec![spec([127, 0, 0, 1], None, 80, Tcp)]),
            ("5353:53/udp", vec![spec(any, Some(5353), 53, Udp)]),
            ("8000-8001:9000-9001", vec![spec(any, Some(8000), 9000, Tcp), spec(any, Some(8001), 9001, Tcp)]),
        ];
        for (text, expected) in cases {
            assert_eq!(PortSpec::parse(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            ":",
            "a:80",
            "80:",
            "0",
            "70000",
            "80/sctp",
            "1:2:3:4",
            "8000-8002:9000-9001",
            "9-8:9-8",
            "x:1:2",
            "[::1]:80:80",
        ] {
            assert!(PortSpec::parse(text).is_err(), "{text}");
        }
    }
}
