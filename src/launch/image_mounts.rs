//! `--mount type=image`: the files of another image in a container.
//!
//! The image is mounted like that of a container, and shared with all of them. A read-only mount is a bind mount of it.
//! A writable one is an overlay, whose upper directory is emptied at each start.
//!
//! ```text
//! /run/gpurun/ID/images/N                       the mount, in the supervisor's own mount namespace
//! /var/lib/gpurun/containers/ID/images/N/upper  what the container has written, until its next start
//! ```

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::context::Launch;
use super::shared::open_path;
use crate::record::Entry;
use crate::report::Report;
use crate::rootfs::{self, images::Lower};
use crate::store::Store;

/// Mounts the images, in the host's mount namespace and in the order of the request.
pub(super) fn lowers(launch: Launch<'_>, store: &Store, images: &Path) -> Result<Vec<Lower>, Report> {
    let mounted = launch.request().mounted_images();
    mounted.map(|(_, id)| Ok(rootfs::stored::lower(images, store, &store.image_of(id)?)?)).collect()
}

/// Where the image of a mount is, in this process's mount namespace.
pub(super) fn point(entry: &Entry, destination: &Path) -> PathBuf {
    let number = entry.record.request.mounted_images().position(|(mount, _)| mount.destination == destination);
    entry.run_dir.join("images").join(number.unwrap_or_default().to_string())
}

/// Makes the mounts, in the private mount namespace.
pub(super) fn attach(entry: &Entry, lowers: &[Lower]) -> Result<(), Report> {
    let mounted = entry.record.request.mounted_images();
    for (number, ((mount, _), lower)) in mounted.zip(lowers).enumerate() {
        let point = point(entry, &mount.destination);
        let failed = |error: std::io::Error| {
            Report::new(format!("cannot mount an image on `{}`", mount.destination.display())).with_cause(error)
        };
        fs::create_dir_all(&point).map_err(failed)?;
        if mount.read_only {
            let copied = crate::sys::mount::clone(&lower.dir, false).map_err(failed)?;
            crate::sys::mount::attach(copied.as_fd(), open_path(&point).map_err(failed)?.as_fd()).map_err(failed)?;
            continue;
        }
        let dir = entry.dir.join("images").join(number.to_string());
        if dir.exists() {
            crate::sys::tree::remove(&dir).map_err(failed)?;
        }
        fs::create_dir_all(&dir).map_err(failed)?;
        rootfs::overlay(&rootfs::Overlay {
            lower: &lower.dir,
            above: None,
            upper: &dir.join("upper"),
            work: &dir.join("work"),
            merged: &point,
            volatile: true,
        })?;
    }
    Ok(())
}
