//! The fast renderer: writes a merged [`Tree`] as an EROFS image that holds only metadata, called the index.
//!
//! File data stay in the layers' tars. The index refers to the tars as extra devices, in the order of
//! [`Tree::sources`]. Each regular file is a chunk-based inode with one chunk in one of them. This works because both
//! tar and the index use blocks of 512 bytes. Data that are not one aligned run of a tar (sparse members, a tar that
//! ends inside a block) are copied to a *side file*, the last device.
//!
//! ```text
//! 0      1024         1152                 inodes                        directory blocks
//! | zero | superblock | device slots (128) | 64 B + xattrs + tail or    | full 512-byte blocks of directories and long
//! |      | 128 B      | one per tar + side | chunk index, in tree order | link targets, in the same order
//! ```
//!
//! The format is described in the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Every inode is
//! an extended one, with 64-bit times, nanoseconds and 32-bit owners. `meta_blkaddr` is 0, so an inode's number is its
//! position divided by 32.
//!
//! The image becomes the lower directory of an overlay. So entries that overlayfs would interpret are changed:
//! - `trusted.overlay.*` attributes are omitted. They are left over from an upper directory, and no container can read
//!   `trusted.*`.
//! - A character device 0:0 is a whiteout to overlayfs and would be invisible. It is written as 0:1, which has no
//!   driver either, so that its name, type, mode and owner stay visible.
//!
//! The same tree gives the same bytes.

mod body;
mod directory;
mod encode;
mod error;
mod format;
mod layout;
mod side;

#[cfg(test)]
mod tests;
mod xattrs;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::layer::Tree;
pub(crate) use error::WriteError;
pub(crate) use format::{BLOCK, BLOCK_BITS, MAGIC, SUPERBLOCK_AT};

/// The result of a write, including notes about entries that EROFS or an overlay cannot represent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    pub inodes: u64,
    /// The length of the index.
    pub bytes: u64,
    /// The length of the side file. If it is 0, the side file is not a device of the image and may be deleted.
    pub side_bytes: u64,
    /// One sentence per kind of loss, to be shown as a notice.
    pub notes: Vec<String>,
}

/// Writes the index of `tree` to `index`. `sources` are the tars of [`Tree::sources`], in that order. They are read
/// only for data that are copied to `side`, which must be empty and open for writing. Neither file is synced.
pub fn write(tree: &Tree, sources: &[File], index: impl Write, side: &File) -> Result<Written, WriteError> {
    // The device count is a u16, and one device may be the side file.
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

/// The number of extra devices that the index at `file` needs, or `None` if the file is not an index of ours.
pub(crate) fn device_count(file: &File) -> io::Result<Option<u16>> {
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
