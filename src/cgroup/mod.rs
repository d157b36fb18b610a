//! Control groups: gpurun writes the limits of a container itself and reads them back from the kernel.
//!
//! ```text
//! v2             /sys/fs/cgroup/gpurun/ID/{memory.max,cpu.max,…}      one directory
//! v1, hybrid     /sys/fs/cgroup/<controller>/gpurun/ID/{…}            one directory per controller
//! ```
//!
//! All paths are absolute and explicit. Limits are written in the order that the kernel requires, then read back and
//! compared. A limit that cannot be enforced is an error that names the controller and the file
//! ([`CgroupError::Differs`] and related errors) and is never dropped silently. The device filter is installed before
//! any process enters the cgroup. The parent `/gpurun` is never removed. The supervisor removes the directory of its
//! container; if the supervisor is dead, `launch::reconcile` does.

mod access;
mod apply;
mod ceilings;
mod delegation;
mod devices;
mod entrance;
mod error;
mod files;
mod group;
mod host;
mod moves;
mod oom;
mod part;
mod place;
mod post_mortem;
mod processes;
mod stats;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(crate) use apply::Verified;
pub(crate) use entrance::{Entrance, OpenEntrance};
pub(crate) use error::CgroupError;
pub(crate) use error::Missing;
pub(crate) use files::{OnlyOn, Version, settings};
pub use group::Cgroup;
pub use host::Host;
use host::V1;
pub(crate) use host::{Hierarchy, NO_SWAP};
pub(crate) use oom::OomWatch;
pub(crate) use part::Part;
pub(crate) use place::Place;
pub(crate) use post_mortem::{OomKill, oom_kills_of};
pub(crate) use processes::Freeze;
pub(crate) use stats::{Pressure, Stats};

use delegation::{enable_controllers, enabled, inherit_cpuset};

use crate::spec::{DeviceRule, Limits};

impl Host {
    /// Creates the cgroup, applies the limits and the device filter, and reads them back. On failure, the
    /// cgroup is removed.
    pub fn create(
        &self,
        place: impl Into<Place>,
        limits: &Limits,
        devices: &[DeviceRule],
    ) -> Result<(Cgroup, Vec<Verified>), CgroupError> {
        let cgroup = self.make(place, limits)?;
        let done =
            cgroup.write(limits).and_then(|()| cgroup.filter_devices(devices)).and_then(|()| cgroup.verify(limits));
        match done {
            Ok(verified) => Ok((cgroup, verified)),
            Err(error) => {
                // Report the first error. `reconcile` finds an empty cgroup that cannot be removed.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Creates the cgroup with the controllers that the limits need, but without any limit. It is not an error if the
    /// cgroup exists.
    pub fn make(&self, place: impl Into<Place>, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let place = place.into();
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                let mut dirs = BTreeMap::new();
                for name in V1 {
                    let Some(mount) = controllers.get(name) else { continue };
                    let relative = Path::new(place.of(name).trim_start_matches('/'));
                    let dir = mount.join(relative);
                    // cpu and cpuacct may share a mount.
                    access::create_dir(&dir)?;
                    if name == "cpuset" {
                        inherit_cpuset(mount, relative)?;
                    }
                    dirs.insert(name.to_owned(), dir);
                }
                Ok(Cgroup { dirs, v2: None, is_v2: false, place })
            }
            Hierarchy::V2 { mount } => {
                let dir = mount.join(place.path.trim_start_matches('/'));
                let parent = dir.parent().unwrap_or(mount);
                fs::create_dir_all(parent).map_err(|source| CgroupError::Io {
                    action: "create the cgroup",
                    path: parent.to_path_buf(),
                    source,
                })?;
                let names = delegation::wanted(limits);
                enable_controllers(mount, parent, &names);
                fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
                    action: "create the cgroup",
                    path: dir.clone(),
                    source,
                })?;
                let dirs = enabled(&dir).into_iter().map(|name| (name, dir.clone())).collect();
                Ok(Cgroup { dirs, v2: Some(dir), is_v2: true, place })
            }
        }
    }
}

#[cfg(test)]
mod tests;
