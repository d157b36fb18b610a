//! A container's output on disk, in the format of Kubernetes' runtimes (CRI logging), with one record on each line:
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z stdout F the line
//! 2026-01-02T03:04:05.678901234Z stdout P a piece without its line end (the next record continues it)
//! ```
//!
//! With this format, `grep` works, no byte of the output is lost, and a log can be followed. Logs are rotated by size
//! (`--log-opt`): `log` is the current file, `log.1` the previous one, and so on. Every file except a container's first
//! begins with a header line by gpurun, which readers of the format skip. It contains the number of the file and how
//! many lines ended before it, so that a reader knows how much it has missed.
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z gpurun F file=3 lines=123456
//! ```

use crate::clock::{now, rfc3339};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(crate) use crate::launch::Stream;
use crate::request::{LogDriver, LogOptions};

/// A file is rotated between two lines. If a line does not end, it is cut once the file exceeds its maximum size by
/// this much.
const OVERLONG: u64 = 1 << 20;

/// The write side, held by the supervisor.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    options: LogOptions,
    /// The number of this file, counted from the container's first.
    number: u64,
    /// How many lines have ended, in this file and all earlier ones.
    lines: u64,
    /// Whether standard output and standard error are in the middle of a line.
    mid_line: [bool; 2],
}

impl Log {
    /// Opens the log at its end.
    pub(crate) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let (number, lines) = position(path)?;
        let (file, size) = open_end(path)?;
        Ok(Self { path: path.to_path_buf(), file, size, options, number, lines, mid_line: [false; 2] })
    }

    /// Writes a piece of output, split at its line ends.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.options.driver == LogDriver::None {
            return Ok(());
        }
        let stamp = rfc3339(now());
        let mut records = Vec::with_capacity(bytes.len() + 64);
        let mut lines = 0;
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (line, kind) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, 'F'),
                None => (piece, 'P'),
            };
            write!(records, "{stamp} {} {kind} ", stream.name())?;
            records.extend_from_slice(line);
            records.push(b'\n');
            lines += u64::from(kind == 'F');
            self.mid_line[stream as usize] = kind == 'P';
            let over = (self.size + records.len() as u64).saturating_sub(self.options.max_size);
            if over > 0 && (self.mid_line == [false; 2] || over > OVERLONG) {
                self.append(&records, lines)?;
                self.rotate()?;
                records.clear();
                lines = 0;
            }
        }
        self.append(&records, lines)
    }

    fn append(&mut self, records: &[u8], lines: u64) -> io::Result<()> {
        if let Err(error) = self.file.write_all(records) {
            // A partial record would corrupt the next one.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += records.len() as u64;
        self.lines += lines;
        Ok(())
    }

    /// Renames every file to the name of the next older one, and begins a new file with a header line.
    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..self.options.max_file.saturating_sub(1)).rev() {
            match std::fs::rename(aged(&self.path, age), aged(&self.path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let new = self.path.with_extension("new");
        let header = format!("{} gpurun F file={} lines={}\n", rfc3339(now()), self.number + 1, self.lines);
        std::fs::write(&new, header)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, &self.path)?;
        (self.file, self.size) = open_end(&self.path)?;
        self.number += 1;
        Ok(())
    }
}

