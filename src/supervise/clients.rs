//! The clients of a supervisor, and the queues of messages to them.
//!
//! A slow reader loses nothing: packets queue up to [`QUEUE_LIMIT`] bytes. While a queue is full, the supervisor stops
//! reading the container's output, so the pipe fills and the writer blocks, as with a pipe in a shell.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::control::{self, Connection, FromSupervisor, MAX_PACKET, Message, ToSupervisor};

/// How many bytes may wait for one client before the container has to wait too.
const QUEUE_LIMIT: usize = 1 << 20;

#[derive(Debug)]
struct Client {
    connection: Connection,
    /// Whether the client asked for the container's output.
    attached: bool,
    /// Whether the client sends the container's input.
    stdin: bool,
    /// Whether the container stays frozen while this client is connected.
    holds: bool,
    /// Whether the client waits for the result of a health check.
    checks: bool,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    gone: bool,
}

#[derive(Debug, Default)]
pub(super) struct Clients {
    all: Vec<Client>,
}

impl Clients {
    pub(super) fn add(&mut self, connection: Connection) {
        let client = Client {
            connection,
            attached: false,
            stdin: false,
            holds: false,
            checks: false,
            queue: VecDeque::new(),
            queued: 0,
            gone: false,
        };
        self.all.push(client);
    }

    /// The sockets to poll, each with whether packets wait to be sent and whether the client sends input.
    pub(super) fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool, bool)> {
        self.all.iter().map(|client| (client.connection.as_fd(), !client.queue.is_empty(), client.stdin))
    }

    /// Whether a client gets the container's output.
    #[must_use]
    pub(super) fn is_attached(&self) -> bool {
        self.all.iter().any(|client| client.attached && !client.gone)
    }

    /// Whether no client is connected.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a client is so far behind that the container must wait.
    #[must_use]
    pub(super) fn full(&self) -> bool {
        self.all.iter().any(|client| client.queued >= QUEUE_LIMIT)
    }

    /// Sets whether the client at `index` holds the container frozen.
    pub(super) fn set_hold(&mut self, index: usize, holds: bool) {
        if let Some(client) = self.all.get_mut(index) {
            client.holds = holds;
        }
    }

    /// Lets the client at `index` wait for the result of a health check.
    pub(super) fn await_check(&mut self, index: usize) {
        if let Some(client) = self.all.get_mut(index) {
            client.checks = true;
        }
    }

    /// Queues and sends the result of a health check to the clients that wait for one.
    pub(super) fn tell_check(&mut self, message: &FromSupervisor) {
        let waiting = self.all.iter_mut().filter(|client| client.checks);
        for client in waiting {
            client.checks = false;
            match message.encode() {
                Ok(whole) => client.push_message(whole),
                Err(error) => tracing::error!("cannot encode the result of a health check: {error}"),
            }
        }
    }

    /// Releases all holds.
    pub(super) fn end_holds(&mut self) {
        self.all.iter_mut().for_each(|client| client.holds = false);
    }

    /// Whether a connected client holds the container frozen.
    #[must_use]
    pub(super) fn hold(&self) -> bool {
        self.all.iter().any(|client| client.holds && !client.gone)
    }

    /// Queues and sends a message to every client.
    pub(super) fn tell(&mut self, message: &FromSupervisor) {
        match message.encode() {
            Ok(whole) => self.all.iter_mut().for_each(|client| client.push_message(whole.clone())),
            Err(error) => tracing::error!("cannot encode a message to the clients: {error}"),
        }
    }

    /// Queues and sends a message to the client at `index` alone.
    pub(super) fn answer(&mut self, index: usize, message: &FromSupervisor) {
        match (message.encode(), self.all.get_mut(index)) {
            (Ok(whole), Some(client)) => client.push_message(whole),
            (Err(error), _) => tracing::error!("cannot encode an answer: {error}"),
            (_, None) => {}
        }
    }

    /// Queues and sends output to the clients that are attached.
    pub(super) fn output(&mut self, wrap: fn(Vec<u8>) -> FromSupervisor, bytes: &[u8]) {
        if !self.all.iter().any(|client| client.attached) {
            return;
        }
        for piece in bytes.chunks(MAX_PACKET - 1) {
            if let Ok(packet) = wrap(piece.to_vec()).encode() {
                self.all.iter_mut().filter(|client| client.attached).for_each(|client| client.push(packet.clone()));
            }
        }
    }

    /// Sends the queued packets of the client at `index` and receives its next message, as far as poll(2) allows it.
    pub(super) fn serve(&mut self, index: usize, readable: bool, writable: bool) -> Option<ToSupervisor> {
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

    /// Removes the clients that have disconnected. Returns `true` if the one that sends input was among them.
    pub(super) fn sweep(&mut self) -> bool {
        let typist_left = self.all.iter().any(|client| client.gone && client.stdin);
        self.all.retain(|client| !client.gone);
        typist_left
    }

    /// Sends everything that is queued, but waits at most `patience` for clients that do not read.
    pub(super) fn drain(&mut self, patience: std::time::Duration) {
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
    fn push_message(&mut self, whole: Vec<u8>) {
        control::packets(whole).into_iter().for_each(|packet| self.push(packet));
    }

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
                    // The client has disconnected. Reading from it would fail too.
                    self.queue.clear();
                    self.queued = 0;
                    self.gone = true;
                }
            }
        }
    }
}
