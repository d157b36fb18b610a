//! Mounts as safe calls: the file-system contexts of `fsopen(2)`, private namespaces, and the mount table.
//!
//! `fsopen`/`fsconfig`/`fsmount` are used instead of `mount(2)` for two reasons: every option is a separate value
//! (commas and colons in paths need no escaping), and the kernel's reason for an error can be read from the context
//! instead of from dmesg. These calls exist since Linux 5.2.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

/// Attributes of a mount (not of its superblock): `MOUNT_ATTR_*` of linux/mount.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr(u32);

impl Attr {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const RDONLY: Self = Self(0x1);
    pub(crate) const NOSUID: Self = Self(0x2);
    pub(crate) const NODEV: Self = Self(0x4);
    pub(crate) const NOEXEC: Self = Self(0x8);
    pub(crate) const NOATIME: Self = Self(0x10);
    pub(crate) const STRICTATIME: Self = Self(0x20);
    pub(crate) const NODIRATIME: Self = Self(0x80);
    pub(crate) const NOSYMFOLLOW: Self = Self(0x20_0000);
    /// The bits of the access-time setting, which are cleared before one of them is set (mount_setattr(2)).
    const ATIME: u32 = 0x70;

    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

// linux/mount.h: enum fsconfig_command, and the flags of fsopen, fsmount and move_mount. The libc crate does not have
// them for every target.
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// An error of the kernel: the errno, and the messages of the file system.
#[derive(Debug, thiserror::Error)]
pub struct FsError {
    pub source_errno: io::Error,
    /// The messages of the context without their level, oldest first. Often empty.
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

impl From<io::Error> for FsError {
    fn from(source_errno: io::Error) -> Self {
        Self { source_errno, messages: Vec::new() }
    }
}

impl FsError {
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source_errno.raw_os_error()
    }
}

/// A file system that is being configured: `fsopen(2)`.
#[derive(Debug)]
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// Opens a context for the file-system type `name`. Fails with ENODEV if the kernel does not know the type.
    pub(crate) fn open(name: &CStr) -> io::Result<Self> {
        // SAFETY: `name` is NUL-terminated and outlives the call, and the kernel only reads it.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// Sets an option that takes no value.
    pub(crate) fn flag(&self, key: &CStr) -> Result<(), FsError> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Sets an option to `value`.
    pub(crate) fn string(&self, key: &CStr, value: &[u8]) -> Result<(), FsError> {
        let value = CString::new(value).map_err(|_| self.error(io::Error::from_raw_os_error(libc::EINVAL)))?;
        self.config(FSCONFIG_SET_STRING, Some(key), Some(&value))
    }

    /// Creates the superblock and a mount of it that is not attached yet.
    pub(crate) fn mount(&self, attr: Attr) -> Result<OwnedFd, FsError> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: all arguments are plain integers, and the descriptor is open as long as `self` lives.
        let fd = unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attr.0) };
        owned(fd).map_err(|error| self.error(error))
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> Result<(), FsError> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated strings that outlive the call, as the three commands used
        // here require. aux is 0. The kernel copies both strings.
        let done =
            unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(key), pointer(value), 0) };
        if done == 0 { Ok(()) } else { Err(self.error(io::Error::last_os_error())) }
    }

    fn error(&self, source_errno: io::Error) -> FsError {
        let mut messages = Vec::new();
        let mut buffer = [0_u8; 1024];
        // Each read returns one message. ENODATA (or EMSGSIZE, for a message that does not fit) ends the loop.
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

/// Attaches a detached mount to the directory or file `target`.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are the empty string, as the two EMPTY_PATH flags require, and both descriptors are open
    // (borrowed).
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

/// Attaches a detached mount to the entry `name` of a directory. A link is not followed.
pub(crate) fn attach_at(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the first path is the empty string, as the EMPTY_PATH flag requires, the second one is NUL-terminated, and
    // both descriptors are open (borrowed).
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the calling (single-threaded) process into a mount namespace of its own. New mounts of the host appear in it,
/// but its own mounts do not appear on the host.
pub(crate) fn unshare_slave() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&Path>)?;
    Ok(())
}

