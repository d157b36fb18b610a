//! Changes to living containers: update, pause and resume, and what stats and events say meanwhile.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("update_changes_the_kernel_the_record_and_a_restart", update),
    ("a_refused_update_changes_nothing", rolled_back),
    ("a_lifted_limit_is_gone", lifted),
    ("update_keeps_the_device_filter", devices),
    ("a_paused_container_stands_still_and_can_be_stopped", pause),
    ("stats_follow_a_busy_loop", stats),
    ("events_tell_a_life", events),
    ("docker_s_other_resource_flags_reach_their_files", other_flags),
    ("a_cgroup_parent_holds_the_container_and_its_limit_binds", parent),
];

const LOOP: &str = "while true; do :; done";

fn limit(host: &Host, name: &str, flag: &str) -> String {
    let limits = host.inspect(name)["Limits"].clone();
    let row = limits.as_array().unwrap().iter().rev().find(|row| row["flag"] == flag).cloned();
    row.unwrap_or_else(|| panic!("{flag} is not in {limits}"))["kernel"].as_str().unwrap().to_owned()
}

/// A file of the container's cgroup, in whichever hierarchy has it.
fn file(host: &Host, name: &str, files: &[&str]) -> String {
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
    // Smaller again, and the swap that is implied follows.
    host.ok(&["update", "lab", "--memory", "48m"]);
    assert_eq!(limit(&host, "lab", "--memory"), (48 << 20).to_string());
    host.ok(&["restart", "-t", "0", "lab"]);
    assert_eq!(limit(&host, "lab", "--memory"), (48 << 20).to_string(), "the record has it, too");
    // At rest, and with nothing to do.
    host.ok(&["stop", "-t", "0", "lab"]);
    host.ok(&["update", "lab", "--memory", "32m"]);
    host.ok(&["start", "lab"]);
    assert_eq!(limit(&host, "lab", "--memory"), (32 << 20).to_string());
    assert!(host.fails(2, &["update", "lab"]).contains("nothing to update"));
}

fn rolled_back() {
    let host = Host::with_box();
    sleeper(&host, "lab", &["--memory", "128m", "--memory-swap", "128m", "--cpus", "0.5"]);
    host.ok(&["exec", "lab", "sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=1M count=48 2>/dev/null"]);
    // What is held in /dev/shm cannot be reclaimed without swap; --cpus comes first and must go back.
    let error = host.fails(125, &["update", "lab", "--cpus", "0.7", "--memory", "16m", "--memory-swap", "16m"]);
    assert!(error.contains("--memory") && error.contains("hint:"), "{error}");
    assert_eq!(limit(&host, "lab", "--memory"), (128 << 20).to_string());
    assert_eq!(file(&host, "lab", &["memory.max", "memory.limit_in_bytes"]), (128 << 20).to_string());
    let quota = file(&host, "lab", &["cpu.max", "cpu.cfs_quota_us"]);
    assert!(quota.starts_with("50000"), "{quota}");
    assert_eq!(host.ok(&["exec", "lab", "sh", "-c", "wc -c < /dev/shm/held"]), (48 << 20).to_string());
    assert_eq!(host.inspect("lab")["Request"]["limits"]["cpus"], "0.5", "the record is as it was");
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
}

