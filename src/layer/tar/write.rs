//! Writes a tar stream. The bytes depend only on the input: ustar headers, with PAX records only for values that ustar
//! cannot hold.
//!
//! For each entry, the caller calls [`Writer::entry`] for the headers, and then writes as many bytes as the entry's
//! segments hold with [`Writer::data`]. The scanner of this module reads back the same entries.

use std::io::{self, Write};

use super::entry::padding;
use super::{BLOCK, Entry, EntryKind};
use crate::layer::tree::Data;

/// The largest numbers that ustar's octal fields of 7 and 11 digits hold.
const MAX_OCTAL_7: u64 = 0o777_7777;
const MAX_OCTAL_11: u64 = 0o777_7777_7777;

/// A tar stream that is being written.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
    /// The number of data bytes that the current member still needs.
    wanted: u64,
    pad: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, wanted: 0, pad: 0 }
    }

    /// Writes the headers of one member. A directory's name gets its trailing `/` here. The segments determine whether
    /// a file is sparse.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_member()?;
        let mut path = entry.path.to_vec();
        if entry.kind == EntryKind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut pax = Vec::new();
        for (name, value) in &entry.xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", &**name].concat(), value);
        }
        let (kind, link, size, map) = match &entry.kind {
            EntryKind::Directory => (b'5', &b""[..], 0, None),
            EntryKind::File(data) => {
                let stored = data.segments.iter().map(|segment| segment.len).sum::<u64>();
                let map = sparse_map(data);
                (b'0', &b""[..], stored + map.as_ref().map_or(0, |map| map.len() as u64), map)
            }
            EntryKind::HardLink(target) => (b'1', &**target, 0, None),
            EntryKind::Symlink(target) => (b'2', &**target, 0, None),
            EntryKind::CharDevice { .. } => (b'3', &b""[..], 0, None),
            EntryKind::BlockDevice { .. } => (b'4', &b""[..], 0, None),
            EntryKind::Fifo => (b'6', &b""[..], 0, None),
        };
        if let (Some(_), EntryKind::File(data)) = (&map, &entry.kind) {
            record(&mut pax, b"GNU.sparse.major", b"1");
            record(&mut pax, b"GNU.sparse.minor", b"0");
            record(&mut pax, b"GNU.sparse.name", &path);
            record(&mut pax, b"GNU.sparse.realsize", data.size.to_string().as_bytes());
            path = [b"GNUSparseFile.0/", path.as_slice()].concat();
        }
        let mut head = Head::new(kind, entry.mode);
        head.text(0, 100, &path, b"path", &mut pax);
        head.text(157, 100, link, b"linkpath", &mut pax);
        head.number(108, 7, u64::from(entry.uid), b"uid", &mut pax);
        head.number(116, 7, u64::from(entry.gid), b"gid", &mut pax);
        head.number(124, 11, size, b"size", &mut pax);
        head.time(entry.mtime, &mut pax);
        if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } = entry.kind {
            head.octal(329, 7, u64::from(major));
            head.octal(337, 7, u64::from(minor));
        }
        if !pax.is_empty() {
            let mut extended = Head::new(b'x', 0o644);
            extended.put(0, b"PaxHeaders.0/member");
            extended.octal(108, 7, 0);
            extended.octal(116, 7, 0);
            extended.octal(124, 11, pax.len() as u64);
            extended.octal(136, 11, 0);
            self.out.write_all(&extended.sealed())?;
            self.padded(&pax)?;
        }
        self.out.write_all(&head.sealed())?;
        if let Some(map) = &map {
            self.out.write_all(map)?;
        }
        self.wanted = size - map.map_or(0, |map| map.len() as u64);
        self.pad = padding(size);
        Ok(())
    }

    /// Writes the next bytes of the member's data. More bytes than the headers announced are an error.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wanted = self
            .wanted
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more data than the header declares"))?;
        self.out.write_all(bytes)
    }

    /// Writes the two zero blocks and returns the stream.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.end_member()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn end_member(&mut self) -> io::Result<()> {
        if self.wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "less data than the header declares"));
        }
        let pad = std::mem::take(&mut self.pad) as usize;
        self.out.write_all(&[0; BLOCK][..pad])
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; BLOCK][..padding(bytes.len() as u64) as usize])
    }
}

/// The text of a PAX 1.0 sparse map, padded to a block, or `None` for a file without holes.
fn sparse_map(data: &Data) -> Option<Vec<u8>> {
    let whole = match data.segments.as_slice() {
        [] => data.size == 0,
        [one] => one.at == 0 && one.len == data.size,
        _ => false,
    };
    if whole {
        return None;
    }
    // GNU tar ends the map of a file that ends in a hole with an empty segment, from which readers get the size.
    let end = data.segments.last().map_or(0, |segment| segment.at + segment.len);
    let mut pairs: Vec<(u64, u64)> = data.segments.iter().map(|segment| (segment.at, segment.len)).collect();
    if end < data.size {
        pairs.push((data.size, 0));
    }
    let mut text = format!("{}\n", pairs.len());
    for (at, len) in pairs {
        text.push_str(&format!("{at}\n{len}\n"));
    }
    let mut text = text.into_bytes();
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    Some(text)
}

/// Appends the record `<length> key=value\n`. The length includes itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

struct Head([u8; BLOCK]);

