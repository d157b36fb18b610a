//! A scanner for tar streams. It takes headers and gives [`Entry`]s. It does no I/O and keeps no file data.
//!
//! The caller pushes data with [`Scanner::feed`], so that one pass over a layer can inflate, hash, scan and write the
//! same buffer. For a tar that is already on disk, [`scan_file`] jumps from header to header instead.
//!
//! It reads ustar, PAX, GNU and old V7 headers, and GNU and PAX sparse maps. Where tar readers differ, it follows Go's
//! `archive/tar`, which wrote and checked nearly every existing layer: header-only types carry no data whatever their
//! size field says, global PAX headers do not apply to members, a GNU long name takes precedence over a PAX path, and
//! an empty PAX value means that the header field applies.

mod entry;
mod error;
mod header;
mod pax;
mod scanner;
mod sparse;
mod sparse_map;
mod write;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) use entry::BLOCK;
pub use entry::Entry;
pub(crate) use entry::EntryKind;
pub(crate) use error::{TarError, TarProblem};
pub(crate) use scanner::MAX_HEADER_MEMORY;
pub use scanner::Scanner;
pub(crate) use write::Writer;

/// Whether a stream that begins with these bytes is a tar archive of any format, which is the case if the checksum of
/// its first header matches.
#[must_use]
pub(crate) fn is_archive(first: &[u8]) -> bool {
    first.first_chunk::<BLOCK>().is_some_and(header::checksum_matches)
}

/// The error of a tar on disk that cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("cannot read the tar")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Tar(#[from] TarError),
}

/// Scans `len` bytes of `file` starting at `start`. It reads headers and jumps over data. The offsets in the result
/// count from `start`.
pub(crate) fn scan_file(file: &File, start: u64, len: u64) -> Result<Vec<Entry>, ScanError> {
    scan_file_within(file, start, len, MAX_HEADER_MEMORY).map(|(entries, _)| entries)
}

/// Like [`scan_file`], but the entries may take at most `max_memory` bytes. It also returns how many they take.
pub(crate) fn scan_file_within(
    file: &File,
    start: u64,
    len: u64,
    max_memory: usize,
) -> Result<(Vec<Entry>, usize), ScanError> {
    // Large enough that one read covers runs of small files, and small enough that the data of large files are not
    // read.
    let mut buffer = vec![0; 16 << 10];
    let mut scanner = Scanner::within(max_memory);
    let mut at = 0;
    while at < len {
        let jump = scanner.skippable().min(len - at);
        if jump > 0 {
            scanner.skip(jump);
            at += jump;
            continue;
        }
        let want = (len - at).min(buffer.len() as u64) as usize;
        let got = match file.read_at(&mut buffer[..want], start + at) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ScanError::Read(error)),
        };
        scanner.feed(&buffer[..got])?;
        at += got as u64;
    }
    let memory = scanner.memory();
    Ok((scanner.finish()?, memory))
}

#[cfg(test)]
mod tests;