fn devices() {
    let host = Host::with_box();
    sleeper(&host, "lab", &["--memory", "64m"]);
    host.ok(&["update", "lab", "--memory", "80m"]);
    // 1:1 is /dev/mem; init's children and exec'ed processes alike.
    let answer = host.run(&["exec", "lab", "sh", "-c", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem"]);
    assert!(answer.err.contains("Operation not permitted"), "{}", answer.err);
    assert_eq!(host.ok(&["exec", "lab", "sh", "-c", "head -c 1 /dev/zero | wc -c"]), "1");
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
    assert!(host.fails(125, &["pause", "busy"]).contains("paused already"));
    assert!(host.fails(125, &["exec", "busy", "true"]).contains("paused"));
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
    let all: Value = serde_json::from_str(&host.ok(&["stats", "--no-stream", "--json"])).unwrap();
    let busy = &all[0];
    assert_eq!(busy["name"], "busy");
    let cpu = busy["cpu_percent"].as_f64().unwrap();
    assert!(cpu > 1.0 && cpu < 60.0, "{cpu}");
    assert_eq!(busy["memory_limit"].as_u64(), Some(64 << 20));
    assert!(busy["memory_current"].as_u64().unwrap() > 0 && busy["pids_current"] == 1, "{busy}");
    let table = host.ok(&["stats", "--no-stream", "busy"]);
    assert!(table.contains("CPU %") && table.contains("/ 64 MiB"), "{table}");
    eventually("it is throttled", 5, || {
        let all: Value = serde_json::from_str(&host.ok(&["stats", "--no-stream", "--json"])).unwrap();
        all[0]["cpu_throttled_periods"].as_u64().unwrap() > 0
    });
}

fn events() {
    let host = Host::with_box();
    let mut child = host.command(&["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
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

fn other_flags() {
    let host = Host::with_box();
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    sleeper(&host, "lab", &["--cpu-period", "50000", "--cpu-quota", "20000", "--cpu-shares", "512", "--memory", "64m"]);
    let quota = file(&host, "lab", &["cpu.max", "cpu.cfs_quota_us"]);
    assert_eq!(quota, if v2 { "20000 50000" } else { "20000" });
    assert_eq!(file(&host, "lab", &["cpu.weight", "cpu.shares"]), if v2 { "59" } else { "512" });
    let run = |flags: &[&str]| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend(["box", "true"]);
        host.run(&args)
    };
    let only = if v2 { ["--memory-swappiness", "10"] } else { ["--memory-high", "16m"] };
    let answer = run(&only);
    assert!(answer.code == 125 && answer.err.contains("needs cgroup v"), "{}", answer.err);
    if v2 {
        sleeper(&host, "v2", &["--memory-high", "16m", "--memory-min", "1m", "--cgroup-conf", "memory.oom.group=1"]);
        assert_eq!(file(&host, "v2", &["memory.high"]), (16 << 20).to_string());
        assert_eq!(file(&host, "v2", &["memory.min"]), (1 << 20).to_string());
        assert_eq!(file(&host, "v2", &["memory.oom.group"]), "1");
        undelegated(&run);
    } else {
        sleeper(&host, "v1", &["--memory-swappiness", "10", "--cgroup-conf", "pids.max=9"]);
        assert_eq!(file(&host, "v1", &["memory.swappiness"]), "10");
        assert_eq!(file(&host, "v1", &["pids.max"]), "9");
    }
    for (flags, code, words) in [
        (&["--cpus", "1", "--cpu-quota", "5000"][..], 2, "contradict each other"),
        (&["--cpu-period", "5"], 2, "outside of 1000 to 1000000 microseconds"),
        (&["--cpu-shares", "1"], 2, "outside of 2 to 262144"),
        (&["--blkio-weight", "5"], 2, "outside of 10 to 1000"),
        (&["--device-read-bps", "/dev/null:1mb"], 2, "names no block device"),
        (&["--device-write-iops", "/dev/null"], 2, "is not `DEVICE:RATE`"),
        (&["--cgroup-conf", "cgroup.procs=1"], 2, "would change what the cgroup is"),
        (&["--cgroup-conf", "../x=1"], 2, "names no file of a cgroup"),
        (&["--cgroup-conf", "pids.nope=1"], 125, "the kernel has no `pids.nope`"),
        (&["--cgroup-parent", "/a/../b"], 2, "is not a plain path"),
    ] {
        let answer = run(flags);
        assert!(answer.code == code && answer.err.contains(words), "{flags:?}: {} {}", answer.code, answer.err);
        assert!(answer.err.contains("hint:"), "{flags:?}: {}", answer.err);
    }
}

/// A cgroup with a process in it cannot hand controllers down (cgroup-v2.rst, "No Internal Process Constraint"): said by name, with a way out.
fn undelegated(run: &dyn Fn(&[&str]) -> crate::host::Answer) {
    let name = format!("gpurun-e2e-busy-{}", std::process::id());
    let dir = std::path::Path::new("/sys/fs/cgroup").join(&name);
    std::fs::create_dir(&dir).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    let answer = run(&["--cgroup-parent", &name, "--memory", "64m"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(answer.code, 125, "{}", answer.err);
    assert!(answer.err.contains("the cgroup controller `memory` is not available in"), "{}", answer.err);
    assert!(
        answer.err.contains(&format!("hint: enable it: `echo +memory > {}/cgroup.subtree_control`", dir.display())),
        "{}",
        answer.err
    );
    eventually("the cgroup is free", 5, || std::fs::remove_dir(&dir).is_ok());
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
    // The next launch below it is told which limit really binds, and an OOM kill names the ancestor.
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
