//! The supervisor's side of a resolver: its sockets, its rules and its process.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};

use super::super::NetError;
use super::super::nfnetlink::Netfilter;
use super::{redirect, table};
use crate::sys::{exe, netns, process};

/// The name of the internal command.
pub(crate) const RESOLVE: &str = "resolve";
/// How many times a resolver that has died is started again in one run of the container.
const MOST_STARTS: u32 = 8;

/// A container's resolver, which runs as long as this value.
#[derive(Debug)]
pub(crate) struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
    names: File,
    servers: Vec<IpAddr>,
    starts: u32,
    /// The process, and the socket whose end ends it.
    child: Option<(Child, UnixStream)>,
}

impl Resolver {
    /// Starts the resolver of a container in this network, if the container has names.
    pub(crate) fn start(
        state_dir: &Path,
        id: &str,
        namespace: &OwnedFd,
        servers: &[IpAddr],
    ) -> Result<Option<Self>, NetError> {
        let path = table::path(state_dir, id);
        let names = match File::open(&path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(NetError::Io { action: "read", path, source }),
        };
        let (udp, tcp) = netns::inside(namespace, listen).map_err(NetError::Namespace)??;
        let mut resolver = Self { udp, tcp, names, servers: servers.to_vec(), starts: 0, child: None };
        resolver.spawn().map_err(NetError::Resolver)?;
        Ok(Some(resolver))
    }

    fn spawn(&mut self) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = exe::sealed_command()?;
        let passed = [theirs.as_fd(), self.udp.as_fd(), self.tcp.as_fd(), self.names.as_fd()].map(|fd| fd.as_raw_fd());
        command.arg(RESOLVE).args(passed.map(|fd| format!("--fd={fd}")));
        command.args(self.servers.iter().map(ToString::to_string)).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        process::end_with_parent(&mut command);
        process::pass_only(&mut command, &passed);
        self.child = Some((command.spawn()?, ours));
        self.starts += 1;
        Ok(())
    }

    /// Whether the child that the supervisor has reaped was the resolver. It is started again then. Its sockets are still
    /// open, so clients only wait.
    pub(crate) fn reaped(&mut self, pid: i32, is_needed: bool) -> bool {
        if self.child.as_ref().is_none_or(|(child, _)| child.id() as i32 != pid) {
            return false;
        }
        self.child = None;
        if !is_needed {
            return true;
        }
        if self.starts > MOST_STARTS {
            tracing::error!("the resolver has died {MOST_STARTS} times: it is not started again");
        } else if let Err(error) = self.spawn() {
            tracing::error!("cannot start the resolver again: {error}");
        }
        true
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            let _ = child.kill();
            // This fails if the supervisor has reaped it.
            let _ = child.wait();
        }
    }
}

/// Opens the sockets in the current network, and leads the resolver's address to them.
fn listen() -> Result<(UdpSocket, TcpListener), NetError> {
    let open = || -> io::Result<(UdpSocket, TcpListener)> {
        let any = SocketAddr::V4(SocketAddrV4::new(redirect::ADDRESS, 0));
        let (udp, tcp) = (UdpSocket::bind(any)?, TcpListener::bind(any)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    };
    let (udp, tcp) = open().map_err(NetError::Resolver)?;
    let ports = |udp: &UdpSocket, tcp: &TcpListener| -> io::Result<(u16, u16)> {
        Ok((udp.local_addr()?.port(), tcp.local_addr()?.port()))
    };
    let lead = ports(&udp, &tcp).and_then(|(udp, tcp)| redirect::add(&Netfilter::new()?, udp, tcp));
    lead.map_err(|source| NetError::Filter { action: "lead DNS queries of the container to its resolver", source })?;
    Ok((udp, tcp))
}
