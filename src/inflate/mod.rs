//! gzip, unpacked: what a layer's way in spends most of its time with.
//!
//! Why not a crate: on layers in one thread, zlib-rs made 513 MB/s, ISA-L 727 (nasm and autotools on every machine that builds), libdeflate
//! 870 (wants the whole stream in memory); this, 755 without its checksum, in safe Rust with nothing to install (docs/speed.md). What makes
//! the difference to zlib's design: output goes to the buffer that will be written, which also is the window; an entry of a table says all
//! that a symbol costs; a look-up is under way while the last symbol's bytes are copied.
//!
//! [`Gunzip`] fills one buffer after the other. Each has room for [`HISTORY`] bytes in front, where the end of the last one is put, and
//! [`SLACK`] behind, where a repetition may end that does not fit; what is there comes first in the next one.
//!
//! Hostile streams: all indexes are checked or masked, all memory is allocated at the beginning. What zlib refuses is refused (the tests
//! compare the two on streams with flipped bits).

mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::io;

use stream::{Inflate, Step};

/// How far back a repetition may reach.
pub const HISTORY: usize = 32 << 10;
/// Room behind a buffer's end.
pub const SLACK: usize = 320;
/// No more is left of a piece of input when another is asked for.
pub const MOST_LEFT: usize = 1 << 10;
/// A gzip header's texts may not be longer: nobody's are.
const MAX_TEXT: usize = 64 << 10;

/// A stream that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("the gzip stream is cut off")]
    Torn,
    #[error("the gzip stream is damaged: {0} cannot be right")]
    Bad(&'static str),
    #[error("the gzip stream is damaged: its checksum or size is another")]
    Checksum,
    #[error("garbage after the end of the gzip stream")]
    Garbage,
}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        let kind = if corrupt == Corrupt::Torn { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        Self::new(kind, corrupt)
    }
}

/// Where packed bytes come from.
pub trait Input {
    /// What is there now, and whether that is all there will be.
    fn there(&self) -> (&[u8], bool);
    fn used(&mut self, count: usize);
    /// Gets more, behind what is there (at most [`MOST_LEFT`] bytes); nothing more means that that is all.
    fn more(&mut self) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a member, of which one must come.
    First,
    InMember,
    /// After one: another, the end, or zeros up to the end (tape padding, which gzip(1) forgives too).
    Between,
    Over,
}

/// Unpacks a gzip stream of one or more members.
pub struct Gunzip {
    inflate: Inflate,
    place: Place,
    /// The end of what was filled last, and what did not fit.
    carry: Vec<u8>,
    over: usize,
    /// How much of the history belongs to this member.
    reach: usize,
    /// None where what comes out is proven otherwise.
    checksum: Option<crc32fast::Hasher>,
    size: u32,
}

impl Default for Gunzip {
    fn default() -> Self {
        Self {
            inflate: Inflate::new(),
            place: Place::First,
            carry: vec![0; HISTORY + SLACK],
            over: 0,
            reach: 0,
            checksum: Some(crc32fast::Hasher::new()),
            size: 0,
        }
    }
}

impl Gunzip {
    /// The members' checksums are not compared (their sizes are): somebody compares a better digest.
    pub fn ignore_checksums(&mut self) {
        self.checksum = None;
    }

    /// Whether the stream ended as it should.
    pub fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// Fills the middle of `out` (`out[HISTORY..out.len() - SLACK]`) and answers with how many bytes; fewer than there is room for only
    /// at the end of the stream.
    pub fn fill(&mut self, input: &mut impl Input, out: &mut [u8]) -> io::Result<usize> {
        let end = out.len() - SLACK;
        let mut at = HISTORY + self.over;
        out[..at].copy_from_slice(&self.carry[..at]);
        let mut base = at - self.reach.min(at);
        while at < end && self.place != Place::Over {
            if self.place != Place::InMember {
                self.begin(input)?;
                base = at;
                continue;
            }
            let from = at;
            let (bytes, all) = input.there();
            let (used, step) = self.inflate.run(bytes, all, out, &mut at, base)?;
            input.used(used);
            if let Some(checksum) = &mut self.checksum {
                checksum.update(&out[from..at]);
            }
            self.size = self.size.wrapping_add((at - from) as u32);
            match step {
                Step::Full => {}
                Step::Input => input.more()?,
                Step::Done => self.end(input)?,
            }
        }
        self.reach = at - base;
        let filled = at.min(end);
        self.over = at - filled;
        self.carry[..HISTORY + self.over].copy_from_slice(&out[filled - HISTORY..at]);
        Ok(filled - HISTORY)
    }

    /// Goes over a member's header, or finds the end.
    fn begin(&mut self, input: &mut impl Input) -> io::Result<()> {
        if self.place == Place::Between {
            let (mut next, mut padding) = (byte(input)?, false);
            while next == Some(0) {
                padding = true;
                next = byte(input)?;
            }
            match next {
                None => {
                    self.place = Place::Over;
                    return Ok(());
                }
                Some(0x1f) if !padding => {}
                Some(_) => return Err(Corrupt::Garbage.into()),
            }
        } else if need(input)? != 0x1f {
            return Err(Corrupt::Bad("its beginning").into());
        }
        let mut head = [0; 9];
        for slot in &mut head {
            *slot = need(input)?;
        }
        let [0x8b, 8, flags @ 0..=0x1f, ..] = head else { return Err(Corrupt::Bad("a member's header").into()) };
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([need(input)?, need(input)?]);
            for _ in 0..length {
                need(input)?;
            }
        }
        // A name, a comment.
        for _ in 0..(flags >> 3 & 1) + (flags >> 4 & 1) {
            let mut left = MAX_TEXT;
            while need(input)? != 0 {
                left = left.checked_sub(1).ok_or(Corrupt::Bad("a member's name"))?;
            }
        }
        if flags & 2 != 0 {
            // Of the header alone.
            need(input)?;
            need(input)?;
        }
        self.inflate.reset();
        if let Some(checksum) = &mut self.checksum {
            checksum.reset();
        }
        self.size = 0;
        self.place = Place::InMember;
        Ok(())
    }

    /// A member's trailer.
    fn end(&mut self, input: &mut impl Input) -> io::Result<()> {
        let mut tail = [0; 8];
        for slot in &mut tail {
            *slot = need(input)?;
        }
        let [a, b, c, d, size @ ..] = tail;
        let checksum = self.checksum.clone().map_or([a, b, c, d], |checksum| checksum.finalize().to_le_bytes());
        self.place = Place::Between;
        if checksum == [a, b, c, d] && size == self.size.to_le_bytes() { Ok(()) } else { Err(Corrupt::Checksum.into()) }
    }
}

/// The next byte, if there is one.
fn byte(input: &mut impl Input) -> io::Result<Option<u8>> {
    loop {
        match input.there() {
            ([first, ..], _) => {
                let first = *first;
                input.used(1);
                return Ok(Some(first));
            }
            ([], true) => return Ok(None),
            ([], false) => input.more()?,
        }
    }
}

fn need(input: &mut impl Input) -> io::Result<u8> {
    byte(input)?.ok_or_else(|| Corrupt::Torn.into())
}
