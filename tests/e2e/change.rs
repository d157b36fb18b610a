//! Changes to living containers: update, pause and resume, and what stats and events say meanwhile.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::host::{Host, cgroups_of, eventually, slow};

pub const TESTS: &[(&str, fn())] = &[
    ("update_changes_the_kernel_the_record_and_a_restart", update),
    ("a_refused_update_changes_nothing", rolled_back),
    ("a_rename_and_an_update_at_once_are_both_kept", renamed_meanwhile),
    ("a_lifted_limit_is_gone", lifted),
    ("update_keeps_the_device_filter", devices),
    ("a_paused_container_stands_still_and_can_be_stopped", pause),
    ("stats_follow_a_busy_loop", stats),
    ("events_tell_a_life", events),
    ("a_cgroup_that_cannot_hand_a_controller_down_is_named", undelegated),
    (crate::NEEDS_SYSTEMD[1], scope),
    ("a_cgroup_parent_holds_the_container_and_its_limit_binds", parent),
];

const LOOP: &str = "while true; do :; done";

fn limit(host: &Host, name: &str, flag: &str) -> String {
    let limits = host.inspect(name)["Limits"].clone();
    let row = limits.as_array().unwrap().iter().rev().find(|row| row["flag"] == flag).cloned();
    row.unwrap_or_else(|| panic!("{flag} is not in {limits}"))["kernel"].as_str().unwrap().to_owned()
}

