//! Living with containers: ps, exec, logs, start, stop, kill, rm, wait, attach, restart policies, terminals.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::host::{self, Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_detached_container_lives_and_is_stopped", detached),
    ("names_and_prefixes", names),
    ("exec_is_like_init", exec),
    ("logs_and_follow", logs),
    ("start_again_keeps_the_files", start_again),
    ("a_restart_is_not_left_half_done", interrupted_restart),
    ("restart_policies", restart_policies),
    ("wait_and_kill", wait_and_kill),
    ("stop_signal_and_patience", stop_signal),
    ("attach_passes_input_and_exit_code", attach),
    ("a_terminal_has_size_and_detach_keys", terminal),
    ("removing_a_running_container_needs_force", rm_running),
    ("nobody_reads_what_it_says", deaf),
    ("an_unreadable_record_is_removed_by_its_id", unreadable),
    ("a_full_disk_stands_in_nobodys_way", full_disk),
];

fn up(host: &Host, name: &str, rest: &[&str]) {
    let mut args = vec!["run", "-d", "--network", "none", "--name", name];
    args.extend(rest);
    host.ok(&args);
}

fn detached() {
    let host = Host::with_box();
    let id = host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
    assert_eq!(id.len(), 64);
    let ps = host.ok(&["ps"]);
    assert!(ps.contains("one") && ps.contains("Up") && ps.contains("sleep 1000"), "{ps}");
    let state = &host.inspect("one")["State"];
    assert_eq!(state["Running"], true);
    // sleep is pid 1 and has no handler: SIGTERM does nothing, patience decides.
    host.ok(&["stop", "-t", "0", "one"]);
    assert_eq!(host.ok(&["ps", "-q"]), "");
    let state = host.inspect("one")["State"].clone();
    assert_eq!((state["Status"].as_str(), state["ExitCode"].as_u64()), (Some("exited"), Some(137)));
    assert_eq!(state["OOMKilled"], false, "137 alone is not OOM");
    assert_eq!(host.leftovers(), "");
}

