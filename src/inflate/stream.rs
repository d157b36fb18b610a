//! Unpacks one deflate stream (RFC 1951) in pieces. Each call reads from a given piece of input. It writes to a slice
//! that also contains the previous output, so that a match is a copy within the slice.

use super::Corrupt;
use super::table::{self, DISTANCE_BITS, DISTANCE_TABLE, END, LITERAL, POINTER, SPECIAL, SYMBOL_BITS, SYMBOL_TABLE};

/// The maximum distance of a match.
pub(crate) const HISTORY: usize = 32 << 10;

/// The spare bytes behind a buffer's end.
pub(crate) const SLACK: usize = 320;
/// The maximum number of unused input bytes when more input is requested.
pub(crate) const MOST_LEFT: usize = 1 << 10;

/// The minimum of input for parsing a block's header, which is shorter (3 + 14 + 57 + 316 × 14 bits).
const HEADER: usize = 700;
/// The input that one iteration of the fast loop may read: three refills.
const AHEAD: usize = 24;
/// The output that one iteration may write: three literals, and 258 bytes in steps of 16.
const MOST: usize = 3 + 258 + 15;
const _: () = assert!(SLACK >= MOST + 16 && MOST_LEFT > HEADER && MOST_LEFT > AHEAD + 8);

/// The reason why [`Inflate::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The output is full.
    Full,
    /// More input is needed.
    Input,
    /// The stream has ended.
    Done,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// This number of uncompressed bytes remains.
    Stored(usize),
    Symbols,
    Done,
}

