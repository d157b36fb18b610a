//! The owner of a container: the user who started it.

use serde::{Deserialize, Serialize};

/// The caller of the command that created the container. Files that a notebook writes should belong to this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// The user who ran this command: the one behind `sudo`, or the process's own user.
    #[must_use]
    pub(crate) fn caller() -> Self {
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        // Only root may name another user.
        if uid == 0 {
            Self::behind_sudo(|name| std::env::var(name).ok()).unwrap_or_default()
        } else {
            Self { uid, gid }
        }
    }

    fn behind_sudo(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse::<u32>().ok();
        Some(Self { uid: number("SUDO_UID")?, gid: number("SUDO_GID")? })
    }

    /// The UID and GID, unless the owner is root.
    #[must_use]
    pub(crate) fn unprivileged(self) -> Option<(u32, u32)> {
        (self.uid != 0).then_some((self.uid, self.gid))
    }

    /// Whether this is the owner's name or UID.
    #[must_use]
    pub(crate) fn is_called(self, user: &str) -> bool {
        user == self.name() || user.parse() == Ok(self.uid)
    }

    /// The name of the user on this host now, or the UID if it has none.
    #[must_use]
    pub(crate) fn name(self) -> String {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(self.uid));
        user.ok().flatten().map_or_else(|| self.uid.to_string(), |user| user.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_names_the_owner() {
        let of = |uid: &str, gid: &str| {
            let (uid, gid) = (uid.to_owned(), gid.to_owned());
            Owner::behind_sudo(move |name| match name {
                "SUDO_UID" => Some(uid.clone()),
                "SUDO_GID" => Some(gid.clone()),
                _ => None,
            })
        };
        assert_eq!(of("1000", "100"), Some(Owner { uid: 1000, gid: 100 }));
        assert_eq!(of("1000", "x"), None);
        assert_eq!(Owner { uid: 1000, gid: 100 }.unprivileged(), Some((1000, 100)));
        assert_eq!(Owner::default().unprivileged(), None);
        assert_eq!(Owner { uid: 4_294_967_000, gid: 0 }.name(), "4294967000");
    }
}
