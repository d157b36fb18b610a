//! Moving file data: copies inside the kernel, and write-behind.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// copy_file_range(2): moves up to `len` bytes between the given places, returns how many.
pub fn copy_range(from: &File, mut from_at: i64, to: &File, mut to_at: i64, len: usize) -> io::Result<usize> {
    // SAFETY: both offsets are valid for reads and writes during the call, both files are borrowed for its length.
    let done = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, len, 0) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Starts writing a range of a file to the disk, without waiting for it: the fsync that follows finds little left to do.
///
/// A hint: what it fails with, the fsync will tell again.
pub fn start_writeback(file: &File, at: u64, len: u64) {
    let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else {
        return;
    };
    // SAFETY: no memory is involved; the file is borrowed for the length of the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
}
