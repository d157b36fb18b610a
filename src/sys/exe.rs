//! Runs gpurun's own executable in a way that protects it from containers (CVE-2019-5736).
//!
//! While gpurun starts or enters a container, a hostile image may open `/proc/PID/exe` and write to the host's binary
//! through it. So gpurun executes itself again through a handle that cannot be written to: a detached, read-only clone
//! of the binary's mount or, on kernels before 5.12, a sealed copy in memory.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::FsFlags;

const OPEN_TREE_CLONE: u32 = 1;
const MOUNT_ATTR_RDONLY: u64 = 1;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Returns a command that runs gpurun again, sealed. The handle stays open as long as this process runs.
pub(crate) fn sealed_command() -> io::Result<Command> {
    let mut command = if is_sealed()? {
        Command::new("/proc/self/exe")
    } else {
        let handle = sealed_handle()?;
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        // The child resolves the path after its fork, so the handle must still be open then.
        std::mem::forget(handle);
        Command::new(path)
    };
    std::os::unix::process::CommandExt::arg0(&mut command, "gpurun");
    Ok(command)
}

/// Executes the current command line again, sealed, unless this process is sealed already.
pub fn ensure_sealed() -> io::Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let handle = sealed_handle()?;
    let text = |text: std::ffi::OsString| {
        CString::new(std::os::unix::ffi::OsStringExt::into_vec(text)).map_err(io::Error::from)
    };
    let args = std::env::args_os().map(text).collect::<io::Result<Vec<_>>>()?;
    let env = std::env::vars_os()
        .map(|(key, value)| {
            let mut entry = key;
            entry.push("=");
            entry.push(value);
            text(entry)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let path = CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
    Err(super::process::execve(&path, &args, &env).into())
}

/// Whether the file behind /proc/self/exe cannot be written to through that link.
pub fn is_sealed() -> io::Result<bool> {
    let exe = std::fs::File::open("/proc/self/exe")?;
    let read_only = nix::sys::statvfs::fstatvfs(&exe)?.flags().contains(FsFlags::ST_RDONLY);
    let sealed = fcntl(&exe, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & libc::F_SEAL_WRITE != 0);
    Ok(read_only || sealed)
}

fn sealed_handle() -> io::Result<OwnedFd> {
    read_only_clone().or_else(|_| sealed_copy())
}

fn read_only_clone() -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    // SAFETY: open_tree(2) reads a path, which is a NUL-terminated constant.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/proc/self/exe".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: mount_setattr(2) reads an empty path and one struct mount_attr of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

fn sealed_copy() -> io::Result<OwnedFd> {
    sealed(c"gpurun", std::fs::File::open("/proc/self/exe")?)
}

/// Creates a sealed in-memory copy of a program, which cannot be modified.
pub(crate) fn sealed(name: &std::ffi::CStr, mut program: impl io::Read) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    io::copy(&mut program, &mut file)?;
    file.flush()?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}
