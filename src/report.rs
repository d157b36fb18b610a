//! What a person sees when something failed: one message with its nouns, the causes below it, a way out.
//!
//! A room's own error types (thiserror) implement [`Explain`]; `?` turns them into a [`Report`] on the way up, and a report
//! travels unchanged over the pipe between the supervisor and the command line.

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// Exit status for "gpurun itself failed" (docker's convention).
pub const EXIT_GPURUN: u8 = 125;
/// Exit status for a command line that makes no sense.
pub const EXIT_USAGE: u8 = 2;
/// Exit status for a container command that exists but cannot be executed.
pub const EXIT_CANNOT_EXECUTE: u8 = 126;
/// Exit status for a container command that does not exist.
pub const EXIT_NOT_FOUND: u8 = 127;

/// A line for a person, on standard error, in one write. That nobody can take it (a reader that went away, a full disk under a log) is no
/// reason to stop: `eprintln` would panic, and so is banned from the library.
pub fn say(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// An error that knows its way out.
pub trait Explain: std::error::Error {
    /// What to do about it: one line, without a final period, that works when pasted where it can.
    fn hint(&self) -> Option<String> {
        None
    }

    /// The exit status that this error ends the command with.
    fn exit_code(&self) -> u8 {
        EXIT_GPURUN
    }
}

/// A finished error, ready to be printed or sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub message: String,
    /// The `source()` chain, outermost first.
    pub causes: Vec<String>,
    pub hint: Option<String>,
    pub exit_code: u8,
    /// What went wrong afterwards, while cleaning up: the first error leads.
    pub afterwards: Vec<String>,
}

impl Report {
    /// A report that stands by itself, for checks that need no error type of their own.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None, exit_code: EXIT_GPURUN, afterwards: Vec::new() }
    }

    /// A usage error (exit status 2).
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

    /// Puts this report under a new headline: the old message becomes the first cause; hint and exit status stay.
    #[must_use]
    pub fn under(mut self, message: impl Into<String>) -> Self {
        let old = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, old);
        self
    }
}

impl<E: Explain> From<E> for Report {
    fn from(error: E) -> Self {
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
        }
    }
}

impl fmt::Display for Report {
    /// The whole text as it stands on stderr, without a final newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        for later in &self.afterwards {
            write!(f, "\n  while cleaning up: {later}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}
