//! The merged tree of an image, as plain data.
//!
//! The tree is an arena of inodes. Directories refer to them by id, so a hard link is an id that occurs more than once.
//! File data stay in the layers' tars: a [`Segment`] refers to a range of a source, and this module reads none of it.

use std::collections::BTreeMap;

use crate::names::Digest;

/// An index into [`Tree::inodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u32);

/// One component of a path. It contains no `/` and no NUL, and is never empty, `.` or `..`.
pub(crate) type Name = Box<[u8]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// `inodes[0]` is the root directory. Inodes that have lost all their names (replaced entries) are not included.
    pub inodes: Vec<Inode>,
    /// The layers' tars, by diff ID. [`Segment::source`] is an index into this list.
    pub sources: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 (may be negative) and nanoseconds (0 to 999 999 999).
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory(BTreeMap<Name, InodeId>),
    File(Data),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// The data of a file: `size` bytes, which are zero outside the segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Data {
    pub size: u64,
    /// Sorted by `at`, without overlaps. An ordinary file has one segment at 0 with the whole size.
    pub segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The offset in the file.
    pub at: u64,
    /// An index into [`Tree::sources`].
    pub source: u32,
    /// The offset in that tar, which is a multiple of 512 for ordinary members.
    pub offset: u64,
    pub len: u64,
}
