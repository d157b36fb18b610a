//! What a command and a supervisor say to each other: packets on a `SOCK_SEQPACKET` unix socket, one message a packet.
//!
//! The first byte is the kind. Bytes of the container's streams follow raw; everything else is JSON. A packet never exceeds
//! [`MAX_PACKET`]. The supervisor talks to every connected client alike: whoever connects first hears [`FromSupervisor::Running`] or
//! [`FromSupervisor::Failed`], and everybody hears [`FromSupervisor::Exited`] as the last word.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
    socketpair,
};
use serde::{Deserialize, Serialize};

use crate::record::{LimitRow, State};
use crate::report::Report;
use crate::request::RestartPolicy;
use crate::spec::AskedLimits;

/// Bytes of one packet at most, its kind byte included.
pub const MAX_PACKET: usize = 32 * 1024;

/// From a command to a supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Send me the container's output from now on; with `stdin`, I am who types.
    Attach {
        stdin: bool,
    },
    #[serde(skip)]
    Stdin(Vec<u8>),
    /// The typist's standard input has ended.
    StdinEnd,
    Resize {
        rows: u16,
        columns: u16,
    },
    /// Send pid 1 a signal; with `stops`, the restart policy is off from now on.
    Signal {
        number: i32,
        stops: bool,
    },
    /// End the container in good order: the stop signal, then SIGKILL after so many seconds (defaults: the container's own).
    Stop {
        timeout: Option<u64>,
    },
    /// Jupyter answers there.
    Ready {
        url: String,
    },
    Rename {
        name: String,
    },
    /// Freeze or thaw every process of the container.
    Pause {
        paused: bool,
    },
    /// Change limits, all or nothing; a field that is not given stays.
    Update {
        limits: Box<AskedLimits>,
        restart: Option<RestartPolicy>,
    },
}

/// From a supervisor to the commands that are connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromSupervisor {
    /// One line for the person, while the launch goes on.
    Notice(String),
    /// One line for who wants to know more.
    Detail(String),
    /// The limits as read back from the kernel, before the container's process runs.
    Limits(Vec<LimitRow>),
    Running(Box<State>),
    Failed(Report),
    #[serde(skip)]
    Stdout(Vec<u8>),
    #[serde(skip)]
    Stderr(Vec<u8>),
    /// The container ended and its policy starts it again.
    Restarting {
        code: u8,
    },
    Exited(Box<State>),
    /// The answer to [`ToSupervisor::Pause`] or [`ToSupervisor::Update`], to who asked alone: the limits as they stand.
    Done(Result<Vec<LimitRow>, Report>),
}

const JSON: u8 = 0;
const STREAM_0: u8 = 1;
const STREAM_1: u8 = 2;
const STREAM_2: u8 = 3;

