use proptest::prelude::*;
use simple_dns::{QTYPE, TYPE};

use super::super::table::Host;
use super::*;

/// A network with `count` containers named `all`.
fn table(count: u8) -> Table {
    let host = |last| Host {
        ip: [10, 0, 0, last].into(),
        network: "lab".into(),
        names: vec![format!("c{last}"), "all".into()],
    };
    Table { forward: true, own: Vec::new(), hosts: (1..=count).map(host).collect() }
}

/// A query as clients write it. `edns` is the size of datagrams that the client takes.
fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    if let Some(size) = edns {
        bytes.extend([0, 0, 41]);
        bytes.extend(size.to_be_bytes());
        // No flags, and a cookie as dig sends it.
        bytes.extend([0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
    bytes
}

#[track_caller]
fn reply(message: &[u8], carrier: Carrier, table: &Table, turn: usize) -> Vec<u8> {
    match decide(message, carrier, table, turn) {
        Verdict::Reply(bytes) => {
            assert_eq!(bytes[..2], message[..2]);
            bytes
        }
        other => panic!("{other:?}"),
    }
}

fn code(reply: &[u8]) -> u8 {
    reply[3] & 0x0f
}

fn addresses(reply: &[u8]) -> Vec<u8> {
    let packet = Packet::parse(reply).unwrap();
    let last = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => Some(a.address as u8),
        _ => None,
    };
    packet.answers.iter().filter_map(last).collect()
}

#[test]
fn names_of_containers_are_answered() {
    let table = table(3);
    let ask = |name: &str, kind| reply(&query(name, kind, None), Carrier::Datagram, &table, 0);
    assert_eq!(addresses(&ask("c2", 1)), [2]);
    assert_eq!(addresses(&ask("C2.LAB", 1)), [2]);
    let asked = query("aLl", 1, None);
    let turns: Vec<_> = (0..4).map(|turn| addresses(&reply(&asked, Carrier::Datagram, &table, turn))).collect();
    assert_eq!(turns, [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]);
    // The question keeps its spelling, which clients compare, and types that the parser does not know.
    for kind in [28, 15, 64, 65, 999, 65_535] {
        let asked = query("aLl", kind, None);
        let empty = reply(&asked, Carrier::Datagram, &table, 0);
        assert_eq!((code(&empty), &empty[6..8], &empty[12..]), (0, &[0, 0][..], &asked[12..]), "{kind}");
    }
    let named = ask("2.0.0.10.in-addr.ARPA", 12);
    assert!(named.windows(8).any(|bytes| bytes == b"\x02c2\x03lab\0"), "{named:?}");
    for other in ["example.org", "9.0.0.10.in-addr.arpa", "x.2.0.0.10.in-addr.arpa", "c2.", "c2.lab.example", ""] {
        let verdict = decide(&query(other, 12, None), Carrier::Datagram, &table, 0);
        assert_eq!(verdict == Verdict::Forward, other != "c2.", "{other}");
    }
    let closed = Table { forward: false, ..table };
    let missing = reply(&query("example.org", 1, Some(1232)), Carrier::Datagram, &closed, 0);
    assert_eq!((code(&missing), &missing[12..]), (3, &query("example.org", 1, None)[12..]));
}

#[test]
fn long_answers_are_truncated_in_datagrams() {
    let table = table(200);
    for (edns, limit) in [(None, 512), (Some(100), 512), (Some(1232), 1232), (Some(u16::MAX), 4096)] {
        let bytes = reply(&query("all", 1, edns), Carrier::Datagram, &table, 7);
        let (count, truncated) = (addresses(&bytes).len(), bytes[2] & 2 != 0);
        assert!(bytes.len() <= limit && bytes.len() + ADDRESS > limit.min(3200), "{limit}: {}", bytes.len());
        assert_eq!(truncated, count < 200, "{limit}");
        assert_eq!(bytes[11], u8::from(edns.is_some()), "EDNS is answered with EDNS");
    }
    let whole = reply(&query("all", 1, None), Carrier::Stream, &table, 0);
    assert_eq!((addresses(&whole).len(), whole[2] & 2), (200, 0));
}

#[test]
fn what_is_no_query_is_refused_or_dropped() {
    let table = table(1);
    let good = query("c1", 1, Some(1232));
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    // A response must never be answered, or two resolvers could do so forever.
    assert_eq!(decide(&changed(2, 0x81), Carrier::Datagram, &table, 0), Verdict::Drop);
    assert_eq!(decide(&good[..11], Carrier::Datagram, &table, 0), Verdict::Drop);
    for (at, byte, expected) in [(2, 0x29, 4), (5, 0, 1), (5, 2, 1), (7, 1, 1), (9, 1, 1), (10, 9, 1), (12, 200, 1)] {
        let bytes = reply(&changed(at, byte), Carrier::Datagram, &table, 0);
        assert_eq!(code(&bytes), expected, "byte {at} is {byte}");
    }
    assert_eq!(code(&reply(&changed(19, 3), Carrier::Datagram, &table, 0)), 5, "the class CHAOS");
    // The reserved bit is ignored, and so are the flags of EDNS.
    for (at, byte) in [(3, 0x40), (27, 0x80)] {
        assert_eq!(addresses(&reply(&changed(at, byte), Carrier::Datagram, &table, 0)), [1]);
    }
}

#[test]
fn answers_of_servers_are_checked() {
    let asked = query("Example.org", 1, None);
    let answer = |id: u16, flags: [u8; 2], rest: &[u8]| [&id.to_be_bytes()[..], &flags, &asked[4..12], rest].concat();
    let good = answer(7, [0x81, 0x80], &query("example.ORG", 1, None)[12..]);
    assert!(belongs(&good, &asked, 7) && !belongs(&good, &asked, 8));
    for other in ["example.com", "example.or", "xample.org"] {
        assert!(!belongs(&answer(7, [0x81, 0x80], &query(other, 1, None)[12..]), &asked, 7), "{other}");
    }
    assert!(!belongs(&answer(7, [0x01, 0x80], &asked[12..]), &asked, 7), "a query");
    assert!(!belongs(&answer(7, [0x81, 0x80], &query("Example.org", 28, None)[12..]), &asked, 7), "another type");
    let mut short = answer(7, [0x81, 0x81], &[]);
    short[5] = 0;
    assert!(belongs(&short, &asked, 7), "a format error without the question");
    short[3] = 0x80;
    assert!(!belongs(&short, &asked, 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 4000 } else { 40_000 }))]

    /// No message crashes the parser, and every reply can be read by clients and is within their limit.
    #[test]
    fn no_message_crashes_the_resolver(
        start in prop::option::of((0..4usize, prop::option::of(0..2000u16))),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        rest in prop::collection::vec(any::<u8>(), 0..80),
        turn in any::<usize>(),
    ) {
        let mut bytes = match start {
            Some((name, edns)) => query(["c1", "all.lab", "3.0.0.10.in-addr.arpa", "example.org"][name], 1, edns),
            None => Vec::new(),
        };
        bytes.extend(rest);
        if !bytes.is_empty() {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        for carrier in [Carrier::Datagram, Carrier::Stream] {
            if let Verdict::Reply(reply) = decide(&bytes, carrier, &table(200), turn) {
                prop_assert!(reply.len() >= HEADER && reply[2] & 0x80 != 0);
                prop_assert_eq!(&reply[..2], &bytes[..2]);
                prop_assert!(carrier == Carrier::Stream || reply.len() <= LARGEST_DATAGRAM);
                prop_assert!(question(&reply).is_some() || reply.len() == HEADER);
            }
            let _ = belongs(&bytes, &bytes, 1);
        }
    }
}

#[test]
fn types_that_are_asked_for_reach_the_parser_as_it_knows_them() {
    let message = query("c1", 999, None);
    let question = question(&message).unwrap();
    let plain = plain(&message, &question);
    let packet = Packet::parse(&plain).unwrap();
    assert_eq!(packet.questions[0].qtype, QTYPE::TYPE(TYPE::A));
    assert_eq!((question.kind, question.class), (999, 1));
}
