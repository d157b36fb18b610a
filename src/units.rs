//! Parses and prints sizes, CPU counts and CPU sets in docker's notation. This module does no I/O.

mod duration;

use std::collections::BTreeSet;
use std::fmt;
use std::num::IntErrorKind;
use std::ops::RangeInclusive;
use std::str::FromStr;

pub(crate) use duration::{format_duration, parse_duration};

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error("`{0}` is not a size")]
    Size(String),
    #[error("`{0}` is too large")]
    SizeOverflow(String),
    #[error("`{0}` is not a number of CPUs")]
    Cpus(String),
    #[error("`{0}` is too precise: the kernel counts in billionths of a CPU")]
    TooPrecise(String),
    #[error("`{0}` is not a list of CPU or node numbers")]
    CpuSet(String),
    #[error("`{text}` is not a whole number")]
    Whole { text: String, least: i64, most: i64 },
    #[error("`{text}` is outside of {least} to {most}")]
    Outside { text: String, least: i64, most: i64 },
    #[error("`{0}` is not a number of seconds from 0.1 to 3600")]
    Seconds(String),
}

impl Explain for UnitError {
    fn hint(&self) -> Option<String> {
        if let Self::Whole { least, most, .. } | Self::Outside { least, most, .. } = self {
            return Some(format!("write a number from {least} to {most}"));
        }
        Some(
            match self {
                Self::Size(_) | Self::SizeOverflow(_) => {
                    "write a number and a binary unit: `512m`, `1.5g`, `32g` (units: b k m g t p)"
                }
                Self::Cpus(_) | Self::TooPrecise(_) => "write a decimal number: `2`, `1.5`, `.5`",
                Self::CpuSet(_) => "write numbers and ranges, separated by commas: `0-3,7`",
                Self::Seconds(_) => "write a decimal number: `2`, `.5`",
                Self::Whole { .. } | Self::Outside { .. } => unreachable!("answered above"),
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses a whole decimal number within bounds. `0x10`, `1e3` and `1k` are refused.
pub(crate) fn parse_whole(text: &str, bounds: &RangeInclusive<i64>) -> Result<i64, UnitError> {
    let (least, most) = (*bounds.start(), *bounds.end());
    match text.parse::<i64>() {
        Ok(number) if bounds.contains(&number) => Ok(number),
        Err(error) if !matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => {
            Err(UnitError::Whole { text: text.to_owned(), least, most })
        }
        _ => Err(UnitError::Outside { text: text.to_owned(), least, most }),
    }
}

/// Parses a size in bytes by docker's rules (docker/go-units `RAMInBytes`): a decimal number, at most one space, one of
/// `b k m g t p` in either case, and optionally `b` or `ib`. All units are binary.
pub(crate) fn parse_memory(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    if !number.bytes().any(|byte| byte.is_ascii_digit()) || number.matches('.').count() > 1 {
        return Err(wrong());
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        unit => {
            let (letter, rest) = unit.split_at_checked(1).ok_or_else(wrong)?;
            if !["", "b", "ib"].contains(&rest) {
                return Err(wrong());
            }
            10 * (1 + "kmgtp".find(letter).ok_or_else(wrong)?)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let overflow = || UnitError::SizeOverflow(text.to_owned());
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| overflow())? };
    let whole = u128::from(whole) << shift;
    // Nine decimals are a resolution of a billionth of the unit. This is below one byte for units up to a gigabyte and
    // precise enough for larger units.
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let fraction: u128 = fraction.parse().map_err(|_| wrong())?;
    let total = whole + ((fraction << shift) / 1_000_000_000);
    u64::try_from(total).ok().filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(overflow)
}

/// Formats a size for display: in the largest unit that divides it, or else with two decimals. A rounded size such as
/// `1.50g` does not parse back to the same number of bytes.
#[must_use]
pub(crate) fn format_memory(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            return if bytes.trailing_zeros() >= shift {
                format!("{} {unit}", bytes >> shift)
            } else {
                format!("{:.2} {unit}", bytes as f64 / (1u64 << shift) as f64)
            };
        }
    }
    format!("{bytes} B")
}

/// Formats a size exactly, in the syntax of a flag: `32m`.
#[must_use]
pub(crate) fn flag_size(bytes: u64) -> String {
    let units = [("g", 30), ("m", 20), ("k", 10)];
    match units.into_iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}b"),
    }
}

/// A number of CPUs, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cpus {
    pub nanos: u64,
}

impl Cpus {
    /// Returns the CPU time in microseconds for a period of `period_us` microseconds.
    #[must_use]
    pub(crate) fn quota_us(self, period_us: u64) -> u64 {
        (u128::from(self.nanos) * u128::from(period_us) / 1_000_000_000) as u64
    }
}

impl FromStr for Cpus {
    type Err = UnitError;

