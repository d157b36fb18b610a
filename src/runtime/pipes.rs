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

/// Reads the failure that the child wrote before it gave up. `None` means that it has executed its program.
pub(super) fn read_failure(pipe: &mut File) -> Option<Failure> {
    let mut bytes = Vec::new();
    pipe.take(4096).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}
