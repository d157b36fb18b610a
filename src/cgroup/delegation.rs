//! Handing controllers down to where containers are made, and saying why that could not be done.
//!
//! Version 2 gives a cgroup only the controllers that its parent lists in `cgroup.subtree_control`, and a cgroup that hands any down may have
//! no processes of its own (cgroup-v2.rst, "Top-down Constraint" and "No Internal Process Constraint"). So the way from the mount to a
//! container's parent is walked, and each level asked. Version 1 hands everything down, but an empty cpuset with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupError, V2, read, write};
use crate::spec::Limits;

/// Why a cgroup has not a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The kernel has it not, or lends it to version 1.
    Kernel,
    /// The root of the tree that we see is a cgroup of somebody else's tree, who has not handed it down.
    Delegation { root: PathBuf },
    /// This cgroup could hand it down, were there no processes in it.
    Busy { at: PathBuf },
    /// This cgroup refuses to hand it down.
    Refused { at: PathBuf, errno: i32 },
}

impl Missing {
    /// Where in the tree, for a message.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Kernel => String::new(),
            Self::Delegation { root: at } => format!(" in `{}`", at.display()),
            Self::Busy { at } => format!(" below `{}`, which has processes of its own", at.display()),
            Self::Refused { at, errno } => {
                format!(" below `{}`: {}", at.display(), io::Error::from_raw_os_error(*errno))
            }
        }
    }

    pub(super) fn hint(&self, controller: &str) -> String {
        match self {
            Self::Kernel => format!(
                "boot a kernel that has the controller `{controller}` enabled (see /proc/cgroups), or leave the flag out"
            ),
            Self::Delegation { root } => format!(
                "whoever made this tree must hand it down to `{}` (systemd: `Delegate=yes` in the unit), or leave the flag out",
                root.display()
            ),
            // Pasted, it moves them one level down (the `cat` that lists itself is gone by then, which is nobody's business); gpurun then enables
            // the controller by itself.
            Self::Busy { at } => {
                let at = at.display();
                format!(
                    "move them one level down: `mkdir {at}/own; for p in $(cat {at}/cgroup.procs); do echo $p >{at}/own/cgroup.procs; done 2>/dev/null`"
                )
            }
            Self::Refused { at, .. } => {
                format!("`echo +{controller} >{}/cgroup.subtree_control` must work there first", at.display())
            }
        }
    }
}

fn has(list: &Path, name: &str) -> bool {
    fs::read_to_string(list).unwrap_or_default().split_whitespace().any(|other| other == name)
}

/// From the mount down to `parent`.
fn levels<'a>(mount: &Path, parent: &'a Path) -> Vec<&'a Path> {
    let mut levels: Vec<&Path> = parent.ancestors().take_while(|level| level.starts_with(mount)).collect();
    levels.reverse();
    levels
}

/// The mount that a version 2 cgroup lies below: the last directory upwards that is a cgroup.
pub(super) fn mount_of(dir: &Path) -> &Path {
    dir.ancestors().take_while(|level| level.join("cgroup.controllers").exists()).last().unwrap_or(dir)
}

