//! DNS messages over a stream: each has its length before it (RFC 1035, section 4.2.2).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// A stream that does not block.
#[derive(Debug)]
pub(super) struct Framed {
    stream: TcpStream,
    /// What remains to be sent.
    out: Vec<u8>,
    /// The beginning of a message.
    inbox: Vec<u8>,
    /// The largest message that is accepted.
    limit: usize,
}

impl Framed {
    pub(super) fn new(stream: TcpStream, limit: usize) -> Self {
        Self { stream, out: Vec::new(), inbox: Vec::new(), limit }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether there is something to send.
    pub(super) fn is_sending(&self) -> bool {
        !self.out.is_empty()
    }

    /// Queues a message of at most 65535 bytes.
    pub(super) fn queue(&mut self, message: &[u8]) {
        if let Ok(length) = u16::try_from(message.len()) {
            self.out.extend(length.to_be_bytes());
            self.out.extend(message);
        }
    }

    /// Sends as much as the kernel takes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads at most one message. `None` if the rest of it has not arrived. The end of the stream is an error.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let wanted = match self.inbox.first_chunk() {
                None => 2,
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            };
            if wanted > 2 + self.limit {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.inbox.len() >= 2 && self.inbox.len() == wanted {
                return Ok(Some(std::mem::take(&mut self.inbox).split_off(2)));
            }
            let mut buffer = [0; 4096];
            let missing = (wanted - self.inbox.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..missing]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.inbox.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}