/// A file of the container's cgroup, in whichever hierarchy has it.
pub fn file(host: &Host, name: &str, files: &[&str]) -> String {
    let id = host.inspect(name)["Id"].as_str().unwrap().to_owned();
    let dirs = cgroups_of(&id);
    let found = dirs.iter().flat_map(|dir| files.iter().map(move |file| dir.join(file))).find(|path| path.exists());
    let path = found.unwrap_or_else(|| panic!("none of {files:?} in {dirs:?}"));
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn sleeper(host: &Host, name: &str, flags: &[&str]) {
    let mut args = vec!["run", "-d", "--name", name, "--network", "none"];
    args.extend(flags);
    args.extend(["box", "sleep", "1000"]);
    host.ok(&args);
}

fn update() {
    let host = Host::with_box();
    sleeper(&host, "lab", &["--memory", "64m", "--cpus", "0.5"]);
    host.ok(&["update", "lab", "--memory", "96m", "--pids-limit", "77", "--cpuset-cpus", "0"]);
    assert_eq!(limit(&host, "lab", "--memory"), (96 << 20).to_string());
    assert_eq!(file(&host, "lab", &["memory.max", "memory.limit_in_bytes"]), (96 << 20).to_string());
    assert_eq!(file(&host, "lab", &["pids.max"]), "77");
    assert_eq!(host.ok(&["exec", "lab", "nproc"]), "1");
    // A value that another program writes is shown beside the requested one. A new request restores it.
    let dirs = cgroups_of(host.inspect("lab")["Id"].as_str().unwrap());
    let pids = dirs.iter().map(|dir| dir.join("pids.max")).find(|path| path.exists()).unwrap();
    std::fs::write(&pids, "55").unwrap();
    let answer = host.run(&["explain", "lab"]);
    assert!(answer.out.contains("pids.max = 55") && answer.out.contains("changed    not what"), "{}", answer.out);
    assert!(answer.code == 1 && answer.err.contains("cannot enforce `--pids-limit`"), "{}", answer.err);
    host.ok(&["update", "lab", "--pids-limit", "77"]);
    assert!(!host.ok(&["explain", "lab"]).contains("changed "));
    // Smaller again, and the swap that is implied follows.
    host.ok(&["update", "lab", "--memory", "48m"]);
    assert_eq!(limit(&host, "lab", "--memory"), (48 << 20).to_string());
    host.ok(&["restart", "-t", "0", "lab"]);
    assert_eq!(limit(&host, "lab", "--memory"), (48 << 20).to_string(), "the record has it, too");
    // At rest, and with nothing to do.
    host.ok(&["stop", "-t", "0", "lab"]);
    let answer = host.run(&["update", "lab", "--memory", "32m", "--verbose"]);
    assert!(answer.err.contains("`lab` is not running"), "{}", answer.err);
    assert_eq!(
        host.inspect("lab")["Limits"],
        serde_json::json!([]),
        "what was read back before is no more what it gets"
    );
    let answer = host.run(&["stats", "--no-stream", "lab"]);
    assert!(answer.code == 0 && answer.err.contains("`lab` is not running"), "{}", answer.err);
    host.ok(&["start", "lab"]);
    assert_eq!(limit(&host, "lab", "--memory"), (32 << 20).to_string());
    assert!(host.fails(2, &["update", "lab"]).contains("no limit to update was specified"));
    assert!(host.fails(2, &["update", "lab", "--restart", ""]).contains("`--restart` has no value"));
    assert!(host.fails(2, &["explain", "--tree", "lab", "--memory", "64m"]).contains("cannot be used with limits"));
}

/// The kernel's files of the limits that these tests change.
fn held(host: &Host, name: &str) -> Vec<String> {
    let files: [&[&str]; 5] = [
        &["cpuset.cpus"],
        &["memory.max", "memory.limit_in_bytes"],
        &["memory.swap.max", "memory.memsw.limit_in_bytes"],
        &["cpu.max", "cpu.cfs_quota_us"],
        &["pids.max"],
    ];
    files.iter().map(|names| file(host, name, names)).collect()
}

fn rolled_back() {
    let host = Host::with_box();
    let flags =
        ["--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5", "--cpuset-cpus", "0-1", "--pids-limit", "50"];
    sleeper(&host, "lab", &flags);
    let before = held(&host, "lab");
    // Written in this order: CPUs, memory, swap, quota, pids, and then what the kernel refuses. Memory grows in one pass and shrinks in the
    // other, which version 1 wants in another order.
    for (memory, swap) in [("128m", "128m"), ("32m", "32m")] {
        let update = [
            &["update", "lab", "--cpuset-cpus", "0", "--memory", memory, "--memory-swap", swap, "--cpus", "0.7"][..],
            &["--pids-limit", "77", "--cgroup-conf", "pids.max=lots"],
        ]
        .concat();
        let error = host.fails(1, &update);
        assert!(
            error.contains("cannot enforce `--cgroup-conf`: the kernel refused `lots` for `/sys/fs/cgroup"),
            "{error}"
        );
        assert_eq!(held(&host, "lab"), before, "all of it went back");
        assert_eq!(limit(&host, "lab", "--memory"), (64 << 20).to_string());
        let record = host.inspect("lab")["Request"]["limits"].clone();
        assert_eq!((record["cpus"].as_str(), record["memory"].as_str()), (Some("0.5"), Some("64m")), "the record, too");
    }
    // A limit below what is held, and what cannot be reclaimed without swap: refused, and nothing is killed.
    host.ok(&["update", "lab", "--memory-swap", "64m"]);
    let before = held(&host, "lab");
    host.ok(&["exec", "lab", "sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null"]);
    let error = host.fails(1, &["update", "lab", "--cpuset-cpus", "0", "--memory", "16m", "--memory-swap", "16m"]);
    assert!(error.contains("--memory") && error.contains("hint:"), "{error}");
    assert_eq!(held(&host, "lab"), before);
    assert_eq!(host.ok(&["exec", "lab", "sh", "-c", "wc -c < /dev/shm/held"]), (40 << 20).to_string());
}

/// Two write one record: the command that renames, and the supervisor whose limits change.
fn renamed_meanwhile() {
    let host = Host::with_box();
    sleeper(&host, "lab-0", &[]);
    let id = host.inspect("lab-0")["Id"].as_str().unwrap().to_owned();
    let rounds = if slow() { 4 } else { 30 };
    for round in 1..=rounds {
        let (name, limit) = (format!("lab-{round}"), (100 + round).to_string());
        let shown = format!("/{name}");
        let children = [&["rename", &id, &name][..], &["update", &id, "--pids-limit", &limit]]
            .map(|args| host.command(args).stdout(Stdio::null()).spawn().unwrap());
        children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success(), "round {round}"));
        let now = host.inspect(&id);
        let asked = now["Request"]["limits"]["pids_limit"].to_string();
        assert_eq!((now["Name"].as_str().unwrap(), &*asked), (&*shown, &*limit), "round {round}");
    }
    host.ok(&["restart", "-t", "0", &id]);
    assert_eq!(file(&host, &id, &["pids.max"]), (100 + rounds).to_string());
}