/// Ctrl-c while a restart waits for the end of the container takes effect after the start.
fn interrupted_restart() {
    let host = Host::with_box();
    for name in ["one", "two"] {
        // sleep is pid 1 and ignores SIGTERM.
        up(&host, name, &["--stop-timeout", "3", "box", "sleep", "1000"]);
    }
    let pid = |name: &str| host.inspect(name)["State"]["Pid"].clone();
    let before = (pid("one"), pid("two"));
    let mut command = host.command(&["restart", "one", "two"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    eventually("the signals are taken", || {
        let text = std::fs::read_to_string(&status).unwrap();
        let blocked = text.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        u64::from_str_radix(blocked, 16).unwrap() & 2 != 0
    });
    let id = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let answer = host::answer(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.out.trim()), (130, "one"), "{}", answer.err);
    assert!(answer.err.contains("container `two` is not restarted: the command was interrupted"), "{}", answer.err);
    assert!(host.inspect("one")["State"]["Running"] == true && pid("one") != before.0);
    assert_eq!(pid("two"), before.1);
    host.ok(&["rm", "-f", "one", "two"]);
    // A terminal for the keys is needed before anything starts.
    host.ok(&["create", "-it", "--name", "keys", "--network", "none", "box", "sh"]);
    assert!(host.fails(1, &["start", "-ai", "keys"]).contains("`-t` needs a terminal"));
    assert_eq!(host.inspect("keys")["State"]["Status"], "created");
    // What cannot be written is named where it was to be written.
    let full = host.dir.join("full");
    std::fs::create_dir(&full).unwrap();
    host::sh(&format!("mount -t tmpfs -o size=4k none {}", full.display()));
    let error = host.fails(1, &["cp", "keys:/bin", &full.display().to_string()]);
    host::sh(&format!("umount {}", full.display()));
    let message = format!("cannot copy to `{}`\n  caused by: cannot ", full.display());
    assert!(error.contains(&message) && error.contains("`bin/"), "{error}");
    assert!(error.contains("hint: free some space on its disk"), "{error}");
    host.ok(&["rm", "keys"]);
    assert_eq!(host.leftovers(), "");
}

/// The disk below `--root` is full (a container's own log can fill it): a container that has ended is shown as ended, with its exit code, and
/// the commands that free space work.
fn full_disk() {
    let host = Host::new();
    let root = host.dir.join("root");
    std::fs::create_dir_all(&root).unwrap();
    host::sh(&format!("mount -t tmpfs -o size=24m,mode=700 none {}", root.display()));
    // All but the disk itself.
    let left = || -> String {
        let all = host.leftovers();
        all.lines().filter(|line| !line.contains(&format!(" {} ", root.display()))).collect()
    };
    let archive = host.dir.join("box.tar");
    std::fs::copy(host::box_archive(), &archive).unwrap();
    host.ok(&["image", "load", archive.to_str().unwrap()]);
    up(&host, "live", &["--memory", "64m", "box", "sleep", "1000"]);
    up(&host, "brief", &["box", "sh", "-c", "until [ -e /dev/shm/go ]; do sleep 0.1; done; exit 3"]);
    let ballast = root.join("ballast");
    host::sh(&format!("dd if=/dev/zero of={} bs=4k 2>/dev/null || true", ballast.display()));
    host.ok(&["exec", "brief", "touch", "/dev/shm/go"]);
    eventually("its end is told", || host.ok(&["ps", "-a"]).contains("Exited (3)"));
    // All or nothing: a limit that cannot be written down does not hold either.
    let said = host.fails(1, &["update", "live", "--memory", "96m"]);
    assert!(said.contains("record.json") && said.contains("the disk is full"), "{said}");
    let files = ["memory.max", "memory.limit_in_bytes"];
    assert_eq!(crate::change::file(&host, "live", &files), "67108864");
    let said = host.fails(125, &["run", "--rm", "--network", "none", "box", "true"]);
    assert!(said.contains("No space left") && said.contains("the disk is full"), "{said}");
    host.ok(&["kill", "live"]);
    eventually("the other's too", || host.ok(&["ps", "-a"]).contains("Exited (137)"));
    host.ok(&["rm", "brief"]);
    // When there is space again, the next command writes everything.
    std::fs::remove_file(&ballast).unwrap();
    assert!(host.ok(&["ps", "-a"]).contains("Exited (137)"));
    assert_eq!(left(), "");
    host.ok(&["start", "live"]);
    assert_eq!(host.inspect("live")["State"]["Running"], true);
    host.ok(&["rm", "-f", "live"]);
    assert_eq!(left(), "");
}

fn deaf() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sh", "-c", "echo a; echo b; sleep 1000"]);
    std::fs::write(host.dir.join("Containerfile"), "FROM box\nRUN echo built\n").unwrap();
    eventually("both lines are there", || host.ok(&["logs", "one"]).contains('b'));
    // What would go to standard error is lost, and nothing else is: no status 101, which a panic has.
    let cases: &[(i32, &[&str])] = &[
        (0, &["--verbose", "run", "--rm", "--network", "none", "--memory", "32m", "box", "true"]),
        (0, &["--verbose", "update", "--memory", "64m", "one"]),
        (0, &["cp", "one:/etc/passwd", "copy"]),
        (0, &["build", "-t", "made", "--network", "none", "."]),
        (1, &["rm", "one"]),
        (1, &["stop", "nobody"]),
        (125, &["run", "--no-such-flag"]),
    ];
    for (code, args) in cases {
        let output = host.command(args).stderr(host::deaf()).env("GPURUN_LOG", "debug").output().unwrap();
        assert_eq!(output.status.code(), Some(*code), "{args:?}");
    }
    assert_eq!(host.inspect("one")["State"]["Running"], true);
    assert!(host.ok(&["image", "ls"]).contains("made"));
    // Data: a reader that went away is none the worse for it, a disk that is full is an error.
    // A log is cut short without its reader: it ends as docker's does, and one that is followed does so before anything more is written.
    for (code, args) in [
        (0, &["ps"][..]),
        (0, &["inspect", "one"]),
        (0, &["--help"]),
        (141, &["logs", "one"]),
        (141, &["logs", "-f", "one"]),
        (141, &["logs", "-f", "-n", "0", "one"]),
    ] {
        let output = host.command(args).stdout(host::deaf()).output().unwrap();
        let reported = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*reported), (Some(code), ""), "{args:?}");
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let answer = host::answer(host.command(&["ps"]).stdout(full).output().unwrap());
    assert_eq!(answer.code, 1, "{}", answer.err);
    assert!(answer.err.contains("cannot write to standard output"), "{}", answer.err);
    host.ok(&["rm", "-f", "one"]);
    assert_eq!(host.leftovers(), "");
}

