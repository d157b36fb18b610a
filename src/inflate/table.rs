//! Builds the decoding tables of Huffman codes. One lookup returns the length of a code and its meaning.
//!
//! An entry is a `u32`:
//!
//! ```text
//! bits 0–7    the number of bits to consume: the code, and the extra bits of a length or distance
//! bits 8–12   the number of these bits that belong to the code (the rest are the extra bits)
//! bit 31      a literal, which is in bits 16–23
//! bit 15      neither a literal nor a number; with bit 14 a pointer to a subtable (bits 16–30 are its position,
//!             bits 8–11 the number of further bits), with bit 13 the end of the block, with neither an invalid code
//! bits 16–30  otherwise: the base of a length or a distance
//! ```
//!
//! The layout is an idea of libdeflate: a symbol costs only one shift by the entry and one addition.

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const SPECIAL: u32 = 1 << 15;
pub(super) const POINTER: u32 = 1 << 14;
pub(super) const END: u32 = 1 << 13;

/// The number of bits of the first lookup. Longer codes need a second one.
pub(super) const SYMBOL_BITS: u32 = 11;
pub(super) const DISTANCE_BITS: u32 = 8;
pub(super) const PRE_BITS: u32 = 7;
/// The table sizes are powers of two, so that a masked index needs no check. No valid set of codes needs more (zlib's
/// `enough`: 2342 and 402).
pub(super) const SYMBOL_TABLE: usize = 4096;
pub(super) const DISTANCE_TABLE: usize = 512;
pub(super) const PRE_TABLE: usize = 128;

const MAX_LENGTH: usize = 15;
pub(super) const SYMBOLS: usize = 288;

const LENGTH_BASE: [u16; 29] =
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const LENGTH_EXTRA: [u8; 29] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];

/// The meanings of the literal and length codes (RFC 1951, 3.2.5), without the length of the code itself.
pub(super) static SYMBOL: [u32; SYMBOLS] = {
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

/// The meanings of the distance codes. 30 and 31 are invalid.
pub(super) static DISTANCE: [u32; 32] = {
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

/// The meanings of the codes for code lengths, which are the lengths themselves.
pub(super) static PRE: [u32; 19] = {
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

/// Fills `table`, whose first lookup uses `bits` bits, from the lengths of the codes. Returns `None` if they are not a
/// valid set of codes. A complete set is valid and, as in zlib, so are a single code of one bit and an empty set. A
/// missing code is an error only when it occurs in the stream.
pub(super) fn build(table: &mut [u32], bits: u32, lengths: &[u8], meaning: &[u32]) -> Option<()> {
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
    // Sort by length, then by symbol, which is the order of the codes.
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

/// Returns the next code. Deflate sends the first bit of a code lowest, so a table is indexed by bit-reversed codes,
/// and counting starts at the top bit.
fn next_code(code: usize, length: u32) -> usize {
    let bit = 1 << (code ^ ((1 << length) - 1)).ilog2();
    (code & (bit - 1)) | bit
}

/// Fills the table with a complete set of codes. When the codes get longer, the existing part is doubled, which is
/// faster than writing every code to all its positions.
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
                // A subtable that is large enough for all codes with the same beginning.
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
