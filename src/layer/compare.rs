//! Verifies that a rendered directory still matches its tree. This is the counterpart of [`super::directory::render`],
//! for directories that were rendered long ago.
//!
//! It compares names, kinds, owners, modes, times, extended attributes, sizes, contents, link targets, device numbers,
//! and which names are hard links to one file. It follows no links and opens only regular files and directories.
//!
//! A file system may limit the precision and the range of times, and may not support all attributes. The renderer
//! tolerates that. So an entry whose metadata differ is rendered again, alone, in a scratch directory on the same file
//! system, and only a difference from that second rendering counts. (The alternative is a table of each file system's
//! precision and limits, which would never be complete.)

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory;
use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};
use crate::sys::xattr_read::{self, Xattrs};

/// Extended attributes that the host's security modules set on every file, whatever the image contains.
const LABELS: [&[u8]; 5] =
    [b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor", b"security.SMACK64"];

/// Returns the first difference between the directory `root` and `tree`: its path and a description. An entry that
/// cannot be read counts as a difference. `scratch` is an empty directory on the same file system, in which entries are
/// rendered again.
#[must_use]
pub(crate) fn difference(
    tree: &Tree,
    sources: &[File],
    root: BorrowedFd<'_>,
    scratch: BorrowedFd<'_>,
) -> Option<String> {
    let mut look = Look { tree, sources, scratch, path: Vec::new(), known: HashMap::new() };
    let wrong = match fstat(root) {
        Ok(stat) => look.inode(InodeId(0), &stat, Some(root), None),
        Err(errno) => Err(errno.into()),
    };
    let why = match wrong {
        Ok(None) => return None,
        Ok(Some(why)) => why,
        Err(error) => format!("it cannot be read: {error}").into(),
    };
    Some(format!("`/{}`: {why}", look.path.join(&b'/').escape_ascii()))
}

struct Look<'a> {
    tree: &'a Tree,
    sources: &'a [File],
    scratch: BorrowedFd<'a>,
    /// The path of the current entry. It keeps its value when a difference is found.
    path: Vec<&'a [u8]>,
    /// The device and inode number of the file that was found for each inode of the tree.
    known: HashMap<u32, (u64, u64)>,
}

type Why = Cow<'static, str>;
type Wrong = io::Result<Option<Why>>;

