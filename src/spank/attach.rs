//! The mounts of a step, in the container's mount namespace.
//!
//! Mount points are created before anything of the user is mounted, so that root creates them in the container's own
//! file system and never in a directory of the user. A destination below another mount of the user must exist. Paths are
//! resolved in the container's root, whatever links the image has.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid, User};

use super::caller::Caller;
use super::grammar::{MountFlags, Propagation};
use super::request::StepRequest;
use super::tasks::Tasks;
use crate::report::Report;
use crate::rootfs::{self, MountpointKind};
use crate::sys::mount::{self, Attr, FsContext, fd_path};
use crate::sys::process::{self, Fork};

/// The size limit for reading an image's /etc/passwd and /etc/group.
const MAX_NAMES: usize = 1 << 20;

/// A mount to make.
struct Ready {
    /// The detached mount.
    tree: OwnedFd,
    destination: PathBuf,
    kind: MountpointKind,
    propagation: Propagation,
}

/// Mounts everything in the container, and makes its root the user's. With `--container-readonly`, the root is made
/// read-only at the end.
pub(super) fn attach(request: &StepRequest, namespace: &OwnedFd, tasks: &Tasks) -> Result<(), Report> {
    let mounts = ready(request, tasks)?;
    let names = Names::of(&request.caller);
    let failed = |error: io::Error| Report::new("cannot enter the container's mount namespace").with_cause(error);
    let answer = process::memory_file(c"answer", b"").map_err(failed)?;
    // In a child, because this process needs the host's files afterwards.
    match process::fork(false).map_err(failed)? {
        Fork::Child => {
            let done = nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS)
                .map_err(|errno| failed(errno.into()))
                .and_then(|()| inside(request, mounts, &names));
            let written = done.map_or_else(
                |report| serde_json::to_writer(File::from(answer), &report).map_err(io::Error::other),
                |()| Ok(()),
            );
            process::exit_now(i32::from(written.is_err()))
        }
        Fork::Parent(pid) => {
            if tasks.wait_for(pid)? != 0 {
                return Err(failed(io::ErrorKind::Interrupted.into()));
            }
            let (mut text, mut answer) = (String::new(), File::from(answer));
            answer.rewind().and_then(|()| answer.read_to_string(&mut text)).map_err(failed)?;
            if text.is_empty() {
                Ok(())
            } else {
                Err(serde_json::from_str(&text).map_err(|error| failed(error.into()))?)
            }
        }
    }
}

/// Opens the sources on the host, those of the user with the user's credentials.
fn ready(request: &StepRequest, tasks: &Tasks) -> Result<Vec<Ready>, Report> {
    let mut all = Vec::new();
    let propagation = Propagation::default();
    // A terminal of the host has its name in the container, too.
    let terminals = mount::clone(Path::new("/dev/pts"), false)
        .map_err(|error| Report::new("cannot mount the node's terminals").with_cause(error))?;
    all.push(Ready { tree: terminals, destination: "/dev/pts".into(), kind: MountpointKind::Directory, propagation });
    if request.options.mount_home {
        let home = User::from_uid(Uid::from_raw(request.caller.uid)).ok().flatten().map(|user| user.dir);
        let home =
            home.ok_or_else(|| Report::new("cannot mount the home directory: the node does not know your user"))?;
        all.push(of_caller(&request.caller, &home, &home, &MountFlags::default(), tasks)?);
    }
    for option in &request.options.mounts {
        all.push(match &option.source {
            Some(source) => of_caller(&request.caller, source, &option.destination, &option.flags, tasks)?,
            None => tmpfs(&request.caller, &option.destination, &option.flags)?,
        });
    }
    if let Some(script) = &request.script {
        // Slurm's own file, in a directory that only root may list.
        let tree = mount::clone(script, false)
            .and_then(|tree| mount::set(&tree, Attr::RDONLY.and(Attr::NOSUID).and(Attr::NODEV), false).map(|()| tree))
            .map_err(|error| Report::new("cannot mount the batch script").with_cause(error))?;
        all.push(Ready { tree, destination: script.clone(), kind: MountpointKind::File, propagation });
    }
    all.extend(pmix_dir(request, tasks)?);
    // A shallow mount must not hide a deep one.
    all.sort_by_key(|mount| mount.destination.components().count());
    Ok(all)
}