fn lifted() {
    let host = Host::with_box();
    sleeper(&host, "lab", &["--memory", "64m", "--cpus", "0.5", "--pids-limit", "50"]);
    host.ok(&["update", "lab", "--memory", "0", "--cpus", "0", "--pids-limit", "-1"]);
    let memory = file(&host, "lab", &["memory.max", "memory.limit_in_bytes"]);
    assert!(memory == "max" || memory.parse::<u64>().unwrap() > 1 << 60, "{memory}");
    let quota = file(&host, "lab", &["cpu.max", "cpu.cfs_quota_us"]);
    assert!(quota.starts_with("max") || quota == "-1", "{quota}");
    assert_eq!(file(&host, "lab", &["pids.max"]), "max");
    // A total of memory and swap goes with the memory that it is bound to.
    host.ok(&["update", "lab", "--memory", "64m", "--memory-swap", "96m"]);
    host.ok(&["update", "lab", "--memory", "0"]);
    let swap = file(&host, "lab", &["memory.swap.max", "memory.memsw.limit_in_bytes"]);
    assert!(swap == "max" || swap.parse::<u64>().unwrap() > 1 << 60, "{swap}");
    host.ok(&["update", "lab", "--memory", "48m"]);
    let swap = file(&host, "lab", &["memory.swap.max", "memory.memsw.limit_in_bytes"]);
    assert!(
        swap == (96 << 20).to_string() || swap == (48 << 20).to_string(),
        "twice the memory, as if nothing had been: {swap}"
    );
    // What a full pids.max does to an exec is said.
    host.ok(&["update", "lab", "--pids-limit", "3"]);
    host.ok(&["exec", "-d", "lab", "sleep", "1000"]);
    let error = host.fails(1, &["exec", "lab", "true"]);
    assert!(error.contains("hint:") && error.contains("--pids-limit"), "{error}");
}

/// Nodes that a container may not open, whatever it makes, with what `mknod` takes: memory, the kernel's log, a terminal of the host, FUSE, a
/// GPU, the host's disks.
const OTHERS: [&str; 8] = ["c 1 1", "c 1 11", "c 4 0", "c 10 229", "c 195 0", "b 254 0", "b 8 0", "b 7 0"];

fn devices() {
    let host = Host::with_box();
    let tries: Vec<String> = OTHERS
        .iter()
        .map(|node| format!("rm -f /tmp/n; mknod /tmp/n {node} && (exec 3</tmp/n) 2>&1 | sed 's/.*: //'"))
        .collect();
    let usual =
        "for n in null zero full random urandom; do (exec 3</dev/$n) || echo $n; done; head -c 1 /dev/zero | wc -c";
    let tries = format!("{}; {usual}", tries.join("; "));
    let all = "Operation not permitted\n".repeat(OTHERS.len()) + "1";
    // PID 1's own children, on a signal: before the update and after it.
    let script =
        format!("while true; do [ -e /go ] && {{ rm /go; ({tries}) >/tmp/out; mv /tmp/out /done; }}; sleep 0.1; done");
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "--memory", "64m", "box", "sh", "-c", &script]);
    for memory in ["64m", "80m"] {
        host.ok(&["update", "lab", "--memory", memory, "--pids-limit", "60", "--cpuset-cpus", "0"]);
        assert_eq!(host.ok(&["exec", "lab", "sh", "-c", &tries]), all, "an exec'ed process, at {memory}");
        host.ok(&["exec", "lab", "touch", "/go"]);
        eventually("pid 1's child has tried", || host.run(&["exec", "lab", "test", "-e", "/done"]).code == 0);
        assert_eq!(host.ok(&["exec", "lab", "sh", "-c", "cat /done; rm /done"]), all, "pid 1's child, at {memory}");
    }
}

fn pause() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "busy", "--network", "none", "box", "sh", "-c", LOOP]);
    let used = || -> u64 {
        let text = host.ok(&["stats", "--no-stream", "--json", "busy"]);
        serde_json::from_str::<Value>(&text).unwrap()[0]["cpu_usage_us"].as_u64().unwrap()
    };
    host.ok(&["pause", "busy"]);
    assert_eq!(host.inspect("busy")["State"]["Status"], "paused");
    assert!(host.ok(&["ps"]).contains("(Paused)"));
    let before = used();
    assert_eq!(used(), before, "no CPU time while it is frozen");
    assert!(host.fails(1, &["pause", "busy"]).contains("paused already"));
    assert!(host.fails(1, &["exec", "busy", "true"]).contains("paused"));
    host.ok(&["resume", "busy"]);
    assert!(used() > before);
    host.ok(&["pause", "busy"]);
    host.ok(&["stop", "-t", "1", "busy"]);
    assert_eq!(host.inspect("busy")["State"]["Paused"], false);
    host.ok(&["start", "busy"]);
    host.ok(&["pause", "busy"]);
    host.ok(&["rm", "-f", "busy"]);
    assert_eq!(host.leftovers(), "");
}

