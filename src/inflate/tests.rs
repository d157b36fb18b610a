use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

/// Input that arrives in pieces of a given size.
struct Pieces<'a> {
    all: &'a [u8],
    piece: usize,
    from: usize,
    to: usize,
    asked: bool,
}

impl<'a> Pieces<'a> {
    fn new(all: &'a [u8], piece: usize) -> Self {
        Self { all, piece, from: 0, to: 0, asked: false }
    }
}

impl Input for Pieces<'_> {
    fn available(&self) -> (&[u8], bool) {
        (&self.all[self.from..self.to], self.asked && self.to == self.all.len())
    }
    fn used(&mut self, count: usize) {
        self.from += count;
        assert!(self.from <= self.to, "no more than is there");
    }
    fn more(&mut self) -> io::Result<()> {
        assert!(!self.available().1, "not asked for more than there is");
        // Append to the current piece: a whole header must be available at once, and one piece may be too short.
        self.to = (self.to + self.piece).min(self.all.len());
        self.asked = true;
        Ok(())
    }
}

/// Unpacks with this module, in buffers of `room` bytes.
fn ours(packed: &[u8], piece: usize, room: usize) -> io::Result<Vec<u8>> {
    by(Gunzip::default(), packed, piece, room)
}

fn by(mut gunzip: Gunzip, packed: &[u8], piece: usize, room: usize) -> io::Result<Vec<u8>> {
    let mut input = Pieces::new(packed, piece);
    let mut out = vec![0; HISTORY + room + SLACK];
    let mut all = Vec::new();
    loop {
        let filled = gunzip.fill(&mut input, &mut out)?;
        all.extend_from_slice(&out[HISTORY..HISTORY + filled]);
        if filled < room {
            assert!(gunzip.is_over());
            return Ok(all);
        }
    }
}

/// Unpacks with zlib.
fn theirs(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut all)?;
    Ok(all)
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

/// Bytes of many kinds: text, noise, runs, short patterns and distant repetitions.
fn mixture(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut all: Vec<u8> = Vec::with_capacity(length + 400);
    while all.len() < length {
        let count = next() as usize % 300 + 1;
        match next() % 5 {
            0 => all.extend((0..count).map(|_| b"etaoin shrdlu"[next() as usize % 13])),
            1 => all.extend((0..count).map(|_| next() as u8)),
            2 => {
                let (pattern, width) = (next().to_le_bytes(), next() as usize % 8 + 1);
                all.extend(pattern[..width].iter().cycle().take(count));
            }
            3 if !all.is_empty() => {
                let back = next() as usize % all.len().min(HISTORY) + 1;
                for _ in 0..count {
                    all.push(all[all.len() - back]);
                }
            }
            _ => all.extend(std::iter::repeat_n(next() as u8, count)),
        }
    }
    all.truncate(length);
    all
}

/// Literals with such uneven frequencies that the longest codes have 15 bits.
fn skewed() -> Vec<u8> {
    let mut all = Vec::new();
    let (mut few, mut more) = (1, 1);
    for byte in 0..24_u8 {
        // Mix two values, so that there are few repetitions.
        all.extend((0..few).map(|at: usize| if at.is_multiple_of(3) { byte } else { byte.wrapping_mul(7) ^ 0x55 }));
        (few, more) = (more, few + more);
    }
    let length = all.len();
    // Permute the bytes. Every position is used once.
    (0..length).map(|at| all[at * 7919 % length]).collect()
}

#[test]
fn what_was_packed_comes_out() {
    for (bytes, name) in [
        (Vec::new(), "nothing"),
        (vec![7], "one byte"),
        (vec![0; 3 << 20], "zeros"),
        (mixture(3, 1 << 20), "a mixture"),
        (skewed(), "long codes"),
        (mixture(9, HISTORY + 1), "just beyond the window"),
    ] {
        for level in [0, 1, 6, 9] {
            let packed = gzip(&bytes, level);
            for (piece, room) in [(256 << 10, 1 << 20), (1, 1 << 16), (701, 4096), (4096, 333)] {
                if piece * 2000 < packed.len() {
                    continue;
                }
                let found = ours(&packed, piece, room).unwrap_or_else(|error| panic!("{name}, {level}: {error}"));
                assert!(found == bytes, "{name}, level {level}, pieces of {piece}, buffers of {room}");
            }
        }
    }
}

#[test]
fn fixed_codes_and_every_distance() {
    // A short text is packed with the fixed codes. Then come repetitions at every small distance and length.
    let mut bytes = b"abcdefghijklmnopqrstuvwxyz0123456789".to_vec();
    for distance in 1..=36 {
        for length in [3, 7, 8, 9, 15, 16, 17, 31, 100, 258, 259] {
            for _ in 0..length {
                bytes.push(bytes[bytes.len() - distance]);
            }
            bytes.push(length as u8 ^ distance as u8);
        }
    }
    for end in [1, 5, 36, 40, 300, bytes.len()] {
        let packed = gzip(&bytes[..end], 9);
        assert_eq!(ours(&packed, 1 << 20, 512).expect("unpacked"), &bytes[..end]);
    }
}

