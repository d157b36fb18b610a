//! The pipe through which a child reports its failure.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use super::error::RuntimeError;
use super::failure::Failure;

pub(super) fn pipe() -> Result<(File, OwnedFd), RuntimeError> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| RuntimeError::Sys("make a pipe", errno.into()))?;
    Ok((read.into(), write))
}

/// What a container's first process writes when it is about to execute its program. In front of a failure's JSON, it is
/// white space.
pub(super) const ABOUT_TO_EXECUTE: &[u8] = b"\n";

/// What a child wrote until it executed its program or ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether it was about to execute its program.
    pub is_begun: bool,
    /// Why it gave up.
    pub failure: Option<Failure>,
}

pub(super) fn read_outcome(pipe: &mut File) -> Outcome {
    let mut bytes = Vec::new();
    let read = pipe.take(4096).read_to_end(&mut bytes);
    Outcome {
        is_begun: bytes.starts_with(ABOUT_TO_EXECUTE),
        failure: read.ok().and_then(|_| serde_json::from_slice(&bytes).ok()),
    }
}

/// Reads the failure that the child wrote before it gave up. `None` means that it has executed its program, or ended
/// without a message.
pub(super) fn read_failure(pipe: &mut File) -> Option<Failure> {
    read_outcome(pipe).failure
}
