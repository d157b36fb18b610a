//! Mounts: the file-system contexts of `fsopen(2)`, private namespaces, and the mount table, as safe calls.
//!
//! `fsopen`/`fsconfig`/`fsmount` rather than `mount(2)`, for two reasons: every option is a value of its own (no escaping of commas and
//! colons in paths), and the kernel's reason for a refusal can be read from the context instead of from dmesg. They exist since
//! Linux 5.2.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

/// Attributes of a mount (not of its superblock), `MOUNT_ATTR_*` of linux/mount.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr(u32);

impl Attr {
    pub const NONE: Self = Self(0);
    pub const RDONLY: Self = Self(0x1);
    pub const NOSUID: Self = Self(0x2);
    pub const NODEV: Self = Self(0x4);

    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

// linux/mount.h: enum fsconfig_command and the flags of fsopen, fsmount and move_mount. The libc crate does not carry them for every target.
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// A refusal by the kernel: the errno, and what the file system itself said about it.
#[derive(Debug, thiserror::Error)]
pub struct FsError {
    pub source_errno: io::Error,
    /// The context's messages, oldest first, without their level; often empty.
    pub messages: Vec<String>,
}

impl std::fmt::Display for FsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.source_errno)?;
        for message in &self.messages {
            write!(f, "; {message}")?;
        }
        Ok(())
    }
}

impl FsError {
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source_errno.raw_os_error()
    }
}

/// A file system being configured: `fsopen(2)`.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Opens a context for the file-system type `name`; ENODEV if the kernel does not know it.
    pub fn open(name: &CStr) -> io::Result<Self> {
        // SAFETY: `name` is NUL-terminated and outlives the call; the kernel only reads it.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// Sets an option that takes no value.
    pub fn flag(&self, key: &CStr) -> Result<(), FsError> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Sets an option to `value`.
    pub fn string(&self, key: &CStr, value: &[u8]) -> Result<(), FsError> {
        let value = CString::new(value).map_err(|_| self.error(io::Error::from_raw_os_error(libc::EINVAL)))?;
        self.config(FSCONFIG_SET_STRING, Some(key), Some(&value))
    }

    /// Makes the superblock, and a mount of it that stands nowhere yet.
    pub fn mount(&self, attr: Attr) -> Result<OwnedFd, FsError> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: all arguments are plain integers; the descriptor is open for as long as `self` lives.
        let fd = unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attr.0) };
        owned(fd).map_err(|error| self.error(error))
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> Result<(), FsError> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated strings that outlive the call, as the three commands used here ask for;
        // aux is 0. The kernel copies both.
        let done =
            unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(key), pointer(value), 0) };
        if done == 0 { Ok(()) } else { Err(self.error(io::Error::last_os_error())) }
    }

    fn error(&self, source_errno: io::Error) -> FsError {
        let mut messages = Vec::new();
        let mut buffer = [0_u8; 1024];
        // One message per read; ENODATA (or EMSGSIZE for one that does not fit) ends it.
        while let Ok(count) = nix::unistd::read(&self.0, &mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]);
            let text = text.trim_end();
            messages.push(text.get(2..).unwrap_or(text).to_owned());
            if messages.len() == 16 {
                break;
            }
        }
        FsError { source_errno, messages }
    }
}

/// Puts a mount that stands nowhere yet onto the directory (or file) `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are the empty string, which the two EMPTY_PATH flags ask for; both descriptors are open (borrowed).
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling (single-threaded) process a mount namespace of its own that sees the host's new mounts and shows it none.
pub fn unshare_slave() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&Path>)?;
    Ok(())
}

/// Shows `source`, and what is mounted below it, at `target` too.
pub fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(source), target, None::<&Path>, flags, None::<&Path>)?;
    if read_only {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        nix::mount::mount(None::<&Path>, target, None::<&Path>, flags, None::<&Path>)?;
    }
    Ok(())
}

/// Takes the topmost mount off `path`, at once for the name and later for whoever still uses it; never follows a link at the end.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Takes the topmost mount off `path`, or EBUSY if anybody in this namespace uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// The mount points below `dir` (and `dir` itself) in the caller's namespace, in the order they were mounted.
pub fn points_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // The thread's own: tests have namespaces per thread, and everybody else has one thread.
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(points(&table).filter(|point| point.starts_with(dir)).collect())
}

fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    // proc_pid_mountinfo(5): the mount point is the fifth field.
    table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape)
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// A way to name an open file that no option parser can misread; the descriptor must stay open until the mount is made.
#[must_use]
pub fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Whether `path` can stand in a mount option as it is: overlayfs splits at `:`, the legacy parser at `,`, and `fsconfig(2)` takes at
/// most 255 bytes.
#[must_use]
pub fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.as_os_str().len() < 256
        && !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b',' | b':' | b'\\' | b'"'))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the system call that answered `fd` just made it, close-on-exec, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mount_points_with_their_escapes() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            23 22 0:9 / /run/a\\040b\\011c\\134d rw - tmpfs t rw\n27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        let found: Vec<_> = points(table).collect();
        assert_eq!(found, [PathBuf::from("/proc"), PathBuf::from("/run/a b\tc\\d"), PathBuf::from("/")]);
    }

    #[test]
    fn an_unknown_file_system_is_enodev() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let error = FsContext::open(c"no-such-fs").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_refusal_carries_the_file_systems_own_words() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let context = FsContext::open(c"tmpfs").unwrap();
        let error = context.string(c"size", b"a lot").unwrap_err();
        assert!(!error.messages.is_empty(), "{error}");
    }

    #[test]
    fn paths_that_an_option_parser_could_split_are_not_plain() {
        for (path, plain) in [("/a/b", true), ("a", false), ("/a:b", false), ("/a,b", false), ("/a\\b", false)] {
            assert_eq!(is_plain(Path::new(path)), plain, "{path}");
        }
    }
}
