//! The side file, for data that no tar holds as one aligned run. The side file is sparse: a hole takes no space in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::body::{Body, Chunk};
use super::{BLOCK, BLOCK_BITS, WriteError};
use crate::layer::{Data, Segment};

/// The maximum number of chunks that a file is split into, roughly. The chunk size grows with the file, so that a hole
/// of terabytes needs neither address space nor a large index.
const CHUNKS: u64 = 1024;
/// The largest file size on ext4. Only a hostile tar claims more.
const MAX_SIZE: u64 = 1 << 44;

pub(super) struct Side<'a> {
    file: &'a File,
    sources: &'a [File],
    next: u64,
}

impl<'a> Side<'a> {
    pub(super) fn new(file: &'a File, sources: &'a [File]) -> Self {
        Self { file, sources, next: 0 }
    }

    /// Copies a file's data, chunk by chunk. A chunk without data becomes a hole in the image.
    pub(super) fn add(&mut self, data: &Data) -> Result<Body, WriteError> {
        let too_large = WriteError::TooLarge { size: data.size };
        if data.size > MAX_SIZE {
            return Err(too_large);
        }
        let chunk = (data.size / CHUNKS).max(4096).next_power_of_two();
        let bits = chunk.trailing_zeros() - BLOCK_BITS;
        let device = u16::try_from(self.sources.len() + 1).map_err(|_| WriteError::TooLarge { size: data.size })?;
        let mut chunks = vec![Chunk::HOLE; usize::try_from(data.size.div_ceil(chunk)).unwrap_or(0)];
        for segment in &data.segments {
            let end = segment.at.checked_add(segment.len).filter(|end| *end <= data.size);
            let end = end.ok_or(WriteError::TooLarge { size: data.size })?;
            let mut at = segment.at;
            while at < end {
                let number = at / chunk;
                let entry = &mut chunks[number as usize];
                if *entry == Chunk::HOLE {
                    let block = u32::try_from(self.next / BLOCK).ok().filter(|block| *block != u32::MAX);
                    *entry = Chunk { device, block: block.ok_or(WriteError::TooLarge { size: data.size })? };
                    self.next += chunk.min((data.size - number * chunk).next_multiple_of(BLOCK));
                }
                let stop = end.min((number + 1) * chunk);
                let to = u64::from(entry.block) * BLOCK + at % chunk;
                self.copy(segment, segment.offset + (at - segment.at), to, stop - at)?;
                at = stop;
            }
        }
        Ok(Body::Chunks { bits, chunks })
    }

    fn copy(&self, segment: &Segment, mut from: u64, mut to: u64, mut length: u64) -> Result<(), WriteError> {
        let failed = |source: io::Error| WriteError::Copy { source_index: segment.source, source };
        let source = self.sources.get(segment.source as usize).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let mut buffer = vec![0_u8; usize::try_from(length.min(1 << 18)).unwrap_or(1 << 18)];
        while length > 0 {
            let part = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
            source.read_exact_at(&mut buffer[..part], from).map_err(failed)?;
            self.file.write_all_at(&buffer[..part], to).map_err(failed)?;
            from += part as u64;
            to += part as u64;
            length -= part as u64;
        }
        Ok(())
    }

    /// Sets and returns the length of the side file.
    pub(super) fn finish(self) -> Result<u64, WriteError> {
        self.file.set_len(self.next).map_err(WriteError::Write)?;
        Ok(self.next)
    }
}
