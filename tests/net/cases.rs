//! Reachability, ports, leases.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Instant;

use gpurun::testing::net;
use gpurun::testing::request::{NetworkMode, PortSpec};
use gpurun::testing::sys::process::{self, Fork};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::Case;
use crate::world::{
    HOST, LOOPBACK, OUTSIDE, PATIENCE, World, cannot_reach, connect, echo, eventually, id, published, reach, says, sh,
    udp_client, veths, within,
};

pub const CASES: &[Case] = &[
    ("a_published_port_is_reached_from_everywhere", everywhere),
    ("udp_is_reached_from_everywhere", udp_everywhere),
    ("a_port_on_loopback_is_for_this_host_only", loopback_only),
    ("a_port_on_one_address_is_on_no_other", one_address),
    ("a_container_cannot_pose_as_loopback", no_pose),
    ("nobody_comes_in_unasked", unasked),
    ("containers_reach_each_other_and_out", outwards),
    ("a_port_in_use_names_its_holder", port_in_use),
    ("a_server_that_is_gone_does_not_keep_its_port", time_wait),
    ("free_ports_and_ranges", free_ports),
    ("a_killed_owner_leaves_nothing_after_reconcile", killed_owner),
    ("taking_down_twice_is_once", idempotent),
    ("a_restart_after_a_kill_starts_clean", restart),
    ("many_at_once_get_addresses_of_their_own", many_at_once),
    ("a_sender_that_never_pauses_follows_the_port", stale_flows),
    ("what_was_removed_from_the_host_is_repaired", repaired),
    ("run_directories_share_the_bridge_without_sharing_addresses", run_directories),
    ("the_network_keeps_clear_of_the_hosts_routes", subnet),
    ("forwarding_is_turned_on_and_said", forwarding),
    ("there_is_no_ipv6_on_the_bridge", no_ipv6),
    ("none_has_loopback_only_and_host_is_the_host", modes),
];

/// Not tests: `cargo test --test net -- --case measure`.
pub const MEASURES: &[Case] = &[("measure", measure)];

fn everywhere() {
    let world = World::new();
    // Both ways a host may be: bridged packets seen by the packet filter (docker turns that on) or not.
    for bridged in ["1", "0"] {
        let knob = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if fs::exists(knob).unwrap() {
            fs::write(knob, bridged).unwrap();
        }
        let (web, other) = (world.container("web", &["8080:80"]), world.container("other", &[]));
        let server = web.tcp(80);
        reach(None, (LOOPBACK, 8080), &server);
        reach(None, (Ipv4Addr::new(127, 9, 9, 9), 8080), &server);
        reach(None, (HOST, 8080), &server);
        reach(None, (web.gateway(), 8080), &server);
        reach(None, (web.ip, 80), &server);
        assert_eq!(reach(Some(&world.outside), (HOST, 8080), &server), OUTSIDE, "a server sees who asks");
        reach(Some(other.ns()), (HOST, 8080), &server);
        reach(Some(other.ns()), (other.gateway(), 8080), &server);
        reach(Some(web.ns()), (HOST, 8080), &server);
        reach(Some(web.ns()), (web.gateway(), 8080), &server);
        world.teardown("web");
        cannot_reach(None, (LOOPBACK, 8080));
        world.teardown("other");
    }
}

fn udp_everywhere() {
    let world = World::new();
    let (dns, other) = (world.container("dns", &["5353:53/udp"]), world.container("other", &[]));
    let server = dns.udp(53);
    echo(&udp_client(None), (LOOPBACK, 5353), &server);
    echo(&udp_client(None), (HOST, 5353), &server);
    echo(&udp_client(Some(&world.outside)), (HOST, 5353), &server);
    echo(&udp_client(Some(other.ns())), (HOST, 5353), &server);
    echo(&udp_client(Some(dns.ns())), (HOST, 5353), &server);
    // The same number with TCP is another port.
    cannot_reach(None, (LOOPBACK, 5353));
}

