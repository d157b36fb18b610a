//! Where everything stands: positions, link counts and bodies of all inodes, before the first byte is written.

use std::collections::BTreeMap;

use super::encode::{directory_size, xattr_size};
use super::side::Side;
use super::{BLOCK, BLOCK_BITS, SUPERBLOCK_AT, WriteError};
use crate::layer::{Data, Inode, InodeId, Kind, Name, Tree};

/// Size of an extended inode.
pub const INODE: u64 = 64;
/// Inode numbers count these.
pub const SLOT: u64 = 32;
/// The largest chunk: 31 bits above the block.
const MAX_CHUNK_BITS: u32 = 31;
/// A tail longer than this costs less as a block of its own than as the gap that keeps it from crossing one.
const MAX_TAIL: u64 = 320;

pub struct Layout {
    /// Reachable inodes, each directory before what it holds.
    pub order: Vec<InodeId>,
    /// By inode id.
    pub places: Vec<Place>,
    pub devices_at: u64,
    /// The end of the image in blocks.
    pub end_block: u64,
    pub notes: Notes,
}

#[derive(Debug, Clone, Default)]
pub struct Place {
    /// In bytes; 0 for an inode that nothing names.
    pub at: u64,
    pub links: u32,
    /// Bytes of the attributes after the inode, 0 without any.
    pub xattrs: u32,
    pub body: Body,
    /// For a directory.
    pub parent: InodeId0,
}

/// An inode id that defaults to the root.
#[derive(Debug, Clone, Copy)]
pub struct InodeId0(pub InodeId);

impl Default for InodeId0 {
    fn default() -> Self {
        Self(InodeId(0))
    }
}

