//! The merged tree of an image: what its layers add up to, as plain data.
//!
//! An arena of inodes; directories name them by id, so a hard link is simply an id that stands in two places. File data stay where
//! they are: a [`Segment`] points into a source (a layer's tar), and nothing here reads a byte of it.

use std::collections::BTreeMap;

use crate::names::Digest;

/// Index into [`Tree::inodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u32);

/// One component of a path: no `/`, no NUL, never empty, `.` or `..`.
pub type Name = Box<[u8]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// `inodes[0]` is the root directory; ids that nothing names any more (replaced entries) are not kept.
    pub inodes: Vec<Inode>,
    /// The layers' tars, by diff id, in the order that [`Segment::source`] counts.
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

/// A file's bytes: `size` of them, zero wherever no segment lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Data {
    pub size: u64,
    /// Ascending by `at`, not overlapping; one segment at 0 of the whole size for every ordinary file.
    pub segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub at: u64,
    /// Which of [`Tree::sources`].
    pub source: u32,
    /// Where in that tar: a multiple of 512 for ordinary members.
    pub offset: u64,
    pub len: u64,
}
