//! Unix sockets at paths of any length.
//!
//! A socket address holds 107 bytes, and the path of a container's directory may be longer. So the directory is opened,
//! and the address names its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

fn with_address<T>(dir: &Path, name: &str, action: impl FnOnce(&UnixAddr) -> nix::Result<T>) -> io::Result<T> {
    let dir = File::open(dir)?;
    let short = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    Ok(action(&UnixAddr::new(short.as_str())?)?)
}

/// Listens on a new socket `name` in a directory.
pub(super) fn listener(dir: &Path, name: &str) -> io::Result<UnixListener> {
    with_address(dir, name, |address| {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), address)?;
        listen(&fd, Backlog::new(1)?)?;
        Ok(fd.into())
    })
}

/// Connects to the socket `name` in a directory, and closes the connection.
pub(super) fn connect(dir: &Path, name: &str) -> io::Result<()> {
    with_address(dir, name, |address| {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        nix::sys::socket::connect(fd.as_raw_fd(), address)
    })
}
