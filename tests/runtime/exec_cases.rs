//! Exec: a further process is confined exactly as pid 1 is.

use std::os::fd::AsFd;

use gpurun::testing::report::Report;
use gpurun::testing::runtime::{ExecRequest, Stdio, exec};

use crate::fixture::{Fixture, exec_output, exec_request, no_mkdir, read_until, wait};

pub const CASES: &[(&str, fn())] = &[
    ("exec: filter, privileges and capabilities are those of pid 1", confined),
    ("exec: namespaces and cgroup are those of pid 1", inside),
    ("exec: user, groups, directory, umask and limits are the ones asked for", identity),
    ("exec: signals are at their defaults, no descriptor is left open", clean),
    ("exec: exit codes and signals come back", exit_codes),
    ("exec: 127 and 126 in plain words, no zombie", snippets),
    ("exec: a directory outside of the container is refused", escape),
    ("exec: a terminal has its size, its session and its owner", terminal),
    ("exec: many in a row", many),
    ("exec: ends with the container", ends),
    ("exec: a container that is gone is an error", gone),
];

fn run(
    fixture: &Fixture,
    created: &gpurun::testing::runtime::Created,
    script: &str,
    change: impl FnOnce(&mut ExecRequest<'_>),
) -> (i32, String) {
    let result = exec_output(|stdio| {
        let mut request = exec_request(fixture, created, &["/bin/sh", "-c", script], stdio);
        change(&mut request);
        exec(&request)
    });
    result.unwrap_or_else(|report| panic!("{report}"))
}

fn confined() {
    for no_new_privileges in [true, false] {
        for uid in [0, 1000] {
            let mut fixture = Fixture::sleeper();
            fixture.seccomp = Some(no_mkdir());
            fixture.no_new_privileges = no_new_privileges;
            let created = fixture.started();
            let script = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; mkdir /tmp/x 2>&1; ls /tmp";
            let (_, text) =
                run(&fixture, &created, script, |request| (request.process.uid, request.process.gid) = (uid, uid));
            let held = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
            for line in [
                format!("CapPrm:\t{held}"),
                format!("CapEff:\t{held}"),
                "CapBnd:\t00000000a80425fb".into(),
                "CapInh:\t0000000000000000".into(),
                "CapAmb:\t0000000000000000".into(),
                format!("NoNewPrivs:\t{}", i32::from(no_new_privileges)),
                "Seccomp:\t2".into(),
                "RFS specific error".into(),
            ] {
                assert!(text.contains(&line), "uid {uid}, {no_new_privileges}: no `{line}` in {text}");
            }
            fixture.delete(created);
        }
    }
}

fn inside() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    let mut theirs = Vec::new();
    for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        theirs.push(std::fs::read_link(format!("/proc/{}/ns/{name}", created.pid)).unwrap().display().to_string());
    }
    let script = "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done";
    let (_, text) = run(&fixture, &created, script, |_| {});
    assert_eq!(text.lines().collect::<Vec<_>>(), theirs);
    let cgroups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (stdio, _output) = crate::fixture::piped();
    let child = exec(&exec_request(&fixture, &created, &["/bin/sleep", "1000"], stdio)).unwrap();
    assert_eq!(cgroups(child.pid), cgroups(created.pid));
    fixture.delete(created);
    assert_eq!(wait(child.pid), 128 + libc::SIGKILL);
}

fn identity() {
    let fixture = Fixture::sleeper();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let created = fixture.started();
    let (_, text) = run(
        &fixture,
        &created,
        "id -u; id -g; id -G; pwd; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj",
        |request| {
            (request.process.uid, request.process.gid, request.process.groups) = (1000, 1001, vec![7, 8]);
            request.process.cwd = "/work".into();
            request.process.rlimits =
                vec![gpurun::testing::spec::Rlimit { name: "RLIMIT_NOFILE".into(), soft: 100, hard: 200 }];
            request.process.oom_score_adj = Some(55);
        },
    );
    assert_eq!(text, "1000\n1001\n1001 7 8\n/work\n0022\n100\n200\n55");
    fixture.delete(created);
}

