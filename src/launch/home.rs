//! A home directory that the notebook's user can write to.
//!
//! ```text
//! /var/lib/gpurun/containers/ID/home/   0700, the container's user   →  /run/gpurun/home
//! ```
//! Jupyter, IPython and pip keep files in `$HOME`, and fail to start or to work if they cannot write there. A user
//! without an entry in the image's /etc/passwd (`-u 12345`) has the home `/`. A mounted home may belong to root, or the
//! root directory may be read-only. In these cases `HOME` names a directory of the container, which lives as long as
//! the container.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::places::{Origins, Places};
use super::progress::{Progress, Tell};
use super::shared::{Writer, open_path};
use crate::record::Entry;
use crate::report::Report;
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

/// The path of the directory in the container.
const PLACE: &str = "/run/gpurun/home";

/// The inputs for choosing the home.
pub(super) struct About<'a> {
    pub entry: &'a Entry,
    pub root: &'a OwnedFd,
    pub places: &'a Places<'a>,
    pub writer: &'a Writer,
    /// Whether /etc/passwd has an entry for the user.
    pub known: bool,
}

/// The start directory of a notebook without a mounted directory: the working directory or, if the user cannot write to
/// that, the home.
pub(super) fn notebook_dir(about: &About<'_>, cwd: &Path, env: &[String], origins: &Origins) -> PathBuf {
    let found = look(about, cwd, origins, about.entry.record.request.read_only);
    if found.writable { cwd.to_owned() } else { PathBuf::from(value(env, "HOME").unwrap_or(PLACE)) }
}

/// Keeps `HOME` if the user can write to it. Otherwise creates a home, and reports the reason.
pub(super) fn make(
    about: &About<'_>,
    env: &mut Vec<String>,
    origins: &mut Origins,
    tell: Tell<'_>,
) -> Result<(), Report> {
    let read_only = about.entry.record.request.read_only;
    let home = PathBuf::from(value(env, "HOME").unwrap_or("/"));
    let found = look(about, &home, origins, read_only);
    if !found.writable {
        let dir = about.entry.dir.join("home");
        let failed =
            |error| Report::new(format!("cannot create the home directory `{}`", dir.display())).with_cause(error);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        chown(&dir, Some(about.writer.uid), Some(about.writer.gid)).map_err(failed)?;
        let destination = about.places.own(Path::new(PLACE), MountpointKind::Directory)?;
        let options = ["bind", "rw", "nosuid", "nodev", "rprivate"].map(str::to_owned).into();
        origins.own.push(Mount { destination, kind: "bind".into(), source: dir, options });
        set(env, "HOME", PLACE);
        tell(Progress::Notice(reason(about, &home, &found)));
    }
    // Python and pip need a directory for temporary files.
    let temporary = look(about, Path::new("/tmp"), origins, read_only);
    if !temporary.writable && value(env, "TMPDIR").is_none() {
        set(env, "TMPDIR", value(env, "HOME").map(str::to_owned).unwrap_or_else(|| PLACE.to_owned()).as_str());
    }
    Ok(())
}

struct Found {
    writable: bool,
    read_only: bool,
    owner: Option<u32>,
}

/// Whether the user can write to a directory of the container, with the planned mounts in place.
fn look(about: &About<'_>, path: &Path, origins: &Origins, read_only_root: bool) -> Found {
    let above = origins.all().filter(|mount| path.starts_with(&mount.destination));
    let mount = above.max_by_key(|mount| mount.destination.components().count());
    let read_only = mount.map_or(read_only_root, |mount| mount.options.iter().any(|option| option == "ro"));
    let place = match mount {
        Some(mount) if mount.kind != "bind" => return Found { writable: !read_only, read_only, owner: None },
        Some(mount) => {
            let rest = path.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
            if rest.as_os_str().is_empty() {
                open_path(&mount.source).ok()
            } else {
                rootfs::open_root(&mount.source).ok().and_then(|root| existing(&root, rest))
            }
        }
        None => existing(about.root, path),
    };
    let owner =
        place.as_ref().and_then(|place| fs::metadata(crate::sys::mount::fd_path(place)).ok().map(|meta| meta.uid()));
    Found { writable: !read_only && place.is_some_and(|place| about.writer.can_write(place)), read_only, owner }
}

/// The directory, or its nearest existing ancestor.
fn existing(root: &OwnedFd, path: &Path) -> Option<OwnedFd> {
    path.ancestors().find_map(|path| {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        rootfs::resolve_in_root(root, path).ok().flatten()
    })
}

fn reason(about: &About<'_>, home: &Path, found: &Found) -> String {
    let uid = about.writer.uid;
    let why = if !about.known {
        format!("uid {uid} has no entry in the image's /etc/passwd")
    } else if found.read_only {
        format!("the home `{}` is read-only", home.display())
    } else {
        let owner = match found.owner {
            Some(0) => "root".to_owned(),
            Some(uid) => format!("uid {uid}"),
            None => "another user".to_owned(),
        };
        format!(
            "the home `{}` belongs to {owner}, and the notebook's user (uid {uid}) cannot write to it",
            home.display()
        )
    };
    format!("{why}: HOME is `{PLACE}`, which is kept with the container")
}

fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().filter_map(|entry| entry.split_once('=')).find(|(other, _)| *other == name).map(|(_, value)| value)
}

fn set(env: &mut Vec<String>, name: &str, value: &str) {
    env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
    env.push(format!("{name}={value}"));
}