fn loopback_only() {
    let world = World::new();
    let (web, other) = (world.container("web", &["127.0.0.1:8080:80"]), world.container("other", &[]));
    let server = web.tcp(80);
    reach(None, (LOOPBACK, 8080), &server);
    cannot_reach(None, (HOST, 8080));
    cannot_reach(Some(&world.outside), (HOST, 8080));
    cannot_reach(Some(other.ns()), (other.gateway(), 8080));
    // Machines beside us that send packets for our loopback to us.
    for (neighbour, via) in [(&world.outside, HOST), (other.ns(), other.gateway())] {
        within(neighbour, || sh(&loopback_by(via)));
        cannot_reach(Some(neighbour), (LOOPBACK, 8080));
    }
}

/// Makes 127.0.0.1 an address that lies behind a gateway.
fn loopback_by(gateway: Ipv4Addr) -> String {
    format!(
        "for f in /proc/sys/net/ipv4/conf/*/route_localnet; do echo 1 > $f; done
         ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via {gateway}"
    )
}

fn one_address() {
    let world = World::new();
    sh("ip addr add 198.51.100.1/24 dev wire");
    within(&world.outside, || sh("ip route add 198.51.100.0/24 via 192.0.2.1"));
    let second = Ipv4Addr::new(198, 51, 100, 1);
    let (one, two) =
        (world.container("one", &["192.0.2.1:8080:80"]), world.container("two", &["198.51.100.1:8080:80"]));
    let (first_server, second_server) = (one.tcp(80), two.tcp(80));
    reach(Some(&world.outside), (HOST, 8080), &first_server);
    reach(Some(&world.outside), (second, 8080), &second_server);
    cannot_reach(None, (LOOPBACK, 8080));
    says(world.try_container("three", &["203.0.113.9:8080:80"]), &["cannot publish port", "ip address"]);
}

fn no_pose() {
    let world = World::new();
    let evil = world.container("evil", &[]);
    let service = TcpListener::bind((LOOPBACK, 631)).unwrap();
    let open = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 514)).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let gateway = evil.gateway();
    let mut buffer = [0; 8];
    // As itself it may speak to the host …
    let honest = udp_client(Some(evil.ns()));
    honest.send_to(b"honest", (gateway, 514)).unwrap();
    assert_eq!(open.recv_from(&mut buffer).unwrap().1.ip(), evil.ip);
    // … but not as 127.0.0.1, and not to what the host keeps for itself.
    within(evil.ns(), || sh(&loopback_by(gateway)));
    within(evil.ns(), || sh("ip addr add 127.0.0.7/32 dev eth0"));
    let liar = within(evil.ns(), || UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 7), 0)).unwrap());
    liar.send_to(b"lie", (gateway, 514)).unwrap();
    honest.send_to(b"again", (gateway, 514)).unwrap();
    let (length, peer) = open.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], peer.ip()), (&b"again"[..], evil.ip.into()), "the lie was sent first");
    cannot_reach(Some(evil.ns()), (LOOPBACK, 631));
    drop(service);
}

fn unasked() {
    let world = World::new();
    let web = world.container("web", &["8080:80"]);
    let (published, private) = (web.tcp(80), web.tcp(81));
    within(&world.outside, || sh("ip route add 10.89.0.0/16 via 192.0.2.1"));
    reach(None, (web.ip, 81), &private);
    cannot_reach(Some(&world.outside), (web.ip, 81));
    // Even a published port is not found by the container's own address: that is how 127.0.0.1 stays private.
    cannot_reach(Some(&world.outside), (web.ip, 80));
    reach(Some(&world.outside), (HOST, 8080), &published);
    // Packets with an address that is not the container's are dropped.
    within(web.ns(), || sh("ip addr add 203.0.113.5/32 dev eth0"));
    let spoofer = within(web.ns(), || UdpSocket::bind((Ipv4Addr::new(203, 0, 113, 5), 0)).unwrap());
    let honest = udp_client(Some(web.ns()));
    let outside = within(&world.outside, || UdpSocket::bind((OUTSIDE, 9)).unwrap());
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    spoofer.send_to(b"lie", (OUTSIDE, 9)).unwrap();
    honest.send_to(b"truth", (OUTSIDE, 9)).unwrap();
    let mut buffer = [0; 8];
    let (length, _) = outside.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"truth", "the lie was sent first");
}

