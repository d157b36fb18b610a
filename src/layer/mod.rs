//! Parses the tar streams of an image's layers, merges them into one tree in memory, and renders that tree.
//!
//! ```text
//! tar bytes ─ tar::Scanner ─→ Vec<Entry> per layer ─ merge::Merger ─→ Tree ─→ erofs::write or directory::render
//! a rendered directory and its Tree ─ compare::difference ─→ the first difference
//! an overlay's upper directory ─ diff::write ─→ tar bytes
//! ```
//!
//! No string from an image becomes a path of the host here. The scanner reads only headers. The merge resolves every
//! name, link and whiteout against the tree in memory. It follows the rules of the OCI image spec and, where the spec
//! is silent, the behavior of Go's `archive/tar`, containerd and moby, so that an image has the same contents
//! everywhere. The renderers create what the finished tree holds. Input that cannot be distinguished from an attack is
//! rejected, never repaired: `..` above the root, malformed whiteout names, hard links to missing files.

pub(crate) mod archive;
pub(crate) mod compare;
pub(crate) mod diff;
pub(crate) mod directory;
pub(crate) mod erofs;
mod lookup;
pub(crate) mod merge;
pub(crate) mod tar;
#[cfg(test)]
pub(crate) mod testing;
mod tree;

pub(crate) use lookup::LookupError;
pub use merge::Merger;
pub use tar::Entry;
pub use tar::Scanner;
pub(crate) use tar::{EntryKind, TarError};
pub use tree::Kind;
pub use tree::Tree;
pub(crate) use tree::{Data, Inode, InodeId, Name, Segment};
