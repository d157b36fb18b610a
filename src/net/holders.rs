//! Holds each published port with a bound socket while the container lives, and finds the owner of a port in use.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt, shutdown,
    socket, sockopt,
};

use super::lease;
use super::{NetError, Published, Request};
use crate::request::{PortSpec, Protocol};

/// Binds a socket to every port. The sockets are not connected, and they do not listen.
pub(super) fn hold(request: &Request<'_>) -> Result<(Vec<Published>, Vec<OwnedFd>), NetError> {
    let (mut ports, mut holders) = (Vec::<Published>::new(), Vec::new());
    for spec in request.ports {
        let (socket, host_port) = hold_first(spec).map_err(|errno| {
            let last = spec.host_last.map(|last| format!("-{last}")).unwrap_or_default();
            let port = format!("{}:{}{last}/{}", spec.host_ip, spec.host_port.unwrap_or(0), spec.protocol);
            match errno {
                nix::Error::EADDRINUSE if spec.host_last.is_some() => {
                    NetError::PortInUse { port, by: ": none of them is free".into() }
                }
                nix::Error::EADDRINUSE => NetError::PortInUse { port, by: describe_holders(request, spec, &ports) },
                errno => NetError::Port { port, source: errno.into() },
            }
        })?;
        holders.push(socket);
        ports.push(Published {
            host_ip: spec.host_ip,
            host_port,
            container_port: spec.container_port,
            protocol: spec.protocol,
        });
    }
    Ok((ports, holders))
}

/// Binds the port, or the first free one of a range.
fn hold_first(spec: &PortSpec) -> nix::Result<(OwnedFd, u16)> {
    let (Some(first), Some(last)) = (spec.host_port, spec.host_last) else { return hold_one(spec) };
    let mut ports = (first..=last).map(|port| hold_one(&PortSpec { host_port: Some(port), ..*spec }));
    ports.find(|held| !matches!(held, Err(nix::Error::EADDRINUSE))).unwrap_or(Err(nix::Error::EADDRINUSE))
}

fn hold_one(spec: &PortSpec) -> nix::Result<(OwnedFd, u16)> {
    let address = SockaddrIn::from(SocketAddrV4::new(spec.host_ip, spec.host_port.unwrap_or(0)));
    let kind = match spec.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let new = || socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
    let fd = new()?;
    let fd = match bind(fd.as_raw_fd(), &address) {
        Ok(()) => fd,
        // Closed connections of an earlier server (TIME_WAIT) block a plain bind for a minute. SO_REUSEADDR ignores
        // them, but it also ignores other sockets with that option, unless one of them listens. So call listen, which
        // fails if another socket has the port, and stop listening at once. The result is a bound socket like that of a
        // plain bind. (UDP has no TIME_WAIT, and SO_REUSEADDR would share its port.)
        Err(nix::Error::EADDRINUSE) if spec.protocol == Protocol::Tcp => {
            let fd = new()?;
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &address)?;
            listen(&fd, Backlog::new(0)?)?;
            shutdown(fd.as_raw_fd(), Shutdown::Read)?;
            setsockopt(&fd, sockopt::ReuseAddr, &false)?;
            fd
        }
        Err(errno) => return Err(errno),
    };
    let bound: SockaddrIn = getsockname(fd.as_raw_fd())?;
    Ok((fd, bound.port()))
}

/// Returns " by …" with the owner of the port: the same request, another container, a process of this host, or an
/// unknown program. The search is slow, but it only runs after an error.
fn describe_holders(request: &Request<'_>, spec: &PortSpec, own: &[Published]) -> String {
    let same = |port: &Published| {
        Some(port.host_port) == spec.host_port && port.protocol == spec.protocol && overlap(port.host_ip, spec.host_ip)
    };
    if own.iter().any(same) {
        return " by another `-p` of this container".into();
    }
    for id in lease::all(request.state_dir).unwrap_or_default() {
        let Ok(Some(lease)) = lease::read(request.state_dir, &id) else { continue };
        if id != request.id && lease.owner.lives() && lease.ports.iter().any(same) {
            let of = if lease.user.is_empty() { String::new() } else { format!(" of {}", lease.user) };
            return format!(" by container `{}`{of}", lease.name);
        }
    }
    let port = spec.host_port.unwrap_or(0);
    let inodes: Vec<u64> = ["", "6"]
        .iter()
        .filter_map(|family| fs::read_to_string(format!("/proc/self/net/{}{family}", spec.protocol)).ok())
        .flat_map(|text| inodes(&text, spec.host_ip, port))
        .collect();
    match inodes.iter().find_map(|inode| process(Path::new("/proc"), *inode)) {
        Some((pid, name)) => format!(" by `{name}` (pid {pid})"),
        None => " by another program of this host".into(),
    }
}

fn overlap(one: Ipv4Addr, other: Ipv4Addr) -> bool {
    one.is_unspecified() || other.is_unspecified() || one == other
}

/// The inodes of the sockets at a port, from /proc/net/{tcp,udp}{,6} (proc_net(5)). An IPv6 socket may also occupy the
/// IPv4 port, so its address is not compared.
fn inodes(text: &str, ip: Ipv4Addr, port: u16) -> Vec<u64> {
    let one = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, other) = fields.get(1)?.rsplit_once(':')?;
        // A socket with a remote port is a connection, which may share the local port of a server.
        let connected = !fields.get(2)?.ends_with(":0000");
        let there = match address.len() {
            8 => overlap(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes()), ip),
            _ => true,
        };
        let inode = fields.get(9)?.parse().ok()?;
        (there && !connected && u16::from_str_radix(other, 16).ok()? == port && inode != 0).then_some(inode)
    };
    text.lines().skip(1).filter_map(one).collect()
}

/// The process that has the socket open, and its name.
fn process(proc: &Path, inode: u64) -> Option<(u32, String)> {
    let link = format!("socket:[{inode}]");
    let has = |pid: u32| -> io::Result<bool> {
        let fds = fs::read_dir(proc.join(format!("{pid}/fd")))?;
        Ok(fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == link.as_str())))
    };
    let pids = fs::read_dir(proc).ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // Processes may exit during the search, so errors are ignored.
    let pid = pids.into_iter().find(|pid| has(*pid).unwrap_or(false))?;
    let name = fs::read_to_string(proc.join(format!("{pid}/comm"))).ok()?;
    Some((pid, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_the_kernels_table() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n\
            1: 020200C0:1F90 030200C0:D431 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0\n\
            2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0\n";
        let any = Ipv4Addr::UNSPECIFIED;
        assert_eq!(inodes(text, any, 8080), [111]);
        assert_eq!(inodes(text, [192, 0, 2, 2].into(), 8080), [0u64; 0]);
        assert_eq!(inodes(text, [192, 0, 2, 2].into(), 22), [333]);
        let six = "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n\
            0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 444 1\n";
        assert_eq!(inodes(six, any, 8080), [444]);
    }
}