/// The directory in which Slurm's PMIx server and the tasks share memory, if the step has one. Only the tasks know its
/// variables, so this is its usual place. Others may create files in `/tmp`: it must be the user's, who alone can replace it
/// then.
fn pmix_dir(request: &StepRequest, tasks: &Tasks) -> Result<Option<Ready>, Report> {
    let (uid, job, step) = (request.caller.uid, request.job, request.step_name());
    for name in [format!("spmix_appdir_{uid}_{job}.{step}"), format!("spmix_appdir_{job}.{step}")] {
        let dir = Path::new("/tmp").join(name);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let Ok((_, about)) = request.caller.open(&dir, flags, tasks) else { continue };
        if about.uid == uid {
            return of_caller(&request.caller, &dir, &dir, &MountFlags::default(), tasks).map(Some);
        }
    }
    Ok(None)
}

fn of_caller(
    caller: &Caller,
    source: &Path,
    destination: &Path,
    flags: &MountFlags,
    tasks: &Tasks,
) -> Result<Ready, Report> {
    let failed = |error: io::Error| {
        let hint = match error.raw_os_error() {
            Some(libc::ELOOP) => "name the directory itself: links of /proc are not followed",
            _ => "name a file or directory that you can reach on the node",
        };
        Report::new(format!("cannot mount `{}` on `{}`", source.display(), destination.display()))
            .with_cause(error)
            .with_hint(hint)
    };
    let (opened, about) = caller.open(source, OFlag::O_PATH, tasks).map_err(failed)?;
    let tree = mount::clone(&fd_path(&opened), true).map_err(failed)?;
    let mut attr = Attr::NOSUID;
    // A device that the user names is wanted as one, and the step's device filter holds for it.
    if ![libc::S_IFCHR, libc::S_IFBLK].contains(&about.kind()) {
        attr = attr.and(Attr::NODEV);
    }
    for (is_set, more) in
        [(flags.read_only, Attr::RDONLY), (flags.no_exec, Attr::NOEXEC), (flags.no_atime, Attr::NOATIME)]
    {
        attr = if is_set { attr.and(more) } else { attr };
    }
    mount::set(&tree, attr, true).map_err(failed)?;
    let propagation = if flags.propagation == Propagation::Slave { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    mount::set_propagation(&tree, propagation).map_err(failed)?;
    let kind = if about.is_dir() { MountpointKind::Directory } else { MountpointKind::File };
    Ok(Ready { tree, destination: destination.into(), kind, propagation: flags.propagation })
}

fn tmpfs(caller: &Caller, destination: &Path, flags: &MountFlags) -> Result<Ready, Report> {
    let make = || -> io::Result<OwnedFd> {
        let context = FsContext::open(c"tmpfs")?;
        let set = |key, value: String| context.string(key, value.as_bytes()).map_err(|error| error.source_errno);
        set(c"mode", flags.mode.clone().unwrap_or_else(|| "0700".into()))?;
        if let Some(size) = &flags.size {
            set(c"size", size.clone())?;
        }
        set(c"uid", caller.uid.to_string())?;
        set(c"gid", caller.gid.to_string())?;
        let attr = Attr::NOSUID.and(Attr::NODEV);
        let attr = if flags.no_exec { attr.and(Attr::NOEXEC) } else { attr };
        let attr = if flags.read_only { attr.and(Attr::RDONLY) } else { attr };
        context.mount(attr).map_err(|error| error.source_errno)
    };
    let tree = make().map_err(|error| {
        Report::new(format!("cannot mount a tmpfs on `{}`", destination.display())).with_cause(error)
    })?;
    Ok(Ready { tree, destination: destination.into(), kind: MountpointKind::Directory, propagation: flags.propagation })
}

/// Runs in the container's mount namespace, as root.
fn inside(request: &StepRequest, mounts: Vec<Ready>, names: &Names) -> Result<(), Report> {
    let root = rootfs::open_root(Path::new("/"))?;
    names.add(&root)?;
    make_multiplexer().map_err(|errno| Report::new("cannot create the container's `/dev/ptmx`").with_cause(errno))?;
    let mut prepared = Vec::new();
    for mount in mounts {
        // Below an earlier destination, the mount point is in that mount.
        let is_below = |earlier: &(Ready, PathBuf)| mount.destination.starts_with(&earlier.1);
        let path = match prepared.iter().any(is_below) {
            true => mount.destination.clone(),
            false => rootfs::make_mountpoint_in_root(&root, &mount.destination, mount.kind)?,
        };
        prepared.push((mount, path));
    }
    let caller = &request.caller;
    nix::unistd::chown(Path::new("/"), Some(Uid::from_raw(caller.uid)), Some(Gid::from_raw(caller.gid)))
        .map_err(|errno| Report::new("cannot give the container's root to the user").with_cause(errno))?;
    for (mount, path) in &prepared {
        let failed = |why: &str| {
            Report::new(format!("cannot mount on `{}`: {why}", mount.destination.display()))
                .with_hint("create it in the directory that is mounted above it")
        };
        let point = rootfs::resolve_in_root(&root, path)?.ok_or_else(|| failed("it does not exist"))?;
        mount::attach(mount.tree.as_fd(), point.as_fd()).map_err(|error| failed(&error.to_string()))?;
        // An unbindable mount cannot be attached.
        if mount.propagation == Propagation::Unbindable {
            mount::set_propagation(&mount.tree, libc::MS_UNBINDABLE).map_err(|error| failed(&error.to_string()))?;
        }
    }
    let attr = Attr::NOSUID.and(Attr::NODEV);
    let attr = if request.options.read_only { attr.and(Attr::RDONLY) } else { attr };
    mount::set(&root, attr, false)
        .map_err(|error| Report::new("cannot set the attributes of the container's root").with_cause(error))
}

/// Replaces the container's link to its own multiplexer by a node. The kernel looks for the terminals beside it, which are
/// the host's. The node in the host's `/dev/pts` may be opened by root only.
fn make_multiplexer() -> nix::Result<()> {
    use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mknod};
    let (path, mode) = (Path::new("/dev/ptmx"), Mode::from_bits_truncate(0o666));
    nix::unistd::unlink(path)?;
    mknod(path, SFlag::S_IFCHR, mode, makedev(5, 2))?;
    // The umask must not affect the mode.
    fchmodat(nix::fcntl::AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)
}

