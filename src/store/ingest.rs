//! One layer's way in, in one pass over three threads: read and unpack; hash the tar stream and scan its headers; write.
//!
//! The buffers go round in a ring, so memory does not depend on the layer. Unpacking is the larger half of the work ([`crate::inflate`]), hashing
//! the rest of it; the writer mostly waits for the disk, which is why it is on its own. So one big layer keeps two cores busy, and two
//! layers at a time do even where one thread of one of them waits. (Unpacking one gzip stream by two threads, as rapidgzip does, would cost
//! more CPU in all and gain nothing while hashing needs the second core.)
//!
//! No byte is copied on its way but the 32 KiB from buffer to buffer that deflate's repetitions reach into: a plain layer is read, and a packed
//! one unpacked, to where it is written from.
//!
//! The tar is written past the page cache (`O_DIRECT`) where the file system can: copying into the cache cost more CPU than inflating,
//! and a container's reads go past it too (`rootfs::images`). Whole chunks go that way; the last, odd one is written as usual.

mod buffer;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

use super::Progress;
use crate::image::Compression;
use crate::inflate::{self, Gunzip};
use crate::layer::{Entry, Scanner, TarError};
use crate::names::Digest;
use crate::sys;
use crate::transport::{BlobReader, SourceLayer};
pub(super) use buffer::Buffer;
use buffer::DirectWriter;

/// Large enough that a system call, a hand-over and a write past the page cache cost nothing.
pub(super) const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 6;
const PACKED_CHUNK: usize = 256 << 10;
/// How much is handed to the disk at a time while the rest is still being inflated.
const WRITEBACK: u64 = 16 << 20;
const SPACE_CHECK: u64 = 64 << 20;

/// A layer that cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("its data cannot be read or unpacked")]
    Unpack(#[source] io::Error),
    #[error("its data have the digest `{found}`, not `{expected}`")]
    Digest { expected: Digest, found: Digest },
    #[error("unpacked, it has the diff id `{found}`, not `{expected}`")]
    DiffId { expected: Digest, found: Digest },
    #[error("its tar stream cannot be used")]
    Tar(#[source] TarError),
    #[error("it cannot be written to the store")]
    Write(#[source] io::Error),
    #[error("it would fill the disk: {free} MiB are left, and {reserve} MiB stay free")]
    Space { free: u64, reserve: u64 },
    #[error("the headers of the layers need more than {} MiB of memory", Shared::HEADER_MEMORY >> 20)]
    Headers,
    #[error("another layer failed")]
    Stopped,
}

/// What the layers of one load share.
pub(super) struct Shared<'a> {
    pub progress: &'a dyn Progress,
    pub stop: AtomicBool,
    pub header_memory: AtomicUsize,
}

impl Shared<'_> {
    /// For all layers together.
    const HEADER_MEMORY: usize = 768 << 20;
}

#[derive(Debug)]
pub(super) struct Ingested {
    pub size: u64,
    pub entries: Vec<Entry>,
}

type Chunk = (Buffer, usize);

/// Takes a layer in: its tar stream goes to `out`, which is synced at the end; every digest that is known is checked.
/// `at` is its number for those who watch.
pub(super) fn ingest(at: usize, layer: &SourceLayer, out: &File, shared: &Shared<'_>) -> Result<Ingested, IngestError> {
    let (full, to_look) = sync_channel::<Chunk>(CHUNKS);
    let (looked_at, to_write) = sync_channel::<Chunk>(CHUNKS);
    let (empty, to_fill) = sync_channel::<Buffer>(CHUNKS);
    for _ in 0..CHUNKS {
        // The channel has room for all of them.
        let _ = empty.send(Buffer::new(CHUNK));
    }
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || unpack(at, layer, &to_fill, &full, shared));
        let writing = scope.spawn(move || write(to_write, &empty, out));
        let looked = look(to_look, looked_at, layer.diff_id, shared);
        // A torn stream also has the wrong diff id, and nobody looks on when nobody can write: the cause leads. (Whoever has nobody to hand
        // his chunks to stops without an error.)
        join(unpacking)?;
        join(writing)?;
        let ingested = looked?;
        out.sync_all().map_err(IngestError::Write)?;
        Ok(ingested)
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Unpacks until the stream ends or nobody takes what comes.
fn unpack(
    at: usize,
    layer: &SourceLayer,
    buffers: &Receiver<Buffer>,
    full: &SyncSender<Chunk>,
    shared: &Shared<'_>,
) -> Result<(), IngestError> {
    let packed = Packed::new(at, layer, shared).map_err(IngestError::Unpack)?;
    let mut unpacker = Unpacker::new(packed).map_err(IngestError::Unpack)?;
    for mut chunk in buffers {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(IngestError::Stopped);
        }
        let filled = unpacker.fill(&mut chunk).map_err(IngestError::Unpack)?;
        let last = filled < CHUNK;
        if last {
            // Before the last chunk goes: only what is known to be right is finished.
            unpacker.finish(layer.digest)?;
        }
        if (filled > 0 && full.send((chunk, filled)).is_err()) || last {
            return Ok(());
        }
    }
    Ok(())
}