fn stats() {
    let host = Host::with_box();
    host.ok(&[
        "run",
        "-d",
        "--name",
        "busy",
        "--network",
        "none",
        "--cpus",
        "0.3",
        "--memory",
        "64m",
        "box",
        "sh",
        "-c",
        LOOP,
    ]);
    let sample = || -> Value {
        let all: Value = serde_json::from_str(&host.ok(&["stats", "--no-stream", "--json"])).unwrap();
        all[0].clone()
    };
    // A busy host gives the loop less than its quota, and in a short sample perhaps nothing; never more.
    let mut busy = sample();
    eventually("the loop runs", || {
        let cpu = busy["cpu_percent"].as_f64().unwrap();
        assert!(cpu < 60.0, "{cpu}");
        cpu > 1.0 || {
            busy = sample();
            false
        }
    });
    assert_eq!(busy["name"], "busy");
    assert_eq!(busy["memory_limit"].as_u64(), Some(64 << 20));
    assert!(busy["memory_current"].as_u64().unwrap() > 0 && busy["pids_current"] == 1, "{busy}");
    let table = host.ok(&["stats", "--no-stream", "busy"]);
    assert!(table.contains("CPU %") && table.contains("/ 64 MiB"), "{table}");
    // A loop that gets less from a busy host than its quota is not throttled: this is the smallest quota.
    host.ok(&["update", "busy", "--cpus", "0.01"]);
    eventually("it is throttled", || sample()["cpu_throttled_periods"].as_u64().unwrap() > 0);
}

fn events() {
    let host = Host::with_box();
    let mut child = host.command(&["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    // What happens before its first look is no event.
    let waits = format!("{} ", nix::libc::SYS_clock_nanosleep);
    eventually("it has looked once", || {
        std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).is_ok_and(|text| text.starts_with(&waits))
    });
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut until = |event: &str| {
        for line in lines.by_ref() {
            let event_seen: Value = serde_json::from_str(&line.unwrap()).unwrap();
            seen.push(event_seen["event"].as_str().unwrap().to_owned());
            if event_seen["event"] == event {
                return event_seen;
            }
        }
        panic!("no `{event}` after {seen:?}");
    };
    let hog = [
        "run",
        "--name",
        "hog",
        "--network",
        "none",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        "box",
        "tail",
        "/dev/zero",
    ];
    host.fails(137, &hog);
    assert_eq!(until("start")["name"], "hog");
    assert!(until("oom_kill")["count"].as_u64().unwrap() >= 1);
    assert_eq!(until("exit")["exit_code"], 137);
    sleeper(&host, "lab", &[]);
    until("start");
    host.ok(&["pause", "lab"]);
    until("pause");
    host.ok(&["resume", "lab"]);
    until("resume");
    host.ok(&["rm", "-f", "lab"]);
    until("remove");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A cgroup with a process in it cannot hand controllers down (cgroup-v2.rst, "No Internal Process Constraint"): the error names it, with a
/// hint that works when pasted. A scope of systemd that has processes of its own is such a cgroup. Version 1 delegates everything.
fn undelegated() {
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return version_1_hands_down();
    }
    let host = Host::with_box();
    let name = format!("gpurun-e2e-busy-{}", std::process::id());
    let dir = std::path::Path::new("/sys/fs/cgroup").join(&name);
    std::fs::create_dir(&dir).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    let launch =
        ["run", "--rm", "--network", "none", "--cgroup-parent", &name, "--memory", "64m", "box", "echo", "fits"];
    let error = host.fails(125, &launch);
    let snippets = format!(
        "cannot enforce `--memory`: the cgroup controller `memory` is not available below `{}`, which contains \
         processes",
        dir.display()
    );
    assert!(error.contains(&snippets), "{error}");
    let (_, way_out) =
        error.split_once("hint: move them one level down: `").unwrap_or_else(|| panic!("no way out in {error}"));
    crate::host::sh(way_out.split_once('`').unwrap().0);
    assert_eq!(host.ok(&launch), "fits");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the cgroup is free", || {
        let _ = std::fs::remove_dir(dir.join("own"));
        std::fs::remove_dir(&dir).is_ok()
    });
}

