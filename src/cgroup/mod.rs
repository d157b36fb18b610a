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

mod devices;
mod files;
mod host;
mod oom;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use files::{Kind, Setting};
pub use host::{Hierarchy, Host};
pub use oom::OomWatch;

use crate::report::Explain;
use crate::spec::{DeviceRule, Limits, Swap};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup file system is mounted")]
    None,
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` holds `{text}`, which cannot be understood", path.display())]
    Unreadable { path: PathBuf, text: String },
    #[error("`{flag}` cannot be enforced: the cgroup controller `{controller}` is not available{}", at(parent))]
    NoController { flag: &'static str, controller: &'static str, parent: Option<PathBuf> },
    #[error("`{flag}` cannot be enforced: the kernel has no `{file}` for the controller `{controller}`")]
    NoFile { flag: &'static str, controller: &'static str, file: &'static str },
    #[error("`{flag}` cannot be enforced: the kernel refused `{value}` for `{}`", path.display())]
    Refused { flag: &'static str, value: String, path: PathBuf, source: io::Error },
    #[error("`{flag}` is not in force: `{}` was told `{asked}`, but says `{kernel}`", path.display())]
    Differs { flag: &'static str, asked: String, kernel: String, path: PathBuf },
    #[error("the device filter cannot be put on `{}`", path.display())]
    Devices { path: PathBuf, source: io::Error },
    #[error("processes of the cgroup `{}` do not end", path.display())]
    Stubborn { path: PathBuf },
}

fn at(parent: &Option<PathBuf>) -> String {
    parent.as_ref().map(|path| format!(" in `{}`", path.display())).unwrap_or_default()
}

impl Explain for CgroupError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None => "mount one: `mount -t cgroup2 none /sys/fs/cgroup`".into(),
            Self::NoController { controller, parent: Some(parent), .. } => {
                format!(
                    "enable it: `echo +{controller} > {}/cgroup.subtree_control`, or leave the flag out",
                    parent.display()
                )
            }
            Self::NoController { controller, parent: None, .. } => {
                format!(
                    "boot a kernel that has the controller `{controller}` enabled (see /proc/cgroups), or leave the flag out"
                )
            }
            Self::NoFile { file, .. } if file.contains("swap") || file.contains("memsw") => {
                "swap accounting is off: boot with `swapaccount=1`, or leave `--memory-swap` out".into()
            }
            Self::NoFile { .. } => "leave the flag out, or use a newer kernel".into(),
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
    /// The whole path of the file.
    pub file: PathBuf,
    pub asked: String,
    pub kernel: String,
    /// The tightest answer over the cgroup and its ancestors.
    pub effective: String,
    /// Where that is an ancestor's.
    pub binding: Option<PathBuf>,
    /// What a person should know of this row.
    pub note: Option<String>,
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// Controller to directory; under version 2 all lead to one.
    dirs: BTreeMap<&'static str, PathBuf>,
    /// Under version 2, or where version 2 is mounted beside version 1.
    v2: Option<PathBuf>,
    is_v2: bool,
}

/// The controllers that a container gets a directory of under version 1.
const V1: [&str; 8] = ["cpuset", "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"];
/// The controllers that are enabled for containers under version 2, as far as the host has them.
const V2: [&str; 5] = ["cpuset", "cpu", "memory", "pids", "io"];

impl Host {
    /// Makes the cgroup, puts the limits and the device filter in place and reads them back. `path` is absolute in the hierarchy
    /// (`/gpurun/ID`). A failure leaves nothing.
    pub fn create(
        &self,
        path: &str,
        limits: &Limits,
        devices: &[DeviceRule],
    ) -> Result<(Cgroup, Vec<Verified>), CgroupError> {
        let cgroup = self.make(path)?;
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

    fn make(&self, path: &str) -> Result<Cgroup, CgroupError> {
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
                    dirs.insert(name, dir);
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
                enable_controllers(mount, parent);
                fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
                    action: "make the cgroup",
                    path: dir.clone(),
                    source,
                })?;
                let enabled = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
                let dirs = V2
                    .into_iter()
                    .filter(|name| enabled.split_whitespace().any(|other| other == *name))
                    .map(|name| (name, dir.clone()))
                    .collect();
                Ok(Cgroup { dirs, v2: Some(dir), is_v2: true })
            }
        }
    }

    /// Takes out of the limits what is only implied and cannot be enforced here; answers with a word about each.
    pub fn soften(&self, limits: &mut Limits) -> Vec<String> {
        let mut words = Vec::new();
        if matches!(limits.swap, Some(Swap::Implicit { .. } | Swap::Unlimited)) && !self.has_swap_accounting() {
            limits.swap = None;
            words.push("the kernel does not account for swap: `--memory` limits memory alone".into());
        }
        words
    }

    fn has_swap_accounting(&self) -> bool {
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                controllers.get("memory").is_none_or(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
            }
            Hierarchy::V2 { mount } => {
                // The root has no such file; any child does. Ours is made with the memory controller before anybody asks.
                let probe = mount.join("gpurun");
                let _ = fs::create_dir_all(&probe);
                enable_controllers(mount, &probe);
                !probe.join("memory.max").exists() || probe.join("memory.swap.max").exists()
            }
        }
    }

    /// Makes the next moves of processes between cgroups fast, by one move that changes nothing (this process to where it is).
    ///
    /// The kernel's lock for such moves is a per-CPU rwsem whose first writer waits for an RCU grace period (7 to 19 ms were measured, 0.3 ms
    /// for one right behind it). Run beside other work, the wait costs nothing. Only an attempt: whatever fails, the launch is merely slower.
    pub fn prime_moves(&self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mount, key) = match &self.hierarchy {
            Hierarchy::V2 { mount } => (Some(mount), "0::"),
            Hierarchy::V1 { controllers, .. } => (controllers.get("cpu"), ":cpu:"),
        };
        let path = own.lines().find_map(|line| line.split_once(key).map(|(_, path)| path));
        if let (Some(mount), Some(path)) = (mount, path) {
            let _ = fs::write(mount.join(path.trim_start_matches('/')).join("cgroup.procs"), "0");
        }
    }

    /// Moves this process out of its login session's cgroup, so that a logout does not end it: where systemd looks, which is the named
    /// hierarchy under version 1, and the only one under version 2.
    pub fn leave_login(&self) -> Result<(), CgroupError> {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mount, prefix) = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => match controllers.get("name=systemd") {
                Some(mount) => (mount, "name=systemd:"),
                None => return Ok(()),
            },
            Hierarchy::V2 { mount } => (mount, "0::"),
        };
        let own = text.lines().find_map(|line| line.split_once(prefix).map(|(_, path)| path)).unwrap_or("/");
        // Only a session or a person's own manager ends with a logout.
        if !own.contains("session-") && !own.contains("user.slice") {
            return Ok(());
        }
        let dir = mount.join("gpurun/supervisors");
        fs::create_dir_all(&dir).map_err(|source| CgroupError::Io {
            action: "make the cgroup",
            path: dir.clone(),
            source,
        })?;
        write(&dir.join("cgroup.procs"), "0")
    }
}

/// Version 1's cpuset begins empty, and nobody can enter an empty one: copies the parents' sets down.
fn inherit_cpuset(mount: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut parent = mount.to_path_buf();
    for component in relative.components() {
        let dir = parent.join(component);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = read(&dir.join(file))?;
            if own.is_empty() {
                write(&dir.join(file), &read(&parent.join(file))?)?;
            }
        }
        parent = dir;
    }
    Ok(())
}

/// Enables what the host has for everything from the mount down to `parent`'s children. What does not work shows when a limit needs it.
fn enable_controllers(mount: &Path, parent: &Path) {
    let mut levels: Vec<&Path> = parent.ancestors().take_while(|level| level.starts_with(mount)).collect();
    levels.reverse();
    for level in levels {
        let available = fs::read_to_string(level.join("cgroup.controllers")).unwrap_or_default();
        let control = level.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).unwrap_or_default();
        let has = |list: &str, name: &str| list.split_whitespace().any(|other| other == name);
        for name in V2.into_iter().filter(|name| has(&available, name) && !has(&enabled, name)) {
            if let Err(error) = fs::write(&control, format!("+{name}")) {
                tracing::debug!("cannot enable `{name}` in {}: {error}", level.display());
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
                let mut dirs: BTreeMap<&'static str, PathBuf> = BTreeMap::new();
                for name in V1.into_iter().chain(["name=systemd"]) {
                    dirs.extend(
                        controllers.get(name).map(|mount| (name, mount.join(relative))).filter(|(_, dir)| dir.is_dir()),
                    );
                }
                let v2 = unified.as_ref().map(|mount| mount.join(relative)).filter(|dir| dir.is_dir());
                Self { dirs, v2, is_v2: false }
            }
            Hierarchy::V2 { mount } => {
                let dir = mount.join(relative);
                let dirs = if dir.is_dir() {
                    V2.into_iter().map(|name| (name, dir.clone())).collect()
                } else {
                    BTreeMap::new()
                };
                Self { v2: dir.is_dir().then_some(dir), dirs, is_v2: true }
            }
        };
        Ok((!cgroup.dirs.is_empty() || cgroup.v2.is_some()).then_some(cgroup))
    }

    fn settings(&self, limits: &Limits) -> Vec<Setting> {
        if self.is_v2 { files::v2(limits) } else { files::v1(limits) }
    }

    fn path_of(&self, setting: &Setting) -> Result<PathBuf, CgroupError> {
        let dir = self.dirs.get(setting.controller).ok_or_else(|| CgroupError::NoController {
            flag: setting.flag,
            controller: setting.controller,
            parent: self.v2.as_ref().filter(|_| self.is_v2).and_then(|dir| dir.parent()).map(Path::to_path_buf),
        })?;
        let path = dir.join(setting.file);
        if path.exists() {
            return Ok(path);
        }
        Err(CgroupError::NoFile { flag: setting.flag, controller: setting.controller, file: setting.file })
    }

    fn write(&self, limits: &Limits) -> Result<(), CgroupError> {
        for setting in self.settings(limits) {
            let path = match self.path_of(&setting) {
                Err(_) if setting.optional => continue,
                other => other?,
            };
            if let Err(source) = fs::write(&path, &setting.value) {
                return Err(CgroupError::Refused { flag: setting.flag, value: setting.value, path, source });
            }
        }
        Ok(())
    }

    fn filter_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if self.is_v2 {
            let Some(path) = self.v2.clone() else { return Ok(()) };
            let attach = || {
                let program = crate::sys::bpf::load_device_program(&devices::program(rules))?;
                crate::sys::bpf::attach_device_program(fs::File::open(&path)?, program)
            };
            return attach().map_err(|source| CgroupError::Devices { path, source });
        }
        let Some(dir) = self.dirs.get("devices") else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(CgroupError::Devices { path: "devices".into(), source });
        };
        for rule in rules {
            let path = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
            fs::write(&path, devices::v1_line(rule)).map_err(|source| CgroupError::Devices { path, source })?;
        }
        Ok(())
    }

    /// Reads every limit back and compares; the rows of the table, or the first difference that matters.
    pub fn verify(&self, limits: &Limits) -> Result<Vec<Verified>, CgroupError> {
        let page = page_size();
        let mut rows = Vec::new();
        for setting in self.settings(limits) {
            let path = match self.path_of(&setting) {
                Err(_) if setting.optional => continue,
                other => other?,
            };
            let kernel = read(&path)?;
            if !files::agrees(setting.kind, &setting.value, &kernel, page) {
                return Err(CgroupError::Differs { flag: setting.flag, asked: setting.value, kernel, path });
            }
            if setting.kind == Kind::Set {
                self.verify_effective_set(&setting, &path)?;
            }
            let (effective, binding) = effective(&setting, &path, &kernel);
            let note = binding.as_ref().map(|path| format!("an ancestor is tighter: {}", path.display()));
            rows.push(Verified {
                flag: setting.flag,
                file: path,
                asked: setting.value,
                kernel,
                effective,
                binding,
                note,
            });
        }
        Ok(rows)
    }

    /// A set may be accepted and still not hold, where an ancestor has fewer CPUs.
    fn verify_effective_set(&self, setting: &Setting, path: &Path) -> Result<(), CgroupError> {
        let name = if self.is_v2 {
            format!("{}.effective", setting.file)
        } else {
            setting.file.replace("cpuset.", "cpuset.effective_")
        };
        let path = path.with_file_name(name);
        let kernel = match read(&path) {
            Ok(kernel) => kernel,
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if files::agrees(Kind::Set, &setting.value, &kernel, 1) {
            return Ok(());
        }
        Err(CgroupError::Differs { flag: setting.flag, asked: setting.value.clone(), kernel, path })
    }

    /// The `cgroup.procs` files by which a process enters.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The directory of one controller.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.get(controller).map(PathBuf::as_path)
    }

    /// Kills every process in it, and waits until they are gone.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        if let Some(kill) = self.v2.as_ref().map(|dir| dir.join("cgroup.kill")).filter(|_| self.is_v2) {
            // Kernels before 5.14 have no such file: the loop below serves them.
            let _ = fs::write(kill, "1");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            // Frozen, nobody forks away from under the list.
            let frozen = self.dirs.get("freezer").filter(|_| !self.is_v2).map(|dir| dir.join("freezer.state"));
            if let Some(state) = &frozen {
                let _ = fs::write(state, "FROZEN");
            }
            for pid in self.pids()? {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            if let Some(state) = &frozen {
                let _ = fs::write(state, "THAWED");
            }
            if Instant::now() > deadline {
                let path = self.dirs.values().next().or(self.v2.as_ref()).cloned().unwrap_or_default();
                return Err(CgroupError::Stubborn { path });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Pids of all processes in it, those in cgroups below included.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        let mut todo: Vec<PathBuf> = self.dirs.values().chain(&self.v2).cloned().collect();
        todo.sort();
        todo.dedup();
        while let Some(dir) = todo.pop() {
            match fs::read_to_string(dir.join("cgroup.procs")) {
                // Zombies of another pid namespace show as 0.
                Ok(text) => {
                    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
                    continue;
                }
                Err(source) => return Err(CgroupError::Io { action: "read", path: dir.join("cgroup.procs"), source }),
            }
            todo.extend(children(&dir));
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes the directories, those below first. The kernel needs a moment after the last process: that is waited for.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut dirs: Vec<&PathBuf> = self.dirs.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs.into_iter().try_for_each(|dir| remove_dir(dir))
    }

    /// Watches for OOM kills, where the memory controller is there.
    #[must_use]
    pub fn oom_watch(&self) -> Option<OomWatch> {
        let memory = self.dirs.get("memory")?;
        let watch = if self.is_v2 { OomWatch::v2(memory) } else { OomWatch::v1(memory) };
        watch.inspect_err(|error| tracing::warn!("cannot watch for OOM kills in {}: {error}", memory.display())).ok()
    }

    /// How many processes the kernel has killed here for memory.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.dirs.get("memory")?;
        oom::keyed(&memory.join(if self.is_v2 { "memory.events" } else { "memory.oom_control" }), "oom_kill")
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

/// The tightest of the cgroup's own value and its ancestors'.
fn effective(setting: &Setting, path: &Path, own: &str) -> (String, Option<PathBuf>) {
    let (mut best, mut binding) = (own.to_owned(), None);
    let mut dir = path.parent().and_then(Path::parent);
    while let Some(ancestor) = dir {
        let file = ancestor.join(setting.file);
        // The root of a hierarchy has no limits.
        let Ok(value) = read(&file) else { break };
        if files::tighter(setting.kind, &best, &value) {
            (best, binding) = (value, Some(file));
        }
        dir = ancestor.parent();
    }
    (best, binding)
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

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}

#[cfg(test)]
mod tests;
