//! Buffers that a disk takes as they lie, and a file that is written with them past the page cache.

use std::fs::File;
use std::io::{self, Write};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::inflate::{HISTORY, SLACK};

/// What every block device's alignment divides.
const ALIGN: usize = 4096;

/// Bytes that begin at a multiple of 4096, with the margins that unpacking wants around them ([`crate::inflate`]).
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub fn new(len: usize) -> Self {
        let memory = vec![0; HISTORY + ALIGN + len + SLACK];
        // `align_offset` may decline to answer; then the writes are buffered ones, no worse.
        let start = match memory[HISTORY..].as_ptr().align_offset(ALIGN) {
            start if start < ALIGN => HISTORY + start,
            _ => HISTORY,
        };
        Self { memory, start, len }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// [`HISTORY`] bytes more in front, [`SLACK`] behind.
    pub fn with_margins(&mut self) -> &mut [u8] {
        &mut self.memory[self.start - HISTORY..self.start + self.len + SLACK]
    }
}

/// Writes a file from its beginning, past the page cache as long as that is possible.
#[derive(Debug)]
pub struct DirectWriter<'a> {
    file: &'a File,
    direct: bool,
}

impl<'a> DirectWriter<'a> {
    pub fn new(file: &'a File) -> Self {
        // A file system that cannot says so here, or with the first write.
        Self { direct: set_direct(file, true).is_ok(), file }
    }

    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Writes all of `bytes`, which lie in a [`Buffer`]. What is no whole number of blocks ends the direct writing.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.direct && !bytes.len().is_multiple_of(ALIGN) {
                self.end_direct()?;
            }
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not this file system, not this alignment: nothing of it was written.
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
            // Whole blocks, an odd end, and on from there.
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
