//! `--ipc`: the IPC namespace of a container, and its /dev/shm.
//!
//! A container that joins another one gets that one's namespace by descriptor, and a bind mount of its /dev/shm. The
//! kernel copies a mount only for a process in the same mount namespace, so this process enters the other container's
//! mount namespace for a moment. The bind mount is then attached in this process's own mount namespace, and disappears
//! with it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::context::Launch;
use super::progress::{Progress, Tell};
use super::shared::open_path;
use crate::record::{Entry, short};
use crate::report::Report;
use crate::request::IpcMode;
use crate::spec::{self, Mount};
use crate::sys::{mount, process};

const SHM: &str = "/dev/shm";

/// The IPC namespace that a container uses.
#[derive(Debug)]
pub(super) struct Ipc {
    pub spec: spec::Ipc,
    /// The /dev/shm of the host or of another container.
    pub shm: Option<Mount>,
    /// Keeps another container's namespace until the runtime has joined it.
    pub namespace: Option<OwnedFd>,
}

/// Finds the namespace, and mounts another container's /dev/shm.
pub(super) fn acquire(launch: Launch<'_>, tell: Tell<'_>) -> Result<Ipc, Report> {
    let request = launch.request();
    if request.shm_size.is_some() && !matches!(request.ipc, IpcMode::Private | IpcMode::Shareable) {
        tell(Progress::Notice(format!("`--shm-size` has no effect with `--ipc {}`", request.ipc)));
    }
    let taken = request.mounts.iter().any(|mount| mount.destination == Path::new(SHM));
    match &request.ipc {
        IpcMode::Private | IpcMode::None => Ok(Ipc { spec: spec::Ipc::New, shm: None, namespace: None }),
        IpcMode::Shareable => {
            left_behind(launch)?.into_iter().for_each(|line| tell(Progress::Notice(line)));
            Ok(Ipc { spec: spec::Ipc::New, shm: None, namespace: None })
        }
        IpcMode::Host => {
            let shm = (!taken && Path::new(SHM).is_dir()).then(|| bind(SHM.into()));
            Ok(Ipc { spec: spec::Ipc::Host, shm, namespace: None })
        }
        IpcMode::Container(id) => join(launch, id, taken),
    }
}

fn bind(source: PathBuf) -> Mount {
    let options = ["rbind", "rw", "rprivate"].map(str::to_owned).into();
    Mount { destination: SHM.into(), kind: "bind".into(), source, options }
}

fn join(launch: Launch<'_>, id: &str, taken: bool) -> Result<Ipc, Report> {
    let Some(other) = launch.records.get(id)? else {
        return Err(refused(short(id), "it does not exist any more")
            .with_hint("create this container again, with the `--ipc container:NAME` of another one"));
    };
    let name = other.record.name.clone();
    check_shareable(&other)?;
    // The descriptor is opened before the process is checked, so that it cannot belong to another process.
    let Some(pid) = other.state()?.living_pid(process::boot_id().as_deref()) else {
        return Err(refused(&name, "it is not running").with_hint(format!("start it with `gpurun start {name}`")));
    };
    let failed = |error: std::io::Error| refused(&name, "its namespace cannot be entered").with_cause(error);
    let namespace: OwnedFd = File::open(format!("/proc/{pid}/ns/ipc")).map_err(failed)?.into();
    let mounts = File::open(format!("/proc/{pid}/ns/mnt")).map_err(failed)?;
    if other.state()?.living_pid(process::boot_id().as_deref()) != Some(pid) {
        return Err(refused(&name, "it is not running").with_hint(format!("start it with `gpurun start {name}`")));
    }
    let shm = match taken {
        true => None,
        false => Some(bind(attach(launch.entry, &shm_in(&mounts).map_err(failed)?).map_err(failed)?)),
    };
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    Ok(Ipc { spec: spec::Ipc::Path(path.into()), shm, namespace: Some(namespace) })
}

fn refused(name: &str, why: &str) -> Report {
    Report::new(format!("cannot share the IPC namespace of container `{name}`: {why}"))
}

/// Checks that other containers may join the container's namespace.
pub(crate) fn check_shareable(other: &Entry) -> Result<(), Report> {
    let name = &other.record.name;
    match other.record.request.ipc {
        IpcMode::Shareable | IpcMode::Host | IpcMode::Container(_) => Ok(()),
        IpcMode::Private | IpcMode::None => {
            Err(refused(name, "it is private").with_hint(format!("start container `{name}` with `--ipc shareable`")))
        }
    }
}

/// Copies the mount of /dev/shm in another mount namespace.
fn shm_in(namespace: &File) -> std::io::Result<OwnedFd> {
    let copied = super::entering::in_mounts(namespace, || mount::clone(Path::new(SHM), false))?;
    // A container with more rights may have mounted something else there.
    if fstatfs(&copied)?.filesystem_type() != TMPFS_MAGIC {
        return Err(std::io::Error::other("its /dev/shm is not a tmpfs"));
    }
    Ok(copied)
}

fn attach(entry: &Entry, shm: &OwnedFd) -> std::io::Result<PathBuf> {
    let point = entry.run_dir.join("shm");
    std::fs::create_dir_all(&point)?;
    mount::attach(shm.as_fd(), open_path(&point)?.as_fd())?;
    Ok(point)
}

/// Notices about running containers that joined this one before it was restarted. They still use the namespace of its
/// earlier run.
fn left_behind(launch: Launch<'_>) -> Result<Vec<String>, Report> {
    let (own, boot) = (&launch.entry.record, process::boot_id());
    let mut lines = Vec::new();
    for other in launch.records.list()? {
        let record = &other.record;
        if record.request.ipc == IpcMode::Container(own.id.clone())
            && other.state_shown()?.living_pid(boot.as_deref()).is_some()
        {
            lines.push(format!(
                "container `{0}` still has the IPC namespace of the earlier run: restart it with `gpurun restart {0}`",
                record.name
            ));
        }
    }
    Ok(lines)
}
