//! Health checks: docker's states and times, where they are shown, and checks that are hostile.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::host::{self, Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_check_finds_the_container_healthy_or_not", states),
    ("a_starting_container_is_excused", start_period),
    ("an_image_has_a_check", image),
    ("a_check_runs_like_exec", like_exec),
    ("a_check_that_is_hostile_harms_nothing", hostile),
    ("a_fork_bomb_ends_with_its_check", bomb),
    ("killed_helpers_leave_nothing", killed),
    ("a_paused_container_is_not_checked", paused),
    ("no_check_costs_nothing", costs_nothing),
    ("health_is_an_event", events),
];

fn up(host: &Host, name: &str, flags: &[&str]) {
    let args = [&["run", "-d", "--network", "none", "--name", name], flags, &["box", "sleep", "100000"]].concat();
    host.ok(&args);
}

fn health(host: &Host, name: &str) -> Value {
    host.inspect(name)["State"]["Health"].clone()
}

fn log(host: &Host, name: &str) -> Vec<Value> {
    health(host, name)["Log"].as_array().unwrap().clone()
}

/// Waits for a result that `holds`, and returns it.
fn result(host: &Host, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    eventually(what, || {
        found = log(host, name).into_iter().find(&holds);
        found.is_some()
    });
    found.unwrap()
}

/// The processes of the container, on the host.
fn processes(host: &Host, name: &str) -> Vec<i32> {
    let id = host.inspect(name)["Id"].as_str().unwrap().to_owned();
    let mut todo = cgroups_of(&id);
    let mut pids = Vec::new();
    while let Some(dir) = todo.pop() {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        todo.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// The processes whose command line contains a text.
fn with_command(text: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    })
    .collect()
}

