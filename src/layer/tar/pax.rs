//! Parses PAX extended headers: `<length> <key>=<value>\n` records.

use std::collections::BTreeMap;

use super::TarProblem;
use super::header::id;

/// The records that matter for a layer. The others are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub path: Option<Box<[u8]>>,
    pub link: Option<Box<[u8]>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub sparse: Option<Sparse>,
}

/// The GNU sparse records of all three versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub version: (u64, u64),
    pub name: Option<Box<[u8]>>,
    pub real_size: Option<u64>,
    /// Offset and length pairs of versions 0.0 and 0.1.
    pub map: Vec<u64>,
}

/// Linux: `XATTR_NAME_MAX`, `XATTR_SIZE_MAX`.
const XATTR_NAME: usize = 255;
const XATTR_SIZE: usize = 64 << 10;

impl Records {
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, TarProblem> {
        let mut records = Self::default();
        // Some writers pad with NULs.
        while !body.is_empty() && body[0] != 0 {
            let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or(TarProblem::Pax)?;
            let length = decimal(&body[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(TarProblem::Pax)?;
            let record = body.get(space + 1..length).ok_or(TarProblem::Pax)?;
            let record = record.strip_suffix(b"\n").ok_or(TarProblem::Pax)?;
            let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or(TarProblem::Pax)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            records.take(key, value).ok_or_else(|| TarProblem::PaxRecord(key.escape_ascii().to_string()))?;
            body = &body[length..];
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // A binary value may be empty and may contain any byte.
            if name.is_empty() || name.len() > XATTR_NAME || name.contains(&0) || value.len() > XATTR_SIZE {
                return None;
            }
            self.xattrs.insert(name.into(), value.into());
            return Some(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.get_or_insert_default().take(key, value);
        }
        match key {
            b"path" | b"linkpath" => {
                if value.contains(&0) {
                    return None;
                }
                let field = if key == b"path" { &mut self.path } else { &mut self.link };
                *field = (!value.is_empty()).then(|| value.into());
            }
            _ if value.is_empty() => {}
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id(i64::try_from(decimal(value)?).ok()?, "uid").ok()?),
            b"gid" => self.gid = Some(id(i64::try_from(decimal(value)?).ok()?, "gid").ok()?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {}
        }
        Some(())
    }
}

impl Sparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.version.0 = decimal(value)?,
            b"minor" => self.version.1 = decimal(value)?,
            b"name" => self.name = (!value.is_empty() && !value.contains(&0)).then(|| value.into()),
            b"realsize" | b"size" => self.real_size = Some(decimal(value)?),
            b"offset" | b"numbytes" => {
                // Version 0.0 repeats the two keys alternately.
                if self.map.len().is_multiple_of(2) != (key == b"offset") {
                    return None;
                }
                self.map.push(decimal(value)?);
            }
            b"map" => self.map = value.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?,
            _ => {}
        }
        Some(())
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses `[-]seconds[.fraction]`, truncated to nanoseconds. The nanoseconds of the result count up from the second
/// below.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let nanos = (0..9).fold(0, |sum, at| sum * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.9999999999", Some((1, 999_999_999))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("5.", Some((5, 0))),
            ("", None),
            ("-", None),
            (".5", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn malformed_records() {
        for body in [
            "5 a=b\n",
            "x a=b\n",
            "6 a=bc",
            "6 =b\n\n",
            "99999999999999999999 a=b\n",
            "6 a=b",
            "4 a\n",
            "0 a=b\n",
            "6",
            "7 a=b\nx",
        ] {
            assert!(Records::parse(body.as_bytes()).is_err(), "{body:?}");
        }
        assert!(Records::parse(b"10 path=\0x\n").is_err());
        assert!(Records::parse(b"6 a=b\n\0\0\0").is_ok());
        assert_eq!(Records::parse(b"8 path=\n").expect("an empty value").path, None);
    }
}
