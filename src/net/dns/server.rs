//! The process `gpurun resolve`: one poll loop over its sockets, which sleeps until a packet arrives.
//!
//! Everything that a client can make it keep is bounded: connections, exchanges with name servers, clients that wait for
//! one exchange, and the size of messages.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::exchange::{Asker, Client, Exchange};
use super::framed::Framed;
use super::query::{Carrier, Failure, Verdict, decide, failed};
use super::sandbox;
use super::table::Names;
use crate::report::Report;
use crate::sys::process;

/// The most connections of clients, and the most queries to name servers at once.
const MOST_CONNECTIONS: usize = 64;
const MOST_EXCHANGES: usize = 256;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// The largest query.
const LARGEST_QUERY: usize = 4096;
/// How many datagrams are read before other sockets have their turn.
const BATCH: usize = 64;

/// Answers queries until the supervisor ends. `fds` are the ends of a socket pair with the supervisor, the sockets for
/// UDP and TCP, and the file with the names, as [`super::Resolver`] passes them.
pub(crate) fn main(fds: &[i32], servers: Vec<IpAddr>) -> Result<u8, Report> {
    let failed = |error: io::Error| Report::new("cannot start the resolver").with_cause(error);
    let fds = fds.iter().map(|fd| process::take_inherited_fd(*fd)).collect::<Option<Vec<OwnedFd>>>();
    let [supervisor, udp, tcp, names]: [OwnedFd; 4] =
        fds.and_then(|fds| fds.try_into().ok()).ok_or_else(|| failed(io::Error::other("a descriptor is missing")))?;
    // It reads a file of this process, which the sandbox does not allow.
    crate::sys::memory::release_unused();
    sandbox::enter().map_err(failed)?;
    Server {
        supervisor,
        udp: udp.into(),
        tcp: tcp.into(),
        names: Names::new(File::from(names)),
        servers,
        connections: Vec::new(),
        exchanges: Vec::new(),
        accepted: 0,
        turn: 0,
    }
    .serve()
    .map_err(failed)?;
    Ok(0)
}

/// A client's connection.
struct Connection {
    number: u64,
    framed: Framed,
    /// Whether its query waits for an exchange.
    waits: bool,
    deadline: Instant,
    is_over: bool,
}

struct Server {
    /// Ends with the supervisor.
    supervisor: OwnedFd,
    udp: UdpSocket,
    tcp: TcpListener,
    names: Names,
    servers: Vec<IpAddr>,
    connections: Vec<Connection>,
    exchanges: Vec<Exchange>,
    accepted: u64,
    turn: usize,
}

#[derive(Clone, Copy)]
enum Source {
    Supervisor,
    Datagrams,
    Connections,
    Connection(usize),
    Exchange(usize),
}

impl Server {
    fn serve(mut self) -> io::Result<()> {
        while let Some(ready) = self.wait()? {
            // Backwards, because an exchange that ends is removed.
            for (source, events) in ready.into_iter().rev() {
                match source {
                    Source::Supervisor => return Ok(()),
                    Source::Datagrams => self.read_datagrams(),
                    Source::Connections => self.accept(),
                    Source::Connection(index) => self.serve_connection(index, events),
                    Source::Exchange(index) => self.advance(index),
                }
            }
            self.expire();
        }
        Ok(())
    }

