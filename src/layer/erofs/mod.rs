//! The fast renderer: a merged [`Tree`] as an EROFS image that holds metadata only.
//!
//! File data stay in the layers' tars. The image names them as extra devices, in the order of [`Tree::sources`], and each regular file
//! is a chunk-based inode whose one chunk lies in one of them; 512-byte blocks make that possible, since tar aligns to 512. What is
//! not one aligned run of a tar (sparse members, a tar that ends inside a block) is copied to a *side file*, the last device.
//!
//! ```text
//! 0      1024         1152                 inodes                        directory blocks
//! | zero | superblock | device slots (128) | 64 B + xattrs + tail or    | full 512-byte blocks of directories and long
//! |      | 128 B      | one per tar + side | chunk index, in tree order | link targets, in the same order
//! ```
//!
//! The format is the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Every inode is an extended one: 64-bit
//! times with nanoseconds, 32-bit owners. `meta_blkaddr` is 0, so an inode's number is its position divided by 32.
//!
//! Because the image becomes an overlay's lower layer, what overlayfs would take for its own is not drawn as it is:
//! - `trusted.overlay.*` attributes are left out: they are traces of somebody's upper directory, and no container can read `trusted.*`;
//! - a character device 0:0 is overlayfs's whiteout and would be invisible; it is drawn as 0:1, an equally dead node, so that the name,
//!   its type, mode and owner are there.
//!
//! The same tree gives the same bytes.

mod encode;
mod layout;
mod side;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::layer::{InodeId, Tree};
use crate::report::Explain;

/// The block size: a tar's alignment.
pub const BLOCK: u64 = 512;
pub(crate) const BLOCK_BITS: u32 = 9;
/// linux/magic.h
pub const MAGIC: u32 = 0xE0F5_E1E2;
pub(crate) const SUPERBLOCK_AT: u64 = 1024;

/// What was written, and what could not be said in EROFS or under an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    pub inodes: u64,
    /// Length of the index.
    pub bytes: u64,
    /// Length of the side file; 0 if nothing needs it: then it is no device of the image and may be deleted.
    pub side_bytes: u64,
    /// One sentence per kind of loss, for a word to the person.
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the image's tree has no {what} (inode {})", .inode.0)]
    Malformed { what: &'static str, inode: InodeId },
    #[error("the image has a name of {length} bytes: `{name}…` (255 are possible)")]
    NameTooLong { name: String, length: usize },
    #[error("the image has a file of {size} bytes, which its index cannot point to")]
    TooLarge { size: u64 },
    #[error("the image has {count} layers, more than an index can point to")]
    TooManyLayers { count: usize },
    #[error("cannot copy file data from layer {source_index} to the side file")]
    Copy { source_index: u32, source: io::Error },
    #[error("cannot write the image's index")]
    Write(#[source] io::Error),
}

impl Explain for WriteError {}

/// Writes the index of `tree` to `index`. `sources` are the tars of [`Tree::sources`], in that order; they are read only for what goes
/// to `side`, which must be empty and open for writing. Neither file is synced here.
pub fn write(tree: &Tree, sources: &[File], index: impl Write, side: &File) -> Result<Written, WriteError> {
    // u16 counts devices, and one may be the side file.
    if tree.sources.len() != sources.len() || sources.len() > 0xFFF0 {
        return Err(WriteError::TooManyLayers { count: tree.sources.len() });
    }
    let lengths: Vec<u64> = sources
        .iter()
        .map(|file| file.metadata().map(|meta| meta.len()))
        .collect::<Result<_, _>>()
        .map_err(WriteError::Write)?;
    let mut side = side::Side::new(side, sources);
    let layout = layout::plan(tree, &lengths, &mut side)?;
    let side_bytes = side.finish()?;
    let mut devices = lengths;
    if side_bytes > 0 {
        devices.push(side_bytes);
    }
    let mut out = encode::Out::new(BufWriter::with_capacity(1 << 18, index));
    encode::image(tree, &layout, &devices, &mut out).map_err(WriteError::Write)?;
    let bytes = out.finish().map_err(WriteError::Write)?;
    Ok(Written { inodes: layout.order.len() as u64, bytes, side_bytes, notes: layout.notes.sentences() })
}

/// How many extra devices the index at `file` wants; none if it is not an index of ours.
pub fn device_count(file: &File) -> io::Result<Option<u16>> {
    use std::os::unix::fs::FileExt;
    let mut superblock = [0_u8; 128];
    match file.read_exact_at(&mut superblock, SUPERBLOCK_AT) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let magic = u32::from_le_bytes([superblock[0], superblock[1], superblock[2], superblock[3]]);
    let ours = magic == MAGIC && u32::from(superblock[12]) == BLOCK_BITS;
    Ok(ours.then(|| u16::from_le_bytes([superblock[86], superblock[87]])))
}
