//! What only `ADD` does: fetching URLs and unpacking archives.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::copy::{Content, Item, Thing};
use crate::image::Compression;
use crate::layer::tar::scan_file;
use crate::layer::{Data, EntryKind, Merger, Segment, Tree};
use crate::names::Digest;
use crate::report::Report;
use crate::store::Store;

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

/// Fetches a URL.
pub fn fetch(store: &Store, url: &str) -> Result<Fetched, Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot fetch `{url}`")).with_cause(cause);
    let host = url.split('/').nth(2).unwrap_or_default();
    let agent = crate::transport::registry::agent(host)?;
    let response = agent.get(url).call().map_err(|error| failed(&error))?;
    if !response.status().is_success() {
        return Err(failed(&format!("the server answered {}", response.status())));
    }
    let modified = response.headers().get("last-modified").and_then(|value| value.to_str().ok());
    let modified = modified.and_then(|text| chrono::DateTime::parse_from_rfc2822(text).ok());
    let modified = modified.map(|time| time.timestamp());
    let mut body = response.into_body().into_reader();
    let mut file = store.nameless_file()?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        let got = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error)),
        };
        hash.update(&buffer[..got]);
        file.write_all(&buffer[..got]).map_err(|error| failed(&error))?;
    }
    Ok(Fetched { file, digest: hash.finalize().into(), modified })
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

/// The file itself, or what is packed in it with gzip, zstd, xz or bzip2.
pub fn inflated(store: &Store, mut file: File, name: &str) -> Result<File, Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot unpack `{name}`")).with_cause(cause);
    let mut first = [0; 512];
    let got = file.read_at(&mut first, 0).map_err(|error| failed(&error))?;
    file.rewind().map_err(|error| failed(&error))?;
    let first = &first[..got];
    if first.starts_with(XZ) {
        return inflate(store, lzma_rust2::XzReader::new(file, true)).map_err(|error| failed(&error));
    }
    if is_bzip2(first) {
        return inflate(store, bzip2::read::MultiBzDecoder::new(file)).map_err(|error| failed(&error));
    }
    match Compression::sniff(first) {
        Compression::None => Ok(file),
        Compression::Gzip => inflate(store, flate2::read::MultiGzDecoder::new(file)).map_err(|error| failed(&error)),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(file).map_err(|error| failed(&error))?;
            inflate(store, decoder).map_err(|error| failed(&error))
        }
    }
}

/// The tree in a tar (plain or packed), if the file is one. The names in it are judged by the same rules as a layer's: what climbs out is
/// refused.
pub fn unpack(store: &Store, file: File, name: &str) -> Result<Option<(Tree, File)>, Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot unpack `{name}`")).with_cause(cause);
    let plain = inflated(store, file, name)?;
    let mut magic = [0; 5];
    if plain.read_exact_at(&mut magic, 257).is_err() || &magic != b"ustar" {
        // Packed or not: a file like any other.
        return Ok(None);
    }
    let length = plain.metadata().map_err(|error| failed(&error))?.len();
    let mut merger = Merger::new();
    let entries = scan_file(&plain, 0, length).map_err(|error| failed(&error))?;
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    Ok(Some((merger.finish(), plain)))
}

fn inflate(store: &Store, mut input: impl Read) -> io::Result<File> {
    let mut file = store.nameless_file().map_err(io::Error::other)?;
    io::copy(&mut input, &mut file)?;
    Ok(file)
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
    fn checksums_have_one_form() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(checksum(&good).expect("good"), good);
        for text in ["", "sha256:", "sha256:0a", &good.to_uppercase(), &format!("sha512:{}", "0a".repeat(32))] {
            assert!(checksum(text).is_err(), "{text}");
        }
    }
}
