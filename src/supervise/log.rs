//! A container's output on disk, in the format that Kubernetes' runtimes use (CRI logging): one line a record,
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z stdout F the line
//! 2026-01-02T03:04:05.678901234Z stdout P a piece without its line end (the next record goes on)
//! ```
//!
//! so that `grep` reads it, no byte of the output is lost, and a log can be followed. Rotated by size: `log` is the current file, `log.1`
//! the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use crate::launch::Stream;

/// A file is set aside when it has grown past this many bytes.
const ROTATE_AT: u64 = 16 << 20;

/// The writing side, held by the supervisor.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
}

impl Log {
    /// Opens the log at its end.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_path_buf(), file, size, rotate_at: ROTATE_AT })
    }

    /// Writes a piece of output, cut at its line ends.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let stamp = rfc3339(now());
        let mut records = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (line, kind) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, 'F'),
                None => (piece, 'P'),
            };
            write!(records, "{stamp} {} {kind} ", stream.name())?;
            records.extend_from_slice(line);
            records.push(b'\n');
        }
        self.file.write_all(&records)?;
        self.size += records.len() as u64;
        if self.size > self.rotate_at { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self { rotate_at: self.rotate_at, ..Self::open(&self.path)? };
        Ok(())
    }
}

/// One record, as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord<'a> {
    pub time: &'a str,
    pub stream: Stream,
    /// Whether the line ends here.
    pub full: bool,
    pub text: &'a [u8],
}

/// Takes one line of a log file (without its line end) apart.
#[must_use]
pub fn parse(line: &[u8]) -> Option<LogRecord<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let full = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(LogRecord { time, stream, full, text: parts.next()? })
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A moment (nanoseconds since 1970) as RFC 3339 in UTC, with nanoseconds.
#[must_use]
pub fn rfc3339(nanos: u64) -> String {
    chrono::DateTime::from_timestamp_nanos(nanos as i64).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(path: &Path) -> Vec<(Stream, bool, Vec<u8>)> {
        let bytes = std::fs::read(path).unwrap();
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| parse(line).unwrap())
            .map(|record| (record.stream, record.full, record.text.to_vec()))
            .collect()
    }

    #[test]
    fn output_is_cut_at_line_ends_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, b"one\ntwo").unwrap();
        log.write(Stream::Stderr, b"oops\n\n").unwrap();
        log.write(Stream::Stdout, b" more \xff\n").unwrap();
        use Stream::{Stderr, Stdout};
        let expected: Vec<(Stream, bool, Vec<u8>)> = vec![
            (Stdout, true, b"one".into()),
            (Stdout, false, b"two".into()),
            (Stderr, true, b"oops".into()),
            (Stderr, true, b"".into()),
            (Stdout, true, b" more \xff".into()),
        ];
        assert_eq!(records(&path), expected);
    }

    #[test]
    fn a_large_log_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log { rotate_at: 100, ..Log::open(&path).unwrap() };
        for _ in 0..4 {
            log.write(Stream::Stdout, &[b'x'; 80]).unwrap();
        }
        assert_eq!(records(&path).len(), 0);
        assert_eq!(records(&dir.path().join("log.1")).len(), 1);
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(1_000_000_000_000_000_001), "2001-09-09T01:46:40.000000001Z");
    }
}
