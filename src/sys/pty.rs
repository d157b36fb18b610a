//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_write_int_bad!(tiocsctty, libc::TIOCSCTTY);

/// Tells a terminal how large its window is; the processes in its foreground get SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `struct winsize`. A terminal that is gone needs no size, so the error is of no interest.
    let _ = unsafe { tiocswinsz(terminal.as_raw_fd(), &raw const size) };
}

/// A new pty from the devpts at `/dev/ptmx` of the mount namespace that this process is in: master and slave.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let master =
        nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC)?;
    let stat = nix::sys::stat::fstat(&master)?;
    // The container's root may have put anything at /dev/ptmx.
    if stat.st_rdev != nix::sys::stat::makedev(5, 2) {
        return Err(io::Error::other("`/dev/ptmx` of the container is no pty multiplexer"));
    }
    nix::pty::unlockpt(&master)?;
    // SAFETY: TIOCGPTPEER takes open flags and answers a descriptor; it needs no path, so none can lead astray.
    let slave =
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    // SAFETY: PtyMaster owns its descriptor, and into_raw_fd gives it up to us.
    let master = unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(master)) };
    Ok((master, slave))
}

/// Makes a terminal the controlling one of this process's session.
pub fn make_controlling(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number; 0: do not steal it from another session.
    unsafe { tiocsctty(terminal.as_fd().as_raw_fd(), 0) }?;
    Ok(())
}
