//! The source of an image, as named on the command line: a path, standard input, or skopeo's `transport:location`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::names::Reference;
use crate::report::{EXIT_USAGE, Explain};

/// Where to load images from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A docker-archive or OCI layout tar (compressed or not), or an OCI layout directory. The content determines the
    /// format.
    Path {
        path: PathBuf,
        /// The image to select if there are several: a name, or the layout's `ref.name`.
        pick: Option<String>,
    },
    Stdin,
    Registry(Reference),
}

/// An invalid source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceNameError {
    #[error("`{0}` names no file or directory")]
    NoPlace(String),
    #[error("`{0}` is not an image in a registry")]
    Reference(String, #[source] crate::names::NameError),
    #[error("`{0}` has an unknown transport")]
    Transport(String),
}

impl Explain for SourceNameError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Reference(_, cause) => cause.hint(),
            _ => Some(
                "use a path, `-`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]` or \
                 `docker://NAME`"
                    .into(),
            ),
        }
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Transports of skopeo that gpurun does not support. Without this list, `dir:x` would be treated as a file name.
const FOREIGN: [&str; 5] = ["containers-storage:", "docker-daemon:", "dir:", "ostree:", "sif:"];

impl Source {
    /// Creates a source from a plain path, whatever characters it contains.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path { path: path.into(), pick: None }
    }

    /// Parses `text` as a source in a position that also accepts an image name. Only accepts text that cannot be a
    /// name.
    pub fn unless_name(text: &str) -> Result<Option<Self>, SourceNameError> {
        let transport = ["oci:", "oci-archive:", "docker-archive:", "docker://"].iter().chain(&FOREIGN);
        let is_place = text.starts_with(['/', '.']) || transport.into_iter().any(|prefix| text.starts_with(prefix));
        if is_place { text.parse().map(Some) } else { Ok(None) }
    }
}

impl FromStr for Source {
    type Err = SourceNameError;

    fn from_str(text: &str) -> Result<Self, SourceNameError> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return name.parse().map(Self::Registry).map_err(|cause| SourceNameError::Reference(text.into(), cause));
        }
        if FOREIGN.iter().any(|prefix| text.starts_with(prefix)) {
            return Err(SourceNameError::Transport(text.into()));
        }
        let place = ["oci:", "oci-archive:", "docker-archive:"].iter().find_map(|prefix| text.strip_prefix(prefix));
        // As in skopeo, a path after a transport cannot contain a colon. A path without a transport can.
        let (path, pick) = match place {
            Some(place) => place.split_once(':').map_or((place, None), |(path, pick)| (path, Some(pick))),
            None => (text, None),
        };
        if path.is_empty() || pick.is_some_and(str::is_empty) {
            return Err(SourceNameError::NoPlace(text.into()));
        }
        Ok(Self::Path { path: path.into(), pick: pick.map(str::to_owned) })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, pick: None } => write!(f, "{}", path.display()),
            Self::Path { path, pick: Some(pick) } => write!(f, "{}:{pick}", path.display()),
            Self::Stdin => f.write_str("standard input"),
            Self::Registry(reference) => write!(f, "{reference}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_as_skopeo_writes_them() {
        let place = |path: &str, pick: Option<&str>| Source::Path { path: path.into(), pick: pick.map(str::to_owned) };
        for (text, want) in [
            ("image.tar", place("image.tar", None)),
            ("a:b", place("a:b", None)),
            ("oci:dir", place("dir", None)),
            ("oci:dir:v1", place("dir", Some("v1"))),
            ("oci-archive:/x/y.tar:v1", place("/x/y.tar", Some("v1"))),
            ("docker-archive:y.tar:localhost:5000/a:b", place("y.tar", Some("localhost:5000/a:b"))),
            ("-", Source::Stdin),
            ("docker://busybox", Source::Registry("busybox".parse().expect("a name"))),
        ] {
            assert_eq!(text.parse::<Source>().expect(text), want);
        }
        for text in ["", "oci:", "oci:dir:", "docker://", "docker://A", "dir:x", "containers-storage:x"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_of_the_store_is_no_source() {
        for name in ["busybox", "localhost:5000/x:1", "oci", "a/b", "0123abcd"] {
            assert_eq!(Source::unless_name(name).expect(name), None);
        }
        for place in ["./x", "/x", "../x.tar", "oci:x", "docker://x"] {
            assert!(Source::unless_name(place).expect(place).is_some(), "{place}");
        }
        assert!(Source::unless_name("dir:x").is_err());
    }
}
