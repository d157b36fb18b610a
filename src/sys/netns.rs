//! Network namespaces held by descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

const OWN: &str = "/proc/thread-self/ns/net";

/// A fresh network namespace with its loopback up. The calling process, which must be single-threaded, is back in its own afterwards.
pub fn create() -> io::Result<OwnedFd> {
    let home = File::open(OWN)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = File::open(OWN).and_then(|namespace| loopback_up().map(|()| namespace));
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    made.map(OwnedFd::from)
}

/// Runs something in a namespace and comes back, whatever it answers.
pub fn inside<T>(namespace: &OwnedFd, run: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open(OWN)?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = run();
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    Ok(result)
}

fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        // struct ifreq is larger than its shortest member
        padding: [u8; 22],
    }
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short,
        padding: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq of 40 bytes: name and flags, as `request` is laid out.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The name of a process's network interface index, or 0 where there is none of that name.
#[must_use]
pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or(0)
}