fn clean() {
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGTERM);
    blocked.thread_block().unwrap();
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    let (_, text) = run(&fixture, &created, "grep -E '^Sig(Blk|Ign)' /proc/self/status; exec ls /proc/self/fd", |_| {});
    assert_eq!(text, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0\n1\n2\n3");
    fixture.delete(created);
}

fn exit_codes() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    for (script, code) in [("exit 0", 0), ("exit 9", 9), ("kill -TERM $$", 128 + libc::SIGTERM)] {
        assert_eq!(run(&fixture, &created, script, |_| {}).0, code, "{script}");
    }
    fixture.delete(created);
}

fn snippets() {
    let fixture = Fixture::sleeper();
    fixture.file("bin/plain", 0o644, b"text");
    fixture.file("bin/orphan", 0o755, b"#!/no/such/shell\n");
    let created = fixture.started();
    let before = gpurun::testing::sys::process::children();
    for (program, code, snippets) in [
        ("nothing", 127, "no such program in the container's PATH"),
        ("/bin/nothing", 127, "no such file in the image"),
        ("plain", 126, "not an executable file"),
        ("orphan", 127, "the interpreter that `/bin/orphan` names"),
    ] {
        let (stdio, _output) = crate::fixture::piped();
        let report = Report::from(exec(&exec_request(&fixture, &created, &[program], stdio)).expect_err(program));
        assert!(report.exit_code == code && report.message.contains(snippets), "{report}");
        assert_eq!(gpurun::testing::sys::process::children(), before, "a zombie after `{program}`");
    }
    fixture.delete(created);
}

/// CVE-2024-21626: a working directory that is a link to a directory of the host, held open by the runtime.
fn escape() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    let host = std::fs::File::open("/etc").unwrap();
    for cwd in [format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&host)), "/nowhere".into()] {
        let (stdio, _output) = crate::fixture::piped();
        let mut request = exec_request(&fixture, &created, &["/bin/pwd"], stdio);
        request.process.cwd = cwd.clone().into();
        let report = Report::from(exec(&request).expect_err("a directory elsewhere"));
        assert!(report.message.contains(&cwd), "{report}");
    }
    fixture.delete(created);
}

fn terminal() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    let script = "stty size; tty; stat -c %u $(tty); echo ready; read x; echo got $x; trap 'echo resized; exit 3' WINCH; echo trap; while :; do sleep 1; done";
    let mut request = exec_request(&fixture, &created, &["/bin/sh", "-c", script], Stdio::Pty { size: Some((41, 97)) });
    request.process.uid = 1000;
    let child = exec(&request).unwrap_or_else(|error| panic!("{}", Report::from(error)));
    let master = child.pty.expect("a terminal");
    let seen = read_until(&master, "ready");
    assert!(seen.contains("41 97\r\n/dev/pts/0\r\n1000"), "{seen}");
    nix::unistd::write(&master, b"word\n").unwrap();
    read_until(&master, "trap");
    gpurun::testing::sys::pty::set_window_size(master.as_fd(), 10, 20);
    read_until(&master, "resized");
    assert_eq!(wait(child.pid), 3);
    fixture.delete(created);
}

fn many() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    for round in 0..50 {
        assert_eq!(run(&fixture, &created, &format!("exit {round}"), |_| {}).0, round);
    }
    assert_eq!(gpurun::testing::sys::process::children(), [created.pid]);
    fixture.delete(created);
}

fn ends() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    let (stdio, _output) = crate::fixture::piped();
    let child = exec(&exec_request(&fixture, &created, &["/bin/sleep", "1000"], stdio)).unwrap();
    created.signal(libc::SIGKILL).unwrap();
    assert_eq!(wait(child.pid), 128 + libc::SIGKILL);
    fixture.delete(created);
}

fn gone() {
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    created.signal(libc::SIGKILL).unwrap();
    wait(created.pid);
    let (stdio, _output) = crate::fixture::piped();
    let report =
        Report::from(exec(&exec_request(&fixture, &created, &["/bin/true"], stdio)).expect_err("nothing to enter"));
    assert!(report.message.contains("enter the"), "{report}");
    fixture.delete(created);
}
