//! Reading all extended attributes of something, links not followed.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names and values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Every attribute of `path` itself.
pub fn all(path: &Path) -> io::Result<Xattrs> {
    read(&CString::new(path.as_os_str().as_bytes())?)
}

/// Every attribute of an open directory; a file system without any has none.
pub fn of_open(dir: BorrowedFd<'_>) -> io::Result<Xattrs> {
    // The descriptor's own entry in /proc is a link, and is not followed: what is asked about is `.` behind it.
    at(dir, b".")
}

/// Every attribute of the entry `name` of a directory itself; a file system without any has none. (As in [`super::xattr::set_at`].)
pub fn at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Xattrs> {
    let dir = format!("/proc/self/fd/{}/", dir.as_raw_fd());
    match read(&CString::new([dir.as_bytes(), name].concat())?) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(Xattrs::new()),
        other => other,
    }
}

fn read(path: &CStr) -> io::Result<Xattrs> {
    let names = grow(|buffer| {
        // SAFETY: `path` is NUL-terminated; the buffer is valid for writes of the length given; both outlive the call.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })?;
    let mut found = BTreeMap::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let value = grow(|buffer| {
            // SAFETY: both strings are NUL-terminated; the buffer is valid for writes of the length given; all outlive the call.
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        })?;
        found.insert(name.to_bytes().into(), value.into());
    }
    Ok(found)
}

/// The bytes of a call that fills a buffer of at most 64 KiB, the kernel's bound for both lists and values.
fn grow(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 1 << 16];
    let length = usize::try_from(call(&mut buffer)).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}
