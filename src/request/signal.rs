//! Signals as docker writes them.

use nix::sys::signal::Signal;

/// The first of the real-time signals that the C library leaves to programs.
const SIGRTMIN: i32 = 34;

/// A signal's number, by name or number, with or without `SIG`, in any case: `TERM`, `sigint`, `SIGRTMIN+3`, `9`.
#[must_use]
pub fn parse_signal(text: &str) -> Option<i32> {
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
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIGNOPE", "SIG", "SIGRTMIN+31", "SIGRTMIN+-1", "SIGRTMIN"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}
