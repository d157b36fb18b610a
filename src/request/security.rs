//! Parses `--security-opt`.

use serde::{Deserialize, Serialize};

use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::CapabilityName;
use crate::spec::seccomp::ProfileDocument;

/// The seccomp filter of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    Default,
    Unconfined,
    /// A profile in docker's JSON format.
    Profile(ProfileDocument),
}

stored_as_text!(ProfileDocument, CapabilityName);

/// One `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOption {
    NoNewPrivileges(bool),
    SeccompDefault,
    SeccompUnconfined,
    /// The path of a profile, which the caller reads.
    SeccompFile(String),
    /// No path in /proc and /sys is masked or read-only.
    SystemPathsUnconfined,
    /// A confinement that gpurun does not set anyway.
    Unconfined,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--security-opt {0}` is not known")]
pub(crate) struct SecurityError(String);

impl Explain for SecurityError {
    fn hint(&self) -> Option<String> {
        Some("use `no-new-privileges=true|false`, `seccomp=unconfined|FILE` or `systempaths=unconfined`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl std::str::FromStr for SecurityOption {
    type Err = SecurityError;

    /// Parses `KEY[=VALUE]`, or `KEY:VALUE` as early versions of docker had it.
    fn from_str(text: &str) -> Result<Self, SecurityError> {
        let (key, value) = text.split_once(['=', ':']).map_or((text, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", Some("false")) => Ok(Self::NoNewPrivileges(false)),
            ("seccomp", Some("unconfined")) => Ok(Self::SeccompUnconfined),
            ("seccomp", Some("builtin")) => Ok(Self::SeccompDefault),
            ("seccomp", Some(path)) => Ok(Self::SeccompFile(path.to_owned())),
            ("systempaths", Some("unconfined")) => Ok(Self::SystemPathsUnconfined),
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => Ok(Self::Unconfined),
            _ => Err(SecurityError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_dockers() {
        use SecurityOption::*;
        for (text, option) in [
            ("no-new-privileges", NoNewPrivileges(true)),
            ("no-new-privileges:false", NoNewPrivileges(false)),
            ("seccomp=unconfined", SeccompUnconfined),
            ("seccomp=builtin", SeccompDefault),
            ("seccomp=/etc/p.json", SeccompFile("/etc/p.json".into())),
        ] {
            assert_eq!(text.parse(), Ok(option), "{text}");
        }
        assert_eq!("label=disable".parse(), Ok(Unconfined));
        assert_eq!("apparmor:unconfined".parse(), Ok(Unconfined));
        assert_eq!("systempaths=unconfined".parse(), Ok(SystemPathsUnconfined));
        for wrong in ["", "label=type:x", "apparmor=docker-default", "seccomp", "no-new-privileges=maybe"] {
            assert!(wrong.parse::<SecurityOption>().is_err(), "{wrong}");
        }
    }
}
