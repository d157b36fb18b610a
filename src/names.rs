//! Parses and prints digests, image references, container ids and names. This module does no I/O.

use std::fmt;
use std::str::FromStr;

use crate::report::{EXIT_USAGE, Explain};

/// A sha256 digest, printed as `sha256:<64 hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("`{0}` is not a sha256 digest")]
    Digest(String),
    #[error("`{name}` is not an image reference: {why}")]
    Reference { name: String, why: &'static str },
    #[error("`{0}` is not a container name")]
    Container(String),
}

impl Explain for NameError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Digest(_) => "write `sha256:` and 64 lower-case hexadecimal digits",
                Self::Reference { .. } => {
                    "write `name`, `name:tag`, `name@sha256:…` or `registry:port/name:tag`, with the name in lower \
                     case"
                }
                Self::Container(_) => {
                    "use two or more of the characters a-z A-Z 0-9 _ . - and start with a letter \
                                       or a digit"
                }
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl Digest {
    /// Returns only the 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Digest(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let lower = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if digits.len() != 64 || !lower {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An image reference as docker resolves it (distribution/reference): `x` is `docker.io/library/x:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry host with its port, if any. Local builds use `localhost`.
    pub domain: String,
    /// The repository path without the domain.
    pub path: String,
    /// The tag. It is `latest` if neither a tag nor a digest was given.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

const DEFAULT_DOMAIN: &str = "docker.io";
/// The longest name (domain and path) that the distribution specification allows.
const NAME_MAX: usize = 255;

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why| NameError::Reference { name: text.chars().take(300).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| wrong("the part after `@` is not a sha256 digest"))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag. A colon before it belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong("the tag contains invalid characters"));
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path.to_owned()),
            _ if name.contains('/') => (DEFAULT_DOMAIN, name.to_owned()),
            _ => (DEFAULT_DOMAIN, format!("library/{name}")),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        // A reference to Docker's own images that includes the domain: `docker.io/x`.
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path };
        if !is_domain(domain) {
            return Err(wrong("the registry is not a valid host name"));
        }
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(wrong("names must be in lower case"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(wrong("the name is empty or contains invalid characters"));
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(wrong("the name is longer than 255 characters"));
        }
        // A name of 64 hex digits would be taken for an id.
        if path
            .strip_prefix("library/")
            .is_some_and(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(wrong("64 hexadecimal digits are an image ID, not a name"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }
}

impl Reference {
    /// Returns the shortest form that resolves to the same reference: `x:latest`, `me/x:1`, `localhost/x:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(rest) = full.strip_prefix("docker.io/") else { return full };
        // Without its prefix, `docker.io/library/a.b/c` would be `a.b/c`, and `a.b` would be taken for a registry.
        let means_this = |short: &&str| short.parse::<Self>().is_ok_and(|reference| reference == *self);
        let shortest = [rest.strip_prefix("library/"), Some(rest)].into_iter().flatten().find(means_this);
        shortest.map_or_else(|| full.clone(), str::to_owned)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
    let good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // `parse` alone would also accept `+4`.
    host.split('.').all(good) && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Checks a path component against `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(|&byte| alphanumeric(byte))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-'))
}

/// A container name: docker's `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerName(String);

impl FromStr for ContainerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_prefix('/').unwrap_or(text);
        let good = (2..=253).contains(&name.len())
            && name.as_bytes()[0].is_ascii_alphanumeric()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if good { Ok(Self(name.to_owned())) } else { Err(NameError::Container(text.to_owned())) }
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Generates a new id of 64 random hex digits.
#[must_use]
pub(crate) fn new_container_id() -> String {
    let mut bytes = [0; 32];
    random(&mut bytes);
    hex::encode(bytes)
}

/// Generates a container name from an adjective and the surname of a computing pioneer.
#[must_use]
pub(crate) fn random_name() -> String {
    const ADJECTIVES: [&str; 32] = [
        "amber", "brave", "bright", "calm", "clever", "cosy", "daring", "eager", "fair", "fancy", "gentle", "golden",
        "happy", "honest", "jolly", "keen", "kind", "lively", "lucid", "merry", "modest", "nimble", "patient",
        "placid", "quick", "quiet", "serene", "silver", "steady", "swift", "warm", "wise",
    ];
    const PEOPLE: [&str; 32] = [
        "allen",
        "babbage",
        "backus",
        "bartik",
        "booth",
        "cerf",
        "church",
        "clarke",
        "dijkstra",
        "engelbart",
        "feinler",
        "floyd",
        "hamilton",
        "hamming",
        "hoare",
        "hopper",
        "keller",
        "kernighan",
        "knuth",
        "lamport",
        "liskov",
        "lovelace",
        "mccarthy",
        "noether",
        "perlman",
        "ritchie",
        "shannon",
        "thompson",
        "turing",
        "wiener",
        "wilkes",
        "zuse",
    ];
    let mut bytes = [0; 2];
    random(&mut bytes);
    format!("{}_{}", ADJECTIVES[usize::from(bytes[0]) % 32], PEOPLE[usize::from(bytes[1]) % 32])
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("getrandom(2) fails only on kernels older than 3.17");
}

/// Returns the Levenshtein distance of two short words.
#[must_use]
pub(crate) fn distance(one: &str, other: &str) -> usize {
    if one.len().max(other.len()) > 40 {
        return usize::MAX;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, a) in one.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], line + 1);
        for (column, b) in other.iter().enumerate() {
            let cost = before + usize::from(a != *b);
            before = row[column + 1];
            row[column + 1] = cost.min(before + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_resolve_as_dockers() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let cases = [
            ("x", "docker.io/library/x:latest", "x:latest"),
            ("x:1.0", "docker.io/library/x:1.0", "x:1.0"),
            ("me/x", "docker.io/me/x:latest", "me/x:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
            ("reg.example.org/a/b__c:t", "reg.example.org/a/b__c:t", "reg.example.org/a/b__c:t"),
            ("index.docker.io/library/x", "docker.io/library/x:latest", "x:latest"),
            ("docker.io/x:1", "docker.io/library/x:1", "x:1"),
            ("docker.io/library/a.b/c", "docker.io/library/a.b/c:latest", "library/a.b/c:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("pytorch_cuda10", "docker.io/library/pytorch_cuda10:latest", "pytorch_cuda10:latest"),
        ];
        for (text, full, familiar) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar), "{text}");
        }
        let pinned: Reference = format!("x@{digest}").parse().unwrap();
        assert_eq!((pinned.tag.as_ref(), pinned.to_string()), (None, format!("docker.io/library/x@{digest}")));
    }

    #[test]
    fn odd_references_are_refused() {
        let long = "a".repeat(300);
        let id = "a".repeat(64);
        for text in [
            "",
            "X",
            "a/B",
            "x:",
            "x:a b",
            "../x",
            "a//b",
            "/x",
            "x/",
            "x@sha256:12",
            "x@md5:1",
            "-x",
            "a___b",
            ".a/b",
            "x:.t",
            "h:+4/x",
            "h:65536/x",
            "h:/x",
            &long,
            &id,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn odd_digests_are_refused() {
        let hex = "ab".repeat(32);
        assert!(format!("sha256:{hex}").parse::<Digest>().is_ok());
        for text in [
            hex.clone(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../{hex}"),
            "sha256:".into(),
            format!("sha512:{hex}"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn container_names() {
        for good in ["ab", "a1", "My_box.2-x", "/ab"] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", "a", "-ab", "a b", "ä1", "a/b"] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        assert_ne!(new_container_id(), new_container_id());
        assert!(random_name().parse::<ContainerName>().is_ok());
    }

    proptest! {
        #[test]
        fn references_print_as_they_parse(text in "[a-z0-9]{1,8}(/[a-z0-9]{1,6}){0,2}(:[a-z0-9.]{1,5})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Reference>();
            let _ = text.parse::<Digest>();
        }
    }
}
