//! Plans the layout: computes the positions, link counts and bodies of all inodes before the first byte is written.

use super::body::{Body, Chunk};
use super::directory::directory_size;
use super::side::Side;
use super::xattrs::xattr_size;
use super::xattrs::{is_overlay_xattr, xattr_prefix};
use super::{BLOCK, BLOCK_BITS, SUPERBLOCK_AT, WriteError};
use crate::layer::{Data, Inode, InodeId, Kind, Name, Tree};

/// The size of an extended inode.
pub(super) const INODE: u64 = 64;
/// The unit of inode numbers.
pub(super) const SLOT: u64 = 32;
/// The largest chunk size: 31 bits above the block size.
const MAX_CHUNK_BITS: u32 = 31;
/// A longer tail gets a block of its own. Kept behind its inode, it would cost more in padding, because a tail must not
/// cross a block boundary.
const MAX_TAIL: u64 = 320;

pub(super) struct Layout {
    /// The reachable inodes, each directory before its entries.
    pub order: Vec<InodeId>,
    /// Indexed by inode id.
    pub inode_layouts: Vec<InodeLayout>,
    pub devices_at: u64,
    /// The end of the image, in blocks.
    pub end_block: u64,
    pub notes: Notes,
}

#[derive(Debug, Clone, Default)]
pub(super) struct InodeLayout {
    /// The position in bytes, or 0 for an inode without a name.
    pub at: u64,
    pub links: u32,
    /// The size in bytes of the attributes after the inode, or 0 without any.
    pub xattrs: u32,
    pub body: Body,
    /// The parent of a directory.
    pub parent: InodeId0,
}

/// An inode id that defaults to the root.
#[derive(Debug, Clone, Copy)]
pub(super) struct InodeId0(pub InodeId);

impl Default for InodeId0 {
    fn default() -> Self {
        Self(InodeId(0))
    }
}

/// Counts of the entries that cannot be represented exactly.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub overlay_xattrs: u64,
    pub odd_xattrs: u64,
    pub whiteout_devices: u64,
    pub odd_devices: u64,
}

impl Notes {
    pub(super) fn sentences(&self) -> Vec<String> {
        [
            (self.overlay_xattrs, "`trusted.overlay.*` attributes omitted: overlayfs would interpret them"),
            (self.odd_xattrs, "extended attributes omitted: Linux has no such namespace, or they are too large"),
            (self.whiteout_devices, "character devices 0:0 shown as 0:1: overlayfs would interpret them as whiteouts"),
            (self.odd_devices, "devices with impossible numbers shown as 0:1"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

pub(super) fn plan(tree: &Tree, lengths: &[u64], side: &mut Side<'_>) -> Result<Layout, WriteError> {
    let mut inode_layouts = vec![InodeLayout::default(); tree.inodes.len()];
    let order = walk(tree, &mut inode_layouts)?;

    let devices_at = SUPERBLOCK_AT + 128;
    // Reserve one slot more than there are tars: whether a side file is needed is known only after all files are
    // planned.
    let mut at = devices_at + 128 * (lengths.len() as u64 + 1);
    let mut notes = Notes::default();
    for id in &order {
        let inode = &tree.inodes[id.0 as usize];
        count_losses(inode, &mut notes);
        let inode_layout = &mut inode_layouts[id.0 as usize];
        inode_layout.xattrs = xattr_size(&inode.xattrs);
        inode_layout.body = body(inode, lengths, side)?;
        at = put(inode_layout, at);
    }
    let mut block = at.div_ceil(BLOCK);
    for id in &order {
        if let Body::Flat { block: first, blocks, .. } = &mut inode_layouts[id.0 as usize].body
            && *blocks > 0
        {
            *first = block;
            block += *blocks;
        }
    }
    if u32::try_from(block).is_err() {
        return Err(WriteError::TooLarge { size: block * BLOCK });
    }
    Ok(Layout { order, inode_layouts, devices_at, end_block: block, notes })
}

/// Walks the tree depth first, in the order of names. It counts links and records parents.
fn walk(tree: &Tree, inode_layouts: &mut [InodeLayout]) -> Result<Vec<InodeId>, WriteError> {
    let root = InodeId(0);
    let directory = |id: InodeId| match tree.inodes.get(id.0 as usize).map(|inode| &inode.kind) {
        Some(Kind::Directory(entries)) => Some(entries),
        _ => None,
    };
    let entries = directory(root).ok_or(WriteError::Malformed { what: "root directory", inode: root })?;
    let mut order = vec![root];
    inode_layouts[0].links = 2;
    let mut stack: Vec<(InodeId, std::collections::btree_map::Iter<'_, Name, InodeId>)> = vec![(root, entries.iter())];
    while let Some((parent, entries)) = stack.last_mut() {
        let parent = *parent;
        let Some((name, &id)) = entries.next() else {
            stack.pop();
            continue;
        };
        check_name(name)?;
        let inode_layout = inode_layouts
            .get_mut(id.0 as usize)
            .ok_or(WriteError::Malformed { what: "inode for a name", inode: id })?;
        if let Some(entries) = directory(id) {
            if inode_layout.links > 0 {
                return Err(WriteError::Malformed { what: "single place for a directory", inode: id });
            }
            inode_layout.links = 2;
            inode_layout.parent = InodeId0(parent);
            inode_layouts[parent.0 as usize].links += 1;
            order.push(id);
            stack.push((id, entries.iter()));
        } else {
            inode_layout.links += 1;
            if inode_layout.links == 1 {
                order.push(id);
            }
        }
    }
    Ok(order)
}

fn check_name(name: &[u8]) -> Result<(), WriteError> {
    if name.len() > 255 {
        let start = String::from_utf8_lossy(&name[..32]).into_owned();
        return Err(WriteError::NameTooLong { name: start, length: name.len() });
    }
    debug_assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0));
    Ok(())
}

fn count_losses(inode: &Inode, notes: &mut Notes) {
    for (name, value) in &inode.xattrs {
        if is_overlay_xattr(name) {
            notes.overlay_xattrs += 1;
        } else if xattr_prefix(name, value).is_none() {
            notes.odd_xattrs += 1;
        }
    }
    match inode.kind {
        Kind::CharDevice { major: 0, minor: 0 } => notes.whiteout_devices += 1,
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } if !fits(major, minor) => {
            notes.odd_devices += 1;
        }
        _ => {}
    }
}

fn fits(major: u32, minor: u32) -> bool {
    major < 1 << 12 && minor < 1 << 20
}

/// The device numbers that the image gets for a device node. See the header of `erofs`.
pub(super) fn shown_device(kind: &Kind) -> Option<(u32, u32)> {
    match *kind {
        Kind::CharDevice { major: 0, minor: 0 } => Some((0, 1)),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            Some(if fits(major, minor) { (major, minor) } else { (0, 1) })
        }
        _ => None,
    }
}

fn body(inode: &Inode, lengths: &[u64], side: &mut Side<'_>) -> Result<Body, WriteError> {
    match &inode.kind {
        Kind::Directory(entries) => Ok(flat(directory_size(entries))),
        Kind::Symlink(target) => Ok(flat(target.len() as u64)),
        Kind::File(data) if data.size == 0 => Ok(Body::None),
        Kind::File(data) => match in_place(data, lengths)? {
            Some(body) => Ok(body),
            None => side.add(data),
        },
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => Ok(Body::None),
    }
}

fn flat(size: u64) -> Body {
    let tail = size % BLOCK;
    let (blocks, tail) = if tail > MAX_TAIL { (size.div_ceil(BLOCK), 0) } else { (size / BLOCK, tail) };
    Body::Flat { size, block: 0, blocks, tail }
}

/// The chunks of a file whose data are one aligned run of a tar.
fn in_place(data: &Data, lengths: &[u64]) -> Result<Option<Body>, WriteError> {
    let [segment] = *data.segments else { return Ok(None) };
    let whole = segment.at == 0 && segment.len == data.size && segment.offset.is_multiple_of(BLOCK);
    let end = segment.offset.checked_add(segment.len).and_then(|end| end.checked_next_multiple_of(BLOCK));
    // A loop device ignores a partial sector at the end of its file.
    let complete = matches!((end, lengths.get(segment.source as usize)), (Some(end), Some(length)) if end <= *length);
    if !whole || !complete {
        return Ok(None);
    }
    let bits = chunk_bits(data.size);
    let first = segment.offset / BLOCK;
    let chunks = (0..data.size.div_ceil(BLOCK << bits))
        .map(|index| u32::try_from(first + (index << bits)).ok().filter(|block| *block != u32::MAX))
        .map(|block| block.map(|block| Chunk { device: segment.source as u16 + 1, block }))
        .collect::<Option<_>>()
        .ok_or(WriteError::TooLarge { size: data.size })?;
    Ok(Some(Body::Chunks { bits, chunks }))
}

/// The smallest chunk size that holds `size` bytes, limited to the largest one.
fn chunk_bits(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK);
    blocks.next_power_of_two().trailing_zeros().min(MAX_CHUNK_BITS)
}

