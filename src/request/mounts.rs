//! `-v`, `--mount` and `--tmpfs`: docker's grammar, with one difference that README names: a host path that does not exist is an error,
//! never silently made.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};
use crate::units::parse_memory;

/// One mount that a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the host, absolute.
    Bind {
        path: PathBuf,
        recursive: bool,
        propagation: Option<String>,
    },
    /// A named volume, or an anonymous one (`None`) that goes with the container.
    Volume {
        name: Option<String>,
    },
    Tmpfs {
        size: Option<u64>,
        mode: Option<u32>,
        options: Vec<String>,
    },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    #[error("`{flag} {text}`: {what}")]
    Grammar { flag: &'static str, text: String, what: String },
    #[error("`{flag} {text}`: the destination `{destination}` is not an absolute path")]
    Relative { flag: &'static str, text: String, destination: String },
    #[error("`{flag} {text}`: the destination `{destination}` cannot be mounted over")]
    Root { flag: &'static str, text: String, destination: String },
}

impl Explain for MountError {
    fn hint(&self) -> Option<String> {
        let flag = match self {
            Self::Grammar { flag, .. } | Self::Relative { flag, .. } | Self::Root { flag, .. } => *flag,
        };
        Some(match flag {
            "-v" => {
                "for example `-v \"$PWD\":/work`, `-v ./data:/data:ro`, or `-v name:/data` for a named volume".into()
            }
            "--tmpfs" => "for example `--tmpfs /tmp` or `--tmpfs /tmp:size=64m,mode=1777`".into(),
            _ => "for example `--mount type=bind,source=/data,target=/data,readonly`; types: bind, volume, tmpfs"
                .to_owned(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// `-v [SOURCE:]DESTINATION[:OPTIONS]`. A source that begins with `/`, `./`, `../` or `~/`, or is `.` or `..`, is a path (relative to `cwd`);
/// anything else is a volume's name.
pub fn parse_volume(text: &str, cwd: &Path) -> Result<MountRequest, MountError> {
    let grammar = |what: &str| MountError::Grammar { flag: "-v", text: text.to_owned(), what: what.to_owned() };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(grammar("too many colons")),
    };
    let destination = check_destination("-v", text, destination)?;
    let (mut read_only, mut propagation, mut recursive) = (false, None, true);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" => read_only = true,
            "rw" => read_only = false,
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => propagation = Some(option.to_owned()),
            "bind" => recursive = false,
            "rbind" => recursive = true,
            // SELinux labels and docker-desktop's hints: nothing to do on the hosts that gpurun runs on
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            _ => return Err(grammar(&format!("`{option}` is not a mount option"))),
        }
    }
    let source = match source {
        None => MountSource::Volume { name: None },
        Some("") => return Err(grammar("the source is empty")),
        Some(source) if is_path(source) => MountSource::Bind { path: absolute(source, cwd), recursive, propagation },
        Some(name) => MountSource::Volume { name: Some(volume_name("-v", text, name)?) },
    };
    Ok(MountRequest { source, destination, read_only })
}

/// `--mount type=bind|volume|tmpfs,source=…,target=…[,readonly][,…]`.
pub fn parse_mount(text: &str, cwd: &Path) -> Result<MountRequest, MountError> {
    let grammar = |what: String| MountError::Grammar { flag: "--mount", text: text.to_owned(), what };
    let (mut kind, mut source, mut target, mut read_only) = ("volume", None, None, false);
    let (mut recursive, mut propagation, mut size, mut mode) = (true, None, None, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let need = || value.ok_or_else(|| grammar(format!("`{key}` needs a value")));
        let switch = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(grammar(format!("`{key}={other}` is neither true nor false"))),
        };
        match key {
            "type" => kind = need()?,
            "source" | "src" => source = Some(need()?),
            "target" | "destination" | "dst" => target = Some(need()?),
            "readonly" | "ro" => read_only = switch()?,
            "bind-propagation" => propagation = Some(need()?.to_owned()),
            "bind-recursive" => recursive = need()? != "disabled",
            "bind-nonrecursive" => recursive = !switch()?,
            "tmpfs-size" => size = Some(parse_memory(need()?).map_err(|error| grammar(error.to_string()))?),
            "tmpfs-mode" => mode = Some(octal(need()?).ok_or_else(|| grammar("`tmpfs-mode` is not octal".into()))?),
            _ => return Err(grammar(format!("`{key}` is not a field of a mount"))),
        }
    }
    let target = target.ok_or_else(|| grammar("there is no target".into()))?;
    let destination = check_destination("--mount", text, target)?;
    let source = match (kind, source) {
        ("bind", Some(source)) => MountSource::Bind { path: absolute(source, cwd), recursive, propagation },
        ("bind", None) => return Err(grammar("a bind mount needs a source".into())),
        ("volume", Some(name)) => MountSource::Volume { name: Some(volume_name("--mount", text, name)?) },
        ("volume", None) => MountSource::Volume { name: None },
        ("tmpfs", None) => MountSource::Tmpfs { size, mode, options: Vec::new() },
        ("tmpfs", Some(_)) => return Err(grammar("a tmpfs has no source".into())),
        (other, _) => return Err(grammar(format!("there is no mount type `{other}`"))),
    };
    Ok(MountRequest { source, destination, read_only })
}

/// `--tmpfs DESTINATION[:OPTIONS]`.
pub fn parse_tmpfs(text: &str) -> Result<MountRequest, MountError> {
    let grammar = |what: String| MountError::Grammar { flag: "--tmpfs", text: text.to_owned(), what };
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let destination = check_destination("--tmpfs", text, destination)?;
    let (mut size, mut mode, mut read_only, mut kept) = (None, None, false, Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(parse_memory(value).map_err(|error| grammar(error.to_string()))?),
            Some(("mode", value)) => mode = Some(octal(value).ok_or_else(|| grammar("`mode` is not octal".into()))?),
            Some(("uid" | "gid" | "nr_inodes" | "nr_blocks", value)) if value.parse::<u64>().is_ok() => {
                kept.push(option.to_owned());
            }
            None if ["exec", "noexec", "suid", "nosuid", "dev", "nodev", "rw"].contains(&option) => {
                kept.push(option.to_owned());
            }
            None if option == "ro" => read_only = true,
            _ => return Err(grammar(format!("`{option}` is not a tmpfs option"))),
        }
    }
    Ok(MountRequest { source: MountSource::Tmpfs { size, mode, options: kept }, destination, read_only })
}

fn is_path(source: &str) -> bool {
    matches!(source, "." | ".." | "~") || ["/", "./", "../", "~/"].iter().any(|start| source.starts_with(start))
}

fn absolute(source: &str, cwd: &Path) -> PathBuf {
    // `~` is the shell's business: a quoted one is a name like any other.
    cwd.join(source)
}

fn octal(digits: &str) -> Option<u32> {
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// docker's names for volumes: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
fn volume_name(flag: &'static str, text: &str, name: &str) -> Result<String, MountError> {
    let good = name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good {
        return Ok(name.to_owned());
    }
    let what = if name.contains('/') {
        format!("`{name}` is neither a volume's name nor a path: write `./{name}` for a path below here")
    } else {
        format!("`{name}` is not a volume's name")
    };
    Err(MountError::Grammar { flag, text: text.to_owned(), what })
}

/// Absolute, without `..`, and not the root itself.
fn check_destination(flag: &'static str, text: &str, destination: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(destination);
    if !path.is_absolute() {
        return Err(MountError::Relative { flag, text: text.to_owned(), destination: destination.to_owned() });
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean == Path::new("/") {
        return Err(MountError::Root { flag, text: text.to_owned(), destination: destination.to_owned() });
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &str, destination: &str, read_only: bool) -> MountRequest {
        MountRequest {
            source: MountSource::Bind { path: path.into(), recursive: true, propagation: None },
            destination: destination.into(),
            read_only,
        }
    }

    fn volume(name: Option<&str>, destination: &str) -> MountRequest {
        MountRequest {
            source: MountSource::Volume { name: name.map(Into::into) },
            destination: destination.into(),
            read_only: false,
        }
    }

    #[test]
    fn volumes_and_paths_are_told_apart() {
        let cwd = Path::new("/home/me");
        assert_eq!(parse_volume("/data:/data", cwd), Ok(bind("/data", "/data", false)));
        assert_eq!(parse_volume("/data:/data:ro", cwd), Ok(bind("/data", "/data", true)));
        assert_eq!(parse_volume("./d:/data:rw", cwd), Ok(bind("/home/me/./d", "/data", false)));
        assert_eq!(parse_volume(".:/data", cwd), Ok(bind("/home/me/.", "/data", false)));
        assert_eq!(parse_volume("cache:/data", cwd), Ok(volume(Some("cache"), "/data")));
        assert_eq!(parse_volume("/data", cwd), Ok(volume(None, "/data")));
        assert_eq!(parse_volume("/a:/b/../c/", cwd), Ok(bind("/a", "/c", false)));
    }

    #[test]
    fn wrong_volumes_are_refused() {
        let cwd = Path::new("/");
        for text in ["", "data", "a:b", "/a:/b:xx", "/a:/b:ro:rw", ":/b", "/a:/", "/a:/x/..", "a/b:/c", "x:/c"] {
            assert!(parse_volume(text, cwd).is_err(), "{text}");
        }
    }

    #[test]
    fn mount_fields() {
        let cwd = Path::new("/w");
        assert_eq!(parse_mount("type=bind,source=/a,target=/b,readonly", cwd), Ok(bind("/a", "/b", true)));
        assert_eq!(parse_mount("type=bind,src=a,dst=/b,ro=false", cwd), Ok(bind("/w/a", "/b", false)));
        assert_eq!(parse_mount("source=vol,target=/b", cwd), Ok(volume(Some("vol"), "/b")));
        let tmpfs = parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777", cwd).unwrap();
        assert_eq!(tmpfs.source, MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o1777), options: vec![] });
        for text in [
            "type=bind,target=/b",
            "type=nfs,target=/b",
            "type=bind,source=/a",
            "target=/b,what=1",
            "type=tmpfs,source=a,target=/b",
        ] {
            assert!(parse_mount(text, cwd).is_err(), "{text}");
        }
    }

    #[test]
    fn tmpfs_options() {
        let got = parse_tmpfs("/t:size=64m,mode=755,noexec,ro").unwrap();
        assert!(got.read_only);
        let options = vec!["noexec".to_owned()];
        assert_eq!(got.source, MountSource::Tmpfs { size: Some(64 << 20), mode: Some(0o755), options });
        assert!(parse_tmpfs("t").is_err() && parse_tmpfs("/t:mode=9").is_err() && parse_tmpfs("/t:huge").is_err());
    }
}
