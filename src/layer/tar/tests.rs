use proptest::prelude::*;

use super::super::testing::{Head, Layer};
use super::super::tree::{Data, Segment};
use super::*;

fn scan(bytes: &[u8]) -> Result<Vec<Entry>, TarProblem> {
    let mut scanner = Scanner::new();
    scanner.feed(bytes).map_err(|error| error.problem)?;
    scanner.finish().map_err(|error| error.problem)
}

fn one(layer: Layer) -> Entry {
    let entries = scan(&layer.end()).expect("a tar");
    assert_eq!(entries.len(), 1);
    entries.into_iter().next().expect("one entry")
}

fn data(entry: &Entry) -> &Data {
    match &entry.kind {
        EntryKind::File(data) => data,
        other => panic!("{other:?} is no file"),
    }
}

#[test]
fn ordinary_members() {
    let entry = one(Layer::new().file("a/b", "hello"));
    assert_eq!((entry.path.as_ref(), entry.mode, entry.mtime), (&b"a/b"[..], 0o644, (1, 0)));
    assert_eq!(data(&entry).segments, [Segment { at: 0, source: 0, offset: 512, len: 5 }]);
    assert_eq!(data(&one(Layer::new().file("e", ""))), &Data::default());
    assert_eq!(one(Layer::new().device(b'4', "sda", 8, 1)).kind, EntryKind::BlockDevice { major: 8, minor: 1 });
    assert_eq!(one(Layer::new().member(0, "old/", "")).kind, EntryKind::Directory);
    assert!(matches!(one(Layer::new().member(0, "old", "")).kind, EntryKind::File(_)));
    assert!(matches!(one(Layer::new().member(b'7', "contiguous", "")).kind, EntryKind::File(_)));
}

#[test]
fn long_names() {
    let long = "l/".repeat(200) + "x";
    let gnu = Layer::new().special(b'L', format!("{long}\0").as_bytes()).special(b'K', b"target\0").link("short", "t");
    let entry = one(gnu);
    assert_eq!((entry.path.as_ref(), entry.kind), (long.as_bytes(), EntryKind::Symlink(b"target"[..].into())));
    let entry = one(Layer::new().pax(&[("path", long.as_bytes()), ("linkpath", b"other")]).link("short", "t"));
    assert_eq!((entry.path.as_ref(), entry.kind), (long.as_bytes(), EntryKind::Symlink(b"other"[..].into())));
    // With both, the GNU name takes precedence, as in Go. An empty record keeps the header's value. A global header
    // applies to no member.
    let both = Layer::new().special(b'L', b"gnu\0").pax(&[("path", b"pax")]).file("header", "");
    assert_eq!(one(both).path.as_ref(), b"gnu");
    assert_eq!(one(Layer::new().pax(&[("path", b"")]).file("header", "")).path.as_ref(), b"header");
    let global = Layer::new().special(b'g', b"12 path=pax\n").file("header", "");
    assert_eq!(one(global).path.as_ref(), b"header");
    // ustar has a prefix. The GNU format has none and stores times in that field.
    let mut head = Head::new(b'0', b"name", b"", 0);
    head.put(345, b"dir/sub");
    assert_eq!(one(Layer::new().head(head.clone())).path.as_ref(), b"dir/sub/name");
    head.put(257, b"ustar  \0").put(345, b"00000000001");
    assert_eq!(one(Layer::new().head(head)).path.as_ref(), b"name");
}

#[test]
fn pax_records_over_header_fields() {
    let layer = Layer::new()
        .pax(&[
            ("size", b"3"),
            ("uid", b"4000000000"),
            ("gid", b"7"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02=\n\0"),
            ("comment", b"x"),
        ])
        .head(Head::new(b'0', b"f", b"", 0))
        .data(b"abc");
    let entry = one(layer);
    assert_eq!((entry.uid, entry.gid, entry.mtime), (4_000_000_000, 7, (-2, 500_000_000)));
    assert_eq!(data(&entry).size, 3);
    assert_eq!(entry.xattrs.values().next().map(AsRef::as_ref), Some(&b"\x01\0\0\x02=\n\0"[..]));
    for (key, value) in [
        ("path", &b"a\0b"[..]),
        ("uid", b"-1"),
        ("uid", b"4294967295"),
        ("size", b"x"),
        ("SCHILY.xattr.", b"x"),
        ("mtime", b"1,5"),
    ] {
        let refused = scan(&Layer::new().pax(&[(key, value)]).file("f", "").end());
        assert_eq!(refused, Err(TarProblem::PaxRecord(key.into())), "{key}");
    }
}

#[test]
fn numbers() {
    let mut head = Head::new(b'0', b"f", b"", 0);
    // Base 256: ids beyond 2^21 and a time before 1970.
    head.put(108, &[0x80, 0, 0, 0, 0x77, 0x35, 0x94, 0]).put(136, &[0xff; 12]);
    let entry = one(Layer::new().head(head.clone()));
    assert_eq!((entry.uid, entry.mtime), (2_000_000_000, (-1, 0)));
    for (at, bytes, want) in [
        (108, &[0xff; 8][..], TarProblem::Range("uid")),
        (116, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], TarProblem::Range("gid")),
        (124, &[0xff; 12], TarProblem::Range("size")),
        (124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], TarProblem::Range("size")),
        (124, &[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], TarProblem::Range("size")),
        (124, b"0000000000x", TarProblem::Number("size")),
        (124, b"-0000000001", TarProblem::Number("size")),
        (156, b"Z", TarProblem::Type('Z')),
    ] {
        let mut head = Head::new(b'0', b"f", b"", 0);
        head.put(at, bytes);
        assert_eq!(scan(&Layer::new().head(head).end()), Err(want));
    }
    let device = Layer::new().device(b'3', "d", 1, 0o7_777_777);
    assert_eq!(scan(&device.end()), Err(TarProblem::Range("device minor")));
}

