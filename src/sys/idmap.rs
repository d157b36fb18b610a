//! Idmapped mounts (Linux 5.12): bind mounts in which the owners of files are translated.
//!
//! Consider a notebook that writes to a directory of the host (`-v .:/work`). The files there belong to a user of the
//! host, and the container runs as root or as the image's user. If the mount exchanges these two users, each side sees
//! its own user as the owner, and the files that the container writes belong to the host's user. The host's root (uid 0
//! and gid 0) is not mapped in such a mount, so that no process of the container can create a file that root owns, or
//! write to one.
//!
//! The file system must support idmapped mounts (ext4, xfs, btrfs, tmpfs since 6.3; not NFS). Otherwise the kernel
//! returns EINVAL.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
pub(super) struct MountAttr {
    pub attr_set: u64,
    pub attr_clr: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Returns a detached bind mount of `source` (with the mounts below it) that exchanges the owners `outside` and
/// `inside`: files of `outside` appear as files of `inside`, and files that `inside` creates belong to `outside`. The
/// host's ids 0 are not mapped, so `outside` must not contain them.
pub(crate) fn exchanged_clone(source: &Path, outside: Owner, inside: Owner) -> io::Result<OwnedFd> {
    if outside.uid == 0 || outside.gid == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot map the host's root user"));
    }
    let tree = open_tree(source, true)?;
    let namespace = user_namespace(&exchange(outside.uid, inside.uid), &exchange(outside.gid, inside.gid))?;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
    };
    set_attr(&tree, &attr, true)?;
    Ok(tree)
}