/// The controllers that a version 2 cgroup has.
pub(super) fn enabled(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The controllers that a container is given: the usual ones, and those whose files a person named.
pub(super) fn wanted(limits: &Limits) -> Vec<&str> {
    let named = limits.conf.iter().filter_map(|(file, _)| file.split('.').next()).filter(|name| *name != "cgroup");
    let mut names: Vec<&str> = V2.into_iter().collect();
    for name in named {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Enables what the host has of them for everything from the mount down to `parent`'s children. What does not work shows when a limit needs it.
///
/// A cgroup with processes refuses `memory` and `io`, but takes `cpu`, `cpuset` and `pids`, and becomes the root of a threaded subtree, which is
/// of no use to a container and changes somebody else's cgroup: so nothing is asked of such a level.
pub(super) fn enable_controllers(mount: &Path, parent: &Path, names: &[&str]) {
    for level in levels(mount, parent) {
        if is_busy(level) {
            return;
        }
        let control = level.join("cgroup.subtree_control");
        let missing = |name: &&&str| has(&level.join("cgroup.controllers"), name) && !has(&control, name);
        for name in names.iter().filter(missing) {
            if let Err(error) = fs::write(&control, format!("+{name}")) {
                tracing::debug!("cannot enable `{name}` in {}: {error}", level.display());
            }
        }
    }
}

/// Whether a cgroup has processes of its own. The root of all, which has no type, may.
fn is_busy(level: &Path) -> bool {
    level.join("cgroup.type").exists()
        && fs::read_to_string(level.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
}

/// Why the children of `parent` have not this controller: the first level from the mount that stands in its way.
pub(super) fn why_missing(mount: &Path, parent: &Path, name: &str) -> Missing {
    if !has(&mount.join("cgroup.controllers"), name) {
        // The root of all cgroups has no type: cgroup-v2.rst, "Core Interface Files".
        return match mount.join("cgroup.type").exists() {
            true => Missing::Delegation { root: mount.to_path_buf() },
            false => Missing::Kernel,
        };
    }
    for level in levels(mount, parent) {
        let control = level.join("cgroup.subtree_control");
        if has(&control, name) {
            continue;
        }
        if is_busy(level) {
            return Missing::Busy { at: level.to_path_buf() };
        }
        return match fs::write(&control, format!("+{name}")) {
            // Processes that came between two looks; the second where it is the root of a threaded subtree already.
            Err(error) if [Some(libc::EBUSY), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error()) => {
                Missing::Busy { at: level.to_path_buf() }
            }
            Err(error) => {
                Missing::Refused { at: level.to_path_buf(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
            }
            // It works now: somebody was in the way a moment ago, and another try will do.
            Ok(()) => Missing::Refused { at: level.to_path_buf(), errno: libc::EAGAIN },
        };
    }
    Missing::Kernel
}

/// Version 1's cpuset begins empty, and nobody can enter an empty one: copies the parents' sets down.
pub(super) fn inherit_cpuset(mount: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut parent = mount.to_path_buf();
    for component in relative.components() {
        let dir = parent.join(component);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = read(&dir.join(file))?;
            if own.is_empty() {
                write(&dir.join(file), &read(&parent.join(file))?)?;
            }
        }
        parent = dir;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::files as tree;

    #[test]
    fn the_level_in_the_way_is_named() {
        let dir = tree(&[
            ("cgroup.controllers", "cpu memory"),
            ("cgroup.subtree_control", "memory"),
            ("a/cgroup.controllers", "memory"),
        ]);
        let (mount, parent) = (dir.path(), dir.path().join("a"));
        assert_eq!(why_missing(mount, &parent, "io"), Missing::Kernel);
        // `a` has no such file to write to: what the kernel answers is passed on.
        fs::create_dir(parent.join("cgroup.subtree_control")).unwrap();
        assert_eq!(why_missing(mount, &parent, "memory"), Missing::Refused { at: parent.clone(), errno: libc::EISDIR });
        // Not asked, since some controllers it would hand down, and be something else from then on.
        fs::write(parent.join("cgroup.type"), "domain").unwrap();
        fs::write(parent.join("cgroup.procs"), "7\n").unwrap();
        assert_eq!(why_missing(mount, &parent, "memory"), Missing::Busy { at: parent.clone() });
        fs::write(mount.join("cgroup.type"), "domain").unwrap();
        assert_eq!(why_missing(mount, &parent, "io"), Missing::Delegation { root: mount.to_path_buf() });
    }

    #[test]
    fn a_file_brings_its_controller() {
        let conf = |file: &str| (file.to_owned(), "0".to_owned());
        let limits = Limits {
            conf: vec![conf("hugetlb.2MB.max"), conf("memory.high"), conf("cgroup.max.depth")],
            ..Limits::default()
        };
        assert_eq!(wanted(&limits), ["memory", "io", "cpuset", "cpu", "pids", "hugetlb"]);
    }
}
