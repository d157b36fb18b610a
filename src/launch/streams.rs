//! The container's standard streams, as the supervisor holds them: a pty's master, or pipes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Which of the container's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Bytes of input that wait for the container before the typist has to wait too.
const INPUT_LIMIT: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Streams {
    input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// The typist is done: close the input when everything waiting is written.
    ending: bool,
    outputs: Vec<(OwnedFd, Stream)>,
    pty: Option<OwnedFd>,
}

impl Streams {
    /// One pty for all three streams; without `input` nothing is ever typed into it.
    pub fn with_pty(&mut self, master: OwnedFd, input: bool) -> io::Result<()> {
        nonblocking(&master)?;
        if input {
            self.input = Some(master.try_clone()?);
        }
        self.outputs.push((master.try_clone()?, Stream::Stdout));
        self.pty = Some(master);
        Ok(())
    }

    /// The supervisor's end of the container's standard input.
    pub fn with_input(&mut self, pipe: OwnedFd) -> io::Result<()> {
        nonblocking(&pipe)?;
        self.input = Some(pipe);
        Ok(())
    }

    /// The supervisor's end of one of the container's output streams.
    pub fn with_output(&mut self, pipe: OwnedFd, stream: Stream) -> io::Result<()> {
        nonblocking(&pipe)?;
        self.outputs.push((pipe, stream));
        Ok(())
    }

    #[must_use]
    pub fn pty(&self) -> Option<BorrowedFd<'_>> {
        self.pty.as_ref().map(AsFd::as_fd)
    }

    pub fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().map(|(fd, _)| fd.as_fd())
    }

    /// The input, where something waits to be written to it.
    #[must_use]
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        if self.waiting.is_empty() { None } else { self.input.as_ref().map(AsFd::as_fd) }
    }

    /// Whether the typist has to wait.
    #[must_use]
    pub fn full(&self) -> bool {
        self.waiting.len() >= INPUT_LIMIT
    }

    /// Takes what was typed; where nobody reads input it is dropped.
    pub fn type_in(&mut self, bytes: &[u8]) {
        if self.input.is_some() {
            self.waiting.extend(bytes);
            self.write();
        }
    }

    /// No more will be typed. A terminal has no end of input but ctrl-d, so there the input stays open.
    pub fn end_input(&mut self) {
        if self.pty.is_none() {
            self.ending = true;
            self.write();
        }
    }

    /// Writes what waits, as far as the container takes it.
    pub fn write(&mut self) {
        while let Some(input) = self.input.as_ref().filter(|_| !self.waiting.is_empty()) {
            match nix::unistd::write(input, self.waiting.as_slices().0) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return,
                Err(_) => {
                    // Nobody reads it any more.
                    self.waiting.clear();
                    self.input = None;
                }
            }
        }
        if self.ending {
            self.input = None;
        }
    }

    /// Reads once from the output at `index` into `buffer`. `None`: nothing there now, or the stream has ended (it is let go then, and the
    /// indices behind it move up: see [`Streams::outputs`]).
    pub fn read(&mut self, index: usize, buffer: &mut [u8]) -> Option<(Stream, usize)> {
        let (fd, stream) = &self.outputs[index];
        let stream = *stream;
        loop {
            match nix::unistd::read(fd, buffer) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return None,
                // A pty's master answers EIO when no process has the terminal open.
                Ok(0) | Err(_) => {
                    self.outputs.remove(index);
                    return None;
                }
                Ok(count) => return Some((stream, count)),
            }
        }
    }

    #[must_use]
    pub fn output_count(&self) -> usize {
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
        // More than a pipe holds, so that a part must wait.
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