/// Hashes the tar stream and scans its headers.
fn look(
    chunks: Receiver<Chunk>,
    to_write: SyncSender<Chunk>,
    diff_id: Digest,
    shared: &Shared<'_>,
) -> Result<Ingested, IngestError> {
    let mut hash = Sha256::new();
    let mut scanner = Scanner::new();
    let (mut size, mut memory) = (0, 0);
    for (buffer, filled) in chunks {
        let bytes = &buffer.bytes()[..filled];
        hash.update(bytes);
        scanner.feed(bytes).map_err(IngestError::Tar)?;
        size += filled as u64;
        let grown = scanner.memory() - memory;
        memory += grown;
        if shared.header_memory.fetch_add(grown, Ordering::Relaxed) + grown > Shared::HEADER_MEMORY {
            return Err(IngestError::Headers);
        }
        if to_write.send((buffer, filled)).is_err() {
            // The writer says why.
            return Err(IngestError::Stopped);
        }
    }
    let found = Digest(hash.finalize().into());
    if found != diff_id {
        return Err(IngestError::DiffId { expected: diff_id, found });
    }
    Ok(Ingested { size, entries: scanner.finish().map_err(IngestError::Tar)? })
}

fn write(chunks: Receiver<Chunk>, empty: &SyncSender<Buffer>, out: &File) -> Result<(), IngestError> {
    let (mut size, mut told, mut checked) = (0u64, 0u64, 0u64);
    let mut file = DirectWriter::new(out);
    for (buffer, filled) in chunks {
        file.write(&buffer.bytes()[..filled]).map_err(IngestError::Write)?;
        size += filled as u64;
        if size - told >= WRITEBACK && !file.is_direct() {
            sys::file::start_writeback(out, told, size - told);
            told = size;
        }
        if size - checked >= SPACE_CHECK {
            checked = size;
            check_space(out)?;
        }
        // The unpacker may be done already.
        let _ = empty.send(buffer);
    }
    Ok(())
}

/// A gzip bomb ends while the machine can still work: a fiftieth of the file system stays free, but no more than 512 MiB.
pub(super) fn check_space(file: &File) -> Result<(), IngestError> {
    let stat = nix::sys::statvfs::fstatvfs(file).map_err(|errno| IngestError::Write(errno.into()))?;
    let unit = stat.fragment_size();
    let (free, total) = (stat.blocks_available() * unit, stat.blocks() * unit);
    let reserve = (total / 50).min(512 << 20);
    if free < reserve { Err(IngestError::Space { free: free >> 20, reserve: reserve >> 20 }) } else { Ok(()) }
}

/// The packed bytes, hashed on the way.
pub(super) struct Packed<'a, R = BlobReader> {
    reader: R,
    hash: Option<Sha256>,
    progress: &'a dyn Progress,
    /// Its number for `progress`.
    layer: usize,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    ended: bool,
}

impl<'a> Packed<'a> {
    fn new(at: usize, layer: &SourceLayer, shared: &Shared<'a>) -> io::Result<Self> {
        let hash = layer.digest.map(|_| Sha256::new());
        Ok(Self { hash, layer: at, ..Packed::over(layer.blob.open()?, shared.progress) })
    }
}

impl<'a, R: Read> Packed<'a, R> {
    pub fn over(reader: R, progress: &'a dyn Progress) -> Self {
        let buffer = vec![0; PACKED_CHUNK];
        Self { reader, hash: None, progress, layer: 0, buffer, at: 0, end: 0, ended: false }
    }

    fn count(&mut self, from: usize) {
        self.progress.advance(self.layer, (self.end - from) as u64);
        if let Some(hash) = &mut self.hash {
            hash.update(&self.buffer[from..self.end]);
        }
    }

