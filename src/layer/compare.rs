//! Is a directory what its tree says? The counterpart of [`super::directory::render`], for directories that were drawn long ago.
//!
//! Names, kinds, owners, modes, sizes, contents, link targets, device numbers, and which names are one file. Not times and extended attributes: a
//! file system keeps them as finely and as far as it can, and the renderer forgives that. Nothing is followed, only regular files are opened.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev};

use super::tree::{Data, Inode, InodeId, Kind, Tree};

/// The first thing below `root` that is not as `tree` says: its path and what is wrong with it. What cannot be read is wrong, too.
#[must_use]
pub fn difference(tree: &Tree, sources: &[File], root: BorrowedFd<'_>) -> Option<String> {
    let mut look = Look { tree, sources, path: Vec::new(), known: HashMap::new() };
    let wrong = match fstat(root) {
        Ok(stat) => look.inode(InodeId(0), &stat, Some(root), None),
        Err(errno) => Err(errno.into()),
    };
    let why = match wrong {
        Ok(None) => return None,
        Ok(Some(why)) => why.to_owned(),
        Err(error) => format!("it cannot be read: {error}"),
    };
    Some(format!("`/{}`: {why}", look.path.join(&b'/').escape_ascii()))
}

struct Look<'a> {
    tree: &'a Tree,
    sources: &'a [File],
    /// Where we are; it stays where something is wrong.
    path: Vec<&'a [u8]>,
    /// The file that stands for an inode.
    known: HashMap<u32, (u64, u64)>,
}

type Wrong = io::Result<Option<&'static str>>;

impl<'a> Look<'a> {
    /// `open`: the directory itself; `at`: the directory and the name in it, of anything else.
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
            return Ok(Some(why));
        }
        if !matches!(inode.kind, Kind::Directory(_)) {
            let file = (stat.st_dev, stat.st_ino);
            match self.known.insert(id.0, file) {
                Some(first) if first != file => return Ok(Some("it is another file than its hard link")),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        match (&inode.kind, open, at) {
            (Kind::Directory(children), Some(dir), _) => self.children(children, dir),
            (Kind::File(data), _, Some((dir, name))) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = File::from(openat(dir, name, flags, Mode::empty())?);
                let same = same_data(data, self.sources, &file)?;
                Ok((!same).then_some("its contents are not what the layers say"))
            }
            (Kind::Symlink(target), _, Some((dir, name))) => {
                let same = readlinkat(dir, name)?.as_bytes() == target.as_ref();
                Ok((!same).then_some("it leads elsewhere"))
            }
            _ => Ok(None),
        }
    }

    fn children(
        &mut self,
        children: &'a std::collections::BTreeMap<super::tree::Name, InodeId>,
        dir: BorrowedFd<'_>,
    ) -> Wrong {
        let mut names = BTreeSet::new();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        for entry in Dir::openat(dir, ".", flags, Mode::empty())?.iter() {
            names.insert(entry?.file_name().to_bytes().to_owned());
        }
        for (name, id) in children {
            self.path.push(name);
            if !names.remove(name.as_ref()) {
                return Ok(Some("it is missing"));
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
        Ok(more.then_some("there is more in it than the layers say"))
    }
}

fn kind(mode: libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// What a stat tells.
fn about(inode: &Inode, stat: &FileStat) -> Option<&'static str> {
    let device = |major: u32, minor: u32| Some(makedev(u64::from(major), u64::from(minor)));
    let (wanted, number) = match &inode.kind {
        Kind::Directory(_) => (SFlag::S_IFDIR, None),
        Kind::File(_) => (SFlag::S_IFREG, None),
        Kind::Symlink(_) => (SFlag::S_IFLNK, None),
        // As the renderer draws what an overlay would take for its whiteout.
        Kind::CharDevice { major: 0, minor: 0 } => (SFlag::S_IFCHR, device(0, 1)),
        Kind::CharDevice { major, minor } => (SFlag::S_IFCHR, device(*major, *minor)),
        Kind::BlockDevice { major, minor } => (SFlag::S_IFBLK, device(*major, *minor)),
        Kind::Fifo => (SFlag::S_IFIFO, None),
    };
    let is_link = wanted == SFlag::S_IFLNK;
    if kind(stat.st_mode) != wanted {
        return Some("it is of another kind");
    }
    if !is_link && stat.st_mode & 0o7777 != libc::mode_t::from(inode.mode) {
        return Some("it has another mode");
    }
    if (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid) {
        return Some("it has another owner");
    }
    if number.is_some_and(|number| number != stat.st_rdev) {
        return Some("it is another device");
    }
    match &inode.kind {
        Kind::File(data) if data.size != stat.st_size as u64 => Some("it has another size"),
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
            let place = &mut wanted[(from - at) as usize..(to - at) as usize];
            source.read_exact_at(place, segment.offset + (from - segment.at))?;
        }
        if found[..want] != wanted[..want] {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
