//! Encodes the superblock, device slots, inodes, attributes and directory blocks of erofs_fs.h. All fields are
//! little-endian.

use std::collections::BTreeMap;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use super::body::{Body, Chunk};
use super::directory::{DIRENT, Entry, fill, with_dots};
use super::layout::{InodeId0, Layout, SLOT, shown_device};
use super::xattrs::XATTR_HEADER;
use super::xattrs::storable_xattrs;
use super::{BLOCK, BLOCK_BITS, MAGIC, SUPERBLOCK_AT};
use crate::layer::{Inode, InodeId, Kind, Name, Tree};

const FEATURE_COMPAT_MTIME: u32 = 0x2;
const FEATURE_INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const FEATURE_INCOMPAT_DEVICE_TABLE: u32 = 0x8;
const CHUNK_FORMAT_INDEXES: u16 = 0x20;
/// `i_format`: bit 0 marks an extended inode, the data layout follows.
const FORMAT_PLAIN: u16 = 1;
const FORMAT_INLINE: u16 = 1 | (2 << 1);
const FORMAT_CHUNKS: u16 = 1 | (4 << 1);

/// A writer that counts its position.
pub(super) struct Out<W> {
    inner: W,
    at: u64,
}

impl<W: Write> Out<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, at: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.inner.write_all(bytes)
    }

    /// Writes zeros up to `at`, which must not be less than the current position.
    fn pad_to(&mut self, at: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        debug_assert!(self.at <= at, "{} > {at}", self.at);
        while self.at < at {
            let part = usize::try_from(at - self.at).unwrap_or(ZEROS.len()).min(ZEROS.len());
            self.put(&ZEROS[..part])?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.inner.flush()?;
        Ok(self.at)
    }
}

pub(super) fn image<W: Write>(tree: &Tree, layout: &Layout, devices: &[u64], out: &mut Out<W>) -> io::Result<()> {
    out.pad_to(SUPERBLOCK_AT)?;
    out.put(&superblock(tree, layout, devices.len()))?;
    out.pad_to(layout.devices_at)?;
    for length in devices {
        let mut slot = [0_u8; 128];
        slot[64..68].copy_from_slice(&u32::try_from(length.div_ceil(BLOCK)).unwrap_or(u32::MAX).to_le_bytes());
        out.put(&slot)?;
    }
    let mut names = Vec::new();
    for id in &layout.order {
        let inode = &tree.inodes[id.0 as usize];
        let inode_layout = &layout.inode_layouts[id.0 as usize];
        out.pad_to(inode_layout.at)?;
        out.put(&inode_head(inode, *id, layout))?;
        xattrs(inode, inode_layout.xattrs, out)?;
        match &inode_layout.body {
            Body::None => {}
            Body::Chunks { chunks, .. } => {
                out.pad_to(out.at.next_multiple_of(8))?;
                for Chunk { device, block } in chunks {
                    let mut index = [0_u8; 8];
                    index[2..4].copy_from_slice(&device.to_le_bytes());
                    index[4..8].copy_from_slice(&block.to_le_bytes());
                    out.put(&index)?;
                }
            }
            Body::Flat { tail: 0, .. } => {}
            Body::Flat { blocks, .. } => {
                let content = content(tree, *id, layout, &mut names);
                out.put(&content[(*blocks * BLOCK) as usize..])?;
            }
        }
    }
    for id in &layout.order {
        if let Body::Flat { block, blocks, .. } = layout.inode_layouts[id.0 as usize].body
            && blocks > 0
        {
            out.pad_to(block * BLOCK)?;
            let content = content(tree, *id, layout, &mut names);
            out.put(&content[..content.len().min((blocks * BLOCK) as usize)])?;
        }
    }
    // Pad to a whole page, so that a reader that maps the file by pages never finds its end inside a page.
    out.pad_to((layout.end_block * BLOCK).next_multiple_of(4096))
}

fn superblock(tree: &Tree, layout: &Layout, devices: usize) -> [u8; 128] {
    let mut bytes = [0_u8; 128];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(0, &MAGIC.to_le_bytes());
    set(8, &FEATURE_COMPAT_MTIME.to_le_bytes());
    set(12, &[BLOCK_BITS as u8]);
    set(14, &(nid(layout, InodeId(0)) as u16).to_le_bytes());
    set(16, &(layout.order.len() as u64).to_le_bytes());
    set(36, &(layout.end_block as u32).to_le_bytes());
    // overlayfs requires a lower file system with a unique UUID before it keeps inode numbers across copy-up.
    let mut hash = Sha256::new();
    for source in &tree.sources {
        hash.update(source.0);
    }
    hash.update((layout.order.len() as u64).to_le_bytes());
    set(48, &hash.finalize()[..16]);
    set(80, &(FEATURE_INCOMPAT_CHUNKED_FILE | FEATURE_INCOMPAT_DEVICE_TABLE).to_le_bytes());
    set(86, &(devices as u16).to_le_bytes());
    set(88, &((layout.devices_at / 128) as u16).to_le_bytes());
    bytes
}

