//! The networks of compose projects: names, isolation, and what happens when containers and settings change.

use serde_json::Value;

use crate::compose::{compose, fails, id, ok, project, write};
use crate::host::{Host, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("a_service_is_on_its_networks_only", separate),
    ("names_follow_the_containers", names),
    ("a_network_is_replaced_when_its_settings_change", replaced),
    ("external_networks_are_used_and_stay", external),
    ("a_service_joins_another_one_again_after_it_was_replaced", joined),
    ("services_share_processes_and_memory", namespaces),
];

fn networks(host: &Host, container: &str) -> Value {
    host.inspect(container)["NetworkSettings"]["Networks"].clone()
}

fn network(host: &Host, name: &str) -> Value {
    let all: Value = serde_json::from_str(&host.ok(&["network", "inspect", name])).unwrap();
    all[0].clone()
}

fn names_of_networks(host: &Host) -> String {
    host.ok(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"]).replace('\n', " ")
}

/// The addresses that a container has under a name, sorted.
fn resolved(host: &Host, container: &str, name: &str) -> Vec<String> {
    let hosts = host.ok(&["exec", container, "cat", "/etc/hosts"]);
    let is_named = |line: &&str| line.split_whitespace().skip(1).any(|word| word == name);
    let mut all: Vec<String> =
        hosts.lines().filter(is_named).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    all.sort();
    all
}

fn address(host: &Host, container: &str, network: &str) -> String {
    networks(host, container)[network]["IPAddress"].as_str().unwrap().to_owned()
}

/// Whether a web server answers under a name. `404` is an answer.
fn reaches(host: &Host, container: &str, name: &str) -> bool {
    let line = format!("timeout 2 wget -q -O - http://{name}/");
    host.run(&["exec", container, "sh", "-c", &line]).err.contains("404")
}

const SEPARATE: &str = "
services:
  web: {image: box, command: sleep 1000, init: true, networks: [front]}
  api:
    image: box
    command: httpd -f -p 80
    init: true
    mac_address: 02:42:ac:11:00:03
    networks:
      front: {priority: 10, aliases: [backend]}
      back: {ipv4_address: 10.77.5.9}
  db: {image: box, command: httpd -f -p 80, init: true, networks: [back], depends_on: [api]}
networks:
  front: {labels: {use: web}}
  back: {internal: true, ipam: {config: [{subnet: 10.77.5.0/24, gateway: 10.77.5.254}]}}
";

fn separate() {
    let host = project(SEPARATE);
    ok(&host, &["up", "-d"]);
    assert_eq!(names_of_networks(&host), "lab_back lab_front");
    let back = network(&host, "lab_back");
    assert_eq!(back["Internal"], true);
    assert_eq!(back["IPAM"]["Config"][0]["Gateway"], "10.77.5.254");
    let labels = network(&host, "lab_front")["Labels"].clone();
    for (label, value) in
        [("use", "web"), ("com.docker.compose.project", "lab"), ("com.docker.compose.network", "front")]
    {
        assert_eq!(labels[label], value, "{labels}");
    }
    let check = |when: &str| {
        let api = networks(&host, "lab-api-1");
        assert_eq!(api["lab_back"]["IPAddress"], "10.77.5.9", "{when}");
        assert_eq!(api["lab_front"]["MacAddress"], "02:42:ac:11:00:03", "{when}");
        for (from, to) in [("web", "api"), ("web", "backend"), ("db", "api"), ("api", "db")] {
            assert!(reaches(&host, &format!("lab-{from}-1"), to), "{when}: {from} finds {to}");
        }
        assert_eq!(resolved(&host, "lab-web-1", "db"), Vec::<String>::new(), "{when}");
        assert_eq!(
            resolved(&host, "lab-db-1", "backend"),
            Vec::<String>::new(),
            "{when}: an alias of the other network"
        );
        let db = address(&host, "lab-db-1", "lab_back");
        assert!(!reaches(&host, "lab-web-1", &db), "{when}: networks are separate");
    };
    check("after the start");
    ok(&host, &["restart", "-t", "0"]);
    check("after a restart");
    let routes = ok(&host, &["exec", "-T", "db", "ip", "route"]);
    assert!(!routes.contains("default"), "back is internal: {routes}");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(names_of_networks(&host), "");
    assert_eq!(host.leftovers(), "");
}

const NAMES: &str = "
services:
  web: {image: box, command: httpd -f -p 80, init: true, restart: always}
  worker: {image: box, command: sleep 1000, init: true, scale: 2, links: ['web:site']}
  early: {image: box, command: sleep 1000, init: true, container_name: first}
";

fn names() {
    let host = project(NAMES);
    ok(&host, &["up", "-d"]);
    let web = || address(&host, "lab-web-1", "lab_default");
    let is_right = || ["web", "site", "lab-web-1"].iter().all(|name| resolved(&host, "first", name) == [web()]);
    assert!(is_right() && reaches(&host, "first", "web") && reaches(&host, "lab-worker-2", "site"));
    let workers = |count: usize| {
        let mut all: Vec<String> =
            (1..=count).map(|number| address(&host, &format!("lab-worker-{number}"), "lab_default")).collect();
        all.sort();
        all
    };
    assert_eq!(resolved(&host, "lab-web-1", "worker"), workers(2));
    ok(&host, &["up", "-d", "--scale", "worker=3"]);
    assert_eq!(resolved(&host, "lab-web-1", "worker"), workers(3));
    ok(&host, &["up", "-d", "--scale", "worker=1", "-t", "0"]);
    assert_eq!(resolved(&host, "lab-web-1", "worker"), workers(1));
    // The restart policy.
    let pid = || host.inspect("lab-web-1")["State"]["Pid"].as_i64().unwrap();
    let before = pid();
    sh(&format!("kill -9 {before}"));
    eventually("the restart", || ![0, before].contains(&pid()));
    assert!(is_right() && reaches(&host, "first", "web"), "after a restart by the policy");
    // A new container, with another configuration.
    write(&host, &NAMES.replace("restart: always", "restart: always, environment: {A: b}"));
    ok(&host, &["up", "-d", "-t", "0"]);
    assert!(is_right() && reaches(&host, "first", "web"), "after a new container");
    // A container of `run` finds the others, and takes no part in their names.
    let answer = ok(&host, &["run", "--rm", "-T", "web", "sh", "-c", "cat /etc/hosts"]);
    assert!(answer.contains(&format!("{}\tlab-web-1 site web", web())) && answer.contains("first"), "{answer}");
    ok(&host, &["run", "-d", "--name", "one", "web"]);
    assert!(is_right() && resolved(&host, "first", "one").len() == 1);
    ok(&host, &["run", "-d", "--name", "two", "--use-aliases", "web"]);
    assert_eq!(resolved(&host, "first", "web").len(), 2);
    host.ok(&["rm", "-f", "one", "two"]);
    // A killed supervisor: the next command removes the names, and the next start brings them back.
    let supervisor = sh(&format!("awk '/^PPid/ {{print $2}}' /proc/{}/status", pid()));
    sh(&format!("kill -9 {supervisor}"));
    eventually("the end of the names", || resolved(&host, "first", "web").is_empty());
    ok(&host, &["up", "-d"]);
    assert!(is_right() && reaches(&host, "first", "web"), "after a killed supervisor");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
}

fn replaced() {
    let text = "
services:
  a: {image: box, command: sleep 1000, init: true}
  b: {image: box, command: sleep 1000, init: true}
networks: {default: {internal: false}}
";
    let host = project(text);
    ok(&host, &["up", "-d"]);
    let ids = || ["lab-a-1", "lab-b-1"].map(|name| id(&host, name));
    let (before, old) = (ids(), network(&host, "lab_default")["Id"].clone());
    ok(&host, &["up", "-d"]);
    assert_eq!(network(&host, "lab_default")["Id"], old, "nothing has changed");
    write(&host, &text.replace("false", "true"));
    // A container of another project keeps the network.
    host.ok(&["run", "-d", "--name", "other", "--network", "lab_default", "box", "sleep", "1000"]);
    assert!(fails(&host, &["up", "-d"]).contains("connected to it: `other`"));
    assert_eq!(ok(&host, &["ps", "-q"]).lines().count(), 2, "nothing was stopped");
    host.ok(&["rm", "-f", "other"]);
    // `b` is not named, and runs again as well.
    ok(&host, &["up", "-d", "-t", "0", "a"]);
    assert_eq!(network(&host, "lab_default")["Internal"], true);
    assert_eq!(ids(), before, "the containers are the same");
    assert_eq!(ok(&host, &["ps", "--services"]), "a\nb");
    assert_eq!(resolved(&host, "lab-a-1", "b").len(), 1);
}

fn external() {
    let text = "
services: {a: {image: box, command: sleep 1000, init: true}, b: {image: box, command: sleep 1000, network_mode: bridge}}
networks: {default: {external: true, name: shared}}
";
    let host = project(text);
    let error = fails(&host, &["up", "-d"]);
    assert!(error.contains("`shared` does not exist") && error.contains("gpurun network create shared"), "{error}");
    host.ok(&["network", "create", "shared"]);
    ok(&host, &["up", "-d"]);
    assert_eq!(networks(&host, "lab-a-1").as_object().unwrap().keys().collect::<Vec<_>>(), ["shared"]);
    assert_eq!(networks(&host, "lab-b-1").as_object().unwrap().keys().collect::<Vec<_>>(), ["bridge"]);
    ok(&host, &["down", "-t", "0"]);
    // Another project's network is used with a notice, and stays.
    write(&host, &text.replace("external: true, ", ""));
    let up = compose(&host, &["up", "-d"]);
    assert!(up.code == 0 && up.err.contains("`shared` exists"), "{}", up.err);
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(names_of_networks(&host), "shared");
    // A network that others use stays, with a notice.
    write(&host, &text.replace("external: true, name: shared", "name: own"));
    ok(&host, &["up", "-d"]);
    host.ok(&["run", "-d", "--name", "other", "--network", "own", "box", "sleep", "1000"]);
    let down = compose(&host, &["down", "-t", "0"]);
    assert!(down.code == 0 && down.err.contains("`own`") && down.err.contains("`other`"), "{}", down.err);
    host.ok(&["rm", "-f", "other"]);
    ok(&host, &["down"]);
    assert_eq!(names_of_networks(&host), "shared");
}

fn joined() {
    let text = "
services:
  vpn: {image: box, command: httpd -f -p 80, init: true, environment: {V: one}}
  app: {image: box, command: sleep 1000, init: true, network_mode: 'service:vpn'}
";
    let host = project(text);
    ok(&host, &["up", "-d"]);
    let answers = || reaches(&host, "lab-app-1", "127.0.0.1");
    assert!(answers());
    let before = id(&host, "lab-app-1");
    ok(&host, &["restart", "-t", "0", "vpn"]);
    assert!(answers() && id(&host, "lab-app-1") == before, "after a restart");
    write(&host, &text.replace("one", "two"));
    ok(&host, &["up", "-d", "-t", "0"]);
    assert!(answers() && id(&host, "lab-app-1") != before, "the network of the old container has gone");
}

fn namespaces() {
    let text = "
services:
  base: {image: box, command: sleep 1000, init: true, ipc: shareable, environment: {V: one}}
  tool: {image: box, command: sleep 2000, init: true, pid: 'service:base', ipc: 'service:base'}
";
    let host = project(text);
    ok(&host, &["up", "-d"]);
    let shared = || {
        ok(&host, &["exec", "base", "sh", "-c", "echo here >/dev/shm/file"]);
        let seen = "cat /dev/shm/file; cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
        let seen = ok(&host, &["exec", "tool", "sh", "-c", seen]);
        assert!(seen.starts_with("here") && seen.contains("sleep 1000") && seen.contains("sleep 2000"), "{seen}");
    };
    shared();
    let before = id(&host, "lab-tool-1");
    ok(&host, &["restart", "-t", "0", "base"]);
    shared();
    assert_eq!(id(&host, "lab-tool-1"), before, "after a restart");
    write(&host, &text.replace("one", "two"));
    ok(&host, &["up", "-d", "-t", "0"]);
    shared();
    assert_ne!(id(&host, "lab-tool-1"), before, "the old container's namespaces have gone");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
    write(&host, "services:\n  tool:\n    image: box\n    pid: service:nope\n");
    let error = fails(&host, &["up", "-d"]);
    assert!(error.contains("there is no service `nope`"), "{error}");
}
