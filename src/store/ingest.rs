//! One layer's way in: read → inflate → (hash, scan, write), in one pass over two threads.
//!
//! The first thread reads, hashes the packed bytes and inflates; the second hashes the tar stream, scans its headers and writes it. The
//! buffers go round in a ring, so memory does not depend on the layer. Inflating is the larger half; with two layers at a time both
//! cores of a small machine are busy.
//!
//! The tar is written past the page cache (`O_DIRECT`) where the file system can: copying into the cache cost more CPU than inflating,
//! and a container's reads go past it too (`rootfs::images`). Whole chunks go that way; the last, odd one is written as usual.

mod buffer;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::bufread::GzDecoder;
use sha2::{Digest as _, Sha256};

use super::Progress;
use crate::image::Compression;
use crate::layer::{Entry, Scanner, TarError};
use crate::names::Digest;
use crate::sys;
use crate::transport::{BlobReader, SourceLayer};
use buffer::{Buffer, DirectWriter};

/// Large enough that a system call, a hand-over and a write past the page cache cost nothing.
const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 4;
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
    let (full, to_write) = sync_channel::<Chunk>(CHUNKS);
    let (empty, to_fill) = sync_channel::<Buffer>(CHUNKS);
    for _ in 0..CHUNKS {
        // The channel has room for all of them.
        let _ = empty.send(Buffer::new(CHUNK));
    }
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || unpack(at, layer, &to_fill, &full, shared));
        let written = write(to_write, &empty, out, layer.diff_id, shared);
        drop(empty);
        let unpacked = match unpacking.join() {
            Ok(unpacked) => unpacked,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A torn stream also has the wrong diff id: the cause leads. (A writer that gave up makes the unpacker stop without an error.)
        unpacked?;
        written
    })
}

/// Unpacks until the stream ends or the writer is gone.
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
        let buffer = chunk.bytes_mut();
        let mut filled = 0;
        while filled < buffer.len() {
            match unpacker.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(IngestError::Unpack(error)),
            }
        }
        let last = filled < buffer.len();
        if last {
            // Before the last chunk goes: the writer finishes only what is known to be right.
            unpacker.finish(layer.digest)?;
        }
        if filled > 0 && full.send((chunk, filled)).is_err() {
            return Ok(());
        }
        if last {
            return Ok(());
        }
    }
    Ok(())
}

fn write(
    chunks: Receiver<Chunk>,
    empty: &SyncSender<Buffer>,
    out: &File,
    diff_id: Digest,
    shared: &Shared<'_>,
) -> Result<Ingested, IngestError> {
    let mut hash = Sha256::new();
    let mut scanner = Scanner::new();
    let (mut size, mut told, mut checked, mut memory) = (0u64, 0u64, 0u64, 0usize);
    let mut file = DirectWriter::new(out);
    for (buffer, filled) in chunks {
        let bytes = &buffer.bytes()[..filled];
        hash.update(bytes);
        scanner.feed(bytes).map_err(IngestError::Tar)?;
        file.write(bytes).map_err(IngestError::Write)?;
        size += filled as u64;
        if size - told >= WRITEBACK && !file.is_direct() {
            sys::file::start_writeback(out, told, size - told);
            told = size;
        }
        if size - checked >= SPACE_CHECK {
            checked = size;
            check_space(out)?;
        }
        let grown = scanner.memory() - memory;
        memory += grown;
        if shared.header_memory.fetch_add(grown, Ordering::Relaxed) + grown > Shared::HEADER_MEMORY {
            return Err(IngestError::Headers);
        }
        // The unpacker may be done already.
        let _ = empty.send(buffer);
    }
    let found = Digest(hash.finalize().into());
    if found != diff_id {
        return Err(IngestError::DiffId { expected: diff_id, found });
    }
    let entries = scanner.finish().map_err(IngestError::Tar)?;
    out.sync_all().map_err(IngestError::Write)?;
    Ok(Ingested { size, entries })
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
}

impl<'a> Packed<'a> {
    fn new(at: usize, layer: &SourceLayer, shared: &Shared<'a>) -> io::Result<Self> {
        let hash = layer.digest.map(|_| Sha256::new());
        Ok(Self { hash, layer: at, ..Packed::over(layer.blob.open()?, shared.progress) })
    }
}

impl<'a, R: Read> Packed<'a, R> {
    pub fn over(reader: R, progress: &'a dyn Progress) -> Self {
        Self { reader, hash: None, progress, layer: 0, buffer: vec![0; PACKED_CHUNK], at: 0, end: 0 }
    }
}

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
        if self.at == self.end {
            self.end = self.reader.read(&mut self.buffer)?;
            self.at = 0;
            self.progress.advance(self.layer, self.end as u64);
            if let Some(hash) = &mut self.hash {
                hash.update(&self.buffer[..self.end]);
            }
        }
        Ok(&self.buffer[self.at..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.end);
    }
}

/// The unpacked stream, by what the first bytes say.
pub(super) enum Unpacker<'a, R: Read = BlobReader> {
    Plain(Packed<'a, R>),
    /// One gzip member; `None` between members.
    Gzip(Option<Box<GzDecoder<Packed<'a, R>>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Packed<'a, R>>>),
    /// At the end, all read.
    Over(Packed<'a, R>),
}

impl<'a, R: Read> Unpacker<'a, R> {
    pub fn new(mut packed: Packed<'a, R>) -> io::Result<Self> {
        Ok(match Compression::sniff(packed.fill_buf()?) {
            Compression::None => Self::Plain(packed),
            Compression::Gzip => Self::Gzip(Some(Box::new(GzDecoder::new(packed)))),
            // Its window is bounded to 128 MiB by the library.
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(packed)?)),
        })
    }

    /// After one gzip member: another one, the end, or zeros up to the end (tape padding, which gzip(1) forgives too).
    fn next_member(mut packed: Packed<'a, R>) -> io::Result<Self> {
        match packed.fill_buf()? {
            [] => return Ok(Self::Over(packed)),
            [0, ..] => {}
            _ => return Ok(Self::Gzip(Some(Box::new(GzDecoder::new(packed))))),
        }
        loop {
            let rest = packed.fill_buf()?;
            if rest.is_empty() {
                return Ok(Self::Over(packed));
            }
            if rest.iter().any(|byte| *byte != 0) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "garbage after the end of the gzip stream"));
            }
            let count = rest.len();
            packed.consume(count);
        }
    }
}

impl<R: Read> Unpacker<'_, R> {
    /// The stream ended: was all of the blob used, and is its digest right?
    fn finish(&mut self, expected: Option<Digest>) -> Result<(), IngestError> {
        let packed = match self {
            Self::Plain(packed) | Self::Over(packed) => packed,
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::Gzip(_) => return Err(IngestError::Unpack(io::ErrorKind::UnexpectedEof.into())),
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

impl<R: Read> Read for Unpacker<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Plain(packed) => return packed.read(buffer),
                Self::Zstd(decoder) => return decoder.read(buffer),
                Self::Over(_) => return Ok(0),
                Self::Gzip(decoder) => {
                    let got = match decoder {
                        Some(decoder) => decoder.read(buffer)?,
                        None => return Ok(0),
                    };
                    if got > 0 || buffer.is_empty() {
                        return Ok(got);
                    }
                    if let Some(done) = decoder.take() {
                        *self = Self::next_member(done.into_inner())?;
                    }
                }
            }
        }
    }
}
