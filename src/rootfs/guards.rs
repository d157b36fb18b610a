//! Checks the directories that libcontainer requires in a root.
//!
//! libcontainer 0.7.0 appends `/dev/...` to the path of the root as a string, before it pivots. If /dev in an image is
//! a link to a directory, it creates `fd`, `stdin` and `ptmx` in that directory ON THE HOST. A link at /proc or /sys is
//! an older attack of the same kind (CVE-2019-19921 and related ones). So these three must be real directories, and are
//! replaced with directories if they are not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::root::{RootError, open_root};
use crate::report::Explain;

/// The directories on which file systems are mounted from outside, before the pivot.
const GUARDED: [&str; 3] = ["dev", "proc", "sys"];

#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("cannot check that the image's `/{name}` is a directory")]
    Inspect { name: &'static str, source: io::Error },
    #[error("cannot replace the image's `/{name}`, which is not a directory")]
    Replace { name: &'static str, source: io::Error },
}

impl Explain for GuardError {}

/// Makes /dev, /proc and /sys of the merged root real directories. Missing ones are created, and anything else at these
/// paths is replaced in the upper directory. Returns the names that were replaced, for a notice.
pub(crate) fn check_guards(merged: &Path) -> Result<Vec<&'static str>, GuardError> {
    let root = open_root(merged)?;
    let mut replaced = Vec::new();
    for name in GUARDED {
        let inspect = |errno: Errno| GuardError::Inspect { name, source: errno.into() };
        match open_real_directory(root.as_fd(), name) {
            Ok(()) => {}
            Err(Errno::ENOENT) => make(root.as_fd(), name).map_err(inspect)?,
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let replace = |errno: Errno| GuardError::Replace { name, source: errno.into() };
                nix::unistd::unlinkat(root.as_fd(), name, UnlinkatFlags::NoRemoveDir).map_err(replace)?;
                make(root.as_fd(), name).map_err(replace)?;
                replaced.push(name);
            }
            Err(errno) => return Err(inspect(errno)),
        }
    }
    Ok(replaced)
}

fn open_real_directory(root: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
    nix::fcntl::openat2(root, name, how).map(drop)
}

fn make(root: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
    nix::sys::stat::mkdirat(root, name, Mode::from_bits_truncate(0o755))?;
    // The caller's umask must not affect a container.
    nix::sys::stat::fchmodat(
        root,
        name,
        Mode::from_bits_truncate(0o755),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )?;
    nix::unistd::fchownat(root, name, Some(0.into()), Some(0.into()), AtFlags::AT_SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_files_are_replaced_and_what_they_pointed_to_stays_untouched() {
        if !crate::rootfs::testing::root_or_skip("guards") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let outside = base.path().join("outside");
        let image = base.path().join("image");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&image).unwrap();
        symlink(&outside, image.join("dev")).unwrap();
        std::fs::write(image.join("proc"), "a file").unwrap();

        assert_eq!(check_guards(&image).unwrap(), ["dev", "proc"]);
        for name in GUARDED {
            assert!(image.join(name).symlink_metadata().unwrap().is_dir(), "{name}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(check_guards(&image).unwrap().is_empty(), "a second look finds nothing to do");
    }

    #[test]
    fn a_real_directory_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        if !crate::rootfs::testing::root_or_skip("guards") {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("dev")).unwrap();
        std::fs::set_permissions(image.path().join("dev"), std::fs::Permissions::from_mode(0o700)).unwrap();
        check_guards(image.path()).unwrap();
        assert_eq!(image.path().join("dev").metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
