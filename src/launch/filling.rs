//! Fills a new volume with a copy of the image's directory at its destination, as docker does.
//!
//! The copy is made beside the volume and then renamed, so that a volume is either complete or absent. The volume's lock
//! ([`volume::lock`](crate::volume::lock)) covers the check, the copy and the rename: a volume that a container may have
//! mounted is never replaced.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::report::Report;
use crate::rootfs;
use crate::volume;

/// Creates the volume unless it exists. `image_side` is the image's directory, which is read by descriptor, so no link
/// can lead out of the container's root.
pub(super) fn fill_volume(volume: &Path, image_side: Option<&OwnedFd>) -> Result<(), Report> {
    let failed =
        |error: io::Error| Report::new(format!("cannot create the volume `{}`", volume.display())).with_cause(error);
    if is_used(volume).map_err(failed)? {
        return Ok(());
    }
    fill(volume, image_side).map_err(failed)
}

/// Whether the volume exists and is complete. `gpurun volume create` makes an empty volume with a mark, which its first
/// use fills.
fn is_used(volume: &Path) -> io::Result<bool> {
    Ok(volume.try_exists()? && !volume::new_mark(volume).try_exists()?)
}

fn fill(volume: &Path, image_side: Option<&OwnedFd>) -> io::Result<()> {
    let parent = volume.parent().unwrap_or(volume);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let _lock = volume::lock(volume)?;
    // Another container may have filled it before the lock was free.
    if is_used(volume)? {
        return Ok(());
    }
    let mark = volume::new_mark(volume);
    let is_new = mark.try_exists()?;
    // The copy program of a killed launch may still write to the directory of that launch.
    let temp = volume::copy_path(volume);
    let _ = crate::sys::tree::remove(&temp);
    fs::create_dir(&temp)?;
    if let Some(image_side) = image_side {
        // The path uses this process's pid because /proc/self in cp(1) is cp itself.
        let path = format!("/proc/{}/fd/{}/.", std::process::id(), image_side.as_raw_fd());
        rootfs::copy_tree(Path::new(&path), &temp)?;
    }
    // Only a marked volume is replaced, while it is empty.
    let flags = if is_new { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    super::progress::step("filled");
    match renameat2(AT_FDCWD, &temp, AT_FDCWD, volume, flags) {
        Ok(()) => {}
        // The directory was created by a process without the lock, or has files. It is used as it is.
        Err(nix::Error::EEXIST | nix::Error::ENOTEMPTY) => crate::sys::tree::remove(&temp)?,
        Err(errno) => return Err(errno.into()),
    }
    forget(&mark)
}

/// Removes the mark of an unused volume, if there is one.
fn forget(mark: &Path) -> io::Result<()> {
    match fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_volume_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::create_dir(&image).unwrap();
        fs::write(image.join("file"), "of the image").unwrap();
        let image = rootfs::open_root(&image).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        for (name, exists, marked, filled) in
            [("absent", false, false, true), ("used", true, false, false), ("new", true, true, true)]
        {
            let volume = dir.path().join(name);
            let before = exists.then(|| {
                fs::create_dir(&volume).unwrap();
                inode(&volume)
            });
            if marked {
                fs::write(volume::new_mark(&volume), "").unwrap();
            }
            fill_volume(&volume, Some(&image)).unwrap();
            assert_eq!(volume.join("file").exists(), filled, "{name}");
            assert_eq!(before == Some(inode(&volume)), !filled, "{name}");
            // The second use leaves it as it is.
            let first = inode(&volume);
            fs::write(volume.join("more"), "").unwrap();
            fill_volume(&volume, Some(&image)).unwrap();
            assert!(inode(&volume) == first && volume.join("more").exists(), "{name}");
            assert!(!volume::new_mark(&volume).exists(), "{name}");
        }
        // A process without the lock creates the directory while the lock is awaited.
        let late = dir.path().join("late");
        let held = volume::lock(&late).unwrap();
        std::thread::scope(|scope| {
            let filler = scope.spawn(|| fill_volume(&late, Some(&image)));
            fs::create_dir(&late).unwrap();
            drop(held);
            filler.join().unwrap().unwrap();
        });
        assert!(!late.join("file").exists());
    }
}