fn names() {
    let host = Host::with_box();
    up(&host, "alpha", &["box", "sleep", "1000"]);
    up(&host, "alpine", &["box", "sleep", "1000"]);
    let error = host.fails(125, &["run", "-d", "--name", "alpha", "--network", "none", "box", "true"]);
    assert!(error.contains("`alpha` is taken"), "{error}");
    let error = host.fails(1, &["stop", "-t", "0", "al"]);
    assert!(error.contains("alpha") && error.contains("alpine"), "{error}");
    host.ok(&["rename", "alpine", "beta"]);
    for command in ["stop", "kill", "restart", "rm", "pause", "update"] {
        let flags: &[&str] = if command == "update" { &["--cpus", "1"] } else { &[] };
        let error = host.fails(1, &[&[command], flags, &["be"]].concat());
        assert!(error.contains("no container `be`") && error.contains("give the whole name, `beta`"), "{error}");
    }
    assert!(host.fails(1, &["rename", "be", "gamma"]).contains("whole name, `beta`"));
    assert_eq!(host.ok(&["exec", "be", "echo", "up"]), "up", "to look, the beginning of a name is enough");
    // The beginning of one container's ID and of another one's name.
    let id = host.inspect("beta")["Id"].as_str().unwrap().to_owned();
    host.ok(&["rename", "alpha", &format!("{}x", &id[..4])]);
    for args in [&["stop", &id[..4]][..], &["rm", "-f", &id[..4]], &["logs", &id[..4]]] {
        let error = host.fails(1, args);
        assert!(error.contains(&format!("beta ({})", &id[..12])) && error.contains("beginning of 2"), "{error}");
    }
    host.ok(&["rename", &format!("{}x", &id[..4]), "alpha"]);
    host.ok(&["stop", "-t", "0", "beta"]);
    let id = host.inspect("alpha")["Id"].as_str().unwrap().to_owned();
    host.ok(&["stop", "-t", "0", &id[..6]]);
    let error = host.fails(1, &["stop", "nobody"]);
    assert!(error.contains("there is no container `nobody`") && error.contains("hint:"), "{error}");
    host.ok(&["rm", "alpha", "beta"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

fn exec() {
    let host = Host::with_box();
    up(&host, "one", &["-e", "A=1", "-u", "ann", "-w", "/tmp", "--memory", "64m", "box", "sleep", "1000"]);
    let status = |who: &str| {
        let keys = "CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp:|Uid|Gid|Groups|SigIgn|SigBlk";
        host.ok(&["exec", "one", "grep", "-E", keys, &format!("/proc/{who}/status")])
    };
    assert_eq!(status("1"), status("self"), "an exec'ed process is held like pid 1");
    assert!(status("self").contains("Seccomp:\t2"));
    assert_eq!(
        host.ok(&["exec", "one", "cat", "/proc/1/cgroup"]),
        host.ok(&["exec", "one", "cat", "/proc/self/cgroup"])
    );
    assert_eq!(host.ok(&["exec", "-e", "B=2", "one", "sh", "-c", "echo $A $B $(pwd) $(id -u)"]), "1 2 /tmp 1000");
    assert_eq!(host.ok(&["exec", "-u", "0", "-w", "/", "one", "sh", "-c", "echo $(pwd) $(id -u)"]), "/ 0");
    host.fails(7, &["exec", "one", "sh", "-c", "exit 7"]);
    host.fails(127, &["exec", "one", "no-such-command"]);
    host.fails(126, &["exec", "one", "/etc/passwd"]);
    assert_eq!(host.with_input(&["exec", "-i", "one", "cat"], b"typed").out, "typed");
    host.ok(&["exec", "-d", "one", "sh", "-c", "echo done > /tmp/done"]);
    eventually("the detached process writes", || host.run(&["exec", "one", "cat", "/tmp/done"]).out == "done\n");
    host.ok(&["stop", "-t", "0", "one"]);
    let error = host.fails(1, &["exec", "one", "true"]);
    assert!(error.contains("is not running"), "{error}");
}

fn logs() {
    let host = Host::with_box();
    up(
        &host,
        "one",
        &["box", "sh", "-c", "echo first; echo oops >&2; while ! test -e /tmp/go; do sleep 0.05; done; echo last"],
    );
    eventually("both lines are there", || {
        let answer = host.run(&["logs", "one"]);
        (answer.out.as_str(), answer.err.as_str()) == ("first\n", "oops\n")
    });
    let mut follower = host.command(&["logs", "-f", "one"]);
    let follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    host.ok(&["exec", "one", "touch", "/tmp/go"]);
    // A follower sees all of it and ends with the container.
    let followed = host::answer(follower.wait_with_output().unwrap());
    for answer in [followed, host.run(&["logs", "one"])] {
        assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "first\nlast\n", "oops\n"));
    }
    assert_eq!(host.ok(&["logs", "-n", "1", "one"]), "last");
    let stamped = host.ok(&["logs", "-t", "-n", "1", "one"]);
    assert!(stamped.ends_with("Z last") && stamped.starts_with("20"), "{stamped}");
}

fn start_again() {
    let host = Host::with_box();
    host.ok(&["run", "--name", "one", "--network", "none", "box", "sh", "-c", "echo x >> /count; wc -l < /count"]);
    assert_eq!(host.ok(&["start", "-a", "one"]), "2");
    host.ok(&["start", "one"]);
    host.ok(&["wait", "one"]);
    assert_eq!(host.ok(&["logs", "one"]), "1\n2\n3");
    host.ok(&["restart", "one"]);
    host.ok(&["wait", "one"]);
    assert_eq!(host.ok(&["logs", "-n", "1", "one"]), "4");
    host.ok(&["rm", "one"]);
}

fn restart_policies() {
    let host = Host::with_box();
    up(&host, "fails", &["--restart", "on-failure:2", "box", "sh", "-c", "echo try; exit 3"]);
    eventually("two restarts are over", || host.inspect("fails")["State"]["Status"] == "exited");
    let seen = host.inspect("fails");
    assert_eq!((seen["RestartCount"].as_u64(), seen["State"]["ExitCode"].as_u64()), (Some(2), Some(3)));
    assert_eq!(host.ok(&["logs", "fails"]), "try\ntry\ntry");
    up(&host, "always", &["--restart", "always", "box", "sh", "-c", "echo run; sleep 0.05"]);
    eventually("it ran three times", || host.ok(&["logs", "always"]).lines().count() >= 3);
    host.ok(&["stop", "always"]);
    assert_eq!(host.inspect("always")["State"]["Status"], "exited", "a stop is stronger than the policy");
    host.ok(&["run", "--network", "none", "--name", "good", "--restart", "on-failure", "box", "true"]);
    assert_eq!(host.inspect("good")["RestartCount"], 0);
    assert_eq!(host.leftovers(), "");
}

fn wait_and_kill() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sh", "-c", "trap 'exit 9' USR1; echo ready; while true; do sleep 0.05; done"]);
    eventually("the trap is set", || host.ok(&["logs", "one"]).contains("ready"));
    let waiting = host.command(&["wait", "one"]).stdout(Stdio::piped()).spawn().unwrap();
    host.ok(&["kill", "-s", "USR1", "one"]);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "9\n");
    assert_eq!(host.ok(&["wait", "one"]), "9", "one that has ended answers at once");
    let error = host.fails(1, &["kill", "one"]);
    assert!(error.contains("is not running"), "{error}");
}