    /// Waits for packets. `None` on a signal that ends the process.
    fn wait(&self) -> io::Result<Option<Vec<(Source, PollFlags)>>> {
        let sources = self.sources();
        let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd, events)| PollFd::new(*fd, *events)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Some(Vec::new())),
            Err(errno) => return Err(errno.into()),
        }
        let ready = sources.iter().zip(&fds).filter_map(|((source, ..), fd)| {
            fd.revents().filter(|events| !events.is_empty()).map(|events| (*source, events))
        });
        Ok(Some(ready.collect()))
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![
            (Source::Supervisor, self.supervisor.as_fd(), PollFlags::POLLIN),
            (Source::Datagrams, self.udp.as_fd(), PollFlags::POLLIN),
            (Source::Connections, self.tcp.as_fd(), PollFlags::POLLIN),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            let events = match connection {
                Connection { framed, .. } if framed.is_sending() => PollFlags::POLLOUT,
                Connection { waits: true, .. } => PollFlags::empty(),
                _ => PollFlags::POLLIN,
            };
            sources.push((Source::Connection(index), connection.framed.fd(), events));
        }
        for (index, exchange) in self.exchanges.iter().enumerate() {
            sources.extend(exchange.fd().map(|fd| (Source::Exchange(index), fd, exchange.events())));
        }
        sources
    }

    /// Until the next deadline. Without clients there is none.
    fn timeout(&self) -> PollTimeout {
        let exchanges = self.exchanges.iter().map(|exchange| exchange.deadline);
        // A connection that waits has the deadline of its exchange.
        let idle = self.connections.iter().filter(|connection| !connection.waits).map(|connection| connection.deadline);
        let next = exchanges.chain(idle).min();
        next.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        })
    }

    fn read_datagrams(&mut self) {
        for _ in 0..BATCH {
            // A longer message is cut, and is a format error then.
            let mut buffer = [0; LARGEST_QUERY];
            // Other errors belong to one packet, for example to a client that has gone.
            let Ok((length, from)) = self.udp.recv_from(&mut buffer) else { return };
            self.hear(&buffer[..length], Client::Datagram(from));
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.tcp.accept() else { return };
        if process::set_nonblocking(&stream).is_err() {
            return;
        }
        if self.connections.len() >= MOST_CONNECTIONS {
            // The one that has been idle for the longest time.
            let oldest = self.connections.iter().enumerate().min_by_key(|(_, connection)| connection.deadline);
            if let Some((index, _)) = oldest {
                self.connections.swap_remove(index);
            }
        }
        self.accepted += 1;
        self.connections.push(Connection {
            number: self.accepted,
            framed: Framed::new(stream, LARGEST_QUERY),
            waits: false,
            deadline: Instant::now() + IDLE,
            is_over: false,
        });
    }

    fn serve_connection(&mut self, index: usize, events: PollFlags) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.framed.is_sending() {
            connection.is_over |= connection.framed.send().is_err();
        } else if connection.waits {
            // Its client has gone.
            connection.is_over |= events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        } else {
            match connection.framed.receive() {
                Ok(None) => {}
                Err(_) => connection.is_over = true,
                Ok(Some(query)) => {
                    connection.deadline = Instant::now() + IDLE;
                    let number = connection.number;
                    self.hear(&query, Client::Stream(number));
                }
            }
        }
    }

    /// Handles one message of a client.
    fn hear(&mut self, message: &[u8], client: Client) {
        let carrier = match client {
            Client::Datagram(_) => Carrier::Datagram,
            Client::Stream(_) => Carrier::Stream,
        };
        self.turn = self.turn.wrapping_add(1);
        match decide(message, carrier, self.names.current(), self.turn) {
            Verdict::Reply(reply) => self.reply(client, &reply),
            Verdict::Drop => self.end(client),
            Verdict::Forward => self.forward(message, client, carrier),
        }
    }

    fn forward(&mut self, message: &[u8], client: Client, carrier: Carrier) {
        let Some(id) = message.first_chunk() else { return };
        let asker = Asker { id: *id, client };
        if let Some(connection) = self.connection(client) {
            connection.waits = true;
        }
        if self.exchanges.iter_mut().any(|exchange| exchange.join(asker, message, carrier)) {
            return;
        }
        if self.exchanges.len() >= MOST_EXCHANGES {
            return self.reply(client, &failed(message, Failure::Server));
        }
        // Not to the container itself, whose server may ask this resolver.
        let own = self.names.current().own.clone();
        let servers = self.servers.iter().filter(|server| !own.iter().any(|ip| IpAddr::from(*ip) == **server));
        match Exchange::begin(asker, message.to_vec(), carrier, servers.copied().collect(), Instant::now()) {
            Ok(exchange) => self.exchanges.push(exchange),
            Err(answer) => self.reply(client, &answer),
        }
    }

    fn connection(&mut self, client: Client) -> Option<&mut Connection> {
        let Client::Stream(number) = client else { return None };
        self.connections.iter_mut().find(|connection| connection.number == number)
    }

    fn reply(&mut self, client: Client, message: &[u8]) {
        match client {
            // Nothing helps if the kernel does not take it. The client asks again.
            Client::Datagram(to) => drop(self.udp.send_to(message, to)),
            Client::Stream(_) => {
                if let Some(connection) = self.connection(client) {
                    connection.waits = false;
                    connection.deadline = Instant::now() + IDLE;
                    connection.framed.queue(message);
                    connection.is_over |= connection.framed.send().is_err();
                }
            }
        }
    }

    /// Ends a client's connection, if it has one.
    fn end(&mut self, client: Client) {
        if let Some(connection) = self.connection(client) {
            connection.is_over = true;
        }
    }

    fn advance(&mut self, index: usize) {
        let answer = self.exchanges.get_mut(index).and_then(|exchange| exchange.advance(Instant::now()));
        self.finish(index, answer);
    }

    /// Passes the answer of an exchange to its clients.
    fn finish(&mut self, index: usize, answer: Option<Vec<u8>>) {
        let Some(mut answer) = answer else { return };
        for Asker { id, client } in self.exchanges.swap_remove(index).askers {
            if let Some(place) = answer.first_chunk_mut() {
                *place = id;
            }
            self.reply(client, &answer);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for index in (0..self.exchanges.len()).rev() {
            if self.exchanges[index].deadline <= now {
                let answer = self.exchanges[index].expire(now);
                self.finish(index, answer);
            }
        }
        self.connections.retain(|connection| {
            let is_idle = !connection.waits && connection.deadline <= now;
            !connection.is_over && !is_idle
        });
    }
}
