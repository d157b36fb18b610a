//! Jupyter's password hashes: `argon2:` and the PHC string, or `ALGORITHM:SALT:HEX` with HEX = H(passphrase, salt).

use std::fmt;
use std::str::FromStr;

use argon2::{Algorithm as Variant, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use crate::report::{EXIT_USAGE, Explain};

/// jupyter_server's parameters (auth/security.py): KiB, rounds, lanes.
const ARGON2: (u32, u32, u32) = (10240, 10, 8);
const ARGON2_SALT: usize = 16;
const ARGON2_OUTPUT: usize = 32;

/// A hash algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Algorithm {
    /// jupyter_server's default. To check it, the server needs the Python module `argon2`, and Notebook 6.1 or newer.
    #[default]
    Argon2,
    Sha512,
    Sha256,
    /// Only for very old servers.
    Sha1,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HashError {
    #[error("the hash algorithm `{0}` is unknown")]
    Algorithm(String),
    #[error("the password hash is not in Jupyter's format: {what}")]
    Format { what: &'static str },
    #[error("cannot read random numbers from the kernel")]
    Random,
    #[error("cannot hash the password")]
    Argon2,
}

impl Explain for HashError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Algorithm(_) => "algorithms: argon2, sha512, sha256, sha1".into(),
            Self::Format { .. } => {
                "create a hash with `gpurun token` (`argon2:$argon2id$…` or `sha512:SALT:HEX`)".into()
            }
            Self::Random | Self::Argon2 => return None,
        })
    }
    fn exit_code(&self) -> u8 {
        match self {
            Self::Algorithm(_) | Self::Format { .. } => EXIT_USAGE,
            Self::Random | Self::Argon2 => crate::report::EXIT_GPURUN,
        }
    }
}

impl FromStr for Algorithm {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        match text {
            "argon2" => Ok(Self::Argon2),
            "sha512" => Ok(Self::Sha512),
            "sha256" => Ok(Self::Sha256),
            "sha1" => Ok(Self::Sha1),
            _ => Err(HashError::Algorithm(text.to_owned())),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argon2 => "argon2",
            Self::Sha512 => "sha512",
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
        })
    }
}

/// Returns random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], HashError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| HashError::Random)?;
    Ok(bytes)
}

/// Hashes a password with a new salt, in the format of Jupyter's configuration.
pub(crate) fn hash(password: &str, algorithm: Algorithm) -> Result<String, HashError> {
    if algorithm == Algorithm::Argon2 {
        let salt = random::<ARGON2_SALT>()?;
        let (m, t, p) = ARGON2;
        let output = argon2(password, &salt, ARGON2, ARGON2_OUTPUT)?;
        let encode = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
        return Ok(format!("argon2:$argon2id$v=19$m={m},t={t},p={p}${}${}", encode(&salt), encode(&output)));
    }
    let salt = hex::encode(random::<6>()?);
    let digest = digest(&algorithm.to_string(), password, &salt).ok_or(HashError::Argon2)?;
    Ok(format!("{algorithm}:{salt}:{digest}"))
}

fn argon2(password: &str, salt: &[u8], (m, t, p): (u32, u32, u32), length: usize) -> Result<Vec<u8>, HashError> {
    let params = Params::new(m, t, p, Some(length)).map_err(|_| HashError::Argon2)?;
    let mut output = vec![0; length];
    Argon2::new(Variant::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, &mut output)
        .map_err(|_| HashError::Argon2)?;
    Ok(output)
}

fn digest(algorithm: &str, password: &str, salt: &str) -> Option<String> {
    let input = [password.as_bytes(), salt.as_bytes()].concat();
    Some(match algorithm {
        "sha1" => hex::encode(Sha1::digest(input)),
        "sha256" => hex::encode(Sha256::digest(input)),
        "sha512" => hex::encode(Sha512::digest(input)),
        _ => return None,
    })
}

/// Checks the format of one of Jupyter's hashes. A mistake would otherwise lead to a server that accepts no login (or,
/// with Notebook 5, to a hash of no algorithm). Algorithms that only Python's hashlib supports are accepted.
pub(crate) fn check_hash(hash: &str) -> Result<(), HashError> {
    let bad = |what| Err(HashError::Format { what });
    if hash.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return bad("it contains white space");
    }
    let Some((algorithm, rest)) = hash.split_once(':') else {
        return bad("it does not start with `ALGORITHM:`");
    };
    if algorithm == "argon2" {
        return if parse_phc(rest).is_some() {
            Ok(())
        } else {
            bad("`argon2:` must be followed by `$argon2id$v=19$m=…,t=…,p=…$SALT$HASH`")
        };
    }
    let Some((salt, digest)) = rest.split_once(':') else {
        return bad("it is not `ALGORITHM:SALT:HEX`");
    };
    let length = match algorithm {
        "sha1" => Some(40),
        "sha256" => Some(64),
        "sha512" => Some(128),
        _ => None,
    };
    if algorithm.is_empty()
        || salt.is_empty()
        || digest.is_empty()
        || !digest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    {
        return bad("it is not `ALGORITHM:SALT:HEX`");
    }
    if length.is_some_and(|length| digest.len() != length) {
        return bad("its hexadecimal part has the wrong length");
    }
    Ok(())
}

