//! Capability sets: docker's default set of fourteen capabilities, and `--cap-add` and `--cap-drop`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};

/// All capabilities in numeric order (linux/capability.h, up to CAP_CHECKPOINT_RESTORE).
pub(crate) const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// docker's default set: CapBnd 00000000a80425fb.
const DEFAULT: u64 = 0xa804_25fb;

/// One entry of `--cap-add` or `--cap-drop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CapabilityName {
    All,
    /// A capability by its number.
    One(u8),
}

/// A set of capabilities. The bit position is the number of the capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no capability `{0}`")]
pub(crate) struct CapabilityError(String);

impl Explain for CapabilityError {
    fn hint(&self) -> Option<String> {
        Some("names are those of capabilities(7), with or without `CAP_`: `SYS_PTRACE`, `NET_ADMIN`, or `ALL`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl CapabilityName {
    /// Packet and raw sockets.
    pub(crate) const NET_RAW: Self = Self::One(13);
}

impl FromStr for CapabilityName {
    type Err = CapabilityError;

    /// Parses a name in any case, with or without `CAP_`.
    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        let upper = text.to_ascii_uppercase();
        if upper == "ALL" || upper == "CAP_ALL" {
            return Ok(Self::All);
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let number = ALL.iter().position(|known| *known == full).and_then(|number| u8::try_from(number).ok());
        number.map(Self::One).ok_or_else(|| CapabilityError(text.to_owned()))
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "ALL",
            Self::One(number) => ALL.get(usize::from(*number)).copied().unwrap_or("CAP_UNKNOWN"),
        })
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl Capabilities {
    /// Applies docker's rule: `ALL` in a list stands for every capability, `--cap-drop` overrides the defaults, and
    /// `--cap-add` overrides `--cap-drop ALL`.
    #[must_use]
    pub(crate) fn resolve(add: &[CapabilityName], drop: &[CapabilityName]) -> Self {
        let bits = |list: &[CapabilityName]| {
            list.iter().fold(0u64, |bits, name| match name {
                CapabilityName::One(number) => bits | 1 << number,
                CapabilityName::All => bits,
            })
        };
        let every = (1u64 << ALL.len()) - 1;
        let base = match (add.contains(&CapabilityName::All), drop.contains(&CapabilityName::All)) {
            (true, _) => every,
            (false, true) => 0,
            (false, false) => DEFAULT,
        };
        Self((base | bits(add)) & !bits(drop) & every)
    }

    #[must_use]
    pub(crate) fn has(&self, name: &str) -> bool {
        ALL.iter().position(|known| *known == name).is_some_and(|number| self.0 >> number & 1 == 1)
    }

    /// Returns the set without capabilities that the running kernel does not know. /proc/sys/kernel/cap_last_cap
    /// contains the number of the kernel's last one.
    #[must_use]
    pub(crate) fn known_up_to(self, last: u32) -> Self {
        Self(if last >= 63 { self.0 } else { self.0 & ((1 << (last + 1)) - 1) })
    }

    /// Returns the names in numeric order.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        ALL.iter().enumerate().filter(|(number, _)| self.0 >> number & 1 == 1).map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(add: &[&str], drop: &[&str]) -> Capabilities {
        let own = |list: &[&str]| list.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        Capabilities::resolve(&own(add), &own(drop))
    }

    #[test]
    fn lists_combine_as_docker_does() {
        assert_eq!(resolve(&[], &[]).names().len(), 14);
        assert!(resolve(&["sys_admin"], &[]).has("CAP_SYS_ADMIN"));
        assert!(!resolve(&[], &["CAP_MKNOD"]).has("CAP_MKNOD"));
        assert_eq!(resolve(&["NET_ADMIN"], &["ALL"]).names(), ["CAP_NET_ADMIN"]);
        assert_eq!(resolve(&["ALL"], &["SYS_ADMIN"]).names().len(), 40);
        assert_eq!(resolve(&["ALL"], &[]).known_up_to(37).names().len(), 38);
        for (text, name) in [("all", "ALL"), ("sys_admin", "CAP_SYS_ADMIN"), ("CAP_BPF", "CAP_BPF")] {
            assert_eq!(text.parse::<CapabilityName>().unwrap().to_string(), name);
        }
        assert_eq!("NET_RAW".parse(), Ok(CapabilityName::NET_RAW));
        assert!("SYS_NOPE".parse::<CapabilityName>().is_err());
    }
}
