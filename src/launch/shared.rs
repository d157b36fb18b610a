//! Writable host directories and volumes of a notebook: who owns the new files, and whether the notebook can write at
//! all.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::progress::{Progress, Tell};
use crate::jupyter;
use crate::record::Entry;
use crate::spec::Mount;
use crate::sys::idmap::{self, Owner};

/// The identity that writes the files: the notebook's user in the container, and the container's owner.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The container's owner, unless that is root.
    pub owner: Option<(u32, u32)>,
}

/// Opens a file or directory with O_PATH only.
pub(super) fn open_path(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?.into())
}

impl Writer {
    /// Whether the notebook's user can write to a file or directory, as the container sees it.
    pub(super) fn can_write(&self, place: impl AsFd) -> bool {
        crate::sys::access::may_write(place, self.uid, self.gid, &self.groups).unwrap_or_else(|error| {
            tracing::warn!("cannot find out whether the notebook's user can write: {error}");
            true
        })
    }
}

/// Prepares one writable mount of a notebook. Exchanges the owners (see `jupyter::owner`), and reports results that the
/// user may not expect.
pub(super) fn share(entry: &Entry, number: usize, writer: &Writer, is_bind: bool, mount: &mut Mount, tell: Tell<'_>) {
    let host = mount.source.clone();
    let Ok(meta) = fs::metadata(&host) else { return };
    let owners =
        is_bind.then(|| jupyter::exchange((writer.uid, writer.gid), writer.owner, (meta.uid(), meta.gid()))).flatten();
    let mut exchanged = None;
    if let Some((outside, inside)) = owners {
        match exchange(entry, number, outside, inside, mount) {
            Ok(()) => exchanged = Some(outside),
            Err(error) => {
                tracing::debug!("no exchanged owners for {}: {error}", host.display());
                if outside.uid != inside.uid {
                    tell(Progress::Notice(format!(
                        "files that the notebook writes to `{}` will belong to uid {}: the file system does not support idmapped mounts",
                        host.display(),
                        inside.uid
                    )));
                }
            }
        }
    }
    let writable = open_path(&mount.source).map_or(true, |place| writer.can_write(place));
    let notice = match writable {
        false if is_bind => Some(refused(&host, &mount.destination, &meta, writer, exchanged)),
        false => Some(format!(
            "the notebook cannot write to `{place}`: the volume belongs to uid {}, and the notebook's user has uid {}; \
             run `gpurun exec -u 0 {} chown {}:{} {place}`",
            meta.uid(),
            writer.uid,
            entry.record.name,
            writer.uid,
            writer.gid,
            place = word(&mount.destination)
        )),
        true if is_bind && exchanged.is_none() && writer.uid == 0 && meta.uid() == 0 => Some(format!(
            "files that the notebook writes to `{}` will belong to root: the directory is root's, and so is the notebook; \
             give the directory to a user (`chown UID:GID {}`) to have files of that user",
            host.display(),
            word(&host)
        )),
        true => None,
    };
    notice.into_iter().for_each(|line| tell(Progress::Notice(line)));
}

/// Mounts an idmapped clone of the source in which the owners are exchanged.
fn exchange(entry: &Entry, number: usize, outside: Owner, inside: Owner, mount: &mut Mount) -> std::io::Result<()> {
    let point = entry.run_dir.join("binds").join(number.to_string());
    let clone = idmap::exchanged_clone(&mount.source, outside, inside)?;
    if mount.source.is_dir() {
        fs::create_dir_all(&point)?;
    } else {
        fs::create_dir_all(point.parent().unwrap_or(&point))?;
        fs::write(&point, "")?;
    }
    // The mount is in the supervisor's own mount namespace and disappears with it.
    crate::sys::mount::attach(clone.as_fd(), open_path(&point)?.as_fd())?;
    mount.source = point;
    Ok(())
}

/// The notice that the notebook cannot write to a directory of the host, with the remedy.
fn refused(host: &Path, destination: &Path, meta: &fs::Metadata, writer: &Writer, exchanged: Option<Owner>) -> String {
    let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
    let place = word(host);
    let read_only =
        nix::sys::statvfs::statvfs(host).is_ok_and(|stat| stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let (owner, group) = writer.owner.unwrap_or((writer.uid, writer.gid));
    let chown = format!("`chown {owner}:{} {place}`", if group == 0 { owner } else { group });
    let remedy = match exchanged {
        _ if read_only => "its file system is mounted read-only".to_owned(),
        // The root group is not mapped, so nothing that belongs to it can be written.
        Some(outside) if outside.uid == uid && gid == 0 => {
            format!("its group is root's, which no container gets: run `chgrp {} {place}`", outside.gid)
        }
        Some(outside) if outside.uid == uid => format!("run `chmod u+rwx {place}`"),
        _ if mode & 0o020 != 0 && gid != 0 => format!("run {chown}, or add `--group-add {gid}`"),
        _ => format!("run {chown}, or mount it with `:ro`"),
    };
    let who = if uid == 0 { "root".to_owned() } else { format!("uid {uid}") };
    let user = match exchanged {
        Some(outside) => format!("uid {} (uid {} on the host)", writer.uid, outside.uid),
        None => format!("uid {}", writer.uid),
    };
    format!(
        "the notebook cannot write to `{}`: `{}` belongs to {who} (mode {mode:o}), and the notebook's user is {user}; {remedy}",
        destination.display(),
        host.display(),
    )
}

/// Quotes a path for the shell.
fn word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+,@%".contains(&byte));
    if plain { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
