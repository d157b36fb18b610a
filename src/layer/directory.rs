//! The plain renderer: draws a [`Tree`] into an empty directory.
//!
//! For kernels that cannot mount the index, and for `image unpack`. It creates only what the finished tree says, entry by entry,
//! through directory descriptors: no path is ever joined, no link ever followed, every file is created with `O_EXCL`. The order within
//! one entry matters: owner (which clears setuid and capabilities), mode, xattrs, data before times; a directory's times after its
//! children.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};
use crate::report::Explain;
use crate::sys::{file, xattr};

/// What could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{path}`")]
pub struct RenderError {
    pub action: &'static str,
    /// Below the directory that is drawn into.
    pub path: String,
    #[source]
    pub cause: io::Error,
}

impl Explain for RenderError {
    fn hint(&self) -> Option<String> {
        match self.cause.raw_os_error()? {
            libc::EPERM => Some("an image's owners and devices can be set by root only: run it with `sudo`".into()),
            libc::ENOSPC => Some(
                "the file system is full: choose another directory, or `gpurun image rm` what is not needed".into(),
            ),
            libc::EEXIST => Some("the directory must be empty".into()),
            _ => None,
        }
    }
}

/// Draws `tree` into the empty directory `root`; `sources[n]` is the tar that [`Tree::sources`]`[n]` names.
///
/// Nothing is synced: a caller that needs the result durable calls `syncfs` on it.
pub fn render(tree: &Tree, sources: &[File], root: BorrowedFd<'_>) -> Result<(), RenderError> {
    draw(tree, sources, root, false)?;
    let renderer = Renderer::new(tree, sources, root, false);
    renderer.fill_metadata(&tree.inodes[0], root)
}

/// Puts what is in `tree` into a directory that holds other things: directories are joined, everything else is replaced, and what `root`
/// itself is stays. The directory may be a hostile container's: no link in it is followed. The tree must hold no nodes ([`Tree::portable`]):
/// their modes cannot be set without a name.
pub fn place(tree: &Tree, sources: &[File], root: BorrowedFd<'_>) -> Result<(), RenderError> {
    draw(tree, sources, root, true)
}

fn draw(tree: &Tree, sources: &[File], root: BorrowedFd<'_>, replace: bool) -> Result<(), RenderError> {
    let mut renderer = Renderer::new(tree, sources, root, replace);
    match &tree.inodes[0].kind {
        Kind::Directory(children) => renderer.children(children, root),
        _ => Ok(()),
    }
}

struct Renderer<'a> {
    tree: &'a Tree,
    sources: &'a [File],
    root: BorrowedFd<'a>,
    /// How many names each inode has.
    names: Vec<u32>,
    /// Inodes of several names: the path of the first.
    linked: HashMap<u32, Vec<u8>>,
    path: Vec<&'a [u8]>,
    /// Other things may be there already.
    replace: bool,
}

/// How many names each inode has.
fn count_names(tree: &Tree) -> Vec<u32> {
    let mut names = vec![0u32; tree.inodes.len()];
    for inode in &tree.inodes {
        if let Kind::Directory(children) = &inode.kind {
            for id in children.values() {
                names[id.0 as usize] += 1;
            }
        }
    }
    names
}

impl<'a> Renderer<'a> {
    fn new(tree: &'a Tree, sources: &'a [File], root: BorrowedFd<'a>, replace: bool) -> Self {
        let (names, linked) = (count_names(tree), HashMap::new());
        Self { tree, sources, root, names, linked, path: Vec::new(), replace }
    }

