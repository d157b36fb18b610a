//! Control groups, written and read by ourselves: limits in, the kernel's answers out.
//!
//! ```text
//! v2             /sys/fs/cgroup/gpurun/ID/{memory.max,cpu.max,…}      one directory
//! v1, hybrid     /sys/fs/cgroup/<controller>/gpurun/ID/{…}            one directory a controller
//! ```
//!
//! Every path is absolute and explicit. A limit is written in the order the kernel wants, then read back and compared: what cannot be
//! enforced is an error that names controller and file ([`CgroupError::Differs`] and its neighbours), never a silent loss. The device filter
//! stands before any process enters. The parent `/gpurun` stays; a container's directory is removed by its supervisor, or by
//! `launch::reconcile` when the supervisor is dead.

mod apply;
mod delegation;
mod devices;
mod files;
mod host;
mod moves;
mod oom;
mod post_mortem;
mod processes;
mod stats;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use delegation::Missing;
pub use files::{OnlyOn, Setting, Version, settings};
pub use host::{Hierarchy, Host};
pub use oom::{Ceiling, OomWatch};
pub use post_mortem::{OomKill, oom_kills_of};
pub use processes::Freeze;
pub use stats::{Events, Pressure, Stats};

use delegation::{enable_controllers, enabled, inherit_cpuset};
use oom::keyed;