fn outwards() {
    let world = World::new();
    let (one, two) = (world.container("one", &[]), world.container("two", &[]));
    assert_eq!(reach(Some(one.ns()), (two.ip, 99), &two.tcp(99)), one.ip);
    let outside = within(&world.outside, || TcpListener::bind((OUTSIDE, 99)).unwrap());
    assert_eq!(reach(Some(one.ns()), (OUTSIDE, 99), &outside), HOST, "the container is behind the host's address");
    reach(Some(one.ns()), (LOOPBACK, 5), &within(one.ns(), || TcpListener::bind((LOOPBACK, 5)).unwrap()));
}

fn port_in_use() {
    let world = World::new();
    let web = world.container("web", &["8080:80", "127.0.0.1:9090:90"]);
    says(
        world.try_container("two", &["8080:81"]),
        &["cannot publish port 0.0.0.0:8080/tcp: it is in use by container `web`", "hint: "],
    );
    says(world.try_container("two", &["127.0.0.1:8080:81"]), &["in use by container `web`"]);
    says(world.try_container("two", &["9090:81"]), &["in use by container `web`"]);
    says(world.try_container("two", &["7000:1", "7000:2"]), &["in use by another `-p` of this container"]);
    let four = TcpListener::bind((LOOPBACK, 7001)).unwrap();
    let six = TcpListener::bind("[::]:7002").unwrap();
    let datagrams = UdpSocket::bind((HOST, 7003)).unwrap();
    let me = format!("(pid {})", std::process::id());
    for port in ["7001:1", "127.0.0.1:7001:1", "7002:1", "7003:1/udp"] {
        says(world.try_container("two", &[port]), &["it is in use by `", &me]);
    }
    drop((four, six));
    // Nothing of those remains, and what is free is free: the other protocol, another address.
    eventually("a lease, two ports and a device are all that there is", || {
        (world.leftovers().len() == 4).then_some(())
    });
    let two = world.container("two", &["8080:80/udp", "192.0.2.1:9090:91", "7001:1"]);
    reach(None, (LOOPBACK, 9090), &web.tcp(90));
    reach(None, (HOST, 9090), &two.tcp(91));
    drop(datagrams);
}

fn time_wait() {
    let world = World::new();
    let server = TcpListener::bind((LOOPBACK, 8080)).unwrap();
    let client = connect(None, (LOOPBACK, 8080), PATIENCE).unwrap();
    // The side that closes first keeps the connection in TIME_WAIT: the server.
    drop(server.accept().unwrap());
    drop(client);
    drop(server);
    eventually("TIME_WAIT", || sh("ss -Htan state time-wait").contains(":8080").then_some(()));
    let web = world.container("web", &["127.0.0.1:8080:80"]);
    reach(None, (LOOPBACK, 8080), &web.tcp(80));
    // It is held as any other: by bind with SO_REUSEADDR (which std's listener sets) as well.
    says(world.try_container("two", &["8080:80"]), &["by container `web`"]);
    TcpListener::bind((LOOPBACK, 8080)).expect_err("the port is held");
}

