//! Unpacks gzip, which takes most of the time of loading a layer.
//!
//! The reasons for not using a crate: on layers, in one thread, zlib-rs reached 513 MB/s, ISA-L 727 (it needs nasm and
//! autotools on every build machine), and libdeflate 870 (it needs the whole stream in memory). This module reaches 755
//! without its checksum, in safe Rust and with nothing to install (docs/speed.md). It is faster than zlib's design for
//! three reasons. Output goes directly to the buffer that will be written, which is also the window. One table entry
//! contains everything about a symbol. The next table lookup starts while the bytes of the last symbol are copied.
//!
//! [`Gunzip`] fills one buffer after the other. Each buffer has [`HISTORY`] bytes in front, which receive the end of
//! the previous buffer, and [`SLACK`] bytes behind, for the end of a match that does not fit. Those bytes come first in
//! the next buffer.
//!
//! Hostile streams: all indexes are checked or masked, and all memory is allocated at the beginning. Streams that zlib
//! rejects are rejected (the tests compare both on streams with flipped bits).

mod corrupt;
mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::io;

pub(crate) use corrupt::Corrupt;
pub(crate) use stream::{HISTORY, MOST_LEFT, SLACK};
use stream::{Inflate, Step};

/// The maximum length of the texts in a gzip header. No real header comes near it.
const MAX_TEXT: usize = 64 << 10;

/// A source of packed bytes.
pub(crate) trait Input {
    /// Returns the bytes that are available now, and whether they are the last ones.
    fn available(&self) -> (&[u8], bool);
    fn used(&mut self, count: usize);
    /// Appends more input to the available bytes (of which at most [`MOST_LEFT`] are left). If nothing is appended, the
    /// input has ended.
    fn more(&mut self) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the first member, which is required.
    First,
    InMember,
    /// After a member. Another member follows, or the end, or zeros up to the end (tape padding, which gzip(1)
    /// tolerates too).
    Between,
    Over,
}

/// Unpacks a gzip stream of one or more members.
pub(crate) struct Gunzip {
    inflate: Inflate,
    phase: Phase,
    /// The end of the last output, followed by the bytes that did not fit.
    carry: Vec<u8>,
    over: usize,
    /// The number of history bytes that belong to the current member.
    reach: usize,
    /// `None` if the output is verified in another way.
    checksum: Option<crc32fast::Hasher>,
    size: u32,
}

impl Default for Gunzip {
    fn default() -> Self {
        Self {
            inflate: Inflate::new(),
            phase: Phase::First,
            carry: vec![0; HISTORY + SLACK],
            over: 0,
            reach: 0,
            checksum: Some(crc32fast::Hasher::new()),
            size: 0,
        }
    }
}

impl Gunzip {
    /// Skips the comparison of the members' checksums, but not of their sizes. For callers that compare a stronger
    /// digest.
    pub(crate) fn ignore_checksums(&mut self) {
        self.checksum = None;
    }

    /// Whether the stream has ended properly.
    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Fills the middle of `out` (`out[HISTORY..out.len() - SLACK]`) and returns the number of bytes. It is less than
    /// the available space only at the end of the stream.
    pub(crate) fn fill(&mut self, input: &mut impl Input, out: &mut [u8]) -> io::Result<usize> {
        let end = out.len() - SLACK;
        let mut at = HISTORY + self.over;
        out[..at].copy_from_slice(&self.carry[..at]);
        let mut base = at - self.reach.min(at);
        while at < end && self.phase != Phase::Over {
            if self.phase != Phase::InMember {
                self.begin(input)?;
                base = at;
                continue;
            }
            let from = at;
            let (bytes, all) = input.available();
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

    /// Skips a member's header, or detects the end of the stream.
    fn begin(&mut self, input: &mut impl Input) -> io::Result<()> {
        if self.phase == Phase::Between {
            let (mut next, mut padding) = (byte(input)?, false);
            while next == Some(0) {
                padding = true;
                next = byte(input)?;
            }
            match next {
                None => {
                    self.phase = Phase::Over;
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
        // The name and the comment.
        for _ in 0..(flags >> 3 & 1) + (flags >> 4 & 1) {
            let mut left = MAX_TEXT;
            while need(input)? != 0 {
                left = left.checked_sub(1).ok_or(Corrupt::Bad("a member's name"))?;
            }
        }
        if flags & 2 != 0 {
            // The checksum of the header.
            need(input)?;
            need(input)?;
        }
        self.inflate.reset();
        if let Some(checksum) = &mut self.checksum {
            checksum.reset();
        }
        self.size = 0;
        self.phase = Phase::InMember;
        Ok(())
    }

    /// Checks a member's trailer.
    fn end(&mut self, input: &mut impl Input) -> io::Result<()> {
        let mut tail = [0; 8];
        for slot in &mut tail {
            *slot = need(input)?;
        }
        let [a, b, c, d, size @ ..] = tail;
        let checksum = self.checksum.clone().map_or([a, b, c, d], |checksum| checksum.finalize().to_le_bytes());
        self.phase = Phase::Between;
        if checksum == [a, b, c, d] && size == self.size.to_le_bytes() { Ok(()) } else { Err(Corrupt::Checksum.into()) }
    }
}

/// Returns the next byte, or `None` at the end of the input.
fn byte(input: &mut impl Input) -> io::Result<Option<u8>> {
    loop {
        match input.available() {
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
    byte(input)?.ok_or_else(|| Corrupt::Truncated.into())
}
