//! Functions for file data: copies inside the kernel, early writeback, and the kernel's own files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Reads a file of /proc, of /sys or of a cgroup. Their size is not known in advance, so [`std::fs::read`] begins with
/// 32 bytes and needs up to ten calls.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(16 << 10);
    // `Take` hides the file's size, which `File` itself would look up.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// The same, for a text.
pub(crate) fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads a file of a cgroup, or another one of the kernel's files that consists of short records, as text. The kernel
/// fills a page (4 KiB) before it ends a read early. So a read of less than half a page is the whole of such a file, and
/// needs no second one.
pub(crate) fn read_control(path: impl AsRef<Path>) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 16 << 10];
    let mut len = file.read(&mut bytes)?;
    if len >= 2048 {
        bytes.truncate(len);
        len += file.take(u64::MAX).read_to_end(&mut bytes)?;
    }
    bytes.truncate(len);
    bytes.shrink_to_fit();
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// copy_file_range(2): copies up to `len` bytes between the given offsets. Returns the number of copied bytes.
pub(crate) fn copy_range(from: &File, mut from_at: i64, to: &File, mut to_at: i64, len: usize) -> io::Result<usize> {
    // SAFETY: both offsets are valid for reads and writes during the call, and both files are borrowed for its
    // duration.
    let done = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut from_at, to.as_raw_fd(), &mut to_at, len, 0) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Starts writing a range of a file to the disk and does not wait for it, so that the following fsync has little left
/// to do.
///
/// Errors are ignored, because the fsync reports them again.
pub(crate) fn start_writeback(file: &File, at: u64, len: u64) {
    let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else {
        return;
    };
    // SAFETY: no memory is involved, and the file is borrowed for the duration of the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_read_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for len in [0, 1, 2047, 2048, 16 << 10, 100_000] {
            let text = "x".repeat(len);
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_control(&path).unwrap(), text, "{len}");
        }
        let status = read_control("/proc/self/status").unwrap();
        assert!(status.starts_with("Name:") && status.contains("\nnonvoluntary_ctxt_switches:"), "{status}");
        assert!(read_control(dir.path().join("none")).is_err());
    }
}
