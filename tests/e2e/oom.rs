//! Out of memory: what is reported, and where.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::host::{Answer, Host, answer, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("as_many_bytes_as_the_limit_before_the_kill", bytes),
    ("a_kill_is_told_in_the_terminal_the_log_ps_and_inspect", reported),
    ("a_kill_in_an_exec_is_told_to_everybody_and_the_container_lives", in_exec),
    ("without_the_kernels_log_the_counters_tell_whose_limit_it_was", no_log),
    ("the_way_out_works_when_pasted", way_out),
    (crate::NEEDS_SWAP, swap),
];

const HOG: [&str; 3] = ["box", "tail", "/dev/zero"];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--network", "none"], rest].concat()
}

/// Files of one MiB in /dev/shm are charged to the container: so many there are when the process that writes the next one is killed.
fn bytes() {
    let host = Host::with_box();
    let script =
        "n=0; while dd if=/dev/zero of=/dev/shm/$n bs=1M count=1 2>/dev/null; do n=$((n+1)); echo $n; done; sleep 0";
    let flags = ["--rm", "--memory", "32m", "--memory-swap", "32m", "--shm-size", "100m", "box", "sh", "-c", script];
    let answer = host.run(&run(&flags));
    let most: u64 = answer.out.lines().last().unwrap().parse().unwrap();
    // The shell, dd's buffer and the kernel's own pages take the rest.
    assert!((24..=32).contains(&most), "{most} MiB: {}", answer.err);
    assert!(answer.err.contains("the kernel killed `dd`"), "{}", answer.err);
    assert!(answer.err.contains("hint: start it with more: `--memory 64m --memory-swap 64m`"), "{}", answer.err);
}

