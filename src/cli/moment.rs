//! docker's times for `--since` and `--until`: RFC 3339 or a part of it, seconds since 1970, or a duration back from now.
//! And the variable that makes an image reproducible.

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, TimeZone};

use crate::clock::now;
use crate::report::Report;
use crate::units::parse_duration;

/// Parses a time. Returns nanoseconds since 1970.
pub(super) fn parse(flag: &str, text: &str) -> Result<u64, Report> {
    read(text, now()).ok_or_else(|| {
        Report::usage(format!("`{flag} {text}` is not a time"))
            .with_hint(format!("for example `{flag} 10m`, `{flag} 2026-01-31T12:00:00` or `{flag} 1767225600`"))
    })
}

fn read(text: &str, now: u64) -> Option<u64> {
    // `date --iso-8601=ns` writes a comma before the fraction.
    let text = &*text.replace(',', ".");
    // As in docker, `0` is the beginning of 1970.
    if let Some(back) = parse_duration(text).filter(|_| text != "0") {
        return now.checked_sub(back);
    }
    // As in docker, a negative duration is a time to come.
    if let Some(ahead) = text.strip_prefix('-').and_then(parse_duration) {
        return now.checked_add(ahead);
    }
    if let Some((seconds, nanos)) = unix(text) {
        return seconds.checked_mul(1_000_000_000)?.checked_add(nanos);
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return time.timestamp_nanos_opt()?.try_into().ok();
    }
    let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .or_else(|| NaiveDate::parse_from_str(text.trim_end_matches('Z'), "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))?;
    let time = if text.ends_with('Z') {
        naive.and_utc().timestamp_nanos_opt()
    } else {
        Local.from_local_datetime(&naive).earliest()?.timestamp_nanos_opt()
    };
    time?.try_into().ok()
}

/// `1136073845` or `1136073845.000000001`.
fn unix(text: &str) -> Option<(u64, u64)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !is_digits(seconds) || !is_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    Some((seconds.parse().ok()?, format!("{fraction:0<9}").parse().ok()?))
}

/// Returns SOURCE_DATE_EPOCH from the build arguments or the environment.
pub(super) fn source_date_epoch(argument: Option<&String>) -> Result<Option<i64>, Report> {
    let text = argument.cloned().or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok()).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => Err(Report::usage(format!("`SOURCE_DATE_EPOCH={text}` is not a number of seconds"))
            .with_hint("use the output of `date +%s`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dockers() {
        const SECOND: u64 = 1_000_000_000;
        let now = 1_800_000_000 * SECOND;
        for (text, want) in [
            ("10m", Some(now - 600 * SECOND)),
            ("-10m", Some(now + 600 * SECOND)),
            ("1h30m", Some(now - 5400 * SECOND)),
            ("1.5s", Some(now - SECOND - SECOND / 2)),
            ("100ms", Some(now - SECOND / 10)),
            ("1700000000", Some(1_700_000_000 * SECOND)),
            ("1700000000.5", Some(1_700_000_000 * SECOND + SECOND / 2)),
            ("1700000000.000000001", Some(1_700_000_000 * SECOND + 1)),
            ("2023-11-14T22:13:20Z", Some(1_700_000_000 * SECOND)),
            ("2023-11-14T23:13:20+01:00", Some(1_700_000_000 * SECOND)),
            ("2023-11-14T22:13:20.000000001Z", Some(1_700_000_000 * SECOND + 1)),
            ("2023-11-14T22:13:20,000000001+00:00", Some(1_700_000_000 * SECOND + 1)),
            ("2023-11-14Z", Some(1_699_920_000 * SECOND)),
            ("", None),
            ("yesterday", None),
            ("10", Some(10 * SECOND)),
            ("0", Some(0)),
            ("10x", None),
            ("m", None),
            ("99999999999h", None),
            ("1.0000000001", None),
        ] {
            assert_eq!(read(text, now), want, "{text}");
        }
        for text in ["2023-11-14", "2023-11-14T22:13", "2023-11-14T22:13:20"] {
            let read = read(text, now).unwrap();
            assert!(read.abs_diff(1_700_000_000 * SECOND) < 3 * 86_400 * SECOND, "{text}");
        }
    }
}