fn open_end(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The name of a file after `age` rotations; 0 is the current file.
#[must_use]
pub(crate) fn aged(path: &Path, age: u32) -> PathBuf {
    if age == 0 { path.to_path_buf() } else { path.with_extension(age.to_string()) }
}

/// The current file's number, and how many lines have ended so far.
fn position(path: &Path) -> io::Result<(u64, u64)> {
    let Some(newest) = Kept::open_all(path)?.pop() else { return Ok((0, 0)) };
    let (number, mut lines) = (newest.number, newest.before);
    for line in BufReader::new(newest.file).split(b'\n') {
        lines += u64::from(parse(&line?).is_some_and(|record| record.full));
    }
    Ok((number.try_into().unwrap_or(0), lines))
}

/// An open file of a log.
#[derive(Debug)]
pub(crate) struct Kept {
    pub file: File,
    /// The number of the file. Consecutive files have consecutive numbers.
    pub number: i64,
    /// How many lines ended in earlier files.
    pub before: u64,
}

impl Kept {
    /// Opens all files of a log, the oldest first. A concurrent rotation hides none, because files only move to names
    /// that are opened later.
    pub(crate) fn open_all(path: &Path) -> io::Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        let mut age = 0;
        loop {
            match File::open(aged(path, age)) {
                Ok(mut file) => {
                    // A file without a header is the first one, or older than the first if an earlier gpurun wrote it.
                    let (number, before) = match header(&mut file)? {
                        Some(header) => header,
                        None => (all.last().map_or(0, |newer| newer.number.min(1) - 1), 0),
                    };
                    if all.last().is_none_or(|newer| number < newer.number) {
                        all.push(Self { file, number, before });
                    }
                }
                // Between two steps of a rotation, the current file has no name for a moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound && age == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
            age += 1;
        }
        all.reverse();
        Ok(all)
    }
}

/// Reads the header line of a file, if it has one. The file's offset does not change.
fn header(file: &mut File) -> io::Result<Option<(i64, u64)>> {
    let mut start = [0; 128];
    let count = file.read_at(&mut start, 0)?;
    let line = start[..count].split(|&byte| byte == b'\n').next().unwrap_or_default();
    let text = std::str::from_utf8(line).unwrap_or_default();
    let read = || {
        let rest = text.split_once(" gpurun F file=")?.1;
        let (number, lines) = rest.split_once(" lines=")?;
        Some((number.parse().ok()?, lines.parse().ok()?))
    };
    Ok(read())
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRecord<'a> {
    pub time: &'a str,
    pub stream: Stream,
    /// Whether the line ends with this record.
    pub full: bool,
    pub text: &'a [u8],
}

/// Parses one line of a log file (without its line end).
#[must_use]
pub(crate) fn parse(line: &[u8]) -> Option<LogRecord<'_>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        bytes.split(|&byte| byte == b'\n').filter(|line| parse(line).is_some()).map(<[u8]>::to_vec).collect()
    }

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
        let mut log = Log::open(&path, LogOptions::default()).unwrap();
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
    fn a_large_log_is_rotated_between_lines_and_every_file_says_which_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let options = LogOptions { max_size: 100, max_file: 3, ..LogOptions::default() };
        let mut log = Log::open(&path, options.clone()).unwrap();
        for round in 0..10 {
            log.write(Stream::Stdout, &[b'x'; 80]).unwrap();
            log.write(Stream::Stdout, b" end\n").unwrap();
            if round % 3 == 2 {
                // This is what a restarted supervisor does.
                log = Log::open(&path, options.clone()).unwrap();
            }
        }
        let kept = Kept::open_all(&path).unwrap();
        let facts: Vec<(i64, u64)> = kept.iter().map(|kept| (kept.number, kept.before)).collect();
        assert_eq!(facts, [(8, 8), (9, 9), (10, 10)]);
        for (age, pieces) in [(0, 0), (1, 2), (2, 2)] {
            assert_eq!(readable(&aged(&path, age)).len(), pieces, "{age}");
        }
        assert!(!aged(&path, 3).exists());
    }

    #[test]
    fn files_of_an_earlier_gpurun_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(aged(&path, 1), "t stdout F a\n").unwrap();
        std::fs::write(&path, "t stdout F b\n").unwrap();
        let numbers =
            || Kept::open_all(&path).unwrap().iter().map(|kept| (kept.number, kept.before)).collect::<Vec<_>>();
        assert_eq!(numbers(), [(-1, 0), (0, 0)]);
        let mut log = Log::open(&path, LogOptions { max_size: 1, max_file: 2, ..LogOptions::default() }).unwrap();
        log.write(Stream::Stdout, b"c\n").unwrap();
        assert_eq!(numbers(), [(0, 0), (1, 2)]);
    }

    #[test]
    fn a_line_without_an_end_is_cut_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, LogOptions { max_size: 10, max_file: 2, ..LogOptions::default() }).unwrap();
        log.write(Stream::Stdout, &[b'x'; 1000]).unwrap();
        assert!(!aged(&path, 1).exists());
        log.write(Stream::Stdout, &vec![b'x'; 2 << 20]).unwrap();
        assert!(aged(&path, 1).exists());
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(1_000_000_000_000_000_001), "2001-09-09T01:46:40.000000001Z");
    }
}