/// Calls mount_setattr(2) on a mount, and on everything below it if `recursive`.
pub(super) fn set_attr(tree: &OwnedFd, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is the empty string, as AT_EMPTY_PATH requires. `attr` has the layout and size of struct
    // mount_attr and outlives the call. Both descriptors are open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Clones the mount of `source`, and the mounts below it if `recursive`.
pub(super) fn open_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(source.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the system call has just created `fd` with close-on-exec, and no other code knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the lines of a uid_map or gid_map (`ID-ON-DISK ID-IN-THE-MOUNT COUNT`) that exchange two ids and keep all
/// others, except for the host's 0, which is omitted. If the container's id is 0, the number of the host's id has no
/// counterpart and is not mapped inside either.
fn exchange(outside: u32, inside: u32) -> String {
    let mut map = String::new();
    let mut line = |on_disk: u32, in_mount: u32, count: u32| {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(map, "{on_disk} {in_mount} {count}");
        }
    };
    let (low, high) = (outside.min(inside), outside.max(inside));
    // These ids stay unchanged: 1 to low - 1, low + 1 to high - 1, and all above high. The last number, -1, is not an
    // id.
    line(1, 1, low.saturating_sub(1));
    line(outside, inside, 1);
    if low != high {
        if inside != 0 {
            line(inside, outside, 1);
        }
        line(low + 1, low + 1, high - low - 1);
    }
    line(high.saturating_add(1), high.saturating_add(1), u32::MAX - high.saturating_add(1));
    map
}

/// Creates a user namespace with these maps and without processes. Only its descriptor keeps it alive.
fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<File> {
    let (ready_read, ready_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (end_read, end_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the child only makes async-signal-safe system calls (unshare, write, close, read, _exit) and does not
    // allocate, so locks that other threads of the parent hold do not matter.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let errno = nix::sched::unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |errno| errno as i32);
            let _ = nix::unistd::write(&ready_write, &errno.to_ne_bytes());
            drop(end_write);
            // Wait until the parent has opened the namespace or has ended.
            let _ = nix::unistd::read(&end_read, &mut [0]);
            // SAFETY: this ends the process without running any of the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((ready_write, end_read));
            let opened = open_namespace(child, ready_read, uid_map, gid_map);
            drop(end_write);
            waitpid(child, None)?;
            opened
        }
    }
}

fn open_namespace(child: Pid, ready: OwnedFd, uid_map: &str, gid_map: &str) -> io::Result<File> {
    let mut errno = [0; 4];
    File::from(ready).read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        // The map must be one write, because the kernel accepts it only once.
        File::options().write(true).open(format!("/proc/{child}/{file}"))?.write_all(map.as_bytes())?;
    }
    File::open(format!("/proc/{child}/ns/user"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip, unmount};
    use crate::sys::mount;

    #[test]
    fn every_id_but_the_hosts_root_is_mapped_once() {
        assert_eq!(exchange(1000, 0), "1000 0 1\n1 1 999\n1001 1001 4294966294\n");
        assert_eq!(exchange(5, 6), "1 1 4\n5 6 1\n6 5 1\n7 7 4294967288\n");
        assert_eq!(exchange(7, 7), "1 1 6\n7 7 1\n8 8 4294967287\n");
        for (outside, inside) in [(1, 0), (u32::MAX - 1, 0), (1000, 2000), (2000, 1000), (1, 1), (9, 9), (1, 2), (2, 1)]
        {
            let map = exchange(outside, inside);
            let rows: Vec<[u64; 3]> = map
                .lines()
                .map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect::<Vec<u64>>().try_into().unwrap())
                .collect();
            let total: u64 = rows.iter().map(|row| row[2]).sum();
            // All ids except the host's 0 (-1 is not an id).
            assert_eq!(total, u64::from(u32::MAX) - 1, "{map}");
            for side in [0, 1] {
                let mut ranges: Vec<(u64, u64)> = rows.iter().map(|row| (row[side], row[side] + row[2])).collect();
                ranges.sort_unstable();
                assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{map}");
                assert!(side == 1 || ranges[0].0 > 0, "the host's root is mapped: {map}");
            }
        }
        assert!(exchanged_clone(Path::new("/"), Owner { uid: 0, gid: 5 }, Owner { uid: 1, gid: 1 }).is_err());
        assert!(exchanged_clone(Path::new("/"), Owner { uid: 5, gid: 0 }, Owner { uid: 1, gid: 1 }).is_err());
    }

    /// Mounts a directory that contains one file of each owner, and calls `body` with the source and the mount.
    fn with_exchange(outside: Owner, inside: Owner, body: impl FnOnce(&Path, &Path) + Send + 'static) {
        if !root_or_skip("idmapped mounts") {
            return;
        }
        in_own_mounts(move || {
            let base = tempfile::tempdir().unwrap();
            let [source, target] = ["source", "target"].map(|name| base.path().join(name));
            std::fs::create_dir(&source).unwrap();
            chown(&source, Some(outside.uid), Some(outside.gid)).unwrap();
            std::fs::create_dir(&target).unwrap();
            for (name, uid, gid) in [("caller", outside.uid, outside.gid), ("root", 0, 0), ("other", 77, 78)] {
                std::fs::write(source.join(name), name).unwrap();
                chown(source.join(name), Some(uid), Some(gid)).unwrap();
            }
            let clone = match exchanged_clone(&source, outside, inside) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    eprintln!("skipped: no idmapped mounts on this file system");
                    return;
                }
                other => other.unwrap(),
            };
            mount::attach(clone.as_fd(), File::open(&target).unwrap().as_fd()).unwrap();
            drop(clone);
            body(&source, &target);
            unmount(&target);
        });
    }

    fn owner(path: &Path) -> (u32, u32) {
        path.metadata().map(|meta| (meta.uid(), meta.gid())).unwrap()
    }

    #[test]
    fn two_owners_change_places_and_all_others_stay() {
        with_exchange(Owner { uid: 1234, gid: 1235 }, Owner { uid: 0, gid: 1 }, |source, target| {
            assert_eq!(owner(&target.join("caller")), (0, 1));
            assert_eq!(owner(&target.join("other")), (77, 78));
            std::fs::write(target.join("caller"), "by root").unwrap();
            chown(target.join("other"), Some(0), Some(1)).unwrap();
            assert_eq!(owner(&source.join("other")), (1234, 1235), "what the container owns belongs to the caller");
        });
    }

    #[test]
    fn no_id_reaches_the_hosts_root() {
        for inside in [Owner { uid: 0, gid: 0 }, Owner { uid: 1000, gid: 100 }, Owner { uid: 1234, gid: 1235 }] {
            with_exchange(Owner { uid: 1234, gid: 1235 }, inside, move |source, target| {
                assert_ne!(owner(&target.join("root")).0, 0, "root's file shows as nobody's");
                assert!(std::fs::write(target.join("root"), "x").is_err(), "and cannot be written");
                let file = target.join("caller");
                for id in [0, 1, 77, 100, 1000, 1234, 1235, 65534] {
                    let (uid, gid) = (chown(&file, Some(id), None), chown(&file, None, Some(id)));
                    let (host_uid, host_gid) = owner(&source.join("caller"));
                    assert!(host_uid != 0 && host_gid != 0, "{inside:?}: id {id} is the host's root: {uid:?} {gid:?}");
                }
            });
        }
    }
}
