//! The cgroup of one container: its directory in each hierarchy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::access::remove_dir;
use super::delegation::enabled;
use super::error::CgroupError;
use super::host;
use super::host::{Hierarchy, Host, TASKS, V1};
use super::place::Place;

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Maps each controller to its directory. Under version 2, all of them map to the same directory.
    pub(super) dirs: BTreeMap<String, PathBuf>,
    /// The version 2 directory. It is set under version 2, and under version 1 if version 2 is also mounted.
    pub(super) v2: Option<PathBuf>,
    pub(super) is_v2: bool,
    pub(super) place: Place,
}

impl Cgroup {
    /// Opens a container's cgroup if any part of it exists.
    pub fn open(host: &Host, place: impl Into<Place>) -> Result<Option<Self>, CgroupError> {
        let place = place.into();
        let relative = |name: &str| place.of(name).trim_start_matches('/').to_owned();
        let cgroup = match &host.hierarchy {
            Hierarchy::V1 { controllers, unified } => {
                let mut dirs: BTreeMap<String, PathBuf> = BTreeMap::new();
                for name in V1.into_iter().chain(host::V1_UNUSED).chain(["name=systemd"]) {
                    dirs.extend(
                        controllers
                            .get(name)
                            .map(|mount| (name.to_owned(), mount.join(relative(name))))
                            .filter(|(_, dir)| dir.is_dir()),
                    );
                }
                let v2 = unified.as_ref().map(|mount| mount.join(relative(""))).filter(|dir| dir.is_dir());
                Self { dirs, v2, is_v2: false, place }
            }
            Hierarchy::V2 { mount } => {
                let dir = mount.join(relative(""));
                let dirs = if dir.is_dir() {
                    enabled(&dir).into_iter().map(|name| (name, dir.clone())).collect()
                } else {
                    BTreeMap::new()
                };
                Self { v2: dir.is_dir().then_some(dir), dirs, is_v2: true, place }
            }
        };
        Ok((!cgroup.dirs.is_empty() || cgroup.v2.is_some()).then_some(cgroup))
    }

    /// Returns the files through which a process with one thread enters, by writing `0` (see `entrance`).
    #[must_use]
    pub fn entry_files(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        let name = |dir: &PathBuf| if self.v2.as_ref() == Some(dir) { "cgroup.procs" } else { TASKS };
        dirs.into_iter().map(|dir| dir.join(name(dir))).collect()
    }

    /// Returns the mount of each hierarchy with the container's directory in it.
    #[must_use]
    pub fn mounts_and_dirs(&self) -> Vec<(PathBuf, PathBuf)> {
        let depth = |path: &str| path.trim_matches('/').split('/').count();
        let named = self.dirs.iter().map(|(name, dir)| (self.place.of(name), dir));
        let dirs = named.chain(self.v2.iter().map(|dir| (self.place.of(""), dir)));
        let mut all: Vec<(PathBuf, PathBuf)> = dirs
            .filter_map(|(path, dir)| Some((dir.ancestors().nth(depth(path))?.to_path_buf(), dir.clone())))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Returns the directory of one controller.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.get(controller).map(PathBuf::as_path)
    }

    /// Removes the directories, children first. The kernel needs a moment after the last process has exited, so this
    /// function waits.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().try_for_each(|dir| remove_dir(dir))
    }
}
