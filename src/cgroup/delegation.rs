//! Enables controllers for the cgroups of containers, and explains why a controller is not available.
//!
//! Version 2 gives a cgroup only the controllers that its parent lists in `cgroup.subtree_control`. A cgroup that
//! enables controllers for its children may not contain processes itself (cgroup-v2.rst, "Top-down Constraint" and "No
//! Internal Process Constraint"). gpurun therefore enables the controllers on every level from the mount down to the
//! parent of the container's cgroup. Version 1 has every controller on every level, but a new cpuset is empty.

use std::fs;
use std::path::Path;

use super::CgroupError;
use super::access::{read, write};
use super::error::Missing;
use crate::spec::Limits;

/// The controllers that are enabled for containers under version 2, if the host has them. `memory` and `io` come first
/// because a cgroup with processes refuses to enable them; see `delegation`.
pub(super) const V2: [&str; 5] = ["memory", "io", "cpuset", "cpu", "pids"];

fn has(list: &Path, name: &str) -> bool {
    crate::sys::file::read_control(list).unwrap_or_default().split_whitespace().any(|other| other == name)
}

/// Returns the levels from the mount down to `parent`.
fn levels<'a>(mount: &Path, parent: &'a Path) -> Vec<&'a Path> {
    let mut levels: Vec<&Path> = parent.ancestors().take_while(|level| level.starts_with(mount)).collect();
    levels.reverse();
    levels
}

/// Returns the mount of a version 2 cgroup: the topmost ancestor that is a cgroup.
pub(super) fn mount_of(dir: &Path) -> &Path {
    dir.ancestors().take_while(|level| level.join("cgroup.controllers").exists()).last().unwrap_or(dir)
}

/// Returns the controllers that are available in a version 2 cgroup.
pub(super) fn enabled(dir: &Path) -> Vec<String> {
    let text = crate::sys::file::read_control(dir.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Returns the controllers for a container: the usual ones, and those of the files that the caller named.
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

/// Enables those of the controllers that the host has, on every level from the mount down to `parent`. Failures are
/// ignored here; they are reported when a limit needs the controller.
///
/// A cgroup with processes refuses `memory` and `io` but accepts `cpu`, `cpuset` and `pids`. It then becomes the root
/// of a threaded subtree, which a container cannot use and which changes a cgroup that gpurun does not own. So gpurun
/// does not write to such a level.
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

/// Returns whether a cgroup contains processes and therefore cannot enable all controllers for its children. The root
/// cgroup, which has no `cgroup.type`, may do both.
fn is_busy(level: &Path) -> bool {
    level.join("cgroup.type").exists()
        && crate::sys::file::read_control(level.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
}

/// Returns the reason why the children of `parent` lack this controller: the first level, from the mount downwards,
/// that does not enable it.
pub(super) fn why_missing(mount: &Path, parent: &Path, name: &str) -> Missing {
    if !has(&mount.join("cgroup.controllers"), name) {
        // The root cgroup has no `cgroup.type`: cgroup-v2.rst, "Core Interface Files".
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
            // EBUSY: processes have entered since the check above. EOPNOTSUPP: the cgroup is already the root of a
            // threaded subtree.
            Err(error) if [Some(libc::EBUSY), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error()) => {
                Missing::Busy { at: level.to_path_buf() }
            }
            Err(error) => {
                Missing::Refused { at: level.to_path_buf(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
            }
            // The write works now, so the obstacle was temporary and a retry will succeed.
            Ok(()) => Missing::Refused { at: level.to_path_buf(), errno: libc::EAGAIN },
        };
    }
    Missing::Kernel
}

/// Copies the parents' sets down. A new cpuset of version 1 is empty, and no process can enter an empty cpuset.
pub(super) fn inherit_cpuset(mount: &Path, relative: &Path) -> Result<(), CgroupError> {
    let dir = mount.join(relative);
    ["cpuset.cpus", "cpuset.mems"].into_iter().try_for_each(|file| inherited(mount, &dir, file).map(drop))
}

/// Returns the set of a directory, after copying it from the nearest directory above that has one.
fn inherited(mount: &Path, dir: &Path, file: &str) -> Result<String, CgroupError> {
    let path = dir.join(file);
    let own = read(&path)?;
    let above = dir.parent().filter(|_| own.is_empty() && dir != mount);
    let Some(above) = above else { return Ok(own) };
    let set = inherited(mount, above, file)?;
    write(&path, &set)?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::files as tree;

    #[test]
    fn the_blocking_level_is_named() {
        let dir = tree(&[
            ("cgroup.controllers", "cpu memory"),
            ("cgroup.subtree_control", "memory"),
            ("a/cgroup.controllers", "memory"),
        ]);
        let (mount, parent) = (dir.path(), dir.path().join("a"));
        assert_eq!(why_missing(mount, &parent, "io"), Missing::Kernel);
        // `a` has no such file to write to. The kernel's error is passed on.
        fs::create_dir(parent.join("cgroup.subtree_control")).unwrap();
        assert_eq!(why_missing(mount, &parent, "memory"), Missing::Refused { at: parent.clone(), errno: libc::EISDIR });
        // Nothing is written to this level: it would accept some controllers and become a threaded domain.
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
