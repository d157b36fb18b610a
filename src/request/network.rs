//! Parses `--network` with its companions (`--network-alias`, `--ip`, `--mac-address`), and `--pid`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::subnet::Mac;
use crate::report::{EXIT_USAGE, Explain};

/// The name of the network that every host has: the bridge on which containers have no names.
pub(crate) const DEFAULT_NETWORK: &str = "bridge";

/// The longest alias: that of a DNS label.
const ALIAS_MAX: usize = 63;

/// The kind of a container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The default bridge or, with [`Request::networks`](super::Request), the networks named there.
    Bridge,
    Host,
    /// Only a loopback interface or, with [`Request::network_container`](super::Request), another container's network.
    None,
}

/// A network that a container is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `bridge`, or the name of a network.
    pub network: String,
    /// Further names of the container on this network.
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    #[serde(default)]
    pub mac: Option<Mac>,
}

impl Attachment {
    #[must_use]
    pub(crate) fn to(network: &str) -> Self {
        Self { network: network.to_owned(), aliases: Vec::new(), ip: None, mac: None }
    }

    /// Whether this is the default bridge, which has no names.
    #[must_use]
    pub(crate) fn is_default(&self) -> bool {
        self.network == DEFAULT_NETWORK
    }

    /// Checks what the default bridge does not have.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let only = |what| Err(NetworkError::OnlyNamed { what });
        match self {
            Self { aliases, .. } if self.is_default() && !aliases.is_empty() => only("`--network-alias`"),
            Self { ip: Some(_), .. } if self.is_default() => only("`--ip`"),
            _ => Ok(()),
        }
    }
}

/// The flags that choose the network, as written.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkFlags<'a> {
    pub networks: &'a [String],
    pub aliases: &'a [String],
    pub ip: Option<&'a str>,
    pub mac: Option<&'a str>,
}

