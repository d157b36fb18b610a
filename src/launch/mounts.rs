//! `-v`, `--mount`, `--tmpfs` and an image's VOLUMEs: from requests to mounts, with the places to mount on made in the container's root.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Progress;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{MountRequest, MountSource};
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;
use crate::sys::idmap::{self, Owner};

/// A host path that is not there is an error: docker would make an empty directory, which hides every typing mistake.
pub fn check(requests: &[MountRequest]) -> Result<(), Report> {
    for request in requests {
        if let MountSource::Bind { path, .. } = &request.source
            && let Err(error) = fs::metadata(path)
        {
            return Err(Report::new(format!(
                "cannot mount `{}` on `{}`",
                path.display(),
                request.destination.display()
            ))
            .with_cause(error)
            .with_hint(format!("make it first: `mkdir -p {}`; a name without `/` would be a volume", path.display())));
        }
    }
    Ok(())
}

/// The mounts in the order in which they must be made: outer ones first.
pub fn plan(
    store_root: &Path,
    entry: &Entry,
    root: &OwnedFd,
    merged: &Path,
    image_volumes: &[String],
    owners: Option<(Owner, Owner)>,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<Mount>, Report> {
    let requests = requests(entry, image_volumes);
    let mut mounts = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let mut mount = one(store_root, entry, root, merged, number, request)?;
        let is_bind = matches!(request.source, MountSource::Bind { .. });
        if let Some(owners) = owners.filter(|_| is_bind && !request.read_only) {
            exchange(entry, number, owners, &mut mount, tell);
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// What a person and the image ask for, outer mounts first.
fn requests(entry: &Entry, image_volumes: &[String]) -> Vec<MountRequest> {
    let mut requests = entry.record.request.mounts.clone();
    for destination in image_volumes {
        let destination = PathBuf::from("/").join(destination);
        // A person's mount wins over the image's volume at the same place.
        if !requests.iter().any(|request| request.destination == destination) && destination != Path::new("/") {
            requests.push(MountRequest { source: MountSource::Volume { name: None }, destination, read_only: false });
        }
    }
    requests.sort_by_key(|request| request.destination.components().count());
    requests
}

/// Mounts what a container at rest has when it runs, for a look inside: volumes and directories of the host. A source that is gone is passed
/// over, and so is what lived in memory. In a mount namespace of this process's own.
pub fn at_rest(
    store_root: &Path,
    entry: &Entry,
    root: &OwnedFd,
    merged: &Path,
    image_volumes: &[String],
) -> Result<(), Report> {
    for (number, request) in requests(entry, image_volumes).iter().enumerate() {
        match &request.source {
            MountSource::Tmpfs { .. } => continue,
            MountSource::Bind { path, .. } if !path.exists() => continue,
            _ => {}
        }
        let mount = one(store_root, entry, root, merged, number, request)?;
        // Resolved a moment ago, and nobody is in there.
        let target = merged.join(mount.destination.strip_prefix("/").unwrap_or(&mount.destination));
        crate::sys::mount::bind(&mount.source, &target, request.read_only).map_err(|error| {
            Report::new(format!("cannot mount `{}` for a look inside", mount.source.display())).with_cause(error)
        })?;
    }
    Ok(())
}

/// Makes a working directory that lies in what is mounted, where the container could make it itself: in docker it is made after the mounts, too.
pub fn make_workdir(cwd: &Path, mounts: &[Mount]) -> Result<(), Report> {
    let above = mounts.iter().filter(|mount| cwd.starts_with(&mount.destination));
    let Some(mount) = above.max_by_key(|mount| mount.destination.components().count()) else { return Ok(()) };
    let inside = cwd.strip_prefix(&mount.destination).unwrap_or(cwd);
    let writable = mount.kind == "bind" && !mount.options.iter().any(|option| option == "ro");
    if writable && !inside.as_os_str().is_empty() && mount.source.is_dir() {
        rootfs::create_dir_in_root(&rootfs::open_root(&mount.source)?, inside)?;
    }
    Ok(())
}

/// Binds a clone of the source in which the person behind sudo and the container's user are exchanged, so that what a notebook writes is the
/// person's. A file system that cannot do that (NFS, FUSE) gets a plain bind, and a word.
fn exchange(
    entry: &Entry,
    number: usize,
    (outside, inside): (Owner, Owner),
    mount: &mut Mount,
    tell: &mut dyn FnMut(Progress),
) {
    let point = entry.run_dir.join("binds").join(number.to_string());
    let clone = || -> std::io::Result<()> {
        let clone = idmap::exchanged_clone(&mount.source, outside, inside)?;
        if mount.source.is_dir() {
            fs::create_dir_all(&point)?;
        } else {
            fs::create_dir_all(point.parent().unwrap_or(&point))?;
            fs::write(&point, "")?;
        }
        // In the supervisor's own mount namespace: it goes with it.
        let place = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&point)?;
        crate::sys::mount::attach(clone.as_fd(), place.as_fd())
    };
    match clone() {
        Ok(()) => mount.source = point,
        Err(error) => {
            tracing::debug!("no exchanged owners for {}: {error}", mount.source.display());
            tell(Progress::Notice(format!(
                "files written to `{}` will belong to the container's user (uid {}): its file system cannot map owners",
                mount.source.display(),
                inside.uid
            )));
        }
    }
}

fn one(
    store_root: &Path,
    entry: &Entry,
    root: &OwnedFd,
    merged: &Path,
    number: usize,
    request: &MountRequest,
) -> Result<Mount, Report> {
    let mode = if request.read_only { "ro" } else { "rw" };
    match &request.source {
        MountSource::Bind { path, recursive, propagation } => {
            let source = fs::canonicalize(path)
                .map_err(|error| Report::new(format!("cannot mount `{}`", path.display())).with_cause(error))?;
            let kind = if source.is_dir() { MountpointKind::Directory } else { MountpointKind::File };
            let destination = rootfs::make_mountpoint_in_root(root, &request.destination, kind)?;
            let mut options = vec![if *recursive { "rbind" } else { "bind" }.to_owned(), mode.to_owned()];
            options.push(propagation.clone().unwrap_or_else(|| "rprivate".into()));
            Ok(Mount { destination, kind: "bind".into(), source, options })
        }
        MountSource::Volume { name } => {
            let source = match name {
                Some(name) => store_root.join("volumes").join(name),
                None => entry.dir.join("volumes").join(number.to_string()),
            };
            let destination = rootfs::make_mountpoint_in_root(root, &request.destination, MountpointKind::Directory)?;
            fill_volume(&source, merged, &destination)?;
            let options = vec!["rbind".to_owned(), mode.to_owned(), "rprivate".to_owned()];
            Ok(Mount { destination, kind: "bind".into(), source, options })
        }
        MountSource::Tmpfs { size, mode: bits, options: more } => {
            let destination = rootfs::make_mountpoint_in_root(root, &request.destination, MountpointKind::Directory)?;
            let mut options: Vec<String> = Vec::new();
            // docker's defaults, unless the opposite was asked for
            for (default, opposite) in [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")] {
                if !more.iter().any(|option| option == opposite) {
                    options.push(default.to_owned());
                }
            }
            options.extend(
                more.iter()
                    .filter(|option| !["suid", "dev", "exec", "nosuid", "nodev", "noexec"].contains(&option.as_str()))
                    .cloned(),
            );
            options.extend(size.map(|size| format!("size={size}")));
            options.push(format!("mode={:o}", bits.unwrap_or(0o1777)));
            if request.read_only {
                options.push("ro".into());
            }
            Ok(Mount { destination, kind: "tmpfs".into(), source: "tmpfs".into(), options })
        }
    }
}

/// A new volume begins as a copy of what the image has at its place (docker's rule). The copy is made beside it and renamed, so that a
/// volume is whole or not there.
fn fill_volume(volume: &Path, merged: &Path, destination: &Path) -> Result<(), Report> {
    let failed =
        |error: std::io::Error| Report::new(format!("cannot make the volume `{}`", volume.display())).with_cause(error);
    if volume.try_exists().map_err(failed)? {
        return Ok(());
    }
    let parent = volume.parent().unwrap_or(volume);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    let name = volume.file_name().unwrap_or_default().to_string_lossy();
    let temp = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let _ = fs::remove_dir_all(&temp);
    fs::create_dir(&temp).map_err(failed)?;
    // The place was resolved in the container's root: a plain path without links.
    let image_side = merged.join(destination.strip_prefix("/").unwrap_or(destination));
    rootfs::copy_tree(&image_side, &temp).map_err(failed)?;
    match fs::rename(&temp, volume) {
        Ok(()) => Ok(()),
        // Another container made it meanwhile: that one counts.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {
            let _ = fs::remove_dir_all(&temp);
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}