fn free_ports() {
    let world = World::new();
    let one = world.container("one", &["80", "127.0.0.1::81", "82/udp"]);
    let two = world.container("two", &["80", "8000-8002:9000-9002"]);
    let port = |container: &crate::world::Container, index: usize| container.network.ports[index].host_port;
    assert_ne!(port(&one, 0), port(&two, 0));
    reach(Some(&world.outside), (HOST, port(&one, 0)), &one.tcp(80));
    reach(None, (LOOPBACK, port(&one, 1)), &one.tcp(81));
    echo(&udp_client(None), (HOST, port(&one, 2)), &one.udp(82));
    for offset in 0..3 {
        reach(None, (HOST, 8000 + offset), &two.tcp(9000 + offset));
    }
    let many = world.container("many", &["20000-20999:20000-20999"]);
    reach(None, (HOST, 20999), &many.tcp(20999));
    world.teardown("many");
    assert_eq!(published().join("\n").matches("gpurun:").count(), 3 + 4);
}

/// A process that sets up a container and waits to be killed.
fn owner(world: &World, name: &str, publish: &[&str]) -> Pid {
    let (mut reader, writer) = std::io::pipe().unwrap();
    match process::fork(false).unwrap() {
        Fork::Child => {
            let network = world.container(name, publish);
            std::io::Write::write_all(&mut { writer }, b"!").unwrap();
            loop {
                nix::unistd::pause();
                std::hint::black_box(&network);
            }
        }
        Fork::Parent(pid) => {
            drop(writer);
            std::io::Read::read_exact(&mut reader, &mut [0]).expect("the container stands");
            Pid::from_raw(pid)
        }
    }
}

fn killed_owner() {
    let world = World::new();
    let keeper = world.container("keeper", &["9090:90"]);
    let owner = owner(&world, "web", &["8080:80", "8081:80/udp"]);
    world.reconcile(&[]);
    assert_eq!(published().join("\n").matches("gpurun:").count(), 3, "owners that live keep what they have");
    kill(owner, Signal::SIGKILL).unwrap();
    // Not waited for: a zombie is dead.
    eventually("the kernel removes the device", || (veths().len() == 1).then_some(()));
    assert_eq!(published().join("\n").matches("gpurun:").count(), 3);
    world.reconcile(&["web"]);
    assert_eq!(published().join("\n").matches("gpurun:").count(), 3, "who is said to live is let alone");
    for _ in 0..2 {
        world.reconcile(&[]);
        assert_eq!(world.leftovers().len(), 3, "the keeper's: {:?}", world.leftovers());
    }
    reach(None, (LOOPBACK, 9090), &keeper.tcp(90));
    let heir = world.container("heir", &["8080:80"]);
    reach(None, (LOOPBACK, 8080), &heir.tcp(80));
    waitpid(owner, None).unwrap();
}

fn idempotent() {
    let world = World::new();
    world.teardown("never");
    world.reconcile(&[]);
    let web = world.container("web", &["8080:80", "8081:80/udp"]);
    drop(web);
    for _ in 0..2 {
        world.teardown("web");
        assert_eq!(published(), [""; 0]);
    }
    eventually("the device goes with its namespace", || world.leftovers().is_empty().then_some(()));
    // A lease that says more than there is: killed between the lease and what it names.
    let lease = world.state_dir().join(format!("{}.json", id("web")));
    let web = world.container("web", &["8080:80", "8081:80/udp"]);
    let text = fs::read(&lease).unwrap();
    world.teardown("web");
    drop(web);
    for table in ["", "nft delete table inet gpurun", "ip link delete gpurun0"] {
        sh(table);
        fs::write(&lease, &text).unwrap();
        world.teardown("web");
        eventually("all is gone", || world.leftovers().is_empty().then_some(()));
    }
    // A lease that cannot be read does not end the command.
    fs::write(&lease, b"{").unwrap();
    world.teardown("web");
    let web = world.container("web", &["8080:80"]);
    reach(None, (LOOPBACK, 8080), &web.tcp(80));
}

