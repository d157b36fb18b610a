//! Removes a directory tree of any depth and size, with a fixed number of descriptors and without recursion.
//!
//! A container can nest directories deeper than the maximum length of a path (`mkdir d; cd d`, again and again), and
//! deeper than the descriptors or the stack of this process allow. So the walk keeps only the descriptor of the current
//! directory. It goes down by name and up by `..`, and verifies that the parent is the directory that it came from.
//!
//! It never follows a symbolic link and never enters another mount: a mount in the tree is not part of it (`EBUSY`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// One directory on the path of the walk: its name in its parent, its identity, and the subdirectories that remain to
/// be removed.
struct Level {
    name: CString,
    identity: (u64, u64),
    todo: Vec<CString>,
}

/// Removes `path` with all its contents. It may be a directory, a file or a symbolic link (the link itself, not its
/// target).
///
/// # Errors
/// `NotFound` if `path` does not exist, and otherwise the kernel's error for the first entry that cannot be removed.
/// `EBUSY` means that something is mounted in the tree, or that the tree was moved during the walk.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) => match error.raw_os_error() {
            // Something is mounted on it, or it does not exist.
            Some(libc::EBUSY | libc::ENOENT) => return Err(error),
            // A file, or a link.
            Some(libc::ENOTDIR) => return std::fs::remove_file(path),
            _ => {}
        },
    }
    empty(Open::new(openat(AT_FDCWD, path, DIRECTORY, Mode::empty())?)?)?;
    std::fs::remove_dir(path)
}

/// An open directory, and a stream of its entries.
struct Open(Dir);

impl Open {
    fn new(dir: OwnedFd) -> io::Result<Self> {
        Ok(Self(Dir::from_fd(dir)?))
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fstat(self)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream keeps the descriptor open, and is borrowed for as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Removes all contents of an open directory.
fn empty(top: Open) -> io::Result<()> {
    let mut here = top;
    let mut above: Vec<Level> = Vec::new();
    let mut level = Level { name: CString::default(), identity: here.identity()?, todo: unlink_files(&mut here)? };
    loop {
        if let Some(name) = level.todo.pop() {
            // Most directories are empty.
            match unlinkat(&here, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                Err(Errno::EBUSY) => return Err(Errno::EBUSY.into()),
                Err(_) => {}
            }
            match enter(&here, &name) {
                Ok(below) => {
                    let mut below = Open::new(below)?;
                    let next = Level { name, identity: below.identity()?, todo: unlink_files(&mut below)? };
                    above.push(std::mem::replace(&mut level, next));
                    here = below;
                }
                Err(Errno::ENOENT) => {}
                Err(Errno::EXDEV) => return Err(Errno::EBUSY.into()),
                Err(errno) => return Err(errno.into()),
            }
            continue;
        }
        let Some(parent) = above.pop() else { return Ok(()) };
        let up = Open::new(openat(&here, c"..", DIRECTORY, Mode::empty())?)?;
        if up.identity()? != parent.identity {
            return Err(Errno::EBUSY.into());
        }
        match unlinkat(&up, level.name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        (here, level) = (up, parent);
    }
}

/// Opens a subdirectory on the same mount.
fn enter(dir: &Open, name: &CString) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(DIRECTORY).resolve(ResolveFlag::RESOLVE_NO_XDEV);
    match openat2(dir, name.as_c_str(), how) {
        // Kernels before 5.6, and sandboxes that do not know the call. rmdir(2) refuses a mount point anyway, but only
        // after its contents were removed. So another device is rejected here.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let below = openat(dir, name.as_c_str(), DIRECTORY, Mode::empty())?;
            if fstat(&below)?.st_dev == fstat(dir)?.st_dev { Ok(below) } else { Err(Errno::EXDEV) }
        }
        result => result,
    }
}

/// Unlinks everything in a directory except for its subdirectories. Returns the names of the subdirectories.
fn unlink_files(dir: &mut Open) -> io::Result<Vec<CString>> {
    // SAFETY: the stream keeps the descriptor open until the end of this function. It does not change its position.
    let fd = unsafe { BorrowedFd::borrow_raw(dir.0.as_raw_fd()) };
    let mut subdirectories = Vec::new();
    for entry in dir.0.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        // Not every file system reports the type of an entry. For those, unlink(2) detects a directory.
        if entry.file_type() == Some(nix::dir::Type::Directory) {
            subdirectories.push(name.to_owned());
            continue;
        }
        match unlinkat(fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR) => subdirectories.push(name.to_owned()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(subdirectories)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates directories nested `depth` deep below `top`, with a file in each. Their paths are longer than the
    /// maximum.
    fn nest(top: &Path, depth: usize) {
        let mut here = openat(AT_FDCWD, top, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&here, c"d", Mode::from_bits_truncate(0o755)).unwrap();
            openat(&here, c"f", OFlag::O_CREAT | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o644)).unwrap();
            here = openat(&here, c"d", DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        std::fs::create_dir_all(tree.join("wide")).unwrap();
        for number in 0..300 {
            std::fs::create_dir(tree.join("wide").join(number.to_string())).unwrap();
        }
        nest(&tree, 2500);
        // More descriptors than are open now, and far fewer than the tree is deep.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert!(open < 1024);
        // The limit applies to the whole process, including other tests, so leave enough for them.
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 1024.min(hard), hard).unwrap();
        remove(&tree).unwrap();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let (tree, outside) = (base.path().join("tree"), base.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("thesis"), "years of work").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, base.path().join("top")).unwrap();
        nix::unistd::mkfifo(&tree.join("a/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        std::fs::write(base.path().join("file"), "").unwrap();
        for path in ["tree", "top", "file"] {
            remove(&base.path().join(path)).unwrap();
            assert!(base.path().join(path).symlink_metadata().is_err(), "{path}");
        }
        assert_eq!(std::fs::read_to_string(outside.join("thesis")).unwrap(), "years of work");
        assert_eq!(remove(&tree).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_mounted_in_the_tree_is_not_entered() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (precious, tree) = (base.path().join("precious"), base.path().join("tree"));
        std::fs::create_dir_all(tree.join("a/point")).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("thesis"), "years of work").unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&precious), &tree.join("a/point"), None::<&str>, flags, None::<&str>).unwrap();
        let refused = remove(&tree).unwrap_err();
        nix::mount::umount(&tree.join("a/point")).unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        assert_eq!(std::fs::read_to_string(precious.join("thesis")).unwrap(), "years of work");
        remove(&tree).unwrap();
    }
}