/// A connected socket of this protocol.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Connects to a container's supervisor.
    pub fn connect(path: &std::path::Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        at_path(path, |address| connect(fd.as_raw_fd(), address))?;
        Ok(Self(fd))
    }

    /// Waits for one message; `Ok(None)`: the other end is gone.
    pub fn receive<T: Message>(&self) -> io::Result<Option<T>> {
        self.receive_with(MsgFlags::empty())
    }

    /// One message if there is one (`WouldBlock` if not).
    pub fn try_receive<T: Message>(&self) -> io::Result<Option<T>> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with<T: Message>(&self, flags: MsgFlags) -> io::Result<Option<T>> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, flags) {
                Ok(0) => return Ok(None),
                Ok(length) => return T::decode(&buffer[..length]).map(Some),
                // The other end closed without having read all that we sent. That is told once, before what it sent to us.
                Err(nix::Error::EINTR | nix::Error::ECONNRESET) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends one message, waiting while the other end is slow.
    pub fn send(&self, message: &impl Message) -> io::Result<()> {
        self.send_packet(&message.encode()?, MsgFlags::MSG_NOSIGNAL)
    }

    /// Sends an encoded message if there is room (`WouldBlock` if not).
    pub fn try_send_packet(&self, packet: &[u8]) -> io::Result<()> {
        self.send_packet(packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn send_packet(&self, packet: &[u8], flags: MsgFlags) -> io::Result<()> {
        loop {
            match send(self.0.as_raw_fd(), packet, flags) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Uses a socket's path. One that is longer than an address holds (108 bytes, unix(7)) is reached through its directory's descriptor.
fn at_path(path: &std::path::Path, each: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> io::Result<()> {
    match UnixAddr::new(path) {
        Err(nix::Error::ENAMETOOLONG) => {}
        address => return Ok(each(&address?)?),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(parent)?;
    let short = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok(each(&UnixAddr::new(&short)?)?)
}

/// The socket on which a supervisor waits for commands.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Binds the control socket; the directory (mode 0700) keeps other users out. A stale socket of a dead supervisor is replaced.
    pub fn bind(path: &std::path::Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        at_path(path, |address| bind(fd.as_raw_fd(), address))?;
        listen(&fd, Backlog::new(16)?)?;
        // The standard library's listener serves any type of unix socket once it is bound.
        Ok(Self(UnixListener::from(fd)))
    }

    /// The next waiting client, if any.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        match self.0.accept() {
            Ok((stream, _)) => Ok(Some(Connection(stream.into()))),
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::ConnectionAborted].contains(&error.kind()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message that fits a packet.
pub trait Message: Sized {
    fn encode(&self) -> io::Result<Vec<u8>>;
    fn decode(packet: &[u8]) -> io::Result<Self>;
}

impl Message for ToSupervisor {
    fn encode(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Stdin(bytes) => Ok(stream(STREAM_0, bytes)),
            other => json(other),
        }
    }

    fn decode(packet: &[u8]) -> io::Result<Self> {
        match packet.split_first() {
            Some((&JSON, text)) => Ok(serde_json::from_slice(text)?),
            Some((&STREAM_0, bytes)) => Ok(Self::Stdin(bytes.to_vec())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Message for FromSupervisor {
    fn encode(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Stdout(bytes) => Ok(stream(STREAM_1, bytes)),
            Self::Stderr(bytes) => Ok(stream(STREAM_2, bytes)),
            other => json(other),
        }
    }

    fn decode(packet: &[u8]) -> io::Result<Self> {
        match packet.split_first() {
            Some((&JSON, text)) => Ok(serde_json::from_slice(text)?),
            Some((&STREAM_1, bytes)) => Ok(Self::Stdout(bytes.to_vec())),
            Some((&STREAM_2, bytes)) => Ok(Self::Stderr(bytes.to_vec())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn stream(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(bytes.len() + 1);
    packet.push(kind);
    packet.extend_from_slice(bytes);
    packet
}

fn json(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut packet = vec![JSON];
    serde_json::to_writer(&mut packet, message)?;
    if packet.len() > MAX_PACKET {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_whole_and_in_order() {
        let (client, supervisor) = Connection::pair().unwrap();
        let sent = [
            ToSupervisor::Attach { stdin: true },
            ToSupervisor::Stdin(b"a\0b\n".to_vec()),
            ToSupervisor::Resize { rows: 24, columns: 80 },
            ToSupervisor::StdinEnd,
        ];
        for message in &sent {
            client.send(message).unwrap();
        }
        drop(client);
        for message in sent {
            assert_eq!(supervisor.receive::<ToSupervisor>().unwrap(), Some(message));
        }
        assert_eq!(supervisor.receive::<ToSupervisor>().unwrap(), None, "a closed end is the end");
    }

    #[test]
    fn a_socket_may_lie_deep() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = Listener::bind(&deep.join("control")).unwrap();
        let client = Connection::connect(&deep.join("control")).unwrap();
        client.send(&ToSupervisor::StdinEnd).unwrap();
        let server = listener.accept().unwrap().unwrap();
        assert_eq!(server.receive::<ToSupervisor>().unwrap(), Some(ToSupervisor::StdinEnd));
    }

    #[test]
    fn the_largest_packet_fits_and_nonsense_is_refused() {
        let (a, b) = Connection::pair().unwrap();
        let bytes = vec![7; MAX_PACKET - 1];
        a.send(&FromSupervisor::Stdout(bytes.clone())).unwrap();
        assert_eq!(b.receive::<FromSupervisor>().unwrap(), Some(FromSupervisor::Stdout(bytes)));
        a.try_send_packet(&[9, 9]).unwrap();
        assert!(b.receive::<FromSupervisor>().is_err());
        assert_eq!(b.try_receive::<FromSupervisor>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
