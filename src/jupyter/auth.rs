//! The login: a token, a password, or the hash of a password; and how gpurun reads it from the caller.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use super::password::{self, HashError};
use crate::report::{EXIT_USAGE, Explain};
use crate::sys::tty::Hidden;

/// Larger files are not a password file.
const MAX_PASSWORD: u64 = 4096;

/// A string that Debug does not print, so that it does not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    #[must_use]
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the string, to hash it or to send it to the server that checks it.
    #[must_use]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The login method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Auth {
    /// Never blank.
    Token(Secret),
    /// The plain password. It is hashed for the image at hand, and tried when the server is up.
    Password(Secret),
    /// One of Jupyter's hashes, with its format checked.
    Hash(String),
}

impl Auth {
    /// Creates a new token of 48 hexadecimal digits, as Jupyter does.
    pub(crate) fn new_token() -> Result<Self, AuthError> {
        Ok(Self::Token(Secret::new(hex::encode(password::random::<24>().map_err(AuthError::Hash)?))))
    }
}

/// Where the password comes from. It is never a flag's value, because `ps` shows that to every user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PasswordSource {
    /// From the terminal, twice, without echo.
    Prompt,
    /// One line of standard input.
    Stdin,
    /// A file with one line.
    File(PathBuf),
    /// An existing hash.
    Hash(String),
    /// No password. gpurun creates a token.
    Token,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("the password is empty")]
    Empty,
    #[error("the two passwords do not match")]
    Differ,
    #[error("the password from {origin} has more than one line")]
    Lines { origin: String },
    #[error("the password from {origin} is not UTF-8 text of one line")]
    Text { origin: String },
    #[error("there is no terminal to prompt for the password")]
    NoTerminal,
    #[error("cannot read the password from {origin}")]
    Read { origin: String, source: io::Error },
    #[error(transparent)]
    Hash(#[from] HashError),
}

impl Explain for AuthError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Hash(error) => error.hint(),
            Self::Differ | Self::Empty => None,
            _ => Some(
                "write it as one line on standard input (`--password-stdin`), in a file (`--password-file FILE`), \
                 or as a hash made by `gpurun token`"
                    .into(),
            ),
        }
    }
    fn exit_code(&self) -> u8 {
        match self {
            Self::Hash(error) => error.exit_code(),
            Self::Read { .. } => crate::report::EXIT_GPURUN,
            _ => EXIT_USAGE,
        }
    }
}

/// Obtains the login from its source, and prompts for it if necessary.
pub(crate) fn obtain(source: &PasswordSource) -> Result<Auth, AuthError> {
    match source {
        PasswordSource::Token => Auth::new_token(),
        PasswordSource::Hash(hash) => {
            password::check_hash(hash)?;
            Ok(Auth::Hash(hash.clone()))
        }
        _ => Ok(Auth::Password(read_password(source)?)),
    }
}

/// Reads the password from the terminal, standard input or a file.
pub(crate) fn read_password(source: &PasswordSource) -> Result<Secret, AuthError> {
    match source {
        PasswordSource::Stdin => one_line(io::stdin().lock(), "standard input"),
        PasswordSource::File(path) => {
            let origin = format!("`{}`", path.display());
            let file = open(path).map_err(|source| AuthError::Read { origin: origin.clone(), source })?;
            one_line(file, &origin)
        }
        PasswordSource::Prompt | PasswordSource::Hash(_) | PasswordSource::Token => prompt(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Users may pass `-` for standard input.
    if path == Path::new("-") { File::open("/dev/stdin") } else { File::open(path) }
}

fn one_line(input: impl Read, origin: &str) -> Result<Secret, AuthError> {
    let named = || origin.to_owned();
    let mut bytes = Vec::new();
    input
        .take(MAX_PASSWORD + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| AuthError::Read { origin: named(), source })?;
    if bytes.len() as u64 > MAX_PASSWORD {
        return Err(AuthError::Text { origin: named() });
    }
    let text = String::from_utf8(bytes).map_err(|_| AuthError::Text { origin: named() })?;
    // Strip one line ending, which an editor or echo adds. Spaces belong to the password.
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.contains(['\n', '\r']) {
        return Err(AuthError::Lines { origin: named() });
    }
    if line.contains('\0') {
        return Err(AuthError::Text { origin: named() });
    }
    if line.is_empty() { Err(AuthError::Empty) } else { Ok(Secret::new(line)) }
}

/// Prompts on the terminal itself (/dev/tty), so that redirections of standard input and output do not matter.
fn prompt() -> Result<Secret, AuthError> {
    if File::open("/dev/tty").is_err() || !(io::stdin().is_terminal() || io::stderr().is_terminal()) {
        return Err(AuthError::NoTerminal);
    }
    let read = |source| AuthError::Read { origin: "the terminal".into(), source };
    let mut terminal = Hidden::open().map_err(read)?;
    let first = terminal.ask("Password for the notebook: ").map_err(read)?;
    if first.is_empty() {
        return Err(AuthError::Empty);
    }
    if terminal.ask("Repeat the password: ").map_err(read)? == first {
        Ok(Secret::new(first))
    } else {
        Err(AuthError::Differ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let cases: [(&[u8], Result<&str, &str>); 9] = [
            (b"geheim", Ok("geheim")),
            (b"geheim\n", Ok("geheim")),
            (b"geheim\r\n", Ok("geheim")),
            (b" blanks stay \n", Ok(" blanks stay ")),
            (b"", Err("empty")),
            (b"\n", Err("empty")),
            (b"one\ntwo\n", Err("more than one line")),
            (b"\xff\xfe", Err("not UTF-8")),
            (b"nul\0", Err("not UTF-8")),
        ];
        for (bytes, expected) in cases {
            match (one_line(bytes, "here"), expected) {
                (Ok(secret), Ok(text)) => assert_eq!(secret.reveal(), text),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (found, _) => panic!("{bytes:?}: {found:?}"),
            }
        }
        assert!(one_line(io::repeat(b'x'), "here").is_err());
    }

    #[test]
    fn a_file_and_a_hash_and_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "geheim\n").unwrap();
        assert_eq!(obtain(&PasswordSource::File(path)).unwrap(), Auth::Password(Secret::new("geheim")));
        let missing = obtain(&PasswordSource::File(dir.path().join("none"))).unwrap_err();
        assert!(missing.to_string().contains("none`"), "{missing}");
        assert!(obtain(&PasswordSource::Hash("geheim".into())).is_err());
        let Auth::Token(one) = obtain(&PasswordSource::Token).unwrap() else { panic!() };
        assert_eq!(one.reveal().len(), 48);
        assert_ne!(Auth::new_token().unwrap(), Auth::Token(one));
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert!(!format!("{:?}", Auth::Password(Secret::new("geheim"))).contains("geheim"));
    }
}
