//! Named networks: creating them, names of containers, isolation, and changing the networks of running containers.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::{Host, answer, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("networks_are_listed_inspected_and_removed", managed),
    ("networks_that_cannot_be_made_are_refused", refused),
    ("containers_of_a_network_find_each_other_by_name", named),
    ("networks_are_isolated_from_each_other", isolated),
    ("an_internal_network_leads_nowhere", internal),
    ("networks_change_while_a_container_runs", connected),
    ("addresses_and_aliases_are_chosen", chosen),
    ("a_container_shares_the_network_of_another", shared),
    ("twenty_starts_at_once_get_addresses_of_their_own", at_once),
    ("a_network_survives_a_killed_supervisor_and_a_reboot", survives),
    ("a_network_is_not_removed_under_a_start", removal_race),
    ("a_chosen_address_is_waited_for", lingering),
    ("a_container_cannot_write_into_the_names_of_another", hostile_names),
];

/// The kernel removes the device of an ended container in the background: here it takes half a second.
fn lingering() {
    let host = Host::with_box();
    host.ok(&["network", "create", "--subnet", "10.71.3.0/24", "lab"]);
    let run = ["run", "--rm", "--network", "lab", "--ip", "10.71.3.9", "box"];
    host.ok(&["run", "-d", "--name", "first", "--network", "lab", "--ip", "10.71.3.9", "box", "sleep", "1000"]);
    let links = sh(&format!("ip -n {} -o link show type veth", host.netns));
    let name = links.split_whitespace().find(|word| word.contains("-9@")).unwrap_or_else(|| panic!("{links}"));
    let name = name.split('@').next().unwrap();
    host.ok(&["rm", "-f", "first"]);
    let is_gone = || !sh(&format!("ip -n {} -o link", host.netns)).contains(name);
    eventually("the device is removed", is_gone);
    sh(&format!("ip -n {} link add {name} type veth peer name peer0", host.netns));
    let netns = host.netns.clone();
    let line = format!("sleep 0.5; ip -n {netns} link del {name}");
    let mut removal = Command::new("sh").args(["-c", &line]).spawn().unwrap();
    assert_eq!(host.ok(&[&run[..], &["echo", "fine"]].concat()), "fine");
    assert!(removal.wait().unwrap().success());
    host.ok(&["network", "rm", "lab"]);
    assert_eq!(host.leftovers(), "");
}

/// What a TCP server answers a container. A refused connection and an unknown name end at once.
fn fetch(host: &Host, from: &str, to: &str) -> Option<String> {
    fetch_within(host, from, to, 30)
}

/// Whether a container gets no answer. The packet filter drops packets, so the time limit ends most of these.
fn blocked(host: &Host, from: &str, to: &str) -> bool {
    fetch_within(host, from, to, 2).is_none()
}

