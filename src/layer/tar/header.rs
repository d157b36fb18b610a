//! Parses one header block in the ustar, GNU, star or V7 format.

use super::{BLOCK, TarProblem};

#[derive(Debug)]
pub(super) struct Header {
    pub kind: u8,
    pub name: Box<[u8]>,
    pub link: Box<[u8]>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    devices: Result<(i64, i64), TarProblem>,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, TarProblem> {
        if !checksum_matches(block) {
            return Err(TarProblem::Checksum);
        }
        let kind = block[156];
        let posix = &block[257..265] == b"ustar\x0000";
        let gnu = &block[257..265] == b"ustar  \0";
        let star = posix && &block[508..512] == b"tar\0";
        let mut name = c_string(&block[0..100]).to_vec();
        let prefix = match (posix, star, gnu) {
            (_, true, _) => c_string(&block[345..476]),
            (true, ..) => c_string(&block[345..500]),
            // GNU stores times in this field, as numbers. Go before 1.8 wrote a prefix here, which no number starts
            // like.
            (.., true) if is_text(block[345]) => c_string(&block[345..500]),
            _ => b"",
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let devices = if posix || gnu {
            number(&block[329..337], "device major")
                .and_then(|major| Ok((major, number(&block[337..345], "device minor")?)))
        } else {
            Ok((0, 0))
        };
        Ok(Self {
            kind,
            name: name.into(),
            link: c_string(&block[157..257]).into(),
            mode: (number(&block[100..108], "mode")? & 0o7777) as u16,
            uid: id(number(&block[108..116], "uid")?, "uid")?,
            gid: id(number(&block[116..124], "gid")?, "gid")?,
            size: u64::try_from(number(&block[124..136], "size")?).map_err(|_| TarProblem::Range("size"))?,
            mtime: number(&block[136..148], "mtime")?,
            devices,
        })
    }

    /// Whether the size field is followed by data.
    pub(super) fn has_data(&self) -> bool {
        !matches!(self.kind, b'1'..=b'6')
    }

    /// Device numbers of Linux: 12 bits of major, 20 bits of minor.
    pub(super) fn major(&self) -> Result<u32, TarProblem> {
        self.device(|(major, _)| major, 1 << 12, "device major")
    }

    pub(super) fn minor(&self) -> Result<u32, TarProblem> {
        self.device(|(_, minor)| minor, 1 << 20, "device minor")
    }

    fn device(&self, pick: fn((i64, i64)) -> i64, end: i64, field: &'static str) -> Result<u32, TarProblem> {
        let value = self.devices.as_ref().map_err(|_| TarProblem::Number(field)).map(|pair| pick(*pair))?;
        if (0..end).contains(&value) { Ok(value as u32) } else { Err(TarProblem::Range(field)) }
    }
}

/// Parses a user or group id. `u32::MAX` means "leave unchanged" to chown(2) and is not an id.
pub(super) fn id(value: i64, field: &'static str) -> Result<u32, TarProblem> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(TarProblem::Range(field))
}

/// The bytes before the first NUL.
pub(super) fn c_string(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn is_text(byte: u8) -> bool {
    byte.is_ascii_graphic() && !(b'0'..=b'7').contains(&byte)
}

/// Old writers summed signed bytes, so both sums are accepted.
pub(super) fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Ok(declared) = number(&block[148..156], "checksum") else {
        return false;
    };
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    declared == unsigned || declared == signed
}

/// Parses a number field: octal text, or base 256 if the top bit is set (two's complement from the next bit on).
pub(super) fn number(field: &[u8], name: &'static str) -> Result<i64, TarProblem> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field).ok_or(TarProblem::Range(name)),
        _ => octal(field).ok_or(TarProblem::Number(name)),
    }
}

fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let invert = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, byte) in field.iter().enumerate() {
        let mut byte = byte ^ invert;
        if at == 0 {
            byte &= 0x7f;
        }
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

fn octal(field: &[u8]) -> Option<i64> {
    let trimmed = field.trim_ascii_start();
    let digits = &trimmed[..trimmed.iter().position(|byte| *byte == 0 || *byte == b' ').unwrap_or(trimmed.len())];
    let mut value: i64 = 0;
    for digit in digits {
        let digit = (b'0'..=b'7').contains(digit).then(|| i64::from(digit - b'0'))?;
        value = value.checked_mul(8)?.checked_add(digit)?;
    }
    Some(value)
}
