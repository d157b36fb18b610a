//! `--timeout`, `--idle-timeout` and `--gpu-mem-watch`, with short times. Real kernels: tests/jupyter.sh.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::driver::{self, GIB, VERSION};
use crate::gpu::Lab;
use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_container_ends_at_its_time_limit", timeout),
    ("an_idle_container_ends", idle),
    ("work_is_not_idle", work),
    ("an_exec_and_an_attach_session_are_not_idle", sessions),
    ("a_busy_gpu_is_not_idle", gpu),
    ("too_much_gpu_memory_warns_or_stops", gpu_memory),
    ("update_extends_and_removes_the_limits", update),
];

/// Longer than the idle limits of the tests, with the intervals of their samples.
const LONG: Duration = Duration::from_secs(9);

fn start(host: &Host, name: &str, flags: &[&str], line: &str) {
    let head = ["run", "-d", "--name", name, "--network", "none", "--init"];
    host.ok(&[&head[..], flags, &["box", "sh", "-c", line]].concat());
}

fn state(host: &Host, name: &str) -> Value {
    host.inspect(name)["State"].clone()
}

fn runs(host: &Host, name: &str) -> bool {
    state(host, name)["Running"] == true
}

/// Waits for the end, and returns the limit that was reached.
fn reached(host: &Host, name: &str) -> String {
    eventually(&format!("{name} ends"), || !runs(host, name));
    let state = state(host, name);
    assert_eq!(state["StoppedByUser"], false, "{state}");
    state["StopReason"]["limit"].as_str().unwrap_or_else(|| panic!("no reason: {state}")).to_owned()
}

