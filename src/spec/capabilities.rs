//! Capability sets: docker's default fourteen, and `--cap-add` / `--cap-drop`.

use std::collections::BTreeSet;

use crate::report::{EXIT_USAGE, Explain};

/// All capabilities in the order of their numbers (linux/capability.h, to CAP_CHECKPOINT_RESTORE).
pub const ALL: [&str; 41] = [
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

/// A set of capabilities, a bit for each by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no capability `{0}`")]
pub struct CapabilityError(String);

impl Explain for CapabilityError {
    fn hint(&self) -> Option<String> {
        Some("names are those of capabilities(7), with or without `CAP_`: `SYS_PTRACE`, `NET_ADMIN`, or `ALL`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl Capabilities {
    /// docker's rule: `ALL` in a list stands for every capability; drops win over the defaults, adds over `--cap-drop ALL`.
    pub fn resolve(add: &[String], drop: &[String]) -> Result<Self, CapabilityError> {
        let numbers = |list: &[String]| -> Result<(bool, BTreeSet<usize>), CapabilityError> {
            let mut all = false;
            let mut set = BTreeSet::new();
            for name in list {
                let upper = name.to_ascii_uppercase();
                if upper == "ALL" || upper == "CAP_ALL" {
                    all = true;
                    continue;
                }
                let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
                let number =
                    ALL.iter().position(|known| *known == full).ok_or_else(|| CapabilityError(name.clone()))?;
                set.insert(number);
            }
            Ok((all, set))
        };
        let ((add_all, added), (drop_all, dropped)) = (numbers(add)?, numbers(drop)?);
        let bits = |set: &BTreeSet<usize>| set.iter().fold(0u64, |bits, number| bits | 1 << number);
        let every = (1u64 << ALL.len()) - 1;
        let base = match (add_all, drop_all) {
            (true, _) => every,
            (false, true) => 0,
            (false, false) => DEFAULT,
        };
        Ok(Self(((base | bits(&added)) & !bits(&dropped)) & every))
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        ALL.iter().position(|known| *known == name).is_some_and(|number| self.0 >> number & 1 == 1)
    }

    /// Without those that the running kernel does not know (its highest one is in /proc/sys/kernel/cap_last_cap).
    #[must_use]
    pub fn known_up_to(self, last: u32) -> Self {
        Self(if last >= 63 { self.0 } else { self.0 & ((1 << (last + 1)) - 1) })
    }

    /// The names, in the order of the numbers.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        ALL.iter().enumerate().filter(|(number, _)| self.0 >> number & 1 == 1).map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(add: &[&str], drop: &[&str]) -> Capabilities {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Capabilities::resolve(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn lists_combine_as_docker_does() {
        assert_eq!(resolve(&[], &[]).names().len(), 14);
        assert!(resolve(&["sys_admin"], &[]).has("CAP_SYS_ADMIN"));
        assert!(!resolve(&[], &["CAP_MKNOD"]).has("CAP_MKNOD"));
        assert_eq!(resolve(&["NET_ADMIN"], &["ALL"]).names(), ["CAP_NET_ADMIN"]);
        assert_eq!(resolve(&["ALL"], &["SYS_ADMIN"]).names().len(), 40);
        assert_eq!(resolve(&["ALL"], &[]).known_up_to(37).names().len(), 38);
        assert!(Capabilities::resolve(&["SYS_NOPE".into()], &[]).is_err());
    }
}