/// The user's name and that of the group, for programs that ask for them.
struct Names {
    user: Option<User>,
    group: Option<nix::unistd::Group>,
}

impl Names {
    fn of(caller: &Caller) -> Self {
        Self {
            user: User::from_uid(Uid::from_raw(caller.uid)).ok().flatten(),
            group: nix::unistd::Group::from_gid(Gid::from_raw(caller.gid)).ok().flatten(),
        }
    }

    /// Adds the names to the files of the container, unless it knows the numbers.
    fn add(&self, root: &OwnedFd) -> Result<(), Report> {
        if let Some(user) = &self.user {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            let line = format!("{}:x:{uid}:{gid}::{}:/bin/sh", user.name, user.dir.display());
            add_line(root, "/etc/passwd", uid, &line)?;
        }
        if let Some(group) = &self.group {
            let gid = group.gid.as_raw();
            add_line(root, "/etc/group", gid, &format!("{}:x:{gid}:", group.name))?;
        }
        Ok(())
    }
}

fn add_line(root: &OwnedFd, path: &str, id: u32, line: &str) -> Result<(), Report> {
    let path = Path::new(path);
    // An image with something else there has no names.
    let Ok(known) = rootfs::read_file_in_root(root, path, MAX_NAMES) else { return Ok(()) };
    let mut text = known.unwrap_or_default();
    let has = |known: &[u8]| known.split(|byte| *byte == b':').nth(2) == Some(id.to_string().as_bytes());
    if text.split(|byte| *byte == b'\n').any(has) || line.contains('\n') {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    Ok(rootfs::replace_file_in_root(root, path, &text)?)
}
