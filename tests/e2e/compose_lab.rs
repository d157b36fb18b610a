//! A small lab: a database with a health check, an API that waits for it and reaches it by name, and a notebook with a
//! GPU of a stand-in driver. It starts, comes back after `kill -9` of any of its processes, and leaves no trace.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::gpu::Lab;
use crate::host::{Answer, answer, eventually};

pub const TESTS: &[(&str, fn())] =
    &[("three_services_start_and_leave_no_trace", starts), ("three_services_come_back_after_any_kill", kills)];

const FILE: &str = "
services:
  db:
    image: box
    command: sh -c 'mkdir -p /srv /data && echo rows >/srv/table && exec httpd -f -p 5432 -h /srv'
    init: true
    volumes: ['data:/data']
    healthcheck:
      test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1:5432/table']
      interval: 1s
      retries: 60
      start_period: 30s
      start_interval: 100ms
  api:
    image: box
    command: sh -c 'wget -q -O - http://db:5432/table && exec sleep 1000'
    init: true
    depends_on: {db: {condition: service_healthy}}
  notebook:
    image: box
    command: sh -c 'ls /dev/nvidia0 && exec sleep 1000'
    init: true
    depends_on: [api]
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}}
volumes: {data: }
";

const ALL: [&str; 3] = ["lab-api-1", "lab-db-1", "lab-notebook-1"];

fn lab() -> Lab {
    let lab = Lab::new(1);
    fs::create_dir(lab.host.dir.join("lab")).unwrap();
    fs::write(lab.host.dir.join("lab/compose.yaml"), FILE).unwrap();
    lab
}

fn command(lab: &Lab, args: &[&str]) -> std::process::Command {
    let mut command = lab.command(&[&["compose"], args].concat());
    command.current_dir(lab.host.dir.join("lab"));
    command
}

fn compose(lab: &Lab, args: &[&str]) -> Answer {
    answer(command(lab, args).output().unwrap())
}

#[track_caller]
fn ok(lab: &Lab, args: &[&str]) -> String {
    let answer = compose(lab, args);
    assert_eq!(answer.code, 0, "compose {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
    answer.out.trim().to_owned()
}

/// All three run, the API has read the table by the database's name, and the notebook has the GPU.
#[track_caller]
fn works(lab: &Lab) {
    assert_eq!(ok(lab, &["ps", "--services"]), "api\ndb\nnotebook");
    let log = |service: &str| ok(lab, &["logs", "--no-log-prefix", service]);
    assert!(log("api").contains("rows"), "{}", log("api"));
    assert!(log("notebook").contains("/dev/nvidia0"), "{}", log("notebook"));
    assert_eq!(ok(lab, &["exec", "-T", "api", "wget", "-q", "-O", "-", "http://db:5432/table"]), "rows");
}

#[track_caller]
fn leaves_nothing(lab: &Lab) {
    ok(lab, &["down", "-v", "-t", "1"]);
    assert_eq!(lab.host.ok(&["ps", "-aq"]), "");
    assert_eq!(lab.host.ok(&["volume", "ls", "-q"]), "");
    assert!(fs::read_dir(lab.host.dir.join("run/gpus")).map_or(0, Iterator::count) <= 1, "no lease is left");
    assert_eq!(lab.host.leftovers(), "");
}

fn starts() {
    let lab = lab();
    let up = compose(&lab, &["up", "-d", "--wait"]);
    assert_eq!(up.code, 0, "{}", up.err);
    let started: Vec<&str> = up.err.lines().filter_map(|line| line.trim().strip_prefix("Container ")).collect();
    assert_eq!(started, ["lab-db-1  Started", "lab-api-1  Started", "lab-notebook-1  Started"]);
    assert_eq!(lab.host.inspect("lab-db-1")["State"]["Health"]["Status"], "healthy");
    works(&lab);
    leaves_nothing(&lab);
}

fn pid_of(lab: &Lab, name: &str) -> i32 {
    lab.host.inspect(name)["State"]["Pid"].as_i64().unwrap() as i32
}

fn parent_of(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Processes whose command line contains the text, below a process.
fn children_of(parent: i32, text: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text) && stat.contains(&format!("\nPPid:\t{parent}\n"))
    })
    .collect()
}

fn kills() {
    let lab = lab();
    let end = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // The command itself, in the foreground: the services stay.
    let mut up = command(&lab, &["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("all three", || compose(&lab, &["ps", "-q"]).out.lines().count() == 3);
    up.kill().unwrap();
    up.wait().unwrap();
    ok(&lab, &["up", "-d", "--wait"]);
    works(&lab);
    // PID 1 and the supervisor of each container.
    for name in ALL {
        for what in ["PID 1", "supervisor"] {
            let pid = pid_of(&lab, name);
            end(if what == "PID 1" { pid } else { parent_of(pid) });
            eventually(name, || compose(&lab, &["ps", "-q"]).out.lines().count() == 2);
            let up = compose(&lab, &["up", "-d", "--wait"]);
            assert_eq!(up.code, 0, "{what} of {name}: {}", up.err);
            works(&lab);
        }
    }
    ok(&lab, &["down", "-t", "1"]);
    // A child of the command while it starts a container; then the command while it starts one.
    for child in [true, false] {
        let mut up = command(&lab, &["up", "-d"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut children = Vec::new();
        eventually("a child", || {
            children = children_of(up.id() as i32, "compose-child");
            !children.is_empty() || up.try_wait().unwrap().is_some()
        });
        match children.first() {
            Some(pid) if child => end(*pid),
            _ => drop(up.kill()),
        }
        up.wait().unwrap();
        // What the killed process began is finished or removed first.
        eventually("the next start", || compose(&lab, &["up", "-d", "--wait"]).code == 0);
        works(&lab);
        leaves_nothing(&lab);
    }
}
