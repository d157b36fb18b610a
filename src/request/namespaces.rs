//! Parses `--ipc`, `--pid`, `--uts`, `--cgroupns`, `--userns` and `--runtime`.

use std::fmt;
use std::str::FromStr;

use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};

/// The IPC namespace of a container, and its /dev/shm.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum IpcMode {
    /// Its own, which no other container can join.
    #[default]
    Private,
    /// Its own, which other containers can join.
    Shareable,
    /// Its own, without /dev/shm.
    None,
    /// The host's.
    Host,
    /// That of another container: its name, and its ID once the container is recorded.
    Container(String),
}

/// The names of runtimes that stand for what gpurun does.
const RUNTIMES: [&str; 7] =
    ["runc", "crun", "youki", "gpurun", "io.containerd.runc.v2", "nvidia", "nvidia-container-runtime"];

/// An accepted value of `--runtime`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeName(String);

impl RuntimeName {
    /// Whether the variable NVIDIA_VISIBLE_DEVICES selects the container's GPUs.
    #[must_use]
    pub(crate) fn is_nvidia(&self) -> bool {
        self.0.starts_with("nvidia")
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ModeError {
    #[error("`--ipc {0}` is not a mode")]
    Ipc(String),
    #[error("`--pid {0}` is not a mode")]
    Pid(String),
    #[error("`--uts {0}` is not a mode")]
    Uts(String),
    #[error("`--cgroupns {0}` is not a mode")]
    Cgroup(String),
    #[error("`--userns {0}` is not supported: gpurun has no user namespaces yet")]
    User(String),
    #[error("there is no runtime `{0}`")]
    Runtime(String),
    #[error("`--isolation {0}` is for Windows containers")]
    Isolation(String),
    #[error("there is no volume driver `{0}`")]
    VolumeDriver(String),
}

impl Explain for ModeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Ipc(_) => "use `private`, `shareable`, `host`, `none` or `container:NAME`".into(),
            Self::Pid(_) => "use `host`, `private` or `container:NAME`".into(),
            Self::Uts(_) => "the only mode is `--uts host`; a container has its own UTS namespace by default".into(),
            Self::Cgroup(_) => "use `private` or `host`".into(),
            Self::User(_) => "omit it; `--user UID:GID` sets the user in the container".into(),
            Self::Runtime(_) => format!("use one of {}, which all mean gpurun's own", RUNTIMES.join(", ")),
            Self::Isolation(_) => "omit it, or use `--isolation default`".into(),
            Self::VolumeDriver(_) => "omit it: `local` is the only driver".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for IpcMode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        Ok(match text {
            "" | "private" => Self::Private,
            "shareable" => Self::Shareable,
            "none" => Self::None,
            "host" => Self::Host,
            other => match other.strip_prefix("container:") {
                Some(name) if !name.is_empty() => Self::Container(name.to_owned()),
                _ => return Err(ModeError::Ipc(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for IpcMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("private"),
            Self::Shareable => f.write_str("shareable"),
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

impl FromStr for RuntimeName {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        if RUNTIMES.contains(&text) { Ok(Self(text.to_owned())) } else { Err(ModeError::Runtime(text.to_owned())) }
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

stored_as_text!(IpcMode, RuntimeName);

/// Parses `--pid`. Returns whether the container shares the host's PID namespace, and the name of the container whose
/// namespace it joins.
pub(crate) fn parse_pid_mode(text: &str) -> Result<(bool, Option<String>), ModeError> {
    match (text, text.strip_prefix("container:")) {
        ("" | "private", _) => Ok((false, None)),
        ("host", _) => Ok((true, None)),
        (_, Some(name)) if !name.is_empty() => Ok((false, Some(name.to_owned()))),
        _ => Err(ModeError::Pid(text.to_owned())),
    }
}

/// Parses `--uts`. Returns whether the container shares the host's UTS namespace.
pub(crate) fn parse_uts_mode(text: &str) -> Result<bool, ModeError> {
    match text {
        "" | "private" => Ok(false),
        "host" => Ok(true),
        other => Err(ModeError::Uts(other.to_owned())),
    }
}

/// Parses `--cgroupns`. Returns whether the container shares the host's cgroup namespace.
pub(crate) fn parse_cgroup_mode(text: &str) -> Result<bool, ModeError> {
    match text {
        "" | "private" => Ok(false),
        "host" => Ok(true),
        other => Err(ModeError::Cgroup(other.to_owned())),
    }
}

/// Checks `--userns`. Every container is in the host's user namespace.
pub(crate) fn check_user_mode(text: &str) -> Result<(), ModeError> {
    if matches!(text, "" | "host") { Ok(()) } else { Err(ModeError::User(text.to_owned())) }
}

/// Checks `--isolation`, whose only value on Linux is docker's default.
pub(crate) fn check_isolation(text: &str) -> Result<(), ModeError> {
    if matches!(text, "" | "default") { Ok(()) } else { Err(ModeError::Isolation(text.to_owned())) }
}

/// Checks `--volume-driver`.
pub(crate) fn check_volume_driver(text: &str) -> Result<(), ModeError> {
    if matches!(text, "" | "local") { Ok(()) } else { Err(ModeError::VolumeDriver(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_print_as_they_parse() {
        for text in ["private", "shareable", "none", "host", "container:db"] {
            assert_eq!(text.parse::<IpcMode>().unwrap().to_string(), text);
        }
        assert_eq!("".parse::<IpcMode>(), Ok(IpcMode::Private));
        for wrong in ["hots", "container:", "container", "Host"] {
            assert!(wrong.parse::<IpcMode>().is_err(), "{wrong}");
        }
        assert_eq!((parse_uts_mode("host"), parse_uts_mode("")), (Ok(true), Ok(false)));
        assert_eq!((parse_cgroup_mode("host"), parse_cgroup_mode("private")), (Ok(true), Ok(false)));
        assert!(parse_uts_mode("container:x").is_err() && parse_cgroup_mode("none").is_err());
        assert!(check_user_mode("host").is_ok() && check_user_mode("keep-id").is_err());
        assert!(check_isolation("default").is_ok() && check_isolation("hyperv").is_err());
        assert!(check_volume_driver("local").is_ok() && check_volume_driver("nfs").is_err());
    }

    #[test]
    fn a_runtime_is_one_that_gpurun_stands_for() {
        let is_nvidia = |text: &str| text.parse::<RuntimeName>().map(|name| name.is_nvidia());
        assert_eq!((is_nvidia("runc"), is_nvidia("nvidia")), (Ok(false), Ok(true)));
        for wrong in ["", "kata", "runsc", "/usr/bin/runc"] {
            assert!(is_nvidia(wrong).is_err(), "{wrong}");
        }
    }
}
