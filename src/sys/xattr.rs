//! Sets extended attributes, and gets single ones.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Sets an attribute of an open file or directory.
pub(crate) fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated, `value` is valid for `value.len()` bytes, and both outlive the call. The
    // descriptor is borrowed for its duration, and the kernel checks everything else.
    let result =
        unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an attribute of the entry `entry` of a directory. If it is a symbolic link, the attribute is set on the link
/// itself.
///
/// `setxattrat` does not exist before Linux 6.13. So the directory is accessed through its descriptor in /proc, and the
/// last component is not followed.
pub(crate) fn set_at(directory: impl AsFd, entry: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()));
    let path = CString::new([path.as_os_str().as_bytes(), b"/", entry].concat())?;
    let name = CString::new(name)?;
    // SAFETY: as above, and `path` is NUL-terminated.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns an attribute of an open file, or `None` if the file has no attribute of that name.
pub(crate) fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let name = CString::new(name)?;
    // The largest value that Linux stores.
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: `name` is NUL-terminated and `value` is writable for `value.len()` bytes. Both outlive the call.
    let got = unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(got) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            error if [libc::ENODATA, libc::EOPNOTSUPP].map(Some).contains(&error.raw_os_error()) => Ok(None),
            error => Err(error),
        },
    }
}
