//! `flock(2)` on an open file.
//!
//! nix's `Flock` is not used because it panics if the kernel refuses to unlock.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;

/// The kind of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlockArg {
    Shared,
    SharedNonblock,
    Exclusive,
    ExclusiveNonblock,
}

/// A locked file, which is unlocked when it is dropped.
#[derive(Debug)]
pub(crate) struct Flock(File);

impl Flock {
    /// Locks `file`, and continues to wait after signals.
    ///
    /// # Errors
    /// `WouldBlock` if another process holds the lock and `arg` does not wait.
    pub(crate) fn lock(file: File, arg: FlockArg) -> io::Result<Self> {
        let operation = match arg {
            FlockArg::Shared => libc::LOCK_SH,
            FlockArg::SharedNonblock => libc::LOCK_SH | libc::LOCK_NB,
            FlockArg::Exclusive => libc::LOCK_EX,
            FlockArg::ExclusiveNonblock => libc::LOCK_EX | libc::LOCK_NB,
        };
        loop {
            // SAFETY: flock(2) takes an open descriptor, which `file` owns, and a number.
            if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
                return Ok(Self(file));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        // Unlock explicitly, for forked processes that still have the descriptor. Otherwise closing it unlocks too, so
        // an error changes nothing.
        // SAFETY: as above.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl Deref for Flock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for Flock {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}
