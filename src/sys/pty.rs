//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_write_int_bad!(tiocsctty, libc::TIOCSCTTY);

/// Sets the window size of a terminal. The processes in its foreground get SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `struct winsize`. The error is ignored, because a terminal that no longer exists
    // needs no size.
    let _ = unsafe { tiocswinsz(terminal.as_raw_fd(), &raw const size) };
}

/// Opens a new pty from `/dev/ptmx` of this process's mount namespace. Returns the master and the slave.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let master =
        nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC)?;
    let stat = nix::sys::stat::fstat(&master)?;
    // The container's root may have replaced /dev/ptmx with anything.
    if stat.st_rdev != nix::sys::stat::makedev(5, 2) {
        return Err(io::Error::other("`/dev/ptmx` of the container is not a pty multiplexer"));
    }
    nix::pty::unlockpt(&master)?;
    // SAFETY: TIOCGPTPEER takes open flags and returns a descriptor. It uses no path that could be redirected.
    let slave =
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    // SAFETY: PtyMaster owns its descriptor, and into_raw_fd transfers it to us.
    let master = unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(master)) };
    Ok((master, slave))
}

/// Makes a terminal the controlling terminal of this process's session.
pub(crate) fn make_controlling(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number. 0 means: do not steal the terminal from another session.
    unsafe { tiocsctty(terminal.as_fd().as_raw_fd(), 0) }?;
    Ok(())
}
