//! Parses `KEY=VALUE` flags: `--label` and `--sysctl`.

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PairError {
    #[error("`--label {0}` has no name")]
    NoName(String),
    #[error("`--label {0}` has a blank in its name")]
    Blank(String),
    #[error("`--sysctl {0}` would change this host: the container has no such setting of its own")]
    OfHost(String),
    #[error("`{flag} {text}` is not `KEY=VALUE`")]
    Pair { flag: &'static str, text: String },
}

impl Explain for PairError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoName(_) | Self::Blank(_) => Some("for example `--label course=cgroups`".into()),
            Self::OfHost(key) => Some(format!(
                "omit it, give the container its own namespace, or set it for the host: `sysctl -w {key}=VALUE`"
            )),
            Self::Pair { .. } => None,
        }
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses a label. The name must not be empty or contain white space (docker's ValidateLabel). The value is arbitrary
/// text.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), PairError> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.trim_start() {
        "" => Err(PairError::NoName(text.to_owned())),
        key if key.contains(char::is_whitespace) => Err(PairError::Blank(text.to_owned())),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

/// Parses a file of labels: one on each line, and lines that start with `#` are comments.
pub(crate) fn parse_label_file(text: &str) -> Result<Vec<(String, String)>, PairError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(parse_label).collect()
}

/// Parses an annotation of the container.
pub(crate) fn parse_annotation(text: &str) -> Result<(String, String), PairError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(PairError::Pair { flag: "--annotation", text: text.to_owned() }),
    }
}

/// Parses a kernel parameter and its value.
pub(crate) fn parse_sysctl(text: &str) -> Result<(String, String), PairError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(PairError::Pair { flag: "--sysctl", text: text.to_owned() }),
    }
}

/// Checks that a kernel parameter belongs to a namespace of the container, as runc does. Others would be set for the
/// whole host.
pub(crate) fn check_sysctl(key: &str, own_ipc: bool, own_network: bool, own_uts: bool) -> Result<(), PairError> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    // sysctl(8) takes both separators.
    let name = key.replace('/', ".");
    let is_own = match name.as_str() {
        "kernel.domainname" => own_uts,
        name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => own_ipc,
        name => name.starts_with("net.") && own_network,
    };
    if is_own && !name.contains("..") { Ok(()) } else { Err(PairError::OfHost(key.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_and_any_text() {
        let own = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_label("a"), own("a", ""));
        assert_eq!(parse_label("b="), own("b", ""));
        assert_eq!(parse_label(" c= x=y "), own("c", " x=y "));
        for wrong in ["", "=x", " =x", "a b=x"] {
            assert!(parse_label(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_sysctl("net.core.somaxconn=1"), own("net.core.somaxconn", "1"));
        assert!(parse_sysctl("net.core.somaxconn").is_err());
    }

    #[test]
    fn kernel_parameters_belong_to_the_container() {
        let ok = |key: &str, own: bool| check_sysctl(key, own, own, own).is_ok();
        for key in
            ["net.core.somaxconn", "net/core/somaxconn", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname"]
        {
            assert!(ok(key, true) && !ok(key, false), "{key}");
        }
        for key in
            ["vm.swappiness", "kernel.core_pattern", "kernel.hostname", "net/../vm/swappiness", "fs.file-max", ""]
        {
            assert!(!ok(key, true), "{key}");
        }
    }

    #[test]
    fn a_file_of_labels_has_comments() {
        let labels = parse_label_file("# c\n\na=1\n  b\nc=x = y\n").unwrap();
        let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(labels, [("a", "1"), ("b", ""), ("c", "x = y")]);
        assert!(parse_label_file("=x").is_err() && parse_annotation("x").is_err());
    }
}
