//! Parses `-v`, `--mount` and `--tmpfs` with docker's grammar. The README names one difference: a host path that does
//! not exist is an error and is never created silently.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::csv;
use super::destination::{DestinationError, Mounted, check_destination, clean};
use crate::names::Digest;
use crate::report::{EXIT_USAGE, Explain};
use crate::units::parse_memory;

/// One requested mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRequest {
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: PathBuf,
    pub read_only: bool,
    /// podman's `U`: the source is given to the container's user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chown: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// An absolute path on the host.
    Bind {
        path: PathBuf,
        recursive: bool,
        propagation: Option<String>,
    },
    /// A named volume, or an anonymous one (`None`) that is removed with the container.
    Volume {
        name: Option<String>,
        /// A new volume is not filled with the image's files.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        nocopy: bool,
        /// A directory in the volume, relative to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subpath: Option<PathBuf>,
    },
    /// The files of an image, or of a directory in it.
    Image {
        /// The reference as written.
        name: String,
        /// Set when the container is recorded.
        id: Option<Digest>,
        subpath: Option<PathBuf>,
    },
    /// An anonymous volume of another container: its ID, and the volume's position.
    VolumeOf {
        container: String,
        number: usize,
    },
    Tmpfs {
        size: Option<u64>,
        mode: Option<u32>,
        options: Vec<String>,
    },
}

impl<'a> Mounted<'a> {
    #[must_use]
    pub(crate) fn of(request: &'a MountRequest) -> Self {
        match &request.source {
            MountSource::Bind { path, .. } => Self::Bind { source: path, read_only: request.read_only },
            _ => Self::Other,
        }
    }
}

