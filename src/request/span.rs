//! Parses a length of time: `90` (seconds, as podman's `--timeout`), `30m`, `8h`, `1h30m`, `2d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};
use crate::units::parse_duration;

const DAY: u64 = 86_400_000_000_000;

/// The units of the text, the longest first, in nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("d", DAY),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// The longest time: about a hundred years. A longer one would overflow the clock.
const LONGEST: u64 = 36_500 * DAY;

/// A length of time. Zero means that a limit is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub Duration);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a length of time")]
pub(crate) struct SpanError(String);

impl Explain for SpanError {
    fn hint(&self) -> Option<String> {
        Some("use for example `90` (seconds), `30m`, `8h`, `1h30m` or `2d`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError(text.to_owned());
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let nanos = if is_plain {
            text.parse().ok().and_then(|seconds: u64| seconds.checked_mul(1_000_000_000))
        } else {
            nanos(text)
        };
        nanos.filter(|nanos| *nanos <= LONGEST).map(|nanos| Self(Duration::from_nanos(nanos))).ok_or_else(wrong)
    }
}

/// Go's durations, and days before them.
fn nanos(text: &str) -> Option<u64> {
    let Some((days, rest)) = text.split_once('d') else { return parse_duration(text) };
    let days = days.parse::<u64>().ok()?.checked_mul(DAY)?;
    if rest.is_empty() { Some(days) } else { days.checked_add(parse_duration(rest)?) }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_nanos()).unwrap_or(LONGEST);
        if left == 0 {
            return f.write_str("0");
        }
        for (unit, nanos) in UNITS {
            if left >= nanos {
                write!(f, "{}{unit}", left / nanos)?;
                left %= nanos;
            }
        }
        Ok(())
    }
}

stored_as_text!(Span);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        let cases = [
            ("90", 90_000, "1m30s"),
            ("0", 0, "0"),
            ("8h", 28_800_000, "8h"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1.5s", 1_500, "1s500ms"),
            ("2d", 172_800_000, "2d"),
            ("500ms", 500, "500ms"),
        ];
        for (text, millis, shown) in cases {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0, span.to_string()), (Duration::from_millis(millis), shown.to_owned()), "{text}");
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for text in ["", "h", "-1", "1x", "1h ", "8 h", "99999999999999999999", "1e9h", "40000d", ".h", "∞"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_span_is_read_as_it_is_written(nanos in 0..=LONGEST) {
            let span = Span(Duration::from_nanos(nanos));
            proptest::prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
