//! Checks what another user may do with a file. The kernel decides, so that ACLs, idmapped mounts and read-only file
//! systems count.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether the user may create files in the open directory, or write to the open file. An O_PATH descriptor is enough.
///
/// Only the credentials of this thread change, and only during the call. Root (uid 0) keeps the capabilities of this
/// process.
pub(crate) fn may_write(place: impl AsFd, uid: u32, gid: u32, groups: &[u32]) -> io::Result<bool> {
    let stat = nix::sys::stat::fstat(&place)?;
    let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let mode = if directory { libc::W_OK | libc::X_OK } else { libc::W_OK };
    let own: Vec<u32> = nix::unistd::getgroups()?.into_iter().map(nix::unistd::Gid::as_raw).collect();
    set_groups(groups)?;
    let (old_uid, old_gid) = set_fs_ids(uid, gid);
    // SAFETY: the path is the empty NUL-terminated string, as AT_EMPTY_PATH requires, and the descriptor is open.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            place.as_fd().as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EACCESS | libc::AT_EMPTY_PATH,
        )
    };
    let error = io::Error::last_os_error();
    set_fs_ids(old_uid, old_gid);
    set_groups(&own)?;
    match error.raw_os_error() {
        _ if answer == 0 => Ok(true),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => Ok(false),
        _ => Err(error),
    }
}

/// Sets the supplementary groups with the raw system call. The C library's function would change the groups of every
/// thread.
fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count describe `groups`, which outlives the call.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the ids of this thread for file access. Returns the old ones.
fn set_fs_ids(uid: u32, gid: u32) -> (u32, u32) {
    // The group comes first, because it can be changed only while the uid is still root's.
    if uid == 0 {
        let old = nix::unistd::setfsuid(0.into());
        return (old.as_raw(), nix::unistd::setfsgid(gid.into()).as_raw());
    }
    let old = nix::unistd::setfsgid(gid.into());
    (nix::unistd::setfsuid(uid.into()).as_raw(), old.as_raw())
}

/// Whether the kernel has faccessat2(2): Linux 5.8, and no seccomp filter that does not know the call.
#[must_use]
pub(crate) fn has_faccessat2() -> bool {
    // SAFETY: the path is NUL-terminated, and the kernel only reads it.
    let done = unsafe {
        libc::syscall(libc::SYS_faccessat2, libc::AT_FDCWD, c"/".as_ptr(), libc::F_OK, libc::AT_SYMLINK_NOFOLLOW)
    };
    done == 0
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;
    use crate::rootfs::testing::root_or_skip;

    #[test]
    fn the_kernel_decides_write_access() {
        if !root_or_skip("acting as another user") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        // The parent directory may be accessible to root only: the descriptor is enough.
        set_permissions(base.path(), Permissions::from_mode(0o700)).unwrap();
        let dir = base.path().join("dir");
        std::fs::create_dir(&dir).unwrap();
        chown(&dir, Some(1234), Some(1235)).unwrap();
        let open = || File::open(&dir).unwrap();
        let cases = [
            (0o755, 1234, 1, vec![], true),
            (0o755, 77, 78, vec![1235], false),
            (0o775, 77, 78, vec![1235], true),
            (0o775, 77, 1235, vec![], true),
            (0o777, 77, 78, vec![], true),
            (0o555, 1234, 1235, vec![], false),
            (0o555, 0, 0, vec![], true),
        ];
        for (mode, uid, gid, groups, expected) in cases {
            set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            assert_eq!(may_write(open(), uid, gid, &groups).unwrap(), expected, "{mode:o} {uid}:{gid} {groups:?}");
        }
        assert!(!may_write(File::open("/proc").unwrap(), 77, 78, &[]).unwrap());
        assert!(std::fs::write(dir.join("own"), "").is_ok(), "this thread is root again");
    }
}