pub(super) struct Inflate {
    /// Less than eight bits between two calls.
    bits: u64,
    count: u32,
    state: State,
    last: bool,
    /// Whether the tables contain the fixed codes.
    fixed: bool,
    symbols: Box<[u32; SYMBOL_TABLE]>,
    distances: Box<[u32; DISTANCE_TABLE]>,
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self {
            bits: 0,
            count: 0,
            state: State::Header,
            last: false,
            fixed: false,
            symbols: Box::new([0; SYMBOL_TABLE]),
            distances: Box::new([0; DISTANCE_TABLE]),
        }
    }

    /// Prepares for another stream.
    pub(super) fn reset(&mut self) {
        (self.bits, self.count, self.state, self.last) = (0, 0, State::Header, false);
    }

    /// Unpacks from `input` to `out[*at..]` until `at` is within [`SLACK`] of the end. `all` means that no more input
    /// follows. No match may begin before `out[base]`. Returns the number of input bytes that were used.
    pub(super) fn run(
        &mut self,
        input: &[u8],
        all: bool,
        out: &mut [u8],
        at: &mut usize,
        base: usize,
    ) -> Result<(usize, Step), Corrupt> {
        let mut bits = Bits { input, at: 0, bits: self.bits, count: self.count, made_up: 0 };
        let limit = out.len() - SLACK;
        let step = loop {
            let left = input.len() - bits.at;
            match self.state {
                State::Done => break Step::Done,
                State::Header if left < HEADER && !all => break Step::Input,
                State::Header => self.header(&mut bits).map_err(|error| bits.check().err().unwrap_or(error))?,
                State::Stored(more) => {
                    let now = more.min(left).min(limit.saturating_sub(*at));
                    out[*at..*at + now].copy_from_slice(&input[bits.at..bits.at + now]);
                    *at += now;
                    bits.at += now;
                    match more - now {
                        0 => self.end_block(),
                        more if *at >= limit => {
                            self.state = State::Stored(more);
                            break Step::Full;
                        }
                        _ if all => return Err(Corrupt::Truncated),
                        more => {
                            self.state = State::Stored(more);
                            break Step::Input;
                        }
                    }
                }
                State::Symbols if *at >= limit => break Step::Full,
                State::Symbols if left < AHEAD + 8 && !all => break Step::Input,
                State::Symbols => {
                    let tables = (&*self.symbols, &*self.distances);
                    let ended = if left < AHEAD + 8 {
                        block::<true>(tables, &mut bits, out, at, base)?
                    } else {
                        block::<false>(tables, &mut bits, out, at, base)?
                    };
                    if ended {
                        self.end_block();
                    }
                }
            }
        };
        bits.give_back();
        (self.bits, self.count) = (bits.bits, bits.count);
        Ok((bits.at, step))
    }

    fn end_block(&mut self) {
        self.state = if self.last { State::Done } else { State::Header };
    }

    fn header(&mut self, bits: &mut Bits<'_>) -> Result<(), Corrupt> {
        bits.refill_at_end();
        self.last = bits.take(1) == 1;
        match bits.take(2) {
            0 => {
                bits.take(bits.count & 7);
                bits.refill_at_end();
                let (length, check) = (bits.take(16), bits.take(16));
                bits.check()?;
                if length != !check & 0xffff {
                    return Err(Corrupt::Bad("the length of a stored block"));
                }
                bits.give_back();
                self.state = State::Stored(length as usize);
            }
            1 => {
                if !self.fixed {
                    let mut lengths = [8; table::SYMBOLS];
                    lengths[144..256].fill(9);
                    lengths[256..280].fill(7);
                    self.set_codes(&lengths, &[5; 32])?;
                    self.fixed = true;
                }
                bits.check()?;
                self.state = State::Symbols;
            }
            2 => {
                self.codes(bits)?;
                self.state = State::Symbols;
            }
            _ => return Err(Corrupt::Bad("the type of a block")),
        }
        Ok(())
    }

    fn set_codes(&mut self, symbols: &[u8], distances: &[u8]) -> Result<(), Corrupt> {
        self.fixed = false;
        table::build(&mut self.symbols[..], SYMBOL_BITS, symbols, &table::SYMBOL)
            .ok_or(Corrupt::Bad("the literal/length code"))?;
        table::build(&mut self.distances[..], DISTANCE_BITS, distances, &table::DISTANCE)
            .ok_or(Corrupt::Bad("the distance code"))
    }

    /// Reads the codes of a block that defines its own.
    fn codes(&mut self, bits: &mut Bits<'_>) -> Result<(), Corrupt> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let (symbols, distances) = (bits.take(5) as usize + 257, bits.take(5) as usize + 1);
        let given = bits.take(4) as usize + 4;
        if symbols > 286 || distances > 30 {
            return Err(Corrupt::Bad("the number of codes"));
        }
        let mut lengths = [0; 19];
        for symbol in &ORDER[..given] {
            bits.refill_at_end();
            lengths[*symbol] = bits.take(3) as u8;
        }
        let mut pre = [0; table::PRE_TABLE];
        table::build(&mut pre, table::PRE_BITS, &lengths, &table::PRE).ok_or(Corrupt::Bad("the code length code"))?;
        let all = symbols + distances;
        // The last repetition may write beyond the 316 lengths, by at most 138. The loop ends after it.
        let mut lengths = [0_u8; 316 + 138];
        let mut at = 0;
        while at < all {
            bits.refill_at_end();
            let found = pre[bits.bits as usize & (table::PRE_TABLE - 1)];
            if found & SPECIAL != 0 {
                return Err(Corrupt::Bad("a code length"));
            }
            bits.take(found & 0xff);
            let (value, count) = match found >> 16 {
                16 if at == 0 => return Err(Corrupt::Bad("a repetition without a code length")),
                16 => (lengths[at - 1], 3 + bits.take(2)),
                17 => (0, 3 + bits.take(3)),
                18 => (0, 11 + bits.take(7)),
                length => (length as u8, 1),
            };
            lengths[at..at + count as usize].fill(value);
            at += count as usize;
        }
        bits.check()?;
        if at != all || lengths[256] == 0 {
            return Err(Corrupt::Bad("the code lengths"));
        }
        self.set_codes(&lengths[..symbols], &lengths[symbols..all])
    }
}