/// Asserts that the container still runs after a time in which an idle one ends.
fn stays(host: &Host, name: &str) {
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        assert!(runs(host, name), "{name} was stopped: {}\n{}", state(host, name), host.run(&["logs", name]).err);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn events(host: &Host) -> Child {
    host.command(&["events", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn timeout() {
    let host = Host::with_box();
    let mut events = events(&host);
    // The stop is docker's: first the stop signal, which this process answers.
    let line = "trap 'echo asked to stop; exit 5' TERM; while :; do sleep 0.05; done";
    host.ok(&[
        "run",
        "-d",
        "--name",
        "it",
        "--network",
        "none",
        "--timeout",
        "2",
        "--restart",
        "always",
        "box",
        "sh",
        "-c",
        line,
    ]);
    assert_eq!(reached(&host, "it"), "timeout");
    let log = host.ok(&["logs", "it"]) + &host.run(&["logs", "it"]).err;
    assert!(log.contains("asked to stop"), "{log}");
    assert!(log.contains("this container will be stopped in 1 second (`--timeout 2s`)"), "{log}");
    assert!(log.contains("gpurun update it --timeout 4s"), "{log}");
    assert!(log.contains("this container is being stopped: it has run for 2s (`--timeout 2s`)"), "{log}");
    assert_eq!(state(&host, "it")["ExitCode"], 5);
    assert!(host.ok(&["ps", "-a"]).contains("Exited (5) timeout "), "{}", host.ok(&["ps", "-a"]));
    let json: Value = serde_json::from_str(&host.ok(&["ps", "-a", "--json"])).unwrap();
    assert_eq!(json[0]["stop_reason"]["limit"], "timeout");
    // Events since the start are also in the record.
    let past = host.ok(&["events", "--since", "10m", "--until", "0s", "--json"]);
    assert!(past.contains("it has run for 2s"), "{past}");
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut named = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["event"].clone());
    assert!(named.any(|event| event == "timeout"), "the stream ended");
    events.kill().unwrap();
    events.wait().unwrap();
    // A new start is a new run, without the old reason.
    host.ok(&["update", "it", "--timeout", "0"]);
    host.ok(&["start", "it"]);
    assert!(state(&host, "it")["StopReason"].is_null());
    host.ok(&["rm", "-f", "it"]);
    assert_eq!(host.leftovers(), "");
}

fn idle() {
    let host = Host::with_box();
    start(&host, "it", &["--idle-timeout", "2s"], "sleep 1000");
    start(&host, "free", &[], "sleep 1000");
    assert_eq!(reached(&host, "it"), "idle-timeout");
    let log = host.run(&["logs", "it"]).err;
    assert!(log.contains("this container is idle and will be stopped in 1 second (`--idle-timeout 2s`)"), "{log}");
    assert!(log.contains("it has been idle for 2s"), "{log}");
    assert!(host.ok(&["ps", "-a"]).contains(" idle-timeout "));
    // A container without limits has no timer: its supervisor sleeps.
    let pid = host.inspect("free")["Supervisor"]["Pid"].as_i64().unwrap();
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
    };
    // The supervisor releases memory a second after the start.
    std::thread::sleep(Duration::from_secs(2));
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(before, switches());
    host.ok(&["rm", "-f", "it", "free"]);
    assert_eq!(host.leftovers(), "");
}

fn work() {
    let host = Host::with_box();
    std::fs::create_dir(host.dir.join("data")).unwrap();
    let volume = format!("{}:/data", host.dir.join("data").display());
    // CPU only; and I/O from and to the page cache, with hardly any CPU.
    start(&host, "cpu", &["--idle-timeout", "2s"], "while :; do :; done");
    let line = "while :; do dd if=/dev/zero of=/data/x bs=256k count=1 2>/dev/null; sleep 0.1; done";
    start(&host, "io", &["--idle-timeout", "2s", "-v", &volume], line);
    stays(&host, "cpu");
    stays(&host, "io");
    assert!(!host.run(&["logs", "cpu"]).err.contains("idle"));
    host.ok(&["rm", "-f", "cpu", "io"]);
    assert_eq!(host.leftovers(), "");
}

fn sessions() {
    let host = Host::with_box();
    start(&host, "exec", &["--idle-timeout", "6s"], "sleep 1000");
    start(&host, "attach", &["--idle-timeout", "6s"], "sleep 1000");
    let quiet = |args: &[&str]| {
        let mut command = host.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut sessions = [quiet(&["exec", "exec", "sleep", "1000"]), quiet(&["attach", "attach"])];
    stays(&host, "exec");
    stays(&host, "attach");
    for session in &mut sessions {
        session.kill().unwrap();
        session.wait().unwrap();
    }
    assert_eq!(reached(&host, "attach"), "idle-timeout");
    host.ok(&["rm", "-f", "exec", "attach"]);
    assert_eq!(host.leftovers(), "");
}

/// The stand-in driver, with a process of the container on its GPU.
fn computing(lab: &Lab, name: &str, bytes: u64, utilization: u32) {
    let pid = lab.host.inspect(name)["State"]["Pid"].as_i64().unwrap();
    let gpu = driver::gpu(0, bytes, utilization, false);
    lab.driver.nvml(&format!("driver {VERSION}\n{gpu}process 0 {pid} {bytes}\n"));
}

fn gpu() {
    let lab = Lab::new(1);
    let flags = ["--network", "none", "--init", "--gpus", "1", "--idle-timeout", "6s"];
    lab.ok(&[&["run", "-d", "--name", "it"], &flags[..], &["box", "sleep", "1000"]].concat());
    computing(&lab, "it", GIB, 90);
    stays(&lab.host, "it");
    // A process that only keeps GPU memory does nothing.
    computing(&lab, "it", GIB, 0);
    assert_eq!(reached(&lab.host, "it"), "idle-timeout");
    // What is unknown counts as work.
    lab.driver.nvml(&format!("driver {VERSION}\n{}", driver::gpu(0, 0, 0, false)));
    lab.ok(&["start", "it"]);
    lab.driver.nvml("fail 15");
    stays(&lab.host, "it");
    lab.ok(&["rm", "-f", "it"]);
    assert_eq!(lab.host.leftovers(), "");
}

fn gpu_memory() {
    let lab = Lab::new(1);
    let start = |name: &str, watch: &str| {
        let flags = ["--network", "none", "--init", "--gpus", "1", "--gpu-mem-watch", watch];
        lab.ok(&[&["run", "-d", "--name", name], &flags[..], &["box", "sleep", "1000"]].concat());
    };
    start("warn", "2g");
    computing(&lab, "warn", 3 * GIB, 0);
    let warned = || lab.run(&["logs", "warn"]).err.contains("it uses 3 GiB of GPU memory (`--gpu-mem-watch 2g`)");
    eventually("the warning", warned);
    assert!(runs(&lab.host, "warn"));
    lab.ok(&["rm", "-f", "warn"]);
    lab.driver.nvml(&format!("driver {VERSION}\n{}", driver::gpu(0, 0, 0, false)));
    start("stop", "2g,stop");
    computing(&lab, "stop", 2 * GIB, 0);
    stays(&lab.host, "stop");
    computing(&lab, "stop", 3 * GIB, 0);
    assert_eq!(reached(&lab.host, "stop"), "gpu-memory");
    lab.ok(&["rm", "-f", "stop"]);
    let usage = lab.run(&["run", "--rm", "--gpu-mem-watch", "2g", "box", "true"]);
    assert_eq!(usage.code, 125, "{}", usage.err);
    assert_eq!(lab.host.leftovers(), "");
}

fn update() {
    let host = Host::with_box();
    start(&host, "it", &["--idle-timeout", "2s", "--timeout", "1h"], "sleep 1000");
    host.ok(&["update", "it", "--idle-timeout", "1h"]);
    stays(&host, "it");
    let times = || host.inspect("it")["Request"]["time_limits"].clone();
    assert_eq!(times(), serde_json::json!({ "timeout": "1h", "idle_timeout": "1h" }));
    host.ok(&["update", "it", "--idle-timeout", "0"]);
    assert_eq!(times(), serde_json::json!({ "timeout": "1h", "idle_timeout": null }));
    // A limit that has already passed ends the container now.
    host.ok(&["update", "it", "--timeout", "1s"]);
    assert_eq!(reached(&host, "it"), "timeout");
    // Of a container that does not run, only the record changes.
    host.ok(&["update", "it", "--timeout", "2h"]);
    assert_eq!(times()["timeout"], "2h");
    for (flag, value) in [("--timeout", "soon"), ("--idle-timeout", "1x")] {
        let error = host.fails(2, &["update", "it", flag, value]);
        assert!(error.contains(flag), "{error}");
    }
    let error = host.fails(125, &["run", "--rm", "--timeout", "8 h", "box", "true"]);
    assert!(error.contains("`--timeout 8 h` cannot be used") && error.contains("`1h30m`"), "{error}");
    host.ok(&["rm", "it"]);
    assert_eq!(host.leftovers(), "");
}