fn restart() {
    let world = World::new();
    for _ in 0..3 {
        let owner = owner(&world, "web", &["8080:80"]);
        kill(owner, Signal::SIGKILL).unwrap();
        waitpid(owner, None).unwrap();
        // At once, with the same id: the old namespace may not even be gone.
    }
    let web = world.container("web", &["8080:80"]);
    reach(None, (LOOPBACK, 8080), &web.tcp(80));
    // The kernel removes the devices of the killed ones' namespaces a moment after it has reaped the processes.
    eventually("what belongs to the killed ones is gone", || (world.leftovers().len() == 3).then_some(()));
    // When the run directory was emptied, an element of the dead container is still in the set, and is replaced.
    let old = owner(&world, "lost", &["7070:70"]);
    kill(old, Signal::SIGKILL).unwrap();
    waitpid(old, None).unwrap();
    fs::remove_file(world.state_dir().join(format!("{}.json", id("lost")))).unwrap();
    let third = world.container("third", &[]);
    let fourth = world.container("fourth", &["7070:70"]);
    assert_ne!(third.ip, fourth.ip);
    reach(None, (LOOPBACK, 7070), &fourth.tcp(70));
}

fn many_at_once() {
    let world = World::new();
    let mut pids = Vec::new();
    for number in 0..12 {
        match process::fork(false).unwrap() {
            Fork::Child => {
                let name = format!("c{number}");
                let port = 8100 + number;
                let container = world.container(&name, &[&format!("{port}:80")]);
                reach(None, (LOOPBACK, port), &container.tcp(80));
                let keep = number % 2 == 0;
                if !keep {
                    world.teardown(&name);
                }
                process::exit_now(if keep { 10 } else { 11 });
            }
            Fork::Parent(pid) => pids.push((number, Pid::from_raw(pid))),
        }
    }
    for (number, pid) in pids {
        let status = waitpid(pid, None).unwrap();
        let expected = if number % 2 == 0 { 10 } else { 11 };
        assert_eq!(status, nix::sys::wait::WaitStatus::Exited(pid, expected), "container {number}");
    }
    world.reconcile(&[]);
    eventually("all is gone", || world.leftovers().is_empty().then_some(()));
}

fn stale_flows() {
    let world = World::new();
    // The kernel tracks flows only where a rule requests it: a container does.
    let first = world.container("first", &[]);
    let outside = udp_client(Some(&world.outside));
    let local = udp_client(None);
    for sender in [&outside, &local] {
        sender.send_to(b"too early", (HOST, 514)).unwrap();
    }
    let log = world.container("log", &["514:514/udp"]);
    let server = log.udp(514);
    echo(&outside, (HOST, 514), &server);
    echo(&local, (HOST, 514), &server);
    drop(server);
    world.teardown("log");
    drop(log);
    // Another address: another container has the old one.
    let second = world.container("second", &[]);
    let heir = world.container("heir", &["514:514/udp"]);
    assert_ne!(second.ip, heir.ip);
    let server = heir.udp(514);
    echo(&outside, (HOST, 514), &server);
    echo(&local, (HOST, 514), &server);
    world.teardown("heir");
    // And a program of the host itself gets what is its own again.
    drop(heir.network);
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 514)).unwrap();
    echo(&local, (LOOPBACK, 514), &own);
    outside.send_to(b"ping", (HOST, 514)).unwrap();
    own.recv_from(&mut [0; 8]).unwrap();
    drop(first);
}

