//! Ingests one layer, in one pass over four threads: read and hash the compressed bytes; decompress; hash the tar
//! stream and scan its headers; write.
//!
//! The buffers circulate in a ring, so the memory use does not depend on the size of the layer. Decompression takes the
//! largest share of the time ([`crate::inflate`]), and one stream is decompressed by one thread. All other work is
//! moved off that thread, so that one large layer keeps two cores busy. The writer mostly waits for the disk, and the
//! reader for the network. An uncompressed layer uses three threads. (Decompressing one gzip stream with two threads,
//! as rapidgzip does, was not tried, because two cores are already busy; see docs/speed.md.)
//!
//! Bytes are not copied between buffers, except for the 32 KiB of history that deflate refers back to. An uncompressed
//! layer is read into the buffer that is written, and a compressed one is decompressed into it.
//!
//! The tar is written with `O_DIRECT`, bypassing the page cache, if the file system supports it. Copying into the cache
//! cost more CPU time than inflating, and a container's reads bypass it too (`rootfs::images`). Whole chunks are
//! written this way. The last, partial one is written normally.

mod buffer;
mod packed;
mod unpacker;
mod unzstd;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use sha2::{Digest as _, Sha256};

use super::Progress;
use super::limits::MAX_HEADERS;
use crate::layer::{Entry, Scanner, TarError};
use crate::names::Digest;
use crate::sys::{self, thread};
use crate::transport::SourceLayer;
pub(super) use buffer::Buffer;
use buffer::DirectWriter;
pub(super) use packed::Inline;
use packed::{Packed, ReadAhead};
pub(super) use unpacker::Unpacker;
pub(super) use unzstd::Windows;

/// Large enough to make the cost of a system call, a hand-over to another thread and a direct write negligible.
pub(super) const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 6;
/// How many bytes are passed to the disk at a time while the rest is still being inflated.
const WRITEBACK: u64 = 16 << 20;
pub(super) const SPACE_CHECK: u64 = 64 << 20;

/// A layer that cannot be ingested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error("its data cannot be read or unpacked")]
    Unpack(#[source] io::Error),
    #[error("its data has the digest `{found}`, not `{expected}`")]
    Digest { expected: Digest, found: Digest },
    #[error("unpacked, it has the diff ID `{found}`, not `{expected}`")]
    DiffId { expected: Digest, found: Digest },
    #[error("its tar stream cannot be used")]
    Tar(#[source] TarError),
    #[error("it cannot be written to the store")]
    Write(#[source] io::Error),
    #[error("it would fill the disk: {free} MiB are free, and {reserve} MiB must stay free")]
    Space { free: u64, reserve: u64 },
    #[error("the headers of the layers need more than {} MiB of memory", MAX_HEADERS >> 20)]
    Headers,
    #[error("the system cannot start threads for it")]
    Thread(#[source] io::Error),
    #[error("the registry `{host}` sent it damaged, twice")]
    Damaged {
        host: String,
        #[source]
        cause: Box<IngestError>,
    },
    #[error("another layer failed")]
    Stopped,
}

impl IngestError {
    /// Whether the received bytes may differ from those that were sent.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Digest { .. } | Self::DiffId { .. } | Self::Tar(_) => true,
            Self::Unpack(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            _ => false,
        }
    }

    /// The hint if the disk is full.
    pub(crate) fn space_hint(&self) -> Option<String> {
        let is_full = match self {
            Self::Space { .. } => true,
            Self::Write(error) => error.raw_os_error() == Some(libc::ENOSPC),
            _ => false,
        };
        is_full.then(|| "remove unused images with `gpurun image rm`, or choose another disk with `--root DIR`".into())
    }
}

/// State shared by the layers of one load.
pub(super) struct Shared<'a> {
    progress: &'a dyn Progress,
    stop: AtomicBool,
    header_memory: AtomicUsize,
    windows: Windows,
}

impl<'a> Shared<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        let (stop, header_memory) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { progress, stop, header_memory, windows: Windows::new() }
    }

    /// Stops the other layers after one has failed.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.windows.end();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Ingested {
    pub size: u64,
    pub entries: Vec<Entry>,
}

type Chunk = (Buffer, usize);

/// Ingests a layer. Writes its tar stream to `out`, syncs it at the end, and checks every known digest. `at` is the
/// layer's number for progress reports.
pub(super) fn ingest(at: usize, layer: &SourceLayer, out: &File, shared: &Shared<'_>) -> Result<Ingested, IngestError> {
    let (full, to_look) = sync_channel::<Chunk>(CHUNKS);
    let (looked_at, to_write) = sync_channel::<Chunk>(CHUNKS);
    let (empty, to_fill) = sync_channel::<Buffer>(CHUNKS);
    for _ in 0..CHUNKS {
        // The channel has capacity for all buffers.
        let _ = empty.send(Buffer::new(CHUNK));
    }
    std::thread::scope(|scope| {
        // If a thread does not start, its ends of the channels are dropped, which ends the other threads.
        let unpacking = thread::scoped(scope, move || unpack(scope, at, layer, &to_fill, &full, shared))
            .map_err(IngestError::Thread)?;
        let writing = thread::scoped(scope, move || write(to_write, &empty, out)).map_err(IngestError::Thread)?;
        let looked = look(to_look, looked_at, layer.diff_id, shared);
        // Report the root cause first: a truncated stream also has the wrong diff ID, and the scan stops if the writer
        // fails. A thread whose receiver is gone stops without an error.
        let packed = join(unpacking)?;
        join(writing)?;
        let ingested = looked?;
        check(layer.digest, packed.unwrap_or(layer.diff_id))?;
        out.sync_all().map_err(IngestError::Write)?;
        Ok(ingested)
    })
}

