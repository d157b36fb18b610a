//! Faults of the host: stopped supervisors, limits of the caller, rare errors of the kernel.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{self, Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_stopped_supervisor_is_continued_by_who_needs_it", stopped),
    ("the_callers_limit_of_file_sizes_is_its_own", file_sizes),
    ("no_errno_makes_a_command_panic", errnos),
    ("a_signal_that_ends_turns_the_restart_policy_off", signals),
    ("an_exec_killed_for_memory_does_not_mark_a_stopped_container", not_oom),
    ("removing_many_reads_each_record_a_few_times", many),
];

fn supervisor(host: &Host, name: &str) -> Pid {
    let pid = host.inspect(name)["State"]["Pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    Pid::from_raw(status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap())
}

fn stopped() {
    let host = Host::with_box();
    for args in [&["stop", "-t", "0", "one"][..], &["kill", "one"], &["rm", "-f", "one"], &["pause", "one"]] {
        host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
        let pid = supervisor(&host, "one");
        kill(pid, Signal::SIGSTOP).unwrap();
        let began = Instant::now();
        let answer = host.run(args);
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        assert!(answer.err.contains(&format!("(pid {pid}) was stopped; continuing it")), "{}", answer.err);
        assert!(began.elapsed() < Duration::from_secs(if host::slow() { 60 } else { 14 }), "{args:?}");
        host.ok(&["ps"]);
        let _ = host.run(&["rm", "-f", "one"]);
    }
    assert_eq!(host.leftovers(), "");
}

fn file_sizes() {
    let host = Host::with_box();
    for limit in ["-S -f 0", "-f 0", "-f 1"] {
        let script = format!("ulimit {limit}; exec \"$@\"");
        let args =
            ["run", "--rm", "--network", "none", "box", "sh", "-c", "dd if=/dev/zero of=/f bs=4k count=9; ls /f"];
        let answer = host::answer(host.behind(&["sh", "-c", &script, "sh"], &args).output().unwrap());
        // A hard limit can only be raised with CAP_SYS_RESOURCE; where a sandbox has taken that away, the error says what is wrong.
        if !limit.starts_with("-S") && answer.code == 125 {
            assert!(answer.err.contains("File too large") && answer.err.contains("ulimit -f"), "{}", answer.err);
            assert_eq!(host.ok(&["ps", "-aq"]), "");
            continue;
        }
        assert_eq!((answer.code, answer.out.trim()), (0, "/f"), "{limit}: {}", answer.err);
    }
    assert_eq!(host.leftovers(), "");
}

fn errnos() {
    let host = Host::with_box();
    host.ok(&["run", "--network", "none", "--name", "one", "box", "touch", "/f"]);
    let archive = host::box_archive().display().to_string();
    let commands: [&[&str]; 4] = [
        &["run", "--rm", "--network", "none", "box", "true"],
        &["image", "load", "--name", "again", &archive],
        &["commit", "one", "made"],
        &["image", "verify"],
    ];
    let faults = [
        "clone3:error=ENOMEM",
        "clone3:error=EPERM",
        "clone,clone3:error=EAGAIN",
        "flock:error=ENOLCK",
        // Only the unlocking of the first lock.
        "flock:error=ENOLCK:when=2",
        "fcntl:error=ENOLCK",
        "faccessat2:error=ENOSYS",
        "faccessat2:error=EPERM",
        "openat2:error=ENOSYS",
        "pidfd_open:error=EMFILE",
        "getrandom:error=EINTR:when=1",
    ];
    // All of them with `./run-tests --big`.
    let commands = if std::env::var_os("GPURUN_BIG").is_some() { &commands[..] } else { &commands[..2] };
    for fault in faults {
        for &command in commands {
            let inject = format!("inject={fault}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
            let answer = host::answer(host.behind(&strace, command).output().unwrap());
            let said = format!("{fault}, {command:?}: {} {}", answer.code, answer.err);
            assert!(answer.code != 101 && !answer.err.contains("panicked"), "{said}");
            // An error says why.
            let because = answer.err.contains("caused by: ") || answer.err.contains("os error");
            assert!(answer.code == 0 || because || answer.err.contains("hint: "), "{said}");
            assert_eq!(host.ok(&["ps", "-aq"]).lines().count(), 1, "{said}");
            assert_eq!(host.leftovers(), "", "{said}");
        }
    }
}

fn signals() {
    let host = Host::with_box();
    let up = |name: &str, more: &[&str], script: &str| {
        let args = ["run", "-d", "--network", "none", "--restart", "always", "--name", name];
        host.ok(&[&args[..], more, &["box", "sh", "-c", script]].concat());
        eventually("the traps are set", || host.ok(&["logs", name]).contains("ready"));
    };
    let ends = "trap 'exit 0' TERM USR1 HUP; echo ready; while true; do sleep 0.05; done";
    up("term", &[], ends);
    up("own", &["--stop-signal", "USR1"], ends);
    up("other", &[], ends);
    host.ok(&["kill", "-s", "TERM", "term"]);
    host.ok(&["kill", "-s", "USR1", "own"]);
    host.ok(&["kill", "-s", "HUP", "other"]);
    for name in ["term", "own"] {
        eventually(name, || host.inspect(name)["State"]["Status"] == "exited");
        assert_eq!(host.inspect(name)["RestartCount"], 0);
    }
    // A signal that only a program knows the meaning of changes nothing.
    eventually("it runs again", || host.inspect("other")["RestartCount"] == 1);
    host.ok(&["stop", "-t", "0", "other"]);
}

fn not_oom() {
    let host = Host::with_box();
    host.ok(&[
        "run",
        "-d",
        "--network",
        "none",
        "--memory",
        "32m",
        "--memory-swap",
        "32m",
        "--name",
        "one",
        "box",
        "sleep",
        "1000",
    ]);
    let answer = host.run(&["exec", "one", "sh", "-c", "tail /dev/zero; exit $?"]);
    assert_eq!(answer.code, 137, "{}", answer.err);
    eventually("it is seen", || host.ok(&["ps"]).contains("a process was OOMKilled"));
    host.ok(&["stop", "-t", "0", "one"]);
    let ps = host.ok(&["ps", "-a"]);
    assert!(ps.contains("Exited (137)") && !ps.contains("OOMKilled"), "{ps}");
    assert_eq!(host.inspect("one")["State"]["OOMKilled"], false);
}

fn many() {
    let host = Host::with_box();
    let names: Vec<String> = (0..9).map(|number| format!("c{number}")).collect();
    for name in &names {
        host.ok(&["run", "--network", "none", "--name", name, "box", "true"]);
    }
    let trace = host.dir.join("trace").display().to_string();
    let mut args = vec!["rm"];
    args.extend(names.iter().map(String::as_str));
    let strace = ["strace", "-f", "-qq", "-o", &trace, "-e", "trace=openat"];
    let answer = host::answer(host.behind(&strace, &args).output().unwrap());
    assert_eq!((answer.code, answer.out.lines().count()), (0, 9), "{}", answer.err);
    let reads = std::fs::read_to_string(trace).unwrap().lines().filter(|line| line.contains("record.json")).count();
    assert!(reads <= 4 * names.len(), "{reads}");
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}
