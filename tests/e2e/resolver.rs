//! The resolver at 127.0.0.11: real clients, names that change, forwarding, its process, and hostile packets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::host::{Host, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("real_programs_find_containers", programs),
    ("names_follow_containers", names),
    ("other_names_are_forwarded", forwarded),
    ("a_resolver_is_confined_and_restarted", confined),
    ("hostile_packets_do_no_harm", hostile),
    ("a_network_that_is_connected_later_has_names", later),
];

/// The programs of the first test.
pub fn lacks_programs() -> bool {
    let has = |name| std::env::split_paths("/usr/bin:/bin").any(|dir| dir.join(name).exists());
    !["dig", "node", "getent", "musl-gcc", "skopeo"].into_iter().all(has)
}

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const NO_SUCH_NAME: u8 = 3;
const SERVER_FAILURE: u8 = 2;

/// Runs on a thread in a network namespace.
fn within<T: Send>(namespace: &str, run: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(namespace).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run()
        });
        inside.join().unwrap()
    })
}

fn namespace_of(host: &Host, name: &str) -> String {
    format!("/proc/{}/ns/net", host.ok(&["inspect", "-f", "{{.State.Pid}}", name]))
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, kind as u8, 0, 1]);
    bytes
}

/// The resolver's answer to a datagram.
fn ask(namespace: &str, query: &[u8]) -> Vec<u8> {
    within(namespace, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut answer = vec![0; 4096];
        // A full socket drops a query, as any server's does, and clients ask again.
        let ask = |answer: &mut Vec<u8>| socket.send(query).and_then(|_| socket.recv(answer)).ok();
        let length = (0..30).find_map(|_| ask(&mut answer)).expect("an answer");
        answer.truncate(length);
        answer
    })
}

/// The addresses of a name, sorted, or the code of the failure.
fn addresses(namespace: &str, name: &str) -> Result<Vec<String>, u8> {
    let answer = ask(namespace, &query(name, A));
    if answer[3] & 15 != 0 {
        return Err(answer[3] & 15);
    }
    let records = answer[query(name, A).len()..].chunks_exact(16);
    let mut all: Vec<String> =
        records.map(|record| record[12..].iter().map(u8::to_string).collect::<Vec<_>>().join(".")).collect();
    assert_eq!(all.len(), usize::from(answer[7]), "{answer:?}");
    all.sort();
    Ok(all)
}

fn ip(host: &Host, name: &str, network: &str) -> String {
    host.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap().to_owned()
}

fn sleep(host: &Host, name: &str, flags: &[&str]) {
    host.ok(&[&["run", "-d", "--name", name], flags, &["box", "sleep", "1000"]].concat());
}

/// The pids of the resolvers that a supervisor has started.
fn resolvers(host: &Host, name: &str) -> Vec<i64> {
    let supervisor = host.inspect(name)["Supervisor"]["Pid"].as_i64().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let is_resolver = |pid: &i64| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("\0resolve\0"))
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(is_resolver).collect()
}