fn stop_signal() {
    let host = Host::with_box();
    up(
        &host,
        "one",
        &["--stop-signal", "INT", "box", "sh", "-c", "trap 'exit 33' INT; echo ready; while true; do sleep 0.05; done"],
    );
    eventually("the trap is set", || host.ok(&["logs", "one"]).contains("ready"));
    host.ok(&["stop", "one"]);
    assert_eq!(host.inspect("one")["State"]["ExitCode"], 33);
}

fn attach() {
    let host = Host::with_box();
    up(&host, "one", &["-i", "box", "sh", "-c", "read line; echo got $line; exit 5"]);
    let answer = host.with_input(&["attach", "one"], b"hello\n");
    assert_eq!((answer.code, answer.out.as_str()), (5, "got hello\n"), "{}", answer.err);
}

fn terminal() {
    let host = Host::with_box();
    let (mut master, slave) = pty(33, 101);
    let child = |args: &[&str]| {
        let mut command = host.command(args);
        let stream = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        command.spawn().unwrap()
    };
    let mut run = child(&["run", "-it", "--name", "one", "--network", "none", "box", "sh"]);
    let mut seen = String::new();
    let mut read_until = |master: &mut std::fs::File, what: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(what) {
            let count = master.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        std::mem::take(&mut seen)
    };
    read_until(&mut master, "# ");
    master.write_all(b"stty size; tty\n").unwrap();
    let text = read_until(&mut master, "/dev/");
    assert!(text.contains("33 101"), "{text}");
    master.write_all(b"\x10\x11").unwrap();
    read_until(&mut master, "left running");
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert!(host.ok(&["ps"]).contains("Up"), "the keys leave it running");
    let mut attach = child(&["attach", "one"]);
    master.write_all(b"echo b$((40+2))\n").unwrap();
    read_until(&mut master, "b42");
    let mut exec = child(&["exec", "-it", "one", "sh", "-c", "stty size; exit 6"]);
    read_until(&mut master, "33 101");
    assert_eq!(exec.wait().unwrap().code(), Some(6));
    master.write_all(b"exit 4\n").unwrap();
    assert_eq!(attach.wait().unwrap().code(), Some(4));
}

