//! Decides which destinations in a container can take a mount.
//!
//! The runtime creates nodes and links in the container's /dev, mounts file systems on /dev, /proc and /sys, and masks
//! paths below them. A mount on one of these paths would either redirect the files that the runtime creates to the host
//! or hide them. The rule in this module applies to every mount, whatever its origin: `-v`, `--mount`, `--tmpfs`, an
//! image's VOLUME, `RUN --mount`, a CDI device. It is applied twice: to the destination as written, and again after
//! links in the image have been resolved. The module does no I/O.

use std::path::{Component, Path, PathBuf};

use crate::report::{EXIT_USAGE, Explain};

/// Files in /proc that a mount may replace individually. runc allows the same files, for lxcfs.
const PROC_FILES: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// Device nodes that the runtime creates in /dev.
const DEV_NODES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Everything else that the runtime creates in /dev. /dev/shm and /dev/mqueue are not listed because a mount there
/// replaces the runtime's mount.
const DEV_NAMES: [&str; 10] =
    ["console", "core", "fd", "gpurun-init", "kcore", "ptmx", "pts", "stderr", "stdin", "stdout"];

/// Directories where gpurun mounts its own files: the configuration of a notebook server, which includes the hash of
/// its password, and a home directory.
const OWN: [&str; 2] = ["/run/gpurun/jupyter", "/run/gpurun/home"];

/// The error for a mount on a reserved destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot mount on `{}`: {}", destination.display(), reserved.why(destination))]
pub(crate) struct DestinationError {
    pub destination: PathBuf,
    reserved: Reserved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reserved {
    Root,
    Dev,
    DevName,
    Proc,
    Sys,
    Cgroup,
    Own,
}

impl Reserved {
    fn why(self, destination: &Path) -> &'static str {
        match self {
            Self::Root => "it is the container's root",
            Self::Dev => "the runtime fills the container's /dev",
            Self::DevName => "the runtime makes this file in the container's /dev",
            Self::Proc if destination == Path::new("/proc") => "the container's own /proc is mounted there",
            Self::Proc => "it is in the container's own /proc",
            Self::Sys => "the container's own /sys is mounted there",
            Self::Cgroup => "the container's own cgroup is mounted there, read-only",
            Self::Own => "gpurun mounts its own files there",
        }
    }
}