/// A scope that systemd has delegated, with the two controllers that it enables by itself, and its own processes in it: that is said, the way
/// out works when pasted, and then all limits hold below it; the scope itself is not turned into something else.
fn scope() {
    let host = Host::with_box();
    let script = r#"
        scope=$(sed s/^0::// /proc/self/cgroup)
        "$@" --cgroup-parent $scope box true 2>said && echo it should not have worked
        cat said >&2
        cat /sys/fs/cgroup$scope/cgroup.type >&2
        way_out=$(sed -n 's/.*move them one level down: `\(.*\)`$/\1/p' said)
        eval "$way_out"
        "$@" --cgroup-parent $scope box sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max cpuset.cpus'
    "#;
    let by = ["systemd-run", "--scope", "--quiet", "-p", "Delegate=yes", "sh", "-c", script, "sh"];
    let launch = ["run", "--rm", "--network", "none", "--memory", "64m", "--cpus", "0.5", "--cpuset-cpus", "0"];
    let answer = crate::host::answer(host.behind(&by, &launch).output().unwrap());
    assert!(answer.err.contains(".scope`, which contains processes"), "{}", answer.err);
    assert!(answer.err.lines().any(|line| line == "domain"), "{}", answer.err);
    assert_eq!(answer.out, "67108864\n50000 100000\n0\n", "{}", answer.err);
}

fn version_1_hands_down() {
    let host = Host::with_box();
    let name = format!("gpurun-e2e-busy-{}", std::process::id());
    let dir = std::path::Path::new("/sys/fs/cgroup/memory").join(&name);
    std::fs::create_dir(&dir).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    let launch =
        ["run", "--rm", "--network", "none", "--cgroup-parent", &name, "--memory", "64m", "box", "echo", "fits"];
    assert_eq!(host.ok(&launch), "fits");
    child.kill().unwrap();
    child.wait().unwrap();
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(&name));
    }
    eventually("the cgroup is free", || !dir.exists() || std::fs::remove_dir(&dir).is_ok());
}

fn parent() {
    let host = Host::with_box();
    let parent = format!("/gpurun-e2e-parent-{}", std::process::id());
    sleeper(&host, "inner", &["--cgroup-parent", &parent, "--memory", "64m"]);
    let cgroup = host.inspect("inner")["Cgroup"].as_str().unwrap().to_owned();
    assert!(cgroup.starts_with(&parent), "{cgroup}");
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"];
    let dirs: Vec<_> = mounts.iter().map(|mount| std::path::PathBuf::from(format!("{mount}{parent}"))).collect();
    let outer = dirs.iter().find(|dir| dir.join("cgroup.procs").exists()).expect("the parent's cgroup");
    let file = ["memory.max", "memory.limit_in_bytes"].iter().map(|file| outer.join(file)).find(|path| path.exists());
    std::fs::write(file.expect("a limit"), (32 << 20).to_string()).unwrap();
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        refused_by_an_ancestor(&host, &parent);
    }
    // The next launch below it names the limit that is in effect, and an OOM kill names the ancestor.
    let hog = [
        "run",
        "--name",
        "hog",
        "--network",
        "none",
        "--cgroup-parent",
        &parent,
        "--memory",
        "256m",
        "--verbose",
        "box",
        "tail",
        "/dev/zero",
    ];
    let error = host.fails(137, &hog);
    assert!(error.contains("an ancestor is tighter"), "{error}");
    assert!(error.contains("above this container's cgroup, was reached"), "{error}");
    assert!(
        host.inspect("inner")["State"]["Status"] == "running" || host.inspect("inner")["State"]["OOMKilled"] == true
    );
    host.ok(&["rm", "-f", "inner", "hog"]);
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()) {
        let _ = std::fs::remove_dir(controller.join(parent.trim_start_matches('/')));
    }
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup{parent}"));
}

/// Version 1 refuses more than the parent has, where version 2 gives less: which file it is, and its value, are said.
fn refused_by_an_ancestor(host: &Host, parent: &str) {
    for (controller, file, value, back, flag, asked, holds) in [
        ("cpu", "cpu.cfs_quota_us", "50000", "-1", "--cpus", "0.9", "50000 of 100000"),
        ("cpuset", "cpuset.cpus", "0", "0-1", "--cpuset-cpus", "1", "0"),
    ] {
        let path = std::path::PathBuf::from(format!("/sys/fs/cgroup/{controller}{parent}/{file}"));
        // A cgroup with less than its children have is refused: theirs go first.
        host.ok(&["update", "inner", "--cpus", "0.1", "--cpuset-cpus", "0"]);
        std::fs::write(&path, value).unwrap();
        let error = host.fails(1, &["update", "inner", flag, asked]);
        let snippets = format!("hint: request less than `{holds}`, the limit of the ancestor `{}`", path.display());
        assert!(error.contains(&format!("cannot enforce `{flag}`")) && error.contains(&snippets), "{error}");
        std::fs::write(&path, back).unwrap();
    }
}
