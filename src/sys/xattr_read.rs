//! Reads all extended attributes of a file, without following links.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names and values.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Returns all attributes of `path` itself.
pub fn all(path: &Path) -> io::Result<Xattrs> {
    read(&CString::new(path.as_os_str().as_bytes())?)
}

/// Returns all attributes of an open directory. The result is empty on a file system without attributes.
pub(crate) fn of_open(dir: BorrowedFd<'_>) -> io::Result<Xattrs> {
    // The descriptor's entry in /proc is a link and is not followed, so the path is extended with `.`.
    at(dir, b".")
}

/// Returns all attributes of the entry `name` of a directory, without following a link. The result is empty on a file
/// system without attributes. The directory is accessed as in [`super::xattr::set_at`].
pub(crate) fn at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Xattrs> {
    let dir = format!("/proc/self/fd/{}/", dir.as_raw_fd());
    match read(&CString::new([dir.as_bytes(), name].concat())?) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(Xattrs::new()),
        other => other,
    }
}

fn read(path: &CStr) -> io::Result<Xattrs> {
    let names = grow(|buffer| {
        // SAFETY: `path` is NUL-terminated, and the buffer is valid for writes of the given length. Both outlive the
        // call.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })?;
    let mut found = BTreeMap::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let value = grow(|buffer| {
            // SAFETY: both strings are NUL-terminated, and the buffer is valid for writes of the given length. All
            // outlive the call.
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        });
        match value {
            Ok(value) => drop(found.insert(name.to_bytes().into(), value.into())),
            // A running container may remove an attribute after it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Returns the result of a call that fills a buffer of at most 64 KiB, which is the kernel's limit for both lists and
/// values.
fn grow(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 1 << 16];
    let length = usize::try_from(call(&mut buffer)).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}