fn check(expected: Option<Digest>, found: Digest) -> Result<(), IngestError> {
    match expected {
        Some(expected) if expected != found => Err(IngestError::Digest { expected, found }),
        _ => Ok(()),
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Decompresses until the stream ends or the receiver is gone. Checks and returns the digest of the compressed bytes.
/// The digest of an uncompressed layer is its diff ID, which another thread computes.
fn unpack<'scope>(
    scope: &'scope Scope<'scope, '_>,
    at: usize,
    layer: &'scope SourceLayer,
    buffers: &Receiver<Buffer>,
    full: &SyncSender<Chunk>,
    shared: &'scope Shared<'_>,
) -> Result<Option<Digest>, IngestError> {
    let packed = Packed::new(layer.blob.open().map_err(IngestError::Unpack)?, shared.progress, at);
    let mut reading = None;
    let mut unpacker = Unpacker::new(packed, &shared.windows, |packed, first| {
        let packed = if layer.digest.is_some() { packed.hash(first) } else { packed };
        let (ahead, thread) = ReadAhead::spawn(scope, packed)?;
        reading = Some(thread);
        Ok(ahead)
    })
    .map_err(IngestError::Unpack)?;
    // The diff ID proves that the output is correct.
    unpacker.ignore_checksums();
    for mut chunk in buffers {
        let filled = match unpacker.fill(&mut chunk) {
            // Another layer failed. Whatever happened to this one is not the cause.
            _ if shared.is_stopped() => return Err(IngestError::Stopped),
            filled => filled.map_err(IngestError::Unpack)?,
        };
        if filled < CHUNK {
            // Before the last chunk is sent: the layer may only complete if its data is correct.
            unpacker.finish().map_err(IngestError::Unpack)?;
            let found = reading.and_then(join);
            if let Some(found) = found {
                check(layer.digest, found)?;
            }
            if filled > 0 {
                // If the receiver is gone, it reports the reason.
                let _ = full.send((chunk, filled));
            }
            return Ok(found);
        }
        if full.send((chunk, filled)).is_err() {
            break;
        }
    }
    Ok(None)
}

/// Hashes the tar stream and scans its headers.
fn look(
    chunks: Receiver<Chunk>,
    to_write: SyncSender<Chunk>,
    diff_id: Digest,
    shared: &Shared<'_>,
) -> Result<Ingested, IngestError> {
    let mut memory = 0;
    let looked = scan(chunks, to_write, diff_id, shared, &mut memory);
    if looked.is_err() {
        // The layer may be retried.
        shared.header_memory.fetch_sub(memory, Ordering::Relaxed);
    }
    looked
}

fn scan(
    chunks: Receiver<Chunk>,
    to_write: SyncSender<Chunk>,
    diff_id: Digest,
    shared: &Shared<'_>,
    memory: &mut usize,
) -> Result<Ingested, IngestError> {
    let mut hash = Sha256::new();
    let mut scanner = Scanner::new();
    let mut size = 0;
    for (buffer, filled) in chunks {
        let bytes = &buffer.bytes()[..filled];
        hash.update(bytes);
        scanner.feed(bytes).map_err(IngestError::Tar)?;
        size += filled as u64;
        let grown = scanner.memory() - *memory;
        *memory += grown;
        if shared.header_memory.fetch_add(grown, Ordering::Relaxed) + grown > MAX_HEADERS {
            return Err(IngestError::Headers);
        }
        if to_write.send((buffer, filled)).is_err() {
            // The writer reports the reason.
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
    let (mut size, mut written_back, mut checked) = (0u64, 0u64, 0u64);
    let mut file = DirectWriter::new(out);
    for (buffer, filled) in chunks {
        file.write(&buffer.bytes()[..filled]).map_err(IngestError::Write)?;
        size += filled as u64;
        if size - written_back >= WRITEBACK && !file.is_direct() {
            sys::file::start_writeback(out, written_back, size - written_back);
            written_back = size;
        }
        if size - checked >= SPACE_CHECK {
            checked = size;
            check_space(out)?;
        }
        // The unpacker may have finished already.
        let _ = empty.send(buffer);
    }
    Ok(())
}

/// Stops a gzip bomb while the host can still work: a fiftieth of the file system stays free, but at most 512 MiB.
pub(super) fn check_space(file: &File) -> Result<(), IngestError> {
    let stat = nix::sys::statvfs::fstatvfs(file).map_err(|errno| IngestError::Write(errno.into()))?;
    let unit = stat.fragment_size();
    let (free, total) = (stat.blocks_available() * unit, stat.blocks() * unit);
    let reserve = (total / 50).min(512 << 20);
    if free < reserve { Err(IngestError::Space { free: free >> 20, reserve: reserve >> 20 }) } else { Ok(()) }
}
