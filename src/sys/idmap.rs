//! Idmapped mounts (Linux 5.12): a directory whose files seem to belong to somebody else.
//!
//! The use: `-v .:/work` by a person under sudo. The files belong to that person, the container runs as root or as the image's user; with
//! the two exchanged in the mount, each sees files of its own on its side, and what the container writes belongs to the person.
//! File systems have to take part (ext4, xfs, btrfs, tmpfs since 6.3; not NFS): the kernel says EINVAL where one does not.

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

/// linux/mount.h
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A bind mount of `source` (with what is mounted below it) that stands nowhere yet, in which the owners `outside` and `inside` are
/// exchanged: files of `outside` appear as files of `inside`, and files made by `inside` belong to `outside`.
pub fn exchanged_clone(source: &Path, outside: Owner, inside: Owner) -> io::Result<OwnedFd> {
    let tree = open_tree(source)?;
    if outside == inside {
        return Ok(tree);
    }
    let namespace = user_namespace(&exchange(outside.uid, inside.uid), &exchange(outside.gid, inside.gid))?;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
    };
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | AT_RECURSIVE;
    // SAFETY: the path is the empty string, as AT_EMPTY_PATH asks for; `attr` has the layout and size of struct mount_attr and
    // outlives the call; both descriptors are open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

fn open_tree(source: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(source.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | AT_RECURSIVE;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call just made `fd`, close-on-exec; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The lines of a uid_map or gid_map that exchange two ids and keep all others.
fn exchange(one: u32, other: u32) -> String {
    let (low, high) = (one.min(other), one.max(other));
    let mut map = String::new();
    let mut line = |inside: u32, outside: u32, count: u32| {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(map, "{inside} {outside} {count}");
        }
    };
    line(0, 0, low);
    if low == high {
        line(low, low, 1);
    } else {
        line(low, high, 1);
        line(low + 1, low + 1, high - low - 1);
        line(high, low, 1);
    }
    // The last id, -1, is none.
    line(high.saturating_add(1), high.saturating_add(1), u32::MAX - high.saturating_add(1));
    map
}

/// A user namespace with these maps and nobody in it: held by its descriptor alone.
fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<File> {
    let (ready_read, ready_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (end_read, end_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the child only makes async-signal-safe system calls (unshare, write, close, read, _exit) and no allocation, so it does
    // not matter what locks other threads of the parent hold.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let errno = nix::sched::unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |errno| errno as i32);
            let _ = nix::unistd::write(&ready_write, &errno.to_ne_bytes());
            drop(end_write);
            // Until the parent has opened the namespace, or is gone.
            let _ = nix::unistd::read(&end_read, &mut [0]);
            // SAFETY: ends this process without running anything of the parent's.
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
        // One write: the kernel takes a map once.
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
    fn maps_cover_every_id_once() {
        assert_eq!(exchange(1000, 0), "0 1000 1\n1 1 999\n1000 0 1\n1001 1001 4294966294\n");
        assert_eq!(exchange(5, 6), "0 0 5\n5 6 1\n6 5 1\n7 7 4294967288\n");
        assert_eq!(exchange(7, 7), "0 0 7\n7 7 1\n8 8 4294967287\n");
        for (one, other) in [(0, 0), (0, 1), (0, u32::MAX - 1), (1000, 2000), (u32::MAX - 2, u32::MAX - 1)] {
            let sum: u64 =
                exchange(one, other).lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
            assert_eq!(sum, u64::from(u32::MAX), "{one} {other}");
        }
    }

    #[test]
    fn two_owners_change_places_and_all_others_stay() {
        if !root_or_skip("idmapped mounts") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let [source, target] = ["source", "target"].map(|name| base.path().join(name));
            std::fs::create_dir(&source).unwrap();
            std::fs::create_dir(&target).unwrap();
            for (name, uid) in [("person", 1234), ("root", 0), ("other", 77)] {
                std::fs::write(source.join(name), name).unwrap();
                chown(source.join(name), Some(uid), Some(uid + 1)).unwrap();
            }
            let (person, root) = (Owner { uid: 1234, gid: 1235 }, Owner { uid: 0, gid: 1 });
            let clone = match exchanged_clone(&source, person, root) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    eprintln!("skipped: no idmapped mounts on this file system");
                    return;
                }
                other => other.unwrap(),
            };
            mount::attach(clone.as_fd(), File::open(&target).unwrap().as_fd()).unwrap();
            drop(clone);
            let owner = |path: &Path| path.metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
            assert_eq!(owner(&target.join("person")), (0, 1));
            assert_eq!(owner(&target.join("root")), (1234, 1235));
            assert_eq!(owner(&target.join("other")), (77, 78));
            std::fs::write(target.join("made"), "by root").unwrap();
            chown(target.join("made"), Some(0), Some(1)).unwrap();
            assert_eq!(owner(&source.join("made")), (1234, 1235), "what the container writes belongs to the person");
            unmount(&target);
        });
    }
}