impl Head {
    fn new(kind: u8, mode: u16) -> Self {
        let mut head = Self([0; BLOCK]);
        head.0[156] = kind;
        head.octal(100, 7, u64::from(mode));
        head.put(257, b"ustar\x0000");
        head
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn octal(&mut self, at: usize, digits: usize, value: u64) {
        self.put(at, format!("{value:0digits$o}").as_bytes());
    }

    /// Writes a text field, or a PAX record if it does not fit. Names that are not ASCII go into a PAX record, because
    /// a plain header does not specify an encoding.
    fn text(&mut self, at: usize, room: usize, text: &[u8], key: &[u8], pax: &mut Vec<u8>) {
        if text.len() <= room && text.is_ascii() {
            self.put(at, text);
        } else {
            record(pax, key, text);
            let plain: Vec<u8> =
                text.iter().take(room).map(|byte| if byte.is_ascii() { *byte } else { b'_' }).collect();
            self.put(at, &plain);
        }
    }

    fn number(&mut self, at: usize, digits: usize, value: u64, key: &[u8], pax: &mut Vec<u8>) {
        let most = if digits == 7 { MAX_OCTAL_7 } else { MAX_OCTAL_11 };
        if value > most {
            record(pax, key, value.to_string().as_bytes());
        }
        self.octal(at, digits, if value > most { 0 } else { value });
    }

    fn time(&mut self, (seconds, nanos): (i64, u32), pax: &mut Vec<u8>) {
        let plain = u64::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_OCTAL_11);
        self.octal(136, 11, plain.unwrap_or(0));
        if nanos == 0 && plain.is_some() {
            return;
        }
        // PAX writes a time before 1970 as a negative number, fraction included.
        let text = match (seconds, nanos) {
            (seconds, 0) => seconds.to_string(),
            (0.., nanos) => format!("{seconds}.{nanos:09}"),
            (_, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        };
        record(pax, b"mtime", text.as_bytes());
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::Scanner;
    use super::super::scanner::plain;
    use super::*;
    use crate::layer::tree::Segment;

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let name = || prop::collection::vec(1u8..=255, 1..300).prop_map(Vec::into_boxed_slice);
        prop_oneof![
            Just(EntryKind::Directory),
            Just(EntryKind::Fifo),
            (0u64..2000).prop_map(|size| EntryKind::File(plain(0, size))),
            (1u64..500, 0u64..500, 1u64..500).prop_map(|(hole, tail, len)| {
                let segment = Segment { at: hole, source: 0, offset: 0, len };
                EntryKind::File(Data { size: hole + len + tail, segments: vec![segment] })
            }),
            (1u64..1 << 40).prop_map(|size| EntryKind::File(Data { size, segments: Vec::new() })),
            name().prop_map(EntryKind::Symlink),
            name().prop_map(EntryKind::HardLink),
            (0u32..1 << 12, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (0u32..1 << 12, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        ]
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let path = prop::collection::vec(1u8..=255, 1..300).prop_map(|mut path| {
            while path.last() == Some(&b'/') {
                path.pop();
            }
            path.push(b'x');
            path.into_boxed_slice()
        });
        let bytes = |most| prop::collection::vec(1u8..=255, 1..most).prop_map(Vec::into_boxed_slice);
        let xattrs = prop::collection::btree_map(
            bytes(20).prop_map(|name| name.iter().filter(|b| **b != b'=').copied().chain([b'n']).collect()),
            prop::collection::vec(any::<u8>(), 0..50).prop_map(Vec::into_boxed_slice),
            0..3,
        );
        let ids = prop_oneof![0u32..5000, 2_000_000u32..u32::MAX];
        let mtime = (prop_oneof![-5_000_000_000i64..10_000_000_000, Just(1 << 40)], 0u32..1_000_000_000);
        (path, kinds(), 0u16..0o10000, ids.clone(), ids, mtime, xattrs)
            .prop_map(|(path, kind, mode, uid, gid, mtime, xattrs)| Entry { path, kind, mode, uid, gid, mtime, xattrs })
    }

    /// The entry that the scanner should return. Its offsets are set to 0, because they depend on the stream, and a
    /// directory's name ends with `/`.
    fn normal(mut entry: Entry) -> Entry {
        if entry.kind == EntryKind::Directory {
            entry.path = [&*entry.path, b"/"].concat().into();
        }
        if let EntryKind::File(data) = &mut entry.kind {
            data.segments.iter_mut().for_each(|segment| segment.offset = 0);
        }
        entry
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in prop::collection::vec(entries(), 0..8)) {
            let mut writer = Writer::new(Vec::new());
            for entry in &entries {
                writer.entry(entry).expect("headers");
                if let EntryKind::File(data) = &entry.kind {
                    for segment in &data.segments {
                        writer.data(&vec![7; segment.len as usize]).expect("data");
                    }
                }
            }
            let bytes = writer.finish().expect("finished");
            prop_assert_eq!(bytes.len() % BLOCK, 0);
            let mut scanner = Scanner::new();
            scanner.feed(&bytes).expect("scanned");
            let found: Vec<Entry> = scanner.finish().expect("whole").into_iter().map(|mut entry| {
                if let EntryKind::File(data) = &mut entry.kind {
                    for segment in &mut data.segments {
                        let at = segment.offset as usize;
                        assert!(bytes[at..at + segment.len as usize].iter().all(|byte| *byte == 7));
                        segment.offset = 0;
                    }
                }
                entry
            }).collect();
            prop_assert_eq!(found, entries.into_iter().map(normal).collect::<Vec<_>>());
        }
    }

    #[test]
    fn data_must_be_as_long_as_promised() {
        let entry = Entry {
            path: (*b"f").into(),
            kind: EntryKind::File(plain(0, 3)),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: BTreeMap::new(),
        };
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry).expect("headers");
        assert!(writer.data(b"four").is_err());
        writer.data(b"ab").expect("data");
        assert!(writer.finish().is_err(), "a byte is missing");
    }
}
