//! What only `ADD` does: fetching URLs and unpacking archives.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::Response;

use super::context::ContextError;
use super::copy::{Content, Item, Thing};
use crate::image::Compression;
use crate::layer::{Data, EntryKind, Merger, Segment, Tree, tar};
use crate::names::Digest;
use crate::report::Report;
use crate::store::{IngestError, Store};
use crate::transport::registry::{DownloadError, download};

/// Whether a source of `ADD` is fetched.
#[must_use]
pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Whether it names a git repository, which BuildKit would clone.
#[must_use]
pub fn is_git(source: &str) -> bool {
    let path = source.split(['#', '?']).next().unwrap_or(source);
    ["git@", "git://", "ssh://"].iter().any(|prefix| source.starts_with(prefix))
        || (is_url(source) && path.trim_end_matches('/').ends_with(".git"))
}

/// A digest as `ADD --checksum` takes it.
pub fn checksum(text: &str) -> Result<&str, Report> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let good = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let bad = || Report::new(format!("`--checksum={text}` is not `sha256:` and 64 hexadecimal digits"));
    if good { Ok(text) } else { Err(bad()) }
}

/// What a server sent.
pub struct Fetched {
    /// Without a name.
    file: File,
    pub digest: [u8; 32],
    /// When it was changed last, if the server says so.
    modified: Option<i64>,
}

/// Fetches a URL, again where that may help; `wait` lets time go by between two attempts.
pub fn fetch(
    store: &Store,
    url: &str,
    wait: &mut dyn FnMut(Duration, &DownloadError) -> Result<(), Report>,
) -> Result<Fetched, Report> {
    let mut take = |response: Response<Body>| {
        let modified = response.headers().get("last-modified").and_then(|value| value.to_str().ok());
        let modified = modified.and_then(|text| chrono::DateTime::parse_from_rfc2822(text).ok());
        let modified = modified.map(|time| time.timestamp());
        let mut hash = Sha256::new();
        match store.pour(response.into_body().into_reader(), |bytes| hash.update(bytes)) {
            Ok(file) => Ok(Ok(Fetched { file, digest: hash.finalize().into(), modified })),
            Err(IngestError::Unpack(error)) => Err(error),
            Err(error) => Ok(Err(not_poured(format!("cannot fetch `{url}`"), &error))),
        }
    };
    download(url, &mut take, wait)
}

/// A fetched file, as `ADD` puts it: mode 0600, named by the last part of the URL. Without a time of the server's its time is 0, in every
/// build.
pub fn thing(url: &str, fetched: Fetched) -> Result<Thing, Report> {
    let Fetched { file, digest, modified } = fetched;
    let size = file.metadata().map_err(|error| Report::new("cannot read a fetched file").with_cause(error))?.len();
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
    };
    Ok(Thing { name: name.as_bytes().to_vec(), items: vec![item] })
}

/// The last part of a URL's path; empty, if it ends with a slash.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    path.split_once('/').map_or("", |(_, path)| path.rsplit('/').next().unwrap_or_default())
}

/// Refuses a URL that does not say what to call the file.
pub fn check_name(url: &str, destination: &str) -> Result<(), Report> {
    if !destination.ends_with('/') || !file_name(url).is_empty() {
        return Ok(());
    }
    Err(Report::new(format!("`{url}` does not say what to call the file in `{destination}`"))
        .with_hint("write the file's name at the end of the destination"))
}

const XZ: &[u8] = b"\xfd7zXZ\0";

/// A stream of bzip2: its level, then the mark of a block or of an empty stream's end. (`BZh` alone may begin a text.)
fn is_bzip2(first: &[u8]) -> bool {
    let level = first.get(3).is_some_and(|level| (b'1'..=b'9').contains(level));
    let mark = first.get(4..10).unwrap_or_default();
    first.starts_with(b"BZh") && level && (mark == b"1AY&SY" || mark == b"\x17rE8P\x90")
}

/// A packer's window may be as large as this: xz's own largest is 64 MiB (`-9`), but a stream may ask for 4 GiB.
const WINDOW: u64 = 256 << 20;

/// What is packed in a stream with gzip, zstd, xz or bzip2, or the stream itself.
fn unpacker<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
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

/// A stream, unpacked if it is packed, in a file.
pub fn inflated(store: &Store, input: impl Read, name: &str) -> Result<File, Report> {
    let plain = unpacker(input).map_err(IngestError::Unpack).and_then(|plain| store.pour(plain, |_| ()));
    plain.map_err(|error| not_poured(format!("cannot unpack `{name}`"), &error))
}

/// The tree in a tar (plain or packed), if the file is one, and a copy of the tar: the file is the context's, and may be changed at any time.
/// Its digest was taken before. The names in it are judged by the same rules as a layer's: what climbs out is refused.
pub fn unpack(store: &Store, file: &File, digest: &[u8; 32], name: &str) -> Result<Option<(Tree, File)>, Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot unpack `{name}`")).with_cause(cause);
    let mut packed = Hashed { file, hash: Sha256::new() };
    let damaged = |error| not_poured(format!("cannot unpack `{name}`"), &IngestError::Unpack(error));
    let poured = {
        let mut plain = unpacker(&mut packed).map_err(damaged)?;
        let mut first = Vec::new();
        plain.by_ref().take(512).read_to_end(&mut first).map_err(damaged)?;
        if !tar::is_archive(&first) {
            // Packed or not: a file like any other.
            return Ok(None);
        }
        store.pour(first.chain(plain), |_| ())
    };
    let plain = poured.map_err(|error| not_poured(format!("cannot unpack `{name}`"), &error))?;
    // What is behind the end of a packed stream is part of the file.
    io::copy(&mut packed, &mut io::sink()).map_err(|error| failed(&error))?;
    if <[u8; 32]>::from(packed.hash.finalize()) != *digest {
        return Err(ContextError::Changed(name.to_owned()).into());
    }
    let length = plain.metadata().map_err(|error| failed(&error))?.len();
    let mut merger = Merger::new();
    let entries = tar::scan_file(&plain, 0, length).map_err(|error| failed(&error))?;
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    Ok(Some((merger.finish(), plain)))
}

/// A file's bytes, hashed as they are read.
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

/// Why a stream did not come into a file.
fn not_poured(message: String, error: &IngestError) -> Report {
    let mut report = Report::new(message);
    report = match error {
        // The packer's own words name its parameter.
        IngestError::Unpack(cause) if cause.kind() == io::ErrorKind::OutOfMemory => {
            report.with_cause(format!("to unpack it takes more than {} MiB of memory", WINDOW >> 20))
        }
        IngestError::Unpack(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            report.with_cause("it ends in the middle")
        }
        IngestError::Unpack(cause) => report.with_cause(cause),
        error => error.source().into_iter().fold(report.with_cause(error), |report, cause| report.with_cause(cause)),
    };
    report.hint = error.room();
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
            assert!(error.contains("`file` of the build context was changed while it was copied"), "{error}");
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
