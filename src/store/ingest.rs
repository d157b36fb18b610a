//! One layer's way in, in one pass over four threads: read and hash the packed bytes; unpack; hash the tar stream and scan its headers; write.
//!
//! The buffers go round in a ring, so memory does not depend on the layer. Unpacking is the largest share ([`crate::inflate`]), and a stream is
//! unpacked by one thread: so everything else is taken off that thread, and one big layer keeps two cores busy. The writer mostly waits for the disk,
//! the reader for the network. A plain layer has nothing to unpack: three threads. (Unpacking one gzip stream by two
//! threads, as rapidgzip does, was not tried: two cores are busy already, docs/speed.md.)
//!
//! No byte is copied on its way but the 32 KiB from buffer to buffer that deflate's repetitions reach into: a plain layer is read, and a packed
//! one unpacked, to where it is written from.
//!
//! The tar is written past the page cache (`O_DIRECT`) where the file system can: copying into the cache cost more CPU than inflating,
//! and a container's reads go past it too (`rootfs::images`). Whole chunks go that way; the last, odd one is written as usual.

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
use crate::layer::{Entry, Scanner, TarError};
use crate::names::Digest;
use crate::sys;
use crate::transport::SourceLayer;
pub(super) use buffer::Buffer;
use buffer::DirectWriter;
pub(super) use packed::Here;
use packed::{Ahead, Packed};
pub(super) use unpacker::Unpacker;
pub(super) use unzstd::Windows;

/// Large enough that a system call, a hand-over and a write past the page cache cost nothing.
pub(super) const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 6;
/// How much is handed to the disk at a time while the rest is still being inflated.
const WRITEBACK: u64 = 16 << 20;
pub(super) const SPACE_CHECK: u64 = 64 << 20;

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

impl IngestError {
    /// The way out where the disk is too small.
    pub fn room(&self) -> Option<String> {
        let is_full = match self {
            Self::Space { .. } => true,
            Self::Write(error) => error.raw_os_error() == Some(libc::ENOSPC),
            _ => false,
        };
        is_full.then(|| "`gpurun image rm` what is not needed, or choose another disk with `--root DIR`".into())
    }
}

/// What the layers of one load share.
pub(super) struct Shared<'a> {
    progress: &'a dyn Progress,
    stop: AtomicBool,
    header_memory: AtomicUsize,
    windows: Windows,
}

impl<'a> Shared<'a> {
    /// For all layers together.
    const HEADER_MEMORY: usize = 768 << 20;

    pub fn new(progress: &'a dyn Progress) -> Self {
        let (stop, header_memory) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { progress, stop, header_memory, windows: Windows::new() }
    }

    /// One layer failed: the others need not go on.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.windows.end();
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
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
        let unpacking = scope.spawn(move || unpack(scope, at, layer, &to_fill, &full, shared));
        let writing = scope.spawn(move || write(to_write, &empty, out));
        let looked = look(to_look, looked_at, layer.diff_id, shared);
        // A torn stream also has the wrong diff id, and nobody looks on when nobody can write: the cause leads. (Whoever has nobody to hand
        // his chunks to stops without an error.)
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

/// Unpacks until the stream ends or nobody takes what comes. Answers with the digest of what was packed, which is checked; a plain layer's is its
/// diff id, which somebody else finds.
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
        let (ahead, thread) = Ahead::spawn(scope, packed);
        reading = Some(thread);
        ahead
    })
    .map_err(IngestError::Unpack)?;
    // The diff id says whether it came out right.
    unpacker.ignore_checksums();
    for mut chunk in buffers {
        let filled = match unpacker.fill(&mut chunk) {
            // Whatever became of this layer, it is not why.
            _ if shared.is_stopped() => return Err(IngestError::Stopped),
            filled => filled.map_err(IngestError::Unpack)?,
        };
        if filled < CHUNK {
            // Before the last chunk goes: only what is known to be right is finished.
            unpacker.finish().map_err(IngestError::Unpack)?;
            let found = reading.and_then(join);
            if let Some(found) = found {
                check(layer.digest, found)?;
            }
            if filled > 0 {
                // Who takes it no longer says why.
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
