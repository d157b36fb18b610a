//! Tar streams → the merged tree of an image (pure), and the renderers that draw it.
//!
//! ```text
//! tar bytes ─ tar::Scanner ─→ Vec<Entry> per layer ─ merge::Merger ─→ Tree ─→ erofs::write, directory::render (compare: is it still so?)
//! an overlay's upper directory ─ diff::write ─→ tar bytes
//! ```
//!
//! Nothing an image says becomes a path of the host here. The scanner only reads headers; the merge resolves every name, link and
//! whiteout against the tree in memory, with the rules of the OCI image spec and, where that is silent, of what Go's `archive/tar`
//! plus containerd and moby do (so that one image means one thing everywhere); the renderers create what the finished tree says.
//! What cannot be told apart from an attack is refused, never repaired: `..` above the root, odd whiteout names, links to nowhere.

pub mod archive;
pub mod compare;
pub mod diff;
pub mod directory;
pub mod erofs;
mod look;
pub mod merge;
pub mod tar;
#[cfg(test)]
pub(crate) mod testing;
mod tree;

pub use look::{LookError, Place};
pub use merge::{MergeError, Merger};
pub use tar::{Entry, EntryKind, Scanner, TarError};
pub use tree::{Data, Inode, InodeId, Kind, Name, Segment, Tree};
