//! Mounts below a directory of the host or a volume.
//!
//! Other processes may be able to write to such a directory while the container starts. If the runtime made the mounts
//! below it, a link that appears there at the right moment would lead a mount to `/dev`, for example, and the runtime
//! would then create its device nodes in the directory that is mounted. So gpurun makes these mounts itself: it mounts
//! the outer directory, opens each mount point below it component by component without following a link, and mounts on
//! the descriptor. The runtime gets the result as one recursive bind mount, and resolves no path in it.
//!
//! ```text
//! /run/gpurun/ID/trees/N     where the tree is assembled, in the supervisor's own mount namespace
//! ```
//! The mounts end with that namespace, and the directories are removed with the container's directory in /run.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::places::below;
use super::shared::open_path;
use crate::report::Report;
use crate::rootfs::{self, MountpointKind, RootError};
use crate::spec::Mount;
use crate::sys::mount::{self, Attr, FsContext};

/// Returns the mounts that the runtime makes. `mounts` are sorted by depth.
pub(super) fn assemble(run_dir: &Path, mounts: &[Mount]) -> Result<Vec<Mount>, Report> {
    let mut made = Vec::new();
    for (number, (outer, inner)) in group(mounts).into_iter().enumerate() {
        made.push(match inner.is_empty() {
            true => outer.clone(),
            false => tree(&run_dir.join("trees").join(number.to_string()), outer, &inner)?,
        });
    }
    Ok(made)
}

/// Makes bind mounts in `root` for this process. `mounts` are sorted by depth, and no destination has a link of the
/// image. A mount point below an earlier mount is opened in that mount, without following a link.
pub(super) fn attach_all(root: &OwnedFd, mounts: &[Mount]) -> Result<(), Report> {
    let mut made: Vec<(&Mount, OwnedFd)> = Vec::new();
    for mount in mounts {
        let above = made.iter().rev().find(|(outer, _)| below(&mount.destination, &outer.destination));
        let target = match above {
            Some((outer, top)) => open_below(top, outer, mount)?,
            None => rootfs::open_mountpoint_below(root, &mount.destination, kind_of(mount))?,
        };
        let top = attach(mount, &target)?;
        made.push((mount, top));
    }
    Ok(())
}

/// Opens the mount point of `mount` in `top`, where `outer` is mounted.
fn open_below(top: &OwnedFd, outer: &Mount, mount: &Mount) -> Result<OwnedFd, Report> {
    let rest = mount.destination.strip_prefix(&outer.destination).unwrap_or(&mount.destination);
    rootfs::open_mountpoint_below(top, rest, kind_of(mount)).map_err(|error| refused(outer, mount, error))
}

fn kind_of(mount: &Mount) -> MountpointKind {
    match mount.kind == "bind" && !mount.source.is_dir() {
        true => MountpointKind::File,
        false => MountpointKind::Directory,
    }
}

/// Each mount with the mounts below it, if it is a directory that others may be able to write to.
fn group(mounts: &[Mount]) -> Vec<(&Mount, Vec<&Mount>)> {
    let mut groups: Vec<(&Mount, Vec<&Mount>)> = Vec::new();
    for mount in mounts {
        let holds = |outer: &Mount| {
            below(&mount.destination, &outer.destination) && outer.kind == "bind" && outer.source.is_dir()
        };
        match groups.iter_mut().find(|(outer, _)| holds(outer)) {
            Some((_, inner)) => inner.push(mount),
            None => groups.push((mount, Vec::new())),
        }
    }
    groups
}

fn tree(point: &Path, outer: &Mount, inner: &[&Mount]) -> Result<Mount, Report> {
    let unusable = |error| Report::new(format!("cannot use `{}`", point.display())).with_cause(error);
    fs::create_dir_all(point).map_err(unusable)?;
    attach(outer, &open_path(point).map_err(unusable)?)?;
    let top = rootfs::open_root(point)?;
    for mount in inner {
        attach(mount, &open_below(&top, outer, mount)?)?;
    }
    // Options that apply to a whole tree have been applied to the outer mount alone.
    let kept = outer.options.iter().filter(|option| attribute(option.strip_prefix('r').unwrap_or("")).is_none());
    let options = std::iter::once("rbind".to_owned()).chain(kept.filter(|option| !option.ends_with("bind")).cloned());
    Ok(Mount { source: point.to_owned(), options: options.collect(), ..outer.clone() })
}

