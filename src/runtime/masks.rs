//! The masked and read-only paths of a container, which its first process mounts in its final root directory (`late`).
//!
//! A file is masked with the null device, a directory with an empty read-only tmpfs. Most of these paths are entries of
//! `/proc`: they are mounted relative to its directory, without a look at each of them first.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use serde_json::Value;

use super::failure::{Failure, Step, failed, failed_nix};
use crate::rootfs;
use crate::sys::mount::{self, Attr, FsContext};

/// Applies the paths of a spec. `root` is the root directory of the calling process.
pub(super) fn apply(spec: &Value, root: &OwnedFd) -> Step {
    for path in paths(spec, "readonlyPaths") {
        read_only(Path::new(path)).map_err(failed_nix(&format!("make `{path}` read-only")))?;
    }
    let mut masks = Masks::default();
    let proc = Path::new("/proc");
    let mut entries = None;
    for path in paths(spec, "maskedPaths") {
        let step = format!("mask `{path}`");
        let failed = failed(&step);
        let name = Path::new(path).strip_prefix(proc).ok().filter(|name| name.components().count() == 1);
        match name.and_then(Path::to_str) {
            Some(name) => {
                if entries.is_none() {
                    entries = resolve(root, proc)?;
                }
                if let Some(entries) = &entries {
                    masks.entry(entries.as_fd(), name).map_err(failed)?;
                }
            }
            None => {
                if let Some(target) = resolve(root, Path::new(path))? {
                    masks.path(&target).map_err(failed)?;
                }
            }
        }
    }
    Ok(())
}

fn paths<'a>(spec: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    spec["linux"][key].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn resolve(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    let failed = |_| Failure::step(format!("find the masked path `{}`", path.display()), libc::EIO);
    rootfs::resolve_in_root(root, path).map_err(failed)
}

/// Mounts a path on itself. The attributes are those of libcontainer and runc.
fn read_only(path: &Path) -> nix::Result<()> {
    let none = None::<&Path>;
    match nix::mount::mount(Some(path), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none) {
        Err(Errno::ENOENT) => return Ok(()),
        mounted => mounted?,
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(Some(path), path, none, flags | again, none)
}

/// Hides paths.
#[derive(Default)]
struct Masks {
    /// A mount of the null device that the last path did not need, because it does not exist.
    unused: Option<OwnedFd>,
}

impl Masks {
    /// Masks an entry of a directory of the kernel, if it exists.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let name = CString::new(name)?;
        let file = self.unused.take().map_or_else(null, Ok)?;
        let error = match mount::attach_at(file.as_fd(), dir, &name) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        self.unused = Some(file);
        match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(()),
            // A file cannot be mounted on a directory.
            Some(libc::EINVAL | libc::ENOTDIR) => mount::attach_at(empty()?.as_fd(), dir, &name),
            _ => Err(error),
        }
    }

    /// Masks a file or directory.
    fn path(&mut self, target: &OwnedFd) -> io::Result<()> {
        let stat = nix::sys::stat::fstat(target)?;
        let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mask = if is_directory { empty()? } else { self.unused.take().map_or_else(null, Ok)? };
        mount::attach(mask.as_fd(), target.as_fd())
    }
}

/// Returns a mount of the container's null device.
fn null() -> io::Result<OwnedFd> {
    let null = mount::clone(Path::new("/dev/null"), false)?;
    if mount::is_null(null.as_fd()) { Ok(null) } else { Err(io::Error::other("`/dev/null` is another device")) }
}

/// Returns a mount of an empty directory.
fn empty() -> io::Result<OwnedFd> {
    let empty = FsContext::open(c"tmpfs")?;
    let made = empty.string(c"source", b"tmpfs").and_then(|()| empty.mount(Attr::RDONLY));
    made.map_err(|error| error.source_errno)
}
