//! Writes limits to cgroup files and reads them back, both at creation and for a running container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::access::read;
use super::delegation;
use super::error::Missing;
use super::files::{self, Kind, Setting, Version};
use super::{Cgroup, CgroupError, Host};
use crate::spec::Limits;
use crate::units::CpuSet;

/// One limit as read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub flag: &'static str,
    /// The key in the OCI spec, below `linux.resources`.
    pub oci: &'static str,
    /// The absolute path of the file.
    pub file: PathBuf,
    pub asked: String,
    pub kernel: String,
    /// The tightest value of the cgroup and its ancestors.
    pub effective: String,
    /// The ancestor's file, if an ancestor has the tightest value.
    pub binding: Option<PathBuf>,
    /// Whether the value is the requested one.
    pub holds: bool,
    /// A remark for the user about this row.
    pub note: Option<String>,
}

impl Host {
    /// Refuses limits that this host's cgroup version does not support.
    pub fn check(&self, limits: &Limits) -> Result<(), CgroupError> {
        settings(limits, self.limits_version()).map(drop)
    }
}

fn settings(limits: &Limits, version: Version) -> Result<Vec<Setting>, CgroupError> {
    let host = if version == Version::V2 { "v2" } else { "the controllers of v1" };
    files::settings(limits, version).map_err(|files::OnlyOn { flag, version }| CgroupError::OnlyOn {
        flag,
        version,
        host,
    })
}

impl Cgroup {
    /// Returns the file of a setting. If the kernel has only the alternative file, changes the setting to that file.
    fn path_of(&self, setting: &mut Setting) -> Result<PathBuf, CgroupError> {
        let controller = setting.controller.as_ref();
        let dir = if controller.is_empty() { self.v2.as_ref() } else { self.dirs.get(controller) };
        let dir = dir.ok_or_else(|| CgroupError::NoController {
            flag: setting.flag,
            controller: setting.controller.to_string(),
            why: self.why_missing(controller),
        })?;
        let path = dir.join(&*setting.file);
        if path.exists() {
            return Ok(path);
        }
        if let Some((file, value)) = setting.instead.take() {
            (setting.file, setting.value) = (file.into(), value);
            return self.path_of(setting);
        }
        Err(CgroupError::NoFile {
            flag: setting.flag,
            controller: setting.controller.to_string(),
            file: setting.file.to_string(),
        })
    }

    fn why_missing(&self, controller: &str) -> Missing {
        match self.v2.as_ref().filter(|_| self.is_v2).and_then(|dir| Some((dir, dir.parent()?))) {
            Some((dir, parent)) => delegation::why_missing(delegation::mount_of(dir), parent, controller),
            None => Missing::Kernel,
        }
    }

    /// Returns the settings for these limits with their files. Optional settings whose file does not exist are left
    /// out.
    fn located(&self, limits: &Limits) -> Result<Vec<(Setting, PathBuf)>, CgroupError> {
        let mut located = Vec::new();
        let version = if self.is_v2 { Version::V2 } else { Version::V1 };
        for mut setting in settings(limits, version)? {
            match self.path_of(&mut setting) {
                Err(_) if setting.optional => {}
                path => {
                    let path = path?;
                    located.push((setting, path));
                }
            }
        }
        Ok(located)
    }

    /// Writes limits to a new cgroup.
    pub(super) fn write(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.located(limits)?.iter().try_for_each(|(setting, path)| put(setting, path))
    }

    /// Changes the limits of a running container, all or nothing: if the kernel refuses a value, every file is
    /// restored.
    ///
    /// `held` contains the limits currently in effect, and `limits` contains the complete new set. A limit that is only
    /// in `held` is lifted. Returns the table as read back.
    pub fn update(&mut self, held: &Limits, limits: &Limits) -> Result<Vec<Verified>, CgroupError> {
        if let Some((dir, parent)) = self.v2.as_ref().filter(|_| self.is_v2).and_then(|dir| Some((dir, dir.parent()?)))
        {
            // A newly named file may need a controller that was not enabled before.
            delegation::enable_controllers(delegation::mount_of(dir), parent, &delegation::wanted(limits));
            self.dirs.extend(delegation::enabled(dir).into_iter().map(|name| (name, dir.clone())));
        }
        let page = page_size();
        let mut changes = Vec::new();
        let mut wanted = self.located(limits)?;
        for (mut setting, path) in self.located(held)? {
            let device = |setting: &Setting| setting.value.split(' ').next().map(str::to_owned);
            let stays = |(other, file): &(Setting, PathBuf)| {
                *file == path
                    && other.kind == setting.kind
                    && (setting.kind != Kind::Device || device(other) == device(&setting))
            };
            if !wanted.iter().any(stays) && setting.kind != Kind::Any {
                setting.value = raised(&setting, &path, self.is_v2)?;
                wanted.push((setting, path));
            }
        }
        for (setting, path) in wanted {
            let before = read(&path)?;
            if !files::agrees(setting.kind, &setting.value, &before, page) {
                changes.push((setting, path, before));
            }
        }
        self.order(&mut changes);
        self.reclaim(limits, &changes)?;
        let mut done: Vec<&(Setting, PathBuf, String)> = Vec::new();
        let applied = changes
            .iter()
            .try_for_each(|change| {
                put(&change.0, &change.1)?;
                done.push(change);
                Ok(())
            })
            .and_then(|()| self.verify(limits));
        if applied.is_err() {
            for (setting, path, before) in done.into_iter().rev() {
                let value = restore(setting, before, self.is_v2);
                if let Err(error) = fs::write(path, &value) {
                    tracing::error!("cannot restore `{value}` in {}: {error}", path.display());
                }
            }
        }
        applied
    }

