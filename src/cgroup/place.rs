//! Where the cgroup of a container is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The paths of a container's cgroup, each absolute in its hierarchy (`/gpurun/ID`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// The path in every hierarchy that `apart` does not name.
    pub path: String,
    /// The path for a controller of version 1, in a cluster's step: the step has its own cgroup in some hierarchies, and
    /// not the same one in all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub apart: BTreeMap<String, String>,
    /// The cluster's step whose cgroup contains this one: `Slurm step 12.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

impl Place {
    /// Returns the path for a controller, or for version 2 with "".
    #[must_use]
    pub fn of(&self, controller: &str) -> &str {
        self.apart.get(controller).unwrap_or(&self.path)
    }

    /// Returns this place, and the one in which libcontainer creates directories if it differs.
    pub(crate) fn all(&self) -> impl Iterator<Item = Self> {
        let plain = (!self.apart.is_empty()).then(|| Self::from(self.path.as_str()));
        std::iter::once(self.clone()).chain(plain)
    }
}

impl From<&str> for Place {
    fn from(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }
}

impl From<&String> for Place {
    fn from(path: &String) -> Self {
        path.as_str().into()
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}