#[derive(Debug, Clone, Default)]
pub enum Body {
    #[default]
    None,
    /// `blocks` full blocks from `block` on, then `tail` bytes behind the inode.
    Flat { size: u64, block: u64, blocks: u64, tail: u64 },
    /// Chunks of 2^`bits` blocks.
    Chunks { bits: u32, chunks: Vec<Chunk> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// 1 is the first extra device; 0 for a hole.
    pub device: u16,
    pub block: u32,
}

impl Chunk {
    pub const HOLE: Self = Self { device: 0, block: u32::MAX };
}

/// What could not be drawn as it is.
#[derive(Debug, Default)]
pub struct Notes {
    pub overlay_xattrs: u64,
    pub odd_xattrs: u64,
    pub whiteout_devices: u64,
    pub odd_devices: u64,
}

impl Notes {
    pub fn sentences(&self) -> Vec<String> {
        [
            (self.overlay_xattrs, "`trusted.overlay.*` attributes left out: overlayfs would take them for its own"),
            (self.odd_xattrs, "extended attributes left out: Linux has no such namespace, or they are too large"),
            (self.whiteout_devices, "character devices 0:0 shown as 0:1: overlayfs would take them for whiteouts"),
            (self.odd_devices, "devices with impossible numbers shown as 0:1"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

pub fn plan(tree: &Tree, lengths: &[u64], side: &mut Side<'_>) -> Result<Layout, WriteError> {
    let mut places = vec![Place::default(); tree.inodes.len()];
    let order = walk(tree, &mut places)?;

    let devices_at = SUPERBLOCK_AT + 128;
    // One slot more than the tars: whether there is a side file is known only after the files.
    let mut at = devices_at + 128 * (lengths.len() as u64 + 1);
    let mut notes = Notes::default();
    for id in &order {
        let inode = &tree.inodes[id.0 as usize];
        count_losses(inode, &mut notes);
        let place = &mut places[id.0 as usize];
        place.xattrs = xattr_size(&inode.xattrs);
        place.body = body(inode, lengths, side)?;
        at = put(place, at);
    }
    let mut block = at.div_ceil(BLOCK);
    for id in &order {
        if let Body::Flat { block: first, blocks, .. } = &mut places[id.0 as usize].body
            && *blocks > 0
        {
            *first = block;
            block += *blocks;
        }
    }
    if u32::try_from(block).is_err() {
        return Err(WriteError::TooLarge { size: block * BLOCK });
    }
    Ok(Layout { order, places, devices_at, end_block: block, notes })
}

/// Depth first, names in order; counts links and notes parents.
fn walk(tree: &Tree, places: &mut [Place]) -> Result<Vec<InodeId>, WriteError> {
    let root = InodeId(0);
    let directory = |id: InodeId| match tree.inodes.get(id.0 as usize).map(|inode| &inode.kind) {
        Some(Kind::Directory(entries)) => Some(entries),
        _ => None,
    };
    let entries = directory(root).ok_or(WriteError::Malformed { what: "root directory", inode: root })?;
    let mut order = vec![root];
    places[0].links = 2;
    let mut stack: Vec<(InodeId, std::collections::btree_map::Iter<'_, Name, InodeId>)> = vec![(root, entries.iter())];
    while let Some((parent, entries)) = stack.last_mut() {
        let parent = *parent;
        let Some((name, &id)) = entries.next() else {
            stack.pop();
            continue;
        };
        check_name(name)?;
        let place =
            places.get_mut(id.0 as usize).ok_or(WriteError::Malformed { what: "inode for a name", inode: id })?;
        if let Some(entries) = directory(id) {
            if place.links > 0 {
                return Err(WriteError::Malformed { what: "single place for a directory", inode: id });
            }
            place.links = 2;
            place.parent = InodeId0(parent);
            places[parent.0 as usize].links += 1;
            order.push(id);
            stack.push((id, entries.iter()));
        } else {
            place.links += 1;
            if place.links == 1 {
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

/// The numbers that a device node is drawn with: see the room's header.
pub fn shown_device(kind: &Kind) -> Option<(u32, u32)> {
    match *kind {
        Kind::CharDevice { major: 0, minor: 0 } => Some((0, 1)),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            Some(if fits(major, minor) { (major, minor) } else { (0, 1) })
        }
        _ => None,
    }
}

fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// The prefix's index and the rest of the name, for an attribute that can be drawn.
pub fn xattr_prefix<'a>(name: &'a [u8], value: &[u8]) -> Option<(u8, &'a [u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    if is_overlay_xattr(name) || value.len() > usize::from(u16::MAX) {
        return None;
    }
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    let (prefix, index) = PREFIXES.into_iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    // XATTR_NAME_MAX counts the whole name.
    (!rest.is_empty() && name.len() <= 255 && !rest.contains(&0)).then_some((index, rest))
}

/// The attributes that are drawn, in order, as long as their sum fits (i_xattr_icount is 16 bits of 4 bytes each).
pub fn drawn_xattrs(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    let mut room = 65_000 * 4_usize;
    xattrs.iter().filter_map(move |(name, value)| {
        let (index, rest) = xattr_prefix(name, value)?;
        room = room.checked_sub((4 + rest.len() + value.len()).next_multiple_of(4))?;
        Some((index, rest, &**value))
    })
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

/// The chunks of a file that is one aligned run of a tar.
fn in_place(data: &Data, lengths: &[u64]) -> Result<Option<Body>, WriteError> {
    let [segment] = *data.segments else { return Ok(None) };
    let whole = segment.at == 0 && segment.len == data.size && segment.offset.is_multiple_of(BLOCK);
    let end = segment.offset.checked_add(segment.len).and_then(|end| end.checked_next_multiple_of(BLOCK));
    // A loop device drops what is not a whole sector at the end of its file.
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

/// The smallest chunk that takes `size` bytes, if there is one.
fn chunk_bits(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK);
    blocks.next_power_of_two().trailing_zeros().min(MAX_CHUNK_BITS)
}

/// Puts an inode at the first possible place from `at` on; answers where it ends.
fn put(place: &mut Place, at: u64) -> u64 {
    let head = INODE + u64::from(place.xattrs);
    let mut at = at.next_multiple_of(SLOT);
    let offset = |at: u64| at % BLOCK;
    // The kernel reads an inode that crosses blocks in two steps; there is no need to make it.
    if offset(at) + INODE > BLOCK {
        at = at.next_multiple_of(BLOCK);
    }
    let end = match &mut place.body {
        Body::None => at + head,
        Body::Chunks { chunks, .. } => (at + head).next_multiple_of(8) + 8 * chunks.len() as u64,
        Body::Flat { blocks, tail, .. } => {
            // A tail must lie in one block.
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
    place.at = at;
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
                    let mut place = Place { xattrs, body: flat(tail), ..Place::default() };
                    let end = put(&mut place, start);
                    assert!(place.at >= start && place.at.is_multiple_of(SLOT));
                    if let Body::Flat { tail: kept, blocks, .. } = place.body {
                        assert!(kept + blocks * BLOCK >= tail);
                        assert!((end - kept) % BLOCK + kept <= BLOCK, "tail {tail} xattrs {xattrs} start {start}");
                    }
                }
            }
        }
    }
}