fn supervisor(host: &Host, name: &str) -> i32 {
    host.inspect(name)["Supervisor"]["Pid"].as_i64().unwrap() as i32
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn states() {
    let host = Host::with_box();
    let flags = ["--health-cmd", "echo looked; test -e /ok", "--health-interval", "100ms", "--health-retries", "2"];
    up(&host, "web", &flags);
    assert_eq!(host.ok(&["wait", "--condition", "unhealthy", "web"]), "-1");
    assert!(host.ok(&["ps"]).contains("(unhealthy)"));
    let failed = health(&host, "web");
    assert!(failed["FailingStreak"].as_u64().unwrap() >= 2, "{failed}");
    assert_eq!((&failed["Log"][0]["ExitCode"], &failed["Log"][0]["Output"]), (&json!(1), &json!("looked\n")));
    host.ok(&["exec", "web", "touch", "/ok"]);
    assert_eq!(host.ok(&["wait", "--condition", "healthy", "web"]), "-1");
    let ps = host.ok(&["ps"]);
    assert!(ps.contains("Up ") && ps.contains("(healthy)"), "{ps}");
    for (filter, count) in [("healthy", 1), ("unhealthy", 0), ("starting", 0), ("none", 0)] {
        let found = host.ok(&["ps", "-q", "--filter", &format!("health={filter}")]);
        assert_eq!(found.lines().count(), count, "{filter}");
    }
    let rows: Value = serde_json::from_str(&host.ok(&["ps", "--json"])).unwrap();
    assert_eq!(rows[0]["health"], "healthy");
    eventually("five results are kept", || {
        let health = health(&host, "web");
        let log = health["Log"].as_array().unwrap();
        assert!(log.len() <= 5);
        log.len() == 5 && log.iter().all(|result| result["ExitCode"] == 0) && health["FailingStreak"] == 0
    });
    let config = &host.inspect("web")["Config"]["Healthcheck"];
    assert_eq!(
        *config,
        json!({ "Test": ["CMD-SHELL", "echo looked; test -e /ok"], "Interval": 100_000_000, "Retries": 2 })
    );
    // A change of the limits keeps the health, a restart resets it, and the end makes it unhealthy.
    host.ok(&["update", "--memory", "64m", "web"]);
    assert_eq!(health(&host, "web")["Status"], "healthy");
    host.ok(&["exec", "web", "rm", "/ok"]);
    host.ok(&["restart", "-t", "0", "web"]);
    let after = health(&host, "web");
    assert!(after["Log"].as_array().unwrap().iter().all(|result| result["ExitCode"] == 1), "{after}");
    host.ok(&["stop", "-t", "0", "web"]);
    assert_eq!(health(&host, "web")["Status"], "unhealthy");
    let told = host.fails(1, &["wait", "--condition", "healthy", "web"]);
    assert!(told.contains("ended with status 137 before it became healthy"), "{told}");
    up(&host, "plain", &[]);
    let told = host.fails(1, &["wait", "--condition", "healthy", "plain"]);
    assert!(told.contains("container `plain` has no health check") && told.contains("--health-cmd"), "{told}");
    assert_eq!(health(&host, "plain"), Value::Null);
    host.ok(&["rm", "-f", "web", "plain"]);
    assert_eq!(host.leftovers(), "");
}

fn start_period() {
    let host = Host::with_box();
    let check = "echo x >>/runs; test -e /ok";
    let flags = ["--health-start-period", "1h", "--health-start-interval", "20ms", "--health-interval", "1h"];
    up(&host, "web", &[&flags[..], &["--health-cmd", check, "--health-retries", "1"]].concat());
    let runs = || host.run(&["exec", "web", "cat", "/runs"]).out.lines().count();
    eventually("many checks", || runs() >= 4);
    let now = health(&host, "web");
    assert_eq!((&now["Status"], &now["FailingStreak"]), (&json!("starting"), &json!(0)));
    assert!(host.ok(&["ps"]).contains("(health: starting)"));
    host.ok(&["exec", "web", "touch", "/ok"]);
    host.ok(&["wait", "--condition", "healthy", "web"]);
    // From then on, the usual interval applies.
    let before = runs();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(runs(), before);
    host.ok(&["rm", "-f", "web"]);
}

fn image() {
    let host = Host::with_box();
    let build = |text: &str, name: &str| {
        let dir = host.dir.join("context");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("Containerfile"), text).unwrap();
        host.ok(&["build", "-q", "--network", "none", "-t", name, dir.to_str().unwrap()])
    };
    // The check of the lower image does not run during a build.
    build("FROM box\nHEALTHCHECK --interval=50ms --retries=1 CMD [\"sh\", \"-c\", \"touch /checked\"]\n", "checked");
    build("FROM checked\nRUN sleep 0.3; test ! -e /checked\nHEALTHCHECK NONE\n", "unchecked");
    let of = |name: &str| -> Value {
        let all: Value = serde_json::from_str(&host.ok(&["image", "inspect", name])).unwrap();
        all[0]["Config"]["Healthcheck"].clone()
    };
    let whole = json!({ "Test": ["CMD", "sh", "-c", "touch /checked"], "Interval": 50_000_000, "Retries": 1 });
    assert_eq!((of("checked"), of("unchecked")), (whole.clone(), json!({ "Test": ["NONE"] })));
    let run = |flags: &[&str], name: &str, image: &str| {
        host.ok(&[&["run", "-d", "--network", "none", "--name", name], flags, &[image, "sleep", "1000"]].concat());
    };
    run(&[], "one", "checked");
    host.ok(&["wait", "--condition", "healthy", "one"]);
    assert_eq!(host.inspect("one")["Config"]["Healthcheck"], whole);
    run(&[], "two", "unchecked");
    run(&["--no-healthcheck"], "three", "checked");
    for name in ["two", "three"] {
        assert_eq!(health(&host, name), Value::Null, "{name}");
    }
    // The flags replace single values of the image's check.
    run(&["--health-cmd", "exit 7"], "four", "checked");
    host.ok(&["wait", "--condition", "unhealthy", "four"]);
    assert_eq!(log(&host, "four")[0]["ExitCode"], 7);
    host.ok(&["commit", "one", "kept"]);
    host.ok(&["commit", "four", "changed"]);
    assert_eq!(of("kept"), whole);
    assert_eq!(of("changed"), json!({ "Test": ["CMD-SHELL", "exit 7"], "Interval": 50_000_000, "Retries": 1 }));
    host.ok(&["rm", "-f", "one", "two", "three", "four"]);
}

