//! Flags for machines that several users share: waiting for a GPU, time limits, and the watch on GPU memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gpus::{GpuRequest, Which};
use super::span::{Span, SpanError};
use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};
use crate::units::{UnitError, flag_size, parse_memory};

/// `--wait[=TIME]`: how long a launch waits for idle GPUs. `None` means without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuWait(pub Option<Span>);

/// The text of a wait without limit.
pub(crate) const FOREVER: &str = "forever";

impl FromStr for GpuWait {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == FOREVER { Ok(Self(None)) } else { text.parse().map(|span| Self(Some(span))) }
    }
}

impl fmt::Display for GpuWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(span) => span.fmt(f),
            None => f.write_str(FOREVER),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot use `--wait` with `--gpus {0}`: these GPUs are shared, so that a launch never waits for them")]
pub(crate) struct GpuWaitError(String);

impl Explain for GpuWaitError {
    fn hint(&self) -> Option<String> {
        Some("omit `--wait`, or request a number of idle GPUs, such as `--gpus 1 --wait`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Refuses to wait for GPUs that are never busy.
pub(crate) fn check_wait(wait: Option<GpuWait>, gpus: Option<&GpuRequest>) -> Result<(), GpuWaitError> {
    match (wait, gpus) {
        (Some(_), Some(gpus)) if !matches!(gpus.which, Which::Count(_) | Which::Free(_)) => {
            Err(GpuWaitError(gpus.to_string()))
        }
        _ => Ok(()),
    }
}

/// How long a container may run, and how long it may be idle. An absent limit means without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TimeLimits {
    /// `--timeout`, from the start of the container's process.
    pub timeout: Option<Span>,
    /// `--idle-timeout`
    pub idle_timeout: Option<Span>,
}

impl TimeLimits {
    /// The limits of a new container: zero means no limit, as in podman.
    pub(crate) fn new(timeout: Option<Span>, idle_timeout: Option<Span>) -> Self {
        Self::default().updated_by(&Self { timeout, idle_timeout })
    }

    /// Returns these limits with the changes of an update. A field that is not set remains unchanged, and zero removes a
    /// limit.
    #[must_use]
    pub(crate) fn updated_by(&self, asked: &Self) -> Self {
        let merge = |before: Option<Span>, asked: Option<Span>| match asked {
            None => before,
            Some(span) => Some(span).filter(|span| !span.0.is_zero()),
        };
        Self { timeout: merge(self.timeout, asked.timeout), idle_timeout: merge(self.idle_timeout, asked.idle_timeout) }
    }
}

/// `--gpu-mem-watch SIZE[,stop]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuMemWatch {
    /// Bytes of GPU memory, over all GPUs of the container.
    pub bytes: u64,
    /// Whether the container is stopped. Otherwise it only gets a warning.
    pub stop: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum GpuMemWatchError {
    #[error(transparent)]
    Size(#[from] UnitError),
    #[error("`{0}` is not an action at the limit")]
    Action(String),
    #[error("the size is zero")]
    Zero,
}

impl Explain for GpuMemWatchError {
    fn hint(&self) -> Option<String> {
        Some("use for example `20g` (warn) or `20g,stop`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for GpuMemWatch {
    type Err = GpuMemWatchError;

    fn from_str(text: &str) -> Result<Self, GpuMemWatchError> {
        let (size, stop) = match text.split_once(',') {
            None => (text, false),
            Some((size, "stop")) => (size, true),
            Some((_, other)) => return Err(GpuMemWatchError::Action(other.to_owned())),
        };
        match parse_memory(size)? {
            0 => Err(GpuMemWatchError::Zero),
            bytes => Ok(Self { bytes, stop }),
        }
    }
}

impl fmt::Display for GpuMemWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", flag_size(self.bytes), if self.stop { ",stop" } else { "" })
    }
}

stored_as_text!(GpuWait, GpuMemWatch);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_are_written() {
        for text in ["forever", "2h", "0"] {
            assert_eq!(text.parse::<GpuWait>().unwrap().to_string(), text);
        }
        for text in ["20g", "512m,stop"] {
            assert_eq!(text.parse::<GpuMemWatch>().unwrap().to_string(), text);
        }
        for text in ["", "0", "20g,kill", "much", "20g,"] {
            assert!(text.parse::<GpuMemWatch>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_count_waits() {
        let wait = Some(GpuWait(None));
        let check = |gpus: &str| check_wait(wait, Some(&gpus.parse().unwrap()));
        assert!(check("1").is_ok() && check("free:2").is_ok());
        assert!(check("all").is_err() && check("device=0").is_err());
        assert!(check_wait(None, Some(&"all".parse().unwrap())).is_ok());
    }

    #[test]
    fn an_update_keeps_changes_and_removes() {
        let span = |text: &str| Some(text.parse::<Span>().unwrap());
        let before = TimeLimits::new(span("8h"), span("0"));
        assert_eq!(before, TimeLimits { timeout: span("8h"), idle_timeout: None });
        let after = before.updated_by(&TimeLimits { timeout: None, idle_timeout: span("1h") });
        assert_eq!(after, TimeLimits { timeout: span("8h"), idle_timeout: span("1h") });
        assert_eq!(after.updated_by(&TimeLimits::new(None, None)), after);
        assert_eq!(after.updated_by(&TimeLimits { timeout: span("0"), idle_timeout: None }).timeout, None);
    }
}
