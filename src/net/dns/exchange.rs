//! One query to the host's name servers, and the clients that wait for its answer.
//!
//! Each attempt has a socket of its own, with a source port and an ID that cannot be guessed, and accepts an answer only
//! from the server that was asked. Clients with the same query share one exchange. So a query that comes back to this
//! resolver, because the host's name server is a container that asks it, waits for itself until the time is over.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::framed::Framed;
use super::query::{Carrier, Failure, belongs, failed, is_failure};
use super::redirect::PORT;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many times each server is asked. All of it takes less time than clients wait (5 seconds for one server).
const ROUNDS: usize = 2;
/// The most clients that share an exchange.
const MOST_CLIENTS: usize = 64;
/// The largest message.
const LARGEST: usize = 65_535;

/// Who gets the answer, and with which ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub id: [u8; 2],
    pub client: Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Datagram(SocketAddr),
    /// The number of a connection.
    Stream(u64),
}

#[derive(Debug)]
enum Link {
    Datagram(UdpSocket),
    Stream(Framed),
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub askers: Vec<Asker>,
    query: Vec<u8>,
    carrier: Carrier,
    servers: Vec<IpAddr>,
    /// How many servers have been asked so far, in all rounds.
    asked: usize,
    /// The ID of this attempt.
    id: u16,
    link: Option<Link>,
    pub deadline: Instant,
    /// The answer of a server that failed.
    last: Option<Vec<u8>>,
}

impl Exchange {
    /// Asks the first server that can be reached. `Err` is the answer if none can be.
    pub(super) fn begin(
        asker: Asker,
        query: Vec<u8>,
        carrier: Carrier,
        servers: Vec<IpAddr>,
        now: Instant,
    ) -> Result<Self, Vec<u8>> {
        let mut exchange = Self {
            askers: vec![asker],
            query,
            carrier,
            servers,
            asked: 0,
            id: 0,
            link: None,
            deadline: now,
            last: None,
        };
        match exchange.ask_next(now) {
            None => Ok(exchange),
            Some(answer) => Err(answer),
        }
    }

    /// Adds a client if its query is the same, and returns whether it waits here. A client that repeats its query is
    /// added once.
    pub(super) fn join(&mut self, asker: Asker, query: &[u8], carrier: Carrier) -> bool {
        let is_same = self.carrier == carrier && self.query.get(2..) == query.get(2..);
        let waits = self.askers.contains(&asker);
        let joins = is_same && !waits && self.askers.len() < MOST_CLIENTS;
        if joins {
            self.askers.push(asker);
        }
        joins || (is_same && waits)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(|link| match link {
            Link::Datagram(socket) => socket.as_fd(),
            Link::Stream(stream) => stream.fd(),
        })
    }

    pub(super) fn events(&self) -> PollFlags {
        match &self.link {
            Some(Link::Stream(stream)) if stream.is_sending() => PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        }
    }

    /// Goes on after the link has become ready. Returns the answer when there is one.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Vec<u8>> {
        match self.receive() {
            Ok(None) => None,
            Ok(Some(answer)) if is_failure(&answer) => {
                self.last = Some(answer);
                self.ask_next(now)
            }
            Ok(Some(answer)) => Some(answer),
            Err(_) => self.ask_next(now),
        }
    }

    /// Asks the next server after the time of this one is over. Returns the answer when all have been asked.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.ask_next(now)
    }

    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        match &mut self.link {
            None => Err(io::ErrorKind::NotConnected.into()),
            Some(Link::Datagram(socket)) => {
                let mut buffer = vec![0; LARGEST];
                match socket.recv(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    Err(error) => Err(error),
                    Ok(length) => {
                        buffer.truncate(length);
                        // Others are forged, or late.
                        Ok(Some(buffer).filter(|answer| belongs(answer, &self.query, self.id)))
                    }
                }
            }
            Some(Link::Stream(stream)) => {
                stream.send()?;
                match stream.receive()? {
                    Some(answer) if !belongs(&answer, &self.query, self.id) => Err(io::ErrorKind::InvalidData.into()),
                    other => Ok(other),
                }
            }
        }
    }

    /// Asks the next server that can be reached, or returns the answer for the clients if there is none.
    fn ask_next(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.link = None;
        while self.asked < self.servers.len() * ROUNDS {
            let server = self.servers[self.asked % self.servers.len()];
            self.asked += 1;
            if let Ok(link) = self.ask(server) {
                self.link = Some(link);
                self.deadline = now + PATIENCE;
                return None;
            }
        }
        Some(self.last.take().unwrap_or_else(|| failed(&self.query, Failure::Server)))
    }

    fn ask(&mut self, server: IpAddr) -> io::Result<Link> {
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        self.id = u16::from_be_bytes(id);
        let query = [&id[..], self.query.get(2..).unwrap_or_default()].concat();
        let server = SocketAddr::new(server, PORT);
        match self.carrier {
            Carrier::Datagram => {
                let socket = UdpSocket::from(open(server, SockType::Datagram)?);
                socket.send(&query)?;
                Ok(Link::Datagram(socket))
            }
            Carrier::Stream => {
                let mut stream = Framed::new(TcpStream::from(open(server, SockType::Stream)?), LARGEST);
                stream.queue(&query);
                Ok(Link::Stream(stream))
            }
        }
    }
}

/// A connected socket. The kernel chooses a random port.
fn open(server: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}
