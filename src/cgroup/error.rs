//! Errors of cgroups.

use std::io;
use std::path::PathBuf;

use crate::report::Explain;

/// The reason why a cgroup lacks a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The kernel does not have the controller, or version 1 uses it.
    Kernel,
    /// The root of the visible hierarchy is itself a delegated cgroup, and its owner has not enabled the controller for
    /// it.
    Delegation { root: PathBuf },
    /// This cgroup could enable the controller for its children if it contained no processes.
    Busy { at: PathBuf },
    /// The kernel refuses to enable the controller in this cgroup.
    Refused { at: PathBuf, errno: i32 },
}

impl Missing {
    /// Describes the location in the hierarchy, for a message.
    pub(crate) fn location(&self) -> String {
        match self {
            Self::Kernel => String::new(),
            Self::Delegation { root: at } => format!(" in `{}`", at.display()),
            Self::Busy { at } => format!(" below `{}`, which contains processes", at.display()),
            Self::Refused { at, errno } => {
                format!(" below `{}`: {}", at.display(), io::Error::from_raw_os_error(*errno))
            }
        }
    }

    pub(crate) fn hint(&self, controller: &str) -> String {
        match self {
            Self::Kernel => format!(
                "boot a kernel that has the controller `{controller}` enabled (see /proc/cgroups), or omit the flag"
            ),
            Self::Delegation { root } => format!(
                "delegate the controller to `{}` (systemd: `Delegate=yes` in the unit), or omit the flag",
                root.display()
            ),
            // When pasted, the command moves the processes one level down. The list contains the `cat` itself, which
            // has exited by then; the resulting error is discarded. gpurun then enables the controller.
            Self::Busy { at } => {
                let at = at.display();
                format!(
                    "move them one level down: `mkdir {at}/own; for p in $(cat {at}/cgroup.procs); do echo $p >{at}/own/cgroup.procs; done 2>/dev/null`"
                )
            }
            Self::Refused { at, .. } => {
                format!(
                    "run `echo +{controller} >{}/cgroup.subtree_control` to see why the kernel refuses the \
                         controller",
                    at.display()
                )
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup file system is mounted")]
    None,
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot parse `{text}` in `{}`", path.display())]
    Unreadable { path: PathBuf, text: String },
    #[error("cannot enforce `{flag}`: the cgroup controller `{controller}` is not available{}", why.location())]
    NoController { flag: &'static str, controller: String, why: Missing },
    #[error("cannot enforce `{flag}`: the kernel has no `{file}` for the controller `{controller}`")]
    NoFile { flag: &'static str, controller: String, file: String },
    #[error("cannot enforce `{flag}`: the kernel refused `{value}` for `{}`", path.display())]
    Refused {
        flag: &'static str,
        value: String,
        path: PathBuf,
        /// The ancestor's file with a stricter value, and that value. Version 1 refuses to exceed it. Version 2 accepts
        /// the write and grants the available amount.
        above: Option<(PathBuf, String)>,
        source: io::Error,
    },
    #[error("cannot enforce `{flag}`: `{asked}` was written to `{}`, but the kernel reports `{kernel}`", path.display())]
    Differs { flag: &'static str, asked: String, kernel: String, path: PathBuf },
    #[error("cannot enforce `{flag}`: it needs cgroup {version}, and this host has {host}")]
    OnlyOn { flag: &'static str, version: &'static str, host: &'static str },
    #[error("cannot set `--memory {asked}`: the container uses {used} bytes now")]
    InUse { asked: u64, used: u64 },
    #[error("cannot {verb} the cgroup `{}`: its state does not change", path.display())]
    Freezer { verb: &'static str, path: PathBuf },
    #[error("cannot allow the device `{device}`: the {step} does not have it")]
    NotInStep { device: String, step: String, path: PathBuf },
    #[error("cannot attach the device filter to `{}`", path.display())]
    Devices { path: PathBuf, source: io::Error },
    #[error("cannot kill all processes of the cgroup `{}`: some are still running", path.display())]
    ProcessesRemain { path: PathBuf },
}

impl Explain for CgroupError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None => "mount one with `mount -t cgroup2 none /sys/fs/cgroup`".into(),
            Self::NoController { controller, why, .. } => why.hint(controller),
            Self::Io { action: "create the cgroup", source, .. }
                if [Some(libc::EROFS), Some(libc::EACCES), Some(libc::EPERM)].contains(&source.raw_os_error()) =>
            {
                "run gpurun as root; in a container, mount /sys/fs/cgroup writable".into()
            }
            Self::NoFile { file, .. } if file.contains("swap") || file.contains("memsw") => {
                "boot with `swapaccount=1` to enable swap accounting, or omit `--memory-swap`".into()
            }
            Self::NoFile { flag: "--cgroup-conf", .. } => {
                "list the available files with `ls` in a container's cgroup".into()
            }
            Self::NoFile { flag: "--blkio-weight-device", .. } => {
                "load the scheduler bfq with `modprobe bfq`, or omit the flag".into()
            }
            Self::NoFile { .. } => "omit the flag, or use a newer kernel".into(),
            Self::OnlyOn { .. } => "omit the flag; `gpurun explain` shows the limits that this host can enforce".into(),
            Self::InUse { used, .. } => {
                format!("set at least `--memory {}m`, or end some of its processes first", used.div_ceil(1 << 20))
            }
            Self::Refused { flag, source, .. }
                if flag.starts_with("--device-") && source.raw_os_error() == Some(libc::ENODEV) =>
            {
                "name the whole disk, not a partition; `lsblk` lists the disks".into()
            }
            Self::Refused { flag: "--blkio-weight-device", .. } => {
                "set the disk's scheduler to bfq: `echo bfq > /sys/block/DISK/queue/scheduler`".into()
            }
            Self::Refused { flag: "--memory", source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                "set a larger limit, or end some of the container's processes first".into()
            }
            Self::Refused { above: Some((file, holds)), .. } => {
                format!(
                    "request less than `{holds}`, the limit of the ancestor `{}`, or choose another \
                     `--cgroup-parent`",
                    file.display()
                )
            }
            Self::Refused { flag: "--oom-kill-disable", .. } => "omit the flag".into(),
            Self::Differs { path, .. } => format!(
                "omit `--cgroup-conf {}=…` if you use it; if another program of the host has changed the file, set \
                 the limit again with `gpurun update`",
                path.file_name().unwrap_or_default().display()
            ),
            Self::NotInStep { .. } => "request the device from Slurm (`srun --gres=…`), or omit `--device`".into(),
            Self::Devices { .. } => {
                "use a kernel with CONFIG_CGROUP_BPF (version 2) or CONFIG_CGROUP_DEVICE (version 1)".into()
            }
            _ => return None,
        })
    }
}
