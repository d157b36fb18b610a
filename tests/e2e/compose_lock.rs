//! Several `gpurun compose` commands for one project at once, and the lock that lets them wait for each other.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::compose::{compose, ok, project};
use crate::host::{Host, answer, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("two_ups_at_once_start_each_container_once", ups),
    ("two_downs_at_once_both_succeed", downs),
    ("a_command_that_waits_for_the_project_says_so", waits),
    ("up_in_the_foreground_leaves_the_project_to_others", foreground),
    ("a_name_of_a_project_is_no_path", names),
];

const TWO: &str = "
services:
  a: {image: box, command: sleep 1000, init: true}
  b: {image: box, command: sleep 1000, init: true}
";

/// Starts the same command twice, each with a delay before every thread and process that it starts.
fn twice(host: &Host, args: &[&str]) -> Vec<(i32, String)> {
    let inject = "inject=clone,clone3,vfork:delay_enter=400000";
    let strace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=clone,clone3,vfork", "-e", inject];
    let all = [&["compose", "-f", "lab/compose.yaml"], args].concat();
    let start = |_| host.behind(&strace, &all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<Child> = (0..2).map(start).collect();
    let ended = children.into_iter().map(|child| answer(child.wait_with_output().unwrap()));
    ended.map(|answer| (answer.code, answer.err)).collect()
}

fn ups() {
    let host = project(TWO);
    let ended = twice(&host, &["up", "-d"]);
    assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
    for name in ["lab-a-1", "lab-b-1"] {
        let started = format!("Container {name}  Started");
        assert_eq!(ended.iter().filter(|(_, err)| err.contains(&started)).count(), 1, "{ended:?}");
    }
    assert_eq!(ok(&host, &["ps", "--services"]), "a\nb");
    ok(&host, &["down", "-t", "1"]);
    assert_eq!(host.leftovers(), "");
}

fn downs() {
    let host = project(TWO);
    ok(&host, &["up", "-d"]);
    let ended = twice(&host, &["down", "-t", "1"]);
    assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert!(!host.ok(&["network", "ls", "-q"]).contains("lab"), "the network is removed");
    assert_eq!(host.leftovers(), "");
}

fn waits() {
    let host = project(TWO);
    ok(&host, &["up", "-d"]);
    let lock = host.dir.join("run/compose/lab.lock");
    // `cat` holds the lock until its input ends.
    let mut holder = Command::new("flock").arg(&lock).arg("cat").stdin(Stdio::piped()).spawn().unwrap();
    eventually("the lock is held", || {
        !Command::new("flock").arg("-n").arg(&lock).arg("true").status().unwrap().success()
    });
    // These do not wait.
    ok(&host, &["stop", "-t", "1", "a"]);
    ok(&host, &["kill", "b"]);
    ok(&host, &["ps"]);
    let waiting = ["up", "create", "start", "restart", "down"].map(|command| {
        let err = host.dir.join(format!("{command}.err"));
        let mut run = host.command(&["compose", command]);
        run.args(if command == "up" { &["-d"][..] } else { &[] });
        run.current_dir(host.dir.join("lab")).stdout(Stdio::null()).stderr(fs::File::create(&err).unwrap());
        let child = run.spawn().unwrap();
        let shown = || fs::read_to_string(&err).unwrap();
        eventually(command, || shown().contains("gpurun: waiting for another command of the project `lab` (process "));
        child
    });
    // One after the other, in any order: `start` and `restart` may find no containers.
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    for mut child in waiting {
        eventually("the end of the command", || child.try_wait().unwrap().is_some());
    }
    ok(&host, &["down", "-t", "1"]);
    assert_eq!(host.leftovers(), "");
}

fn foreground() {
    let host = project(TWO);
    let mut up = host.command(&["compose", "up", "-t", "1"]);
    up.current_dir(host.dir.join("lab")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = up.spawn().unwrap();
    eventually("both services run", || compose(&host, &["ps", "-q"]).out.lines().count() == 2);
    ok(&host, &["down", "-t", "1"]);
    eventually("the end of `up`", || up.try_wait().unwrap().is_some());
    assert_eq!(up.wait().unwrap().code(), Some(0));
    assert_eq!(host.leftovers(), "");
}

/// `down` removes directories that have the name of the project.
fn names() {
    let host = project(TWO);
    fs::create_dir_all(host.dir.join("root/compose")).unwrap();
    host.ok(&["create", "--name", "kept", "box", "true"]);
    for args in [&["-p", "../containers", "down"][..], &["-p", "..", "stop"], &["-p", "Lab", "ps"]] {
        let answer = compose(&host, args);
        assert_eq!(answer.code, 1, "{args:?}");
        assert!(answer.err.contains("is not a project name"), "{args:?}: {}", answer.err);
    }
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "kept");
}