fn fetch_within(host: &Host, from: &str, to: &str, seconds: u32) -> Option<String> {
    let line = format!("timeout {seconds} nc {to} < /dev/null");
    let answer = host.run(&["exec", from, "sh", "-c", &line]);
    Some(answer.out.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The hosts file of a running container, read without a gpurun command.
fn hosts_of(pid: i64) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap()
}

/// Starts a container that says its name on port 80.
fn serve(host: &Host, name: &str, flags: &[&str]) {
    let command = ["box", "nc", "-ll", "-p", "80", "-e", "echo", name];
    host.ok(&[&["run", "-d", "--name", name], flags, &command[..]].concat());
    eventually("the server answers", || fetch(host, name, "127.0.0.1 80").is_some());
}

fn networks(host: &Host, name: &str) -> Value {
    let all: Value = serde_json::from_str(&host.ok(&["inspect", name])).unwrap();
    all[0]["NetworkSettings"]["Networks"].clone()
}

fn inspect(host: &Host, name: &str) -> Value {
    let all: Value = serde_json::from_str(&host.ok(&["network", "inspect", name])).unwrap();
    all[0].clone()
}

fn managed() {
    let host = Host::with_box();
    let names = |args: &[&str]| host.ok(&[&["network", "ls", "--format", "{{.Name}}"], args].concat());
    assert_eq!(names(&[]), "bridge\nhost\nnone");
    let id = host.ok(&["network", "create", "--label", "team=a", "lab"]);
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "172.31.4.0/22", "--gateway", "172.31.7.1", "wide"]);
    assert_eq!(names(&[]), "bridge\nhost\nlab\nnone\nwide");
    assert_eq!(names(&["-f", "label=team=a"]), "lab");
    assert_eq!(names(&["-f", "type=custom"]), "lab\nwide");
    let table = host.ok(&["network", "ls"]);
    assert!(table.starts_with("NETWORK ID") && table.contains(&id[..12]), "{table}");
    let lab = inspect(&host, &id[..12]);
    assert_eq!((&lab["Name"], &lab["Id"], &lab["Driver"]), (&"lab".into(), &id.as_str().into(), &"bridge".into()));
    assert_eq!((&lab["Labels"]["team"], &lab["Internal"]), (&"a".into(), &false.into()));
    let wide = inspect(&host, "wide");
    assert_eq!(wide["IPAM"]["Config"][0]["Subnet"], "172.31.4.0/22");
    assert_eq!(wide["IPAM"]["Config"][0]["Gateway"], "172.31.7.1");
    serve(&host, "web", &["--network", "lab"]);
    let container = host.inspect("web")["Id"].as_str().unwrap().to_owned();
    let lab = inspect(&host, "lab");
    let address = lab["Containers"][&container]["IPv4Address"].as_str().unwrap();
    assert_eq!(lab["Containers"][&container]["Name"], "web");
    let own = &networks(&host, "web")["lab"];
    assert_eq!(address, format!("{}/24", own["IPAddress"].as_str().unwrap()));
    assert_eq!(own["NetworkID"], id.as_str());
    assert_eq!(host.ok(&["ps", "-q", "--filter", "network=lab"]), &container[..12]);
    assert_eq!(host.ok(&["ps", "-q", "--filter", "network=bridge"]), "");
    let error = host.fails(1, &["network", "rm", "lab"]);
    assert!(error.contains("container `web` is connected to it") && error.contains("hint:"), "{error}");
    let pruned = host.ok(&["system", "prune", "-f"]);
    assert!(pruned.starts_with("Deleted Networks:\nwide\n\n"), "{pruned}");
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.ok(&["network", "rm", &id]), id);
    assert_eq!(names(&[]), "bridge\nhost\nnone");
    assert_eq!(host.leftovers(), "");
    let links = sh(&format!("ip -n {} -o link", host.netns));
    assert!(!links.contains("gpurun-"), "{links}");
    let rules = sh(&format!("ip netns exec {} nft list ruleset", host.netns));
    assert!(!rules.contains("gpurun_"), "{rules}");
}

fn refused() {
    let host = Host::with_box();
    // The configured range has two networks.
    std::fs::write(host.dir.join("config.toml"), "[network]\nrange = \"10.45.6.0/23\"\n").unwrap();
    let create = |name: &str| {
        let config = host.dir.join("config.toml");
        answer(host.command(&["network", "create", name]).env("GPURUN_CONFIG", config).output().unwrap())
    };
    assert_eq!([create("one"), create("another")].map(|answer| answer.code), [0, 0]);
    assert_eq!(inspect(&host, "one")["IPAM"]["Config"][0]["Subnet"], "10.45.6.0/24");
    assert_eq!(inspect(&host, "another")["IPAM"]["Config"][0]["Subnet"], "10.45.7.0/24");
    let error = create("third").err;
    assert!(error.contains("all networks of the range 10.45.6.0/23 are in use"), "{error}");
    for name in ["bridge", "host", "none"] {
        assert!(host.fails(1, &["network", "create", name]).contains("there is a network of this name"));
        assert!(host.fails(1, &["network", "rm", name]).contains("every host has it"));
    }
    for name in ["", "-x", "a b", "a/b", "ü", ".x"] {
        assert_ne!(host.run(&["network", "create", name]).code, 0, "{name}");
    }
    host.ok(&["network", "create", "--subnet", "10.50.0.0/16", "lab"]);
    assert!(host.fails(1, &["network", "create", "lab"]).contains("there is a network of this name"));
    let error = host.fails(1, &["network", "create", "--subnet", "10.50.7.0/24", "two"]);
    assert!(error.contains("the network `lab` (10.50.0.0/16) overlaps it"), "{error}");
    sh(&format!(
        "ip -n {0} link add d0 type bridge && ip -n {0} link set d0 up && ip -n {0} addr add 10.60.1.1/24 dev d0",
        host.netns
    ));
    let error = host.fails(1, &["network", "create", "--subnet", "10.60.0.0/16", "two"]);
    assert!(error.contains("the host's route to 10.60.1.0/24 overlaps it"), "{error}");
    for subnet in ["10.0.0.1/24", "10.0.0.0", "::/64", "10.0.0.0/31"] {
        assert!(host.fails(2, &["network", "create", "--subnet", subnet, "two"]).contains("cannot use `--subnet"));
    }
    let error = host.fails(125, &["run", "--rm", "--network", "nope", "box", "true"]);
    assert!(error.contains("there is no network `nope`") && error.contains("gpurun network create nope"), "{error}");
    for (flags, why) in [
        (&["--ip", "10.50.0.9"][..], "without a network of your own"),
        (&["--network", "host", "--network", "lab"], "together"),
        (&["--network", "lab", "--ip", "x"], "not an IPv4 address"),
        (&["--network", "lab", "--mac-address", "01:00:00:00:00:01"], "group"),
        (&["-p", "localhost:80:80"], "not an IP address"),
        (&["-p", "[::1]:80:80"], "IPv4 addresses only"),
    ] {
        let error = host.fails(125, &[&["run", "--rm"], flags, &["box", "true"]].concat());
        assert!(error.contains(why) && error.contains("hint:"), "{flags:?}: {error}");
    }
    for ip in ["10.51.0.9", "10.50.0.1", "10.50.0.0", "10.50.255.255"] {
        let error = host.fails(125, &["run", "--rm", "--network", "lab", "--ip", ip, "box", "true"]);
        assert!(error.contains(&format!("cannot assign the address {ip}")), "{error}");
    }
    assert_eq!(host.leftovers(), "");
}

