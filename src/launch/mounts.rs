//! `-v`, `--mount`, `--tmpfs` and an image's VOLUMEs: from requests to mounts, with the places to mount on made in the container's root.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::record::Entry;
use crate::report::Report;
use crate::request::{MountRequest, MountSource};
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

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
) -> Result<Vec<Mount>, Report> {
    let mut requests = entry.record.request.mounts.clone();
    for destination in image_volumes {
        let destination = PathBuf::from("/").join(destination);
        // A person's mount wins over the image's volume at the same place.
        if !requests.iter().any(|request| request.destination == destination) && destination != Path::new("/") {
            requests.push(MountRequest { source: MountSource::Volume { name: None }, destination, read_only: false });
        }
    }
    requests.sort_by_key(|request| request.destination.components().count());
    requests.iter().enumerate().map(|(number, request)| one(store_root, entry, root, merged, number, request)).collect()
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
    if volume.exists() {
        return Ok(());
    }
    let failed =
        |error: std::io::Error| Report::new(format!("cannot make the volume `{}`", volume.display())).with_cause(error);
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
        Err(_) if volume.exists() => {
            let _ = fs::remove_dir_all(&temp);
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}
