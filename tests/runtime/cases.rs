//! Hooks, the tie to the supervisor, our own init, the sealed executable.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use gpurun::testing::sys::{exe, process};
use serde_json::json;

use crate::fixture::{Fixture, piped, wait};

pub const CASES: &[(&str, fn())] = &[
    ("hooks: stages in order, with their own environment and the state", hook_order),
    ("supervisor: killed, it takes the container along, created or running", supervisor_dies),
    ("init: passes on the status, a signal, and reaps orphans", init_program),
    ("init: alone, it waits for SIGTERM", init_alone),
    ("init: 126 and 127", init_words),
    ("exe: nobody can write to a sealed executable", sealed),
    ("exe: is this process sealed?", sealed_child),
    ("supervisor: makes a container and is killed", supervisor),
];

fn hook_order() {
    let mut fixture = Fixture::new(&["/bin/true"]);
    let log = fixture.dir.path().join("log");
    // Stages inside the container's namespaces, before its root is entered, still see the host's files.
    let hook = |stage: &str| {
        let script =
            format!("cat > /dev/null; echo {stage} ${{MARK}} ${{CARGO_MANIFEST_DIR-unset}} >> {}", log.display());
        json!([{ "path": "/bin/busybox", "args": ["sh", "-c", script], "env": [format!("MARK=mark-{stage}")] }])
    };
    let state = json!({ "path": "/bin/busybox", "args": ["sh", "-c", format!("cat > {}.state", log.display())] });
    let mut hooks = json!({});
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[stage] = hook(stage);
    }
    hooks["createRuntime"].as_array_mut().unwrap().push(state);
    hooks["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo startContainer > /tmp/started"] }]);
    fixture.spec["hooks"] = hooks;
    let (mut created, _output) = fixture.create();
    let lines = || std::fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let line = |stage: &str| format!("{stage} mark-{stage} unset");
    let mut expected = vec![line("prestart"), line("createRuntime"), line("createContainer")];
    assert_eq!(lines(), expected, "before the start");
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{}.state", log.display())).unwrap()).unwrap();
    assert_eq!(state["pid"], created.pid);
    assert_eq!(state["id"], fixture.id.as_str());
    assert!(!fixture.root().join("tmp/started").exists());
    created.start().unwrap();
    expected.push(line("poststart"));
    assert_eq!(lines(), expected);
    assert!(fixture.root().join("tmp/started").exists());
    wait(created.pid);
    fixture.delete(created);
    expected.push(line("poststop"));
    assert_eq!(lines(), expected);
    fixture.assert_gone();
}

/// The case below in a process of its own, which tells the container's pid and is then killed.
fn supervisor_dies() {
    for start in ["created", "running"] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--case", "supervisor: makes a container and is killed"]).env("SUPERVISOR", start);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let (pid, dir) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{start}: `{line}`"));
        let pidfd = process::open_pidfd(pid.parse().unwrap()).unwrap();
        assert!(!process::wait_pidfd(&pidfd, Duration::ZERO), "{start}: alive before");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process::wait_pidfd(&pidfd, Duration::from_secs(60)), "{start}: outlives its supervisor");
        let name = std::path::Path::new(dir).file_name().unwrap().to_string_lossy().into_owned();
        std::fs::remove_dir_all(dir).unwrap();
        let mut left = Fixture::new(&["/bin/true"]);
        left.id = name;
        drop(left);
    }
}

/// Only of use to the case above; by itself it has nothing to show.
fn supervisor() {
    let Ok(start) = std::env::var("SUPERVISOR") else { return };
    let mut fixture = Fixture::sleeper();
    fixture.user(1000);
    let (mut created, _output) = fixture.create();
    if start == "running" {
        created.start().unwrap();
    }
    println!("{} {}", created.pid, fixture.dir.path().display());
    loop {
        nix::unistd::pause();
    }
}

