//! What stands on disk stays whole: atomic writes, and locks that die with their process.
//!
//! Rule: write a temporary file in the same directory, fsync it, rename it over the name, fsync the directory. A reader sees the
//! old bytes or the new ones, never a mixture, and a power cut does not bring back a name without its bytes.
//!
//! Two kinds of lock, because they answer different questions (an [`Owner`] in a file is a third way to say who it belongs to):
//! - [`FileLock`] is `flock(2)`: "nobody else works on this now", held for the length of an operation;
//! - [`ProcessLock`] is a POSIX record lock (`F_SETLK`): "this process lives". A `flock` is shared with every clone that inherited
//!   the descriptor (libcontainer's init is one), a record lock belongs to the process alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::sys::process;

/// Replaces `path` with `bytes`, mode 0600, durably.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(&temporary(path)?, path, bytes, true)
}

/// The same by way of `temp`, on the same file system: where somebody sweeps the temporaries of killed processes away.
pub fn write_atomic_by(temp: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(temp, path, bytes, true)
}

/// Replaces `path` with `bytes` in one step, without waiting for the disk: for files under /run, which a reboot empties anyway.
pub fn write_atomic_volatile(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(&temporary(path)?, path, bytes, false)
}

/// The pid makes the name unique among processes; a leftover of a killed one is overwritten by `truncate` or swept by its owner.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}

fn write(temp: &Path, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temp)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| if durable { file.sync_all() } else { Ok(()) })
        .and_then(|()| std::fs::rename(temp, path));
    if let Err(error) = written {
        // The write's error is the one to tell; a temporary that cannot be removed is swept by its room's owner.
        let _ = std::fs::remove_file(temp);
        return Err(error);
    }
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// An exclusive or shared `flock(2)`; released when dropped.
#[derive(Debug)]
pub struct FileLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl FileLock {
    /// Waits for the lock alone.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockExclusive)
    }

    /// Waits for the lock together with other sharers.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockShared)
    }

    /// Takes the lock alone, or tells that somebody has it (`Ok(None)`).
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(path, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a directory's own lock, alone: it needs no file, and goes with the directory.
    pub fn of_dir(dir: &Path) -> io::Result<Self> {
        Self::hold(OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?, FlockArg::LockExclusive)
    }

    fn take(path: &Path, arg: FlockArg) -> io::Result<Self> {
        Self::hold(open_lock(path)?, arg)
    }

    fn hold(mut file: File, arg: FlockArg) -> io::Result<Self> {
        loop {
            match Flock::lock(file, arg) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, nix::Error::EINTR)) => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }
}

/// A POSIX record lock on a whole file: a proof that the process that took it lives.
///
/// Traps of record locks that callers must know: closing ANY descriptor of the file in the owning process drops the lock, and a
/// child never inherits it.
#[derive(Debug)]
pub struct ProcessLock(File);

impl ProcessLock {
    /// Takes the lock, or tells that a living process has it (`Ok(None)`).
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = open_lock(path)?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(Self(file))),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The pid of the living holder, or `None` when nobody holds it (or the file is not there).
    pub fn holder(path: &Path) -> io::Result<Option<i32>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
        Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
    }
}

/// The process that a file speaks for, its supervisor's: whoever reads the file can tell whether it lives. For files under /run only: they do
/// not outlive a boot, so pid and start time tell it from any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pid: i32,
    start_time: u64,
}

impl Owner {
    /// This process.
    #[must_use]
    pub fn me() -> Self {
        let pid = std::process::id() as i32;
        Self { pid, start_time: process::start_time(pid).unwrap_or(0) }
    }

    #[must_use]
    pub fn lives(&self) -> bool {
        // A zombie keeps its start time, and lives no more.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X')) && process::start_time(self.pid) == Some(self.start_time)
    }
}

impl AsRawFd for ProcessLock {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