    /// Parses docker's `--cpus`: a decimal number with at most nine decimals. `8.` and `.5` are accepted.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Cpus(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if whole.is_empty() && fraction.is_empty()
            || !(whole.bytes().chain(fraction.bytes())).all(|byte| byte.is_ascii_digit())
        {
            return Err(wrong());
        }
        let kept = fraction.trim_end_matches('0');
        if kept.len() > 9 {
            return Err(UnitError::TooPrecise(text.to_owned()));
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        let fraction: String = kept.chars().chain("000000000".chars()).take(9).collect();
        let fraction: u64 = fraction.parse().map_err(|_| wrong())?;
        whole
            .checked_mul(1_000_000_000)
            .and_then(|nanos| nanos.checked_add(fraction))
            .map(|nanos| Self { nanos })
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.nanos / 1_000_000_000, self.nanos % 1_000_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A set of CPU or NUMA node numbers, printed in the kernel's list format (`0-3,7`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet(pub BTreeSet<u32>);

impl FromStr for CpuSet {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::CpuSet(text.to_owned());
        // The kernel's own limit (CONFIG_NR_CPUS) is at most 8192.
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| *number < 8192).ok_or_else(wrong);
        let mut set = BTreeSet::new();
        for part in text.trim_end_matches('\n').split(',') {
            match part.split_once('-') {
                None => drop(set.insert(number(part)?)),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(wrong());
                    }
                    set.extend(first..=last);
                }
            }
        }
        Ok(Self(set))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Formats a duration as docker's tables show it.
#[must_use]
pub(crate) fn table_age(nanos: u64) -> String {
    match age(nanos).as_str() {
        "less than a second" => "Less than a second".to_owned(),
        "1 minute" => "About a minute".to_owned(),
        "1 hour" => "About an hour".to_owned(),
        other => other.to_owned(),
    }
}

/// Formats a duration approximately, in the largest unit that fits.
#[must_use]
pub(crate) fn age(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (count, unit) = match seconds {
        0 => return "less than a second".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_dockers() {
        let good = [
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            ("512 m", 512 << 20),
            ("1.5g", 3 << 29),
            (".5g", 1 << 29),
            ("0", 0),
            ("7", 7),
            ("7b", 7),
            ("1k", 1024),
            ("2t", 2 << 40),
            ("1p", 1 << 50),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "512mi", "1e", "-1", "0x10", " 1m", "1m ", "64X", "1  m", "1.2.3m", ".", "1bb", "1ib"] {
            assert_eq!(parse_memory(text), Err(UnitError::Size(text.into())), "{text}");
        }
        for text in ["99999999999999999999", "8192p", "9223372036854775808"] {
            assert_eq!(parse_memory(text), Err(UnitError::SizeOverflow(text.into())), "{text}");
        }
    }

    #[test]
    fn cpus_are_dockers() {
        for (text, nanos) in [
            ("1", 1_000_000_000),
            ("8.", 8_000_000_000),
            (".5", 500_000_000),
            ("1.25", 1_250_000_000),
            ("0.000000001", 1),
        ] {
            assert_eq!(text.parse::<Cpus>().unwrap().nanos, nanos, "{text}");
        }
        assert_eq!("0.0000000001".parse::<Cpus>(), Err(UnitError::TooPrecise("0.0000000001".into())));
        for text in ["", ".", "-1", "1e3", "a", "1,5", "99999999999999999999"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
        assert_eq!("1.5".parse::<Cpus>().unwrap().quota_us(100_000), 150_000);
        assert_eq!("1.50".parse::<Cpus>().unwrap().to_string(), "1.5");
    }

    #[test]
    fn whole_numbers_are_digits_within_bounds() {
        for (text, number) in [("0", 0), ("7", 7), ("-1", -1), ("+7", 7), ("007", 7)] {
            assert_eq!(parse_whole(text, &(-1..=7)), Ok(number), "{text}");
        }
        for text in ["", " 7", "7 ", "1e0", "0x1", "1k", "1.0", "٣", "-", "1_0"] {
            let wrong = UnitError::Whole { text: text.into(), least: -1, most: 7 };
            assert_eq!(parse_whole(text, &(-1..=7)), Err(wrong), "{text}");
        }
        for text in ["8", "-2", "99999999999999999999", "-99999999999999999999"] {
            let outside = UnitError::Outside { text: text.into(), least: -1, most: 7 };
            assert_eq!(parse_whole(text, &(-1..=7)), Err(outside), "{text}");
        }
    }

    #[test]
    fn wrong_sets_are_refused() {
        for text in ["", "a", "3-1", "1,", "1--2", "-1", "8192", "0-99999999"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
        assert_eq!("0-2,5,4".parse::<CpuSet>().unwrap().to_string(), "0-2,4-5");
    }

    proptest! {
        #[test]
        fn no_size_panics(text in "\\PC{0,12}") {
            let _ = parse_memory(&text);
            let _ = text.parse::<Cpus>();
            let _ = text.parse::<CpuSet>();
        }

        #[test]
        fn whole_sizes_come_back(number in 0u64..1 << 20, unit in 0usize..4) {
            let text = format!("{number}{}", ["b", "k", "m", "g"][unit]);
            prop_assert_eq!(parse_memory(&text), Ok(number << (10 * unit)));
        }

        #[test]
        fn flag_sizes_come_back(bytes in 0u64..1 << 40, shift in 0u32..20) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(parse_memory(&flag_size(bytes)), Ok(bytes));
        }

        #[test]
        fn sets_print_as_they_parse(numbers in proptest::collection::btree_set(0u32..200, 1..20)) {
            let set = CpuSet(numbers);
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
        }
    }

    #[test]
    fn ages_read_well() {
        let seconds = [
            (0, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "1 minute"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ];
        for (seconds, text) in seconds {
            assert_eq!(age(seconds * 1_000_000_000), text);
        }
        let docker = [(0, "Less than a second"), (59, "59 seconds"), (61, "About a minute"), (3700, "About an hour")];
        for (seconds, text) in docker {
            assert_eq!(table_age(seconds * 1_000_000_000), text);
        }
    }
}
