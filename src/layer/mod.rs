//! Tar streams → the merged tree of an image (pure), and the renderers that draw it.

mod tree;

pub use tree::{Data, Inode, InodeId, Kind, Name, Segment, Tree};
