//! Fetches URLs and unpacks archives for `ADD`.

use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::Response;

use super::context::ContextError;
use super::copy_source::{Content, CopySource, Item};
use super::ignore::Filter;
use crate::image::Compression;
use crate::layer::{Data, EntryKind, Merger, Segment, tar};
use crate::names::Digest;
use crate::report::Report;
use crate::store::{IngestError, Store};
use crate::transport::registry::{DownloadError, download};

/// Whether a source of `ADD` is a URL.
#[must_use]
pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Whether the source is a git repository, which BuildKit would clone.
#[must_use]
pub(super) fn is_git(source: &str) -> bool {
    let path = source.split(['#', '?']).next().unwrap_or(source);
    ["git@", "git://", "ssh://"].iter().any(|prefix| source.starts_with(prefix))
        || (is_url(source) && path.trim_end_matches('/').ends_with(".git"))
}

/// Checks the format of an `ADD --checksum` digest.
pub(super) fn checksum(text: &str) -> Result<&str, Report> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let good = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let bad = || Report::new(format!("invalid `--checksum={text}`: it must be `sha256:` and 64 hexadecimal digits"));
    if good { Ok(text) } else { Err(bad()) }
}

/// A downloaded file.
pub(super) struct Fetched {
    /// An unlinked temporary file.
    file: File,
    pub digest: [u8; 32],
    /// The Last-Modified time, if the server sends one.
    modified: Option<i64>,
}

impl Fetched {
    pub(super) fn size(&self) -> Result<u64, Report> {
        let meta = self.file.metadata().map_err(|error| Report::new("cannot read a fetched file").with_cause(error))?;
        Ok(meta.len())
    }
}

/// Fetches a URL of at most `most` bytes and retries where that may help. `wait` waits between two attempts.
pub(super) fn fetch(
    store: &Store,
    url: &str,
    most: u64,
    wait: &mut dyn FnMut(Duration, &DownloadError) -> Result<(), Report>,
) -> Result<Fetched, Report> {
    let mut take = |response: Response<Body>| {
        let modified = response.headers().get("last-modified").and_then(|value| value.to_str().ok());
        let modified = modified.and_then(|text| chrono::DateTime::parse_from_rfc2822(text).ok());
        let modified = modified.map(|time| time.timestamp());
        let mut hash = Sha256::new();
        let mut size = 0;
        let body = response.into_body().into_reader().take(most.saturating_add(1));
        let poured = store.pour(body, |bytes| {
            size += bytes.len() as u64;
            hash.update(bytes);
        });
        match poured {
            Ok(_) if size > most => Ok(Err(Report::new(format!(
                "cannot fetch `{url}`: it is larger than the {most} bytes that this build may still download"
            )))),
            Ok(file) => Ok(Ok(Fetched { file, digest: hash.finalize().into(), modified })),
            Err(IngestError::Unpack(error)) => Err(error),
            Err(error) => Ok(Err(not_poured(format!("cannot fetch `{url}`"), &error))),
        }
    };
    download(url, &mut take, wait)
}

/// A downloaded file as `ADD` copies it: mode 0600, named after the last part of the URL. Without a time from the
/// server the mtime is 0, so that every build gives the same layer.
pub(super) fn source(url: &str, fetched: Fetched) -> Result<CopySource, Report> {
    let size = fetched.size()?;
    let Fetched { file, digest, modified } = fetched;
    let name = file_name(url);
    let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset: 0, len: size }] };
    let item = Item {
        name: Vec::new(),
        kind: EntryKind::File(Data { size, segments }),
        mode: 0o600,
        owner: (0, 0),
        mtime: modified.unwrap_or(0),
        xattrs: Default::default(),
        content: Content::Files(Rc::new(vec![file])),
        identity: digest.to_vec(),
        link: None,
        implied: false,
    };
    Ok(CopySource { name: name.as_bytes().to_vec(), items: vec![item] })
}

/// The last part of a URL's path. Empty if the path ends with a slash.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    path.split_once('/').map_or("", |(_, path)| path.rsplit('/').next().unwrap_or_default())
}

/// Refuses a URL without a file name if the destination does not name the file either.
pub(super) fn check_name(url: &str, destination: &str) -> Result<(), Report> {
    if !destination.ends_with('/') || !file_name(url).is_empty() {
        return Ok(());
    }
    Err(Report::new(format!("cannot name the file in `{destination}`: the URL `{url}` has no file name"))
        .with_hint("add the name of the file to the destination"))
}

const XZ: &[u8] = b"\xfd7zXZ\0";

/// Whether this is the start of a bzip2 stream: the level, then the magic number of a block or of the end of an empty
/// stream. A text may begin with `BZh` too.
fn is_bzip2(first: &[u8]) -> bool {
    let level = first.get(3).is_some_and(|level| (b'1'..=b'9').contains(level));
    let mark = first.get(4..10).unwrap_or_default();
    first.starts_with(b"BZh") && level && (mark == b"1AY&SY" || mark == b"\x17rE8P\x90")
}

/// The memory limit of a decompressor. The largest preset of xz (`-9`) needs 64 MiB, but a stream may ask for 4 GiB.
const WINDOW: u64 = 256 << 20;

/// Decompresses gzip, zstd, xz and bzip2. Any other stream is passed through.
pub(super) fn unpacker<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = Vec::new();
    input.by_ref().take(16).read_to_end(&mut first)?;
    let (is_xz, is_bzip2, compression) = (first.starts_with(XZ), is_bzip2(&first), Compression::sniff(&first));
    let all = io::Cursor::new(first).chain(input);
    Ok(match compression {
        _ if is_xz => {
            let limit = u32::try_from(WINDOW >> 10).unwrap_or(u32::MAX);
            Box::new(lzma_rust2::XzReader::new_mem_limit(BufReader::new(all), true, limit))
        }
        _ if is_bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(all)),
        Compression::None => Box::new(all),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(all)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(all)?),
    })
}