#[test]
fn header_only_types_carry_no_data() {
    // Go skips no data here. A reader that did would see other members than docker.
    let mut layer = Layer::new();
    for kind in *b"123456" {
        layer = layer.head(Head::new(kind, b"x", b"t", 1024));
    }
    assert_eq!(scan(&layer.end()).map(|entries| entries.len()), Ok(6));
}

#[test]
fn ends() {
    let file = Layer::new().file("a", "hello").bytes;
    let whole = |bytes: &[u8]| scan(bytes).map(|entries| entries.len());
    assert_eq!(whole(b""), Ok(0));
    assert_eq!(whole(&file), Ok(1));
    assert_eq!(whole(&file[..517]), Ok(1), "missing padding");
    assert_eq!(whole(&file[..516]), Err(TarProblem::Truncated));
    assert_eq!(whole(&file[..512]), Err(TarProblem::Truncated));
    assert_eq!(whole(&file[..511]), Err(TarProblem::Truncated));
    let zero = [0; 512];
    assert_eq!(whole(&[&file[..], &zero].concat()), Ok(1));
    assert_eq!(
        whole(&[&file[..], &zero, &zero, b"whatever"].concat()),
        Ok(1),
        "what follows the end is not the archive's"
    );
    assert_eq!(whole(&[&file[..], &zero, &zero, &file].concat()), Ok(1));
    assert_eq!(whole(&[&file[..], &zero, &file].concat()), Err(TarProblem::LoneZeroBlock));
    let mut broken = file.clone();
    broken[0] ^= 1;
    assert_eq!(whole(&broken), Err(TarProblem::Checksum));
    assert_eq!(whole(&Layer::new().special(b'L', b"name\0").end()), Err(TarProblem::DanglingExtension));
    assert_eq!(
        whole(&Layer::new().head(Head::new(b'x', b"p", b"", 2 << 20)).bytes),
        Err(TarProblem::SpecialTooLarge(2 << 20))
    );
    assert_eq!(whole(&Layer::new().special(b'x', b"999999999999 a=b\n").file("a", "").end()), Err(TarProblem::Pax));
}

#[test]
fn errors_name_their_offset() {
    let mut scanner = Scanner::new();
    let error = scanner
        .feed(&Layer::new().file("a", "x").special(b'L', b"bad\0").member(b'Z', "n", "").bytes)
        .expect_err("type Z");
    assert_eq!(error.to_string(), "broken tar stream at byte 2048: member type `Z` is unknown");
    let mut scanner = Scanner::new();
    scanner.feed(&Layer::new().file("dir/a", "hello").bytes[..514]).expect("so far");
    let error = scanner.finish().expect_err("truncated");
    assert_eq!(error.to_string(), "broken tar stream at byte 514 (member `dir/a`): it ends in the middle of a member");
}

fn holes(entry: &Entry) -> Vec<(u64, u64, u64)> {
    data(entry).segments.iter().map(|segment| (segment.at, segment.offset, segment.len)).collect()
}

