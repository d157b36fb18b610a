//! The supervisor's ends of the container's standard streams: a pty master, or pipes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// One of the container's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The limit of buffered input. Beyond it, the client has to wait.
const INPUT_LIMIT: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Streams {
    input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// The client has closed the input: close it here once all buffered bytes are written.
    ending: bool,
    outputs: Vec<(OwnedFd, Stream)>,
    pty: Option<OwnedFd>,
}

impl Streams {
    /// Sets up one pty for all three streams. Without `input`, the supervisor never writes to it.
    pub(crate) fn with_pty(&mut self, master: OwnedFd, input: bool) -> io::Result<()> {
        nonblocking(&master)?;
        if input {
            self.input = Some(master.try_clone()?);
        }
        self.outputs.push((master.try_clone()?, Stream::Stdout));
        self.pty = Some(master);
        Ok(())
    }

    /// Sets the supervisor's end of the container's standard input.
    pub(crate) fn with_input(&mut self, pipe: OwnedFd) -> io::Result<()> {
        nonblocking(&pipe)?;
        self.input = Some(pipe);
        Ok(())
    }

    /// Adds the supervisor's end of one of the container's output streams.
    pub(crate) fn with_output(&mut self, pipe: OwnedFd, stream: Stream) -> io::Result<()> {
        nonblocking(&pipe)?;
        self.outputs.push((pipe, stream));
        Ok(())
    }

    #[must_use]
    pub(crate) fn pty(&self) -> Option<BorrowedFd<'_>> {
        self.pty.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().map(|(fd, _)| fd.as_fd())
    }

    /// The input, if bytes are waiting to be written to it.
    #[must_use]
    pub(crate) fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        if self.waiting.is_empty() { None } else { self.input.as_ref().map(AsFd::as_fd) }
    }

    /// Whether the client has to wait.
    #[must_use]
    pub(crate) fn full(&self) -> bool {
        self.waiting.len() >= INPUT_LIMIT
    }

    /// Buffers input and writes it. If the container has no open input, the bytes are dropped.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        if self.input.is_some() {
            self.waiting.extend(bytes);
            self.write();
        }
    }

    /// Closes the input after the buffered bytes. A terminal has no end of input except ctrl-d, so a pty stays open.
    pub(crate) fn end_input(&mut self) {
        if self.pty.is_none() {
            self.ending = true;
            self.write();
        }
    }

    /// Writes buffered bytes until the container accepts no more.
    pub(crate) fn write(&mut self) {
        while let Some(input) = self.input.as_ref().filter(|_| !self.waiting.is_empty()) {
            match nix::unistd::write(input, self.waiting.as_slices().0) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return,
                Err(_) => {
                    // The container has closed its input.
                    self.waiting.clear();
                    self.input = None;
                }
            }
        }
        if self.ending {
            self.input = None;
        }
    }

    /// Reads once from the output at `index` into `buffer`. Returns `None` if there is nothing to read now or the
    /// stream has ended. An ended stream is removed, and the later indices move down by one (see [`Streams::outputs`]).
    pub(crate) fn read(&mut self, index: usize, buffer: &mut [u8]) -> Option<(Stream, usize)> {
        let (fd, stream) = &self.outputs[index];
        let stream = *stream;
        loop {
            match nix::unistd::read(fd, buffer) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return None,
                // A pty master returns EIO when no process has the terminal open.
                Ok(0) | Err(_) => {
                    self.outputs.remove(index);
                    return None;
                }
                Ok(count) => return Some((stream, count)),
            }
        }
    }

    #[must_use]
    pub(crate) fn output_count(&self) -> usize {
        self.outputs.len()
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_written_in_order_and_ended() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut streams = Streams::default();
        streams.with_input(writer).unwrap();
        // More bytes than a pipe holds, so that some must wait.
        let typed: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        streams.type_in(&typed);
        streams.end_input();
        assert!(streams.wants_to_write().is_some());
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match nix::unistd::read(&reader, &mut buffer).unwrap() {
                0 => break,
                count => got.extend_from_slice(&buffer[..count]),
            }
            streams.write();
        }
        assert_eq!(got, typed);
    }

    #[test]
    fn output_is_read_until_its_end() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut streams = Streams::default();
        streams.with_output(reader, Stream::Stderr).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(streams.read(0, &mut buffer), None);
        assert_eq!(streams.output_count(), 1, "an empty stream is not an ended one");
        nix::unistd::write(&writer, b"abc").unwrap();
        assert_eq!(streams.read(0, &mut buffer), Some((Stream::Stderr, 3)));
        drop(writer);
        assert_eq!(streams.read(0, &mut buffer), None);
        assert_eq!(streams.output_count(), 0);
    }
}
