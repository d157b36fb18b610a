//! The nodes and links in the container's `/dev`, which is a tmpfs of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat, umask};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use serde_json::Value;

use crate::rootfs::{self, MountpointKind};
use crate::sys::mount;

const DEV: &str = "/dev";

/// The devices that each container has (config-linux.md of the runtime spec).
const DEFAULT: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("urandom", 1, 9), ("random", 1, 8)];

/// Its links.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Whether the devices of a spec are known here.
pub(super) fn can(spec: &Value) -> bool {
    let mut devices = spec["linux"]["devices"].as_array().into_iter().flatten();
    devices.all(|device| {
        let path = device["path"].as_str().unwrap_or_default();
        Path::new(path).starts_with(DEV) && !path.split('/').any(|name| name == "..") && kind(device).is_some()
    })
}

fn kind(device: &Value) -> Option<SFlag> {
    match device["type"].as_str()? {
        "c" | "u" => Some(SFlag::S_IFCHR),
        "b" => Some(SFlag::S_IFBLK),
        _ => None,
    }
}

/// Makes the nodes and links in the root directory of a container.
pub(super) fn make(spec: &Value, root: &OwnedFd) -> io::Result<()> {
    let before = umask(Mode::empty());
    let made = make_all(spec, root);
    umask(before);
    made
}

fn make_all(spec: &Value, root: &OwnedFd) -> io::Result<()> {
    let open = |path: &Path| match rootfs::resolve_in_root(root, path) {
        Ok(Some(dir)) => Ok(dir),
        Ok(None) => Err(io::Error::from(io::ErrorKind::NotFound)),
        Err(error) => Err(io::Error::other(error)),
    };
    let dev = open(Path::new(DEV))?;
    let devices: Vec<&Value> = spec["linux"]["devices"].as_array().into_iter().flatten().collect();
    for device in &devices {
        let path = Path::new(device["path"].as_str().unwrap_or_default());
        let (Some(parent), Some(name), Some(kind)) = (path.parent(), path.file_name(), kind(device)) else {
            return Err(Errno::EINVAL.into());
        };
        let number = |key: &str| device[key].as_u64();
        let deeper = if parent == Path::new(DEV) {
            None
        } else {
            rootfs::create_dir_in_root(root, parent).map_err(io::Error::other)?;
            Some(open(parent)?)
        };
        let dir = deeper.as_ref().unwrap_or(&dev);
        let mode = number("fileMode").and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o666);
        let rdev = makedev(number("major").unwrap_or(0), number("minor").unwrap_or(0));
        mknodat(dir, name, kind, Mode::from_bits_truncate(mode), rdev)?;
        let id = |key: &str| number(key).and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let (uid, gid) = (id("uid"), id("gid"));
        if (uid, gid) != (0, 0) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
    }
    for (name, major, minor) in DEFAULT {
        if !devices.iter().any(|device| device["path"].as_str() == Some(&format!("{DEV}/{name}"))) {
            mknodat(&dev, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        }
    }
    let kcore = Path::new("/proc/kcore").exists().then_some(("kcore", "/proc/kcore"));
    for (name, target) in LINKS.into_iter().chain(kcore) {
        symlinkat(target, &dev, name)?;
    }
    Ok(())
}

/// Mounts the container's terminal at `/dev/console`. The calling process is in the container's root.
pub(super) fn console(terminal: &OwnedFd) -> io::Result<()> {
    let root = rootfs::open_root(Path::new("/")).map_err(io::Error::other)?;
    let console = Path::new("/dev/console");
    rootfs::make_mountpoint_in_root(&root, console, MountpointKind::File).map_err(io::Error::other)?;
    let target = rootfs::resolve_in_root(&root, console).map_err(io::Error::other)?;
    let target = target.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
    let tree = mount::clone(&mount::fd_path(terminal), false)?;
    mount::attach(tree.as_fd(), target.as_fd())
}
