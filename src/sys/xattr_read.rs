//! Reading all extended attributes of a path, links not followed.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names and values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Every attribute of `path` itself.
pub fn all(path: &Path) -> io::Result<Xattrs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
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
