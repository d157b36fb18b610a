//! Bridge, published ports, host and none: from loopback, from the host's address, from another machine.

use std::process::Stdio;

use crate::host::{Host, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("a_published_port_is_reachable_from_everywhere", published),
    ("udp_is_published_too", udp),
    ("a_port_on_loopback_is_for_this_host_only", loopback_only),
    ("two_containers_on_one_port", port_taken),
    ("a_port_of_the_host_is_in_use", port_in_use),
    ("containers_reach_each_other_and_out", outwards),
    ("names_and_name_servers", names),
    ("none_and_host", modes),
    ("five_hundred_ports_start_at_once", many_ports),
    ("forwarding_that_is_turned_on_is_said_once", forwarding),
    ("every_command_repairs_the_network", repaired),
];

/// Another machine on a wire to this host: 192.0.2.2 there, 192.0.2.1 here.
struct Outside<'a> {
    host: &'a Host,
    netns: String,
}

impl<'a> Outside<'a> {
    fn new(host: &'a Host) -> Self {
        let netns = format!("{}-out", host.netns);
        let here = &host.netns;
        sh(&format!(
            "ip netns add {netns} && ip -n {netns} link set lo up && ip -n {here} link add wire type veth peer name wire netns {netns} && \
             ip -n {here} addr add 192.0.2.1/24 dev wire && ip -n {here} link set wire up && \
             ip -n {netns} addr add 192.0.2.2/24 dev wire && ip -n {netns} link set wire up"
        ));
        Self { host, netns }
    }

    fn fetch(&self, address: &str) -> Option<String> {
        fetch(&self.netns, address)
    }

    fn answer(&self, address: &str) -> Option<String> {
        answer(&self.netns, address)
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        let _ = self.host;
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.netns]).status();
    }
}

/// What a TCP server says, seen from a network namespace. A packet that is dropped is given two seconds.
fn fetch(netns: &str, address: &str) -> Option<String> {
    fetch_within(netns, address, "2")
}

/// What a TCP server says that must answer, on a busy machine as well.
fn answer(netns: &str, address: &str) -> Option<String> {
    fetch_within(netns, address, "30")
}

fn fetch_within(netns: &str, address: &str, seconds: &str) -> Option<String> {
    let (ip, port) = address.split_once(':').unwrap();
    let output = std::process::Command::new("nsenter")
        .args([&format!("--net=/run/netns/{netns}"), "busybox", "timeout", seconds, "busybox", "nc", ip, port])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn serve(host: &Host, name: &str, publish: &str) {
    host.ok(&["run", "-d", "--name", name, "-p", publish, "box", "nc", "-ll", "-p", "80", "-e", "echo", name]);
    let port = host.inspect(name)["Network"]["Ports"][0]["host_port"].as_u64().unwrap();
    eventually("the server answers", || fetch(&host.netns, &format!("127.0.0.1:{port}")).is_some());
}

fn published() {
    let host = Host::with_box();
    let outside = Outside::new(&host);
    serve(&host, "web", "8080:80");
    assert_eq!(answer(&host.netns, "127.0.0.1:8080").as_deref(), Some("web"));
    assert_eq!(answer(&host.netns, "192.0.2.1:8080").as_deref(), Some("web"));
    assert_eq!(outside.answer("192.0.2.1:8080").as_deref(), Some("web"));
    // From the container itself, by the host's address: hairpin.
    assert_eq!(host.ok(&["exec", "web", "sh", "-c", "nc 192.0.2.1 8080 < /dev/null"]), "web");
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(fetch(&host.netns, "127.0.0.1:8080"), None);
    assert_eq!(host.leftovers(), "");
}

fn udp() {
    let host = Host::with_box();
    // busybox has no UDP server; perl is on every Debian host, and runs in the container from there.
    let echo = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 53, Proto => 'udp'); while ($s->recv(my $m, 99)) { $s->send($m) }";
    let mut args = vec!["run", "-d", "--name", "udp", "-p", "5353:53/udp"];
    args.extend([
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/lib:/lib:ro",
        "-v",
        "/lib64:/lib64:ro",
        "box",
        "/usr/bin/perl",
        "-e",
        echo,
    ]);
    host.ok(&args);
    let talk = "exec 3<>/dev/udp/127.0.0.1/5353; echo hello >&3; timeout 2 head -c 5 <&3";
    eventually("the server answers", || {
        let output = host.program("bash", &["-c", talk]).output().unwrap();
        output.stdout == b"hello"
    });
}

