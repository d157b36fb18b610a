//! Writes the changes that a container made as a layer: reads an overlay's upper directory and writes a tar stream.
//!
//! It translates the overlay's marks into those of an image. A character device 0:0 becomes `.wh.NAME`. An opaque
//! directory gets `.wh..wh..opq`, but only if the directory of that name in the image below has entries: overlayfs
//! marks every new directory as opaque, to save itself a lookup.
//!
//! The same tree gives the same bytes. Entries are sorted by name, and a directory precedes its contents. The first
//! name of several hard links is written as the file. Times are whole seconds, as containerd writes them, and none is
//! later than the clamp.
//!
//! The directory may belong to a hostile container that is still running. So every entry is opened relative to the
//! descriptor of its parent directory, links are not followed, and only regular files and directories are opened.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::{Whence, lseek};

use super::tar::{Entry, EntryKind, Writer};
use super::tree::{Data, Segment, Tree};
use crate::report::Explain;
use crate::sys::xattr_read;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const CHUNK: usize = 256 << 10;
/// A file whose holes are smaller than this in total is written without a sparse map: a sparse member costs readers a
/// copy.
const WORTH_A_MAP: u64 = 64 << 10;
/// The maximum depth of a layer. `merge` rejects deeper ones.
const MAX_DEPTH: usize = 512;

/// Extended attributes that describe this host and not the file.
const HOST_XATTRS: [&[u8]; 4] = [b"trusted.overlay.", b"security.selinux", b"security.evm", b"security.ima"];

/// The error of a directory that cannot be written as a layer.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `/{}`", path.escape_ascii())]
pub(crate) struct DiffError {
    pub action: &'static str,
    pub path: Vec<u8>,
    #[source]
    pub cause: io::Error,
}

impl Explain for DiffError {
    fn hint(&self) -> Option<String> {
        (self.cause.raw_os_error() == Some(libc::ENOSPC))
            .then(|| "remove unused images with `gpurun image rm`, or choose another disk with `--root DIR`".into())
    }
}

/// Whether an entry of the upper directory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Yes,
    /// Write the directory only if something in it is written.
    IfNotEmpty,
    No,
}

/// Options for writing a layer.
pub(crate) struct Options<'a> {
    /// The tree of the image below. It decides which opaque marks are needed and whether the root has changed.
    pub lower: &'a Tree,
    /// The latest time that the layer may contain (SOURCE_DATE_EPOCH, seconds since 1970). Later times are clamped to
    /// it.
    pub clamp: Option<i64>,
    /// Called for every entry, with its path from the root (no leading `/`).
    pub keep: &'a dyn Fn(&[u8], &FileStat) -> Keep,
}

/// Counts of the entries that were written or skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Members of the stream.
    pub members: u64,
    /// Sockets that were skipped, because a tar cannot hold them.
    pub sockets: u64,
}

/// Writes the contents of `upper` as a layer.
pub(crate) fn write<W: Write>(upper: BorrowedFd<'_>, options: &Options<'_>, out: W) -> Result<(W, Summary), DiffError> {
    let mut walk = Walk::new(options, out);
    walk.root(upper)?;
    walk.finish()
}

/// Writes the entry `name` of a directory and its contents under the name `shown`, as a plain archive that is not a
/// layer.
pub(crate) fn write_entry<W: Write>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    shown: &[u8],
    options: &Options<'_>,
    out: W,
) -> Result<(W, Summary), DiffError> {
    let mut walk = Walk::new(options, out);
    walk.path = shown.to_vec();
    walk.one(parent, name)?;
    walk.finish()
}

