//! Keyrings (keyrings(7)).

use std::io;

/// Replaces the session keyring that this process has inherited with a new, empty one, because the caller's keys are
/// private.
///
/// On a kernel without keyrings there is nothing to replace. Where keyctl(2) is forbidden to this process, it is
/// forbidden to its children too. Neither case is an error.
pub(crate) fn leave_session() -> io::Result<()> {
    // SAFETY: keyctl(KEYCTL_JOIN_SESSION_KEYRING) reads a name, which may be NULL for an anonymous keyring.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}