fn nid(layout: &Layout, id: InodeId) -> u64 {
    layout.inode_layouts[id.0 as usize].at / SLOT
}

fn inode_head(inode: &Inode, id: InodeId, layout: &Layout) -> [u8; 64] {
    let inode_layout = &layout.inode_layouts[id.0 as usize];
    let (format, size, union) = match &inode_layout.body {
        Body::Chunks { bits, .. } => {
            let Kind::File(data) = &inode.kind else { unreachable!("only files have chunks") };
            (FORMAT_CHUNKS, data.size, u32::from(CHUNK_FORMAT_INDEXES | *bits as u16))
        }
        Body::Flat { size, block, tail, .. } => {
            (if *tail > 0 { FORMAT_INLINE } else { FORMAT_PLAIN }, *size, *block as u32)
        }
        Body::None => {
            (FORMAT_PLAIN, 0, shown_device(&inode.kind).map_or(0, |(major, minor)| encode_device(major, minor)))
        }
    };
    let count = if inode_layout.xattrs == 0 { 0 } else { 1 + (inode_layout.xattrs - XATTR_HEADER) / 4 };
    let mut bytes = [0_u8; 64];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(0, &format.to_le_bytes());
    set(2, &(count as u16).to_le_bytes());
    // Linux has no mode for symbolic links. Tars contain arbitrary modes for them.
    let mode = if matches!(inode.kind, Kind::Symlink(_)) { 0o777 } else { inode.mode & 0o7777 };
    set(4, &(type_bits(&inode.kind) | mode).to_le_bytes());
    set(8, &size.to_le_bytes());
    set(16, &union.to_le_bytes());
    set(20, &(id.0 + 1).to_le_bytes());
    set(24, &inode.uid.to_le_bytes());
    set(28, &inode.gid.to_le_bytes());
    set(32, &inode.mtime.0.to_le_bytes());
    set(40, &inode.mtime.1.to_le_bytes());
    set(44, &inode_layout.links.to_le_bytes());
    bytes
}

/// The kernel's `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
    }
}

/// The generic FT_* numbers that directory entries carry.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

fn xattrs<W: Write>(inode: &Inode, size: u32, out: &mut Out<W>) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    out.put(&[0; XATTR_HEADER as usize])?;
    for (index, name, value) in storable_xattrs(&inode.xattrs) {
        let length = (value.len() as u16).to_le_bytes();
        out.put(&[name.len() as u8, index, length[0], length[1]])?;
        out.put(name)?;
        out.put(value)?;
        out.pad_to(out.at.next_multiple_of(4))?;
    }
    Ok(())
}

/// The bytes of a directory or of a link target.
fn content<'a>(tree: &'a Tree, id: InodeId, layout: &Layout, buffer: &'a mut Vec<u8>) -> &'a [u8] {
    match &tree.inodes[id.0 as usize].kind {
        Kind::Symlink(target) => target,
        Kind::Directory(entries) => {
            buffer.clear();
            directory(tree, entries, id, layout, buffer);
            buffer
        }
        _ => &[],
    }
}

fn directory(tree: &Tree, entries: &BTreeMap<Name, InodeId>, id: InodeId, layout: &Layout, out: &mut Vec<u8>) {
    let InodeId0(parent) = layout.inode_layouts[id.0 as usize].parent;
    let all = with_dots(entries);
    let mut rest = &all[..];
    while !rest.is_empty() {
        let start = out.len();
        let (count, _) = fill(rest.iter().map(|(name, _)| *name));
        let mut name_at = DIRENT as usize * count;
        for (name, entry) in &rest[..count] {
            let target = match *entry {
                Entry::Itself => id,
                Entry::Parent => parent,
                Entry::Child(child) => child,
            };
            out.extend_from_slice(&nid(layout, target).to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[file_type(&tree.inodes[target.0 as usize].kind), 0]);
            name_at += name.len();
        }
        for (name, _) in &rest[..count] {
            out.extend_from_slice(name);
        }
        rest = &rest[count..];
        if !rest.is_empty() {
            out.resize(start + BLOCK as usize, 0);
        }
    }
}