/// The kinds of mount propagation (mount_namespaces(7)).
const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum MountError {
    #[error("`{flag} {text}`: {what}")]
    Grammar { flag: &'static str, text: String, what: String },
    #[error("`{flag} {text}`: the destination `{destination}` is not an absolute path")]
    Relative { flag: &'static str, text: String, destination: String },
    #[error("`{flag} {text}`: {why}")]
    Destination { flag: &'static str, text: String, why: DestinationError },
    #[error("cannot mount twice on `{}`: duplicate mount point", destination.display())]
    Twice { destination: PathBuf },
}

impl Explain for MountError {
    fn hint(&self) -> Option<String> {
        let flag = match self {
            Self::Destination { why, .. } => return why.hint(),
            Self::Twice { .. } => {
                return Some("give each `-v`, `--mount` and `--tmpfs` a destination of its own".to_owned());
            }
            Self::Grammar { flag, .. } | Self::Relative { flag, .. } => *flag,
        };
        Some(match flag {
            "-v" => {
                "for example `-v \"$PWD\":/work`, `-v ./data:/data:ro`, or `-v name:/data` for a named volume".into()
            }
            "--tmpfs" => "for example `--tmpfs /tmp` or `--tmpfs /tmp:size=64m,mode=1777`".into(),
            _ => {
                "for example `--mount type=bind,source=/data,target=/data,readonly`; types: bind, volume, tmpfs, image"
                    .to_owned()
            }
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses `-v [SOURCE:]DESTINATION[:OPTIONS]`. A source that begins with `/`, `./`, `../` or `~/`, or is `.`, `..` or
/// `~`, is a path (relative to `cwd`). Any other source is the name of a volume.
pub(crate) fn parse_volume(text: &str, cwd: &Path) -> Result<MountRequest, MountError> {
    let grammar = |what: &str| MountError::Grammar { flag: "-v", text: text.to_owned(), what: what.to_owned() };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [""] => return Err(grammar("the value is empty")),
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(grammar("too many colons")),
    };
    let destination = absolute_destination("-v", text, destination)?;
    let (mut mode, mut propagation, mut recursive) = (None, None, true);
    let (mut nocopy, mut chown) = (false, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" | "rw" => {
                let asked = option != "rw";
                if mode.is_some_and(|known| known != asked) {
                    return Err(grammar("`ro` and `rw` contradict each other"));
                }
                mode = Some(asked);
            }
            "nocopy" => nocopy = true,
            "U" => chown = true,
            option if PROPAGATIONS.contains(&option) => {
                propagation = Some(supported(option).map_err(|what| grammar(&what))?);
            }
            "bind" => recursive = false,
            "rbind" => recursive = true,
            // SELinux labels and the consistency options of Docker Desktop have no effect on the hosts that gpurun
            // supports.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            _ => return Err(grammar(&format!("`{option}` is not a mount option"))),
        }
    }
    let source = match source {
        None => MountSource::Volume { name: None, nocopy, subpath: None },
        Some("") => return Err(grammar("the source is empty")),
        Some(source) if is_path(source) => MountSource::Bind { path: absolute(source, cwd), recursive, propagation },
        Some(name) => MountSource::Volume { name: Some(volume_name("-v", text, name)?), nocopy, subpath: None },
    };
    if nocopy && matches!(source, MountSource::Bind { .. }) {
        return Err(grammar("`nocopy` is for volumes"));
    }
    let read_only = mode.unwrap_or(false);
    allowed("-v", text, MountRequest { source, destination, read_only, chown })
}

/// Parses `--mount type=bind|volume|tmpfs,source=…,target=…[,readonly][,…]`.
pub(crate) fn parse_mount(text: &str, cwd: &Path) -> Result<MountRequest, MountError> {
    let grammar = |what: String| MountError::Grammar { flag: "--mount", text: text.to_owned(), what };
    let fields = csv::fields(text).map_err(|why| grammar(why.to_owned()))?;
    let (mut kind, mut source, mut target, mut mode_asked) = ("volume", None, None, None);
    let (mut recursive, mut propagation, mut size, mut mode) = (true, None, None, None);
    let (mut nocopy, mut subpath, mut chown) = (false, None, false);
    for field in &fields {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
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
            "readonly" | "ro" => mode_asked = Some(switch()?),
            "readwrite" | "rw" => mode_asked = Some(!switch()?),
            "bind-propagation" => match need()? {
                option if PROPAGATIONS.contains(&option) => propagation = Some(supported(option).map_err(grammar)?),
                other => return Err(grammar(format!("`{key}={other}`: use one of {}", PROPAGATIONS.join(", ")))),
            },
            "bind-recursive" => {
                recursive = match need()? {
                    "enabled" | "readonly" => true,
                    "disabled" => false,
                    other => return Err(grammar(format!("`{key}={other}`: use enabled, disabled or readonly"))),
                };
            }
            // Docker Desktop's option has no effect here.
            "consistency" => drop(need()?),
            "volume-nocopy" => nocopy = switch()?,
            "volume-subpath" | "image-subpath" | "subpath" => subpath = Some(inner_path(need()?).map_err(grammar)?),
            "volume-driver" if need()? == "local" => {}
            "U" | "chown" => chown = switch()?,
            "bind-nonrecursive" => recursive = !switch()?,
            "tmpfs-size" => size = Some(parse_memory(need()?).map_err(|error| grammar(error.to_string()))?),
            "tmpfs-mode" => mode = Some(octal(need()?).ok_or_else(|| grammar("`tmpfs-mode` is not octal".into()))?),
            _ => return Err(grammar(format!("`{key}` is not a field of a mount"))),
        }
    }
    if (kind != "volume" && nocopy) || (!["volume", "image"].contains(&kind) && subpath.is_some()) {
        return Err(grammar("`volume-nocopy` and `volume-subpath` are for volumes".into()));
    }
    // As in podman, only an image is read-only unless the request says otherwise.
    let read_only = mode_asked.unwrap_or(kind == "image");
    let target = target.ok_or_else(|| grammar("there is no target".into()))?;
    let destination = absolute_destination("--mount", text, target)?;
    let source = match (kind, source) {
        ("bind", Some(source)) => MountSource::Bind { path: absolute(source, cwd), recursive, propagation },
        ("bind", None) => return Err(grammar("a bind mount needs a source".into())),
        ("volume", Some(name)) => {
            MountSource::Volume { name: Some(volume_name("--mount", text, name)?), nocopy, subpath }
        }
        ("volume", None) if subpath.is_some() => return Err(grammar("`volume-subpath` needs a source".into())),
        ("volume", None) => MountSource::Volume { name: None, nocopy, subpath },
        ("image", Some(name)) => MountSource::Image { name: name.to_owned(), id: None, subpath },
        ("image", None) => return Err(grammar("an image mount needs a source".into())),
        ("tmpfs", None) => MountSource::Tmpfs { size, mode, options: Vec::new() },
        ("tmpfs", Some(_)) => return Err(grammar("a tmpfs has no source".into())),
        (other, _) => return Err(grammar(format!("there is no mount type `{other}`"))),
    };
    allowed("--mount", text, MountRequest { source, destination, read_only, chown })
}

/// Parses `--tmpfs DESTINATION[:OPTIONS]`.
pub(crate) fn parse_tmpfs(text: &str) -> Result<MountRequest, MountError> {
    let grammar = |what: String| MountError::Grammar { flag: "--tmpfs", text: text.to_owned(), what };
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let destination = absolute_destination("--tmpfs", text, destination)?;
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
    let source = MountSource::Tmpfs { size, mode, options: kept };
    let request = MountRequest { source, destination, read_only, chown: false };
    allowed("--tmpfs", text, request)
}

/// Returns the propagation if gpurun can give it to a mount. A container is private: its mounts do not reach the host.
fn supported(propagation: &str) -> Result<String, String> {
    match propagation {
        "shared" | "rshared" => Err(format!(
            "`{propagation}` is not supported: mounts that a container makes do not reach this host; use `rslave`, \
             which shows the container new mounts of this host"
        )),
        other => Ok(other.to_owned()),
    }
}

/// Checks a path in a volume.
fn inner_path(text: &str) -> Result<PathBuf, String> {
    // podman writes a path in an image or volume from its root.
    let path = Path::new(text.strip_prefix('/').unwrap_or(text));
    let is_inner = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if is_inner && !path.as_os_str().is_empty() {
        Ok(path.to_owned())
    } else {
        Err(format!("`{text}` is not a path in the volume"))
    }
}

/// Refuses two mounts on one destination.
pub(crate) fn check_duplicates(mounts: &[MountRequest]) -> Result<(), MountError> {
    let mut seen = std::collections::BTreeSet::new();
    match mounts.iter().find(|mount| !seen.insert(&mount.destination)) {
        Some(mount) => Err(MountError::Twice { destination: mount.destination.clone() }),
        None => Ok(()),
    }
}

fn is_path(source: &str) -> bool {
    matches!(source, "." | ".." | "~") || ["/", "./", "../", "~/"].iter().any(|start| source.starts_with(start))
}

fn absolute(source: &str, cwd: &Path) -> PathBuf {
    // The shell expands `~`. A quoted `~` is an ordinary file name. The components leave out `.`.
    cwd.join(source).components().collect()
}

fn octal(digits: &str) -> Option<u32> {
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// Validates a volume name against docker's pattern `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
fn volume_name(flag: &'static str, text: &str, name: &str) -> Result<String, MountError> {
    let good = name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good {
        return Ok(name.to_owned());
    }
    let what = if name.contains('/') {
        format!(
            "`{name}` is neither a volume's name nor a path: write `./{name}` for a path relative to the current directory"
        )
    } else {
        format!("`{name}` is not a volume's name")
    };
    Err(MountError::Grammar { flag, text: text.to_owned(), what })
}

/// Returns the destination as an absolute path without `..`.
fn absolute_destination(flag: &'static str, text: &str, destination: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(destination);
    if !path.is_absolute() {
        return Err(MountError::Relative { flag, text: text.to_owned(), destination: destination.to_owned() });
    }
    Ok(clean(path))
}

/// Returns the request if its source may be mounted at its destination.
fn allowed(flag: &'static str, text: &str, request: MountRequest) -> Result<MountRequest, MountError> {
    match check_destination(&request.destination, Mounted::of(&request)) {
        Ok(()) => Ok(request),
        Err(why) => Err(MountError::Destination { flag, text: text.to_owned(), why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &str, destination: &str, read_only: bool) -> MountRequest {
        MountRequest {
            source: MountSource::Bind { path: path.into(), recursive: true, propagation: None },
            destination: destination.into(),
            read_only,
            chown: false,
        }
    }

    fn volume(name: Option<&str>, destination: &str) -> MountRequest {
        MountRequest {
            source: MountSource::Volume { name: name.map(Into::into), nocopy: false, subpath: None },
            destination: destination.into(),
            read_only: false,
            chown: false,
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
        for text in [
            "",
            "data",
            "a:b",
            "/a:/b:xx",
            "/a:/b:ro:rw",
            "/a:/b:ro,rw",
            "/a:/b:rshared",
            "/a:/b:nocopy",
            ":/b",
            "/a:/",
            "/a:/x/..",
            "a/b:/c",
            "x:/c",
            "/a:/dev",
            "/a:/proc:ro",
            "/proc",
            "v1:/sys",
        ] {
            assert!(parse_volume(text, cwd).is_err(), "{text}");
        }
    }

    #[test]
    fn mount_fields() {
        let cwd = Path::new("/w");
        assert_eq!(parse_mount("type=bind,source=/a,target=/b,readonly", cwd), Ok(bind("/a", "/b", true)));
        assert_eq!(parse_mount("type=bind,src=a,dst=/b,ro=false", cwd), Ok(bind("/w/a", "/b", false)));
        assert_eq!(parse_mount("source=vol,target=/b", cwd), Ok(volume(Some("vol"), "/b")));
        assert_eq!(parse_mount("type=bind,src=/a,dst=/b,consistency=cached", cwd), Ok(bind("/a", "/b", false)));
        let inner = parse_mount("source=vol,target=/b,volume-subpath=x/y,volume-nocopy", cwd).unwrap();
        let subpath = Some("x/y".into());
        assert_eq!(inner.source, MountSource::Volume { name: Some("vol".into()), nocopy: true, subpath });
        let image = parse_mount("type=image,source=box:1,target=/b,image-subpath=etc", cwd).unwrap();
        let source = MountSource::Image { name: "box:1".into(), id: None, subpath: Some("etc".into()) };
        assert_eq!((image.source, image.read_only), (source, true));
        assert!(!parse_mount("type=image,source=box:1,target=/b,rw=true", cwd).unwrap().read_only);
        assert!(parse_volume("vol:/b:nocopy,U,z", cwd).unwrap().chown);
        assert_eq!(parse_mount("type=bind,\"source=/a,b\",target=/c", cwd), Ok(bind("/a,b", "/c", false)));
        let tmpfs = parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777", cwd).unwrap();
        assert_eq!(tmpfs.source, MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o1777), options: vec![] });
        for text in [
            "type=bind,target=/b",
            "type=nfs,target=/b",
            "type=bind,source=/a",
            "target=/b,what=1",
            "type=tmpfs,source=a,target=/b",
            "type=bind,source=\"/a,b\",target=/c",
            "type=bind,source=/a,target=/b,bind-propagation=on",
            "type=bind,source=/a,target=/b,bind-propagation=shared",
            "type=bind,source=/a,target=/b,volume-nocopy",
            "target=/b,volume-subpath=x",
            "type=image,target=/b",
            "type=image,source=x,target=/b,volume-nocopy",
            "source=v1,target=/b,volume-subpath=../x",
            "source=v1,target=/b,volume-driver=nfs",
            "type=bind,source=/a,target=/dev/pts",
            "type=tmpfs,target=/proc/sys",
        ] {
            assert!(parse_mount(text, cwd).is_err(), "{text}");
        }
    }

    #[test]
    fn a_destination_takes_one_mount() {
        let mount = |text: &str| parse_volume(text, Path::new("/")).unwrap();
        assert_eq!(check_duplicates(&[mount("/a:/x"), mount("/a:/y")]), Ok(()));
        let twice = check_duplicates(&[mount("/a:/x"), mount("/b:/x/")]).unwrap_err();
        assert_eq!(twice.to_string(), "cannot mount twice on `/x`: duplicate mount point");
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
