//! The protocol between commands and a supervisor: packets on a `SOCK_SEQPACKET` unix socket.
//!
//! The first byte of a packet is its kind. Data of the container's streams follows as raw bytes, everything else as
//! JSON. A packet never exceeds [`MAX_PACKET`]. A longer JSON message (500 published ports, the output of a hook in a
//! report) is split into several packets, of which all but the last have the kind [`PART`]. The supervisor treats all
//! connected clients alike. It sends [`FromSupervisor::Running`] when the container has started. The last message to
//! every client is [`FromSupervisor::Exited`], or [`FromSupervisor::Failed`] if the start failed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
    socketpair,
};
use serde::{Deserialize, Serialize};

use crate::record::{LimitRow, State};
use crate::report::Report;
use crate::request::{Attachment, LimitsRequest, RestartPolicy, TimeLimits};

/// The version of the protocol. It rises when a command must know what its peer supports. In every version, a
/// supervisor understands [`ToSupervisor::Stop`] and [`ToSupervisor::Signal`], and its last message is
/// [`FromSupervisor::Exited`] or the end of the connection, so that each release can end the containers of all others.
///
/// 1. Release 0.1. A message is one packet. A supervisor announces nothing.
/// 2. A message may be several packets. A freeze may belong to a connection ([`ToSupervisor::Pause`]).
/// 3. A container can be connected to networks ([`ToSupervisor::Connect`]).
/// 4. A health check can be asked for ([`ToSupervisor::CheckHealth`]).
pub(crate) const PROTOCOL: u32 = 4;

/// What a supervisor says about itself in `/run/gpurun/ID/supervisor.json`, which it writes before it binds its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub protocol: u32,
    /// The version of its gpurun.
    pub release: String,
}

impl Announcement {
    /// The announcement of this program.
    #[must_use]
    pub(crate) fn own() -> Self {
        Self { protocol: PROTOCOL, release: env!("CARGO_PKG_VERSION").into() }
    }

    /// Writes the announcement into the run directory of a container.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        crate::durable::write_atomic_volatile(&Self::path(run_dir), &serde_json::to_vec(self)?)
    }

    /// Reads the announcement of a running supervisor. Supervisors of release 0.1 make none.
    pub(crate) fn read(run_dir: &Path) -> io::Result<Self> {
        match std::fs::read(Self::path(run_dir)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { protocol: 1, release: "0.1".into() }),
            Err(error) => Err(error),
        }
    }

    fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("supervisor.json")
    }

    /// Whether the supervisor thaws a container when the command that froze it is gone.
    #[must_use]
    pub(crate) fn releases_freezes(&self) -> bool {
        self.protocol >= 2
    }

    /// Whether the supervisor understands a message.
    #[must_use]
    pub(crate) fn understands(&self, message: &ToSupervisor) -> bool {
        let is_basic = matches!(message, ToSupervisor::Stop { .. } | ToSupervisor::Signal { .. });
        let fits = || message.encode().is_ok_and(|message| message.len() <= MAX_PACKET);
        match self.protocol {
            PROTOCOL => true,
            3 => !matches!(message, ToSupervisor::CheckHealth),
            2 => !matches!(
                message,
                ToSupervisor::Connect { .. } | ToSupervisor::Disconnect { .. } | ToSupervisor::CheckHealth
            ),
            1 => {
                is_basic
                    || (fits()
                        && !matches!(message, ToSupervisor::Update { times: Some(_), .. } | ToSupervisor::CheckHealth))
            }
            _ => is_basic,
        }
    }
}

/// Maximum size of one packet in bytes, including its kind byte.
pub(crate) const MAX_PACKET: usize = 32 * 1024;

/// Messages from a command to a supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Send the container's output to this client from now on. With `stdin`, this client also provides the container's
    /// standard input.
    Attach {
        stdin: bool,
    },
    #[serde(skip)]
    Stdin(Vec<u8>),
    /// The standard input of the client with `stdin` has ended.
    StdinEnd,
    Resize {
        rows: u16,
        columns: u16,
    },
    /// Send a signal to pid 1. With `stops`, the restart policy is disabled from now on.
    Signal {
        number: i32,
        stops: bool,
    },
    /// Stop the container gracefully: send the stop signal, then SIGKILL after `timeout` seconds. The defaults are the
    /// container's own.
    Stop {
        timeout: Option<u64>,
    },
    /// Jupyter is ready at this URL.
    Ready {
        url: String,
    },
    Rename {
        name: String,
    },
    /// Freeze or thaw every process of the container.
    ///
    /// With `held`, the freeze belongs to this connection and ends when the connection ends, for whatever reason. A
    /// supervisor of an earlier release ignores the field and keeps the container frozen until it receives a request to
    /// thaw it.
    Pause {
        paused: bool,
        #[serde(default)]
        held: bool,
    },
    /// Connect the container to one more network, or disconnect it from one. Since version 3.
    Connect {
        attachment: Box<Attachment>,
    },
    Disconnect {
        network: String,
    },
    /// Run the health check now. Since version 4.
    CheckHealth,
    /// Change limits, all or nothing. A field that is not set remains unchanged.
    Update {
        limits: Box<LimitsRequest>,
        restart: Option<RestartPolicy>,
        /// The limits of time. A supervisor of release 0.1 has none.
        #[serde(default)]
        times: Option<TimeLimits>,
    },
}

