//! Where an inode has its data.

#[derive(Debug, Clone, Default)]
pub(crate) enum Body {
    #[default]
    None,
    /// `blocks` full blocks starting at `block`, then `tail` bytes behind the inode.
    Flat { size: u64, block: u64, blocks: u64, tail: u64 },
    /// Chunks of 2^`bits` blocks.
    Chunks { bits: u32, chunks: Vec<Chunk> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The device number: 1 is the first extra device, 0 marks a hole.
    pub device: u16,
    pub block: u32,
}

impl Chunk {
    pub(crate) const HOLE: Self = Self { device: 0, block: u32::MAX };
}