impl<'a> Look<'a> {
    /// Compares one inode. `open` is the directory itself, for a directory. `at` is the parent directory and the name,
    /// for everything else.
    fn inode(
        &mut self,
        id: InodeId,
        stat: &FileStat,
        open: Option<BorrowedFd<'_>>,
        at: Option<(BorrowedFd<'_>, &[u8])>,
    ) -> Wrong {
        let tree = self.tree;
        let inode = &tree.inodes[id.0 as usize];
        if let Some(why) = about(inode, stat) {
            return Ok(Some(why.into()));
        }
        if !matches!(inode.kind, Kind::Directory(_)) {
            let file = (stat.st_dev, stat.st_ino);
            match self.known.insert(id.0, file) {
                Some(first) if first != file => return Ok(Some("it is not the same file as its hard link".into())),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        let wrong = match (&inode.kind, open, at) {
            (Kind::Directory(children), Some(dir), _) => self.children(children, dir)?,
            (Kind::File(data), _, Some((dir, name))) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = File::from(openat(dir, name, flags, Mode::empty())?);
                let same = same_data(data, self.sources, &file)?;
                (!same).then_some("its contents differ from the layers".into())
            }
            (Kind::Symlink(target), _, Some((dir, name))) => {
                let same = readlinkat(dir, name)?.as_bytes() == target.as_ref();
                (!same).then_some("its target differs".into())
            }
            _ => None,
        };
        if wrong.is_some() {
            return Ok(wrong);
        }
        // Metadata come last: a change of a file's contents or of a directory's entries also changes the time, and the
        // message about the contents is more useful.
        let xattrs = match (open, at) {
            (Some(dir), _) => xattr_read::of_open(dir)?,
            (None, Some((dir, name))) => xattr_read::at(dir, name)?,
            (None, None) => Xattrs::new(),
        };
        self.metadata(inode, stat, xattrs)
    }

    fn children(&mut self, children: &'a BTreeMap<Name, InodeId>, dir: BorrowedFd<'_>) -> Wrong {
        let mut names = BTreeSet::new();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        for entry in Dir::openat(dir, ".", flags, Mode::empty())?.iter() {
            names.insert(entry?.file_name().to_bytes().to_owned());
        }
        for (name, id) in children {
            self.path.push(name);
            if !names.remove(name.as_ref()) {
                return Ok(Some("it is missing".into()));
            }
            let stat = fstatat(dir, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let wrong = match kind(stat.st_mode) {
                SFlag::S_IFDIR => {
                    let fd = openat(dir, name.as_ref(), flags | OFlag::O_NOFOLLOW, Mode::empty())?;
                    self.inode(*id, &stat, Some(fd.as_fd()), None)?
                }
                _ => self.inode(*id, &stat, None, Some((dir, name)))?,
            };
            if wrong.is_some() {
                return Ok(wrong);
            }
            self.path.pop();
        }
        let more = names.iter().any(|name| name != b"." && name != b"..");
        Ok(more.then_some("it contains entries that the layers do not have".into()))
    }

    /// Compares mode, time and extended attributes with the tree and, if they differ, with a second rendering of the
    /// entry.
    fn metadata(&self, inode: &Inode, stat: &FileStat, xattrs: Xattrs) -> Wrong {
        let found = Metadata::new(stat, xattrs);
        if found == Metadata::of(inode, &found) {
            return Ok(None);
        }
        let rendered = self.materialize(inode)?;
        Ok((found != rendered).then(|| found.difference(&rendered)))
    }

    /// Renders an inode into the scratch directory, without its contents, and returns the metadata that it gets there.
    fn materialize(&self, inode: &Inode) -> io::Result<Metadata> {
        let mut tree = Tree::empty();
        let mut alone = inode.clone();
        match &mut alone.kind {
            Kind::Directory(children) => children.clear(),
            Kind::File(data) => *data = Data::default(),
            _ => {}
        }
        tree.inodes[0].kind = Kind::Directory([(Name::from(NAME), InodeId(1))].into());
        tree.inodes.push(alone);
        directory::render(&tree, &[], self.scratch).map_err(|error| error.cause)?;
        let stat = fstatat(self.scratch, NAME, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let rendered = Metadata::new(&stat, xattr_read::at(self.scratch, NAME)?);
        let how =
            if kind(stat.st_mode) == SFlag::S_IFDIR { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(self.scratch, NAME, how)?;
        Ok(rendered)
    }
}

/// The name of the entry in the scratch directory.
const NAME: &[u8] = b"again";

/// The metadata that a file system may store in its own way.
#[derive(PartialEq, Eq)]
struct Metadata {
    /// The permission bits. An ACL among the attributes changes them.
    mode: libc::mode_t,
    time: (i64, i64),
    xattrs: Xattrs,
}

impl Metadata {
    fn new(stat: &FileStat, mut xattrs: Xattrs) -> Self {
        xattrs.retain(|name, _| !LABELS.contains(&&**name));
        Self { mode: stat.st_mode & 0o7777, time: (stat.st_mtime, stat.st_mtime_nsec), xattrs }
    }

    /// The metadata that the tree specifies. A symbolic link has no mode of its own, so the one that was found is used.
    fn of(inode: &Inode, found: &Self) -> Self {
        let is_link = matches!(inode.kind, Kind::Symlink(_));
        let mode = if is_link { found.mode } else { libc::mode_t::from(inode.mode) };
        let mut xattrs = inode.xattrs.clone();
        xattrs.retain(|name, _| !LABELS.contains(&&**name));
        Self { mode, time: (inode.mtime.0, i64::from(inode.mtime.1)), xattrs }
    }

    fn difference(&self, rendered: &Self) -> Why {
        if self.mode != rendered.mode {
            return "its mode differs".into();
        }
        let names: BTreeSet<_> = self.xattrs.keys().chain(rendered.xattrs.keys()).collect();
        let other = names.into_iter().find(|name| self.xattrs.get(*name) != rendered.xattrs.get(*name));
        let Some(other) = other else { return "its modification time differs".into() };
        let name = other.escape_ascii();
        match (self.xattrs.contains_key(other), rendered.xattrs.contains_key(other)) {
            (false, _) => format!("its extended attribute `{name}` is missing").into(),
            (true, false) => format!("it has the extended attribute `{name}`, which the layers do not have").into(),
            (true, true) => format!("its extended attribute `{name}` differs").into(),
        }
    }
}

fn kind(mode: libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// Compares the kind, the owner, the size and the device number.
fn about(inode: &Inode, stat: &FileStat) -> Option<&'static str> {
    let device = |major: u32, minor: u32| Some(makedev(u64::from(major), u64::from(minor)));
    let (wanted, number) = match &inode.kind {
        Kind::Directory(_) => (SFlag::S_IFDIR, None),
        Kind::File(_) => (SFlag::S_IFREG, None),
        Kind::Symlink(_) => (SFlag::S_IFLNK, None),
        // The renderer replaces 0:0, which overlayfs would take for a whiteout, with 0:1.
        Kind::CharDevice { major: 0, minor: 0 } => (SFlag::S_IFCHR, device(0, 1)),
        Kind::CharDevice { major, minor } => (SFlag::S_IFCHR, device(*major, *minor)),
        Kind::BlockDevice { major, minor } => (SFlag::S_IFBLK, device(*major, *minor)),
        Kind::Fifo => (SFlag::S_IFIFO, None),
    };
    if kind(stat.st_mode) != wanted {
        return Some("its type differs");
    }
    if (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid) {
        return Some("its owner differs");
    }
    if number.is_some_and(|number| number != stat.st_rdev) {
        return Some("its device number differs");
    }
    match &inode.kind {
        Kind::File(data) if data.size != stat.st_size as u64 => Some("its size differs"),
        _ => None,
    }
}

fn same_data(data: &Data, sources: &[File], file: &File) -> io::Result<bool> {
    let (mut found, mut wanted) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let (mut at, mut first) = (0, 0);
    while at < data.size {
        let want = (data.size - at).min(found.len() as u64) as usize;
        file.read_exact_at(&mut found[..want], at)?;
        wanted[..want].fill(0);
        let end = at + want as u64;
        while data.segments.get(first).is_some_and(|segment| segment.at + segment.len <= at) {
            first += 1;
        }
        for segment in data.segments[first..].iter().take_while(|segment| segment.at < end) {
            let (from, to) = (segment.at.max(at), (segment.at + segment.len).min(end));
            let source = sources.get(segment.source as usize).ok_or(io::ErrorKind::NotFound)?;
            let slice = &mut wanted[(from - at) as usize..(to - at) as usize];
            source.read_exact_at(slice, segment.offset + (from - segment.at))?;
        }
        if found[..want] != wanted[..want] {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
