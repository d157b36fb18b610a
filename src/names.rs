//! Digests, image references, container ids and names: parse and print, no I/O.

/// A sha256 digest, printed as `sha256:<64 hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);