/// Messages from a supervisor to the connected commands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// One line for the user during the launch.
    Notice(String),
    /// One line for the user in verbose output.
    Detail(String),
    /// What the launch does next, if that may take long.
    Step(String),
    /// The limits as read back from the kernel before the container's process starts.
    Limits(Vec<LimitRow>),
    Running(Box<State>),
    Failed(Report),
    #[serde(skip)]
    Stdout(Vec<u8>),
    #[serde(skip)]
    Stderr(Vec<u8>),
    /// The container has exited, and the restart policy starts it again.
    Restarting {
        code: u8,
    },
    Exited(Box<State>),
    /// The answer to [`ToSupervisor::Pause`] or [`ToSupervisor::Update`], sent only to the requesting client. It
    /// contains the limits now in effect.
    Done(Result<Vec<LimitRow>, Report>),
    /// The answer to [`ToSupervisor::CheckHealth`] when the check has ended, sent only to the clients that asked: its
    /// exit code.
    Checked {
        exit_code: i32,
    },
}

const JSON: u8 = 0;
const STREAM_0: u8 = 1;
const STREAM_1: u8 = 2;
const STREAM_2: u8 = 3;
/// The first piece or a further piece of a JSON message. The last piece has the kind [`JSON`].
const PART: u8 = 4;
/// Maximum size of one message in bytes, over all its packets. The peer is another gpurun process, so this only limits
/// the effect of a bug.
const MAX_MESSAGE: usize = 64 << 20;

/// A connected socket that uses this protocol.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    /// The received pieces of a message that spans several packets.
    parts: RefCell<Vec<u8>>,
}

