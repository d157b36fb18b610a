//! Parses `--secret id=NAME,src=FILE[,…]`, a file of the caller that the container gets without a trace in its image.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::csv;
use super::destination::{Mounted, check_destination, clean};
use crate::report::{EXIT_USAGE, Explain};

/// Where secrets are mounted.
const DIR: &str = "/run/secrets";

/// One secret. The file is read at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecretRequest {
    pub id: String,
    /// An absolute path on the host.
    pub source: PathBuf,
    pub target: SecretTarget,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SecretTarget {
    Mount {
        /// An absolute path in the container.
        path: PathBuf,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// The name of a variable.
    Env(String),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--secret {text}`: {what}")]
pub(crate) struct SecretError {
    text: String,
    what: String,
}

impl Explain for SecretError {
    fn hint(&self) -> Option<String> {
        Some("for example `--secret id=token,src=./token.txt`, which is `/run/secrets/token` in the container".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl SecretRequest {
    /// Parses one flag. A relative path starts at `cwd`.
    pub(crate) fn parse(text: &str, cwd: &Path) -> Result<Self, SecretError> {
        let wrong = |what: &str| SecretError { text: text.to_owned(), what: what.to_owned() };
        let fields = csv::fields(text).map_err(wrong)?;
        let (mut id, mut source, mut target, mut is_env) = (None, None, None, false);
        let (mut mode, mut uid, mut gid) = (0o444, 0, 0);
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(wrong("gpurun keeps no secrets, so a file is needed: `src=FILE`"));
            };
            let number = || value.parse().map_err(|_| wrong(&format!("`{field}` is not a number")));
            match key {
                "id" => id = Some(value),
                "src" | "source" => source = Some(value),
                "target" | "dst" | "destination" => target = Some(value),
                "type" => {
                    is_env = match value {
                        "env" => true,
                        "mount" | "file" => false,
                        _ => return Err(wrong("the type is neither `mount` nor `env`")),
                    };
                }
                "mode" => {
                    let parsed = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777);
                    mode = parsed.ok_or_else(|| wrong("the mode is not octal"))?;
                }
                "uid" => uid = number()?,
                "gid" => gid = number()?,
                _ => return Err(wrong(&format!("`{key}` is not a field of a secret"))),
            }
        }
        let id = id.ok_or_else(|| wrong("there is no `id=`"))?;
        let name = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !name(id) {
            return Err(wrong("the id has other characters than letters, digits, `-`, `_` and `.`"));
        }
        let source = source.filter(|source| !source.is_empty()).ok_or_else(|| wrong("there is no `src=FILE`"))?;
        let target = match (is_env, target) {
            (true, target) => {
                let variable = target.unwrap_or(id);
                if variable.is_empty() || variable.contains(['=', '\0']) || variable.contains(char::is_whitespace) {
                    return Err(wrong("the target is not the name of a variable"));
                }
                SecretTarget::Env(variable.to_owned())
            }
            (false, target) => {
                let path = clean(&Path::new(DIR).join(target.unwrap_or(id)));
                check_destination(&path, Mounted::Other).map_err(|error| wrong(&error.to_string()))?;
                SecretTarget::Mount { path, mode, uid, gid }
            }
        };
        Ok(Self { id: id.to_owned(), source: cwd.join(source), target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_file_and_a_target() {
        let parse = |text: &str| SecretRequest::parse(text, Path::new("/w"));
        let mount = |path: &str, mode, uid| SecretTarget::Mount { path: path.into(), mode, uid, gid: 0 };
        for (text, source, target) in [
            ("id=a,src=f", "/w/f", mount("/run/secrets/a", 0o444, 0)),
            ("id=a,src=/f,target=b/c,mode=400,uid=7", "/f", mount("/run/secrets/b/c", 0o400, 7)),
            ("id=a,src=/f,target=/etc/a", "/f", mount("/etc/a", 0o444, 0)),
            ("id=a,src=/f,type=env", "/f", SecretTarget::Env("a".into())),
            ("id=a,src=/f,type=env,target=TOKEN", "/f", SecretTarget::Env("TOKEN".into())),
        ] {
            let secret = parse(text).unwrap();
            assert_eq!((secret.source.to_str().unwrap(), secret.target), (source, target), "{text}");
        }
        for wrong in [
            "a",
            "id=a",
            "src=f",
            "id=,src=f",
            "id=a/b,src=f",
            "id=a,src=f,mode=9",
            "id=a,src=f,x=y",
            "id=a,src=f,type=x",
            "id=a,src=f,target=/proc",
            "id=a,src=f,type=env,target=A B",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
