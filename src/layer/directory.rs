//! The plain renderer: writes a [`Tree`] into an empty directory.
//!
//! It serves kernels that cannot mount the EROFS index, and `image unpack`. It creates only the entries of the finished
//! tree, one by one, relative to directory descriptors. It joins no paths and follows no links, and it creates every
//! file with `O_EXCL`. The order of the steps for one entry matters. The owner is set before the mode and the xattrs,
//! because chown(2) clears setuid bits and capabilities. The data are written before the times are set. A directory's
//! times are set after its children are created.

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

const SET_XATTR: &str = "set an extended attribute of";

/// The error of a tree that cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{path}`")]
pub(crate) struct RenderError {
    pub action: &'static str,
    /// The path relative to the destination directory.
    pub path: String,
    #[source]
    pub cause: io::Error,
}

impl Explain for RenderError {
    fn hint(&self) -> Option<String> {
        match self.cause.raw_os_error()? {
            libc::EPERM => Some("run gpurun with `sudo`: only root can set the owners and devices of an image".into()),
            // ext4 returns ENOSPC for attributes that need more than one block, even on an empty disk.
            libc::ENOSPC if self.action == SET_XATTR => Some(
                "choose a directory on XFS, btrfs or tmpfs: this file system has no space for attributes of this \
                 size (ext4 stores one block of them for each file)"
                    .into(),
            ),
            libc::ENOSPC => Some("free some space on its disk, or choose another directory".into()),
            libc::EEXIST => Some("choose an empty directory".into()),
            _ => None,
        }
    }
}

/// Renders `tree` into the empty directory `root`. `sources[n]` is the tar that [`Tree::sources`]`[n]` names.
///
/// Nothing is synced. A caller that needs a durable result calls `syncfs`.
pub(crate) fn render(tree: &Tree, sources: &[File], root: BorrowedFd<'_>) -> Result<(), RenderError> {
    render_tree(tree, sources, root, false)?;
    let renderer = Renderer::new(tree, sources, root, false);
    renderer.fill_metadata(&tree.inodes[0], root)
}

/// Merges the contents of `tree` into a directory that is not empty: directories are merged, everything else is
/// replaced, and the metadata of `root` itself stay unchanged. The directory may belong to a hostile container, so no
/// link in it is followed. The tree must not contain device nodes or FIFOs ([`Tree::portable`]), because their modes
/// can be set only by name.
pub(crate) fn render_over(tree: &Tree, sources: &[File], root: BorrowedFd<'_>) -> Result<(), RenderError> {
    render_tree(tree, sources, root, true)
}

fn render_tree(tree: &Tree, sources: &[File], root: BorrowedFd<'_>, replace: bool) -> Result<(), RenderError> {
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
    /// The number of names of each inode.
    names: Vec<u32>,
    /// Inodes with several names: the path of the first one.
    linked: HashMap<u32, Vec<u8>>,
    path: Vec<&'a [u8]>,
    /// The destination may already contain entries, which are replaced.
    replace: bool,
}

/// Counts the names of each inode.
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

    /// Removes an existing entry, to make place for a new one that is not a directory.
    fn remove_existing(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), RenderError> {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => self.check("replace", other),
        }
    }

    fn failed<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> RenderError + use<E> {
        let path = match &self.path[..] {
            [] => ".".to_owned(),
            names => names.join(&b'/').escape_ascii().to_string(),
        };
        move |cause| RenderError { action, path, cause: cause.into() }
    }

    /// Adds the path to an error. This runs for every entry, so the path is built only on failure.
    fn check<T, E: Into<io::Error>>(&self, action: &'static str, result: Result<T, E>) -> Result<T, RenderError> {
        match result {
            Ok(value) => Ok(value),
            Err(cause) => Err(self.failed(action)(cause)),
        }
    }

    /// Renders the entries of a directory. It keeps one descriptor open per level, and `merge` bounds the depth.
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
            self.remove_existing(dir, name)?;
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
            // An overlay on this directory would take 0:0 for a whiteout. The EROFS renderer uses 0:1 too.
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
        // The tree below the root contains only our own entries, so no link is expected. RESOLVE_NO_SYMLINKS makes the
        // kernel enforce that.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let from = openat2(self.root, parent, how)?;
        Ok(linkat(from, last, dir, name, AtFlags::empty())?)
    }

    /// Sets the owner, mode, xattrs and time of an open file or directory.
    fn fill_metadata(&self, inode: &Inode, fd: BorrowedFd<'_>) -> Result<(), RenderError> {
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        self.check("set the owner of", fchown(fd, Some(uid), Some(gid)))?;
        self.check("set the mode of", fchmod(fd, Mode::from_bits_truncate(inode.mode.into())))?;
        for (name, value) in &inode.xattrs {
            self.check(SET_XATTR, tolerate(inode, name, xattr::set(fd, name, value)))?;
        }
        let time = timespec(inode);
        self.check("set the time of", futimens(fd, &time, &time))
    }

    /// Sets the metadata of an entry that cannot be opened without side effects.
    fn metadata_at(&self, inode: &Inode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), RenderError> {
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        self.check("set the owner of", fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW))?;
        if !matches!(inode.kind, Kind::Symlink(_)) {
            // fchmodat(2) does not support AT_SYMLINK_NOFOLLOW. Following is safe, because the entry is the node that
            // was created above.
            let mode = Mode::from_bits_truncate(inode.mode.into());
            self.check("set the mode of", fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink))?;
        }
        for (attribute, value) in &inode.xattrs {
            let set = xattr::set_at(dir, name, attribute, value);
            self.check(SET_XATTR, tolerate(inode, attribute, set))?;
        }
        let time = timespec(inode);
        self.check("set the time of", utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink))
    }
}

/// Ignores the errors that containerd ignores too: the file system does not support this class of attributes, or Linux
/// does not allow `user.*` on this kind of file.
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

/// Copies the segments of a file. The gaps between them stay holes.
fn copy_data(data: &Data, sources: &[File], out: &File) -> io::Result<()> {
    let mut end = 0;
    for segment in &data.segments {
        let source = sources.get(segment.source as usize).ok_or(io::ErrorKind::NotFound)?;
        copy_range(source, segment.offset, out, segment.at, segment.len)?;
        end = segment.at + segment.len;
    }
    if end < data.size { out.set_len(data.size) } else { Ok(()) }
}

/// Copies a range with copy_file_range(2), which can reflink. It falls back to reads and writes where the kernel
/// refuses, for example between different file systems.
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

/// Opens the destination directory.
pub(crate) fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests;
