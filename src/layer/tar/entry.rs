//! The entries of a tar stream.

use std::collections::BTreeMap;

use crate::layer::tree::{Data, Kind};

pub(crate) const BLOCK: usize = 512;

/// No Linux file system supports larger files. Only a sparse member can claim such a size.
pub(super) const MAX_FILE_SIZE: u64 = 1 << 44;

/// One member of a layer, as its headers describe it. Names are not validated yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Box<[u8]>,
    pub kind: EntryKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Entry {
    /// Adds `start` to the offsets of the data. They then count from the start of the file that contains the tar.
    pub fn shift(&mut self, start: u64) {
        if let EntryKind::File(data) = &mut self.kind {
            data.segments.iter_mut().for_each(|segment| segment.offset += start);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    /// Segments have the source 0 until the merge assigns the layer's number.
    File(Data),
    Symlink(Box<[u8]>),
    HardLink(Box<[u8]>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

impl From<&Kind> for EntryKind {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::Directory(_) => Self::Directory,
            Kind::File(data) => Self::File(data.clone()),
            Kind::Symlink(target) => Self::Symlink(target.clone()),
            Kind::CharDevice { major, minor } => Self::CharDevice { major: *major, minor: *minor },
            Kind::BlockDevice { major, minor } => Self::BlockDevice { major: *major, minor: *minor },
            Kind::Fifo => Self::Fifo,
        }
    }
}

/// The number of bytes from the end of `size` bytes to the next block.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
