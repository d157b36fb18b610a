//! How a container is created: the number of system calls, and the process that enters the cgroup.

use std::collections::BTreeMap;

use crate::host::{self, Host};

pub const TESTS: &[(&str, fn())] = &[
    ("a_start_takes_few_system_calls", few),
    ("the_smallest_limits_start", smallest),
    ("a_creator_that_is_killed_leaves_nothing", killed),
    ("a_host_that_refuses_the_creators_mounts_starts_containers", refused),
];

/// The most calls of `run --rm --network none IMAGE true`, of all its processes. The target is 1,800 (docs/speed.md).
const MOST: u64 = 1890;

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
    let start = ["run", "--rm", "--network", "none", "box", "true"];
    // The first one mounts the image.
    host.ok(&start);
    let mut calls = counted(&host, &start);
    calls.remove("total");
    // A debug build checks every descriptor before it closes it.
    calls.remove("fcntl");
    let sum: u64 = calls.values().sum();
    println!("{sum} system calls");
    assert!(sum > 300 && sum <= MOST, "{sum} calls: {calls:?}");
}

fn smallest() {
    let host = Host::with_box();
    // The process that creates a container is in its cgroup for a moment, unless the limits leave no room for it.
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

/// Only the process that creates a container mounts there.
const PROCS: &str = "/sys/fs/cgroup/cgroup.procs";

fn killed() {
    let host = Host::with_box();
    let killer = ["strace", "-f", "-o", "/dev/null", "-P", PROCS, "-e", "inject=mount:signal=SIGKILL"];
    let output = host.behind(&killer, &["run", "--rm", "--network", "none", "box", "true"]).output().unwrap();
    let answer = host::answer(output);
    assert_eq!(answer.code, 125, "{}", answer.err);
    assert!(answer.err.contains("the process that creates the container was ended by SIGKILL"), "{}", answer.err);
    assert_eq!(host.leftovers(), "");
    host.ok(&["run", "--rm", "--network", "none", "box", "true"]);
}

fn refused() {
    let host = Host::with_box();
    let trace = host.dir.join("refused").display().to_string();
    let show = "cat /sys/fs/cgroup/memory/cgroup.procs || cat /sys/fs/cgroup/cgroup.procs";
    // A nested container may not mount there.
    for (file, error) in [("/sys/fs/cgroup", "EPERM"), (PROCS, "EACCES")] {
        let inject = format!("inject=mount:error={error}");
        let nested = ["strace", "-f", "-o", &trace, "-P", file, "-e", &inject];
        let args = ["run", "--rm", "--network", "none", "--memory", "64m", "box", "sh", "-c", show];
        let answer = host::answer(host.behind(&nested, &args).output().unwrap());
        assert_eq!(answer.code, 0, "{}", answer.err);
        assert!(answer.out.lines().any(|pid| pid == "1"), "{}", answer.out);
        // Version 2 needs only the second mount.
        if file == PROCS || cgroups_are_v1() {
            assert!(std::fs::read_to_string(&trace).unwrap().contains("(INJECTED)"), "{file} is not mounted");
        }
        assert_eq!(host.leftovers(), "");
    }
}

fn cgroups_are_v1() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
