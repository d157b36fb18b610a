//! Numbers of the format that several files need.

/// The block size, which is the alignment of a tar.
pub(crate) const BLOCK: u64 = 512;

pub(crate) const BLOCK_BITS: u32 = 9;
/// From linux/magic.h.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;

pub(crate) const SUPERBLOCK_AT: u64 = 1024;
