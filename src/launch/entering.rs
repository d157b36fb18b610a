//! Entering the mount namespace of a container for a moment.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, setns};

/// Runs an action in a mount namespace, with the root directory of that namespace, and comes back. This process must be
/// single-threaded.
pub(super) fn in_mounts<T>(namespace: &File, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (own, root) = (File::open("/proc/self/ns/mnt")?, File::open("/")?);
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let done = action();
    setns(&own, CloneFlags::CLONE_NEWNS)?;
    nix::unistd::fchdir(&root)?;
    nix::unistd::chroot(".")?;
    done
}
