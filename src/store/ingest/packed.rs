//! A layer's packed bytes, in pieces: hashed and counted where they are read, on a thread of their own if wanted.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest as _, Sha256};

use crate::inflate;
use crate::names::Digest;
use crate::store::Progress;

const PIECE: usize = 256 << 10;
/// How many pieces the reader may be ahead.
const PIECES: usize = 4;

/// What is read is told, and hashed if wanted.
pub struct Packed<'a, R> {
    reader: R,
    progress: &'a dyn Progress,
    /// Its number for `progress`.
    layer: usize,
    hash: Option<Sha256>,
}

impl<'a, R: Read> Packed<'a, R> {
    pub fn new(reader: R, progress: &'a dyn Progress, layer: usize) -> Self {
        Self { reader, progress, layer, hash: None }
    }

    /// Hashes from now on, after what was read already.
    pub fn hash(mut self, already: &Piece) -> Self {
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

/// Some of the packed bytes, with room in front for what is left of those before.
pub struct Piece {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Piece {
    pub fn new() -> Self {
        Self { memory: vec![0; inflate::MOST_LEFT + PIECE], start: inflate::MOST_LEFT, end: inflate::MOST_LEFT }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub fn used(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// As much as fits or is there: none at the end.
    pub fn fill(&mut self, reader: &mut impl Read) -> io::Result<()> {
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

/// Where one piece after the other comes from.
pub trait Pieces {
    /// Puts the next one in the place of one that is spent: an empty one at the end.
    fn next(&mut self, piece: &mut Piece) -> io::Result<()>;
}

/// Read when they are wanted.
pub struct Here<R>(pub R);

impl<R: Read> Pieces for Here<R> {
    fn next(&mut self, piece: &mut Piece) -> io::Result<()> {
        piece.fill(&mut self.0)
    }
}

/// Read by another thread.
pub struct Ahead {
    full: Receiver<io::Result<Piece>>,
    empty: SyncSender<Piece>,
}

impl Ahead {
    /// Reads to the end, or until nobody takes what comes. The thread answers with the digest of all that was read.
    pub fn spawn<'scope, R: Read + Send + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        mut packed: Packed<'scope, R>,
    ) -> (Self, ScopedJoinHandle<'scope, Option<Digest>>) {
        let (filled, full) = sync_channel(PIECES);
        let (empty, to_fill) = sync_channel::<Piece>(PIECES + 1);
        for _ in 0..PIECES {
            // The channel has room for all of them.
            let _ = empty.send(Piece::new());
        }
        let reading = scope.spawn(move || {
            for mut piece in to_fill {
                let read = piece.fill(&mut packed).map(|()| piece);
                let over = read.as_ref().map_or(true, |piece| piece.bytes().is_empty());
                if filled.send(read).is_err() || over {
                    break;
                }
            }
            packed.hash.map(|hash| Digest(hash.finalize().into()))
        });
        (Self { full, empty }, reading)
    }
}

impl Pieces for Ahead {
    fn next(&mut self, piece: &mut Piece) -> io::Result<()> {
        match self.full.recv() {
            Ok(next) => {
                let spent = std::mem::replace(piece, next?);
                // The reader may be done already.
                let _ = self.empty.send(spent);
            }
            // It was said before that this is the end.
            Err(_) => piece.start = piece.end,
        }
        Ok(())
    }
}

/// The pieces as one stream.
pub struct Stream<P> {
    pieces: P,
    piece: Piece,
    ended: bool,
}

impl<P: Pieces> Stream<P> {
    pub fn new(first: Piece, pieces: P) -> Self {
        Self { ended: first.bytes().is_empty(), piece: first, pieces }
    }
}

impl<P: Pieces> inflate::Input for Stream<P> {
    fn there(&self) -> (&[u8], bool) {
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
    /// What comes next: nothing at the end alone.
    pub fn next(&mut self) -> io::Result<&[u8]> {
        if self.piece.bytes().is_empty() && !self.ended {
            inflate::Input::more(self)?;
        }
        Ok(self.piece.bytes())
    }
}

/// Reads again where a signal came between.
pub fn until_read(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