fn loopback_only() {
    let host = Host::with_box();
    let outside = Outside::new(&host);
    serve(&host, "web", "127.0.0.1:8080:80");
    let ip = host.inspect("web")["Network"]["IPAddress"].as_str().unwrap().to_owned();
    assert_eq!(outside.fetch("192.0.2.1:8080"), None);
    // A neighbour that sends packets for our loopback, or for the container itself, straight to us.
    sh(&format!("ip -n {} route add 10.89.0.0/16 via 192.0.2.1", outside.netns));
    assert_eq!(outside.fetch(&format!("{ip}:80")), None, "the container itself is behind the host");
    sh(&format!(
        "ip netns exec {0} sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip -n {0} addr del 127.0.0.1/8 dev lo && ip -n {0} route add 127.0.0.1 via 192.0.2.1 dev wire",
        outside.netns
    ));
    assert_eq!(outside.fetch("127.0.0.1:8080"), None);
}

fn port_taken() {
    let host = Host::with_box();
    serve(&host, "web", "8080:80");
    let error = host.fails(125, &["run", "-d", "--name", "two", "-p", "8080:81", "box", "true"]);
    assert!(error.contains("8080") && error.contains("container `web`") && error.contains("hint:"), "{error}");
    // What never ran is not there, and its name is free.
    assert_eq!(host.ok(&["ps", "-a", "--json"]).matches("\"two\"").count(), 0);
    host.ok(&["run", "-d", "--name", "two", "-p", "8081:81", "box", "true"]);
    // Any free one is another one.
    serve(&host, "three", "80");
}

fn port_in_use() {
    let host = Host::with_box();
    let mut other = host.program("busybox", &["nc", "-l", "-p", "8080"]).spawn().unwrap();
    eventually("somebody listens", || {
        !sh(&format!("nsenter --net=/run/netns/{} cat /proc/net/tcp /proc/net/tcp6 | grep :1F90 || true", host.netns))
            .is_empty()
    });
    let error = host.fails(125, &["run", "--rm", "-p", "8080:80", "box", "true"]);
    assert!(error.contains("8080") && error.contains("in use"), "{error}");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(host.leftovers(), "");
}

fn outwards() {
    let host = Host::with_box();
    let outside = Outside::new(&host);
    serve(&host, "web", "8080:80");
    let ip = host.inspect("web")["Network"]["IPAddress"].as_str().unwrap().to_owned();
    assert_eq!(host.ok(&["run", "--rm", "box", "sh", "-c", &format!("nc {ip} 80 < /dev/null")]), "web");
    let mut server = std::process::Command::new("nsenter")
        .args([
            &format!("--net=/run/netns/{}", outside.netns),
            "busybox",
            "nc",
            "-ll",
            "-p",
            "99",
            "-e",
            "echo",
            "outside",
        ])
        .spawn()
        .unwrap();
    eventually("the other machine answers", || fetch(&host.netns, "192.0.2.2:99").is_some());
    assert_eq!(host.ok(&["run", "--rm", "box", "sh", "-c", "nc 192.0.2.2 99 < /dev/null"]), "outside");
    server.kill().unwrap();
    server.wait().unwrap();
}