/// What root or another program may do to the host while containers run. Each is repaired by the next command, whichever it is, and a
/// second command finds nothing to do.
fn repaired() {
    let world = World::new();
    let (web, own) =
        (world.container("web", &["8080:80", "8081:81/udp"]), world.container("own", &["127.0.0.1:9090:90"]));
    let (server, private) = (web.tcp(80), web.tcp(82));
    let damage = [
        ("ip link delete gpurun0", "bridge"),
        ("ip link set gpurun0 down", "bridge"),
        ("ip addr flush dev gpurun0", "bridge"),
        ("nft flush ruleset", "table"),
        ("nft flush table inet gpurun", "table"),
        ("nft delete chain inet gpurun forward", "table"),
        ("nft flush map inet gpurun any", "published ports"),
        ("nft flush map inet gpurun own", "published ports"),
        ("ip link set gpurun0-2 nomaster", "`web`"),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", "ip_forward"),
    ];
    for (ruin, named) in damage {
        sh(ruin);
        let notices = net::repair(&world.state_dir()).unwrap();
        assert!(notices.iter().any(|notice| notice.contains(named)), "{ruin}: {notices:?}");
        assert_eq!(net::repair(&world.state_dir()).unwrap(), [""; 0], "{ruin}: repaired at once");
        reach(None, (LOOPBACK, 8080), &server);
        reach(Some(&world.outside), (HOST, 8080), &server);
        reach(None, (LOOPBACK, 9090), &own.tcp(90));
        reach(Some(own.ns()), (web.ip, 80), &server);
        let outside = within(&world.outside, || TcpListener::bind((OUTSIDE, 99)).unwrap());
        assert_eq!(reach(Some(web.ns()), (OUTSIDE, 99), &outside), HOST, "{ruin}");
        // Another machine that uses this host as a router reaches nothing that was not published.
        within(&world.outside, || sh(&format!("ip route replace {}/32 via 192.0.2.1", web.ip)));
        cannot_reach(Some(&world.outside), (web.ip, 82));
    }
    drop(private);
    // From another network namespace there is nothing to repair, and nothing of the host's is set up there.
    sh("nft flush ruleset");
    within(&world.outside, || {
        assert_eq!(net::repair(&world.state_dir()).unwrap(), [""; 0]);
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(sh("ip -o link show type bridge"), "");
    });
    assert!(!net::repair(&world.state_dir()).unwrap().is_empty());
    reach(None, (LOOPBACK, 8080), &server);
    for name in ["web", "own"] {
        world.teardown(name);
    }
    sh("ip link delete gpurun0; nft flush ruleset");
    assert_eq!(net::repair(&world.state_dir()).unwrap(), [""; 0], "without containers there is nothing to repair");
    assert_eq!(sh("nft list ruleset"), "");
}

/// Two run directories on one host: each knows its own leases only, and the bridge is one.
fn run_directories() {
    let world = World::new();
    let other = world.state_dir().with_file_name("other");
    let mut addresses = std::collections::BTreeSet::new();
    let mut containers = Vec::new();
    for number in 0..6 {
        let (name, port) = (format!("c{number}"), format!("{}:80", 8000 + number));
        let state_dir = if number % 2 == 0 { &world.state_dir() } else { &other };
        let network = world.try_container_in(state_dir, &name, &[&port]).unwrap();
        assert!(addresses.insert(network.ip.unwrap()), "{name} has the address of another: {addresses:?}");
        containers.push(crate::world::Container { ip: network.ip.unwrap(), network });
    }
    for (number, container) in (0..).zip(&containers) {
        reach(None, (LOOPBACK, 8000 + number), &container.tcp(80));
    }
    // Clean-up in one run directory leaves the devices and ports of the other alone.
    net::teardown(&other, &id("c1")).unwrap();
    net::reconcile(&other, &[], &[]).unwrap();
    reach(None, (LOOPBACK, 8002), &containers[2].tcp(80));
    // After a flush each run directory's next command restores its own ports, and keeps the other's.
    sh("nft flush ruleset");
    for state_dir in [&world.state_dir(), &other, &world.state_dir()] {
        net::repair(state_dir).unwrap();
    }
    for number in [0, 2, 3, 4, 5] {
        reach(None, (LOOPBACK, 8000 + number as u16), &containers[number].tcp(80));
    }
}

