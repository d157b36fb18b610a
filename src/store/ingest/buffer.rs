//! Buffers that are aligned for direct I/O, and a writer that bypasses the page cache with them.

use std::fs::File;
use std::io::{self, Write};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::inflate::{HISTORY, SLACK};

/// A multiple of every block device's alignment.
const ALIGN: usize = 4096;

/// Bytes that start at a multiple of 4096, with the margins that decompression requires ([`crate::inflate`]).
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; HISTORY + ALIGN + len + SLACK];
        // `align_offset` may fail. The writes are then buffered, which is also correct.
        let start = match memory[HISTORY..].as_ptr().align_offset(ALIGN) {
            start if start < ALIGN => HISTORY + start,
            _ => HISTORY,
        };
        Self { memory, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// Returns the bytes with [`HISTORY`] more bytes before them and [`SLACK`] after them.
    pub(crate) fn with_margins(&mut self) -> &mut [u8] {
        &mut self.memory[self.start - HISTORY..self.start + self.len + SLACK]
    }
}

/// Writes a file from its start, bypassing the page cache as long as possible.
#[derive(Debug)]
pub(super) struct DirectWriter<'a> {
    file: &'a File,
    direct: bool,
}

impl<'a> DirectWriter<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        // A file system without direct I/O reports that here, or with the first write.
        Self { direct: set_direct(file, true).is_ok(), file }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Writes all of `bytes`, which are in a [`Buffer`]. A length that is not a multiple of the block size ends direct
    /// writing.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.direct && !bytes.len().is_multiple_of(ALIGN) {
                self.end_direct()?;
            }
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file system does not support direct I/O, or not this alignment. Nothing was written.
                Err(error) if self.direct && error.raw_os_error() == Some(libc::EINVAL) => self.end_direct()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end_direct(&mut self) -> io::Result<()> {
        self.direct = false;
        set_direct(self.file, false)
    }
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, on);
    fcntl(file, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_was_given_on_any_file_system() {
        for place in ["/var/tmp", "/dev/shm"] {
            let Ok(file) = tempfile::tempfile_in(place) else { continue };
            let mut buffer = Buffer::new(64 << 10);
            for (at, byte) in buffer.bytes_mut().iter_mut().enumerate() {
                *byte = (at % 251) as u8;
            }
            let mut writer = DirectWriter::new(&file);
            let mut want = Vec::new();
            // Whole blocks, a partial block, and further writes from there.
            for len in [64 << 10, 4096, 5000, 1, 8192] {
                writer.write(&buffer.bytes()[..len]).expect("written");
                want.extend_from_slice(&buffer.bytes()[..len]);
            }
            assert!(!writer.is_direct(), "after an odd end no write is aligned");
            let mut found = vec![0; want.len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).expect("read");
            assert!(found == want && file.metadata().expect("metadata").len() == want.len() as u64, "{place}");
        }
    }
}
