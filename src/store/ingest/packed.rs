//! The compressed bytes of a layer, in pieces. They are hashed and counted as they are read, optionally on a separate
//! thread.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::inflate;
use crate::names::Digest;
use crate::store::Progress;
use crate::sys::thread;

const PIECE: usize = 256 << 10;
/// How many pieces the reader may be ahead.
const PIECES: usize = 4;

/// A reader that reports its progress, and hashes the bytes if required.
pub(super) struct Packed<'a, R> {
    reader: R,
    progress: &'a dyn Progress,
    /// The layer's number for `progress`.
    layer: usize,
    hash: Option<Sha256>,
}

impl<'a, R: Read> Packed<'a, R> {
    pub(super) fn new(reader: R, progress: &'a dyn Progress, layer: usize) -> Self {
        Self { reader, progress, layer, hash: None }
    }

    /// Enables hashing, starting with the bytes that were already read.
    pub(super) fn hash(mut self, already: &Piece) -> Self {
        self.hash = Some(Sha256::new_with_prefix(already.bytes()));
        self
    }
}

impl<R: Read> Read for Packed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.progress.advance(self.layer, count as u64);
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// Some of the compressed bytes. The memory has space before them for the rest of the previous piece.
pub(crate) struct Piece {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Piece {
    pub(crate) fn new() -> Self {
        Self { memory: vec![0; inflate::MOST_LEFT + PIECE], start: inflate::MOST_LEFT, end: inflate::MOST_LEFT }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(crate) fn used(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Reads until the memory is full or the stream ends. The piece is empty at the end.
    pub(crate) fn fill(&mut self, reader: &mut impl Read) -> io::Result<()> {
        (self.start, self.end) = (inflate::MOST_LEFT, inflate::MOST_LEFT);
        while self.end < self.memory.len() {
            match until_read(|| reader.read(&mut self.memory[self.end..]))? {
                0 => break,
                got => self.end += got,
            }
        }
        Ok(())
    }

    fn put_in_front(&mut self, bytes: &[u8]) {
        let end = self.start;
        self.start -= bytes.len();
        self.memory[self.start..end].copy_from_slice(bytes);
    }
}

/// A source of pieces.
pub(crate) trait Pieces {
    /// Replaces a used piece with the next one, which is empty at the end.
    fn next(&mut self, piece: &mut Piece) -> io::Result<()>;
}

/// Reads pieces on demand, on the same thread.
pub(crate) struct Inline<R>(pub R);

impl<R: Read> Pieces for Inline<R> {
    fn next(&mut self, piece: &mut Piece) -> io::Result<()> {
        piece.fill(&mut self.0)
    }
}

/// Pieces that another thread reads ahead.
pub(super) struct ReadAhead {
    full: Receiver<io::Result<Piece>>,
    empty: SyncSender<Piece>,
}

impl ReadAhead {
    /// Reads to the end, or until the receiver is gone. The thread returns the digest of all bytes.
    pub(super) fn spawn<'scope, R: Read + Send + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        mut packed: Packed<'scope, R>,
    ) -> io::Result<(Self, ScopedJoinHandle<'scope, Option<Digest>>)> {
        let (filled, full) = sync_channel(PIECES);
        let (empty, to_fill) = sync_channel::<Piece>(PIECES + 1);
        for _ in 0..PIECES {
            // The channel has capacity for all pieces.
            let _ = empty.send(Piece::new());
        }
        let reading = thread::scoped(scope, move || {
            for mut piece in to_fill {
                let read = piece.fill(&mut packed).map(|()| piece);
                let over = read.as_ref().map_or(true, |piece| piece.bytes().is_empty());
                if filled.send(read).is_err() || over {
                    break;
                }
            }
            packed.hash.map(|hash| Digest(hash.finalize().into()))
        })?;
        Ok((Self { full, empty }, reading))
    }
}

impl Pieces for ReadAhead {
    fn next(&mut self, piece: &mut Piece) -> io::Result<()> {
        match self.full.recv() {
            Ok(next) => {
                let spent = std::mem::replace(piece, next?);
                // The reader may have finished already.
                let _ = self.empty.send(spent);
            }
            // The end was already reported.
            Err(_) => piece.start = piece.end,
        }
        Ok(())
    }
}

/// The pieces as one stream.
pub(crate) struct Stream<P> {
    pieces: P,
    piece: Piece,
    ended: bool,
}

impl<P: Pieces> Stream<P> {
    pub(crate) fn new(first: Piece, pieces: P) -> Self {
        Self { ended: first.bytes().is_empty(), piece: first, pieces }
    }
}

impl<P: Pieces> inflate::Input for Stream<P> {
    fn available(&self) -> (&[u8], bool) {
        (self.piece.bytes(), self.ended)
    }

    fn used(&mut self, count: usize) {
        self.piece.used(count);
    }

    fn more(&mut self) -> io::Result<()> {
        let mut left = [0; inflate::MOST_LEFT];
        let left = &mut left[..self.piece.bytes().len()];
        left.copy_from_slice(self.piece.bytes());
        self.pieces.next(&mut self.piece)?;
        self.ended = self.piece.bytes().is_empty();
        self.piece.put_in_front(left);
        Ok(())
    }
}

impl<P: Pieces> Stream<P> {
    /// Returns the next bytes. They are empty only at the end.
    pub(crate) fn next(&mut self) -> io::Result<&[u8]> {
        if self.piece.bytes().is_empty() && !self.ended {
            inflate::Input::more(self)?;
        }
        Ok(self.piece.bytes())
    }
}

/// Repeats a read that a signal interrupted.
pub(super) fn until_read(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