fn programs() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    sleep(&host, "db", &["--network", "lab", "--network-alias", "all"]);
    sleep(&host, "cache", &["--network", "lab", "--network-alias", "all"]);
    let static_musl = host.dir.join("resolve");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/resolve.c");
    sh(&format!("musl-gcc -static -O1 -o {} {source}", static_musl.display()));
    // This host's programs, with the container's own files about names.
    let mut flags = vec!["--network".to_owned(), "lab".to_owned()];
    for dir in ["/usr", "/lib", "/lib64"].into_iter().filter(|dir| std::path::Path::new(dir).exists()) {
        flags.extend(["-v".to_owned(), format!("{dir}:{dir}:ro")]);
    }
    flags.extend(["-v".to_owned(), format!("{}:/resolve:ro", static_musl.display())]);
    sleep(&host, "web", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    host.ok(&["exec", "web", "sh", "-c", "cat /etc/hosts > /hosts; echo 127.0.0.1 localhost > /etc/hosts"]);
    let conf = host.ok(&["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(conf.contains("nameserver 127.0.0.11") && conf.contains("ndots:0"), "{conf}");
    let run = |line: &str| host.ok(&["exec", "web", "sh", "-c", line]);
    let (db, cache) = (ip(&host, "db", "lab"), ip(&host, "cache", "lab"));
    let node = |code: &str| run(&format!("/usr/bin/node -e \"const dns=require('dns').promises; {code}\""));
    assert!(run("nslookup db").contains(&format!("Address: {db}")), "busybox");
    assert!(run("/usr/bin/getent ahostsv4 db").starts_with(&format!("{db} ")), "glibc");
    assert_eq!(run("/resolve db"), db, "static musl");
    // Go's own resolver, which static programs have.
    let go = run("GODEBUG=netdns=go /usr/bin/skopeo inspect --tls-verify=false docker://db:1/image 2>&1 || true");
    assert!(go.contains(&format!("dial tcp {db}:1: connect: connection refused")), "{go}");
    assert_eq!(node("dns.resolve4('db').then(console.log)"), format!("[ '{db}' ]"), "node");
    assert_eq!(node("dns.lookup('DB.lab').then(found => console.log(found.address))"), db, "node");
    assert_eq!(node(&format!("dns.reverse('{db}').then(console.log)")), "[ 'db.lab' ]", "node");
    assert_eq!(node("dns.resolve6('db').catch(error => console.log(error.code))"), "ENODATA", "node");
    for flags in ["", "+tcp", "+noedns", "+bufsize=4096 +cookie", "+subnet=192.0.2.0/24"] {
        assert_eq!(run(&format!("/usr/bin/dig +short {flags} dB")), db, "dig {flags}");
    }
    assert_eq!(run(&format!("/usr/bin/dig +short -x {cache}")), "cache.lab.");
    let empty = run("/usr/bin/dig db TYPE65");
    assert!(empty.contains("NOERROR") && empty.contains("ANSWER: 0"), "{empty}");
    // Both containers of an alias, and each of them first in turn.
    let first = || run("/usr/bin/dig +short all").lines().next().unwrap().to_owned();
    assert_ne!(first(), first());
    let mut both: Vec<String> = run("/usr/bin/dig +short all").lines().map(str::to_owned).collect();
    both.sort();
    assert_eq!(both, [db, cache]);
    host.ok(&["rm", "-f", "web", "db", "cache"]);
    assert_eq!(host.leftovers(), "");
}

fn names() {
    let host = Host::with_box();
    for network in ["a", "b"] {
        host.ok(&["network", "create", network]);
    }
    sleep(&host, "one", &["--network", "a", "--network-alias", "svc"]);
    sleep(&host, "two", &["--network", "b"]);
    sleep(&host, "plain", &[]);
    let (one, two) = (namespace_of(&host, "one"), namespace_of(&host, "two"));
    assert_eq!(resolvers(&host, "plain").len(), 0, "the default bridge has no names");
    // Each network has its own names.
    assert_eq!(addresses(&two, "two"), Ok(vec![ip(&host, "two", "b")]));
    let unknown = |namespace: &str, name: &str| assert!(addresses(namespace, name).is_err(), "{name}");
    ["one", "svc", "one.a"].iter().for_each(|name| unknown(&two, name));
    // A container that starts later, with the same alias, until it is renamed, moved and removed.
    sleep(&host, "late", &["--network", "a", "--network-alias", "svc"]);
    let mut both = vec![ip(&host, "one", "a"), ip(&host, "late", "a")];
    both.sort();
    assert_eq!(addresses(&one, "SVC"), Ok(both));
    host.ok(&["rename", "late", "later"]);
    // The supervisor is notified of its new name, and `rename` does not wait for it.
    eventually("the new name", || addresses(&one, "later.a") == Ok(vec![ip(&host, "later", "a")]));
    unknown(&one, "late");
    host.ok(&["network", "connect", "--alias", "guest", "b", "later"]);
    assert_eq!(addresses(&two, "guest"), Ok(vec![ip(&host, "later", "b")]));
    assert_eq!(addresses(&namespace_of(&host, "later"), "two"), Ok(vec![ip(&host, "two", "b")]));
    host.ok(&["network", "disconnect", "a", "later"]);
    unknown(&one, "later");
    assert_eq!(addresses(&one, "svc"), Ok(vec![ip(&host, "one", "a")]));
    host.ok(&["restart", "-t", "0", "later"]);
    assert_eq!(addresses(&two, "later"), Ok(vec![ip(&host, "later", "b")]));
    host.ok(&["rm", "-f", "later"]);
    unknown(&two, "guest");
    // A container that shares the network of another asks its resolver.
    sleep(&host, "side", &["--network", "container:two"]);
    assert!(host.ok(&["exec", "side", "sh", "-c", "nslookup two"]).contains(&ip(&host, "two", "b")));
    host.ok(&["rm", "-f", "side", "one", "two", "plain"]);
    assert_eq!(host.leftovers(), "");
}

/// The sender, the ID and the rest of a query.
type Query = (SocketAddr, [u8; 2], Vec<u8>);

/// A name server of the host, at 192.0.2.53. It answers 198.51.100.7, or fails.
struct Upstream {
    heard: Arc<Mutex<Vec<Query>>>,
}

impl Upstream {
    fn start(host: &Host) -> Self {
        sh(&format!("ip -n {0} addr add 192.0.2.53/32 dev lo", host.netns));
        let (udp, tcp) = within(&format!("/run/netns/{}", host.netns), || {
            (UdpSocket::bind("192.0.2.53:53").unwrap(), TcpListener::bind("192.0.2.53:53").unwrap())
        });
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                log.lock().unwrap().push((from, [buffer[0], buffer[1]], buffer[2..length].to_vec()));
                let answer = Self::answer(&buffer[..length]);
                // Forged ones before it: another ID, and another question.
                let mut forged = answer.clone();
                forged[0] ^= 1;
                let _ = udp.send_to(&forged, from);
                let mut forged = answer.clone();
                forged[13] ^= 1;
                let _ = udp.send_to(&forged, from);
                let _ = udp.send_to(&answer, from);
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).unwrap();
                let mut answer = Self::answer(&query);
                answer[2] &= !2;
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                // In two parts.
                stream.write_all(&answer[..5]).unwrap();
                stream.write_all(&answer[5..]).unwrap();
            }
        });
        Self { heard }
    }

    fn answer(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        match &query[13..17] {
            b"fail" => answer[3] |= SERVER_FAILURE,
            // Truncated: the rest comes by TCP.
            b"long" => answer[2] |= 2,
            _ => {}
        }
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7]);
        answer
    }

    fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