impl Explain for DestinationError {
    fn hint(&self) -> Option<String> {
        Some(match self.reserved {
            Reserved::Root => "mount a directory below it".to_owned(),
            Reserved::Dev => {
                "pass a device with `--device /dev/NAME`; a file can be mounted below /dev, and a directory on /dev/shm"
                    .to_owned()
            }
            Reserved::DevName | Reserved::Own => "choose another destination, or omit the mount".to_owned(),
            Reserved::Proc => format!(
                "choose another destination, such as `/host{}`; single files such as /proc/cpuinfo can be replaced (lxcfs)",
                self.destination.display()
            ),
            Reserved::Sys => format!(
                "mount a directory below it, choose another destination such as `/host{0}`, or use `-v {0}:{0}:ro`",
                self.destination.display()
            ),
            Reserved::Cgroup => "omit the mount, or choose another destination".to_owned(),
        })
    }

    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// The properties of a mount source that the rule depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mounted<'a> {
    /// A path on the host.
    Bind { source: &'a Path, read_only: bool },
    /// A volume, a tmpfs, or any other file system.
    Other,
}

/// Checks that a mount is allowed on `destination`, an absolute path in the container.
pub(crate) fn check_destination(destination: &Path, mounted: Mounted<'_>) -> Result<(), DestinationError> {
    let destination = clean(destination);
    match reserved(&destination, mounted) {
        Some(reserved) => Err(DestinationError { destination, reserved }),
        None => Ok(()),
    }
}

/// Checks that a host device node may be created at `path` in the container. The default nodes may be replaced.
pub(crate) fn check_node(path: &Path) -> Result<(), DestinationError> {
    let destination = clean(path);
    let name = destination.strip_prefix("/dev").ok().and_then(Path::to_str);
    if name.is_some_and(|name| DEV_NODES.contains(&name)) {
        return Ok(());
    }
    check_destination(&destination, Mounted::Other)
}

fn reserved(destination: &Path, mounted: Mounted<'_>) -> Option<Reserved> {
    if destination == Path::new("/") {
        return Some(Reserved::Root);
    }
    if let Ok(below) = destination.strip_prefix("/dev") {
        let first = below.components().next().and_then(|first| first.as_os_str().to_str());
        return match first {
            None if below.as_os_str().is_empty() => Some(Reserved::Dev),
            Some(name) if DEV_NAMES.contains(&name) || DEV_NODES.contains(&name) => Some(Reserved::DevName),
            _ => None,
        };
    }
    if let Ok(below) = destination.strip_prefix("/proc") {
        let free = matches!(mounted, Mounted::Bind { .. }) && PROC_FILES.iter().any(|file| below == Path::new(file));
        return (!free).then_some(Reserved::Proc);
    }
    if OWN.iter().any(|own| destination.starts_with(own)) {
        return Some(Reserved::Own);
    }
    if destination.starts_with("/sys/fs/cgroup") {
        return Some(Reserved::Cgroup);
    }
    // The directories above the cgroup mount. A mount here must contain the mount point and must not be writable.
    if [Path::new("/sys"), Path::new("/sys/fs")].contains(&destination) {
        let same = matches!(mounted, Mounted::Bind { source, read_only: true } if clean(source) == destination);
        return (!same).then_some(Reserved::Sys);
    }
    None
}

/// Returns an absolute path without `.`, `..` and repeated slashes. `..` is resolved lexically, as docker does.
#[must_use]
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_populates_is_refused() {
        let bind = |read_only| Mounted::Bind { source: Path::new("/data"), read_only };
        for destination in [
            "/",
            "/dev",
            "/dev/",
            "/tmp/../dev",
            "//dev",
            "/dev/pts",
            "/dev/pts/0",
            "/dev/ptmx",
            "/dev/console",
            "/dev/null",
            "/dev/fd",
            "/dev/fd/3",
            "/dev/stdin",
            "/dev/gpurun-init",
            "/proc",
            "/proc/",
            "/proc/self",
            "/proc/sys",
            "/proc/sys/kernel",
            "/proc/1/environ",
            "/proc/cpuinfo/x",
            "/sys",
            "/sys/fs",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/memory",
            "/run/gpurun/jupyter",
        ] {
            for mounted in [bind(true), bind(false), Mounted::Other] {
                let error = check_destination(Path::new(destination), mounted).expect_err(destination);
                assert!(error.hint().is_some() && error.exit_code() == EXIT_USAGE, "{destination}");
            }
        }
        // A tmpfs or a volume cannot provide a single file.
        assert!(check_destination(Path::new("/proc/cpuinfo"), Mounted::Other).is_err());
        let sys = |read_only| Mounted::Bind { source: Path::new("/sys"), read_only };
        assert!(check_destination(Path::new("/sys"), sys(false)).is_err());
        assert!(check_destination(Path::new("/sys/fs/cgroup"), sys(true)).is_err());
    }

    #[test]
    fn what_docker_users_mount_there_sensibly_is_allowed() {
        let bind = |source| Mounted::Bind { source: Path::new(source), read_only: true };
        for (source, destination) in [
            ("/dev/shm", "/dev/shm"),
            ("/data", "/dev/shm"),
            ("/data", "/dev/shm/x"),
            ("/dev/mqueue", "/dev/mqueue"),
            ("/dev/log", "/dev/log"),
            ("/dev/snd", "/dev/snd"),
            ("/dev/bus/usb", "/dev/bus/usb"),
            ("/var/lib/lxcfs/proc/cpuinfo", "/proc/cpuinfo"),
            ("/sys", "/sys"),
            ("/sys/class/drm", "/sys/class/drm"),
            ("/sys/fs/bpf", "/sys/fs/bpf"),
            ("/data", "/device"),
            ("/data", "/process"),
            ("/data", "/sys2"),
            ("/data", "/home/proc"),
        ] {
            assert_eq!(check_destination(Path::new(destination), bind(source)), Ok(()), "{source}:{destination}");
        }
        assert_eq!(check_destination(Path::new("/dev/shm"), Mounted::Other), Ok(()));
    }

    #[test]
    fn device_nodes_have_their_own_places() {
        for good in ["/dev/fuse", "/dev/null", "/dev/dri/card0", "/dev/nvidia0"] {
            assert_eq!(check_node(Path::new(good)), Ok(()), "{good}");
        }
        for wrong in ["/dev", "/dev/", "/dev/pts/0", "/dev/fd/0", "/dev/ptmx", "/dev/null/x", "/dev/gpurun-init"] {
            assert!(check_node(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