/// The error of a mount point that cannot be opened.
fn refused(outer: &Mount, mount: &Mount, error: RootError) -> Report {
    let on = mount.destination.display();
    match &error {
        RootError::Make { source, .. } if source.raw_os_error() == Some(libc::ELOOP) => Report::new(format!(
            "cannot mount on `{on}`: a symbolic link has appeared in its path, in `{}`",
            outer.source.display()
        ))
        .with_hint("find the process that writes to that directory, or mount elsewhere"),
        _ => Report::from(error).under(format!("cannot mount on `{on}`")),
    }
}

/// Makes one mount, with its options, and returns its root.
fn attach(mount: &Mount, target: &OwnedFd) -> Result<OwnedFd, Report> {
    let failed = |cause: &dyn std::fmt::Display| {
        let (source, on) = (mount.source.display(), mount.destination.display());
        Report::new(format!("cannot mount `{source}` on `{on}`")).with_cause(cause)
    };
    let made = match &*mount.kind {
        "bind" => bind(mount).map_err(|error| failed(&error))?,
        kind => file_system(kind, mount).map_err(|error| failed(&error))?,
    };
    mount::attach(made.as_fd(), target.as_fd()).map_err(|error| failed(&error))?;
    Ok(made)
}

fn bind(mount: &Mount) -> std::io::Result<OwnedFd> {
    let made = mount::clone(&mount.source, mount.options.iter().any(|option| option == "rbind"))?;
    for (prefix, recursive) in [("", false), ("r", true)] {
        let set = mount.options.iter().filter_map(|option| attribute(option.strip_prefix(prefix)?));
        if let Some(attributes) = set.reduce(Attr::and) {
            mount::set(&made, attributes, recursive)?;
        }
    }
    Ok(made)
}

fn file_system(kind: &str, mount: &Mount) -> Result<OwnedFd, mount::FsError> {
    let text = |text: &str| CString::new(text).map_err(|error| mount::FsError::from(std::io::Error::from(error)));
    let context = FsContext::open(&text(kind)?)?;
    context.string(c"source", mount.source.as_os_str().as_encoded_bytes())?;
    let mut attributes = Attr::NONE;
    for option in &mount.options {
        match (attribute(option), option.split_once('=')) {
            (Some(attribute), _) => attributes = attributes.and(attribute),
            (None, Some((key, value))) => context.string(&text(key)?, value.as_bytes())?,
            (None, None) if is_default(option) => {}
            (None, None) => context.flag(&text(option)?)?,
        }
    }
    context.mount(attributes)
}

/// The attribute that an option of a mount stands for.
fn attribute(option: &str) -> Option<Attr> {
    Some(match option {
        "ro" => Attr::RDONLY,
        "nosuid" => Attr::NOSUID,
        "nodev" => Attr::NODEV,
        "noexec" => Attr::NOEXEC,
        "noatime" => Attr::NOATIME,
        "nodiratime" => Attr::NODIRATIME,
        "nosymfollow" => Attr::NOSYMFOLLOW,
        _ => return None,
    })
}

/// Options that describe what a new mount is anyway.
fn is_default(option: &str) -> bool {
    const PROPAGATION: [&str; 8] =
        ["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"];
    ["rw", "suid", "dev", "exec", "relatime", "atime", "diratime", "async", "defaults"].contains(&option)
        || PROPAGATION.contains(&option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &Path, destination: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { destination: destination.into(), kind: kind.into(), source: source.into(), options }
    }

    #[test]
    fn only_directories_of_the_host_become_trees() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |destination: &str| mount("bind", dir.path(), destination, &["rbind"]);
        let mounts = [
            mount("tmpfs", "tmpfs".as_ref(), "/t", &[]),
            bind("/w"),
            bind("/w2"),
            bind("/t/b"),
            bind("/w/a"),
            mount("tmpfs", "tmpfs".as_ref(), "/w/t", &[]),
            bind("/t/b/c"),
            bind("/w/t/deep"),
        ];
        let groups: Vec<(&str, Vec<&str>)> = group(&mounts)
            .into_iter()
            .map(|(outer, inner)| {
                let name = |mount: &Mount| mounts.iter().find(|other| *other == mount).unwrap().destination.to_str();
                (name(outer).unwrap(), inner.into_iter().map(|mount| name(mount).unwrap()).collect())
            })
            .collect();
        let expected: [(&str, Vec<&str>); 4] =
            [("/t", vec![]), ("/w", vec!["/w/a", "/w/t", "/w/t/deep"]), ("/w2", vec![]), ("/t/b", vec!["/t/b/c"])];
        assert_eq!(groups, expected);
    }
}
