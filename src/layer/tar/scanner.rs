//! The scanner: takes a tar stream in pieces of any size, and returns its entries.

use super::entry::{BLOCK, Entry, EntryKind, MAX_FILE_SIZE, padding};
use super::error::{TarError, TarProblem};
use super::header::Header;
use super::{header, pax, sparse_map};
use crate::layer::tree::{Data, Segment};

/// Long names and PAX headers larger than this are rejected (Go: `maxSpecialFileSize`).
pub(super) const MAX_SPECIAL: u64 = 1 << 20;

/// The maximum memory for the headers of one layer, enough for about two million members. It stops a gzip bomb of
/// headers.
pub(crate) const MAX_HEADER_MEMORY: usize = 512 << 20;

/// The contents of the extended headers for the member that follows.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) long_name: Option<Box<[u8]>>,
    pub(super) long_link: Option<Box<[u8]>>,
    pub(super) pax: Option<pax::Records>,
}

#[derive(Debug)]
pub(super) enum State {
    /// Collecting a header block.
    Header,
    /// Collecting the body of an extended header, which `pad` bytes follow.
    Special { kind: u8, body: Vec<u8>, left: usize, pad: usize },
    /// Collecting extension blocks of an old GNU sparse header.
    GnuSparse { map: Vec<(u64, u64)>, entry: Entry, real_size: u64, data: u64 },
    /// Collecting a PAX 1.0 sparse map from the member's data.
    PaxSparse { text: sparse_map::Map1, entry: Entry, real_size: u64, data: u64 },
    /// Skipping data and padding.
    Skip { data: u64, pad: u64 },
    /// After the end marker. The following bytes do not belong to the archive.
    End,
}

/// The scanner. See the module's documentation.
#[derive(Debug)]
pub struct Scanner {
    pub(super) position: u64,
    pub(super) state: State,
    pub(super) block: [u8; BLOCK],
    pub(super) have: usize,
    pub(super) zero_seen: bool,
    pub(super) pending: Pending,
    pub(super) entries: Vec<Entry>,
    pub(super) memory: usize,
    pub(super) max_memory: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    pub fn new() -> Self {
        Self::within(MAX_HEADER_MEMORY)
    }