use crate::report::Explain;
use crate::spec::{DeviceRule, Limits};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup file system is mounted")]
    None,
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` holds `{text}`, which cannot be understood", path.display())]
    Unreadable { path: PathBuf, text: String },
    #[error("`{flag}` cannot be enforced: the cgroup controller `{controller}` is not available{}", why.place())]
    NoController { flag: &'static str, controller: String, why: Missing },
    #[error("`{flag}` cannot be enforced: the kernel has no `{file}` for the controller `{controller}`")]
    NoFile { flag: &'static str, controller: String, file: String },
    #[error("`{flag}` cannot be enforced: the kernel refused `{value}` for `{}`", path.display())]
    Refused {
        flag: &'static str,
        value: String,
        path: PathBuf,
        /// The file above that allows less, and what it holds: version 1 refuses where version 2 gives what there is.
        above: Option<(PathBuf, String)>,
        source: io::Error,
    },
    #[error("`{flag}` is not in force: `{}` was told `{asked}`, but says `{kernel}`", path.display())]
    Differs { flag: &'static str, asked: String, kernel: String, path: PathBuf },
    #[error("`{flag}` needs cgroup {version}: this host has {host}")]
    OnlyOn { flag: &'static str, version: &'static str, host: &'static str },
    #[error("`--memory {asked}` is less than what the container holds now ({used} bytes)")]
    InUse { asked: u64, used: u64 },
    #[error("the cgroup `{}` does not {verb}", path.display())]
    Freezer { verb: &'static str, path: PathBuf },
    #[error("the device filter cannot be put on `{}`", path.display())]
    Devices { path: PathBuf, source: io::Error },
    #[error("processes of the cgroup `{}` do not end", path.display())]
    Stubborn { path: PathBuf },
}

impl Explain for CgroupError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None => "mount one: `mount -t cgroup2 none /sys/fs/cgroup`".into(),
            Self::NoController { controller, why, .. } => why.hint(controller),
            Self::Io { action: "make the cgroup", source, .. }
                if [Some(libc::EROFS), Some(libc::EACCES), Some(libc::EPERM)].contains(&source.raw_os_error()) =>
            {
                "gpurun makes cgroups: run it as root, and in a container only where /sys/fs/cgroup can be written"
                    .into()
            }
            Self::NoFile { file, .. } if file.contains("swap") || file.contains("memsw") => {
                "swap accounting is off: boot with `swapaccount=1`, or leave `--memory-swap` out".into()
            }
            Self::NoFile { flag: "--cgroup-conf", .. } => {
                "`ls` in a container's cgroup shows the files that there are".into()
            }
            Self::NoFile { .. } => "leave the flag out, or use a newer kernel".into(),
            Self::OnlyOn { .. } => "leave the flag out; `gpurun explain` shows what this host can enforce".into(),
            Self::InUse { used, .. } => {
                format!("give it at least `--memory {}m`, or end some of its processes first", used.div_ceil(1 << 20))
            }
            Self::Refused { flag, source, .. }
                if flag.starts_with("--device-") && source.raw_os_error() == Some(libc::ENODEV) =>
            {
                "a throttle needs the whole disk, not a partition: `lsblk` shows which it is".into()
            }
            Self::Refused { flag: "--memory", source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                "the container holds more than that now: choose more, or end some of its processes first".into()
            }
            Self::Refused { above: Some((file, holds)), .. } => {
                format!(
                    "`{}` above it holds `{holds}`: ask for less, or choose another `--cgroup-parent`",
                    file.display()
                )
            }
            Self::Refused { flag: "--oom-kill-disable", .. } => "leave the flag out".into(),
            Self::Differs { path, .. } => format!(
                "something else has written it (`--cgroup-conf {}=…`, a program of the host): leave that out, or give the flag again with `gpurun update`",
                path.file_name().unwrap_or_default().display()
            ),
            Self::Devices { .. } => {
                "the kernel needs CONFIG_CGROUP_BPF (version 2) or CONFIG_CGROUP_DEVICE (version 1)".into()
            }
            _ => return None,
        })
    }
}

/// What the kernel says of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub flag: &'static str,
    /// Its place in the OCI specification, below `linux.resources`.
    pub oci: &'static str,
    /// The whole path of the file.
    pub file: PathBuf,
    pub asked: String,
    pub kernel: String,
    /// The tightest answer over the cgroup and its ancestors.
    pub effective: String,
    /// Where that is an ancestor's.
    pub binding: Option<PathBuf>,
    /// Whether it is what was asked for.
    pub holds: bool,
    /// What a person should know of this row.
    pub note: Option<String>,
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Controller to directory; under version 2 all lead to one.
    dirs: BTreeMap<String, PathBuf>,
    /// Under version 2, or where version 2 is mounted beside version 1.
    v2: Option<PathBuf>,
    is_v2: bool,
}

/// The controllers that a container gets a directory of under version 1.
const V1: [&str; 8] = ["cpuset", "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"];
/// The controllers that are enabled for containers under version 2, as far as the host has them.
/// `memory` and `io` first, which a cgroup with processes of its own refuses to hand down: see `delegation`.
const V2: [&str; 5] = ["memory", "io", "cpuset", "cpu", "pids"];

impl Host {
    /// Makes the cgroup, puts the limits and the device filter in place and reads them back. `path` is absolute in the hierarchy
    /// (`/gpurun/ID`). A failure leaves nothing.
    pub fn create(
        &self,
        path: &str,
        limits: &Limits,
        devices: &[DeviceRule],
    ) -> Result<(Cgroup, Vec<Verified>), CgroupError> {
        let cgroup = self.make(path, limits)?;
        let done =
            cgroup.write(limits).and_then(|()| cgroup.filter_devices(devices)).and_then(|()| cgroup.verify(limits));
        match done {
            Ok(verified) => Ok((cgroup, verified)),
            Err(error) => {
                // The first error leads; an empty cgroup that cannot be removed is found by reconcile.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Makes the cgroup with the controllers that the limits need, still without any limit. No error where it is there already.
    pub fn make(&self, path: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let relative = Path::new(path.trim_start_matches('/'));
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                let mut dirs = BTreeMap::new();
                for name in V1 {
                    let Some(mount) = controllers.get(name) else { continue };
                    let dir = mount.join(relative);
                    // cpu and cpuacct may share a mount
                    fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
                        action: "make the cgroup",
                        path: dir.clone(),
                        source,
                    })?;
                    if name == "cpuset" {
                        inherit_cpuset(mount, relative)?;
                    }
                    dirs.insert(name.to_owned(), dir);
                }
                Ok(Cgroup { dirs, v2: None, is_v2: false })
            }
            Hierarchy::V2 { mount } => {
                let dir = mount.join(relative);
                let parent = dir.parent().unwrap_or(mount);
                fs::create_dir_all(parent).map_err(|source| CgroupError::Io {
                    action: "make the cgroup",
                    path: parent.to_path_buf(),
                    source,
                })?;
                let names = delegation::wanted(limits);
                enable_controllers(mount, parent, &names);
                fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
                    action: "make the cgroup",
                    path: dir.clone(),
                    source,
                })?;
                let dirs = enabled(&dir).into_iter().map(|name| (name, dir.clone())).collect();
                Ok(Cgroup { dirs, v2: Some(dir), is_v2: true })
            }
        }
    }
}

impl Cgroup {
    /// Opens a container's cgroup if any part of it is there.
    pub fn open(host: &Host, path: &str) -> Result<Option<Self>, CgroupError> {
        let relative = path.trim_start_matches('/');
        let cgroup = match &host.hierarchy {
            Hierarchy::V1 { controllers, unified } => {
                let mut dirs: BTreeMap<String, PathBuf> = BTreeMap::new();
                for name in V1.into_iter().chain(host::V1_UNUSED).chain(["name=systemd"]) {
                    dirs.extend(
                        controllers
                            .get(name)
                            .map(|mount| (name.to_owned(), mount.join(relative)))
                            .filter(|(_, dir)| dir.is_dir()),
                    );
                }
                let v2 = unified.as_ref().map(|mount| mount.join(relative)).filter(|dir| dir.is_dir());
                Self { dirs, v2, is_v2: false }
            }
            Hierarchy::V2 { mount } => {
                let dir = mount.join(relative);
                let dirs = if dir.is_dir() {
                    enabled(&dir).into_iter().map(|name| (name, dir.clone())).collect()
                } else {
                    BTreeMap::new()
                };
                Self { v2: dir.is_dir().then_some(dir), dirs, is_v2: true }
            }
        };
        Ok((!cgroup.dirs.is_empty() || cgroup.v2.is_some()).then_some(cgroup))
    }

    /// The `cgroup.procs` files by which a process enters.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Each hierarchy's mount with the container's directory in it; `path` is the container's path in all of them.
    #[must_use]
    pub fn mounts_and_dirs(&self, path: &str) -> Vec<(PathBuf, PathBuf)> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        let depth = path.trim_matches('/').split('/').count();
        dirs.into_iter().filter_map(|dir| Some((dir.ancestors().nth(depth)?.to_path_buf(), dir.clone()))).collect()
    }

    /// The directory of one controller.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.get(controller).map(PathBuf::as_path)
    }

    /// Removes the directories, those below first. The kernel needs a moment after the last process: that is waited for.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().try_for_each(|dir| remove_dir(dir))
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) if source.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline => {
                return Err(CgroupError::Io { action: "remove the cgroup", path: dir.to_path_buf(), source });
            }
            Err(_) => {
                children(dir).iter().try_for_each(|child| remove_dir(child))?;
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
        }
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(CgroupError::Io { action: "read", path: path.to_path_buf(), source }),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Io { action: "write", path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests;