    /// Makes room for an entry that is no directory.
    fn make_room(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), RenderError> {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => self.check("replace", other),
        }
    }

    fn failed<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> RenderError + use<E> {
        let path = format!("/{}", self.path.join(&b'/').escape_ascii());
        move |cause| RenderError { action, path, cause: cause.into() }
    }

    /// The errors' paths are built only when something fails: this runs for every entry.
    fn check<T, E: Into<io::Error>>(&self, action: &'static str, result: Result<T, E>) -> Result<T, RenderError> {
        match result {
            Ok(value) => Ok(value),
            Err(cause) => Err(self.failed(action)(cause)),
        }
    }

    /// One descriptor per level; `merge` bounds the depth.
    fn children(
        &mut self,
        children: &'a std::collections::BTreeMap<Name, InodeId>,
        dir: BorrowedFd<'_>,
    ) -> Result<(), RenderError> {
        for (name, id) in children {
            self.path.push(name);
            self.entry(name, *id, dir)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, name: &'a [u8], id: InodeId, dir: BorrowedFd<'_>) -> Result<(), RenderError> {
        let inode = &self.tree.inodes[id.0 as usize];
        if self.replace && !matches!(inode.kind, Kind::Directory(_)) {
            self.make_room(dir, name)?;
        }
        if self.names[id.0 as usize] > 1 && !matches!(inode.kind, Kind::Directory(_)) {
            if let Some(first) = self.linked.get(&id.0) {
                return self.check("link", self.hard_link(first, dir, name));
            }
            self.linked.insert(id.0, self.path.join(&b'/'));
        }
        match &inode.kind {
            Kind::Directory(children) => {
                match mkdirat(dir, name, Mode::S_IRWXU) {
                    Err(Errno::EEXIST) if self.replace => {}
                    other => self.check("create the directory", other)?,
                }
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = self.check("open the directory", openat(dir, name, flags, Mode::empty()))?;
                self.children(children, fd.as_fd())?;
                self.fill_metadata(inode, fd.as_fd())
            }
            Kind::File(data) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = self.check("create", openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR))?;
                let file = File::from(fd);
                self.check("write", copy_data(data, self.sources, &file))?;
                self.fill_metadata(inode, file.as_fd())
            }
            Kind::Symlink(target) => {
                self.check("create the link", symlinkat(target.as_ref(), dir, name))?;
                self.metadata_at(inode, dir, name)
            }
            // An overlay above this directory would take 0:0 for its own whiteout: the index draws 0:1 too.
            Kind::CharDevice { major: 0, minor: 0 } => self.node(inode, dir, name, SFlag::S_IFCHR, (0, 1)),
            Kind::CharDevice { major, minor } => self.node(inode, dir, name, SFlag::S_IFCHR, (*major, *minor)),
            Kind::BlockDevice { major, minor } => self.node(inode, dir, name, SFlag::S_IFBLK, (*major, *minor)),
            Kind::Fifo => self.node(inode, dir, name, SFlag::S_IFIFO, (0, 0)),
        }
    }

    fn node(
        &self,
        inode: &Inode,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: SFlag,
        device: (u32, u32),
    ) -> Result<(), RenderError> {
        let number = makedev(u64::from(device.0), u64::from(device.1));
        self.check("create the node", mknodat(dir, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, number))?;
        self.metadata_at(inode, dir, name)
    }

    fn hard_link(&self, first: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let (parent, last) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&first[..slash], &first[slash + 1..]),
            None => (&b"."[..], first),
        };
        // The tree below the root is ours; RESOLVE_NO_SYMLINKS says so to the kernel.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let from = openat2(self.root, parent, how)?;
        Ok(linkat(from, last, dir, name, AtFlags::empty())?)
    }

    /// Owner, mode, xattrs and time of an open file or directory.
    fn fill_metadata(&self, inode: &Inode, fd: BorrowedFd<'_>) -> Result<(), RenderError> {
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        self.check("set the owner of", fchown(fd, Some(uid), Some(gid)))?;
        self.check("set the mode of", fchmod(fd, Mode::from_bits_truncate(inode.mode.into())))?;
        for (name, value) in &inode.xattrs {
            self.check("set an extended attribute of", tolerate(inode, name, xattr::set(fd, name, value)))?;
        }
        let time = timespec(inode);
        self.check("set the time of", futimens(fd, &time, &time))
    }

    /// The same of an entry that cannot be opened without side effects.
    fn metadata_at(&self, inode: &Inode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), RenderError> {
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        self.check("set the owner of", fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW))?;
        if !matches!(inode.kind, Kind::Symlink(_)) {
            // fchmodat(2) knows no AT_SYMLINK_NOFOLLOW; the entry is the node made above, in a directory of ours.
            let mode = Mode::from_bits_truncate(inode.mode.into());
            self.check("set the mode of", fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink))?;
        }
        for (attribute, value) in &inode.xattrs {
            let set = xattr::set_at(dir, name, attribute, value);
            self.check("set an extended attribute of", tolerate(inode, attribute, set))?;
        }
        let time = timespec(inode);
        self.check("set the time of", utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink))
    }
}

/// What containerd forgives too: a file system without this class of attributes, and `user.*` where Linux allows none.
fn tolerate(inode: &Inode, name: &[u8], result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
        Err(error)
            if error.raw_os_error() == Some(libc::EPERM)
                && name.starts_with(b"user.")
                && !matches!(inode.kind, Kind::File(_) | Kind::Directory(_)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn timespec(inode: &Inode) -> TimeSpec {
    TimeSpec::new(inode.mtime.0, i64::from(inode.mtime.1))
}

/// Copies a file's segments; what lies between them stays a hole.
fn copy_data(data: &Data, sources: &[File], out: &File) -> io::Result<()> {
    let mut end = 0;
    for segment in &data.segments {
        let source = sources.get(segment.source as usize).ok_or(io::ErrorKind::NotFound)?;
        copy_range(source, segment.offset, out, segment.at, segment.len)?;
        end = segment.at + segment.len;
    }
    if end < data.size { out.set_len(data.size) } else { Ok(()) }
}

/// In the kernel where it can (reflinks included), by hand where the file systems differ too much.
fn copy_range(source: &File, from: u64, out: &File, to: u64, len: u64) -> io::Result<()> {
    let offset = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (mut from, mut to, mut left) = (offset(from)?, offset(to)?, len);
    while left > 0 {
        match file::copy_range(source, from, out, to, left.min(1 << 30) as usize) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => {
                from += done as i64;
                to += done as i64;
                left -= done as u64;
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => break,
                _ => return Err(error),
            },
        }
    }
    let mut buffer = vec![0; left.min(256 << 10) as usize];
    while left > 0 {
        let want = left.min(buffer.len() as u64) as usize;
        source.read_exact_at(&mut buffer[..want], from as u64)?;
        out.write_all_at(&buffer[..want], to as u64)?;
        from += want as i64;
        to += want as i64;
        left -= want as u64;
    }
    Ok(())
}

/// Opens the directory to draw into.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests;
