//! Errors of writing an index.

use std::io;

use crate::layer::InodeId;
use crate::report::Explain;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the image's tree has no {what} (inode {})", .inode.0)]
    Malformed { what: &'static str, inode: InodeId },
    #[error("the image has a name of {length} bytes: `{name}…` (the maximum is 255)")]
    NameTooLong { name: String, length: usize },
    #[error("the image has a file of {size} bytes, which its index cannot address")]
    TooLarge { size: u64 },
    #[error("the image has {count} layers, more than an index can address")]
    TooManyLayers { count: usize },
    #[error("cannot copy file data from layer {source_index} to the side file")]
    Copy { source_index: u32, source: io::Error },
    #[error("cannot write the image's index")]
    Write(#[source] io::Error),
}

impl Explain for WriteError {}
