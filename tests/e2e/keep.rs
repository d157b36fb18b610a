//! The files that a container has written stay until `rm`, and a damaged container does not affect others.

use std::os::unix::fs::PermissionsExt;

use crate::host::{self, Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("starts_that_fail_keep_the_files", failed_starts),
    ("restart_checks_before_it_stops", restart_checks),
    ("restart_looks_for_the_program_as_the_launch_does", restart_finds),
    ("a_container_without_its_record_keeps_its_files", lost_record),
    ("a_deep_tree_is_removed_and_ends_no_command", deep_tree),
    ("a_cleanup_that_fails_ends_no_other_command", stuck),
];

/// Files that a container has written, by its id.
fn kept(host: &Host, id: &str) -> String {
    std::fs::read_to_string(host.dir.join("root/containers").join(id).join("upper/kept")).unwrap_or_default()
}

fn failed_starts() {
    let host = Host::with_box();
    let source = host.dir.join("disk");
    let volume = format!("{}:/disk", source.display());
    let shell = |id: &str| host.dir.join("root/containers").join(id).join("upper/bin/sh").display().to_string();
    let holder = ["run", "-d", "--name", "holder", "-p", "8080:80", "box", "sleep", "1000"];
    // What is missing at the second start, and what brings it back.
    type Act<'a> = &'a dyn Fn(&str);
    let cases: [(&str, &[&str], Act<'_>, Act<'_>); 3] = [
        ("volume", &["--network", "none", "-v", &volume], &|_| std::fs::remove_dir(&source).unwrap(), &|_| {
            std::fs::create_dir(&source).unwrap()
        }),
        (
            "program",
            &["--network", "none"],
            // A character device 0:0 in the upper directory is a deleted file.
            &|id| drop(host::sh(&format!("mkdir -p $(dirname {0}); mknod {0} c 0 0", shell(id)))),
            &|id| std::fs::remove_file(shell(id)).unwrap(),
        ),
        ("port", &["-p", "8080:80"], &|_| drop(host.ok(&holder)), &|_| drop(host.ok(&["rm", "-f", "holder"]))),
    ];
    for (name, flags, take_away, bring_back) in cases {
        std::fs::create_dir_all(&source).unwrap();
        let command = ["box", "/bin/sh", "-c", "echo years of work > /kept"];
        host.ok(&[&["run", "--name", name][..], flags, &command].concat());
        let id = host.inspect(name)["Id"].as_str().unwrap().to_owned();
        let last_run = times(&host, name);
        take_away(&id);
        for attempt in 0..4 {
            let command = ["start", "restart"][attempt % 2];
            let answer = host.run(&[command, name]);
            assert_ne!(answer.code, 0, "{name} {command}");
            assert_eq!(kept(&host, &id), "years of work\n", "{name}, attempt {attempt}: {}", answer.err);
            assert!(host.ok(&["ps", "-a"]).contains(name));
            assert_eq!(times(&host, name), last_run, "{name}: when the last run was");
            assert!(!host.inspect(name)["State"]["Error"].is_null());
        }
        bring_back(&id);
        host.ok(&["start", "-a", name]);
        assert_eq!(host.inspect(name)["State"]["ExitCode"], 0);
        assert_eq!(host.leftovers(), "");
        host.ok(&["rm", name]);
        assert!(!host.dir.join("root/containers").join(&id).exists());
    }
    // A first launch that fails leaves nothing.
    host.fails(127, &["run", "--name", "never", "--network", "none", "box", "/no/such/program"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

fn times(host: &Host, name: &str) -> (String, String) {
    let state = &host.inspect(name)["State"];
    (state["StartedAt"].to_string(), state["FinishedAt"].to_string())
}

fn restart_checks() {
    let host = Host::with_box();
    let source = host.dir.join("disk");
    std::fs::create_dir(&source).unwrap();
    let hooks = host.dir.join("hooks");
    std::fs::create_dir(&hooks).unwrap();
    let volume = format!("{}:/disk", source.display());
    let hooks_flag = hooks.display().to_string();
    let up = ["run", "-d", "--name", "one", "--network", "none", "-v", &volume, "--hooks-dir", &hooks_flag, "box"];
    host.ok(&[&up[..], &["/bin/sh", "-c", "sleep 1000"]].concat());
    let pid = host.inspect("one")["State"]["Pid"].clone();
    let refused = |what: &str| {
        let error = host.fails(1, &["restart", "-t", "0", "one"]);
        assert!(error.contains("left running") && error.contains(what), "{error}");
        assert_eq!(host.inspect("one")["State"]["Pid"], pid, "{what}: it was stopped");
    };
    std::fs::rename(&source, host.dir.join("away")).unwrap();
    refused("disk");
    std::fs::rename(host.dir.join("away"), &source).unwrap();
    std::fs::remove_dir(&hooks).unwrap();
    refused("hooks");
    std::fs::create_dir(&hooks).unwrap();
    host.ok(&["exec", "one", "busybox", "mv", "/bin/sh", "/bin/away"]);
    refused("/bin/sh");
    host.ok(&["exec", "one", "busybox", "mv", "/bin/away", "/bin/sh"]);
    host.ok(&["restart", "-t", "0", "one"]);
    assert_ne!(host.inspect("one")["State"]["Pid"], pid);
}

fn restart_finds() {
    let host = Host::with_box();
    let run = |name: &str, flags: &[&str], command: &[&str]| {
        host.ok(&[&["run", "-d", "--name", name, "--network", "none"], flags, &["box"], command].concat());
    };
    let tools = "mkdir -p /tools; busybox cp /bin/busybox /tools/mine";
    let mine = |name: &str, path: &str| {
        host.ok(&["exec", name, "sh", "-c", &format!("{tools}; busybox cp /tools/mine {path}")]);
    };
    // The name, its flags, the command, and the file that the launch finds.
    let cases: [(&str, &[&str], &[&str], &str); 3] = [
        ("path", &[], &["sleep", "1000"], "/bin/sleep"),
        ("own-path", &["-e", "PATH=/nowhere:/bin"], &["sleep", "1000"], "/bin/sleep"),
        ("relative", &["-w", "/bin"], &["./sleep", "1000"], "/bin/sleep"),
    ];
    for (name, flags, command, file) in cases {
        run(name, flags, command);
        let pid = host.inspect(name)["State"]["Pid"].clone();
        let refused = |what: &str| {
            let error = host.fails(1, &["restart", "-t", "0", name]);
            assert!(error.contains("left running") && error.contains(what), "{name}: {error}");
            assert_eq!(host.inspect(name)["State"]["Pid"], pid, "{name}, {what}: it was stopped");
        };
        mine(name, "/bin/kept");
        host.ok(&["exec", name, "busybox", "rm", file]);
        refused(if name == "relative" { "no such file any more" } else { "PATH any more" });
        host.ok(&["exec", name, "busybox", "touch", file]);
        refused("not an executable file");
        // Somewhere else in the PATH is as good.
        if name == "own-path" {
            host.ok(&["exec", name, "sh", "-c", "mkdir /nowhere; busybox mv /bin/kept /nowhere/sleep"]);
        } else {
            host.ok(&["exec", name, "busybox", "mv", "/bin/kept", file]);
        }
        host.ok(&["restart", "-t", "0", name]);
        assert_ne!(host.inspect(name)["State"]["Pid"], pid);
        host.ok(&["rm", "-f", name]);
    }
}

fn lost_record() {
    let host = Host::with_box();
    for running in [false, true] {
        let script = format!("echo years of work > /kept; {}", if running { "sleep 1000" } else { "exit 0" });
        let id = host.ok(&["run", "-d", "--name", "one", "--network", "none", "box", "sh", "-c", &script]);
        eventually("it has written", || kept(&host, &id) == "years of work\n");
        let dir = host.dir.join("root/containers").join(&id);
        if running {
            // The host restarts, or something kills the supervisor.
            let pid = host.inspect("one")["State"]["Pid"].as_i64().unwrap();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let parent: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
            std::fs::remove_file(dir.join("record.json")).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGKILL).unwrap();
            eventually("it ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
        } else {
            eventually("it ends", || host.inspect("one")["State"]["Running"] == false);
            std::fs::remove_file(dir.join("record.json")).unwrap();
        }
        for command in
            [&["ps"][..], &["image", "prune", "--force"], &["run", "--rm", "--network", "none", "box", "true"]]
        {
            host.ok(command);
            assert_eq!(kept(&host, &id), "years of work\n", "{command:?}");
        }
        let listed = host.run(&["ps", "-a"]);
        assert!(listed.out.contains(&id[..12]) && listed.out.contains("Lost record"), "{}", listed.out);
        assert!(
            listed.err.contains("is lost") && listed.err.contains(&format!("gpurun rm -f {}", &id[..12])),
            "{}",
            listed.err
        );
        let doctor = host.run(&["doctor", "--json"]);
        let findings: serde_json::Value = serde_json::from_str(&doctor.out).unwrap();
        let finding = findings.as_array().unwrap().iter().find(|finding| finding["area"] == "containers").unwrap();
        assert!(finding["hint"].as_str().unwrap().contains("upper"), "{finding}");
        assert_eq!(doctor.code, 1);
        assert!(host.fails(1, &["start", &id]).contains("is lost"));
        assert_eq!(host.leftovers(), "");
        host.ok(&["rm", "-f", &id[..12]]);
        assert!(!dir.exists());
        assert_eq!(host.ok(&["ps", "-aq"]), "");
    }
    // A removal that is killed half-way is finished by the next command.
    let id = host.ok(&["run", "-d", "--network", "none", "box", "sh", "-c", "mkdir /a /b; echo x > /kept"]);
    eventually("it ends", || host.inspect(&id)["State"]["Running"] == false);
    let strace =
        ["strace", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat", "-e", "inject=unlinkat:signal=SIGKILL:when=1"];
    let _ = host.behind(&strace, &["rm", &id]).output().unwrap();
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert!(!host.dir.join("root/containers").join(&id).exists());
}

/// One unprivileged process makes directories deeper than gpurun may have descriptors, and than a path may be long.
fn deep_tree() {
    let host = Host::with_box();
    let nest = "cd /tmp; i=0; while [ $i -lt 2000 ]; do mkdir d || exit 1; cd d; i=$((i+1)); done";
    let limited = |args: &[&str]| {
        let output = host.behind(&["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh"], args).output().unwrap();
        host::answer(output)
    };
    let run = |rest: &[&str]| limited(&[&["run", "--network", "none", "-u", "12345"][..], rest].concat());
    let answer = run(&["--tmpfs", "/scratch", "--name", "kept", "box", "sh", "-c", nest]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    for flags in [&["--rm"][..], &["--rm", "--name", "again"]] {
        let answer = run(&[flags, &["box", "sh", "-c", nest]].concat());
        assert_eq!((answer.code, answer.err.as_str()), (0, ""));
        let answer = limited(&["ps", "-a"]);
        assert_eq!((answer.code, answer.err.as_str()), (0, ""));
        assert_eq!(answer.out.lines().count(), 2, "{}", answer.out);
    }
    let answer = limited(&["rm", "kept"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let left = std::fs::read_dir(host.dir.join("root/containers")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name.len() == 64).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(host.leftovers(), "");
}

fn stuck() {
    let host = Host::with_box();
    host.ok(&["run", "--name", "one", "--network", "none", "box", "touch", "/stuck"]);
    let id = host.inspect("one")["Id"].as_str().unwrap().to_owned();
    let file = host.dir.join("root/containers").join(&id).join("upper/stuck");
    host::sh(&format!("chattr +i {}", file.display()));
    let error = host.fails(1, &["rm", "one"]);
    assert!(error.contains("cannot remove"), "{error}");
    // Whatever is left of it is reported, and every other command works.
    for args in [&["ps", "-a"][..], &["run", "--rm", "--network", "none", "box", "true"], &["image", "ls"]] {
        let answer = host.run(args);
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        assert!(args[0] == "image" || answer.err.contains(&id[..12]), "{args:?}: {}", answer.err);
    }
    host::sh(&format!("chattr -i {}", file.display()));
    host.ok(&["ps"]);
    eventually("it is gone", || !file.exists());
    assert_eq!(std::fs::metadata(host.dir.join("root/containers")).unwrap().permissions().mode() & 0o777, 0o700);
}
