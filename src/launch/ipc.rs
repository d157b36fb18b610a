//! `--ipc`: the IPC namespace of a container, and its /dev/shm.
//!
//! A container that joins another one gets that one's namespace by descriptor, and a bind mount of its /dev/shm. The
//! kernel copies a mount only for a process in the same mount namespace, so this process enters the other container's
//! mount namespace for a moment. The bind mount is then attached in this process's own mount namespace, and disappears
//! with it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::context::Launch;
use super::joined::{self, Kind};
use super::progress::{Progress, Tell};
use super::shared::open_path;
use crate::record::Entry;
use crate::report::Report;
use crate::request::IpcMode;
use crate::spec::{Mount, Namespace};
use crate::sys::{mount, process};

const SHM: &str = "/dev/shm";
const IPC: Kind = Kind { name: "IPC", flag: "--ipc" };

/// The IPC namespace that a container uses.
#[derive(Debug)]
pub(super) struct Ipc {
    pub spec: Namespace,
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
        IpcMode::Private | IpcMode::None => Ok(Ipc { spec: Namespace::New, shm: None, namespace: None }),
        IpcMode::Shareable => {
            left_behind(launch)?.into_iter().for_each(|line| tell(Progress::Notice(line)));
            Ok(Ipc { spec: Namespace::New, shm: None, namespace: None })
        }
        IpcMode::Host => {
            let shm = (!taken && Path::new(SHM).is_dir()).then(|| bind(SHM.into()));
            Ok(Ipc { spec: Namespace::Host, shm, namespace: None })
        }
        IpcMode::Container(id) => join(launch, id, taken),
    }
}

fn bind(source: PathBuf) -> Mount {
    let options = ["rbind", "rw", "rprivate"].map(str::to_owned).into();
    Mount { destination: SHM.into(), kind: "bind".into(), source, options }
}

fn join(launch: Launch<'_>, id: &str, taken: bool) -> Result<Ipc, Report> {
    let other = IPC.find(launch.records, id)?;
    check_shareable(&other)?;
    let pid = IPC.running(&other)?;
    let (namespace, mounts) = (IPC.open(&other, pid, "ipc")?, IPC.open(&other, pid, "mnt")?);
    let failed = |error| IPC.closed(&other, error);
    let shm = match taken {
        true => None,
        false => Some(bind(attach(launch.entry, &shm_in(&mounts.into()).map_err(failed)?).map_err(failed)?)),
    };
    Ok(Ipc { spec: Namespace::Path(joined::path(&namespace)), shm, namespace: Some(namespace) })
}

/// Checks that other containers may join the container's namespace.
pub(crate) fn check_shareable(other: &Entry) -> Result<(), Report> {
    let name = &other.record.name;
    match other.record.request.ipc {
        IpcMode::Shareable | IpcMode::Host | IpcMode::Container(_) => Ok(()),
        IpcMode::Private | IpcMode::None => Err(IPC
            .refused(name, "it is private")
            .with_hint(format!("start container `{name}` with `--ipc shareable`"))),
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
