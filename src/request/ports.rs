//! The grammar of `-p [IP:][HOST:]CONTAINER[/PROTOCOL]`, with ranges, as in docker.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    /// 0.0.0.0 means every address of the host.
    pub host_ip: Ipv4Addr,
    /// `None` means any free port.
    pub host_port: Option<u16>,
    /// The last port of a range that begins with `host_port`, of which the first free one is published.
    pub host_last: Option<u16>,
    pub container_port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortError {
    #[error("cannot use `-p {text}`: {what}")]
    Grammar { text: String, what: String },
    #[error(
        "cannot use `-p {text}`: ports are published on IPv4 addresses only, because containers have no IPv6 addresses"
    )]
    Ipv6 { text: String },
}

impl Explain for PortError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Grammar { .. } => {
                "for example `-p 8888:8888`, `-p 127.0.0.1:8888:8888`, `-p 5353:53/udp`, `-p 8000-8003:8000-8003`"
                    .into()
            }
            Self::Ipv6 { .. } => "omit the address, or name an IPv4 address of this host".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl fmt::Display for PortSpec {
    /// Formats the port in the syntax of the flag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.host_last.map(|port| format!("-{port}")).unwrap_or_default();
        let host = self.host_port.map(|port| format!("{port}{last}")).unwrap_or_default();
        write!(f, "{}:{host}:{}/{}", self.host_ip, self.container_port, self.protocol)
    }
}

impl PortSpec {
    /// Parses all `-p` options.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, PortError> {
        let mut ports = Vec::new();
        for text in texts {
            ports.extend(Self::parse(text)?);
        }
        Ok(ports)
    }

    /// Parses one `-p` option. A range gives several ports.
    pub fn parse(text: &str) -> Result<Vec<Self>, PortError> {
        let wrong = |what: &str| PortError::Grammar { text: text.to_owned(), what: what.to_owned() };
        let (rest, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(wrong(&format!("the protocol `{other}` is unknown"))),
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
            ip => match ip.parse() {
                Ok(IpAddr::V4(ip)) => ip,
                Ok(IpAddr::V6(_)) => return Err(PortError::Ipv6 { text: text.to_owned() }),
                Err(_) => return Err(wrong(&format!("`{ip}` is not an IP address"))),
            },
        };
        let container = range(container).ok_or_else(|| wrong("the container port is not a number or a range"))?;
        let host = match host {
            "" | "0" => None,
            host => Some(range(host).ok_or_else(|| wrong("the host port is not a number or a range"))?),
        };
        // As in docker, one port of the container may be published on any port of a range.
        let choice = host.filter(|host| host.1 > host.0 && container.0 == container.1);
        if choice.is_none() && host.is_some_and(|host| host.1 - host.0 != container.1 - container.0) {
            return Err(wrong("the two ranges have different lengths"));
        }
        let one = |offset: u16| Self {
            host_ip,
            host_port: host.map(|host| host.0 + offset),
            host_last: choice.map(|(_, last)| last),
            container_port: container.0 + offset,
            protocol,
        };
        Ok((0..=container.1 - container.0).map(one).collect())
    }
}

/// A port that a container or an image exposes: `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExposedPort {
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--expose {0}` is not a port or a range of ports")]
pub(crate) struct ExposeError(String);

impl Explain for ExposeError {
    fn hint(&self) -> Option<String> {
        Some("for example `--expose 80`, `--expose 53/udp` or `--expose 8000-8010`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl std::str::FromStr for ExposedPort {
    type Err = ExposeError;

    fn from_str(text: &str) -> Result<Self, ExposeError> {
        match Self::parse(text)?[..] {
            [one] => Ok(one),
            _ => Err(ExposeError(text.to_owned())),
        }
    }
}

super::text::stored_as_text!(ExposedPort);

impl ExposedPort {
    /// Parses one `--expose`, or an exposed port of an image. A range gives several ports.
    pub(crate) fn parse(text: &str) -> Result<Vec<Self>, ExposeError> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(ExposeError(text.to_owned())),
        };
        let (first, last) = range(ports).ok_or_else(|| ExposeError(text.to_owned()))?;
        Ok((first..=last).map(|port| Self { port, protocol }).collect())
    }

    /// Parses all `--expose` flags.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, ExposeError> {
        let mut all = Vec::new();
        for text in texts {
            all.extend(Self::parse(text)?);
        }
        Ok(all)
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last)
}

/// A record stores ports as texts. Those of an earlier release are the options as written, which may be ranges.
pub(crate) mod stored {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(ports: &[PortSpec], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ports.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortSpec>, D::Error> {
        PortSpec::parse_all(&Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(ip: [u8; 4], host: Option<u16>, container: u16, protocol: Protocol) -> PortSpec {
        PortSpec { host_ip: ip.into(), host_port: host, host_last: None, container_port: container, protocol }
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
            ("8000-8005:80", vec![PortSpec { host_last: Some(8005), ..spec(any, Some(8000), 80, Tcp) }]),
            ("8000-8000:80", vec![spec(any, Some(8000), 80, Tcp)]),
            ("8000-8001:9000-9001", vec![spec(any, Some(8000), 9000, Tcp), spec(any, Some(8001), 9001, Tcp)]),
        ];
        for (text, expected) in cases {
            let again: Vec<String> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(PortSpec::parse(text), Ok(expected.clone()), "{text}");
            assert_eq!(PortSpec::parse_all(&again), Ok(expected), "{text} is stored as {again:?}");
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
            "localhost:80:80",
        ] {
            assert!(PortSpec::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exposed_ports_are_ranges_too() {
        let shown = |text: &str| {
            ExposedPort::parse(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(shown("80").as_deref(), Ok("80/tcp"));
        assert_eq!(shown("53/udp").as_deref(), Ok("53/udp"));
        assert_eq!(shown("8000-8002/tcp").as_deref(), Ok("8000/tcp 8001/tcp 8002/tcp"));
        for wrong in ["", "0", "80/sctp", "9-8", "80:80", "x"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }
}
