//! Who may enter: a token, a password, or the hash of a password; and how a person hands it over.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use super::password::{self, HashError};
use crate::report::{EXIT_USAGE, Explain};
use crate::sys::tty::Hidden;

/// A password file larger than this is another file.
const MAX_PASSWORD: u64 = 4096;

/// A text that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: to be hashed, or sent to the server that is to check it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How one logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Never blank.
    Token(Secret),
    /// Known in plain: hashed for the image in question, and tried when the server is up.
    Password(Secret),
    /// One of Jupyter's hashes, checked for its form.
    Hash(String),
}

impl Auth {
    /// A fresh token: 48 hexadecimal digits, as Jupyter makes them.
    pub fn new_token() -> Result<Self, AuthError> {
        Ok(Self::Token(Secret::new(hex::encode(password::random::<24>().map_err(AuthError::Hash)?))))
    }
}

/// Where the password comes from. Never from a flag's value: everybody on the machine reads it in `ps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// From the terminal, without echo, twice.
    Prompt,
    /// One line.
    Stdin,
    /// The file's one line.
    File(PathBuf),
    /// It was hashed before.
    Hash(String),
    /// None: a token is made.
    Token,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the password is empty")]
    Empty,
    #[error("the two passwords are not the same")]
    Differ,
    #[error("the password from {place} has more than one line")]
    Lines { place: String },
    #[error("the password from {place} is not UTF-8 text of one line")]
    Text { place: String },
    #[error("there is no terminal to ask for the password on")]
    NoTerminal,
    #[error("cannot read the password from {place}")]
    Read { place: String, source: io::Error },
    #[error(transparent)]
    Hash(#[from] HashError),
}

impl Explain for AuthError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Hash(error) => error.hint(),
            Self::Differ | Self::Empty => None,
            _ => Some(
                "give it as one line on standard input (`--password-stdin`), in a file (`--password-file FILE`), or as a hash made by `gpurun token`"
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

/// Gets what the source stands for, asking the person where need be.
pub fn obtain(source: &PasswordSource) -> Result<Auth, AuthError> {
    match source {
        PasswordSource::Token => Auth::new_token(),
        PasswordSource::Hash(hash) => {
            password::check_hash(hash)?;
            Ok(Auth::Hash(hash.clone()))
        }
        _ => Ok(Auth::Password(read_password(source)?)),
    }
}

/// The password itself, from the terminal, standard input or a file.
pub fn read_password(source: &PasswordSource) -> Result<Secret, AuthError> {
    match source {
        PasswordSource::Stdin => one_line(io::stdin().lock(), "standard input"),
        PasswordSource::File(path) => {
            let place = format!("`{}`", path.display());
            let file = open(path).map_err(|source| AuthError::Read { place: place.clone(), source })?;
            one_line(file, &place)
        }
        PasswordSource::Prompt | PasswordSource::Hash(_) | PasswordSource::Token => prompt(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // `-` is what people try, /dev/stdin is what it means.
    if path == Path::new("-") { File::open("/dev/stdin") } else { File::open(path) }
}

fn one_line(input: impl Read, place: &str) -> Result<Secret, AuthError> {
    let named = || place.to_owned();
    let mut bytes = Vec::new();
    input
        .take(MAX_PASSWORD + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| AuthError::Read { place: named(), source })?;
    if bytes.len() as u64 > MAX_PASSWORD {
        return Err(AuthError::Text { place: named() });
    }
    let text = String::from_utf8(bytes).map_err(|_| AuthError::Text { place: named() })?;
    // One line end is the editor's or echo's, not the password's; blanks are the password's own.
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.contains(['\n', '\r']) {
        return Err(AuthError::Lines { place: named() });
    }
    if line.contains('\0') {
        return Err(AuthError::Text { place: named() });
    }
    if line.is_empty() { Err(AuthError::Empty) } else { Ok(Secret::new(line)) }
}

/// On the terminal itself (/dev/tty), so that a redirected standard input or output does not matter.
fn prompt() -> Result<Secret, AuthError> {
    if File::open("/dev/tty").is_err() || !(io::stdin().is_terminal() || io::stderr().is_terminal()) {
        return Err(AuthError::NoTerminal);
    }
    let read = |source| AuthError::Read { place: "the terminal".into(), source };
    let mut terminal = Hidden::open().map_err(read)?;
    let first = terminal.ask("Password for the notebook: ").map_err(read)?;
    if first.is_empty() {
        return Err(AuthError::Empty);
    }
    if terminal.ask("The same again: ").map_err(read)? == first {
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