/// The input as a sequence of bits, lowest first.
struct Bits<'a> {
    input: &'a [u8],
    at: usize,
    bits: u64,
    /// The number of valid `bits`. In the fast loop, only its low byte is meaningful.
    count: u32,
    /// The number of zero bits that were added after the end of the input.
    made_up: u32,
}

impl Bits<'_> {
    /// Ensures that there are at least 56 bits. The input must have eight more bytes. The bits above the count are also
    /// bits of the stream, and are read again.
    #[inline(always)]
    fn refill(&mut self) {
        let mut word = [0; 8];
        word.copy_from_slice(&self.input[self.at..self.at + 8]);
        self.bits |= u64::from_le_bytes(word).wrapping_shl(self.count);
        self.at += 7 - (self.count >> 3 & 7) as usize;
        self.count |= 56;
    }

    /// Like [`Bits::refill`], for input that may end. Missing bits are zeros and are counted.
    fn refill_at_end(&mut self) {
        self.count &= 0xff;
        while self.count < 56 {
            match self.input.get(self.at) {
                Some(byte) => {
                    self.bits |= u64::from(*byte) << self.count;
                    self.at += 1;
                }
                None => self.made_up += 8,
            }
            self.count += 8;
        }
    }

    #[inline(always)]
    fn take(&mut self, count: u32) -> u32 {
        let value = (self.bits & ((1 << count) - 1)) as u32;
        self.bits >>= count;
        self.count -= count;
        value
    }

    /// Consumes the bits of an entry. The entry's upper bytes only affect bits that are never read.
    #[inline(always)]
    fn take_entry(&mut self, entry: u32) {
        self.bits = self.bits.wrapping_shr(entry);
        self.count = self.count.wrapping_sub(entry);
    }

    /// Returns an error if bits after the end of the input were consumed.
    fn check(&mut self) -> Result<(), Corrupt> {
        self.count &= 0xff;
        if self.made_up > self.count { Err(Corrupt::Truncated) } else { Ok(()) }
    }

    /// Returns the error for invalid data, or the one for truncated input if that is the cause.
    #[cold]
    fn bad(&mut self, what: &'static str) -> Corrupt {
        self.check().err().unwrap_or(Corrupt::Bad(what))
    }

    /// Returns whole unused bytes to the input.
    fn give_back(&mut self) {
        self.count -= self.made_up.min(self.count);
        self.made_up = 0;
        self.at -= (self.count >> 3) as usize;
        self.count &= 7;
        self.bits &= (1 << self.count) - 1;
    }
}

/// The value of an entry: its base, plus the extra bits behind its code. `before` is the bits before the entry was
/// consumed.
#[inline(always)]
fn value(entry: u32, before: u64) -> usize {
    (entry >> 16) as usize + (before & !u64::MAX.wrapping_shl(entry)).wrapping_shr(entry >> 8) as usize
}

/// Looks up an entry of the subtable that `pointer` refers to.
#[inline(always)]
fn second<const N: usize>(table: &[u32; N], pointer: u32, bits: u64) -> u32 {
    let mask = (1 << (pointer >> 8 & 0xf)) - 1;
    table[((pointer >> 16 & 0x7fff) as usize + (bits as usize & mask)) & (N - 1)]
}