    /// Reads on straight to where the bytes are wanted, once what is buffered is used up.
    fn read_plain(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.end {
            let count = (self.end - self.at).min(buffer.len());
            buffer[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
            self.at += count;
            return Ok(count);
        }
        let count = self.reader.read(buffer)?;
        self.progress.advance(self.layer, count as u64);
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        Ok(count)
    }
}

impl<R: Read> inflate::Input for Packed<'_, R> {
    fn there(&self) -> (&[u8], bool) {
        (&self.buffer[self.at..self.end], self.ended)
    }

    fn used(&mut self, count: usize) {
        self.at = (self.at + count).min(self.end);
    }

    fn more(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.at..self.end, 0);
        (self.at, self.end) = (0, self.end - self.at);
        let from = self.end;
        let got = until_read(|| self.reader.read(&mut self.buffer[from..]))?;
        self.end += got;
        self.ended = got == 0;
        self.count(from);
        Ok(())
    }
}

/// zstd's way to read.
impl<R: Read> Read for Packed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Packed<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.end && !self.ended {
            inflate::Input::more(self)?;
        }
        Ok(&self.buffer[self.at..self.end])
    }

    fn consume(&mut self, count: usize) {
        inflate::Input::used(self, count);
    }
}

/// The unpacked stream, by what the first bytes say.
pub(super) enum Unpacker<'a, R: Read = BlobReader> {
    Plain(Packed<'a, R>),
    Gzip(Box<Gunzip>, Packed<'a, R>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Packed<'a, R>>>),
}

impl<'a, R: Read> Unpacker<'a, R> {
    pub fn new(mut packed: Packed<'a, R>) -> io::Result<Self> {
        Ok(match Compression::sniff(packed.fill_buf()?) {
            Compression::None => Self::Plain(packed),
            Compression::Gzip => Self::Gzip(Box::default(), packed),
            // Its window is bounded to 128 MiB by the library.
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(packed)?)),
        })
    }

    /// Fills the buffer; less than all of it only at the end of the stream.
    pub fn fill(&mut self, chunk: &mut Buffer) -> io::Result<usize> {
        if let Self::Gzip(gunzip, packed) = self {
            return gunzip.fill(packed, chunk.with_margins());
        }
        let room = chunk.bytes_mut();
        let mut filled = 0;
        while filled < room.len() {
            let rest = &mut room[filled..];
            let got = match self {
                Self::Zstd(decoder) => until_read(|| decoder.read(rest))?,
                Self::Plain(packed) | Self::Gzip(_, packed) => until_read(|| packed.read_plain(rest))?,
            };
            if got == 0 {
                break;
            }
            filled += got;
        }
        Ok(filled)
    }

    /// The stream ended: was all of the blob used, and is its digest right?
    fn finish(&mut self, expected: Option<Digest>) -> Result<(), IngestError> {
        let packed = match self {
            Self::Plain(packed) | Self::Gzip(_, packed) => packed,
            Self::Zstd(decoder) => decoder.get_mut(),
        };
        if !packed.fill_buf().map_err(IngestError::Unpack)?.is_empty() {
            return Err(IngestError::Unpack(io::Error::new(
                io::ErrorKind::InvalidData,
                "garbage after the end of the stream",
            )));
        }
        match (expected, packed.hash.take().map(|hash| Digest(hash.finalize().into()))) {
            (Some(expected), Some(found)) if found != expected => Err(IngestError::Digest { expected, found }),
            _ => Ok(()),
        }
    }
}

/// Reads again where a signal came between.
fn until_read(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Bytes that no packer shortens much, so that a stream is read in many pieces.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8 & 0x3f
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn every_packing_fills_whole_buffers_up_to_the_end() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 777] {
            let bytes = noise(length);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).expect("packed");
            let packings = [
                ("plain", bytes.clone()),
                ("gzip", gzip.finish().expect("packed")),
                ("zstd", zstd::encode_all(&bytes[..], 1).expect("packed")),
            ];
            for (name, packed) in packings {
                let mut unpacker = Unpacker::new(Packed::over(&packed[..], &())).expect("a stream");
                let (mut buffer, mut found) = (Buffer::new(CHUNK), Vec::new());
                loop {
                    let filled = unpacker.fill(&mut buffer).unwrap_or_else(|error| panic!("{name}, {length}: {error}"));
                    found.extend_from_slice(&buffer.bytes()[..filled]);
                    if filled < CHUNK {
                        break;
                    }
                }
                assert!(found == bytes, "{name}, {length}");
                unpacker.finish(None).unwrap_or_else(|error| panic!("{name}, {length}: {error}"));
            }
        }
    }
}