struct Walk<'a, W> {
    options: &'a Options<'a>,
    tar: Writer<W>,
    path: Vec<u8>,
    depth: usize,
    /// Ancestor directories that are written only when something in them is.
    waiting: Vec<Entry>,
    /// Files with several names: the path of the first one.
    linked: HashMap<(u64, u64), Vec<u8>>,
    summary: Summary,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Walk<'a, W> {
    fn new(options: &'a Options<'a>, out: W) -> Self {
        Self {
            options,
            tar: Writer::new(out),
            path: Vec::new(),
            depth: 0,
            waiting: Vec::new(),
            linked: HashMap::new(),
            summary: Summary::default(),
            buffer: vec![0; CHUNK],
        }
    }

    fn finish(self) -> Result<(W, Summary), DiffError> {
        let summary = self.summary;
        let out = self.tar.finish().map_err(|cause| DiffError { action: "write", path: Vec::new(), cause })?;
        Ok((out, summary))
    }

    fn failed<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> DiffError + use<'a, W, E> {
        let path = self.path.clone();
        move |cause| DiffError { action, path, cause: cause.into() }
    }

    fn root(&mut self, upper: BorrowedFd<'_>) -> Result<(), DiffError> {
        let fd = openat(upper, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(self.failed("open"))?;
        let stat = fstat(&fd).map_err(self.failed("examine"))?;
        let xattrs = self.xattrs(fd.as_fd(), b".")?;
        let below = &self.options.lower.inodes[0];
        let mode = (stat.st_mode & 0o7777) as u16;
        if (mode, stat.st_uid, stat.st_gid, &xattrs) != (below.mode, below.uid, below.gid, &below.xattrs) {
            let mut entry = self.entry(EntryKind::Directory, &stat, xattrs);
            entry.path = (*b"./").into();
            self.put(&entry)?;
        }
        self.children(fd)
    }

    fn children(&mut self, directory: OwnedFd) -> Result<(), DiffError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.failed("descend into")(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
        }
        let mut dir = Dir::from_fd(directory).map_err(self.failed("read"))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = entry.map_err(self.failed("read"))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        self.depth += 1;
        for name in names {
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            self.one(dir.as_fd(), &name)?;
            self.path.truncate(length);
        }
        self.depth -= 1;
        Ok(())
    }

    fn one(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), DiffError> {
        let stat = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // A running container may remove entries at any time.
            Err(nix::Error::ENOENT) => return Ok(()),
            Err(errno) => return Err(self.failed("examine")(errno)),
        };
        let keep = (self.options.keep)(&self.path, &stat);
        if keep == Keep::No {
            return Ok(());
        }
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let device = (major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32);
        if kind == SFlag::S_IFCHR && device == (0, 0) {
            return self.whiteout(name);
        }
        if name.starts_with(WHITEOUT) {
            let cause = io::Error::other("a layer cannot contain a file of that name: `.wh.` marks deleted files");
            return Err(self.failed("use")(cause));
        }
        if kind == SFlag::S_IFDIR {
            return self.directory(parent, name, &stat, keep);
        }
        if kind == SFlag::S_IFSOCK {
            self.summary.sockets += 1;
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                let link = EntryKind::HardLink(first.as_slice().into());
                let entry = self.entry(link, &stat, Default::default());
                return self.put(&entry);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), self.path.clone());
        }
        let xattrs = self.xattrs(parent, name)?;
        let kind = match kind {
            SFlag::S_IFREG => return self.file(parent, name, &stat, xattrs),
            SFlag::S_IFLNK => {
                let target = readlinkat(parent, name).map_err(self.failed("read"))?;
                EntryKind::Symlink(target.as_bytes().into())
            }
            SFlag::S_IFIFO => EntryKind::Fifo,
            SFlag::S_IFCHR => EntryKind::CharDevice { major: device.0, minor: device.1 },
            _ => EntryKind::BlockDevice { major: device.0, minor: device.1 },
        };
        let entry = self.entry(kind, &stat, xattrs);
        self.put(&entry)
    }

    fn whiteout(&mut self, name: &[u8]) -> Result<(), DiffError> {
        let parent = &self.path[..self.path.len() - name.len()];
        let path = [parent, WHITEOUT, name].concat();
        let entry = empty_file(path);
        self.put(&entry)
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], stat: &FileStat, keep: Keep) -> Result<(), DiffError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            // The running container replaced the entry in the meantime.
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => return Ok(()),
            Err(errno) => return Err(self.failed("open")(errno)),
        };
        let opaque = crate::sys::xattr::get(&fd, b"trusted.overlay.opaque").map_err(self.failed("examine"))?;
        let xattrs = self.xattrs(parent, name)?;
        let entry = self.entry(EntryKind::Directory, stat, xattrs);
        let waiting = self.waiting.len();
        if keep == Keep::IfNotEmpty {
            self.waiting.push(entry);
        } else {
            self.put(&entry)?;
        }
        let below = self.options.lower.get(&self.path).and_then(|id| self.options.lower.children(id));
        if opaque.as_deref() == Some(b"y") && below.is_some_and(|children| !children.is_empty()) {
            let mark = empty_file([self.path.as_slice(), b"/", OPAQUE].concat());
            self.put(&mark)?;
        }
        self.children(fd)?;
        self.waiting.truncate(waiting);
        Ok(())
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        stat: &FileStat,
        xattrs: xattr_read::Xattrs,
    ) -> Result<(), DiffError> {
        // The open must not block on an entry that replaced the file in the meantime, such as a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(parent, name, flags, Mode::empty()).map_err(self.failed("open"))?);
        let now = fstat(&file).map_err(self.failed("examine"))?;
        if now.st_ino != stat.st_ino || now.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(self.failed("read")(io::Error::other("it was replaced while it was read")));
        }
        let size = u64::try_from(now.st_size).unwrap_or(0);
        let segments = segments(&file, size).map_err(self.failed("read"))?;
        let entry = self.entry(EntryKind::File(Data { size, segments: segments.clone() }), stat, xattrs);
        self.put(&entry)?;
        for segment in segments {
            let (mut at, end) = (segment.at, segment.at + segment.len);
            while at < end {
                let want = self.buffer.len().min((end - at) as usize);
                let got = file.read_at(&mut self.buffer[..want], at).map_err(self.failed("read"))?;
                if got == 0 {
                    return Err(self.failed("read")(io::Error::other("it was truncated while it was read")));
                }
                let failed = self.failed("write");
                self.tar.data(&self.buffer[..got]).map_err(failed)?;
                at += got as u64;
            }
        }
        Ok(())
    }

    fn entry(&self, kind: EntryKind, stat: &FileStat, xattrs: xattr_read::Xattrs) -> Entry {
        let seconds = self.options.clamp.map_or(stat.st_mtime, |clamp| stat.st_mtime.min(clamp));
        Entry {
            path: self.path.as_slice().into(),
            kind,
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (seconds, 0),
            xattrs,
        }
    }

    /// The extended attributes that belong in an image.
    fn xattrs(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<xattr_read::Xattrs, DiffError> {
        // `listxattrat` does not exist before Linux 6.13.
        let directory = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        let path = directory.join(std::ffi::OsStr::from_bytes(name));
        let mut all = match xattr_read::all(&path) {
            Ok(all) => all,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Default::default(),
            Err(error) => return Err(self.failed("examine")(error)),
        };
        all.retain(|name, _| !HOST_XATTRS.iter().any(|prefix| name.starts_with(prefix)));
        Ok(all)
    }

    fn put(&mut self, entry: &Entry) -> Result<(), DiffError> {
        for directory in std::mem::take(&mut self.waiting) {
            self.tar.entry(&directory).map_err(self.failed("write"))?;
            self.summary.members += 1;
        }
        self.tar.entry(entry).map_err(self.failed("write"))?;
        self.summary.members += 1;
        Ok(())
    }
}

/// A marker file of a layer: an empty file whose name carries the meaning.
fn empty_file(path: Vec<u8>) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File(Data::default()),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Default::default(),
    }
}

/// The ranges of the file that hold data. The result is one segment, unless the holes are large enough to be worth a
/// sparse map.
fn segments(file: &File, size: u64) -> io::Result<Vec<Segment>> {
    let segment = |at, end| Segment { at, source: 0, offset: 0, len: end - at };
    let whole = || if size == 0 { Vec::new() } else { vec![segment(0, size)] };
    if file.metadata().map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= size)? {
        return Ok(whole());
    }
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match lseek(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            // No data follow.
            Err(nix::Error::ENXIO) => break,
            Err(_) => return Ok(whole()),
        };
        let end = (lseek(file, start as i64, Whence::SeekHole)? as u64).min(size);
        if start >= end {
            break;
        }
        found.push(segment(start, end));
        at = end;
    }
    let stored: u64 = found.iter().map(|segment| segment.len).sum();
    Ok(if size - stored < WORTH_A_MAP { whole() } else { found })
}

#[cfg(test)]
mod tests;
