//! `gpurun compose up` and `down`: conditions, ctrl-c in a terminal, errors by key, short forms, and what `down` removes.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use crate::compose::{compose, fails, id, ok, project, write};
use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("ctrl_c_in_a_terminal_stops_all_services", ctrl_c),
    ("ctrl_c_during_the_start_stops_what_has_started", ctrl_c_early),
    ("dependents_are_restarted_if_they_ask_for_it", restarts),
    ("what_is_not_required_may_fail", not_required),
    ("independent_services_start_in_any_order", independent),
    ("errors_name_the_file_the_service_and_the_key", errors),
    ("up_and_down_are_short_forms", short),
    ("keys_of_namespaces_names_and_rights_have_an_effect", keys),
    ("down_removes_volumes_and_images", removals),
];

/// A command on a terminal of its own: what it printed, and where one types.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<String>>,
    keys: fs::File,
}

impl Terminal {
    fn new(host: &Host, args: &[&str]) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = host.command(args);
        command.current_dir(host.dir.join("lab")).env_remove("NO_COLOR");
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        drop(pty.slave);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut output, text) = (fs::File::from(pty.master.try_clone().unwrap()), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The terminal ends with an error when its last process has gone.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, shown, keys: fs::File::from(pty.master) }
    }

    fn shows(&self, text: &str) -> bool {
        self.shown.lock().unwrap().contains(text)
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        let shown = self.shown.clone();
        eventually("the end of the command", || self.child.try_wait().unwrap().is_some());
        let code = self.child.wait().unwrap().code();
        println!("{}", shown.lock().unwrap());
        code
    }
}

fn ctrl_c() {
    let host = project(
        "
services:
  a: {image: box, command: sh -c 'echo from a; exec sleep 1000', init: true}
  b: {image: box, command: sh -c 'echo from b; exec sleep 1000', init: true, depends_on: [a]}
",
    );
    let mut terminal = Terminal::new(&host, &["compose", "up", "-t", "1"]);
    eventually("a line of each service, in its color", || {
        terminal.shows("\x1b[36ma-1 | \x1b[0mfrom a") && terminal.shows("\x1b[33mb-1 | \x1b[0mfrom b")
    });
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(terminal.end(), Some(130));
    let text = terminal.text();
    assert!(text.contains("Gracefully stopping"), "{text}");
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(at("Container lab-b-1  Stopped") < at("Container lab-a-1  Stopped"), "{text}");
    assert_eq!(ok(&host, &["ps", "-q"]), "");
    // `logs -f` in a terminal has the same colors, and ctrl-c ends it and nothing else.
    ok(&host, &["up", "-d"]);
    let mut terminal = Terminal::new(&host, &["compose", "logs", "-f"]);
    eventually("the logs", || terminal.shows("\x1b[33mb-1 | \x1b[0mfrom b"));
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(terminal.end(), Some(130));
    assert_eq!(ok(&host, &["ps", "-q"]).lines().count(), 2);
    ok(&host, &["down", "-t", "1"]);
    assert_eq!(host.leftovers(), "");
}

/// The second service waits for the first, which does not end.
fn ctrl_c_early() {
    let host = project(
        "
services:
  a: {image: box, command: sleep 1000, init: true}
  b: {image: box, command: 'true', depends_on: {a: {condition: service_completed_successfully}}}
",
    );
    let mut terminal = Terminal::new(&host, &["compose", "up", "-t", "1"]);
    eventually("the first service", || terminal.shows("Container lab-a-1  Started"));
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(terminal.end(), Some(130));
    assert_eq!(ok(&host, &["ps", "-q"]), "");
    assert!(!host.ok(&["ps", "-a"]).contains("lab-b-1"));
}

const DEPENDENT: &str = "
services:
  db: {image: box, command: sleep 1000, init: true, environment: {V: one}}
  with: {image: box, command: sleep 1000, init: true, depends_on: {db: {condition: service_started, restart: true}}}
  without: {image: box, command: sleep 1000, init: true, depends_on: [db]}
";

