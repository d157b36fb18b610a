//! Named networks: what `gpurun network create` made.
//!
//! ```text
//! /var/lib/gpurun/networks/NAME.json    a network: its ID, its addresses, its labels
//! ```
//!
//! A record says nothing about the kernel: `net` creates the network's bridge and rules when a container needs them, so
//! a network survives a reboot. Lock: that of `net` (`/run/gpurun/net/.lock`), under which containers connect as well.
//! A caller that holds it and finds no connected container can remove the record.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::report::{EXIT_USAGE, Explain};
use crate::request::{Subnet, is_network_name};

/// The networks of one root.
#[derive(Debug, Clone)]
pub struct Networks {
    dir: PathBuf,
}

/// A named network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hex digits.
    pub(crate) id: String,
    pub(crate) name: String,
    /// Nanoseconds since 1970.
    pub(crate) created: u64,
    pub(crate) subnet: Subnet,
    /// The host's address, which is the containers' router unless the network is internal.
    pub(crate) gateway: Ipv4Addr,
    /// Without a route to other networks and to this host.
    pub(crate) internal: bool,
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("`{0}` is not a network's name")]
    Name(String),
    #[error("there is no network `{0}`")]
    Missing(String),
    #[error("several networks have an ID that begins with `{0}`")]
    Ambiguous(String),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Explain for NetworkError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name(_) => Some("use a-z A-Z 0-9 _ . - and begin with a letter or digit".into()),
            Self::Missing(name) if is_network_name(name) => Some(format!(
                "list the networks with `gpurun network ls`, or create it with `gpurun network create {name}`"
            )),
            Self::Missing(_) => Some("list the networks with `gpurun network ls`".into()),
            Self::Ambiguous(_) => Some("write more digits of the ID, or the name".into()),
            Self::Io { .. } => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Name(_) => EXIT_USAGE,
            _ => 1,
        }
    }
}

/// The names that every host has, which cannot be created or removed.
pub(crate) const BUILT_IN: [&str; 3] = ["bridge", "host", "none"];

impl Network {
    /// The name of its bridge device. Network devices have names of 15 characters at most.
    #[must_use]
    pub(crate) fn device(&self) -> String {
        format!("gpurun-{}", &self.id[..8])
    }
}

impl Networks {
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { dir: root.join("networks") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// All networks, sorted by name. A record that cannot be read is an error: its addresses are not known.
    pub(crate) fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let failed = |source| NetworkError::Io { action: "list", path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            if let Some(name) = name.filter(|name| is_network_name(name)) {
                all.extend(self.read(name)?);
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// The network of exactly this name, if it exists.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Network>, NetworkError> {
        if !is_network_name(name) {
            return Ok(None);
        }
        let path = self.path(name);
        let failed = |source| NetworkError::Io { action: "read", path: path.clone(), source };
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => serde_json::from_slice(&bytes.map_err(failed)?).map(Some).map_err(|error| failed(error.into())),
        }
    }

    /// Finds a network by its name or by the beginning of its ID.
    pub(crate) fn find(&self, name: &str) -> Result<Network, NetworkError> {
        if let Some(network) = self.read(name)? {
            return Ok(network);
        }
        let missing = || NetworkError::Missing(name.to_owned());
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut found = self.list()?.into_iter().filter(|network| network.id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(network), None) => Ok(network),
            (None, _) => Err(missing()),
            (Some(_), Some(_)) => Err(NetworkError::Ambiguous(name.to_owned())),
        }
    }

    /// Stores a network. The caller holds the lock and has checked that the name is free.
    pub(crate) fn write(&self, network: &Network) -> Result<(), NetworkError> {
        if !is_network_name(&network.name) {
            return Err(NetworkError::Name(network.name.clone()));
        }
        let path = self.path(&network.name);
        let failed = |source| NetworkError::Io { action: "write", path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        let bytes = serde_json::to_vec_pretty(network).map_err(|error| failed(error.into()))?;
        durable::write_atomic(&path, &bytes).map_err(failed)
    }

    /// Removes the record of a network. The caller holds the lock and has checked that no container is connected.
    pub(crate) fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let path = self.path(name);
        let removed = fs::remove_file(&path).and_then(|()| durable::sync_dir(&self.dir));
        removed.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetworkError::Missing(name.to_owned()),
            _ => NetworkError::Io { action: "remove", path, source },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_found_by_name_and_by_id() {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::new(dir.path());
        assert!(networks.list().unwrap().is_empty());
        for (name, first) in [("lab", "abc"), ("other", "abd")] {
            let network = Network {
                id: first.to_owned() + &"0".repeat(61),
                name: name.into(),
                created: 1,
                subnet: "10.1.0.0/16".parse().unwrap(),
                gateway: [10, 1, 0, 1].into(),
                internal: false,
                labels: BTreeMap::new(),
            };
            networks.write(&network).unwrap();
            assert_eq!(networks.find(name).unwrap(), network);
            assert_eq!(networks.find(first).unwrap(), network);
        }
        assert!(matches!(networks.find("ab"), Err(NetworkError::Ambiguous(_))));
        for missing in ["", "abe", "la", "../networks/lab", "x"] {
            assert!(matches!(networks.find(missing), Err(NetworkError::Missing(_))), "{missing}");
        }
        networks.remove("lab").unwrap();
        assert!(matches!(networks.remove("lab"), Err(NetworkError::Missing(_))));
        assert_eq!(networks.list().unwrap().len(), 1);
    }
}