/// Decodes symbols until the block ends (then it returns true), the output is full, or little input is left.
/// `END_OF_INPUT` means that the input ends here.
///
/// Each entry is looked up before the bytes of the previous one are written, and the bits are refilled after the
/// lookup, not before. A refill does not change the low bits, so the processor can do both at the same time.
fn block<const END_OF_INPUT: bool>(
    (symbols, distances): (&[u32; SYMBOL_TABLE], &[u32; DISTANCE_TABLE]),
    stream: &mut Bits<'_>,
    out: &mut [u8],
    out_at: &mut usize,
    base: usize,
) -> Result<bool, Corrupt> {
    let mut bits = Bits { ..*stream };
    let mut at = *out_at;
    let limit = out.len() - SLACK;
    let input_limit = bits.input.len().saturating_sub(AHEAD);
    let mut ended = false;
    macro_rules! refill {
        () => {
            if END_OF_INPUT { bits.refill_at_end() } else { bits.refill() }
        };
    }
    macro_rules! look {
        () => {
            symbols[bits.bits as usize & ((1 << SYMBOL_BITS) - 1)]
        };
    }
    macro_rules! put {
        ($entry:expr) => {
            out[at] = ($entry >> 16) as u8;
            at += 1;
        };
    }
    refill!();
    let mut entry = look!();
    while at < limit && (END_OF_INPUT || bits.at < input_limit) {
        if END_OF_INPUT {
            bits.check()?;
        }
        // `entry` is not consumed yet, and at least 56 bits are available: enough for three literals of 11 bits and a
        // length of 15 + 5.
        let mut before = bits.bits;
        bits.take_entry(entry);
        if entry & LITERAL != 0 {
            let first = entry;
            entry = look!();
            before = bits.bits;
            bits.take_entry(entry);
            put!(first);
            if entry & LITERAL != 0 {
                let then = entry;
                entry = look!();
                before = bits.bits;
                bits.take_entry(entry);
                put!(then);
                if entry & LITERAL != 0 {
                    put!(entry);
                    entry = look!();
                    refill!();
                    continue;
                }
            }
        }
        if entry & SPECIAL != 0 {
            if entry & POINTER != 0 {
                entry = second(symbols, entry, bits.bits);
                before = bits.bits;
                bits.take_entry(entry);
                if entry & LITERAL != 0 {
                    put!(entry);
                    entry = look!();
                    refill!();
                    continue;
                }
            }
            if entry & SPECIAL != 0 {
                if entry & END == 0 {
                    return Err(bits.bad("a length"));
                }
                ended = true;
                break;
            }
        }
        let length = value(entry, before);
        // A distance takes up to 28 bits, and the lookup of the next symbol 11.
        if (bits.count as u8) < 28 + SYMBOL_BITS as u8 {
            refill!();
        }
        entry = distances[bits.bits as usize & ((1 << DISTANCE_BITS) - 1)];
        if entry & POINTER != 0 && entry & SPECIAL != 0 {
            bits.take_entry(entry);
            entry = second(distances, entry, bits.bits);
        }
        if entry & SPECIAL != 0 {
            return Err(bits.bad("a distance"));
        }
        let before = bits.bits;
        bits.take_entry(entry);
        let distance = value(entry, before);
        entry = look!();
        refill!();
        if distance > at - base {
            return Err(bits.bad("a distance beyond the beginning"));
        }
        repeat(out, at, distance, length);
        at += length;
    }
    bits.count &= 0xff;
    bits.check()?;
    *out_at = at;
    *stream = bits;
    Ok(ended)
}

/// Copies `length` bytes from `distance` before `at`, and up to 15 more, which will be overwritten.
#[inline(always)]
fn repeat(out: &mut [u8], at: usize, distance: usize, length: usize) {
    debug_assert!(distance <= HISTORY && length <= 258);
    let window = &mut out[at - distance..at + MOST];
    if distance >= 16 {
        let mut done = 0;
        loop {
            let mut piece = [0; 16];
            piece.copy_from_slice(&window[done..done + 16]);
            window[distance + done..distance + done + 16].copy_from_slice(&piece);
            done += 16;
            if done >= length {
                break;
            }
        }
    } else if distance == 1 {
        let byte = window[0];
        window[1..17].fill(byte);
        if length > 16 {
            window[17..=length].fill(byte);
        }
    } else {
        // Copy eight bytes at a time. Only as many of them are correct as the pattern is long.
        let step = distance.min(8);
        let mut done = 0;
        while done < length {
            let mut piece = [0; 8];
            piece.copy_from_slice(&window[done..done + 8]);
            window[distance + done..distance + done + 8].copy_from_slice(&piece);
            done += step;
        }
    }
}