#[test]
fn sparse_members() {
    // Old GNU format, with one extension block.
    let mut head = Head::new(b'S', b"s", b"", 1536);
    head.put(257, b"ustar  \0")
        .put(386, b"00000000000\0")
        .put(398, b"00000001000\0")
        .put(410, b"00000010000\0")
        .put(422, b"00000001000\0");
    head.put(482, b"\x01").put(483, b"00000100000\0");
    let mut extension = [0; BLOCK];
    extension[..12].copy_from_slice(b"00000020000\0");
    extension[12..24].copy_from_slice(b"00000001000\0");
    let gnu = one(Layer::new().head(head.clone()).raw(&extension).data(&[1; 1536]));
    assert_eq!((data(&gnu).size, holes(&gnu)), (32768, vec![(0, 1024, 512), (4096, 1536, 512), (8192, 2048, 512)]));
    // PAX 1.0: the map precedes the data.
    let map = b"2\n0\n10\n100\n5\n";
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"200"),
    ];
    let stored = Layer::new()
        .pax(&records)
        .head(Head::new(b'0', b"GNUSparseFile.0/real", b"", 512 + 15))
        .data(map)
        .data(&[1; 15]);
    let pax = one(stored);
    assert_eq!(
        (pax.path.as_ref(), data(&pax).size, holes(&pax)),
        (&b"real"[..], 200, vec![(0, 2048, 10), (100, 2058, 5)])
    );
    // PAX 0.1 and 0.0: the map is in the records.
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,2,50,3")];
    let entry = one(Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb"));
    assert_eq!((data(&entry).size, holes(&entry).len()), (100, 2));
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"0"), ("GNU.sparse.numbytes", b"5")];
    assert_eq!(data(&one(Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb"))).size, 9);
    // Maps with contradictions.
    for map in ["0,2,1,3", "50,3,0,2", "0,2,99,3", "0,9", "0,2,50", "18446744073709551615,5"] {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", map.as_bytes())];
        let layer = Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb");
        assert_eq!(scan(&layer.end()), Err(TarProblem::Sparse), "{map}");
    }
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99999999999999999")];
    let layer = Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 512)).data(map);
    assert_eq!(scan(&layer.end()), Err(TarProblem::Range("sparse size")));
    // A map that does not end within its member, however long.
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
    let layer = Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 1024)).data(&b"999999999\n".repeat(100));
    assert_eq!(scan(&layer.end()), Err(TarProblem::Sparse));
}

#[test]
fn a_bomb_of_headers_is_refused() {
    // Repeat one member with 1 MiB of PAX records: the memory that is kept of it counts.
    let value = vec![b'x'; 60 << 10];
    let keys: Vec<String> = (0..16).map(|at| format!("SCHILY.xattr.user.{at}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), value.as_slice())).collect();
    let member = Layer::new().pax(&records).file("f", "").bytes;
    let mut scanner = Scanner::new();
    let error = (0..2000).find_map(|_| scanner.feed(&member).err()).expect("an end");
    assert!(matches!(error.problem, TarProblem::TooManyHeaders(_)));
}

#[test]
fn scanning_a_file_is_the_same_as_feeding_it() {
    let mut layer = Layer::new();
    for at in 0..200usize {
        layer = layer
            .file(&format!("f{at}"), &"x".repeat(at * 97 % 40_000))
            .dir(&format!("d{at}"))
            .pax(&[("mtime", b"1.5")])
            .fifo("p");
    }
    let bytes = layer.end();
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &[&[7; 100], &bytes[..]].concat()).expect("written");
    let scanned = scan_file(&file, 100, bytes.len() as u64).expect("scanned");
    assert_eq!(Ok(scanned), scan(&bytes));
}

#[test]
fn members_of_gnu_tar_and_of_the_tar_crate_are_read() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4755);
    header.set_uid(1 << 30);
    let long = "x/".repeat(120) + "y";
    builder.append_data(&mut header, &long, &b"abc"[..]).expect("appended");
    let entries = scan(&builder.into_inner().expect("a tar")).expect("scanned");
    assert_eq!((entries[0].path.as_ref(), entries[0].mode, entries[0].uid), (long.as_bytes(), 0o4755, 1 << 30));
}

proptest! {
    /// The result does not depend on how the stream is cut into pieces, and no input makes the scanner panic.
    #[test]
    fn cuts_do_not_matter(seed in prop::collection::vec(any::<u8>(), 0..40), cuts in prop::collection::vec(1usize..2000, 1..40)) {
        let mut bytes = Layer::new().file("a", &"x".repeat(700)).pax(&[("path", b"long"), ("mtime", b"2.5")]).file("b", "y").dir("d").end();
        for (at, byte) in seed.iter().enumerate().filter(|(_, byte)| **byte > 200) {
            let index = at * 131 % bytes.len();
            bytes[index] ^= byte;
        }
        let whole = scan(&bytes);
        let mut scanner = Scanner::new();
        let (mut rest, mut fed) = (&bytes[..], Ok(()));
        for cut in cuts.iter().cycle() {
            let n = (*cut).min(rest.len());
            fed = scanner.feed(&rest[..n]);
            rest = &rest[n..];
            if rest.is_empty() || fed.is_err() {
                break;
            }
        }
        let pieces = fed.and_then(|()| scanner.finish()).map_err(|error| error.problem);
        prop_assert_eq!(pieces, whole);
    }
}
