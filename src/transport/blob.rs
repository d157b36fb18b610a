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

/// A source directory. Files are opened below it, without following symbolic links.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// Opens a regular file. An open of a FIFO would block and one of a device would have side effects, hence
    /// `O_NONBLOCK` and the check of the file type.
    pub(super) fn open_file(&self, member: &str) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = File::from(openat2(&self.0, member, how)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }
}

/// A blob, by the location of its bytes.
#[derive(Debug, Clone)]
pub struct Blob {
    location: Location,
    pub len: u64,
}

#[derive(Debug, Clone)]
enum Location {
    /// A range of an open file: a member of a tar.
    Range {
        file: Arc<File>,
        start: u64,
    },
    /// Opened for each read, so that an image with many layers does not hold as many descriptors.
    Named {
        directory: Arc<Directory>,
        member: String,
    },
    Remote(RemoteBlob),
}

impl Blob {
    pub(super) fn range(file: Arc<File>, start: u64, len: u64) -> Self {
        Self { location: Location::Range { file, start }, len }
    }

    pub(super) fn in_directory(directory: &Arc<Directory>, member: &str) -> Result<Self, SourceError> {
        let len = match directory.open_file(member).and_then(|file| file.metadata()) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SourceError::Missing { member: member.into() });
            }
            Err(cause) => return Err(SourceError::Blob { member: member.into(), cause }),
        };
        Ok(Self { location: Location::Named { directory: directory.clone(), member: member.into() }, len })
    }

    pub(super) fn remote(blob: RemoteBlob, len: u64) -> Self {
        Self { location: Location::Remote(blob), len }
    }

    /// Returns the blob's position in its archive.
    pub(super) fn location(&self) -> Option<(u64, u64)> {
        match &self.location {
            Location::Range { start, .. } => Some((*start, self.len)),
            _ => None,
        }
    }

    /// Whether the bytes come from the network, so that parallel reads are faster.
    pub fn is_remote(&self) -> bool {
        matches!(self.location, Location::Remote(_))
    }

    /// Reads a remote blob over one connection from now on.
    pub fn read_in_order(&self) {
        if let Location::Remote(blob) = &self.location {
            blob.read_in_order();
        }
    }

    /// The registry that the blob comes from.
    pub fn registry(&self) -> Option<&str> {
        match &self.location {
            Location::Remote(blob) => Some(blob.host()),
            _ => None,
        }
    }

    /// Returns the blob's file and the position in it. `source` is the archive or directory that the blob was found in.
    /// `None` for a remote blob.
    pub fn stretch(&self, source: &Path) -> Option<(PathBuf, u64)> {
        match &self.location {
            Location::Range { start, .. } => Some((source.to_owned(), *start)),
            Location::Named { member, .. } => Some((source.join(member), 0)),
            Location::Remote(_) => None,
        }
    }

    pub fn open(&self) -> io::Result<BlobReader> {
        let (file, at) = match &self.location {
            Location::Range { file, start } => (file.clone(), *start),
            Location::Named { directory, member } => (Arc::new(directory.open_file(member)?), 0),
            Location::Remote(blob) => return Ok(BlobReader::Remote(Box::new(blob.open()))),
        };
        Ok(BlobReader::File(FileRange { file, at, left: self.len }))
    }

    pub(super) fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.len as usize);
        self.open()?.read_to_end(&mut bytes)?;
        if bytes.len() as u64 == self.len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Reads a blob from its start.
#[derive(Debug)]
pub enum BlobReader {
    File(FileRange),
    Remote(Box<RemoteReader>),
}

impl BlobReader {
    /// The open file that it reads.
    pub fn file(&self) -> Option<&File> {
        match self {
            Self::File(range) => Some(&range.file),
            Self::Remote(_) => None,
        }
    }
}

/// A range of a file, read with its own position.
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
            // The file was truncated during the read.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
