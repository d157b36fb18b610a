//! `-e KEY=VALUE`, `-e KEY` and `--env-file`: docker's rules.

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    #[error("`-e {0}` has no variable name")]
    NoName(String),
    #[error("the environment variable `{0}` holds a NUL byte or a name with white space")]
    BadName(String),
    #[error("line {line} of the environment file: `{text}` is not `KEY=VALUE`")]
    BadLine { line: usize, text: String },
}

impl Explain for EnvError {
    fn hint(&self) -> Option<String> {
        Some("write `KEY=VALUE`, or `KEY` alone to pass the variable on from your own environment".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// One `-e`: `KEY=VALUE`, or `KEY` to take the caller's value. `Ok(None)`: the caller has no such variable, and docker passes nothing.
pub fn parse_env(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, EnvError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(EnvError::NoName(text.to_owned()));
    }
    if name.contains(char::is_whitespace) || text.contains('\0') {
        return Err(EnvError::BadName(name.to_owned()));
    }
    let value = value.or_else(|| lookup(name));
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// An environment file: a variable a line, `#` begins a comment line, values are taken as they stand (no quotes are removed).
pub fn parse_env_file(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_env(line, &lookup) {
            Ok(variable) => variables.extend(variable),
            Err(_) => return Err(EnvError::BadLine { line: number + 1, text: line.to_owned() }),
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn a_variable_is_given_or_passed_on() {
        assert_eq!(parse_env("A=1=2", host), Ok(Some(("A".into(), "1=2".into()))));
        assert_eq!(parse_env("A=", host), Ok(Some(("A".into(), String::new()))));
        assert_eq!(parse_env("HOME", host), Ok(Some(("HOME".into(), "/root".into()))));
        assert_eq!(parse_env("NOT_THERE", host), Ok(None));
        assert!(parse_env("=x", host).is_err());
        assert!(parse_env("A B=x", host).is_err());
        assert!(parse_env("A=\0", host).is_err());
    }

    #[test]
    fn a_file_has_comments_and_keeps_quotes() {
        let text = "\u{feff}# c\n\n A=\"x\"\nHOME\nNOT_THERE\nB=#no comment\n";
        let expected: Vec<_> =
            [("A", "\"x\""), ("HOME", "/root"), ("B", "#no comment")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(parse_env_file(text, host), Ok(expected));
        assert_eq!(parse_env_file("A=1\n=2\n", host), Err(EnvError::BadLine { line: 2, text: "=2".into() }));
    }
}
