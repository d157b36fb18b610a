//! Errors of a compressed stream.

use std::io;

/// The error of an invalid stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("the gzip stream is truncated")]
    Truncated,
    #[error("the gzip stream is damaged: {0} is invalid")]
    Bad(&'static str),
    #[error("the gzip stream is damaged: its checksum or size does not match")]
    Checksum,
    #[error("unexpected data after the end of the gzip stream")]
    Garbage,
}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        let kind =
            if corrupt == Corrupt::Truncated { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        Self::new(kind, corrupt)
    }
}