/// Places an inode at the first possible position at or after `at`. Returns the position of its end.
fn put(inode_layout: &mut InodeLayout, at: u64) -> u64 {
    let head = INODE + u64::from(inode_layout.xattrs);
    let mut at = at.next_multiple_of(SLOT);
    let offset = |at: u64| at % BLOCK;
    // The kernel needs two steps to read an inode that crosses a block boundary, so none does.
    if offset(at) + INODE > BLOCK {
        at = at.next_multiple_of(BLOCK);
    }
    let end = match &mut inode_layout.body {
        Body::None => at + head,
        Body::Chunks { chunks, .. } => (at + head).next_multiple_of(8) + 8 * chunks.len() as u64,
        Body::Flat { blocks, tail, .. } => {
            // A tail must be within one block.
            let good = |at: u64| offset(at) + INODE <= BLOCK && offset(at + head) + *tail <= BLOCK;
            match (0..BLOCK / SLOT).map(|step| at + step * SLOT).find(|at| good(*at)) {
                Some(found) => at = found,
                None => {
                    *blocks += 1;
                    *tail = 0;
                }
            }
            at + head + *tail
        }
    };
    inode_layout.at = at;
    end
}

const _: () = assert!(BLOCK == 1 << BLOCK_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chunk_takes_any_ordinary_file() {
        for (size, bits) in
            [(1, 0), (512, 0), (513, 1), (1024, 1), (1025, 2), (1 << 30, 21), (1 << 40, 31), (1 << 42, 31)]
        {
            assert_eq!(chunk_bits(size), bits, "{size}");
        }
    }

    #[test]
    fn tails_never_cross_a_block() {
        for tail in (1..=MAX_TAIL).step_by(7) {
            for xattrs in [0_u32, 16, 20, 44, 500, 516] {
                for start in (0..1024).step_by(32) {
                    let mut inode_layout = InodeLayout { xattrs, body: flat(tail), ..InodeLayout::default() };
                    let end = put(&mut inode_layout, start);
                    assert!(inode_layout.at >= start && inode_layout.at.is_multiple_of(SLOT));
                    if let Body::Flat { tail: kept, blocks, .. } = inode_layout.body {
                        assert!(kept + blocks * BLOCK >= tail);
                        assert!((end - kept) % BLOCK + kept <= BLOCK, "tail {tail} xattrs {xattrs} start {start}");
                    }
                }
            }
        }
    }
}
