//! A scanner for tar streams: headers in, [`Entry`]s out, no I/O and not a byte of file data kept.
//!
//! It is pushed ([`Scanner::feed`]) so that one pass over a layer can inflate, hash, scan and write the same buffer; over a tar that
//! already lies on disk, [`scan_file`] jumps from header to header instead.
//!
//! Reads ustar, PAX, GNU and old V7 headers, GNU and PAX sparse maps. Where tar readers differ, it follows Go's `archive/tar`, because
//! that is what made and checked nearly every layer there is: header-only types carry no data whatever their size field says, global
//! PAX headers do not apply to members, a GNU long name beats a PAX path, an empty PAX value means "as in the header".

mod header;
mod pax;
mod sparse;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tree::{Data, Segment};
use header::Header;
pub use write::Writer;

pub(crate) const BLOCK: usize = 512;
/// Long names and PAX headers larger than this are refused (Go: `maxSpecialFileSize`).
const MAX_SPECIAL: u64 = 1 << 20;
/// Memory that the headers of one layer may take: some two million members. A gzip bomb of headers ends here.
const MAX_HEADER_MEMORY: usize = 512 << 20;
/// Larger files exist on no Linux file system; only a sparse member can claim them.
const MAX_FILE_SIZE: u64 = 1 << 44;