fn like_exec() {
    let host = Host::with_box();
    let script = "id -u; pwd; echo $WHERE; grep -E 'Cap(Bnd|Eff)|Seccomp:|NoNewPrivs' /proc/self/status; \
                  cat /proc/self/cgroup | wc -l; for ns in pid net mnt ipc cgroup; do readlink /proc/self/ns/$ns; done; \
                  readlink /proc/self/fd/0; ulimit -n";
    let flags = ["--user", "1000", "-w", "/tmp", "-e", "WHERE=here", "--cap-drop", "CHOWN", "--ulimit", "nofile=99"];
    up(&host, "web", &[&flags[..], &["--health-interval", "50ms", "--health-cmd", script]].concat());
    let result = result(&host, "web", "a result", |_| true);
    let by_exec = host.ok(&["exec", "-i", "web", "sh", "-c", script]);
    let output = result["Output"].as_str().unwrap().trim();
    let without_stdin = |text: &str| {
        text.lines().filter(|line| !line.starts_with("pipe:") && !line.contains("null")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without_stdin(output), without_stdin(&by_exec));
    assert!(output.starts_with("1000\n/tmp\nhere\n") && output.ends_with("99"), "{output}");
    assert_eq!(result["ExitCode"], 0, "{output}");
    // A program that does not exist fails like in docker.
    let dir = host.dir.join("context");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Containerfile"), "FROM box\nHEALTHCHECK --interval=50ms CMD [\"/nope\"]\n").unwrap();
    host.ok(&["build", "-q", "--network", "none", "-t", "nope", dir.to_str().unwrap()]);
    host.ok(&["run", "-d", "--network", "none", "--name", "no", "nope", "sleep", "1000"]);
    let result = self::result(&host, "no", "a result", |_| true);
    assert_eq!(result["ExitCode"], -1);
    assert!(result["Output"].as_str().unwrap().contains("/nope"), "{result}");
    host.ok(&["rm", "-f", "web", "no"]);
}

/// A check that does something bad once. The next one succeeds.
fn once(bad: &str) -> String {
    format!("test -e /tmp/done && exit 0; touch /tmp/done; {bad}")
}

/// Starts a container whose PID 1 reaps orphans, waits until the bad check is over and the next one was good, and checks that nothing is left of
/// the bad one. Returns its result.
fn survives(host: &Host, name: &str, bad: &str, timeout: &str) -> Value {
    let check = once(bad);
    let flags =
        ["--init", "--pids-limit", "50", "--memory", "64m", "--health-interval", "50ms", "--health-timeout", timeout];
    up(host, name, &[&flags[..], &["--health-cmd", &check]].concat());
    let pid_1 = host.inspect(name)["State"]["Pid"].as_i64().unwrap() as i32;
    let bad = result(host, name, "the result of the bad check", |_| true);
    host.ok(&["wait", "--condition", "healthy", name]);
    // A check may run at this moment.
    eventually("only the init and its program are left", || {
        let left = processes(host, name);
        left.len() == 2 && left.contains(&pid_1)
    });
    assert_eq!(host.ok(&["exec", name, "echo", "fine"]), "fine");
    host.ok(&["rm", "-f", name]);
    bad
}

fn hostile() {
    let host = Host::with_box();
    for (name, bad) in [
        ("deaf", "trap '' TERM INT HUP; while :; do sleep 1; done"),
        ("stopped", "kill -STOP $$"),
        ("daemon", "(setsid sleep 1000 &) ; sleep 1000"),
    ] {
        let result = survives(&host, name, bad, "1s");
        assert_eq!(result["ExitCode"], -1, "{name}: {result}");
        assert!(result["Output"].as_str().unwrap().starts_with("Health check exceeded timeout (1s)"), "{result}");
    }
    // It prints more than anybody wants to keep.
    let bytes = if host::slow() { "20000000" } else { "1000000000" };
    let result = survives(&host, "loud", &format!("echo begin; head -c {bytes} /dev/zero; exit 3"), "10m");
    let output = result["Output"].as_str().unwrap();
    assert_eq!(result["ExitCode"], 3);
    assert!(output.starts_with("begin\n\0") && output.ends_with("...") && output.len() == 4096 + 3, "{}", output.len());
    // It leaves a process in the background that holds its output.
    let result = survives(&host, "leaves", "sleep 1000 & echo gone", "10m");
    assert_eq!((&result["ExitCode"], &result["Output"]), (&json!(0), &json!("gone\n")));
    let result = survives(&host, "late", "echo so far; sleep 1000", "1s");
    assert_eq!(result["Output"], "Health check exceeded timeout (1s): so far\n");
    assert_eq!(host.leftovers(), "");
}

fn bomb() {
    let host = Host::with_box();
    let result = survives(&host, "bomb", "f() { f | f & }; f; exec sleep 1000", "2s");
    assert_eq!(result["ExitCode"], -1, "{result}");
    let result = survives(&host, "orphans", "(while :; do (sleep 1000 &); done) & exec sleep 1000", "2s");
    assert_eq!(result["ExitCode"], -1, "{result}");
    assert_eq!(host.leftovers(), "");
}

/// The helper of the current check of a container.
fn helper(host: &Host, name: &str) -> i32 {
    let parent = supervisor(host, name);
    let mut found = None;
    eventually("a helper runs", || {
        found = with_command("health-check").into_iter().find(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&parent.to_string()))
        });
        found.is_some()
    });
    found.unwrap()
}

