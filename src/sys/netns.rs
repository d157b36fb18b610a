//! Network namespaces that are held by a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

const OWN: &str = "/proc/thread-self/ns/net";

/// Creates a network namespace with its loopback interface up. The calling process, which must be single-threaded,
/// returns to its own namespace.
pub fn create() -> io::Result<OwnedFd> {
    let home = File::open(OWN)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = File::open(OWN).and_then(|namespace| loopback_up().map(|()| namespace));
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    made.map(OwnedFd::from)
}

/// Calls `run` in a namespace and then returns to the current one, whatever the result.
pub fn inside<T>(namespace: &OwnedFd, run: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open(OWN)?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = run();
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    Ok(result)
}

/// The inode that identifies the calling thread's network namespace.
#[must_use]
pub(crate) fn current() -> Option<u64> {
    std::fs::metadata(OWN).ok().map(|namespace| std::os::unix::fs::MetadataExt::ino(&namespace))
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
        // struct ifreq is larger than its shortest member.
        padding: [u8; 22],
    }
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short,
        padding: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq of 40 bytes, whose name and flags are where `request` has them.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The index of the network interface with this name in the process's namespace, or 0 if there is none.
#[must_use]
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or(0)
}