fn pty(rows: u16, columns: u16) -> (std::fs::File, std::fs::File) {
    let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    (pty.master.into(), pty.slave.into())
}

fn rm_running() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    let error = host.fails(1, &["rm", "one"]);
    assert!(error.contains("is running") && error.contains("rm -f"), "{error}");
    host.ok(&["rm", "-f", "one"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert_eq!(host.leftovers(), "");
}

/// Changes a container's record behind gpurun's back, as a flipped bit does: a limit is another one, and still a limit.
fn damage(host: &Host, id: &str) {
    let path = host.dir.join("root/containers").join(id).join("record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let damaged = text.replacen("\"64m\"", "\"44m\"", 1);
    assert_ne!(text, damaged);
    std::fs::write(path, damaged).unwrap();
}

/// Every cgroup of that name, wherever it lies. (Those of other tests come and go meanwhile, which `find` takes for a failure.)
fn all_cgroups(id: &str) -> String {
    host::sh(&format!("find /sys/fs/cgroup -type d -name {id} 2>/dev/null || true"))
}

fn unreadable() {
    let host = Host::with_box();
    // Not below the test's own cgroup: a parent that only the record knows.
    let parent = format!("/gpurun-e2e-record-{}", std::process::id());
    let up = |name: &str, port: &str| {
        let args = [
            "--memory",
            "64m",
            "--cgroup-parent",
            &parent,
            "-p",
            port,
            "box",
            "sh",
            "-c",
            "echo x > /kept; sleep 1000",
        ];
        host.ok(&[&["run", "-d", "--name", name][..], &args].concat())
    };
    let (running, killed, rested, other) =
        (up("running", "8081:80"), up("killed", "8082:80"), up("rested", "8083:80"), up("other", "8084:80"));
    host.ok(&["stop", "-t", "0", "rested"]);
    let supervisor = |name: &str| {
        let pid = host.inspect(name)["State"]["Pid"].as_i64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse::<i32>().unwrap()
    };
    let pid = supervisor("killed");
    for id in [&running, &killed, &rested] {
        damage(&host, id);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the supervisor is dead", || !std::path::Path::new(&format!("/proc/{pid}/exe")).exists());

    // All are listed, with what is known. Commands for other containers work.
    let rows: serde_json::Value = serde_json::from_str(&host.ok(&["ps", "-a", "--json"])).unwrap();
    let row = |id: &str| rows.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    assert_eq!(
        (&row(&running)["status"], &row(&running)["name"]),
        (&"Up (unreadable record)".into(), &"running?".into())
    );
    for id in [&killed, &rested] {
        assert_eq!((&row(id)["status"], &row(id)["phase"]), (&"Unreadable record".into(), &serde_json::Value::Null));
    }
    let table = host.ok(&["ps", "-a"]);
    assert!(table.contains(&killed[..12]) && table.contains("Unreadable record"), "{table}");
    assert!(host.ok(&["ps", "-q"]).contains(&running[..12]) && !host.ok(&["ps", "-q"]).contains(&rested[..12]));
    assert_eq!(host.ok(&["exec", "other", "cat", "/kept"]), "x");
    assert_eq!(all_cgroups(&killed), "", "the dead one's went with the next command, below whatever parent");
    assert!(!all_cgroups(&running).is_empty());

    // The hint removes the container by its ID alone.
    for snippets in
        [&["rm", &killed[..8]][..], &["start", &killed[..12]], &["stop", &running], &["inspect", &rested[..12]]]
    {
        let answer = host.run(snippets);
        let id = [&running, &killed, &rested].into_iter().find(|id| id.starts_with(snippets[1])).unwrap();
        let hint = format!("`gpurun rm -f {}` removes the container", &id[..12]);
        assert!(
            answer.code == 1 && answer.err.contains("does not match the digest") && answer.err.contains(&hint),
            "{}",
            answer.err
        );
    }
    let missing = host.run(&["rm", "-f", "killed"]);
    assert_eq!(missing.code, 0, "{}", missing.err);
    assert!(missing.err.contains("no container `killed`") && missing.err.contains("rm -f"), "{}", missing.err);
    assert_eq!(
        std::fs::read_to_string(host.dir.join("root/containers").join(&killed).join("upper/kept")).unwrap(),
        "x\n"
    );

    // Its name is free meanwhile; when the record comes back there are two of that name.
    let second = host.ok(&["run", "-d", "--name", "rested", "--network", "none", "box", "true"]);
    let path = host.dir.join("root/containers").join(&rested).join("record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"44m\"", "\"64m\"", 1)).unwrap();
    let error = host.fails(1, &["start", "rested"]);
    assert!(error.contains("the name `rested` belongs to 2 containers") && error.contains("give the ID"), "{error}");
    assert!(error.contains(&rested[..12]) && error.contains(&second[..12]), "{error}");
    host.ok(&["rename", &second[..12], "second"]);
    assert_eq!(host.inspect("rested")["Id"], rested.as_str());
    damage(&host, &rested);

    // A state that cannot be read does not end a list either, whether or not it is written again (that of a running
    // container is, when something changes).
    for id in [&second, &other] {
        std::fs::write(host.dir.join("root/containers").join(id).join("state.json"), "{").unwrap();
    }
    assert!(host.ok(&["ps", "-a"]).contains("Exited (255)"));
    assert!(host.ok(&["ps"]).contains(&other[..12]));
    assert!(host.ok(&["stats", "--no-stream"]).contains(&other[..12]));
    assert!(host.inspect("second")["State"]["Error"]["message"].as_str().unwrap().contains("not known any more"));

    host.ok(&["rm", "-f", &running[..12], &killed[..12], &rested]);
    for id in [&running, &killed, &rested] {
        assert_eq!(all_cgroups(id), "");
        assert!(!host.dir.join("root/containers").join(id).exists() && !host.dir.join("run").join(id).exists());
        assert!(!host.dir.join("run/net").join(format!("{id}.json")).exists());
    }
    host.ok(&["rm", "-f", "second"]);
    assert_eq!(host.ok(&["ps", "-aq", "--no-trunc"]), other);
    host.ok(&["rm", "-f", "other"]);
    assert_eq!(host.leftovers(), "");
    host::sh(&format!("find /sys/fs/cgroup -depth -type d -name {} -exec rmdir {{}} +", &parent[1..]));
}
