//! Parses `--hostname`, `--domainname`, `--add-host`, `--dns`, `--dns-search` and `--dns-option`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};

/// An entry of the container's /etc/hosts: `NAME:IP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    pub name: String,
    pub address: HostAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostAddress {
    Ip(IpAddr),
    /// `host-gateway`: the address at which the container reaches this host.
    Gateway,
}

impl HostAddress {
    /// The address as text, given the host's address on the container's network.
    #[must_use]
    pub(crate) fn resolve(self, gateway: Option<Ipv4Addr>) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(ip),
            Self::Gateway => gateway.map(IpAddr::V4),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HostError {
    #[error("`--hostname {0}` is not a host name")]
    Hostname(String),
    #[error("`--add-host {0}` is not `NAME:IP`")]
    Entry(String),
    #[error("`--dns {0}` is not an IP address")]
    NameServer(String),
    #[error("`{flag} {text}` is not a domain")]
    Domain { flag: &'static str, text: String },
    #[error("`--dns-option {0}` is not an option of resolv.conf")]
    DnsOption(String),
}

impl Explain for HostError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Hostname(_) => "use letters, digits, `-` and `.`, 63 characters at most",
                Self::Entry(_) => "for example `--add-host db:10.0.0.7`",
                Self::NameServer(_) => "for example `--dns 1.1.1.1`",
                Self::Domain { flag: "--dns-search", .. } => {
                    "for example `--dns-search lab.example`; `--dns-search .` means no search list"
                }
                Self::Domain { .. } => "for example `--domainname lab.example`",
                Self::DnsOption(_) => "for example `--dns-option ndots:2` or `--dns-option rotate`",
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for HostEntry {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let wrong = || HostError::Entry(text.to_owned());
        let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let address = match address {
            "host-gateway" => HostAddress::Gateway,
            ip => HostAddress::Ip(ip.parse().map_err(|_| wrong())?),
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            HostAddress::Ip(ip) => write!(f, "{}:{ip}", self.name),
            HostAddress::Gateway => write!(f, "{}:host-gateway", self.name),
        }
    }
}

stored_as_text!(HostEntry);

/// Checks a container's host name (hostname(7)).
pub(crate) fn parse_hostname(name: &str) -> Result<String, HostError> {
    let good = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && !name.starts_with('-')
        && !name.starts_with('.');
    if good { Ok(name.to_owned()) } else { Err(HostError::Hostname(name.to_owned())) }
}

/// Parses the address of a name server.
pub(crate) fn parse_name_server(text: &str) -> Result<IpAddr, HostError> {
    text.parse().map_err(|_| HostError::NameServer(text.to_owned()))
}

/// Checks a domain of letters, digits, `-`, `_` and `.`.
fn domain(flag: &'static str, text: &str) -> Result<String, HostError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let good = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label);
    if good { Ok(text.to_owned()) } else { Err(HostError::Domain { flag, text: text.to_owned() }) }
}

/// Checks the NIS domain of a container, 64 characters at most (setdomainname(2)).
pub(crate) fn parse_domainname(text: &str) -> Result<String, HostError> {
    match text.len() {
        0..=64 => domain("--domainname", text),
        _ => Err(HostError::Domain { flag: "--domainname", text: text.to_owned() }),
    }
}

/// Checks a domain of the search list in resolv.conf. `.` alone removes the list.
pub(crate) fn parse_dns_search(text: &str) -> Result<String, HostError> {
    if text == "." { Ok(text.to_owned()) } else { domain("--dns-search", text) }
}

/// Checks an option of resolv.conf, such as `ndots:2`.
pub(crate) fn parse_dns_option(text: &str) -> Result<String, HostError> {
    let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte));
    if good { Ok(text.to_owned()) } else { Err(HostError::DnsOption(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_print_as_they_parse() {
        for text in ["db:10.0.0.7", "six:fd00::7", "gw:host-gateway"] {
            assert_eq!(text.parse::<HostEntry>().unwrap().to_string(), text);
        }
        assert_eq!("db=10.0.0.7".parse::<HostEntry>().unwrap().to_string(), "db:10.0.0.7");
        for wrong in ["", "db", "db:", ":10.0.0.7", "a b:10.0.0.7", "db:10.0.0"] {
            assert!(wrong.parse::<HostEntry>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_gateway_is_known_only_on_the_bridge() {
        let gateway = [10, 0, 0, 1].into();
        assert_eq!(HostAddress::Gateway.resolve(Some(gateway)), Some(gateway.into()));
        assert_eq!(HostAddress::Gateway.resolve(None), None);
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["a", "box-1.lab", "A9"] {
            assert_eq!(parse_hostname(good).as_deref(), Ok(good));
        }
        for wrong in ["", "-a", ".a", "a_b", "a b", &"x".repeat(64)] {
            assert!(parse_hostname(wrong).is_err(), "{wrong}");
        }
        assert!(parse_name_server("1.1.1.1").is_ok() && parse_name_server("dns").is_err());
    }

    #[test]
    fn domains_and_options_of_the_resolver_are_checked() {
        for good in ["lab.example", "a", "a-b.c_d", "lab.example."] {
            assert_eq!((parse_dns_search(good).as_deref(), parse_domainname(good).as_deref()), (Ok(good), Ok(good)));
        }
        assert!(parse_dns_search(".").is_ok() && parse_domainname(".").is_err());
        for wrong in ["", "a b", "a..b", "a\nnameserver 1.2.3.4", &"x".repeat(64)] {
            assert!(parse_dns_search(wrong).is_err() && parse_domainname(wrong).is_err(), "{wrong}");
        }
        assert!(parse_dns_option("ndots:2").is_ok() && parse_dns_option("use-vc").is_ok());
        assert!(parse_dns_option("").is_err() && parse_dns_option("a\nb").is_err());
    }
}