fn subnet() {
    let world = World::new();
    sh("ip addr add 10.88.0.1/15 dev wire");
    let web = world.container("web", &["8080:80"]);
    assert_eq!(web.ip, Ipv4Addr::new(172, 30, 0, 2));
    reach(Some(&world.outside), (HOST, 8080), &web.tcp(80));
    world.teardown("web");
    drop(web);
    // While the bridge stands, it stays; when it has gone, it is chosen again.
    sh("ip addr delete 10.88.0.1/15 dev wire");
    assert_eq!(world.container("two", &[]).ip, Ipv4Addr::new(172, 30, 0, 3));
    world.teardown("two");
    sh("ip link delete gpurun0");
    let three = world.container("three", &["8080:80"]);
    assert_eq!(three.ip.octets()[..3], [10, 89, 0]);
    reach(Some(&world.outside), (HOST, 8080), &three.tcp(80));
    // A lost run directory: the bridge itself says which network it has.
    world.teardown("three");
    fs::remove_file(world.state_dir().join("subnet")).unwrap();
    assert_eq!(world.container("four", &[]).ip.octets()[..3], [10, 89, 0]);
}

fn forwarding() {
    let world = World::new();
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    let one = world.container("one", &[]);
    assert!(one.network.notes.iter().any(|note| note.contains("ip_forward")), "{:?}", one.network.notes);
    assert_eq!(world.container("two", &[]).network.notes, [""; 0], "said once");
    // A script of the host turns it off, and removes the localnet route: the next start repairs both.
    sh(
        "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/gpurun0/route_localnet; ip link set gpurun0 down",
    );
    let three = world.container("three", &["8080:80"]);
    reach(None, (LOOPBACK, 8080), &three.tcp(80));
    reach(Some(&world.outside), (HOST, 8080), &three.tcp(80));
}

fn no_ipv6() {
    let world = World::new();
    let web = world.container("web", &[]);
    assert_eq!(sh("ip -6 addr show dev gpurun0"), "");
    within(web.ns(), || {
        assert_eq!(sh("ip -6 addr show dev eth0"), "");
        TcpListener::bind("[::1]:80").expect("a container's own loopback has both");
    });
}

fn modes() {
    let world = World::new();
    let state_dir = world.state_dir();
    let setup = |mode| {
        let ports: &[PortSpec] = &[];
        let subnet = None;
        net::setup(&net::Request {
            id: &id("x"),
            name: "x",
            user: "ada",
            hostname: "x",
            mode,
            attachments: &[],
            networks: &net::Networks::new(world.dir.path()),
            hosts: &world.dir.path().join("hosts"),
            ports,
            state_dir: &state_dir,
            subnet,
            servers: &[],
        })
        .unwrap()
    };
    assert!(setup(NetworkMode::Host).namespace.is_none());
    let none = setup(NetworkMode::None).namespace.unwrap();
    within(&none, || {
        assert_eq!(sh("ip -o link | wc -l").trim(), "1");
        reach(Some(&none), (LOOPBACK, 1), &TcpListener::bind((LOOPBACK, 1)).unwrap());
    });
    assert!(!state_dir.exists(), "neither leaves anything on the disk");
}

fn measure() {
    let world = World::new();
    let start = Instant::now();
    world.container("first", &["8080:80"]);
    eprintln!("first container of a boot: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    world.teardown("first");
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let name = format!("web{number}");
        let start = Instant::now();
        let container = world.container(&name, &["8080:80"]);
        up.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        world.teardown(&name);
        down.push(start.elapsed().as_secs_f64() * 1e3);
        // Both costs are seen alone: the kernel's own clearing away holds a lock that the next start wants.
        drop(container);
        eventually("the device is gone", || veths().is_empty().then_some(()));
    }
    for (what, mut times) in [("set up", up), ("take down", down)] {
        times.sort_by(f64::total_cmp);
        eprintln!("{what}: median {:.1} ms, worst {:.1} ms", times[times.len() / 2], times[times.len() - 1]);
    }
}