/// Salt, parameters (KiB, rounds, lanes) and output.
type Phc = (Vec<u8>, (u32, u32, u32), Vec<u8>);

/// Parses `$argon2id$v=19$m=…,t=…,p=…$…$…`. argon2i and argon2d are accepted, although this module cannot compute them.
fn parse_phc(text: &str) -> Option<Phc> {
    let mut parts = text.strip_prefix('$')?.split('$');
    let (_variant, version) = (parts.next().filter(|name| name.starts_with("argon2"))?, parts.next()?);
    if version != "v=19" {
        return None;
    }
    let mut params = parts.next()?.split(',').map(|param| param.split_once('='));
    let mut number = |key: &str| match params.next()?? {
        (name, value) if name == key => value.parse::<u32>().ok(),
        _ => None,
    };
    let params = (number("m")?, number("t")?, number("p")?);
    let decode = |part: &str| STANDARD_NO_PAD.decode(part).ok().filter(|bytes| bytes.len() >= 4);
    let found = (decode(parts.next()?)?, params, decode(parts.next()?)?);
    parts.next().is_none().then_some(found)
}

/// Whether a password matches a hash. `None` for an algorithm that this module does not support.
#[cfg(test)]
pub(crate) fn verify(hash: &str, password: &str) -> Option<bool> {
    let (algorithm, rest) = hash.split_once(':')?;
    if algorithm == "argon2" {
        let (salt, params, expected) = parse_phc(rest)?;
        // A hash is external input. Do not compute one that requires gigabytes of memory.
        if !rest.starts_with("$argon2id$") || params.0 > 1 << 20 || params.1 > 1 << 10 {
            return None;
        }
        return Some(argon2(password, &salt, params, expected.len()).ok()? == expected);
    }
    let (salt, expected) = rest.split_once(':')?;
    Some(digest(algorithm, password, salt)? == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Created by real servers: jupyter_server 2.21's `passwd("höllisch geheim")` with argon2, sha512 and sha256, and
    /// the example of notebook 6.0.
    const REAL: [(&str, &str); 4] = [
        (
            "argon2:$argon2id$v=19$m=10240,t=10,p=8$KXR9YGeM39NzqFsmHXdlkw$UwpihYYetAJr389bzrXX79+fDbWN/A210g3MFQ4PgRc",
            "höllisch geheim",
        ),
        (
            "sha512:93a7d1f2af5f:5f5eca13ed7ebe6969e1cb043855ebcd5fb52215e0919b50dbbf5bf340d1d5cc8aa441fc68199fa36efe85329419262e91f09d180e3b2772086c72f072c2e8b0",
            "höllisch geheim",
        ),
        ("sha256:254209ab9c6e:68012382bd6160970c83bb1a27da665f4ada80d345ee8aa7b134c781d53d1725", "höllisch geheim"),
        ("sha1:0e112c3ddfce:a68df677475c2b47b6e86d0467eec97ac5f4b85a", "mypassword"),
    ];

    #[test]
    fn jupyters_own_hashes_are_understood() {
        for (hash, password) in REAL {
            assert_eq!(check_hash(hash), Ok(()), "{hash}");
            assert_eq!(verify(hash, password), Some(true), "{hash}");
            assert_eq!(verify(hash, "hollisch geheim"), Some(false), "{hash}");
        }
    }

    #[test]
    fn what_is_hashed_can_be_verified_and_is_salted() {
        for algorithm in [Algorithm::Argon2, Algorithm::Sha512, Algorithm::Sha256, Algorithm::Sha1] {
            let (one, other) = (hash("geheim", algorithm).unwrap(), hash("geheim", algorithm).unwrap());
            assert_ne!(one, other);
            assert!(one.starts_with(&format!("{algorithm}:")));
            assert_eq!(check_hash(&one), Ok(()), "{one}");
            assert_eq!(verify(&one, "geheim"), Some(true), "{one}");
            assert_eq!(verify(&one, "Geheim"), Some(false), "{one}");
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
    }

    #[test]
    fn slips_are_found() {
        let cases = [
            "",
            "geheim",
            "argon2:",
            "argon2:$argon2id$v=19$m=10240,t=10,p=8$c2FsdHNhbHRzYWx0c2E",
            "argon2:$argon2id$v=19$t=10,m=10240,p=8$c2FsdHNhbHRzYWx0c2E$aGFzaGhhc2g",
            "$argon2id$v=19$m=10240,t=10,p=8$c2FsdHNhbHRzYWx0c2E$aGFzaGhhc2g",
            "sha1:abc",
            "sha1::a68df677475c2b47b6e86d0467eec97ac5f4b85a",
            "sha1:0e112c3ddfce:a68df677475c2b47b6e86d0467eec97ac5f4b85",
            "sha1:0e112c3ddfce:A68df677475c2b47b6e86d0467eec97ac5f4b85a",
            "sha1:0e112c3ddfce:a68df677475c2b47b6e86d0467eec97ac5f4b85a\n",
            ":salt:abc",
        ];
        for hash in cases {
            assert!(check_hash(hash).is_err(), "{hash:?}");
        }
        assert_eq!(check_hash("blake2b:abcdef:0123abc"), Ok(()));
        assert_eq!(verify("blake2b:abcdef:0123abc", "x"), None);
        assert_eq!("md5".parse::<Algorithm>(), Err(HashError::Algorithm("md5".into())));
    }
}