fn reported() {
    let host = Host::with_box();
    let answer = host.run(&run(&[&["--name", "hog", "--memory", "32m", "--memory-swap", "32m"], &HOG[..]].concat()));
    assert_eq!(answer.code, 137, "{}", answer.err);
    for snippets in [
        "the kernel killed `tail` (pid ",
        " resident) for memory (OOM): the container's memory limit of 32 MiB was reached",
        "the container's memory until then: peak 3",
        "oom_kill 1",
    ] {
        assert!(answer.err.contains(snippets), "`{snippets}` is not in\n{}", answer.err);
    }
    assert!(host.run(&["logs", "hog"]).err.contains("the kernel killed `tail`"), "the log tells it, too");
    let state = &host.inspect("hog")["State"];
    assert_eq!((state["OOMKilled"].as_bool(), state["ExitCode"].as_u64()), (Some(true), Some(137)));
    let oom = &state["OOMs"][0];
    assert_eq!((oom["process"].as_str(), oom["limit"].as_u64()), (Some("tail"), Some(32 << 20)), "{oom}");
    assert!(oom["peak"].as_u64().unwrap() > 30 << 20 && oom["events"]["oom_kill"] == 1, "{oom}");
    assert!(oom["limit_file"].as_str().unwrap().starts_with("/sys/fs/cgroup/"), "{oom}");
    assert_eq!(state["Usage"]["memory_events"]["oom_kill"], 1);
    assert!(host.ok(&["ps", "-a"]).contains("Exited (137) OOMKilled"));
    // 137 by itself is no OOM.
    let answer =
        host.run(&run(&["--name", "killed", "--memory", "32m", "box", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]));
    assert!(answer.code == 137 && !answer.err.contains("OOM"), "{}", answer.err);
    assert_eq!(host.inspect("killed")["State"]["OOMKilled"], false);
    // Half of the limit fits.
    host.ok(&run(&["--rm", "--memory", "32m", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=16M", "count=1"]));
    assert_eq!(host.leftovers(), "");
}

/// As with a notebook's kernel: a process that was exec'ed is killed, and the container lives.
fn in_exec() {
    let host = Host::with_box();
    let flags = ["--name", "lab", "--memory", "32m", "--memory-swap", "32m", "box", "sh", "-c", "echo up; sleep 1000"];
    let mut foreground = host.command(&run(&flags)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(foreground.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "up\n");
    let answer = host.run(&["exec", "lab", "sh", "-c", "tail /dev/zero; exit $?"]);
    let snippets = "the kernel killed `tail` (pid ";
    assert!(answer.code == 137 && answer.err.contains(snippets), "{} {}", answer.code, answer.err);
    assert!(answer.err.contains("gpurun update lab --memory 64m"), "{}", answer.err);
    assert!(host.run(&["logs", "lab"]).err.contains(snippets));
    assert!(host.ok(&["ps"]).contains("a process was OOMKilled"));
    assert_eq!(host.inspect("lab")["State"]["Running"], true);
    // SIGKILL by other hands is no OOM, and said to be none.
    let answer = host.run(&["exec", "lab", "sh", "-c", "kill -9 $$"]);
    assert!(answer.code == 137 && !answer.err.contains("OOM"), "{} {}", answer.code, answer.err);
    host.ok(&["rm", "-f", "lab"]);
    let mut error = String::new();
    std::io::Read::read_to_string(foreground.stderr.as_mut().unwrap(), &mut error).unwrap();
    foreground.wait().unwrap();
    assert_eq!(error.matches(snippets).count(), 1, "the terminal was told, once: {error}");
}

/// A gpurun command on a host whose kernel's log is closed.
fn without_log(host: &Host, args: &[&str]) -> Answer {
    let closed = ["unshare", "-m", "sh", "-c", "mount --bind /dev/null /dev/kmsg && exec \"$@\"", "sh"];
    answer(host.behind(&closed, args).output().unwrap())
}

fn no_log() {
    let host = Host::with_box();
    let own =
        without_log(&host, &run(&[&["--name", "own", "--memory", "32m", "--memory-swap", "32m"], &HOG[..]].concat()));
    for snippets in [
        "the kernel killed a process of this container for memory (OOM): the container's memory limit of 32 MiB",
        "/dev/kmsg",
        "oom_kill 1",
    ] {
        assert!(own.code == 137 && own.err.contains(snippets), "`{snippets}` is not in\n{}", own.err);
    }
    assert_eq!(host.inspect("own")["State"]["OOMKilled"], true);
    let (parent, outer) = limited_parent("no-log", 24 << 20);
    let flags = ["--rm", "--memory", "256m", "--cgroup-parent", &parent];
    let above = without_log(&host, &run(&[&flags, &HOG[..]].concat()));
    let snippets = format!("the memory limit of 24 MiB of `{parent}`, above this container's cgroup, was reached");
    assert!(above.err.contains(&snippets), "{}", above.err);
    remove(&outer);
    let killed = without_log(&host, &run(&["--rm", "--memory", "32m", "box", "sh", "-c", "exit 137"]));
    assert!(killed.code == 137 && !killed.err.contains("OOM"), "{}", killed.err);
}

/// A cgroup with a memory limit, for `--cgroup-parent`: its path below the mount, and its directory.
fn limited_parent(name: &str, limit: u64) -> (String, std::path::PathBuf) {
    let path = format!("/gpurun-e2e-{name}-{}", std::process::id());
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let dir = std::path::PathBuf::from(if v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" }).join(&path[1..]);
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
    if v2 && !file.exists() {
        std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
    }
    std::fs::write(file, limit.to_string()).unwrap();
    if v2 {
        std::fs::write(dir.join("memory.swap.max"), "0").unwrap();
    }
    (path, dir)
}

fn remove(dir: &std::path::Path) {
    let name = dir.file_name().unwrap();
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(name));
    }
    eventually("the parent is gone", || !dir.exists() || std::fs::remove_dir(dir).is_ok());
}

fn way_out() {
    let host = Host::with_box();
    let hog = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null && echo fits";
    let flags = ["--name", "hog", "--memory", "24m", "--memory-swap", "24m", "box", "sh", "-c", hog];
    let answer = host.run(&run(&flags));
    let hint = answer.err.split_once("hint: give it more: `gpurun ").map(|(_, rest)| rest.split_once('`').unwrap().0);
    let snippets: Vec<&str> = hint.unwrap_or_else(|| panic!("no hint in {}", answer.err)).split(' ').collect();
    host.ok(&snippets);
    host.ok(&["start", "hog"]);
    assert_eq!(host.ok(&["wait", "hog"]), "0");
    assert!(host.ok(&["logs", "hog"]).contains("fits"));
    // Where an ancestor's limit was reached, the container's own is no help, and the ancestor's is named with its file.
    let (parent, outer) = limited_parent("way-out", 24 << 20);
    let flags = ["--rm", "--memory", "256m", "--cgroup-parent", &parent, "box", "sh", "-c", hog];
    let answer = host.run(&run(&flags));
    let reported =
        format!("`--memory 268435456` is more than the container can get: an ancestor is tighter: {}", outer.display());
    assert!(answer.err.contains(&reported), "{}", answer.err);
    let (_, rest) = answer.err.split_once("does: `").unwrap_or_else(|| panic!("no way out in {}", answer.err));
    crate::host::sh(rest.split_once('`').unwrap().0);
    assert_eq!(host.ok(&run(&flags)), "fits");
    remove(&outer);
}

/// What does not fit into memory goes to swap, and the process lives.
fn swap() {
    let host = Host::with_box();
    let fill = "dd if=/dev/urandom of=/dev/shm/x bs=1M count=48 2>/dev/null; md5sum /dev/shm/x; sleep 1000";
    let flags = [
        "-d",
        "--name",
        "lab",
        "--memory",
        "32m",
        "--memory-swap",
        "96m",
        "--shm-size",
        "64m",
        "box",
        "sh",
        "-c",
        fill,
    ];
    host.ok(&run(&flags));
    eventually("it has written it all and read it back", || host.ok(&["logs", "lab"]).contains("/dev/shm/x"));
    let stats: serde_json::Value = serde_json::from_str(&host.ok(&["stats", "--no-stream", "--json", "lab"])).unwrap();
    let (memory, swap) = (stats[0]["memory_current"].as_u64().unwrap(), stats[0]["swap_current"].as_u64().unwrap());
    assert!(memory <= 32 << 20 && swap >= 14 << 20, "memory {memory}, swap {swap}");
    assert_eq!(host.inspect("lab")["State"]["OOMKilled"], false);
    // The same without swap is killed.
    host.ok(&["rm", "-f", "lab"]);
    let none = [
        "--rm",
        "--memory",
        "32m",
        "--memory-swap",
        "32m",
        "--shm-size",
        "64m",
        "box",
        "sh",
        "-c",
        "dd if=/dev/urandom of=/dev/shm/x bs=1M count=48",
    ];
    assert!(host.run(&run(&none)).err.contains("the kernel killed `dd`"));
}
