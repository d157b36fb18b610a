//! The error of reading compose files: the file, the line and the key, and what is wrong there.

use std::path::PathBuf;

use super::value::At;
use crate::report::{EXIT_FAILURE, Explain};

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Why a compose file, or a file that it names, cannot be used.
#[derive(Debug)]
pub(crate) struct ComposeError {
    /// The file, if the error is in one.
    pub(super) file: Option<PathBuf>,
    /// The line, or 0 if it is not known.
    pub(super) line: u32,
    /// The key, as in `services.web.ports[0]`. Empty if the error is about the whole file.
    pub(super) key: String,
    pub(super) reason: String,
    pub(super) hint: Option<String>,
    /// Messages about the files that were read, which may explain the error: unset variables.
    pub(crate) notices: Box<[String]>,
}

impl std::error::Error for ComposeError {}

impl std::fmt::Display for ComposeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "cannot use `{}`", file.display())?,
            None => write!(f, "cannot use the compose file")?,
        }
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ", key `{}`", self.key)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl Explain for ComposeError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }

    fn exit_code(&self) -> u8 {
        EXIT_FAILURE
    }
}

/// What is wrong with a value, before the name of its file is known.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) at: At,
    pub(super) key: String,
    pub(super) reason: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    pub(super) fn new(at: At, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { at, key: key.into(), reason: reason.into(), hint: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