/// Writes a stream to an unlinked file, decompressed if it is compressed.
pub(crate) fn inflated(store: &Store, input: impl Read, name: &str) -> Result<File, Report> {
    let plain = unpacker(input).map_err(IngestError::Unpack).and_then(|plain| store.pour(plain, |_| ()));
    plain.map_err(|error| not_poured(format!("cannot unpack `{name}`"), &error))
}

/// The contents of a tar archive, compressed or not, or `None` if the file is not a tar. The result refers to a copy of
/// the tar, because the file belongs to the context and may change at any time. `digest` was computed before, and a
/// different content now is an error. The names in the archive follow the rules of layers: a name that climbs above the
/// root is refused.
pub(super) fn unpack(store: &Store, file: &File, digest: &[u8; 32], name: &str) -> Result<Option<CopySource>, Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot unpack `{name}`")).with_cause(cause);
    let mut packed = Hashed { file, hash: Sha256::new() };
    let damaged = |error| not_poured(format!("cannot unpack `{name}`"), &IngestError::Unpack(error));
    let poured = {
        let mut plain = unpacker(&mut packed).map_err(damaged)?;
        let mut first = Vec::new();
        plain.by_ref().take(512).read_to_end(&mut first).map_err(damaged)?;
        if !tar::is_archive(&first) {
            // Not an archive. It is copied like any other file.
            return Ok(None);
        }
        store.pour(first.chain(plain), |_| ())
    };
    let plain = poured.map_err(|error| not_poured(format!("cannot unpack `{name}`"), &error))?;
    // Hash the bytes after the end of the compressed stream too. They are part of the file.
    io::copy(&mut packed, &mut io::sink()).map_err(|error| failed(&error))?;
    if <[u8; 32]>::from(packed.hash.finalize()) != *digest {
        return Err(ContextError::Changed(name.to_owned()).into());
    }
    let length = plain.metadata().map_err(|error| failed(&error))?.len();
    let mut merger = Merger::new();
    let mut entries = tar::scan_file(&plain, 0, length).map_err(|error| failed(&error))?;
    // Like BuildKit, skip entries with an empty name and entries for the archive's own root.
    entries.retain(|entry| !cleaned(&entry.path).is_empty());
    let listed: HashSet<Vec<u8>> = entries.iter().map(|entry| cleaned(&entry.path)).collect();
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    let mut inside = CopySource::from_tree(&merger.finish(), &Rc::new(vec![plain]), "/", &Filter::default(), name)?;
    for item in &mut inside.items {
        item.implied = item.kind == EntryKind::Directory && !listed.contains(&item.name);
    }
    Ok(Some(inside))
}

/// An entry's name without empty, `.` and `..` components. The merge refuses a name that climbs above the root.
fn cleaned(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join(&b'/')
}

/// Hashes the bytes of a file as they are read.
struct Hashed<'a> {
    file: &'a File,
    hash: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}

/// Explains why a stream could not be written to a file.
pub(super) fn not_poured(message: String, error: &IngestError) -> Report {
    let mut report = Report::new(message);
    report = match error {
        // The decompressor's own message names its internal parameter.
        IngestError::Unpack(cause) if cause.kind() == io::ErrorKind::OutOfMemory => {
            report.with_cause(format!("decompressing it needs more than {} MiB of memory", WINDOW >> 20))
        }
        IngestError::Unpack(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            report.with_cause("the compressed data is truncated")
        }
        IngestError::Unpack(cause) => report.with_cause(cause),
        error => error.source().into_iter().fold(report.with_cause(error), |report, cause| report.with_cause(cause)),
    };
    report.hint = error.space_hint();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        for (url, git, name) in [
            ("https://host/dir/file.tar.gz?x=/y#z", false, "file.tar.gz"),
            ("https://host/", false, ""),
            ("https://host", false, ""),
            ("https://host/a/b.git", true, "b.git"),
            ("https://host/a/b.git#main:dir", true, "b.git"),
            ("https://host/a/b.github", false, "b.github"),
        ] {
            assert_eq!((is_git(url), file_name(url)), (git, name), "{url}");
        }
        assert!(is_git("git@host:a/b") && is_git("ssh://git@host/a") && !is_git("dir/b.git"));
        assert!(check_name("https://host/", "/d/").is_err() && check_name("https://host/", "/d/x").is_ok());
    }

    #[test]
    fn an_archive_is_what_its_digest_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("store")).expect("a store");
        let tar = crate::layer::testing::Layer::new().file("a", "x").end();
        let gzip = {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut packed, &tar).expect("packed");
            packed.finish().expect("packed")
        };
        let other = [tar.clone(), vec![1]].concat();
        let path = dir.path().join("file");
        let unpacked = |bytes: &[u8], digest: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            let file = File::open(&path).expect("opened");
            unpack(&store, &file, &Sha256::digest(digest).into(), "file").map(|found| found.is_some())
        };
        for bytes in [&tar, &gzip] {
            assert!(unpacked(bytes, bytes).expect("an archive"));
            let error = unpacked(bytes, &other).expect_err("changed").to_string();
            assert!(error.contains("cannot copy `file` of the build context: it changed"), "{error}");
        }
        assert!(!unpacked(b"no archive", &other).expect("a file"));
    }

    #[test]
    fn checksums_have_one_form() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(checksum(&good).expect("good"), good);
        for text in ["", "sha256:", "sha256:0a", &good.to_uppercase(), &format!("sha512:{}", "0a".repeat(32))] {
            assert!(checksum(text).is_err(), "{text}");
        }
    }
}