impl Connection {
    /// Creates a pair of connected sockets.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::from_fd(a), Self::from_fd(b)))
    }

    #[must_use]
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, parts: RefCell::default() }
    }

    #[must_use]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Connects to a container's supervisor.
    pub(crate) fn connect(path: &std::path::Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        at_path(path, |address| connect(fd.as_raw_fd(), address))?;
        Ok(Self::from_fd(fd))
    }

    /// Waits for one message. Returns `Ok(None)` if the peer has closed the connection.
    pub(crate) fn receive<T: Message>(&self) -> io::Result<Option<T>> {
        self.receive_with(MsgFlags::empty())
    }

    /// Waits until the peer has sent data or closed the connection. Returns `false` on a timeout.
    #[must_use]
    pub(crate) fn wait(&self, time: std::time::Duration) -> bool {
        // `wait_pidfd` works for any descriptor that becomes readable.
        crate::sys::process::wait_pidfd(&self.fd, time)
    }

    /// Receives one message without waiting. Fails with `WouldBlock` if there is none.
    pub(crate) fn try_receive<T: Message>(&self) -> io::Result<Option<T>> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with<T: Message>(&self, flags: MsgFlags) -> io::Result<Option<T>> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, flags) {
                Ok(0) => return Ok(None),
                Ok(length) => {
                    if let Some(message) = self.assemble(&buffer[..length])? {
                        return T::decode(&message).map(Some);
                    }
                }
                // The peer closed the connection without reading everything that was sent to it. The kernel reports
                // this once, before the data that the peer sent.
                Err(nix::Error::EINTR | nix::Error::ECONNRESET) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns a complete message, or `None` if more of its packets must follow.
    fn assemble<'a>(&self, packet: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>> {
        let mut parts = self.parts.borrow_mut();
        match packet.split_first() {
            Some((&PART, piece)) if parts.len() + piece.len() < MAX_MESSAGE => {
                if parts.is_empty() {
                    parts.push(JSON);
                }
                parts.extend_from_slice(piece);
                Ok(None)
            }
            Some((&PART, _)) => Err(io::ErrorKind::InvalidData.into()),
            Some((&JSON, piece)) if !parts.is_empty() => {
                parts.extend_from_slice(piece);
                Ok(Some(Cow::Owned(std::mem::take(&mut *parts))))
            }
            _ => Ok(Some(Cow::Borrowed(packet))),
        }
    }

    /// Sends one message. Waits while the peer does not read.
    pub(crate) fn send(&self, message: &impl Message) -> io::Result<()> {
        packets(message.encode()?).iter().try_for_each(|packet| self.send_packet(packet, MsgFlags::MSG_NOSIGNAL))
    }

    /// Sends one message without waiting. Fails with `WouldBlock` if the socket buffer is full.
    pub(crate) fn try_send(&self, message: &impl Message) -> io::Result<()> {
        self.try_send_packet(&message.encode()?)
    }

    /// Sends an encoded message without waiting. Fails with `WouldBlock` if the socket buffer is full.
    pub(crate) fn try_send_packet(&self, packet: &[u8]) -> io::Result<()> {
        self.send_packet(packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn send_packet(&self, packet: &[u8], flags: MsgFlags) -> io::Result<()> {
        loop {
            match send(self.fd.as_raw_fd(), packet, flags) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Calls `each` with the address of a socket path. A path that is too long for an address (108 bytes, unix(7)) is
/// reached through the descriptor of its directory.
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

/// The socket on which a supervisor accepts connections from commands.
#[derive(Debug)]
pub(crate) struct Listener(UnixListener);

impl Listener {
    /// Binds the control socket. The directory (mode 0700) keeps other users out. A stale socket of a dead supervisor
    /// is replaced.
    pub(crate) fn bind(path: &std::path::Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        at_path(path, |address| bind(fd.as_raw_fd(), address))?;
        listen(&fd, Backlog::new(16)?)?;
        // The standard library's listener works with any type of unix socket once it is bound.
        Ok(Self(UnixListener::from(fd)))
    }

    /// Returns the next waiting client, if any.
    pub(crate) fn accept(&self) -> io::Result<Option<Connection>> {
        match self.0.accept() {
            Ok((stream, _)) => Ok(Some(Connection::from_fd(stream.into()))),
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

/// A message: its kind byte, followed by its contents.
pub(crate) trait Message: Sized {
    /// Encodes the complete message. [`packets`] splits it for the socket.
    fn encode(&self) -> io::Result<Vec<u8>>;
    fn decode(message: &[u8]) -> io::Result<Self>;
}

/// Splits an encoded message into the packets that carry it.
pub(crate) fn packets(message: Vec<u8>) -> Vec<Vec<u8>> {
    match message.split_first() {
        Some((&JSON, content)) if message.len() > MAX_PACKET => {
            let pieces = content.chunks(MAX_PACKET - 1);
            let last = pieces.len() - 1;
            pieces.enumerate().map(|(number, piece)| stream(if number == last { JSON } else { PART }, piece)).collect()
        }
        _ => vec![message],
    }
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
    let mut whole = vec![JSON];
    serde_json::to_writer(&mut whole, message)?;
    if whole.len() > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_announces_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = Announcement::read(dir.path()).unwrap();
        assert_eq!((earlier.protocol, &*earlier.release), (1, "0.1"));
        Announcement::own().write(dir.path()).unwrap();
        assert_eq!(Announcement::read(dir.path()).unwrap(), Announcement::own());
        let later = Announcement { protocol: PROTOCOL + 1, ..Announcement::own() };
        let stop = ToSupervisor::Stop { timeout: None };
        let rename = |length: usize| ToSupervisor::Rename { name: "x".repeat(length) };
        let understood = |peer: &Announcement| [stop.clone(), rename(9), rename(40_000)].map(|m| peer.understands(&m));
        assert_eq!(understood(&earlier), [true, true, false]);
        assert_eq!(understood(&Announcement::own()), [true, true, true]);
        assert_eq!(understood(&later), [true, false, false], "only what every version has");
    }

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
    fn a_socket_path_may_be_long() {
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
    fn a_message_longer_than_a_packet_crosses_whole() {
        let (a, b) = Connection::pair().unwrap();
        // Lengths around the boundaries of one, two and three packets, and one far larger.
        for length in (MAX_PACKET - 20..MAX_PACKET + 4).chain(2 * MAX_PACKET - 20..2 * MAX_PACKET + 4).chain([150_000])
        {
            let long = FromSupervisor::Notice("x".repeat(length));
            a.send(&long).unwrap();
            a.send(&FromSupervisor::Stdout(b"after".to_vec())).unwrap();
            assert_eq!(b.receive::<FromSupervisor>().unwrap(), Some(long), "{length}");
            assert_eq!(b.receive::<FromSupervisor>().unwrap(), Some(FromSupervisor::Stdout(b"after".to_vec())));
        }
        for packet in packets(FromSupervisor::Notice("x".repeat(100_000)).encode().unwrap()) {
            assert!(packet.len() <= MAX_PACKET);
        }
    }

    #[test]
    fn a_piece_without_its_rest_is_no_message() {
        let (a, b) = Connection::pair().unwrap();
        a.try_send_packet(&[PART, b'"', b'x']).unwrap();
        assert_eq!(b.try_receive::<FromSupervisor>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(b.receive::<FromSupervisor>().unwrap(), None);
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