#[test]
fn members_padding_and_texts() {
    let one = gzip(b"one ", 6);
    let two = flate2::GzBuilder::new()
        .filename("a name")
        .comment("a comment")
        .extra(vec![1, 2, 3])
        .write(Vec::new(), Compression::best());
    let two = {
        let mut two = two;
        two.write_all(b"two").expect("packed");
        two.finish().expect("packed")
    };
    let join = |parts: &[&[u8]]| parts.concat();
    let unpacked = |bytes: &[u8]| ours(bytes, 64 << 10, 100).map_err(|error| error.to_string());
    assert_eq!(unpacked(&join(&[&one, &two, &gzip(b"", 6), &one])).as_deref(), Ok(&b"one twoone "[..]));
    assert_eq!(unpacked(&join(&[&one, &[0; 5000]])).as_deref(), Ok(&b"one "[..]));
    for (bytes, expected) in [
        (join(&[&one, b"x"]), "unexpected data after the end"),
        (join(&[&one, &[0; 9], &two]), "unexpected data after the end"),
        (join(&[&one, &two[..two.len() - 3]]), "truncated"),
        (join(&[&one, &[0x1f]]), "truncated"),
        (Vec::new(), "truncated"),
        (b"PK\x03\x04".to_vec(), "its beginning"),
        (b"\x1f\x8b\x07\0\0\0\0\0\0\0".to_vec(), "header"),
        (join(&[b"\x1f\x8b\x08\x08\0\0\0\0\0\0", &[b'x'; MAX_TEXT + 9]]), "name"),
    ] {
        let error = unpacked(&bytes).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }
    // A match must not reach into the previous member.
    let mut crafted = one.clone();
    crafted.extend(b"\x1f\x8b\x08\0\0\0\0\0\0\xff");
    crafted.extend([0x03, 0x02, 0x00]);
    crafted.extend([0; 16]);
    assert!(unpacked(&crafted).expect_err("refused").contains("distance"), "{:?}", unpacked(&crafted));
}

#[test]
fn every_cut_is_noticed_and_every_flip_is_what_zlib_makes_of_it() {
    for (bytes, level) in
        [(mixture(5, 3000), 6), (skewed()[..4000].to_vec(), 9), (mixture(6, 500), 0), (vec![b'x'; 40], 6)]
    {
        let packed = gzip(&bytes, level);
        for end in 0..packed.len() {
            let error = ours(&packed[..end], 333, 1000).expect_err("cut");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end} of {}: {error}", packed.len());
        }
        // The two treat some bits of the header differently. After the header, their results must agree.
        for bit in 10 * 8..packed.len() * 8 {
            let mut flipped = packed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (ours, theirs) = (ours(&flipped, 333, 1000), theirs(&flipped));
            assert_eq!(ours.as_ref().ok(), theirs.as_ref().ok(), "bit {bit}: {ours:?} {theirs:?}");
        }
    }
}

#[test]
fn without_checksums_sizes_still_count() {
    let bytes = mixture(11, 5000);
    let packed = gzip(&bytes, 6);
    let unpacked = |from_the_end: usize| {
        let mut flipped = [&packed[..], &packed].concat();
        let at = flipped.len() - from_the_end;
        flipped[at] ^= 1;
        let mut gunzip = Gunzip::default();
        gunzip.ignore_checksums();
        by(gunzip, &flipped, 333, 1000).map_err(|error| error.to_string())
    };
    assert_eq!(unpacked(5), Ok([&bytes[..], &bytes].concat()));
    assert_eq!(unpacked(1), Err(Corrupt::Checksum.to_string()));
    assert!(ours(&[&packed[..packed.len() - 5], b"xxxxx"].concat(), 333, 1000).is_err());
}

proptest! {
    #[test]
    fn any_mixture_at_any_level(
        seed in any::<u64>(), length in 0_usize..200_000, level in 0_u32..10, piece in 64_usize..100_000, room in 1_usize..70_000,
    ) {
        let bytes = mixture(seed, length);
        prop_assert!(ours(&gzip(&bytes, level), piece, room).expect("unpacked") == bytes);
    }

    /// Arbitrary bits behind a header. They are mostly invalid, and both must give the same result.
    #[test]
    fn any_bits(bytes in proptest::collection::vec(any::<u8>(), 0..400), start in 0_u8..8) {
        let mut packed = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
        packed.push(start);
        packed.extend(&bytes);
        prop_assert_eq!(ours(&packed, 50, 1000).ok(), theirs(&packed).ok());
    }
}