fn killed() {
    let host = Host::with_box();
    let seconds = format!("{}", 300_000 + std::process::id());
    let check = once(&format!("sleep {seconds}"));
    up(&host, "web", &["--health-interval", "50ms", "--health-timeout", "1h", "--health-cmd", &check]);
    let pid = helper(&host, "web");
    eventually("the check runs", || !with_command(&format!("sleep\0{seconds}")).is_empty());
    kill(pid);
    let bad = result(&host, "web", "the result", |_| true);
    assert_eq!(bad["Output"], "the process that runs the health check was killed");
    eventually("the check is killed", || with_command(&format!("sleep\0{seconds}")).is_empty());
    host.ok(&["wait", "--condition", "healthy", "web"]);
    host.ok(&["rm", "-f", "web"]);
    // The supervisor dies during a check, and so does everything else, also when the container shares the host's pids.
    for flags in [&[][..], &["--pid", "host"]] {
        let own = ["--health-interval", "50ms", "--health-timeout", "1h", "--health-cmd", &format!("sleep {seconds}")];
        up(&host, "web", &[flags, &own].concat());
        let pid = helper(&host, "web");
        eventually("the check runs", || !with_command(&format!("sleep\0{seconds}")).is_empty());
        kill(supervisor(&host, "web"));
        eventually("the helper is gone", || !Path::new(&format!("/proc/{pid}")).exists());
        host.ok(&["ps"]);
        eventually("the check is gone", || with_command(&format!("sleep\0{seconds}")).is_empty());
        assert_eq!(host.leftovers(), "");
        host.ok(&["rm", "-f", "web"]);
    }
    // The container ends during a check.
    let own = ["--health-interval", "50ms", "--health-timeout", "1h", "--health-cmd", &format!("sleep {seconds}")];
    up(&host, "web", &own);
    let pid = helper(&host, "web");
    host.ok(&["stop", "-t", "0", "web"]);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the helper ended with the container");
    assert!(with_command(&format!("sleep\0{seconds}")).is_empty());
    host.ok(&["rm", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn paused() {
    let host = Host::with_box();
    up(&host, "web", &["--health-interval", "50ms", "--health-timeout", "2s", "--health-cmd", "sleep 0.1"]);
    host.ok(&["wait", "--condition", "healthy", "web"]);
    host.ok(&["pause", "web"]);
    let before = health(&host, "web");
    // Longer than the time limit: the clock of a check that was under way stands still, too.
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(health(&host, "web"), before);
    }
    host.ok(&["unpause", "web"]);
    eventually("it is checked again", || health(&host, "web") != before);
    let after = health(&host, "web");
    assert_eq!(after["Status"], "healthy", "{after}");
    assert_eq!(after["FailingStreak"], 0, "{after}");
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn costs_nothing() {
    let host = Host::with_box();
    up(&host, "plain", &[]);
    up(&host, "checked", &["--health-cmd", "true", "--health-interval", "1h"]);
    let pids = ["plain", "checked"].map(|name| supervisor(&host, name));
    let switches = || {
        pids.map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
        })
    };
    // The launch is over when its memory is released, after a second.
    let mut before = switches();
    eventually("two seconds without a wake-up", || {
        std::thread::sleep(Duration::from_secs(2));
        std::mem::replace(&mut before, switches()) == before
    });
    let descriptors = pids.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
    assert_eq!(descriptors[0], descriptors[1]);
    host.ok(&["rm", "-f", "plain", "checked"]);
}

fn events() {
    let host = Host::with_box();
    let mut events = host
        .command(&["events", "--filter", "event=health_status", "--format", "{{.Action}} {{.Actor.Attributes.name}}"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let flags = ["--health-cmd", "test -e /ok", "--health-interval", "50ms", "--health-retries", "1"];
    up(&host, "web", &flags);
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "health_status: unhealthy web");
    host.ok(&["exec", "web", "touch", "/ok"]);
    assert_eq!(lines.next().unwrap().unwrap(), "health_status: healthy web");
    events.kill().unwrap();
    events.wait().unwrap();
    host.ok(&["rm", "-f", "web"]);
}
