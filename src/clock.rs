//! The wall clock as records and logs keep it: nanoseconds since 1970, and RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
#[must_use]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A moment (nanoseconds since 1970) as RFC 3339 in UTC, with nanoseconds.
#[must_use]
pub(crate) fn rfc3339(nanos: u64) -> String {
    chrono::DateTime::from_timestamp_nanos(nanos as i64).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}
