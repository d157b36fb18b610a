//! `--root` and `--run-dir`: one belongs to the other, wherever a command is started.

use std::path::Path;

use crate::host::{self, Host};

pub const TESTS: &[(&str, fn())] = &[
    ("another_run_directory_is_refused_while_containers_run", other_run_dir),
    ("directories_may_be_relative", relative),
    ("a_supervisor_that_cannot_begin_leaves_no_container", no_socket),
    ("directories_that_others_can_write_are_refused", untrusted),
];

fn up(host: &Host) -> serde_json::Value {
    host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
    host.inspect("one")["State"]["Pid"].clone()
}

fn other_run_dir() {
    let host = Host::with_box();
    let pid = up(&host);
    let run = host.dir.join("run");
    let other = host.dir.join("other").display().to_string();
    let alive = || {
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "the container was killed");
        assert_eq!(host.inspect("one")["State"]["Pid"], pid);
    };
    let image = ["image", "rm", "box"];
    for args in [&["ps", "-a"][..], &["run", "--rm", "--network", "none", "box", "true"], &["rm", "-f", "one"], &image]
    {
        let code = if args[0] == "run" { 125 } else { 1 };
        let error = host.fails(code, &[&["--run-dir", &other], args].concat());
        assert!(error.contains(&format!("`{}`", run.display())), "{args:?}: {error}");
        assert!(!Path::new(&other).exists(), "a refused command leaves nothing");
        alive();
    }
    // The hint works when pasted.
    let error = host.fails(1, &["--run-dir", &other, "ps"]);
    let hint = error.split("`gpurun ").nth(1).unwrap().split('`').next().unwrap();
    let snippets: Vec<&str> = hint.split(' ').collect();
    assert!(host.ok(&snippets).contains("one"), "{hint}");
    // The same path with another directory behind it: a mount namespace with its own /run.
    let script = format!("mount -t tmpfs -o mode=700 none {} && exec \"$@\"", run.display());
    for args in [&["ps", "-a"][..], &["stop", "one"]] {
        let output = host.behind(&["unshare", "--mount", "sh", "-c", &script, "sh"], args).output().unwrap();
        let answer = host::answer(output);
        assert_eq!(answer.code, 1, "{}", answer.err);
        assert!(
            answer.err.contains("another directory of that name") && answer.err.contains("nsenter"),
            "{}",
            answer.err
        );
        alive();
    }
    // Without running containers, the root may move.
    host.ok(&["stop", "-t", "0", "one"]);
    assert!(host.ok(&["--run-dir", &other, "ps", "-a"]).contains("one"));
    host.ok(&["--run-dir", &other, "start", "one"]);
    let error = host.fails(1, &["ps"]);
    assert!(error.contains(&other), "{error}");
    host.ok(&["--run-dir", &other, "rm", "-f", "one"]);
    host.ok(&["ps"]);
    // The image is mounted below the other one, too.
    host::sh(&format!("umount {other}/images/* 2>/dev/null || true"));
}

fn relative() {
    let host = Host::with_box();
    let name = format!("gpurun-relative-{}", std::process::id());
    host::sh(&format!("cd {} && ln -s root {name}-root", host.dir.display()));
    let (root, run) = (format!("{name}-root"), format!("{name}-run"));
    let flags = ["--root", &root, "--run-dir", &run];
    let gpurun = |args: &[&str]| host.ok(&[&flags[..], args].concat());
    assert_eq!(gpurun(&["run", "--rm", "--network", "none", "box", "echo", "fine"]), "fine");
    gpurun(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
    assert_eq!(gpurun(&["exec", "one", "echo", "fine"]), "fine");
    // By their absolute names, and by the environment, they are the same.
    let absolute = |name: &str| host.dir.join(name);
    for (root, run) in [(absolute(&root), absolute(&run)), (Path::new(".").join(&root), Path::new(".").join(&run))] {
        let output = host.command(&["ps"]).env("GPURUN_ROOT", root).env("GPURUN_RUN", run).output().unwrap();
        assert!(host::answer(output).out.contains("one"));
    }
    gpurun(&["rm", "-f", "one"]);
    host::sh(&format!("umount {}/images/* 2>/dev/null || true", absolute(&run).display()));
    for name in [root, run] {
        assert!(!Path::new("/").join(name).exists());
    }
    let error = host.fails(2, &["--root", "", "ps"]);
    assert!(error.contains("--root"), "{error}");
    assert_eq!(host.leftovers(), "");
}

fn no_socket() {
    let host = Host::with_box();
    for flags in [&["-d"][..], &["-d", "--rm"], &[]] {
        let args = [&["run", "--network", "none", "--name", "one"], flags, &["box", "true"]].concat();
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bind", "-e", "inject=bind:error=EACCES"];
        let answer = host::answer(host.behind(&strace, &args).output().unwrap());
        assert_eq!(answer.code, 125, "{flags:?}: {}", answer.err);
        assert!(answer.err.contains("control socket") && answer.err.contains("Permission denied"), "{}", answer.err);
        assert_eq!(host.ok(&["ps", "-aq"]), "", "{flags:?}");
        assert_eq!(host.leftovers(), "");
    }
    // A container that has run stays.
    host.ok(&["run", "--network", "none", "--name", "one", "box", "touch", "/kept"]);
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bind", "-e", "inject=bind:error=EACCES"];
    let answer = host::answer(host.behind(&strace, &["start", "one"]).output().unwrap());
    assert_eq!(answer.code, 1, "{}", answer.err);
    assert_eq!(host.ok(&["diff", "one"]), "A /kept");
}

fn untrusted() {
    let host = Host::with_box();
    up(&host);
    let (root, run) = (host.dir.join("root"), host.dir.join("run"));
    for (change, back, what) in
        [("chown 1000", "chown 0", "user 1000 owns it"), ("chmod 777", "chmod 700", "mode 0777")]
    {
        for (dir, flag) in [(&root, "--root"), (&run, "--run-dir")] {
            host::sh(&format!("{change} {}", dir.display()));
            for (code, args) in [(1, &["ps"][..]), (1, &["image", "ls"]), (125, &["run", "--rm", "box", "true"])] {
                let error = host.fails(code, args);
                assert!(error.contains(what) && error.contains(flag), "{error}");
            }
            host::sh(&format!("{back} {}", dir.display()));
        }
    }
    host.ok(&["rm", "-f", "one"]);
}
