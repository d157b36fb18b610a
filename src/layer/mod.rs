//! Tar streams → the merged tree of an image (pure), and the renderers that draw it.

pub mod erofs;
mod tree;

pub use tree::{Data, Inode, InodeId, Kind, Name, Segment, Tree};