    /// Under version 1, the memory limit may never exceed the total of memory and swap. To raise both, write the total
    /// first.
    fn order(&self, changes: &mut [(Setting, PathBuf, String)]) {
        let at = |file: &str| changes.iter().position(|(setting, ..)| setting.file == file);
        let (Some(memory), Some(total)) = (at("memory.limit_in_bytes"), at("memory.memsw.limit_in_bytes")) else {
            return;
        };
        if !files::tighter(Kind::Bytes, &changes[memory].2, &changes[memory].0.value) && memory < total {
            changes.swap(memory, total);
        }
    }

    /// Version 2 kills processes if a new limit is below the current usage. This function asks the kernel to reclaim
    /// memory first and refuses the change if that is not sufficient.
    fn reclaim(&self, limits: &Limits, changes: &[(Setting, PathBuf, String)]) -> Result<(), CgroupError> {
        let (Some(asked), Some(dir)) = (limits.memory, self.dirs.get("memory").filter(|_| self.is_v2)) else {
            return Ok(());
        };
        if !changes.iter().any(|(setting, ..)| setting.file == "memory.max") {
            return Ok(());
        }
        let used = || read(&dir.join("memory.current")).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let over = used().saturating_sub(asked);
        if over > 0 {
            // Available since kernel 5.19. The write fails with EAGAIN if the kernel reclaimed less than requested.
            let _ = fs::write(dir.join("memory.reclaim"), over.to_string());
        }
        match used() {
            used if used > asked => Err(CgroupError::InUse { asked, used }),
            _ => Ok(()),
        }
    }

    /// Reads every limit back and compares it. Returns the rows of the table, or the first difference that matters.
    pub fn verify(&self, limits: &Limits) -> Result<Vec<Verified>, CgroupError> {
        self.rows(limits, true)
    }

    /// Does the same for a container that has been running for a while. A limit that was changed from outside is
    /// returned as a row, not as an error.
    pub fn look(&self, limits: &Limits) -> Result<Vec<Verified>, CgroupError> {
        self.rows(limits, false)
    }

    fn rows(&self, limits: &Limits, must_hold: bool) -> Result<Vec<Verified>, CgroupError> {
        let page = page_size();
        let mut rows = Vec::new();
        for (setting, path) in self.located(limits)? {
            let kernel = read(&path)?;
            let holds = files::agrees(setting.kind, &setting.value, &kernel, page);
            if must_hold && !holds {
                return Err(CgroupError::Differs { flag: setting.flag, asked: setting.value, kernel, path });
            }
            if must_hold && setting.kind == Kind::Set {
                self.verify_effective_set(&setting, &path)?;
            }
            let (effective, binding) = effective(&setting, &path, &kernel);
            let note = binding.as_ref().map(|path| format!("an ancestor is tighter: {} = {effective}", path.display()));
            rows.push(Verified {
                flag: setting.flag,
                oci: setting.oci,
                file: path,
                asked: setting.value,
                kernel,
                effective,
                binding,
                holds,
                note,
            });
        }
        Ok(rows)
    }

    /// Checks the effective set. The kernel may accept a set that does not take effect because an ancestor has fewer
    /// CPUs.
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
}

fn put(setting: &Setting, path: &Path) -> Result<(), CgroupError> {
    fs::write(path, &setting.value).map_err(|source| CgroupError::Refused {
        flag: setting.flag,
        value: setting.value.clone(),
        path: path.to_path_buf(),
        above: above(setting, path),
        source,
    })
}

