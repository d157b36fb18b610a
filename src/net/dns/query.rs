//! From a query to its answer. All functions are pure.
//!
//! Queries are hostile. The message is parsed by the crate `simple-dns`; this module itself reads only the header and
//! the question, which it sends back or on unchanged.

use std::net::Ipv4Addr;

use simple_dns::rdata::{A, OPT, PTR, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, ResourceRecord};

use super::table::Table;

/// The bytes of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// How long clients may keep an answer, in seconds. A container gets another address when it starts again.
const TTL: u32 = 1;
/// The largest datagram that is sent to a client without EDNS, and the largest one of all.
const PLAIN: usize = 512;
const LARGEST_DATAGRAM: usize = 4096;
/// The size of datagrams that answers announce (the recommendation of DNS Flag Day 2020).
const ANNOUNCED: u16 = 1232;
/// The bytes of one address in an answer whose name is compressed.
const ADDRESS: usize = 16;
/// The most labels of a name that can be one of a container. Longer names are only forwarded.
const MOST_LABELS: usize = 64;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    Datagram,
    Stream,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is no query.
    Drop,
    Reply(Vec<u8>),
    /// It is for a name server of the host.
    Forward,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Format = 1,
    Server = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// The question of a message: its end, its type and its class.
struct Question {
    end: usize,
    kind: u16,
    class: u16,
}

const IN: u16 = 1;
const KIND_A: u16 = 1;
const KIND_PTR: u16 = 12;
const ANY: u16 = 255;

/// Decides about one message. `turn` rotates the addresses of a name that has several.
pub(super) fn decide(message: &[u8], carrier: Carrier, table: &Table, turn: usize) -> Verdict {
    let Some(header) = message.first_chunk::<HEADER>() else { return Verdict::Drop };
    if header[2] & 0x80 != 0 {
        return Verdict::Drop;
    }
    let fail = |failure| Verdict::Reply(failed(message, failure));
    if header[2] & 0x78 != 0 {
        return fail(Failure::NotImplemented);
    }
    // One question, no answer, no authority, and at most EDNS and a signature.
    let counts = (&header[4..6], &header[6..10], header[10], header[11]);
    let Some(question) = question(message).filter(|_| matches!(counts, ([0, 1], [0, 0, 0, 0], 0, 0..=2))) else {
        return fail(Failure::Format);
    };
    let plain = plain(message, &question);
    let Ok(query) = Packet::parse(&plain) else { return fail(Failure::Format) };
    let Some(asked) = query.questions.first().map(|question| &question.qname) else { return fail(Failure::Format) };
    if ![IN, ANY].contains(&question.class) {
        return fail(Failure::Refused);
    }
    let name = if asked.get_labels().len() <= MOST_LABELS { asked.to_string() } else { String::new() };
    let records = match (table.addresses(&name), reverse(&name)) {
        (Some(addresses), _) if [KIND_A, ANY].contains(&question.kind) => rotated(&addresses, turn),
        // Names of containers have IPv4 addresses only. An empty answer lets clients try the next type.
        (Some(_), _) => Vec::new(),
        (None, Some(ip)) if [KIND_PTR, ANY].contains(&question.kind) => match table.name(ip) {
            Some(name) => return answer(&query, &question, carrier, pointer(&name)),
            None => return elsewhere(message, table),
        },
        (None, _) => return elsewhere(message, table),
    };
    answer(&query, &question, carrier, records)
}

fn elsewhere(message: &[u8], table: &Table) -> Verdict {
    if table.forward { Verdict::Forward } else { Verdict::Reply(failed(message, Failure::NoSuchName)) }
}

/// Finds the end of the first question. `None` if it is not a complete one, or if it is compressed.
fn question(message: &[u8]) -> Option<Question> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length if length < 64 => at += 1 + length,
            _ => return None,
        }
    }
    let number = |at: usize| message.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    (at < HEADER + 255).then_some(())?;
    Some(Question { end: at + 5, kind: number(at + 1)?, class: number(at + 3)? })
}

/// The bytes of the question of a query. `None` if it has none.
pub(super) fn question_bytes(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER..question(message)?.end)
}

/// The message as the parser accepts it, which knows only some types, and no reserved bit.
fn plain(message: &[u8], question: &Question) -> Vec<u8> {
    let mut plain = message.to_vec();
    plain[3] &= !0x40;
    plain[question.end - 4..question.end].copy_from_slice(&[0, KIND_A as u8, 0, IN as u8]);
    plain
}