fn forwarded() {
    let host = Host::with_box();
    let upstream = Upstream::start(&host);
    host.ok(&["network", "create", "open"]);
    host.ok(&["network", "create", "--internal", "dark"]);
    // The first server does not answer.
    sleep(
        &host,
        "web",
        &["--network", "open", "--dns", "192.0.2.99", "--dns", "192.0.2.53", "--dns-search", "example"],
    );
    sleep(&host, "db", &["--network", "dark", "--dns", "192.0.2.53"]);
    let (web, db) = (namespace_of(&host, "web"), namespace_of(&host, "db"));
    let conf = host.ok(&["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(conf.contains("nameserver 127.0.0.11\nsearch example") && !conf.contains("192.0.2"), "{conf}");
    assert_eq!(addresses(&web, "WWW.example.org"), Ok(vec!["198.51.100.7".into()]));
    assert_eq!(addresses(&web, "fail.example.org"), Err(SERVER_FAILURE));
    // Neither the port nor the ID can be guessed.
    let before = upstream.count();
    for number in 0..8 {
        assert!(addresses(&web, &format!("n{number}.example.org")).is_ok());
    }
    let heard = upstream.heard.lock().unwrap()[before..].to_vec();
    let distinct = |mut values: Vec<u16>| {
        values.sort_unstable();
        values.dedup();
        values.len()
    };
    assert!(heard.len() >= 8, "{heard:?}");
    assert!(distinct(heard.iter().map(|(from, ..)| from.port()).collect()) > 4, "{heard:?}");
    assert!(distinct(heard.iter().map(|(_, id, _)| u16::from_be_bytes(*id)).collect()) > 4, "{heard:?}");
    assert!(heard.iter().all(|(.., rest)| rest.len() == query("n0.example.org", A).len() - 2), "nothing is added");
    // A truncated answer is passed on, and the client asks again by TCP.
    assert_eq!(ask(&web, &query("long.example.org", A))[2] & 2, 2);
    let answer = within(&web, || exchange(&mut TcpStream::connect("127.0.0.11:53").unwrap(), &query("long.org", A)));
    assert_eq!((answer[2] & 2, &answer[answer.len() - 4..]), (0, &[198, 51, 100, 7][..]));
    // Nothing leaves an internal network, until the container has another one as well.
    let before = upstream.count();
    assert_eq!(addresses(&db, "www.example.org"), Err(NO_SUCH_NAME));
    assert_eq!(ask(&db, &query("9.9.9.9.in-addr.arpa", PTR))[3] & 15, NO_SUCH_NAME);
    assert_eq!(addresses(&db, "db"), Ok(vec![ip(&host, "db", "dark")]));
    assert_eq!(upstream.count(), before);
    host.ok(&["network", "connect", "open", "db"]);
    assert!(addresses(&db, "www.example.org").is_ok());
    host.ok(&["network", "disconnect", "open", "db"]);
    assert_eq!(addresses(&db, "www.example.org"), Err(NO_SUCH_NAME));
    host.ok(&["rm", "-f", "web", "db"]);
    // A query that comes back is not sent on forever: this container is its own name server, and asks its resolver.
    sleep(&host, "loop", &["--network", "open", "--ip", &loop_address(&host), "--dns", &loop_address(&host)]);
    assert_eq!(addresses(&namespace_of(&host, "loop"), "www.example.org"), Err(SERVER_FAILURE));
    host.ok(&["rm", "-f", "loop"]);
    assert_eq!(host.leftovers(), "");
}

fn loop_address(host: &Host) -> String {
    let gateway = host.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "open"]);
    format!("{}.77", gateway.rsplit_once('.').unwrap().0)
}

