//! Error reports for the user: one message, its causes, and a hint.
//!
//! The error types of the modules (thiserror) implement [`Explain`], and `?` converts them to a [`Report`]. A report
//! can be sent unchanged over the socket between the supervisor and the command line.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// Exit status for a failure of gpurun itself, in a command that starts a container (docker's convention). The command
/// line makes [`EXIT_FAILURE`] of it for all other commands.
pub(crate) const EXIT_GPURUN: u8 = 125;
/// Exit status for a failure of a command whose exit status is not that of a container.
pub(crate) const EXIT_FAILURE: u8 = 1;
/// Exit status for an invalid command line.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit status for a container command that exists but cannot be executed.
pub(crate) const EXIT_CANNOT_EXECUTE: u8 = 126;
/// Exit status for a container command that does not exist.
pub(crate) const EXIT_NOT_FOUND: u8 = 127;

/// Writes a line for the user to standard error, in one write. A failed write (a closed pipe, a full disk under a log)
/// is ignored. `eprintln` would panic and is therefore banned from the library.
pub(crate) fn say(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{}\n", printable(line)).as_bytes());
}

/// Makes text safe for a terminal: text from images, registries and containers must not move the cursor, change
/// terminal settings or reorder the output. Control characters and bidirectional controls are escaped (`\x1b`,
/// `\u{202e}`). Line feeds and tabs are kept.
#[must_use]
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t') && is_obeyed(c))
}

/// Does the same for a table cell or any text that must stay on one line: line feeds and tabs are escaped too.
#[must_use]
pub(crate) fn printable_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed)
}

fn escaped(text: &str, must: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&must) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match (must(c), c) {
            (false, c) => out.push(c),
            (true, '\n') => out.push_str("\\n"),
            (true, '\r') => out.push_str("\\r"),
            (true, '\t') => out.push_str("\\t"),
            (true, c) if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            (true, c) => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    Cow::Owned(out)
}

/// Returns whether a terminal would act on the character instead of displaying it: C0, DEL and C1 (ECMA-48), line
/// separators, and Unicode's bidirectional controls (UAX #9).
#[must_use]
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error with a hint and an exit status.
pub trait Explain: std::error::Error {
    /// Returns the hint: one line without a final period that says how to fix the error. A command in it must work when
    /// pasted.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Returns the exit status of a command that ends with this error.
    fn exit_code(&self) -> u8 {
        EXIT_GPURUN
    }

    /// Whether the same request may succeed later, because it failed only for what others use at the moment.
    fn is_transient(&self) -> bool {
        false
    }
}

/// A complete error, ready to be printed or sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub message: String,
    /// The `source()` chain, outermost first.
    pub causes: Vec<String>,
    pub hint: Option<String>,
    pub exit_code: u8,
    /// Errors that occurred afterwards, during clean-up. The first error remains the main message.
    pub afterwards: Vec<String>,
    /// See [`Explain::is_transient`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_transient: bool,
}

impl Report {
    /// Creates a report from a message, for checks without an error type of their own.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            exit_code: EXIT_GPURUN,
            afterwards: Vec::new(),
            is_transient: false,
        }
    }

    /// Creates a usage error (exit status 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: EXIT_USAGE, ..Self::new(message) }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    #[must_use]
    pub fn with_exit_code(mut self, code: u8) -> Self {
        self.exit_code = code;
        self
    }

    /// Wraps this report in a new message. The old message becomes the first cause. The hint and the exit status are
    /// kept.
    #[must_use]
    pub fn under(mut self, message: impl Into<String>) -> Self {
        let old = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, old);
        self
    }
}

impl<E: Explain> From<E> for Report {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

impl Report {
    /// Creates the report of a borrowed error.
    pub fn of(error: &impl Explain) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self {
            message: error.to_string(),
            causes,
            hint: error.hint(),
            exit_code: error.exit_code(),
            afterwards: Vec::new(),
            is_transient: error.is_transient(),
        }
    }
}

impl fmt::Display for Report {
    /// Formats the complete text for stderr, without a final newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable(&self.message))?;
        // Continuation lines of a cause are indented so that they cannot look like lines of gpurun's own output.
        let indented = |text: &str| printable(text).replace('\n', "\n    ");
        for cause in &self.causes {
            write!(f, "\n  caused by: {}", indented(cause))?;
        }
        for later in &self.afterwards {
            write!(f, "\n  while cleaning up: {}", indented(later))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {}", printable(hint))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for (text, shown, line) in [
            ("plain ütf-8 ✓", "plain ütf-8 ✓", "plain ütf-8 ✓"),
            ("a\tb\nc", "a\tb\nc", "a\\tb\\nc"),
            ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m", "\\x1b[31mred\\x1b[0m"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07", "\\x1b]0;title\\x07"),
            ("over\rwritten\x08\x7f", "over\\rwritten\\x08\\x7f", "over\\rwritten\\x08\\x7f"),
            ("c1 \u{9b}31m", "c1 \\x9b31m", "c1 \\x9b31m"),
            ("\u{202e}gnp.exe", "\\u{202e}gnp.exe", "\\u{202e}gnp.exe"),
            ("a\u{2028}b", "a\\u{2028}b", "a\\u{2028}b"),
        ] {
            assert_eq!((&*printable(text), &*printable_line(text)), (shown, line), "{text:?}");
            assert_eq!(printable(shown), shown, "a second time changes nothing");
        }
    }

    #[test]
    fn a_hostile_cause_cannot_forge_a_line() {
        let report = Report::new("cannot pull `x\x1b[2J`")
            .with_cause("no\nhint: run `evil`\x1b]52;c;cm0=\x07")
            .with_hint("try again");
        let text = report.to_string();
        assert!(!text.contains(|c: char| c != '\n' && c.is_control()), "{text:?}");
        assert_eq!(text.lines().filter(|line| line.starts_with("hint:")).count(), 1, "{text}");
    }
}

/// What the snapshots of error texts share.
#[cfg(test)]
pub(crate) mod texts {
    use std::fmt::Write as _;
    use std::io;

    use super::{Explain, Report};
    use crate::names::Digest;

    /// The texts so far.
    #[derive(Default)]
    pub(crate) struct Texts(pub(crate) String);

    impl Texts {
        /// An error with a hint and an exit status.
        pub(crate) fn add(&mut self, error: impl Explain) {
            let report = Report::from(error);
            writeln!(self.0, "[{}] {report}\n", report.exit_code).unwrap();
        }

        /// An error that is only ever a cause.
        pub(crate) fn plain(&mut self, error: impl std::error::Error) {
            writeln!(self.0, "{error}").unwrap();
        }
    }

    pub(crate) fn denied() -> io::Error {
        io::Error::from_raw_os_error(nix::libc::EACCES)
    }

    pub(crate) fn json() -> serde_json::Error {
        serde_json::from_str::<u8>("x").unwrap_err()
    }

    pub(crate) fn digest(byte: u8) -> Digest {
        format!("sha256:{}", format!("{byte:02x}").repeat(32)).parse().unwrap()
    }
}
