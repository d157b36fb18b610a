//! Parses `-e KEY=VALUE`, `-e KEY` and `--env-file` by docker's rules, and patterns (`-e 'SLURM_*'`) as podman does.

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    #[error("`-e {0}` has no variable name")]
    NoName(String),
    #[error("the environment variable `{0}` contains a NUL byte or a name with white space")]
    BadName(String),
    #[error("`--umask {0}` is not an octal mode")]
    Umask(String),
    #[error("`--tz {0}` is not the name of a time zone")]
    TimeZone(String),
    #[error("line {line} of the environment file: `{text}` is not `KEY=VALUE`")]
    BadLine { line: usize, text: String },
}

impl Explain for EnvError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Umask(_) => "for example `--umask 027`",
                Self::TimeZone(_) => "for example `--tz Europe/Berlin`, or `--tz local` for this host's",
                _ => "write `KEY=VALUE`, or `KEY` alone to pass the variable on from your own environment",
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses one `-e`: `KEY=VALUE`, or `KEY` to pass on the value from the variables of the caller. A `*` in such a `KEY`
/// stands for any characters, so the result may have several variables. It is empty if the caller has none; docker then
/// passes nothing.
pub(crate) fn parse_env(text: &str, caller: &[(String, String)]) -> Result<Vec<(String, String)>, EnvError> {
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
    Ok(match value {
        Some(value) => vec![(name.to_owned(), value)],
        None => caller.iter().filter(|(known, _)| matches(name, known)).cloned().collect(),
    })
}

/// Whether a name is what a pattern describes, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The earliest place leaves the most for the next part.
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

/// Parses an environment file: one variable per line, comment lines start with `#`, and values are taken literally
/// (quotes are kept).
pub(crate) fn parse_env_file(text: &str, caller: &[(String, String)]) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_env(line, caller) {
            Ok(found) => variables.extend(found),
            Err(_) => return Err(EnvError::BadLine { line: number + 1, text: line.to_owned() }),
        }
    }
    Ok(variables)
}

/// Parses an octal umask.
pub(crate) fn parse_umask(text: &str) -> Result<u32, EnvError> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let umask = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|umask| *umask <= 0o777);
    umask.ok_or_else(|| EnvError::Umask(text.to_owned()))
}

/// Checks the name of a time zone, which is the name of a file.
pub(crate) fn parse_time_zone(text: &str) -> Result<String, EnvError> {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "_+-".contains(c))
    };
    if text.split('/').all(part) { Ok(text.to_owned()) } else { Err(EnvError::TimeZone(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn host() -> Vec<(String, String)> {
        pairs(&[("HOME", "/root"), ("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("MY_SLURM_X", "")])
    }

    #[test]
    fn a_variable_is_given_or_passed_on() {
        let parse = |text: &str| parse_env(text, &host());
        assert_eq!(parse("A=1=2"), Ok(pairs(&[("A", "1=2")])));
        assert_eq!(parse("A="), Ok(pairs(&[("A", "")])));
        assert_eq!(parse("HOME"), Ok(pairs(&[("HOME", "/root")])));
        assert_eq!(parse("NOT_THERE"), Ok(Vec::new()));
        assert!(parse("=x").is_err());
        assert!(parse("A B=x").is_err());
        assert!(parse("A=\0").is_err());
    }

    #[test]
    fn a_star_stands_for_any_characters_of_a_name() {
        let names = |pattern: &str| -> Vec<String> {
            parse_env(pattern, &host()).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names("SLURM_*"), ["SLURM_JOB_ID", "SLURM_STEP_ID"]);
        assert_eq!(names("*SLURM*"), ["SLURM_JOB_ID", "SLURM_STEP_ID", "MY_SLURM_X"]);
        assert_eq!(names("SLURM_*_ID"), ["SLURM_JOB_ID", "SLURM_STEP_ID"]);
        assert_eq!(names("S*J*D"), ["SLURM_JOB_ID"]);
        assert_eq!(names("*").len(), 4);
        assert_eq!(names("SLURM_JOB_ID*"), ["SLURM_JOB_ID"], "nothing is any characters, too");
        assert_eq!(names("NO_*"), [""; 0]);
        assert!(!matches("AB*BA", "ABA") && !matches("A*", "") && matches("A*B*", "AxB"));
        assert_eq!(parse_env("A=*", &host()), Ok(pairs(&[("A", "*")])), "a value is no pattern");
    }

    #[test]
    fn a_file_has_comments_and_keeps_quotes() {
        let text = "\u{feff}# c\n\n A=\"x\"\nHOME\nNOT_THERE\nB=#no comment\n";
        let expected: Vec<_> =
            [("A", "\"x\""), ("HOME", "/root"), ("B", "#no comment")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(parse_env_file(text, &host()), Ok(expected));
        assert_eq!(parse_env_file("A=1\n=2\n", &host()), Err(EnvError::BadLine { line: 2, text: "=2".into() }));
    }

    #[test]
    fn umasks_are_octal_and_time_zones_are_names() {
        for (text, umask) in [("022", 0o22), ("0077", 0o77), ("7", 7)] {
            assert_eq!(parse_umask(text), Ok(umask));
        }
        for wrong in ["", "8", "1000", "00000", "u=rwx"] {
            assert!(parse_umask(wrong).is_err(), "{wrong}");
        }
        assert!(["UTC", "Europe/Berlin", "Etc/GMT+1", "local"].iter().all(|name| parse_time_zone(name).is_ok()));
        assert!(["", "/etc/passwd", "a/../b", "a//b", "."].iter().all(|name| parse_time_zone(name).is_err()));
    }
}
