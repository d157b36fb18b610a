//! Parses signals in docker's notation.

use nix::sys::signal::Signal;

use crate::report::{EXIT_USAGE, Explain};

/// The first real-time signal that the C library leaves to applications.
const SIGRTMIN: i32 = 34;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a signal")]
pub(crate) struct SignalError(String);

impl Explain for SignalError {
    fn hint(&self) -> Option<String> {
        Some("use a name such as `TERM` or `SIGINT`, or a number from 1 to 64".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses a signal name or number, with or without `SIG`, in any case: `TERM`, `sigint`, `SIGRTMIN+3`, `9`.
pub(crate) fn parse_signal(text: &str) -> Result<i32, SignalError> {
    number(text).ok_or_else(|| SignalError(text.to_owned()))
}

fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(|number| (1..=64).contains(number));
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN+").and_then(|offset| offset.parse::<i32>().ok()) {
        return Some(SIGRTMIN + offset).filter(|number| (SIGRTMIN..=64).contains(number));
    }
    name.parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in
            [("TERM", 15), ("SIGINT", 2), ("sigkill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("rtmin+30", 64), ("64", 64)]
        {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIGNOPE", "SIG", "SIGRTMIN+31", "SIGRTMIN+-1", "SIGRTMIN"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
