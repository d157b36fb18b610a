//! How a container is created: the number of system calls, and the first process, which enters the cgroup by itself.

use std::collections::BTreeMap;

use crate::host::{self, Host};

pub const TESTS: &[(&str, fn())] = &[
    ("a_start_takes_few_system_calls", few),
    ("the_smallest_limits_start", smallest),
    ("a_first_process_that_is_killed_leaves_nothing", killed),
    ("a_step_of_the_first_process_that_fails_is_reported", refused),
];

/// The most calls of `run --rm --network none IMAGE true`, of all its processes. The target is 1,800 (docs/speed.md).
const MOST: u64 = 1835;

/// The calls by name, as `strace -c` counts them.
fn counted(host: &Host, args: &[&str]) -> BTreeMap<String, u64> {
    let trace = host.dir.join("calls").display().to_string();
    let binary = host::binary().display().to_string();
    let strace = ["-f", "-c", "-U", "calls,name", "-o", &trace, &binary];
    let mut command = host.program("strace", &[&strace[..], args].concat());
    command.env("GPURUN_ROOT", host.dir.join("root")).env("GPURUN_RUN", host.dir.join("run"));
    // cargo sets this, and the dynamic linker then looks there first.
    command.env_remove("LD_LIBRARY_PATH").env_remove("GPURUN_KILL_AT");
    let answer = host::answer(command.output().unwrap());
    assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
    let text = std::fs::read_to_string(trace).unwrap();
    let line = |line: &str| {
        let (calls, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn few() {
    let host = Host::with_box();
    // The first one mounts the image.
    host.ok(&START);
    let mut calls = counted(&host, &START);
    calls.remove("total");
    // A debug build checks every descriptor before it closes it.
    calls.remove("fcntl");
    let sum: u64 = calls.values().sum();
    println!("{sum} system calls");
    assert!(sum > 300 && sum <= MOST, "{sum} calls: {calls:?}");
}

fn smallest() {
    let host = Host::with_box();
    for (flag, value) in [("--pids-limit", "2"), ("--pids-limit", "3"), ("--memory", "6m"), ("--memory", "16m")] {
        host.ok(&["run", "--rm", "--network", "none", flag, value, "box", "true"]);
    }
    for cpus in ["0", "1"] {
        let status = host.ok(&["run", "--rm", "--cpuset-cpus", cpus, "box", "cat", "/proc/self/status"]);
        assert!(status.contains(&format!("Cpus_allowed_list:\t{cpus}\n")), "{status}");
    }
    host.fails(127, &["run", "--rm", "box", "no-such-program"]);
    assert_eq!(host.leftovers(), "");
}

const START: [&str; 6] = ["run", "--rm", "--network", "none", "box", "true"];

/// A start in which one system call of the first process, which no other process makes, is replaced.
fn injected(host: &Host, call: &str, what: &str) -> host::Answer {
    let trace = host.dir.join("injected").display().to_string();
    let inject = format!("inject={call}:{what}");
    let output = host.behind(&["strace", "-f", "-o", &trace, "-e", &inject], &START).output().unwrap();
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains("(INJECTED)") || trace.contains("+++ killed by SIGKILL +++"), "{call}: {trace}");
    host::answer(output)
}

fn killed() {
    let host = Host::with_box();
    for call in ["mknodat", "sethostname", "pivot_root", "setgroups", "seccomp"] {
        let answer = injected(&host, call, "signal=SIGKILL");
        if call == "seccomp" {
            // The process is killed after the start.
            assert_ne!(answer.code, 0, "{}", answer.err);
        } else {
            assert_eq!(answer.code, 125, "{call}: {}", answer.err);
            assert!(answer.err.contains("its first process was ended by SIGKILL"), "{call}: {}", answer.err);
        }
        assert_eq!(host.leftovers(), "", "{call}");
    }
    host.ok(&START);
}

fn refused() {
    let host = Host::with_box();
    for (call, message) in [
        ("sethostname", "cannot enter the container: set the host name"),
        ("pivot_root", "cannot enter the container: change the root directory"),
        ("mknodat", "cannot enter the container: create the container's devices"),
    ] {
        let answer = injected(&host, call, "error=EPERM");
        assert_eq!(answer.code, 125, "{}", answer.err);
        assert!(answer.err.contains(message) && answer.err.contains("not permitted"), "{call}: {}", answer.err);
        assert_eq!(host.leftovers(), "", "{call}");
    }
}
