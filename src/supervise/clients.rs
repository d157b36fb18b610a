//! The commands that are connected to a supervisor, and what is on its way to them.
//!
//! A slow reader loses nothing and stops nobody for long: packets queue up to [`QUEUE_LIMIT`] bytes, and while a queue is full the
//! supervisor stops reading the container's output (the pipe fills, the writer waits: what a shell's pipe does).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::protocol::{Connection, FromSupervisor, MAX_PACKET, Message, ToSupervisor};

/// Bytes waiting for one client before the container has to wait too.
const QUEUE_LIMIT: usize = 1 << 20;

#[derive(Debug)]
struct Client {
    connection: Connection,
    /// Whether it asked for the container's output.
    attached: bool,
    /// Whether it is who types.
    stdin: bool,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    gone: bool,
}

#[derive(Debug, Default)]
pub struct Clients {
    all: Vec<Client>,
}

impl Clients {
    pub fn add(&mut self, connection: Connection) {
        let client =
            Client { connection, attached: false, stdin: false, queue: VecDeque::new(), queued: 0, gone: false };
        self.all.push(client);
    }

    /// The sockets to wait for, and whether each waits to be written to.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.all.iter().map(|client| (client.connection.as_fd(), !client.queue.is_empty()))
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether somebody is so far behind that the container must wait.
    #[must_use]
    pub fn full(&self) -> bool {
        self.all.iter().any(|client| client.queued >= QUEUE_LIMIT)
    }

    /// Queues and sends a message to every client.
    pub fn tell(&mut self, message: &FromSupervisor) {
        match message.encode() {
            Ok(packet) => self.all.iter_mut().for_each(|client| client.push(packet.clone())),
            Err(error) => tracing::error!("cannot encode a message to the clients: {error}"),
        }
    }

    /// Queues and sends a message to the client at `index` alone.
    pub fn answer(&mut self, index: usize, message: &FromSupervisor) {
        match (message.encode(), self.all.get_mut(index)) {
            (Ok(packet), Some(client)) => client.push(packet),
            (Err(error), _) => tracing::error!("cannot encode an answer: {error}"),
            (_, None) => {}
        }
    }

    /// Queues and sends output to the clients that are attached.
    pub fn output(&mut self, wrap: fn(Vec<u8>) -> FromSupervisor, bytes: &[u8]) {
        if !self.all.iter().any(|client| client.attached) {
            return;
        }
        for piece in bytes.chunks(MAX_PACKET - 1) {
            if let Ok(packet) = wrap(piece.to_vec()).encode() {
                self.all.iter_mut().filter(|client| client.attached).for_each(|client| client.push(packet.clone()));
            }
        }
    }

    /// Sends what waits for the client at `index` and takes its next message, as far as poll(2) said that it can.
    pub fn serve(&mut self, index: usize, readable: bool, writable: bool) -> Option<ToSupervisor> {
        let client = &mut self.all[index];
        if writable {
            client.flush();
        }
        if !readable || client.gone {
            return None;
        }
        match client.connection.try_receive::<ToSupervisor>() {
            Ok(Some(ToSupervisor::Attach { stdin })) => {
                client.attached = true;
                client.stdin = stdin;
                None
            }
            Ok(message @ Some(_)) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(None) | Err(_) => {
                client.gone = true;
                None
            }
        }
    }

    /// Lets go of the clients that hung up; `true`: the one who typed was among them.
    pub fn sweep(&mut self) -> bool {
        let typist_left = self.all.iter().any(|client| client.gone && client.stdin);
        self.all.retain(|client| !client.gone);
        typist_left
    }

    /// Sends everything that is queued, waiting at most `patience` for readers that do not read.
    pub fn drain(&mut self, patience: std::time::Duration) {
        let deadline = std::time::Instant::now() + patience;
        loop {
            self.all.iter_mut().for_each(Client::flush);
            self.all.retain(|client| !client.gone && !client.queue.is_empty());
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if self.all.is_empty() || left.is_zero() {
                return;
            }
            let mut fds: Vec<_> = self
                .all
                .iter()
                .map(|client| nix::poll::PollFd::new(client.connection.as_fd(), nix::poll::PollFlags::POLLOUT))
                .collect();
            let timeout =
                nix::poll::PollTimeout::try_from(left.as_millis() as u32 + 1).unwrap_or(nix::poll::PollTimeout::MAX);
            let _ = nix::poll::poll(&mut fds, timeout);
        }
    }
}

impl Client {
    fn push(&mut self, packet: Vec<u8>) {
        if self.gone {
            return;
        }
        self.queued += packet.len();
        self.queue.push_back(packet);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(packet) = self.queue.front() {
            match self.connection.try_send_packet(packet) {
                Ok(()) => {
                    self.queued -= packet.len();
                    self.queue.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // It hung up; its reading side will say so too.
                    self.queue.clear();
                    self.queued = 0;
                    self.gone = true;
                }
            }
        }
    }
}