/// Returns a detached bind mount of `source`, with the mounts below it if `recursive`.
pub(crate) fn clone(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    super::idmap::open_tree(source, recursive)
}

/// Sets attributes of a detached mount, and of the mounts below it if `recursive`.
pub(crate) fn set(mount: &OwnedFd, attr: Attr, recursive: bool) -> io::Result<()> {
    let attr_clr = if attr.0 & Attr::ATIME == 0 { 0 } else { Attr::ATIME.into() };
    let attr = super::idmap::MountAttr { attr_set: attr.0.into(), attr_clr, ..Default::default() };
    super::idmap::set_attr(mount, &attr, recursive)
}

/// Sets the propagation of a mount, and of those below it. With `MS_PRIVATE`, no mount of the host appears in them.
pub(crate) fn set_propagation(mount: &OwnedFd, propagation: libc::c_ulong) -> io::Result<()> {
    let attr = super::idmap::MountAttr { propagation, ..Default::default() };
    super::idmap::set_attr(mount, &attr, true)
}

/// Whether an open file is the null device.
pub(crate) fn is_null(fd: BorrowedFd<'_>) -> bool {
    let is_null = |stat: nix::sys::stat::FileStat| {
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3)
    };
    nix::sys::stat::fstat(fd).is_ok_and(is_null)
}

/// Opens a null device in a file system of its own. A process that is handed the host's `/dev/null` can change the mode
/// and the owner of that node through `/proc/self/fd`. With this one it changes nothing that another process sees.
pub(crate) fn private_null() -> io::Result<OwnedFd> {
    use nix::fcntl::OFlag;
    use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mkdirat, mknodat};
    let mode = Mode::from_bits_truncate(0o666);
    let mount = FsContext::open(c"tmpfs")?.mount(Attr::NOSUID.and(Attr::NOEXEC)).map_err(|error| error.source_errno)?;
    // Programs look for this path in /proc/self/fd.
    let path = "dev/null";
    mkdirat(&mount, "dev", Mode::from_bits_truncate(0o755))?;
    mknodat(&mount, path, SFlag::S_IFCHR, mode, makedev(1, 3))?;
    // The umask must not affect the mode.
    fchmodat(&mount, path, mode, FchmodatFlags::FollowSymlink)?;
    Ok(nix::fcntl::openat(&mount, path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Lazily unmounts the topmost mount at `path`: it disappears from the path at once, and is released when it is no
/// longer in use. A link in the last component is not followed.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Lazily unmounts an open mount, with those below it.
pub(crate) fn detach_open(mount: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::mount::umount2(&fd_path(mount), MntFlags::MNT_DETACH)?)
}

/// Unmounts the topmost mount at `path`. Fails with EBUSY if a process in this namespace uses it.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Returns the mount points at and below `dir` in the caller's namespace, in the order in which they were mounted.
pub(crate) fn points_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // Read the table of the thread: tests have a namespace per thread, and all other processes have a single thread.
    let table = super::file::read("/proc/thread-self/mountinfo")?;
    Ok(points(&table).filter(|point| point.starts_with(dir)).collect())
}

/// Returns the mount points of a process, as it sees them, in the order in which they were mounted.
pub(crate) fn points_of(pid: i32) -> io::Result<Vec<PathBuf>> {
    Ok(points(&super::file::read(format!("/proc/{pid}/mountinfo"))?).collect())
}

fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    // proc_pid_mountinfo(5): the mount point is the fifth field.
    table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape)
}

/// Decodes the kernel's octal escapes, such as `\040`, for space, tab, newline and backslash.
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

/// Returns a path for an open file that no option parser can misread. The descriptor must stay open until the mount is
/// made.
#[must_use]
pub(crate) fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Whether `path` can be used in a mount option as it is: overlayfs splits at `:`, the legacy parser at `,`, and
/// `fsconfig(2)` accepts at most 255 bytes.
#[must_use]
pub(crate) fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.as_os_str().len() < 256
        && !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b',' | b':' | b'\\' | b'"'))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the system call that returned `fd` has just created it with close-on-exec, and no other code knows its
    // number.
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
