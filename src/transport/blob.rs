//! The bytes of one file of a source, readable from any thread.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::SourceError;
use super::registry::{RemoteBlob, RemoteReader};

/// A source directory: files are opened below it, never through a link.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// Opens a regular file. A FIFO would block and a device would act, hence `O_NONBLOCK` and the look at what was opened.
    pub(super) fn open_file(&self, member: &str) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = File::from(openat2(&self.0, member, how)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }
}

/// Where a blob's bytes lie.
#[derive(Debug, Clone)]
pub struct Blob {
    place: Place,
    pub len: u64,
}

#[derive(Debug, Clone)]
enum Place {
    /// A stretch of an open file: a member of a tar.
    Range {
        file: Arc<File>,
        start: u64,
    },
    /// Opened when it is read: an image of many layers does not hold as many descriptors.
    Named {
        directory: Arc<Directory>,
        member: String,
    },
    Remote(RemoteBlob),
}

impl Blob {
    pub(super) fn range(file: Arc<File>, start: u64, len: u64) -> Self {
        Self { place: Place::Range { file, start }, len }
    }

    pub(super) fn in_directory(directory: &Arc<Directory>, member: &str) -> Result<Self, SourceError> {
        let len = match directory.open_file(member).and_then(|file| file.metadata()) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SourceError::Missing { member: member.into() });
            }
            Err(cause) => return Err(SourceError::Blob { member: member.into(), cause }),
        };
        Ok(Self { place: Place::Named { directory: directory.clone(), member: member.into() }, len })
    }

    pub(super) fn remote(blob: RemoteBlob, len: u64) -> Self {
        Self { place: Place::Remote(blob), len }
    }

    /// Whether its bytes come over a network: then more of them side by side are quicker.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote(_))
    }

    /// The file that it lies in, and where; `source` is the archive or directory that it was found in. `None` for what lies elsewhere.
    pub fn stretch(&self, source: &Path) -> Option<(PathBuf, u64)> {
        match &self.place {
            Place::Range { start, .. } => Some((source.to_owned(), *start)),
            Place::Named { member, .. } => Some((source.join(member), 0)),
            Place::Remote(_) => None,
        }
    }

    pub fn open(&self) -> io::Result<BlobReader> {
        let (file, at) = match &self.place {
            Place::Range { file, start } => (file.clone(), *start),
            Place::Named { directory, member } => (Arc::new(directory.open_file(member)?), 0),
            Place::Remote(blob) => return Ok(BlobReader::Remote(Box::new(blob.open()))),
        };
        Ok(BlobReader::File(FileRange { file, at, left: self.len }))
    }

    pub(super) fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.len as usize);
        self.open()?.read_to_end(&mut bytes)?;
        if bytes.len() as u64 == self.len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Reads a blob from its beginning.
#[derive(Debug)]
pub enum BlobReader {
    File(FileRange),
    Remote(Box<RemoteReader>),
}

impl BlobReader {
    /// The file that it reads, as it was opened.
    pub fn file(&self) -> Option<&File> {
        match self {
            Self::File(range) => Some(&range.file),
            Self::Remote(_) => None,
        }
    }
}

/// A stretch of a file, read with its own position.
#[derive(Debug)]
pub struct FileRange {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(range) => range.read(buffer),
            Self::Remote(reader) => reader.read(buffer),
        }
    }
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 && want > 0 {
            // The file was cut while it was read.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
