//! The user of the job: everything that concerns the user's files is done by a process with the user's credentials.
//!
//! Such a process is a fork of this one, which has a single thread. It becomes the user for good, does one thing, and ends
//! with the error number as its status. The user cannot trace it, because its credentials changed, but may stop it, or let a
//! file system of the user's own keep it waiting. So every wait for it has an end. The kernel decides what it may do, on
//! network file systems as well.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::{AccessFlags, Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::tasks::{self, Tasks};
use crate::sys::file::read_text;
use crate::sys::process::{self, Fork};

/// The credentials of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The type and the permissions.
    pub mode: u32,
    pub uid: u32,
    pub size: i64,
    /// The device and the inode.
    pub place: (u64, u64),
    /// Of the last change of the content and of the inode: seconds and nanoseconds.
    pub times: [i64; 4],
}

impl From<FileStat> for About {
    fn from(stat: FileStat) -> Self {
        Self {
            mode: stat.st_mode,
            uid: stat.st_uid,
            size: stat.st_size,
            place: (stat.st_dev, stat.st_ino),
            times: [stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec],
        }
    }
}

impl About {
    pub(super) fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    pub(super) fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
    pub(super) fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

impl Caller {
    /// Opens a path as the user, relative to the job's directory. Links of /proc (`/proc/self/root`, for example) are not
    /// followed. A file system of the user may not even let root ask what the file is, so the process of the user asks.
    pub(super) fn open(&self, path: &Path, flags: OFlag, tasks: &Tasks) -> io::Result<(OwnedFd, About)> {
        let (here, there) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let answer = process::memory_file(c"about", b"")?;
        let child = self.fork(|| {
            let opened = open(path, flags)?;
            let about = About::from(nix::sys::stat::fstat(&opened)?);
            serde_json::to_writer(File::from(answer.try_clone()?), &about)?;
            process::send_fd(there.as_fd(), opened.as_fd())
        })?;
        drop(there);
        finish(child, tasks)?;
        let mut answer = File::from(answer);
        answer.rewind()?;
        Ok((process::receive_fd(here.as_fd())?, serde_json::from_reader(answer)?))
    }

    /// Returns whether the user may write to a path, or create it.
    pub(super) fn check_writable(&self, path: &Path, tasks: &Tasks) -> io::Result<()> {
        let child = self.fork(|| match nix::sys::stat::lstat(path) {
            Ok(stat) if stat.st_mode & libc::S_IFMT != libc::S_IFREG => Err(io::Error::from_raw_os_error(libc::EEXIST)),
            Ok(_) => may(path, AccessFlags::W_OK),
            Err(Errno::ENOENT) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                may(parent, AccessFlags::W_OK | AccessFlags::X_OK)
            }
            Err(errno) => Err(errno.into()),
        })?;
        finish(child, tasks)
    }

    /// Writes a file as the user, from a pipe. A link in the last component is not followed.
    pub(super) fn write(&self, path: &Path, mut from: File) -> io::Result<()> {
        let child = self.fork(|| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let mut file = File::from(open(path, flags)?);
            // Nothing but a file is truncated or written.
            if !file.metadata()?.is_file() {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            file.set_len(0)?;
            io::copy(&mut from, &mut file).map(drop)
        })?;
        drop(from);
        finish_writing(child)
    }

    /// Does something in a process of the user.
    pub(super) fn fork(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
        match process::fork(false)? {
            Fork::Parent(pid) => Ok(Pid::from_raw(pid)),
            Fork::Child => {
                let done = self.become_user().and_then(|()| work());
                let code = done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                process::exit_now(code)
            }
        }
    }

    fn become_user(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::setgroups(&groups)?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        Ok(())
    }
}

fn open(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o644) } else { Mode::empty() };
    let more = if flags.contains(OFlag::O_PATH) { OFlag::empty() } else { OFlag::O_NOCTTY };
    let how = OpenHow::new().flags(flags | more | OFlag::O_CLOEXEC).mode(mode);
    Ok(nix::fcntl::openat2(nix::fcntl::AT_FDCWD, path, how.resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS))?)
}

fn may(path: &Path, access: AccessFlags) -> io::Result<()> {
    Ok(nix::unistd::faccessat(nix::fcntl::AT_FDCWD, path, access, AtFlags::AT_EACCESS)?)
}

/// Waits for such a process, and returns its error.
fn finish(child: Pid, tasks: &Tasks) -> io::Result<()> {
    tasks.wait_for(child.as_raw()).map_err(|report| io::Error::other(report.message)).and_then(status)
}

/// Waits for a process that writes, after the tasks. Kills it when it has not written anything for a while: Slurm drains a
/// node on which a step does not end.
fn finish_writing(child: Pid) -> io::Result<()> {
    let process = process::open_pidfd(child.as_raw())?;
    let (mut written, mut since) = (None, Instant::now());
    while !process::wait_pidfd(&process, LOOK) {
        let now = read_text(format!("/proc/{child}/io")).ok();
        if now != written {
            (written, since) = (now, Instant::now());
        } else if since.elapsed() > STALL {
            process::signal(&process, libc::SIGKILL)?;
            tasks::end_killed(&process, child.as_raw());
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    status(tasks::end_of(child))
}

/// How often to look whether a process still writes, and how long it may pause.
const LOOK: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(50);

fn status(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