/// Returns the file of an ancestor that is stricter than the value to be written, with its value. Under version 1, the
/// ratio of quota to period must not exceed that of any ancestor (sched-bwc.rst), and a set must be a subset of the
/// parent's (cpusets.rst).
fn above(setting: &Setting, path: &Path) -> Option<(PathBuf, String)> {
    let mut ancestors = path.parent()?.ancestors().skip(1).map(|dir| dir.join(&*setting.file));
    match &*setting.file {
        "cpuset.cpus" | "cpuset.mems" => {
            let file = ancestors.next()?;
            let (holds, wanted) = (read(&file).ok()?, setting.value.parse::<CpuSet>().ok()?);
            (!wanted.0.is_subset(&holds.parse::<CpuSet>().ok()?.0)).then_some((file, holds))
        }
        "cpu.cfs_quota_us" => {
            let period = |file: &Path| read(&file.with_file_name("cpu.cfs_period_us")).ok()?.parse::<u128>().ok();
            let (quota, own_period) = (setting.value.parse::<u128>().ok()?, period(path)?);
            ancestors.map_while(|file| Some((read(&file).ok()?, file))).find_map(|(holds, file)| {
                let (most, its_period) = (holds.parse::<u128>().ok()?, period(&file)?);
                (quota * its_period > most * own_period).then(|| (file, format!("{holds} of {its_period}")))
            })
        }
        _ => None,
    }
}

/// Returns the value that removes the limit of a file. For a device, the line contains only the key of this setting.
fn raised(setting: &Setting, path: &Path, is_v2: bool) -> Result<String, CgroupError> {
    Ok(match setting.kind {
        Kind::Bytes if is_v2 => "max".into(),
        Kind::Bytes => "-1".into(),
        Kind::Protection => "0".into(),
        Kind::Number if setting.file == "pids.max" => "max".into(),
        Kind::Number if setting.file == "cpu.cfs_quota_us" => "-1".into(),
        Kind::Number | Kind::Any => setting.value.clone(),
        Kind::Quota => "max 100000".into(),
        Kind::Weight => match &*setting.file {
            "cpu.shares" => "1024".into(),
            "memory.swappiness" => "60".into(),
            "blkio.weight" => "500".into(),
            _ => "100".into(),
        },
        Kind::Switch(_) => "0".into(),
        Kind::Device => {
            let (device, key) = setting.value.split_once(' ').unwrap_or_default();
            match key.split_once('=') {
                Some((key, _)) => format!("{device} {key}=max"),
                None if is_weight(setting) => format!("{device} default"),
                None => format!("{device} 0"),
            }
        }
        Kind::Set => {
            // Restores the full set of the parent.
            let name = if is_v2 { format!("{}.effective", setting.file) } else { setting.file.to_string() };
            let parent = path.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
            read(&parent.join(name))?
        }
    })
}

/// Whether the setting is the weight of a device.
fn is_weight(setting: &Setting) -> bool {
    setting.file.contains("bfq.weight")
}

/// Returns the value to write so that the file reads as `before` again.
fn restore(setting: &Setting, before: &str, is_v2: bool) -> String {
    match setting.kind {
        Kind::Device => {
            let device = setting.value.split(' ').next().unwrap_or_default();
            let was = before.lines().find(|line| line.split(' ').next() == Some(device));
            match (was, is_v2) {
                (Some(line), _) => line.to_owned(),
                (None, _) if is_weight(setting) => format!("{device} default"),
                (None, true) => format!("{device} rbps=max wbps=max riops=max wiops=max"),
                (None, false) => format!("{device} 0"),
            }
        }
        Kind::Switch(key) => before
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map_or_else(|| "0".to_owned(), |value| value.trim().to_owned()),
        Kind::Weight => before.lines().next().unwrap_or(before).trim_start_matches("default ").to_owned(),
        _ => before.to_owned(),
    }
}

/// Returns the tightest value of the cgroup and its ancestors, and the ancestor's file if the value is an ancestor's.
fn effective(setting: &Setting, path: &Path, own: &str) -> (String, Option<PathBuf>) {
    let (mut best, mut binding) = (own.to_owned(), None);
    // In version 1, the quota and the period have a meaning only together. An ancestor's ratio is never smaller because
    // the kernel refuses that.
    if setting.file.starts_with("cpu.cfs_") {
        return (best, binding);
    }
    let mut dir = path.parent().and_then(Path::parent);
    while let Some(ancestor) = dir {
        let file = ancestor.join(&*setting.file);
        // The root of a hierarchy has no limits.
        let Ok(value) = read(&file) else { break };
        if files::tighter(setting.kind, &best, &value) {
            (best, binding) = (value, Some(file));
        }
        dir = ancestor.parent();
    }
    (best, binding)
}

pub(super) fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}