fn init_program() {
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 128 + 9)] {
        let fixture = Fixture::new(&["/bin/init", "sh", "-c", script]);
        fixture.install_init();
        assert_eq!(fixture.run().0, code, "{script}");
    }
    let fixture = Fixture::new(&[
        "/bin/init",
        "sh",
        "-c",
        "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done",
    ]);
    fixture.install_init();
    let (mut created, mut output) = fixture.create();
    created.start().unwrap();
    assert_eq!(output.line(), "ready");
    created.signal(libc::SIGTERM).unwrap();
    assert_eq!(output.line(), "term");
    assert_eq!(wait(created.pid), 5);
    fixture.delete(created);
    // An orphan is reaped: the shell in the middle ends at once, its child becomes pid 1's and then ends, too.
    let orphan = "(sh -c 'read x' < /dev/null & ) ; i=0; while [ $i -lt 500 ]; do \
        [ $(ls -d /proc/[0-9]* | grep -c .) -le 3 ] && exit 0; sleep 0.01; i=$((i+1)); done; ps; exit 1";
    let fixture = Fixture::new(&["/bin/init", "sh", "-c", orphan]);
    fixture.install_init();
    let (code, text) = fixture.run();
    assert!(code == 0 || !text.contains('Z'), "{text}");
}

fn init_alone() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let fixture = Fixture::new(&["/bin/init"]);
        fixture.install_init();
        let created = fixture.started();
        created.signal(libc::SIGUSR1).unwrap();
        assert!(!process::wait_pidfd(&created.pidfd, Duration::from_millis(50)), "only these two signals end it");
        created.signal(signal).unwrap();
        assert_eq!(wait(created.pid), code);
        fixture.delete(created);
    }
}

fn init_words() {
    for (program, code) in [("nothing", 127), ("/bin/nothing", 127), ("plain", 126)] {
        let mut fixture = Fixture::new(&["/bin/init", program]);
        fixture.install_init();
        fixture.file("bin/plain", 0o644, b"text");
        fixture.check = Some(program.to_owned());
        let (stdio, _output) = piped();
        let report = fixture.try_create(stdio).expect_err("checked before anything runs");
        assert_eq!(i32::from(report.exit_code), code, "{report}");
        // The init's own words, where nothing was checked.
        fixture.check = None;
        assert_eq!(fixture.run().0, code, "{program}");
    }
}

/// What a container that gets hold of `/proc/PID/exe` can do with it once that process has ended: while it runs, the kernel says ETXTBSY for
/// any executable, which is what the attack waits out.
fn sealed() {
    assert!(!exe::is_sealed().unwrap());
    let dir = tempfile::tempdir().unwrap();
    // A copy, because this very process keeps its own file busy.
    let copy = dir.path().join("copy");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    // The clone of a mount can only be made in that mount's own namespace; elsewhere, as on old kernels, the copy in memory is used.
    for (seal, expected) in [("no", None), ("clone", Some(libc::EROFS)), ("copy", Some(libc::EPERM))] {
        let mut command = Command::new(&copy);
        command.args(["--case", SEALED_CHILD]).env("SEAL", seal).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line.trim(), format!("sealed: {}", seal != "no"));
        let held = std::fs::File::open(format!("/proc/{}/exe", child.id())).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| std::io::Write::write(&mut file, b"\x7f"));
        assert_eq!(written.err().and_then(|error| error.raw_os_error()), expected, "sealed: {seal}");
    }
}

const SEALED_CHILD: &str = "exe: is this process sealed?";

/// Only of use to the case above: seals itself as gpurun does, says so, and waits.
fn sealed_child() {
    let Some(seal) = std::env::var_os("SEAL") else { return };
    if seal == "copy" {
        crate::fixture::private_mounts();
    }
    if seal == "copy" || seal == "clone" {
        // Executes this program again, once.
        exe::ensure_sealed().unwrap();
        // /proc/self/exe stays usable, as hooks need it, and what it starts is sealed, too.
        let mut again = Command::new("/proc/self/exe");
        again
            .arg0("gpurun")
            .args(["--case", SEALED_CHILD])
            .env("SEAL", "again")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        assert_eq!(String::from_utf8_lossy(&again.output().unwrap().stdout).trim(), "sealed: true");
    }
    println!("sealed: {}", exe::is_sealed().unwrap());
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}
