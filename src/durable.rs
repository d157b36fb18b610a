//! Durable files and lock files: atomic writes, and locks that are released when their process ends.
//!
//! A write creates a temporary file in the same directory, fsyncs it, renames it over the target, and fsyncs the
//! directory. A reader sees either the old or the new contents, never a mixture. After a power failure, a file name
//! never refers to incomplete contents.
//!
//! There are two kinds of lock for two different purposes. An [`Owner`] in a file is a third way to record ownership.
//! - [`FileLock`] is a `flock(2)` that is held for the duration of an operation and excludes other processes.
//! - [`ProcessLock`] is a POSIX record lock (`F_SETLK`) that shows that a process is alive. A `flock` is shared with
//!   every child that inherits the descriptor (libcontainer's init is one). A record lock belongs to a single process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::sys::lock::{Flock, FlockArg};
use crate::sys::process;

/// Replaces `path` with `bytes`, mode 0600, durably.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(&temporary(path)?, path, bytes, true)
}

/// Does the same with `temp` as the temporary file. `temp` must be on the same file system. This is for directories
/// whose owner removes the temporary files of killed processes.
pub(crate) fn write_atomic_by(temp: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(temp, path, bytes, true)
}

/// Replaces `path` with `bytes` atomically, without waiting for the disk. For files under /run, which do not survive a
/// reboot.
pub(crate) fn write_atomic_volatile(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(&temporary(path)?, path, bytes, false)
}

/// The largest file that [`read_bounded`] reads, in bytes. Records and leases have some kilobytes.
const MOST: u64 = 16 << 20;

/// Reads a whole file. A file of more than 16 MiB is an error, so that one bad file cannot use up the memory or the time
/// of every command.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len().min(MOST)).unwrap_or_default() + 1);
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Returns the path of the temporary file. The pid makes the name unique among processes. The leftover of a killed
/// process is overwritten (`truncate`) or removed by the module that owns the directory.
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
        // Report the error of the write. A temporary file that cannot be removed is cleaned up by the module that owns
        // the directory.
        let _ = std::fs::remove_file(temp);
        return Err(error);
    }
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// An exclusive or shared `flock(2)`, released on drop.
#[derive(Debug)]
pub(crate) struct FileLock(#[expect(dead_code, reason = "held for its Drop")] Flock);

impl FileLock {
    /// Waits for an exclusive lock.
    pub(crate) fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::Exclusive)
    }

    /// Waits for a shared lock.
    pub(crate) fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::Shared)
    }

    /// Takes an exclusive lock. Returns `Ok(None)` if another holder has the lock.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(path, FlockArg::ExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for an exclusive lock on the directory itself. This needs no lock file, and the lock disappears with the
    /// directory.
    pub(crate) fn of_dir(dir: &Path) -> io::Result<Self> {
        Self::hold(OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?, FlockArg::Exclusive)
    }

    fn take(path: &Path, arg: FlockArg) -> io::Result<Self> {
        Self::hold(open_lock(path)?, arg)
    }

    fn hold(file: File, arg: FlockArg) -> io::Result<Self> {
        Flock::lock(file, arg).map(Self)
    }
}

/// A POSIX record lock on a whole file. It proves that the process that took it is alive.
///
/// Record locks have two pitfalls that callers must know: closing ANY descriptor of the file in the owning process
/// releases the lock, and a child process never inherits it.
#[derive(Debug)]
pub(crate) struct ProcessLock(File);

impl ProcessLock {
    /// Takes the lock. Returns `Ok(None)` if a living process has it.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = open_lock(path)?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(Self(file))),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes a shared lock. Waits while another process holds the lock exclusively.
    pub(crate) fn share(path: &Path) -> io::Result<Self> {
        let file = open_lock(path)?;
        loop {
            match fcntl(&file, FcntlArg::F_SETLKW(&whole_file(libc::F_RDLCK))) {
                Ok(_) => return Ok(Self(file)),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns the pid of the living holder, or `None` if no process holds the lock or the file does not exist.
    pub(crate) fn holder(path: &Path) -> io::Result<Option<i32>> {
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

/// The supervisor process that owns a file. Readers of the file can check whether that process is alive. Use this only
/// for files under /run: they do not survive a reboot, so the pid and the start time identify the process uniquely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pid: i32,
    start_time: u64,
}

impl Owner {
    /// Returns the current process.
    #[must_use]
    pub(crate) fn me() -> Self {
        let pid = std::process::id() as i32;
        Self { pid, start_time: process::start_time(pid).unwrap_or(0) }
    }

    #[must_use]
    pub(crate) fn lives(&self) -> bool {
        // A zombie keeps its start time but is no longer alive.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_size_takes_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read_bounded(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_bounded(&path).unwrap(), b"text");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_bounded(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
