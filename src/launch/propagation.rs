//! Mounts with the propagation `slave`: mounts that appear on the host below the source appear in the container too.
//!
//! The runtime makes all of its mounts private, so such a mount is made once more, on top of the runtime's, when the
//! container is created and nothing runs in it yet. This process's own mounts are slaves of the host's
//! (`rootfs::private_namespace`), and a copy of such a mount is a slave of the same mount.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::places::below;
use crate::report::Report;
use crate::rootfs;
use crate::spec::Mount;
use crate::sys::mount::{self, Attr};

/// Whether a mount receives the host's mounts, and whether the mounts below it do.
fn is_slave(mount: &Mount) -> Option<bool> {
    mount.options.iter().find_map(|option| match option.as_str() {
        "slave" => Some(false),
        "rslave" => Some(true),
        _ => None,
    })
}

/// Refuses a mount below such a mount, which would hide it.
pub(super) fn check(mounts: &[Mount]) -> Result<(), Report> {
    for outer in mounts.iter().filter(|mount| is_slave(mount).is_some()) {
        if let Some(inner) = mounts.iter().find(|inner| below(&inner.destination, &outer.destination)) {
            return Err(Report::new(format!(
                "cannot mount on `{}`: it is below `{}`, which receives mounts of this host (`rslave`)",
                inner.destination.display(),
                outer.destination.display()
            ))
            .with_hint("choose another destination for one of them, or omit `rslave`"));
        }
    }
    Ok(())
}

/// Makes these mounts in a created container.
pub(super) fn attach(pid: i32, mounts: &[Mount]) -> Result<(), Report> {
    for one in mounts {
        let Some(recursive) = is_slave(one) else { continue };
        let what = || format!("cannot mount `{}` on `{}`", one.source.display(), one.destination.display());
        attach_one(pid, one, recursive).map_err(|error| Report::new(what()).with_cause(error))?;
        if !receives(pid, &one.destination) {
            return Err(Report::new(what())
                .with_cause("the mount that contains it on this host is private, so it passes on no mounts")
                .with_hint(
                    "share it with `mount --make-rshared DIR`, where `findmnt -T` shows DIR, or omit `rslave`",
                ));
        }
    }
    Ok(())
}

fn attach_one(pid: i32, one: &Mount, recursive: bool) -> std::io::Result<()> {
    let copied = mount::clone(&one.source, recursive)?;
    if one.options.iter().any(|option| option == "ro") {
        mount::set(&copied, Attr::RDONLY, recursive)?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    super::entering::in_mounts(&namespace, || {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let root = rootfs::open_root(Path::new("/")).map_err(std::io::Error::other)?;
        let target = rootfs::resolve_in_root(&root, &one.destination).map_err(std::io::Error::other)?;
        mount::attach(copied.as_fd(), target.ok_or_else(missing)?.as_fd())
    })
}

/// Whether the topmost mount there is a slave, by the container's mount table (proc_pid_mountinfo(5)).
fn receives(pid: i32, destination: &Path) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut mounts = table.lines().rev().map(fields);
    let topmost = mounts.find(|fields| fields.get(4).is_some_and(|point| Path::new(point) == destination));
    topmost.is_some_and(|fields| {
        fields.iter().skip(6).take_while(|field| *field != "-").any(|field| field.starts_with("master:"))
    })
}
