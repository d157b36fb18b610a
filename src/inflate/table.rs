//! Huffman codes → tables that answer a code and what belongs to it in one look.
//!
//! An entry is a `u32`:
//!
//! ```text
//! bits 0–7    what to take from the stream: the code, and the extra bits of a length or distance
//! bits 8–12   of these the code (so that what is left of them are the extra bits)
//! bit 31      a literal: bits 16–23 are it
//! bit 15      neither literal nor number; with bit 14 a pointer to a subtable (bits 16–30 where, bits 8–11 how many bits more), with bit
//!             13 the end of the block, with neither a code that means nothing
//! bits 16–30  otherwise: the base of a length or a distance
//! ```
//!
//! The layout is libdeflate's idea: everything a symbol costs is a shift by one entry and one addition.

pub const LITERAL: u32 = 1 << 31;
pub const SPECIAL: u32 = 1 << 15;
pub const POINTER: u32 = 1 << 14;
pub const END: u32 = 1 << 13;

/// Bits that the first look takes; longer codes need a second one.
pub const SYMBOL_BITS: u32 = 11;
pub const DISTANCE_BITS: u32 = 8;
pub const PRE_BITS: u32 = 7;
/// Powers of two, so that a masked index needs no check. No valid set of codes needs more (zlib's `enough`: 2342 and 402).
pub const SYMBOL_TABLE: usize = 4096;
pub const DISTANCE_TABLE: usize = 512;
pub const PRE_TABLE: usize = 128;

const MAX_LENGTH: usize = 15;
pub const SYMBOLS: usize = 288;

const LENGTH_BASE: [u16; 29] =
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const LENGTH_EXTRA: [u8; 29] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];

/// What the codes of literals and lengths mean (RFC 1951, 3.2.5), without the code's own length.
pub static SYMBOL: [u32; SYMBOLS] = {
    let mut meaning = [SPECIAL; SYMBOLS];
    let mut at = 0;
    while at < 256 {
        meaning[at] = LITERAL | (at as u32) << 16;
        at += 1;
    }
    meaning[256] = SPECIAL | END;
    at = 0;
    while at < 29 {
        meaning[257 + at] = (LENGTH_BASE[at] as u32) << 16 | LENGTH_EXTRA[at] as u32;
        at += 1;
    }
    meaning
};

/// The same of distances; 30 and 31 mean nothing.
pub static DISTANCE: [u32; 32] = {
    let mut meaning = [SPECIAL; 32];
    let mut base = 1;
    let mut at = 0;
    while at < 30 {
        let extra = if at < 4 { 0 } else { at as u32 / 2 - 1 };
        meaning[at] = base << 16 | extra;
        base += 1 << extra;
        at += 1;
    }
    meaning
};

/// The same of the code that codes code lengths: themselves.
pub static PRE: [u32; 19] = {
    let mut meaning = [0; 19];
    let mut at = 0;
    while at < 19 {
        meaning[at] = (at as u32) << 16;
        at += 1;
    }
    meaning
};

const fn entry(meaning: u32, length: u32) -> u32 {
    meaning + (length << 8) + length
}

/// Fills `table`, whose first look takes `bits`, from the codes' lengths; `None` when they make no code. Complete ones do, and as in zlib a
/// single code of one bit, and none at all: what then comes of the missing ones is an error only when it is met.
pub fn build(table: &mut [u32], bits: u32, lengths: &[u8], meaning: &[u32]) -> Option<()> {
    let mut counts = [0_u32; MAX_LENGTH + 1];
    for length in lengths {
        counts[usize::from(*length)] += 1;
    }
    counts[0] = 0;
    let mut offsets = [0_usize; MAX_LENGTH + 2];
    let mut space = 0;
    for length in 1..=MAX_LENGTH {
        offsets[length + 1] = offsets[length] + counts[length] as usize;
        space = (space << 1) + counts[length];
    }
    let used = offsets[MAX_LENGTH + 1];
    if space != 1 << MAX_LENGTH {
        if space > 1 << MAX_LENGTH || used > 1 || counts[1] != used as u32 {
            return None;
        }
        let only = lengths.iter().position(|length| *length == 1).map(|symbol| entry(meaning[symbol], 1));
        for (at, slot) in table[..1 << bits].iter_mut().enumerate() {
            *slot = only.filter(|_| at & 1 == 0).unwrap_or(SPECIAL);
        }
        return Some(());
    }
    // By length, then by symbol: the order of the codes.
    let mut sorted = [0_u16; SYMBOLS];
    for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        let at = &mut offsets[usize::from(*length)];
        sorted[*at] = symbol as u16;
        *at += 1;
    }
    let symbols = sorted[..used].iter().map(|symbol| meaning[usize::from(*symbol)]);
    fill(table, bits, &counts, symbols);
    Some(())
}

/// Deflate sends a code's first bit lowest, so a table is indexed by codes in mirror writing; going through them, one counts from the top.
fn next_code(code: usize, length: u32) -> usize {
    let bit = 1 << (code ^ ((1 << length) - 1)).ilog2();
    (code & (bit - 1)) | bit
}

/// A complete set of codes. While they get longer, what is there already is doubled, instead of writing every code to all its places.
fn fill(table: &mut [u32], bits: u32, counts: &[u32; MAX_LENGTH + 1], mut symbols: impl Iterator<Item = u32>) {
    let (mut code, mut length) = (0_usize, 0_u32);
    let mut end = 1;
    let mut next = || symbols.next().unwrap_or(SPECIAL);
    while length < bits {
        length += 1;
        if length > 1 {
            table.copy_within(..end, end);
        }
        end = if length == 1 { 2 } else { end * 2 };
        for _ in 0..counts[length as usize] {
            table[code] = entry(next(), length);
            if code == (1 << length) - 1 {
                while end < 1 << bits {
                    table.copy_within(..end, end);
                    end *= 2;
                }
                return;
            }
            code = next_code(code, length);
        }
    }
    let mask = (1 << bits) - 1;
    let (mut prefix, mut start) = (usize::MAX, 0);
    loop {
        length += 1;
        for at in 0..counts[length as usize] {
            if code & mask != prefix {
                // A subtable, large enough for all codes that begin like this one.
                prefix = code & mask;
                start = end;
                let mut more = length - bits;
                let mut used = counts[length as usize] - at;
                while used < 1 << more {
                    more += 1;
                    used = (used << 1) + counts[(bits + more) as usize];
                }
                end = start + (1 << more);
                table[prefix] = (start as u32) << 16 | SPECIAL | POINTER | more << 8 | bits;
            }
            let found = entry(next(), length - bits);
            for slot in table[start..end].iter_mut().skip(code >> bits).step_by(1 << (length - bits)) {
                *slot = found;
            }
            if code == (1 << length) - 1 {
                return;
            }
            code = next_code(code, length);
        }
    }
}