fn rotated(addresses: &[Ipv4Addr], turn: usize) -> Vec<RData<'static>> {
    let mut addresses = addresses.to_vec();
    let count = addresses.len().max(1);
    addresses.rotate_left(turn % count);
    addresses.into_iter().map(|ip| RData::A(A { address: ip.into() })).collect()
}

/// No record for a name that is not one of DNS.
fn pointer(name: &str) -> Vec<RData<'static>> {
    Name::new(name).map(|name| RData::PTR(PTR(name.into_owned()))).into_iter().collect()
}

/// The address of a name below `in-addr.arpa`.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let (digits, suffix) = name.split_at_checked(name.len().checked_sub(".in-addr.arpa".len())?)?;
    let mut octets: Vec<u8> = digits.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    octets.reverse();
    let octets: [u8; 4] = octets.try_into().ok()?;
    suffix.eq_ignore_ascii_case(".in-addr.arpa").then(|| octets.into())
}

fn answer(query: &Packet<'_>, question: &Question, carrier: Carrier, records: Vec<RData<'static>>) -> Verdict {
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions.clone_from(&query.questions);
    let Some(name) = query.questions.first().map(|question| &question.qname) else { return Verdict::Drop };
    let record = |data| ResourceRecord::new(name.clone(), CLASS::IN, TTL, data);
    reply.answers = records.into_iter().map(record).collect();
    let mut limit = match carrier {
        Carrier::Stream => usize::from(u16::MAX),
        Carrier::Datagram => PLAIN,
    };
    if let Some(opt) = query.opt() {
        if carrier == Carrier::Datagram {
            limit = usize::from(opt.udp_packet_size).clamp(PLAIN, LARGEST_DATAGRAM);
        }
        // The parser misplaces the version of EDNS. Clients know no other than 0.
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: ANNOUNCED, version: 0 });
    }
    loop {
        let Ok(mut bytes) = reply.build_bytes_vec_compressed() else { return Verdict::Drop };
        if bytes.len() <= limit || reply.answers.is_empty() {
            // The question as it was asked: see `plain`.
            let asked = [question.kind.to_be_bytes(), question.class.to_be_bytes()].concat();
            if let Some(place) = bytes.get_mut(question.end - 4..question.end) {
                place.copy_from_slice(&asked);
            }
            return Verdict::Reply(bytes);
        }
        let excess = (bytes.len() - limit).div_ceil(ADDRESS);
        reply.answers.truncate(reply.answers.len().saturating_sub(excess));
        reply.set_flags(PacketFlag::TRUNCATION);
    }
}

/// An answer to the message that has only a header and the question. The message has a header.
pub(super) fn failed(message: &[u8], failure: Failure) -> Vec<u8> {
    let question = question_bytes(message).unwrap_or_default();
    let mut reply = message[..HEADER].to_vec();
    // A response with the same opcode and RD, RA.
    reply[2] = 0x80 | message[2] & 0x79;
    reply[3] = 0x80 | failure as u8;
    reply[4..].fill(0);
    reply[5] = u8::from(!question.is_empty());
    reply.extend(question);
    reply
}

/// Whether an answer of a name server belongs to the query that was sent with `id`.
pub(super) fn belongs(answer: &[u8], query: &[u8], id: u16) -> bool {
    let Some(header) = answer.first_chunk::<HEADER>() else { return false };
    let is_answer = header[..2] == id.to_be_bytes() && header[2] & 0x80 != 0;
    // A server that did not understand the query may leave out the question.
    let has_none = header[4..6] == [0, 0] && header[3] & 0x0f != 0;
    is_answer
        && (has_none
            || question_bytes(query).is_some_and(|asked| {
                header[4..6] == [0, 1]
                    && answer.get(HEADER..HEADER + asked.len()).is_some_and(|got| got.eq_ignore_ascii_case(asked))
            }))
}

/// Whether another server may have a better answer: this one has failed, or refused the query.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    let code = answer.get(3).map_or(0, |flags| flags & 0x0f);
    [Failure::Server, Failure::NotImplemented, Failure::Refused].iter().any(|failure| *failure as u8 == code)
}

#[cfg(test)]
mod tests;