/// The network that the flags choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Networking {
    pub mode: NetworkMode,
    /// Empty for the default bridge.
    pub networks: Vec<Attachment>,
    /// The container whose network is shared, as written.
    pub container: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NetworkError {
    #[error("cannot use `--network {text}`: {why}")]
    Grammar { text: String, why: String },
    #[error("cannot use `--network-alias {text}`: {why}")]
    Alias { text: String, why: &'static str },
    #[error("cannot use `--ip {0}`: it is not an IPv4 address")]
    Ip(String),
    #[error("cannot use `--mac-address {text}`: {why}")]
    Mac { text: String, why: String },
    #[error("cannot use `--network {one}` and `--network {other}` together")]
    Together { one: String, other: String },
    #[error("cannot use {what} without a network of your own")]
    OnlyNamed { what: &'static str },
    #[error("cannot use {what} with `--network {mode}`")]
    Without { what: &'static str, mode: String },
}

impl Explain for NetworkError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Grammar { .. } => {
                    "for example `--network NAME`, `--network name=NAME,alias=db,ip=10.89.1.9`, `--network container:NAME`"
                }
                Self::Alias { .. } => "use letters, digits, `-`, `_` and `.`, 63 characters at most",
                Self::Ip(_) => "for example `--ip 10.89.1.9`; `gpurun network inspect NAME` shows the network's addresses",
                Self::Mac { .. } => "for example `--mac-address 02:42:ac:11:00:02`",
                Self::Together { .. } => "`host`, `none` and `container:NAME` cannot be combined with another network",
                Self::OnlyNamed { .. } => {
                    "create a network with `gpurun network create NAME`, and use `--network NAME`"
                }
                Self::Without { .. } => "omit one of the two flags",
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl NetworkFlags<'_> {
    pub(crate) fn parse(&self) -> Result<Networking, NetworkError> {
        let mut networking = Networking { mode: NetworkMode::Bridge, networks: Vec::new(), container: None };
        let mut special: Option<&str> = None;
        for text in self.networks {
            let other = special.or_else(|| self.networks.first().map(String::as_str).filter(|first| *first != text));
            let is_special = matches!(text.as_str(), "host" | "none") || text.starts_with("container:");
            if let Some(other) = other.filter(|_| is_special || special.is_some()) {
                return Err(NetworkError::Together { one: other.to_owned(), other: text.clone() });
            }
            match text.as_str() {
                "host" => networking.mode = NetworkMode::Host,
                "none" => networking.mode = NetworkMode::None,
                text if text.starts_with("container:") => {
                    let name = text["container:".len()..].to_owned();
                    if name.is_empty() {
                        return Err(wrong(text, "the container's name is missing"));
                    }
                    networking.mode = NetworkMode::None;
                    networking.container = Some(name);
                }
                text => {
                    let attachment = parse_attachment(text)?;
                    if networking.networks.iter().any(|known| known.network == attachment.network) {
                        return Err(wrong(text, "the network is named twice"));
                    }
                    networking.networks.push(attachment);
                    continue;
                }
            }
            special = Some(text);
        }
        if let Some(mode) = special {
            let given = [
                (!self.aliases.is_empty()).then_some("`--network-alias`"),
                self.ip.map(|_| "`--ip`"),
                self.mac.map(|_| "`--mac-address`"),
            ];
            if let Some(what) = given.into_iter().flatten().next() {
                return Err(NetworkError::Without { what, mode: mode.to_owned() });
            }
            return Ok(networking);
        }
        self.complete(&mut networking.networks)?;
        networking.networks.iter().try_for_each(Attachment::check)?;
        if networking.networks == [Attachment::to(DEFAULT_NETWORK)] {
            networking.networks.clear();
        }
        Ok(networking)
    }

    /// Adds the flags that belong to the first network.
    fn complete(&self, networks: &mut Vec<Attachment>) -> Result<(), NetworkError> {
        if networks.is_empty() {
            networks.push(Attachment::to(DEFAULT_NETWORK));
        }
        let first = &mut networks[0];
        for text in self.aliases {
            first.aliases.push(parse_alias(text)?);
        }
        if let Some(text) = self.ip {
            first.ip = Some(text.parse().map_err(|_| NetworkError::Ip(text.to_owned()))?);
        }
        if let Some(text) = self.mac {
            first.mac = Some(text.parse().map_err(|why| NetworkError::Mac { text: text.to_owned(), why })?);
        }
        Ok(())
    }
}

fn wrong(text: &str, why: impl Into<String>) -> NetworkError {
    NetworkError::Grammar { text: text.to_owned(), why: why.into() }
}

/// Parses `NAME`, docker's `name=NAME,alias=ALIAS,…` or podman's `NAME:alias=ALIAS,…`.
fn parse_attachment(text: &str) -> Result<Attachment, NetworkError> {
    // A hardware address contains colons, so the first of the two signs decides.
    let (name, options) = match text.find([':', '=']) {
        Some(at) if text[at..].starts_with(':') => (Some(&text[..at]), &text[at + 1..]),
        Some(_) => (None, text),
        None => (Some(text), ""),
    };
    let mut attachment = Attachment::to(name.unwrap_or_default());
    for option in super::csv_fields(options).map_err(|why| wrong(text, why))?.iter().filter(|option| !option.is_empty())
    {
        let Some((key, value)) = option.split_once('=') else {
            return Err(wrong(text, format!("`{option}` is not `KEY=VALUE`")));
        };
        match key.trim() {
            "name" if name.is_none() => value.clone_into(&mut attachment.network),
            "alias" => attachment.aliases.push(parse_alias(value)?),
            "ip" => attachment.ip = Some(value.parse().map_err(|_| NetworkError::Ip(value.to_owned()))?),
            "mac-address" | "mac" => {
                let mac = value.parse().map_err(|why| NetworkError::Mac { text: value.to_owned(), why });
                attachment.mac = Some(mac?);
            }
            "ip6" => return Err(wrong(text, "networks have IPv4 addresses only")),
            key => return Err(wrong(text, format!("the option `{key}` is unknown"))),
        }
    }
    match attachment.network.as_str() {
        "default" => DEFAULT_NETWORK.clone_into(&mut attachment.network),
        "host" | "none" => return Err(wrong(text, "this network has no options")),
        name if !is_network_name(name) => return Err(wrong(text, format!("`{name}` is not a network's name"))),
        _ => {}
    }
    Ok(attachment)
}

/// Whether a text may be the name of a network: docker's rule.
#[must_use]
pub(crate) fn is_network_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Parses a name of a container on a network.
pub(crate) fn parse_alias(text: &str) -> Result<String, NetworkError> {
    let why = match text {
        "" => "it is empty",
        text if text.len() > ALIAS_MAX => "it is too long",
        text if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) => {
            "it contains other characters"
        }
        text if text.starts_with('.') || text.ends_with('.') || text.contains("..") => "it has an empty part",
        text => return Ok(text.to_owned()),
    };
    Err(NetworkError::Alias { text: text.to_owned(), why })
}

/// A value of `gpurun build --network` that is not a mode.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no network mode `{0}`")]
pub struct NetworkModeError(String);

impl Explain for NetworkModeError {
    fn hint(&self) -> Option<String> {
        Some("use `bridge`, `host` or `none`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for NetworkMode {
    type Err = NetworkModeError;

    fn from_str(text: &str) -> Result<Self, NetworkModeError> {
        match text {
            "bridge" | "default" => Ok(Self::Bridge),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            other => Err(NetworkModeError(other.to_owned())),
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn parse(networks: &[&str]) -> Result<Networking, String> {
        NetworkFlags { networks: &texts(networks), ..NetworkFlags::default() }
            .parse()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn networks_parse_as_docker_does() {
        let bridge = Networking { mode: NetworkMode::Bridge, networks: Vec::new(), container: None };
        for none in [&[][..], &["bridge"], &["default"]] {
            assert_eq!(parse(none), Ok(bridge.clone()));
        }
        let one = Attachment {
            network: "lab".into(),
            aliases: texts(&["db", "db.lab"]),
            ip: Some([10, 1, 2, 3].into()),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
        };
        for long in [
            "name=lab,alias=db,alias=db.lab,ip=10.1.2.3,mac-address=02:00:00:00:00:01",
            "lab:alias=db,alias=db.lab,ip=10.1.2.3,mac=02-00-00-00-00-01",
        ] {
            let expected = Networking { networks: vec![one.clone(), Attachment::to("bridge")], ..bridge.clone() };
            assert_eq!(parse(&[long, "bridge"]), Ok(expected), "{long}");
        }
        assert_eq!(parse(&["container:web"]).unwrap().container.as_deref(), Some("web"));
        assert_eq!(parse(&["host"]).unwrap().mode, NetworkMode::Host);
        for wrong in [
            &[""][..],
            &["-x"],
            &["a b"],
            &["lab", "lab"],
            &["host", "lab"],
            &["lab", "none"],
            &["container:"],
            &["container:a", "container:b"],
            &["lab:ip=x"],
            &["name=lab,speed=9"],
            &["alias=x"],
            &["bridge:alias=x"],
            &["host:alias=x"],
            &["lab:alias=.x"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_flags_beside_it_belong_to_the_first_network() {
        let (networks, aliases) = (texts(&["a", "b"]), texts(&["x"]));
        let flags = NetworkFlags { networks: &networks, aliases: &aliases, ip: Some("10.0.0.9"), mac: None };
        let first = Attachment { aliases: texts(&["x"]), ip: Some([10, 0, 0, 9].into()), ..Attachment::to("a") };
        assert_eq!(flags.parse().unwrap().networks, [first, Attachment::to("b")]);
        let on = |network: &str| NetworkFlags { networks: &texts(&[network]), ..flags.clone() }.parse().unwrap_err();
        assert_eq!(on("bridge"), NetworkError::OnlyNamed { what: "`--network-alias`" });
        assert_eq!(on("host"), NetworkError::Without { what: "`--network-alias`", mode: "host".into() });
    }
}