fn names() {
    let host = Host::with_box();
    let out = host.ok(&[
        "run",
        "--rm",
        "--hostname",
        "spark",
        "--dns",
        "192.0.2.53",
        "--add-host",
        "db:192.0.2.7",
        "--add-host",
        "gateway:host-gateway",
        "box",
        "cat",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
    ]);
    for part in ["127.0.0.1\tlocalhost", "\tspark", "192.0.2.7\tdb", ".1\tgateway", "nameserver 192.0.2.53", "spark"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
}

fn modes() {
    let host = Host::with_box();
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "box", "sh", "-c", "ip -o link | wc -l"]), "1");
    let own = sh(&format!(
        "readlink /run/netns/{0} 2>/dev/null; nsenter --net=/run/netns/{0} readlink /proc/self/ns/net",
        host.netns
    ));
    assert_eq!(host.ok(&["run", "--rm", "--network", "host", "box", "readlink", "/proc/self/ns/net"]), own.trim());
    // As docker does: the program's ports are the host's anyway.
    let discarded = host.run(&["run", "--rm", "--network", "host", "-p", "80:80", "box", "true"]);
    assert_eq!(discarded.code, 0, "{}", discarded.err);
    assert!(discarded.err.contains("discarded with `--network host`"), "{}", discarded.err);
}

/// The message that announces the container is longer than one packet of the control protocol.
fn many_ports() {
    let host = Host::with_box();
    let begun = std::time::Instant::now();
    host.ok(&["run", "-d", "--name", "one", "-p", "127.0.0.1:19999:80", "box", "sleep", "1000"]);
    let one = begun.elapsed();
    let begun = std::time::Instant::now();
    let publish = "127.0.0.1:20000-20499:30000-30499";
    let started = host
        .run(&["run", "-d", "--name", "many", "-p", publish, "box", "nc", "-ll", "-p", "30499", "-e", "echo", "many"]);
    let took = begun.elapsed();
    assert_eq!(started.code, 0, "{}", started.err);
    // Two seconds, and on a busy machine a small multiple of what one port takes.
    let bound = if crate::host::slow() { 20.0 } else { 2.0_f64.max(4.0 * one.as_secs_f64()) };
    assert!(took.as_secs_f64() < bound, "{took:?}, and with one port {one:?}");
    eventually("the last port answers", || fetch(&host.netns, "127.0.0.1:20499").is_some());
    assert_eq!(host.inspect("many")["Network"]["Ports"].as_array().unwrap().len(), 500);
    host.ok(&["restart", "-t", "0", "many"]);
    // A command in the foreground waits for the same message, and ends with the container's own code.
    let reported =
        host.run(&["run", "--rm", "-p", "127.0.0.1:21000-21499:21000-21499", "box", "sh", "-c", "echo said; exit 7"]);
    assert_eq!((reported.code, reported.out.trim()), (7, "said"), "{}", reported.err);
    host.ok(&["rm", "-f", "many", "one"]);
    assert_eq!(host.leftovers(), "");
}

fn forwarding() {
    let host = Host::with_box();
    let off = |name: &str| sh(&format!("ip netns exec {} sh -c 'echo 0 > /proc/sys/net/ipv4/{name}'", host.netns));
    off("ip_forward");
    let first = host.run(&["run", "--rm", "box", "true"]);
    assert!(first.err.contains("ip_forward"), "{}", first.err);
    assert_eq!(host.run(&["run", "--rm", "box", "true"]).err, "");
    off("ip_forward");
    assert_eq!(host.run(&["run", "--rm", "--network", "none", "box", "true"]).err, "", "it has no part in it");
}

fn repaired() {
    let host = Host::with_box();
    let outside = Outside::new(&host);
    serve(&host, "web", "8080:80");
    let ruin = |line: &str| sh(&format!("ip netns exec {} sh -c '{line}'", host.netns));
    let commands: [&[&str]; 4] = [&["ps"], &["doctor"], &["image", "ls"], &["inspect", "web"]];
    for (number, command) in commands.into_iter().enumerate() {
        ruin(["ip link delete gpurun0", "nft flush ruleset"][number % 2]);
        assert_eq!(outside.fetch("192.0.2.1:8080"), None);
        let reported = host.run(command);
        assert!(reported.err.contains("again"), "{command:?}: {}", reported.err);
        assert_eq!(outside.answer("192.0.2.1:8080").as_deref(), Some("web"), "{command:?}");
        assert_eq!(answer(&host.netns, "127.0.0.1:8080").as_deref(), Some("web"), "{command:?}");
        assert!(!host.run(command).err.contains("again"), "{command:?}: said once");
    }
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.leftovers(), "");
}