/// One member of a layer, as its headers tell it; names are not judged yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Box<[u8]>,
    pub kind: EntryKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Entry {
    /// Counts the places of its data from `start` before the tar: from the beginning of the file that the tar lies in.
    pub fn shift(&mut self, start: u64) {
        if let EntryKind::File(data) = &mut self.kind {
            data.segments.iter_mut().for_each(|segment| segment.offset += start);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    /// Segments count their source as 0 until the merge gives the layer its number.
    File(Data),
    Symlink(Box<[u8]>),
    HardLink(Box<[u8]>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// A tar stream that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("broken tar stream at byte {offset}{}: {problem}", member.as_ref().map(|name| format!(" (member `{name}`)")).unwrap_or_default())]
pub struct TarError {
    pub offset: u64,
    pub member: Option<String>,
    pub problem: TarProblem,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarProblem {
    #[error("it ends in the middle of a member")]
    Truncated,
    #[error("header checksum does not match")]
    Checksum,
    #[error("one empty block stands between members")]
    LoneZeroBlock,
    #[error("header field `{0}` is not a number")]
    Number(&'static str),
    #[error("`{0}` is out of range")]
    Range(&'static str),
    #[error("member type `{0}` is unknown")]
    Type(char),
    #[error("PAX header is malformed")]
    Pax,
    #[error("PAX record `{0}` is malformed")]
    PaxRecord(String),
    #[error("sparse map is malformed")]
    Sparse,
    #[error("a name or PAX header of {0} bytes is larger than 1 MiB")]
    SpecialTooLarge(u64),
    #[error("an extended header has no member after it")]
    DanglingExtension,
    #[error("its headers need more than {} MiB of memory", MAX_HEADER_MEMORY >> 20)]
    TooManyHeaders,
}

/// What extended headers said about the member that follows.
#[derive(Debug, Default)]
struct Pending {
    long_name: Option<Box<[u8]>>,
    long_link: Option<Box<[u8]>>,
    pax: Option<pax::Records>,
}

#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// Collecting the body of an extended header; `pad` bytes follow it.
    Special { kind: u8, body: Vec<u8>, left: usize, pad: usize },
    /// Collecting extension blocks of an old GNU sparse header.
    GnuSparse { map: Vec<(u64, u64)>, entry: Entry, real_size: u64, data: u64 },
    /// Collecting a PAX 1.0 sparse map from the member's data.
    PaxSparse { text: sparse::Map1, entry: Entry, real_size: u64, data: u64 },
    /// Passing over data and padding.
    Skip { data: u64, pad: u64 },
    /// After the end mark: whatever follows belongs to the file, not to the archive.
    End,
}

/// The scanner; see the module.
#[derive(Debug)]
pub struct Scanner {
    position: u64,
    state: State,
    block: [u8; BLOCK],
    have: usize,
    zero_seen: bool,
    pending: Pending,
    entries: Vec<Entry>,
    memory: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a stream that begins with these bytes is an archive of any of the formats: its first header has the right sum.
#[must_use]
pub fn is_archive(first: &[u8]) -> bool {
    first.first_chunk::<BLOCK>().is_some_and(header::checksum_matches)
}

impl Scanner {
    pub fn new() -> Self {
        Self {
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

    /// How many of the next bytes are file data or padding that [`Scanner::skip`] may pass over unread.
    pub fn skippable(&self) -> u64 {
        match self.state {
            State::Skip { data, pad } => data + pad,
            State::End => u64::MAX,
            _ => 0,
        }
    }

    /// Passes over bytes; at most as many as [`Scanner::skippable`] says.
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

    /// The stream is over: the members, in their order. Missing end blocks and missing padding are forgiven, as Go does.
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

    /// Bytes of memory that the members so far need, roughly.
    pub fn memory(&self) -> usize {
        self.memory
    }

    fn broken(&self, problem: TarProblem) -> TarError {
        let member = match (&self.state, &self.pending.long_name) {
            (State::GnuSparse { entry, .. } | State::PaxSparse { entry, .. }, _) => Some(entry.path.as_ref()),
            (State::Skip { .. }, _) => self.entries.last().map(|entry| entry.path.as_ref()),
            (_, Some(name)) => Some(name.as_ref()),
            _ => None,
        };
        let member = member.map(|name| name.escape_ascii().to_string());
        TarError { offset: self.position, member, problem }
    }

    fn block_done(&mut self) -> Result<(), TarError> {
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

    fn header_block(&mut self) -> Result<(), TarProblem> {
        if self.block.iter().all(|byte| *byte == 0) {
            // Two empty blocks end the archive. A single one at the very end is forgiven, one between members is not.
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

    fn special(&mut self, header: &Header) -> Result<(), TarProblem> {
        if header.size > MAX_SPECIAL {
            return Err(TarProblem::SpecialTooLarge(header.size));
        }
        let left = header.size as usize;
        let pad = padding(header.size) as usize;
        self.state = State::Special { kind: header.kind, body: Vec::with_capacity(left), left, pad };
        if left == 0 { self.special_body(header.kind, Vec::new()) } else { Ok(()) }
    }

    fn special_done(&mut self) -> Result<(), TarError> {
        let State::Special { kind, body, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        self.special_body(kind, body).map_err(|problem| self.broken(problem))
    }

    fn special_body(&mut self, kind: u8, body: Vec<u8>) -> Result<(), TarProblem> {
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

    /// A member's own header: everything known about it comes together here.
    fn member(&mut self, header: Header, block: &[u8; BLOCK]) -> Result<(), TarProblem> {
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
        self.memory += 160 + entry.path.len() + entry.xattrs.iter().map(|(k, v)| 64 + k.len() + v.len()).sum::<usize>();
        if self.memory > MAX_HEADER_MEMORY {
            return Err(TarProblem::TooManyHeaders);
        }
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

    fn push(&mut self, entry: Entry, data: u64) {
        self.entries.push(entry);
        self.skip_data(data, padding(data));
    }

    fn skip_data(&mut self, data: u64, pad: u64) {
        self.state = if data + pad == 0 { State::Header } else { State::Skip { data, pad } };
    }
}

/// The data of an ordinary member.
fn plain(offset: u64, size: u64) -> Data {
    let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset, len: size }] };
    Data { size, segments }
}

/// Bytes from the end of `size` bytes to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A tar on disk that cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("cannot read the tar")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Tar(#[from] TarError),
}

/// Scans `len` bytes of `file` from `start` on, reading headers and jumping over data. Offsets in the result count from `start`.
pub fn scan_file(file: &File, start: u64, len: u64) -> Result<Vec<Entry>, ScanError> {
    // Large enough that runs of small files cost one read, small enough that large files do not drag their data in.
    let mut buffer = vec![0; 16 << 10];
    let mut scanner = Scanner::new();
    let mut at = 0;
    while at < len {
        let jump = scanner.skippable().min(len - at);
        if jump > 0 {
            scanner.skip(jump);
            at += jump;
            continue;
        }
        let want = (len - at).min(buffer.len() as u64) as usize;
        let got = match file.read_at(&mut buffer[..want], start + at) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ScanError::Read(error)),
        };
        scanner.feed(&buffer[..got])?;
        at += got as u64;
    }
    Ok(scanner.finish()?)
}

#[cfg(test)]
mod tests;
