//! Durations in Go's notation, as docker reads and prints them: `1m30s`, `500ms`, `1.5h`.

/// Go's units, each with its nanoseconds. A unit comes before those that begin with its letters.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Parses a duration without a sign. Returns nanoseconds, or `None` for another notation and for more than Go's longest
/// duration (292 years).
#[must_use]
pub(crate) fn parse_duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit))?;
        total += number * nanos;
        rest = &rest[end + unit.len()..];
    }
    let fits = !text.is_empty() && total <= i64::MAX as f64;
    fits.then(|| (total.round() as u64).min(i64::MAX as u64))
}

/// Formats nanoseconds as Go does: `1m30s`, `1.5s`, `500ms`.
#[must_use]
pub(crate) fn format_duration(nanos: u64) -> String {
    let decimal = |value: u64, unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let fraction = format!("{:0digits$}", value % unit);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() || digits == 0 { String::new() } else { format!(".{fraction}") };
        format!("{}{dot}{name}", value / unit)
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(nanos, 1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = decimal(rest, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        const SECOND: u64 = 1_000_000_000;
        for (text, nanos, shown) in [
            ("30s", 30 * SECOND, "30s"),
            ("1m30s", 90 * SECOND, "1m30s"),
            ("90s", 90 * SECOND, "1m30s"),
            ("500ms", SECOND / 2, "500ms"),
            ("1.5s", SECOND * 3 / 2, "1.5s"),
            (".5s", SECOND / 2, "500ms"),
            ("2h", 7200 * SECOND, "2h0m0s"),
            ("1h0.5m", 3630 * SECOND, "1h0m30s"),
            ("7us", 7_000, "7µs"),
            ("7µs", 7_000, "7µs"),
            ("3ns", 3, "3ns"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
            assert_eq!(format_duration(nanos), shown, "{text}");
        }
        for wrong in ["", "5", "s", "-5s", "5 s", "1x", "1.2.3s", "5s ", "3000000h", "1e3s", "."] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