/// Sends a query on a connection, and reads the answer.
fn exchange(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    answer
}

fn confined() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    sleep(&host, "web", &["--network", "lab"]);
    let web = namespace_of(&host, "web");
    let own = Ok(vec![ip(&host, "web", "lab")]);
    assert_eq!(addresses(&web, "web"), own);
    let [pid] = resolvers(&host, "web")[..] else { panic!("one resolver") };
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = "Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\n";
    for line in [ids, "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status().contains(line), "{line} in {}", status());
    }
    // Only the streams, the two sockets, the names, and the pair with the supervisor.
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 7);
    // Port 53 is the container's own, for both protocols.
    let held = within(&web, || (UdpSocket::bind("0.0.0.0:53").unwrap(), TcpListener::bind("0.0.0.0:53").unwrap()));
    assert_eq!(addresses(&web, "web"), own);
    drop(held);
    // It does not wake up without queries.
    let switches = || {
        let status = status();
        status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
    };
    let before = switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(before, switches());
    // A resolver that dies is replaced, and a query in between is answered.
    sh(&format!("kill -STOP {pid}"));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| addresses(&web, "web"));
        sh(&format!("kill -KILL {pid}"));
        waiting.join().unwrap()
    });
    assert_eq!(waiting, own);
    let [second] = resolvers(&host, "web")[..] else { panic!("one resolver") };
    assert_ne!(second, pid);
    // It ends with the supervisor.
    let supervisor = host.inspect("web")["Supervisor"]["Pid"].as_i64().unwrap();
    sh(&format!("kill -KILL {supervisor}"));
    let is_gone = || std::fs::read_to_string(format!("/proc/{second}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually("the resolver has ended", is_gone);
    host.ok(&["start", "web"]);
    assert_eq!(addresses(&namespace_of(&host, "web"), "web"), Ok(vec![ip(&host, "web", "lab")]));
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn hostile() {
    let host = Host::with_box();
    host.ok(&["network", "create", "--internal", "lab"]);
    sleep(&host, "web", &["--network", "lab"]);
    let web = namespace_of(&host, "web");
    let own = Ok(vec![ip(&host, "web", "lab")]);
    let pids = resolvers(&host, "web");
    within(&web, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        // Every packet that a valid query becomes with one changed byte, and every beginning of it.
        let good = query("web.lab", AAAA);
        for at in 0..good.len() {
            let _ = socket.send(&good[..at]);
            for byte in 0..=255 {
                let mut packet = good.clone();
                packet[at] = byte;
                let _ = socket.send(&packet);
            }
        }
        // Pointers to themselves, counts without records, and the largest datagram.
        let mut pointers = good[..12].to_vec();
        pointers.extend([0xc0, 12].repeat(200));
        let mut counts = good.clone();
        counts[4..12].fill(255);
        for packet in [pointers, counts, vec![0; 65_000], [&good[..], &[255; 3000][..]].concat()] {
            let _ = socket.send(&packet);
        }
    });
    assert_eq!(addresses(&web, "web"), own);
    // More connections than it keeps, none of which completes its query, and one with an impossible length.
    within(&web, || {
        let mut idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect("127.0.0.11:53").unwrap()).collect();
        for stream in &mut idle {
            let _ = stream.write_all(&[0, 40, 1]);
        }
        let mut long = TcpStream::connect("127.0.0.11:53").unwrap();
        long.write_all(&[255, 255, 1, 2, 3]).unwrap();
        long.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert!(matches!(long.read(&mut [0; 9]), Ok(0) | Err(_)), "the connection is closed");
        let mut good = TcpStream::connect("127.0.0.11:53").unwrap();
        for _ in 0..3 {
            assert_eq!(exchange(&mut good, &query("web", A))[7], 1, "several queries on one connection");
        }
    });
    assert_eq!(resolvers(&host, "web"), pids, "it is still the same process");
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn later() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    sleep(&host, "db", &["--network", "lab"]);
    for name in ["web", "own"] {
        sleep(&host, name, &[]);
        assert!(resolvers(&host, name).is_empty());
    }
    let conf = |name: &str| host.ok(&["exec", name, "cat", "/etc/resolv.conf"]);
    assert!(!conf("web").contains("127.0.0.11"));
    host.ok(&["exec", "own", "sh", "-c", "echo nameserver 192.0.2.1 >/etc/resolv.conf"]);
    for name in ["web", "own"] {
        host.ok(&["network", "connect", "lab", name]);
        assert_eq!(resolvers(&host, name).len(), 1, "{name}");
        let namespace = namespace_of(&host, name);
        assert_eq!(addresses(&namespace, "db"), Ok(vec![ip(&host, "db", "lab")]), "{name}");
    }
    assert!(conf("web").contains("nameserver 127.0.0.11") && conf("web").contains("ndots:0"), "{}", conf("web"));
    assert_eq!(conf("own"), "nameserver 192.0.2.1", "the user's file stays");
    // Without /etc/hosts, a client asks the resolver.
    host.ok(&["exec", "web", "sh", "-c", "echo 127.0.0.1 localhost >/etc/hosts"]);
    assert!(host.ok(&["exec", "web", "sh", "-c", "nslookup db"]).contains(&ip(&host, "db", "lab")));
    // It keeps up with the network, and is the same after a second network and after a disconnect.
    sleep(&host, "new", &["--network", "lab"]);
    let namespace = namespace_of(&host, "web");
    eventually("the new name", || addresses(&namespace, "new") == Ok(vec![ip(&host, "new", "lab")]));
    let before = resolvers(&host, "web");
    host.ok(&["network", "create", "two"]);
    host.ok(&["network", "connect", "two", "web"]);
    host.ok(&["network", "disconnect", "lab", "web"]);
    assert_eq!(resolvers(&host, "web"), before);
    assert_ne!(addresses(&namespace, "db"), Ok(vec![ip(&host, "db", "lab")]));
    // A resolver that is killed is started again, and a restart of the container has one from the beginning.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0] as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("another one", || matches!(&resolvers(&host, "web")[..], [pid] if *pid != before[0]));
    host.ok(&["network", "connect", "lab", "web"]);
    assert_eq!(addresses(&namespace, "db"), Ok(vec![ip(&host, "db", "lab")]));
    host.ok(&["restart", "-t", "0", "web"]);
    assert!(conf("web").contains("nameserver 127.0.0.11"));
    host.ok(&["rm", "-f", "web", "own", "db", "new"]);
    assert_eq!(host.leftovers(), "");
}