    /// A scanner whose entries may take about `max_memory` bytes.
    pub fn within(max_memory: usize) -> Self {
        Self {
            max_memory,
            position: 0,
            state: State::Header,
            block: [0; BLOCK],
            have: 0,
            zero_seen: false,
            pending: Pending::default(),
            entries: Vec::new(),
            memory: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::End => bytes.len(),
                State::Skip { data, pad } => {
                    let n = (*data + *pad).min(bytes.len() as u64);
                    let from_data = n.min(*data);
                    *data -= from_data;
                    *pad -= n - from_data;
                    if *data + *pad == 0 {
                        self.state = State::Header;
                    }
                    n as usize
                }
                State::Special { body, left, pad, .. } => {
                    let n = (*left + *pad).min(bytes.len());
                    let of_body = n.min(*left);
                    body.extend_from_slice(&bytes[..of_body]);
                    *left -= of_body;
                    *pad -= n - of_body;
                    if *left + *pad == 0 {
                        self.special_done()?;
                    }
                    n
                }
                State::Header | State::GnuSparse { .. } | State::PaxSparse { .. } => {
                    let n = (BLOCK - self.have).min(bytes.len());
                    self.block[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                    self.have += n;
                    if self.have == BLOCK {
                        self.have = 0;
                        self.position += n as u64;
                        self.block_done()?;
                        bytes = &bytes[n..];
                        continue;
                    }
                    n
                }
            };
            self.position += used as u64;
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// The number of following bytes that are file data or padding, which [`Scanner::skip`] may skip unread.
    pub fn skippable(&self) -> u64 {
        match self.state {
            State::Skip { data, pad } => data + pad,
            State::End => u64::MAX,
            _ => 0,
        }
    }

    /// Skips bytes, at most as many as [`Scanner::skippable`] returns.
    pub fn skip(&mut self, count: u64) {
        if let State::Skip { data, pad } = &mut self.state {
            let from_data = count.min(*data);
            *data -= from_data;
            *pad = pad.saturating_sub(count - from_data);
            if *data + *pad == 0 {
                self.state = State::Header;
            }
            self.position += count;
        }
    }

    /// Ends the stream and returns the members in order. Like Go, it tolerates missing end blocks and missing padding.
    pub fn finish(self) -> Result<Vec<Entry>, TarError> {
        let whole = match &self.state {
            State::End => true,
            State::Header => self.have == 0,
            State::Skip { data, .. } => *data == 0,
            _ => false,
        };
        if !whole {
            return Err(self.broken(TarProblem::Truncated));
        }
        if self.pending.long_name.is_some() || self.pending.long_link.is_some() || self.pending.pax.is_some() {
            return Err(self.broken(TarProblem::DanglingExtension));
        }
        Ok(self.entries)
    }

    /// The approximate memory of the members so far, in bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    pub(super) fn broken(&self, problem: TarProblem) -> TarError {
        let member = match (&self.state, &self.pending.long_name) {
            (State::GnuSparse { entry, .. } | State::PaxSparse { entry, .. }, _) => Some(entry.path.as_ref()),
            (State::Skip { .. }, _) => self.entries.last().map(|entry| entry.path.as_ref()),
            (_, Some(name)) => Some(name.as_ref()),
            _ => None,
        };
        let member = member.map(|name| name.escape_ascii().to_string());
        TarError { offset: self.position, member, problem }
    }

    pub(super) fn block_done(&mut self) -> Result<(), TarError> {
        let done = match std::mem::replace(&mut self.state, State::Header) {
            State::GnuSparse { map, entry, real_size, data } => self.gnu_sparse_block(map, entry, real_size, data),
            State::PaxSparse { text, entry, real_size, data } => self.pax_sparse_block(text, entry, real_size, data),
            _ => self.header_block(),
        };
        done.map_err(|problem| {
            let mut error = self.broken(problem);
            error.offset -= BLOCK as u64;
            error
        })
    }

    pub(super) fn header_block(&mut self) -> Result<(), TarProblem> {
        if self.block.iter().all(|byte| *byte == 0) {
            // Two zero blocks end the archive. A single one is tolerated at the end of the stream, but not between
            // members.
            if self.zero_seen {
                self.state = State::End;
            }
            self.zero_seen = true;
            return Ok(());
        }
        if self.zero_seen {
            return Err(TarProblem::LoneZeroBlock);
        }
        let block = self.block;
        let header = Header::parse(&block)?;
        match header.kind {
            b'x' | b'g' | b'L' | b'K' => self.special(&header),
            _ => self.member(header, &block),
        }
    }

    pub(super) fn special(&mut self, header: &Header) -> Result<(), TarProblem> {
        if header.size > MAX_SPECIAL {
            return Err(TarProblem::SpecialTooLarge(header.size));
        }
        let left = header.size as usize;
        let pad = padding(header.size) as usize;
        self.state = State::Special { kind: header.kind, body: Vec::with_capacity(left), left, pad };
        if left == 0 { self.special_body(header.kind, Vec::new()) } else { Ok(()) }
    }

    pub(super) fn special_done(&mut self) -> Result<(), TarError> {
        let State::Special { kind, body, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        self.special_body(kind, body).map_err(|problem| self.broken(problem))
    }

    pub(super) fn special_body(&mut self, kind: u8, body: Vec<u8>) -> Result<(), TarProblem> {
        self.state = State::Header;
        match kind {
            b'L' => self.pending.long_name = Some(header::c_string(&body).into()),
            b'K' => self.pending.long_link = Some(header::c_string(&body).into()),
            b'x' => self.pending.pax = Some(pax::Records::parse(&body)?),
            // A global header is checked and dropped.
            _ => drop(pax::Records::parse(&body)?),
        }
        Ok(())
    }

    /// Handles a member's own header, and combines it with the extended headers before it.
    pub(super) fn member(&mut self, header: Header, block: &[u8; BLOCK]) -> Result<(), TarProblem> {
        let pending = std::mem::take(&mut self.pending);
        let pax = pending.pax.unwrap_or_default();
        let stored = pax.size.unwrap_or(header.size);
        let data = if header.has_data() { stored } else { 0 };
        let path = pending.long_name.or(pax.path).unwrap_or_else(|| header.name.clone());
        let link = pending.long_link.or(pax.link).unwrap_or_else(|| header.link.clone());
        if data > MAX_FILE_SIZE {
            return Err(TarProblem::Range("size"));
        }
        let kind = match header.kind {
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File(plain(self.position, data)),
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::CharDevice { major: header.major()?, minor: header.minor()? },
            b'4' => EntryKind::BlockDevice { major: header.major()?, minor: header.minor()? },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarProblem::Type(char::from(other))),
        };
        let entry = Entry {
            path,
            kind,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            xattrs: pax.xattrs,
        };
        self.spend(weight(&entry))?;
        if header.kind == b'S' {
            return self.gnu_sparse_start(entry, block, data);
        }
        match (pax.sparse, &entry.kind) {
            (Some(sparse), EntryKind::File(_)) => self.pax_sparse_start(entry, sparse, data),
            _ => {
                self.push(entry, data);
                Ok(())
            }
        }
    }

    pub(super) fn push(&mut self, entry: Entry, data: u64) {
        self.entries.push(entry);
        self.skip_data(data, padding(data));
    }

    pub(super) fn skip_data(&mut self, data: u64, pad: u64) {
        self.state = if data + pad == 0 { State::Header } else { State::Skip { data, pad } };
    }
}

/// Estimates the memory of an entry in bytes, without the map of a sparse file.
pub(super) fn weight(entry: &Entry) -> usize {
    let target = match &entry.kind {
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
        _ => 0,
    };
    // A map that is not empty allocates space for eleven entries.
    let map = if entry.xattrs.is_empty() { 0 } else { 400 };
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| 64 + name.len() + value.len()).sum();
    160 + entry.path.len() + target + map + xattrs
}

/// The data of an ordinary member.
pub(super) fn plain(offset: u64, size: u64) -> Data {
    let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset, len: size }] };
    Data { size, segments }
}
