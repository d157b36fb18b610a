//! A minimal nfnetlink client for set elements, listing chains, and conntrack entries.
//!
//! A run of `nft` costs 5 to 10 ms, most of it the start of libnftables. The same message sent directly costs 0.1 ms.
//! So this module sends everything that each container needs, and `nft` creates only what is needed once per boot. The
//! layouts are in linux/netfilter/nfnetlink.h and nf_tables.h.

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

pub(super) const SUBSYSTEM_NFTABLES: u8 = 10;
pub(super) const SUBSYSTEM_CONNTRACK: u8 = 1;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NESTED: u16 = 0x8000;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
/// The size in bytes of nlmsghdr, and of the nfgenmsg after it.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// One message. Its header is filled in when it is sent.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    flags: u16,
}

impl Message {
    /// `family` is an address family or NFPROTO_INET.
    pub(super) fn new(subsystem: u8, kind: u8, family: u8) -> Self {
        Self::raw(u16::from_be_bytes([subsystem, kind]), family, 0)
    }

    fn raw(kind: u16, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self { bytes, flags: REQUEST }
    }

    /// Creates the named object if it does not exist.
    pub(super) fn create(mut self) -> Self {
        self.flags |= CREATE;
        self
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// Adds a name with a terminating zero byte, which the kernel expects.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(self.flags | flags).to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// A socket in the network namespace in which it was opened.
pub(super) struct Netfilter(Socket);

static KEPT: Mutex<Option<(u32, Netfilter)>> = Mutex::new(None);

impl Netfilter {
    /// Returns the kept socket, or a new one.
    pub(super) fn open() -> io::Result<Self> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
        match kept {
            // A forked child must not read its parent's answers.
            Some((pid, netfilter)) if pid == std::process::id() => Ok(netfilter),
            _ => Self::new(),
        }
    }

    /// A socket in the current network, which need not be this process's own.
    pub(super) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Keeps the socket open until it is needed again or the process ends. While the kernel cleans up after a
    /// transaction that deleted objects (5 to 10 ms), close(2) would wait for it.
    pub(super) fn keep(self) {
        *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some((std::process::id(), self));
    }

    /// Applies all messages or none, in one transaction of nf_tables.
    pub(super) fn transaction(&self, messages: &[Message]) -> io::Result<()> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let marker = |kind| Message::raw(kind, 0, u16::from(SUBSYSTEM_NFTABLES));
        let mut bytes = marker(BATCH_BEGIN).finish(0, 0);
        for (number, message) in messages.iter().enumerate() {
            // The acknowledgment of the last message comes after every error, so it ends the answer.
            bytes.extend(message.finish(if number == last { ACK } else { 0 }, number as u32 + 1));
        }
        bytes.extend(marker(BATCH_END).finish(0, last as u32 + 2));
        self.0.send(&bytes, 0)?;
        let mut failed = None;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            for reply in replies(&answer) {
                let Some(code) = reply.error() else { continue };
                if code != 0 && failed.is_none() {
                    failed = Some(io::Error::from_raw_os_error(-code));
                }
                // An error for the first marker means that the batch was not processed at all.
                if reply.sequence == last as u32 + 1 || reply.sequence == 0 {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends one request outside a transaction, and waits for its acknowledgment.
    pub(super) fn request(&self, message: &Message) -> io::Result<()> {
        self.0.send(&message.finish(ACK, 1), 0)?;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            for reply in replies(&answer) {
                match reply.error() {
                    Some(0) => return Ok(()),
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                    None => {}
                }
            }
        }
    }

    /// Calls `each` with the attributes of every object that the kernel returns.
    pub(super) fn dump(&self, message: &Message, mut each: impl FnMut(u8, Attributes<'_>)) -> io::Result<()> {
        const DONE: u16 = 3;
        self.0.send(&message.finish(DUMP, 1), 0)?;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            for reply in replies(&answer) {
                match reply.error() {
                    Some(0) => return Ok(()),
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                    None if reply.kind == DONE => return Ok(()),
                    None => {
                        if let (Some(family), Some(rest)) = (reply.body.first(), reply.body.get(GENERIC..)) {
                            each(*family, Attributes(rest));
                        }
                    }
                }
            }
        }
    }
}

struct Reply<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Reply<'_> {
    /// The code of an error message. 0 is an acknowledgment.
    fn error(&self) -> Option<i32> {
        const ERROR: u16 = 2;
        (self.kind == ERROR).then(|| self.body.first_chunk().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code)))
    }
}

fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let (kind, sequence) = (u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?), bytes.get(8..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply { kind, sequence: u32::from_ne_bytes(*sequence), body })
    })
}

/// The attributes of a message or of a nested attribute.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.iter_raw().map(|(kind, value)| (kind & !NESTED, value))
    }

    /// Iterates over the kinds with their flags, suitable for sending back.
    pub(super) fn iter_raw(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut bytes = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
            let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
            let value = bytes.get(4..length)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    pub(super) fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.bytes(kind).map(Attributes)
    }

    pub(super) fn list(self) -> impl Iterator<Item = Self> {
        self.iter().map(|(_, value)| Attributes(value))
    }

    /// A number in network byte order, which nearly all of netfilter uses.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.bytes(kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn name(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(kind)?).ok().map(|name| name.trim_end_matches('\0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let message = Message::new(SUBSYSTEM_NFTABLES, 12, 1)
            .create()
            .text(1, "gpu")
            .nest(3, |list| list.nest(1, |element| element.attribute(6, &[7])));
        let bytes = message.finish(ACK, 9);
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0a0cu16.to_ne_bytes());
        assert_eq!(bytes[6..8], (REQUEST | ACK | CREATE).to_ne_bytes());
        let all = Attributes(&bytes[HEADER + GENERIC..]);
        assert_eq!(all.name(1), Some("gpu"));
        let element = all.nested(3).and_then(|list| list.list().next()).unwrap();
        assert_eq!(element.bytes(6), Some(&[7][..]));
        assert_eq!(all.iter().count(), 2, "nested attributes and padding belong to their own");
    }

    #[test]
    fn broken_answers_end_the_iteration() {
        for bytes in [&[][..], &[1], &[3, 0, 1, 0], &[255, 255, 1, 0, 1], &[0; 16]] {
            assert_eq!(Attributes(bytes).iter().count(), 0, "{bytes:?}");
            assert_eq!(replies(bytes).count(), 0, "{bytes:?}");
        }
    }
}
