//! Parses `--attach`, the streams that a command shows or feeds.

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};

/// The streams to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Attached {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--attach {0}` is not a stream")]
pub(crate) struct AttachError(String);

impl Explain for AttachError {
    fn hint(&self) -> Option<String> {
        Some("use `stdin`, `stdout` or `stderr`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl Attached {
    /// Parses all `--attach` flags. Without one, the output is attached, and the input as `interactive` says.
    pub(crate) fn parse(texts: &[String], interactive: bool) -> Result<Self, AttachError> {
        if texts.is_empty() {
            return Ok(Self { stdin: interactive, stdout: true, stderr: true });
        }
        let mut all = Self::default();
        for text in texts {
            match text.to_ascii_lowercase().as_str() {
                "stdin" => all.stdin = true,
                "stdout" => all.stdout = true,
                "stderr" => all.stderr = true,
                _ => return Err(AttachError(text.clone())),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_chosen_as_in_docker() {
        let parse = |texts: &[&str], interactive| {
            let all = Attached::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), interactive);
            all.map(|all| (all.stdin, all.stdout, all.stderr))
        };
        assert_eq!(parse(&[], false), Ok((false, true, true)));
        assert_eq!(parse(&[], true), Ok((true, true, true)));
        assert_eq!(parse(&["STDOUT"], true), Ok((false, true, false)));
        assert_eq!(parse(&["stdin", "stderr"], false), Ok((true, false, true)));
        assert!(parse(&["out"], false).is_err());
    }
}