fn restarts() {
    let host = project(DEPENDENT);
    ok(&host, &["up", "-d"]);
    let started = |name: &str| host.inspect(name)["State"]["StartedAt"].as_str().unwrap().to_owned();
    let both = || ["lab-with-1", "lab-without-1"].map(started);
    let (ids, before) = (["lab-with-1", "lab-without-1"].map(|name| id(&host, name)), both());
    ok(&host, &["restart", "-t", "1", "db"]);
    let restarted = both();
    assert!(restarted[0] != before[0] && restarted[1] == before[1], "{before:?} {restarted:?}");
    write(&host, &DEPENDENT.replace("one", "two"));
    let up = compose(&host, &["up", "-d", "-t", "1"]);
    assert!(up.err.contains("lab-db-1  Recreated") && up.err.contains("lab-with-1  Restarted"), "{}", up.err);
    let replaced = both();
    assert!(replaced[0] != restarted[0] && replaced[1] == restarted[1], "{restarted:?} {replaced:?}");
    assert_eq!(["lab-with-1", "lab-without-1"].map(|name| id(&host, name)), ids, "they are the same containers");
}

fn not_required() {
    let text = "
services:
  broken: {image: box, command: sh -c 'exit 3'}
  other: {image: box, command: 'true', profiles: [more]}
  app:
    image: box
    command: sleep 1000
    init: true
    depends_on:
      broken: {condition: service_completed_successfully, required: false}
      other: {condition: service_started, required: false}
";
    let host = project(text);
    let up = compose(&host, &["up", "-d"]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert!(up.err.contains("service `broken` ended with status 3") && up.err.contains("not required"), "{}", up.err);
    assert_eq!(ok(&host, &["ps", "--services"]), "app");
    ok(&host, &["down", "-t", "1"]);
    write(&host, &text.replace("completed_successfully, required: false", "completed_successfully"));
    let error = fails(&host, &["up", "-d"]);
    assert!(error.contains("cannot start service `app`: service `broken` ended with status 3"), "{error}");
    assert!(!host.ok(&["ps", "-a"]).contains("lab-app-1"));
}

/// `late` waits for `gate`, which ends when `open` runs. `open` is in no group before it: nothing else may wait for `gate`.
fn independent() {
    let host = project(
        "
services:
  gate: {image: box, command: [sh, -c, until test -e /x/open; do sleep 0.05; done], volumes: ['x:/x']}
  late: {image: box, command: 'true', depends_on: {gate: {condition: service_completed_successfully}}}
  one: {image: box, command: 'true'}
  open: {image: box, command: touch /x/open, volumes: ['x:/x'], depends_on: {one: {condition: service_completed_successfully}}}
volumes: {x: }
",
    );
    ok(&host, &["up", "-d"]);
    assert_eq!(ok(&host, &["ps", "-a", "--services"]), "gate\nlate\none\nopen");
    ok(&host, &["down", "-v"]);
    assert_eq!(host.leftovers(), "");
}

fn errors() {
    let host = project("");
    for (text, line, key, what) in [
        ("mem_limit: 1m", 5, "mem_limit", "6MB"),
        ("deploy: {resources: {limits: {memory: 1m}}}", 5, "deploy.resources.limits.memory", "6MB"),
        ("cap_add: [NO_SUCH]", 5, "cap_add", "NO_SUCH"),
        ("restart: sometimes", 5, "restart", "sometimes"),
        ("cpuset: 0-x", 5, "cpuset", "0-x"),
        ("ports: ['80:80', '99999:80']", 5, "ports", "99999"),
        ("stop_signal: SIGNOPE", 5, "stop_signal", "SIGNOPE"),
        ("ulimits: {nothing: 1}", 5, "ulimits", "nothing"),
        ("user: '1000:1000'\n    hostname: 'a b'", 6, "hostname", "a b"),
        ("container_name: '/'", 5, "container_name", "/"),
    ] {
        write(&host, &format!("services:\n  good: {{image: box}}\n  a:\n    image: box\n    {text}\n"));
        let error = fails(&host, &["up", "-d"]);
        let place = [format!("line {line}"), format!("key `services.a.{key}"), "lab/compose.yaml".to_owned()];
        for part in place.iter().map(String::as_str).chain([what]) {
            assert!(error.contains(part), "{text}: `{part}` is not in {error}");
        }
        let flag = error.find("--").map(|at| &error[at..]);
        assert!(flag.is_none(), "{text}: {error}");
        assert_eq!(host.ok(&["ps", "-aq"]), "", "{text}: nothing is started");
    }
}

fn short() {
    let host = project("services: {a: {image: box, command: sleep 1000, init: true}}");
    let run = |args: &[&str]| {
        let mut command = host.command(args);
        crate::host::answer(command.current_dir(host.dir.join("lab")).output().unwrap())
    };
    assert_eq!(run(&["up", "-d"]).code, 0);
    assert_eq!(ok(&host, &["ps", "--services"]), "a");
    assert_eq!(run(&["down", "-t", "1"]).code, 0);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    let help = host.ok(&["--help"]);
    assert!(help.lines().any(|line| line.trim_start().starts_with("up ") && line.contains("compose up")), "{help}");
}

fn removals() {
    let host = project(
        "
services:
  a: {image: local/kept, command: 'true', volumes: ['data:/data', 'other:/other']}
  b: {build: {dockerfile_inline: 'FROM box'}, command: 'true'}
volumes: {data: , other: , unused: }
",
    );
    host.ok(&["image", "tag", "box", "local/kept"]);
    ok(&host, &["up", "-d", "--build"]);
    ok(&host, &["wait", "a"]);
    // A volume that another container uses stays, and is named.
    host.ok(&["run", "-d", "--name", "user", "-v", "lab_other:/x", "box", "sleep", "1000"]);
    let error = fails(&host, &["down", "-v"]);
    assert!(error.contains("the container `user` uses it"), "{error}");
    assert_eq!(host.ok(&["volume", "ls", "-q"]), "lab_other", "the other one is removed");
    host.ok(&["rm", "-f", "user"]);
    // No container is left; the images are those of the files.
    ok(&host, &["down", "-v", "--rmi", "local"]);
    assert_eq!(host.ok(&["volume", "ls", "-q"]), "");
    let images = host.ok(&["images", "--format", "{{.Repository}}"]);
    assert!(images.contains("local/kept") && !images.contains("lab-b"), "{images}");
    ok(&host, &["down", "--rmi", "all"]);
    assert!(!host.ok(&["images", "--format", "{{.Repository}}"]).contains("local/kept"));
}

fn keys() {
    let host = project(
        "
services:
  data: {image: box, command: sh -c 'echo shared >/data/x; exec sleep 1000', init: true, volumes: ['vol:/data']}
  a:
    image: box
    command: sleep 1000
    init: true
    privileged: true
    hostname: box
    domainname: example.org
    ipc: shareable
    dns: [10.9.8.7]
    dns_search: [a.example, b.example]
    dns_opt: [ndots:2]
    annotations: {com.example.note: text}
    expose: ['9000']
    label_file: ./labels
    labels: {own: one}
    device_cgroup_rules: ['c 1:3 mr']
    volumes_from: ['data:ro']
    logging: {driver: none}
volumes: {vol: }
",
    );
    fs::write(host.dir.join("lab/labels"), "from.file=yes\n").unwrap();
    ok(&host, &["up", "-d"]);
    let sh = |line: &str| ok(&host, &["exec", "-T", "a", "sh", "-c", line]);
    eventually("the shared volume", || compose(&host, &["exec", "-T", "a", "cat", "/data/x"]).out == "shared\n");
    assert_eq!(compose(&host, &["exec", "-T", "a", "touch", "/data/y"]).code, 1, "it is read-only");
    let resolver = sh("cat /etc/resolv.conf");
    for part in ["nameserver 127.0.0.11", "search a.example b.example", "ndots:2"] {
        assert!(resolver.contains(part), "{part}: {resolver}");
    }
    assert!(sh("grep CapEff /proc/self/status").contains("ffff"), "privileged");
    let config = host.inspect("lab-a-1").to_string();
    for part in ["\"from.file\":\"yes\"", "\"own\":\"one\"", "9000/tcp", "com.example.note"] {
        assert!(config.contains(part), "{part}: {config}");
    }
    ok(&host, &["down", "-v", "-t", "1"]);
    assert_eq!(host.leftovers(), "");
}
