//! The capability sets of this process (capabilities(7)).

use std::io;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the effective and permitted sets to `held`, and clears the inheritable and ambient sets.
pub(crate) fn set(held: u64) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(held & 0xffff_ffff), half(held >> 32)];
    // SAFETY: capset(2) reads a header and, for version 3, two data blocks. Both have the layout of linux/capability.h.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: PR_CAP_AMBIENT takes only numbers.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Drops all capabilities that are not in `kept` from the bounding set.
pub(crate) fn bound(kept: u64) -> io::Result<()> {
    for number in (0..64).filter(|number| kept >> number & 1 == 0) {
        // SAFETY: PR_CAPBSET_DROP and PR_CAPBSET_READ take a number. The kernel returns EINVAL for unknown capabilities.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EINVAL) {
            return Ok(());
        }
        // Without CAP_SETPCAP, one that is not there cannot be dropped either.
        // SAFETY: as above.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } != 0 {
            return Err(error);
        }
    }
    Ok(())
}

/// Prevents all programs that this process executes from gaining privileges through their file (setuid, file
/// capabilities).
pub(crate) fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes only numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