fn named() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    serve(&host, "db", &["--network", "lab", "--network-alias", "postgres", "--hostname", "dbhost"]);
    serve(&host, "web", &["--network", "lab", "--add-host", "own:192.0.2.9"]);
    let id = host.inspect("db")["Id"].as_str().unwrap().to_owned();
    for name in ["db", "postgres", "dbhost", &id[..12]] {
        assert_eq!(fetch(&host, "web", &format!("{name} 80")).as_deref(), Some("db"), "{name}");
    }
    // Also those that start later, and their own names.
    assert_eq!(fetch(&host, "db", "web 80").as_deref(), Some("web"));
    assert_eq!(fetch(&host, "db", "db 80").as_deref(), Some("db"));
    let hosts = host.ok(&["exec", "web", "cat", "/etc/hosts"]);
    assert!(hosts.contains("192.0.2.9\town") && hosts.contains("\tdb postgres"), "{hosts}");
    // A restart may give another address.
    serve(&host, "other", &["--network", "lab"]);
    host.ok(&["restart", "-t", "0", "db"]);
    eventually("the name follows", || fetch(&host, "web", "postgres 80").as_deref() == Some("db"));
    host.ok(&["rename", "db", "base"]);
    eventually("the new name", || fetch(&host, "web", "base 80").as_deref() == Some("db"));
    host.ok(&["rm", "-f", "base"]);
    let hosts = host.ok(&["exec", "web", "cat", "/etc/hosts"]);
    assert!(!hosts.contains("postgres") && hosts.contains("192.0.2.9\town"), "{hosts}");
    assert!(blocked(&host, "web", "postgres 80"));
    host.ok(&["rm", "-f", "web", "other"]);
    assert_eq!(host.leftovers(), "");
}

