//! SIGKILL, anywhere: the next command works, and nothing is left.

use std::process::Stdio;

use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_supervisor_killed_at_every_step", every_step),
    ("a_killed_supervisor_ends_its_container", supervisor),
    ("a_killed_command_leaves_the_container_running", command),
    ("a_killed_pid_1_is_an_exit", pid_1),
];

/// The steps of launch, in their order (src/launch). At the first it is the command that dies, at the others the supervisor.
const STEPS: [&str; 11] =
    ["made", "image", "overlay", "network", "gpus", "bundle", "cgroup", "created", "verified", "started", "running"];

fn every_step() {
    let host = Host::with_box();
    for step in STEPS {
        for keep in [false, true] {
            let mut args = vec!["run", "-d", "-p", "8080:80", "--memory", "64m", "--name", "victim"];
            if !keep {
                args.push("--rm");
            }
            args.extend(["box", "sleep", "1000"]);
            let output = host.command(&args).env("GPURUN_KILL_AT", step).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            match step {
                "made" => assert_eq!(output.status.code(), None, "{step}: {error}"),
                "running" => {}
                _ => {
                    assert_eq!(output.status.code(), Some(125), "{step}: {error}");
                    assert!(error.contains("supervisor ended"), "{step}: {error}");
                }
            }
            // The next command clears it away, whatever it is: the one that heard the socket hang up has waited for the supervisor's death. Not
            // so the one that heard that it runs; while the dying supervisor still holds its lock, that is left to the command after it.
            let cleared = || {
                let ps = host.ok(&["ps", "-a", "-q"]);
                ps.lines().count() == usize::from(keep) && host.leftovers().is_empty()
            };
            match step {
                "running" => eventually(step, 5, cleared),
                _ => assert!(cleared(), "{step}: {}", host.leftovers()),
            }
            assert_eq!(host.ok(&["run", "--rm", "-p", "8080:80", "box", "echo", "fine"]), "fine", "{step}");
            if keep {
                host.ok(&["rm", "victim"]);
            }
        }
    }
}

fn pids(host: &Host, name: &str) -> (i32, i32) {
    let inspect = host.inspect(name);
    let pid = inspect["State"]["Pid"].as_i64().unwrap() as i32;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
    (pid, parent)
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn gone(pid: i32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

fn supervisor() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "one", "-p", "8080:80", "box", "sleep", "1000"]);
    let id = host.inspect("one")["Id"].as_str().unwrap().to_owned();
    let (pid, supervisor) = pids(&host, "one");
    host.ok(&["exec", "-d", "one", "sleep", "1000"]);
    kill(supervisor);
    eventually("pid 1 dies with it", 5, || gone(pid));
    let state = host.inspect("one")["State"].clone();
    assert_eq!((state["Status"].as_str(), state["ExitCode"].as_u64()), (Some("exited"), Some(137)));
    assert!(state["Error"]["message"].as_str().unwrap().contains("supervisor was killed"));
    assert_eq!(host.leftovers(), "");
    assert!(cgroups_of(&id).is_empty());
    host.ok(&["start", "one"]);
    assert!(host.ok(&["ps"]).contains("Up"));
}

fn command() {
    let host = Host::with_box();
    let mut child = host
        .command(&["run", "--name", "one", "--network", "none", "box", "sleep", "1000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it runs", 10, || host.ok(&["ps"]).contains("Up"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(host.ok(&["ps"]).contains("Up"));
    host.ok(&["stop", "-t", "0", "one"]);
    assert_eq!(host.leftovers(), "");
}

fn pid_1() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "one", "box", "sleep", "1000"]);
    let (pid, _) = pids(&host, "one");
    kill(pid);
    assert_eq!(host.ok(&["wait", "one"]), "137");
    eventually("it is cleared away", 5, || host.leftovers().is_empty());
    assert_eq!(host.inspect("one")["State"]["OOMKilled"], false);
}