fn isolated() {
    let host = Host::with_box();
    host.ok(&["network", "create", "a"]);
    host.ok(&["network", "create", "b"]);
    serve(&host, "one", &["--network", "a", "-p", "8081:80"]);
    serve(&host, "two", &["--network", "b"]);
    serve(&host, "three", &[]);
    let ip = |name: &str, network: &str| networks(&host, name)[network]["IPAddress"].as_str().unwrap().to_owned();
    let all = [("one", ip("one", "a")), ("two", ip("two", "b")), ("three", ip("three", "bridge"))];
    for (from, _) in &all {
        for (to, ip) in &all {
            let target = format!("{ip} 80");
            match from == to {
                true => assert_eq!(fetch(&host, from, &target).as_deref(), Some(*to)),
                false => assert!(blocked(&host, from, &target), "{from} to {to}"),
            }
        }
    }
    // A route of its own does not help a container, and neither does an address of the other network.
    let pid = host.ok(&["inspect", "-f", "{{.State.Pid}}", "one"]);
    let gateway = inspect(&host, "a")["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned();
    sh(&format!("nsenter -t {pid} -n ip route replace {}/32 via {gateway}", all[1].1));
    assert!(blocked(&host, "one", &format!("{} 80", all[1].1)));
    sh(&format!(
        "nsenter -t {pid} -n ip addr add {}/32 dev eth0",
        all[2].1.rsplit_once('.').unwrap().0.to_owned() + ".200"
    ));
    // The published port is everybody's.
    let own = |ip: &str| {
        let output =
            host.program("busybox", &["timeout", "30", "busybox", "nc", ip, "8081"]).stdin(Stdio::null()).output();
        String::from_utf8_lossy(&output.unwrap().stdout).trim().to_owned()
    };
    assert_eq!(own("127.0.0.1"), "one");
    assert_eq!(own(&gateway), "one");
    assert_eq!(fetch(&host, "two", &format!("{gateway} 8081")).as_deref(), Some("one"));
    // One that is on both networks reaches both, and opens no way between them.
    serve(&host, "both", &["--network", "a", "--network", "b"]);
    assert_eq!(fetch(&host, "both", "one 80").as_deref(), Some("one"));
    assert_eq!(fetch(&host, "both", "two 80").as_deref(), Some("two"));
    assert_eq!(fetch(&host, "one", "both 80").as_deref(), Some("both"));
    assert!(blocked(&host, "one", &format!("{} 80", all[1].1)));
    host.ok(&["rm", "-f", "one", "two", "three", "both"]);
    assert_eq!(host.leftovers(), "");
}

fn internal() {
    let host = Host::with_box();
    host.ok(&["network", "create", "--internal", "dark"]);
    host.ok(&["network", "create", "open"]);
    serve(&host, "db", &["--network", "dark"]);
    serve(&host, "web", &["--network", "dark", "--network", "open", "-p", "8082:80"]);
    let mut server = host.program("busybox", &["nc", "-ll", "-p", "99", "-e", "echo", "host"]).spawn().unwrap();
    let gateway = |name: &str| inspect(&host, name)["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned();
    let (dark, open) = (gateway("dark"), gateway("open"));
    eventually("the host's server answers", || fetch(&host, "web", &format!("{open} 99")).as_deref() == Some("host"));
    assert_eq!(fetch(&host, "db", "web 80").as_deref(), Some("web"));
    assert_eq!(fetch(&host, "web", "db 80").as_deref(), Some("db"));
    // No port of the host, no published port, no other network, not even with a route of its own.
    let pid = host.ok(&["inspect", "-f", "{{.State.Pid}}", "db"]);
    assert_eq!(sh(&format!("nsenter -t {pid} -n ip route show default")), "");
    for routed in [false, true] {
        if routed {
            sh(&format!("nsenter -t {pid} -n ip route add default via {dark}"));
        }
        for target in [format!("{dark} 99"), format!("{dark} 8082"), format!("{open} 99"), format!("{open} 8082")] {
            assert!(blocked(&host, "db", &target), "{target}, {routed}");
        }
        let ip = networks(&host, "web")["open"]["IPAddress"].as_str().unwrap().to_owned();
        assert!(blocked(&host, "db", &format!("{ip} 80")), "{routed}");
    }
    // The port of a container that is on both leads to the open network.
    let output = host.program("busybox", &["timeout", "30", "busybox", "nc", "127.0.0.1", "8082"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "web");
    server.kill().unwrap();
    server.wait().unwrap();
    host.ok(&["rm", "-f", "db", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn connected() {
    let host = Host::with_box();
    host.ok(&["network", "create", "a"]);
    host.ok(&["network", "create", "b"]);
    serve(&host, "one", &["--network", "a", "-p", "8083:80"]);
    serve(&host, "two", &["--network", "b"]);
    assert!(blocked(&host, "two", "one 80"));
    host.ok(&["network", "connect", "--alias", "uno", "b", "one"]);
    assert_eq!(fetch(&host, "two", "uno 80").as_deref(), Some("one"));
    assert_eq!(fetch(&host, "one", "two 80").as_deref(), Some("two"));
    assert!(host.fails(1, &["network", "connect", "b", "one"]).contains("connected to the network `b` already"));
    let port = || {
        let output =
            host.program("busybox", &["timeout", "30", "busybox", "nc", "127.0.0.1", "8083"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(port(), "one");
    // The port and the default route move to the remaining network.
    host.ok(&["network", "disconnect", "a", "one"]);
    assert_eq!(port(), "one");
    let pid = host.ok(&["inspect", "-f", "{{.State.Pid}}", "one"]);
    assert!(sh(&format!("nsenter -t {pid} -n ip route show default")).contains("dev eth1"));
    assert_eq!(networks(&host, "one").as_object().unwrap().keys().collect::<Vec<_>>(), ["b"]);
    assert!(host.fails(1, &["network", "disconnect", "a", "one"]).contains("not connected to the network `a`"));
    // A restart keeps it, and a container that does not run is changed as well.
    host.ok(&["restart", "-t", "0", "one"]);
    eventually("the server is back", || fetch(&host, "two", "uno 80").as_deref() == Some("one"));
    host.ok(&["stop", "-t", "0", "one"]);
    assert!(blocked(&host, "two", "uno 80"));
    host.ok(&["network", "disconnect", "b", "one"]);
    host.ok(&["network", "connect", "a", "one"]);
    host.ok(&["network", "rm", "-f", "nope"]);
    host.ok(&["start", "one"]);
    assert_eq!(networks(&host, "one").as_object().unwrap().keys().collect::<Vec<_>>(), ["a"]);
    // The default bridge as well, and back.
    host.ok(&["network", "connect", "bridge", "two"]);
    host.ok(&["network", "disconnect", "b", "two"]);
    assert_eq!(networks(&host, "two").as_object().unwrap().keys().collect::<Vec<_>>(), ["bridge"]);
    // Its hosts file has its address on the network that remains, and no names of the other network.
    let ip = networks(&host, "two")["bridge"]["IPAddress"].as_str().unwrap().to_owned();
    let hosts = host.ok(&["exec", "two", "cat", "/etc/hosts"]);
    assert!(hosts.contains(&format!("{ip}\t")) && !hosts.contains("\ttwo "), "{hosts}");
    for mode in ["host", "none"] {
        host.ok(&["run", "-d", "--name", mode, "--network", mode, "box", "sleep", "1000"]);
        let error = host.fails(1, &["network", "connect", "a", mode]);
        assert!(error.contains("no network of its own"), "{error}");
    }
    host.ok(&["rm", "-f", "one", "two", "host", "none"]);
    assert_eq!(host.leftovers(), "");
}

fn chosen() {
    let host = Host::with_box();
    host.ok(&["network", "create", "--subnet", "10.70.0.0/16", "lab"]);
    let long = "name=lab,alias=x,alias=y,ip=10.70.3.4,mac-address=02:00:00:00:00:07";
    serve(&host, "one", &["--network", long]);
    let pid = host.ok(&["inspect", "-f", "{{.State.Pid}}", "one"]);
    let shown = sh(&format!("nsenter -t {pid} -n ip addr show eth0"));
    assert!(shown.contains("inet 10.70.3.4/16") && shown.contains("02:00:00:00:00:07"), "{shown}");
    let own = networks(&host, "one")["lab"].clone();
    assert_eq!((&own["IPAddress"], &own["MacAddress"]), (&"10.70.3.4".into(), &"02:00:00:00:00:07".into()));
    assert_eq!((&own["Aliases"][1], &own["DNSNames"][0]), (&"y".into(), &"one".into()));
    let error = host.fails(125, &["run", "--rm", "--network", "lab", "--ip", "10.70.3.4", "box", "true"]);
    assert!(error.contains("container `one` has it"), "{error}");
    serve(&host, "two", &["--network", "lab:alias=x", "--mac-address", "02:00:00:00:00:08"]);
    assert_eq!(fetch(&host, "two", "y 80").as_deref(), Some("one"));
    host.ok(&["rm", "-f", "one", "two"]);
    assert_eq!(host.leftovers(), "");
}

fn shared() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    serve(&host, "web", &["--network", "lab", "--hostname", "webhost"]);
    let namespace = |name: &str| host.ok(&["exec", name, "readlink", "/proc/self/ns/net"]);
    host.ok(&["run", "-d", "--name", "side", "--network", "container:web", "box", "sleep", "1000"]);
    assert_eq!(namespace("side"), namespace("web"));
    assert_eq!(fetch(&host, "side", "127.0.0.1 80").as_deref(), Some("web"));
    assert_eq!(fetch(&host, "side", "web 80").as_deref(), Some("web"));
    assert_eq!(host.ok(&["exec", "side", "hostname"]), "webhost");
    // The hosts file is the other container's own.
    serve(&host, "late", &["--network", "lab"]);
    assert_eq!(fetch(&host, "side", "late 80").as_deref(), Some("late"));
    assert!(host.fails(1, &["run", "--network", "container:nope", "box", "true"]).contains("nope"));
    host.ok(&["stop", "-t", "0", "side"]);
    host.ok(&["stop", "-t", "0", "web"]);
    let error = host.fails(1, &["start", "side"]);
    assert!(error.contains("`web`") && error.contains("is not running"), "{error}");
    host.ok(&["rm", "-f", "web", "side", "late"]);
    assert_eq!(host.leftovers(), "");
}

fn at_once() {
    const COUNT: usize = 20;
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    let start = |number: usize| {
        let name = format!("c{number}");
        let mut command = host.command(&["run", "-d", "--name", &name, "--network", "lab", "--network-alias", "all"]);
        command.args(["box", "sleep", "1000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..COUNT).map(start).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let containers = inspect(&host, "lab")["Containers"].as_object().unwrap().clone();
    let addresses: std::collections::BTreeSet<&str> =
        containers.values().map(|one| one["IPv4Address"].as_str().unwrap()).collect();
    assert_eq!((containers.len(), addresses.len()), (COUNT, COUNT));
    // All of them know all names.
    for number in [0, COUNT / 2, COUNT - 1] {
        let hosts = host.ok(&["exec", &format!("c{number}"), "cat", "/etc/hosts"]);
        let known = (0..COUNT).filter(|other| hosts.contains(&format!("\tc{other} "))).count();
        assert_eq!(known, COUNT, "{hosts}");
    }
    let names: Vec<String> = (0..COUNT).map(|number| format!("c{number}")).collect();
    host.ok(&[&["rm", "-f"], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    assert_eq!(host.leftovers(), "");
}

fn survives() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    serve(&host, "one", &["--network", "lab"]);
    serve(&host, "two", &["--network", "lab"]);
    let neighbor = host.inspect("two")["State"]["Pid"].as_i64().unwrap();
    assert!(hosts_of(neighbor).contains("\tone "), "{}", hosts_of(neighbor));
    let supervisor = host.inspect("one")["Supervisor"]["Pid"].as_i64().unwrap();
    sh(&format!("kill -9 {supervisor}"));
    eventually("the supervisor is dead", || {
        // Nothing reaps it where this machine has no init.
        std::fs::read_to_string(format!("/proc/{supervisor}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    // The next command removes its names from the files of its neighbors.
    assert!(hosts_of(neighbor).contains("\tone "));
    host.ok(&["ps"]);
    let hosts = hosts_of(neighbor);
    assert!(!hosts.contains("\tone ") && hosts.contains("\ttwo "), "{hosts}");
    host.ok(&["network", "inspect", "lab"]);
    host.ok(&["start", "one"]);
    eventually("it answers again", || fetch(&host, "two", "one 80").as_deref() == Some("one"));
    // A killed process may release its locks before it ends. This one is stopped in between.
    let (supervisor, id) = (host.inspect("one")["Supervisor"]["Pid"].clone(), host.inspect("one")["Id"].clone());
    let id = id.as_str().unwrap();
    sh(&format!(
        "kill -STOP {supervisor}; cd {}/{id}; rm alive forks; touch alive forks",
        host.dir.join("run").display()
    ));
    host.ok(&["ps"]);
    assert!(!host.dir.join(format!("run/net/{id}.json")).exists(), "the address is free again");
    assert!(!hosts_of(neighbor).contains("\tone "), "{}", hosts_of(neighbor));
    sh(&format!("kill -KILL {supervisor}"));
    host.ok(&["start", "one"]);
    eventually("it answers once more", || fetch(&host, "two", "one 80").as_deref() == Some("one"));
    // A removed bridge and flushed rules are restored by the next command.
    let device = format!("gpurun-{}", &inspect(&host, "lab")["Id"].as_str().unwrap()[..8]);
    for ruin in [format!("ip link delete {device}"), "nft flush ruleset".into()] {
        sh(&format!("ip netns exec {} {ruin}", host.netns));
        let repaired = host.run(&["ps"]);
        assert!(repaired.err.contains("again"), "{}", repaired.err);
        assert_eq!(fetch(&host, "two", "one 80").as_deref(), Some("one"), "{ruin}");
    }
    // As after a reboot: no bridge, no rules, no run directory's leases.
    host.ok(&["stop", "-t", "0", "one", "two"]);
    sh(&format!("ip -n {0} link delete {device}; ip netns exec {0} nft flush ruleset", host.netns));
    std::fs::remove_dir_all(host.dir.join("run/net")).unwrap();
    host.ok(&["start", "one", "two"]);
    eventually("it answers after a reboot", || fetch(&host, "two", "one 80").as_deref() == Some("one"));
    host.ok(&["rm", "-f", "one", "two"]);
    host.ok(&["network", "rm", "lab"]);
    assert_eq!(host.leftovers(), "");
}

/// Either the network is removed and the start fails, or the start wins and the network stays. Both wait for the lock
/// when it becomes free.
fn removal_race() {
    let host = Host::with_box();
    for round in 0..4 {
        host.ok(&["network", "create", "lab"]);
        let mut holder = Command::new("flock");
        holder.arg("--no-fork").arg(host.dir.join("run/net/.lock")).arg("cat");
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        eventually("the lock is held", || waiters(holder.id()).is_some());
        let name = format!("c{round}");
        let spawn = |args: &[&str], before: usize| {
            let child = host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            eventually("it waits for the lock", || waiters(holder.id()) == Some(before + 1));
            child
        };
        let start = |before| spawn(&["run", "-d", "--name", &name, "--network", "lab", "box", "sleep", "1000"], before);
        let remove = |before| spawn(&["network", "rm", "lab"], before);
        let (start, remove) = match round % 2 {
            0 => (start(0), remove(1)),
            _ => {
                let remove = remove(0);
                (start(1), remove)
            }
        };
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
        let [started, removed] = [start, remove].map(|child| answer(child.wait_with_output().unwrap()));
        match (started.code, removed.code) {
            (0, 1) => assert!(removed.err.contains("is connected to it"), "{}", removed.err),
            (125, 0) => assert!(started.err.contains("there is no network `lab`"), "{}", started.err),
            other => panic!("{other:?}: {} {}", started.err, removed.err),
        }
        host.run(&["rm", "-f", &name]);
        host.run(&["network", "rm", "lab"]);
    }
    assert_eq!(host.leftovers(), "");
}

/// How many processes wait for the lock that a process holds, if it holds one.
fn waiters(holder: u32) -> Option<usize> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let lines: Vec<Vec<&str>> = locks.lines().map(|line| line.split_whitespace().collect()).collect();
    let held = lines.iter().find(|line| line[1] == "FLOCK" && line[4] == holder.to_string())?;
    Some(lines.iter().filter(|line| line[0] == held[0] && line[1] == "->").count())
}

/// A container's /etc/hostname is its own file. What it writes there reaches no other container.
fn hostile_names() {
    let host = Host::with_box();
    host.ok(&["network", "create", "lab"]);
    host.ok(&["run", "-d", "--name", "victim", "--network", "lab", "box", "sleep", "600"]);
    let write = r#"printf 'x\n# end of the containers\n6.6.6.6 db\n' > /etc/hostname; touch /ready; sleep 600"#;
    host.ok(&["run", "-d", "--name", "evil", "box", "sh", "-c", write]);
    eventually("the file is written", || host.run(&["exec", "evil", "test", "-e", "/ready"]).code == 0);
    host.ok(&["network", "connect", "lab", "evil"]);
    let seen = host.ok(&["exec", "victim", "cat", "/etc/hosts"]);
    assert!(seen.contains("evil") && !seen.contains("6.6.6.6"), "{seen}");
    let joined = ["run", "--rm", "--network", "container:evil", "box", "sh", "-c", "hostname; cat /etc/hostname"];
    let short = host.inspect("evil")["Id"].as_str().unwrap()[..12].to_owned();
    assert_eq!(host.ok(&joined).lines().collect::<Vec<_>>(), [&*short, &*short]);

    // A file of 64 MiB is not read either.
    let id = host.inspect("evil")["Id"].as_str().unwrap().to_owned();
    let file = host.dir.join("root/containers").join(id).join("hostname");
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(64 << 20).unwrap();
    host.ok(&["network", "disconnect", "lab", "evil"]);
    host.ok(&["network", "connect", "lab", "evil"]);
    let records = format!("find {} -name '*.json' -size +1M", host.dir.display());
    assert_eq!(sh(&records), "");
    assert!(host.ok(&["exec", "victim", "cat", "/etc/hosts"]).len() < 4096);
}
