//! Create and start: identity, filter, signals, terminal, exit codes, and what stays behind when it fails.

use std::os::unix::fs::symlink;

use gpurun::testing::report::Report;
use gpurun::testing::runtime::Stdio;
use serde_json::json;

use crate::fixture::{Fixture, no_mkdir, piped, read_until, wait};

pub const CASES: &[(&str, fn())] = &[
    ("start: exit codes and signals come back", exit_codes),
    ("start: repeated starts leave nothing", repeated),
    ("start: the filter holds with and without no-new-privileges, for root and a user", filter),
    ("start: signals are at their defaults, none is blocked", signals),
    ("start: capabilities are the ones asked for", capabilities),
    ("start: the umask is 022 and the cwd is entered", umask_and_cwd),
    ("start: no descriptor of the supervisor is left open", descriptors),
    ("start: the environment arrives as it is", environment),
    ("start: the OOM score is the container's, not ours", oom_score),
    ("start: limits that our cgroup has are not touched", own_cgroup),
    ("pty: the size is there before the program", terminal),
    ("pty: also under a state directory with a long path", long_path),
    ("failed: 127 and 126 in plain words", snippets),
    ("failed: a missing bind source is named", missing_source),
    ("failed: a failing hook is named and nothing stays", failing_hook),
    ("failed: a spec that cannot be read leaves nothing", bad_spec),
    ("failed: a process with threads is refused", threads),
];

fn exit_codes() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        let fixture = Fixture::shell(script);
        assert_eq!(fixture.run().0, code, "{script}");
        fixture.assert_gone();
    }
    // Pid 1 cannot kill itself: from outside, then.
    let fixture = Fixture::sleeper();
    let created = fixture.started();
    created.signal(libc::SIGKILL).unwrap();
    assert_eq!(wait(created.pid), 128 + libc::SIGKILL);
    fixture.delete(created);
    fixture.assert_gone();
}

fn repeated() {
    let fixture = Fixture::new(&["/bin/true"]);
    for round in 0..40 {
        let (mut created, output) = fixture.create();
        // A container is deleted in each of its states.
        if round % 3 > 0 {
            created.start().unwrap();
        }
        if round % 3 > 1 {
            assert_eq!(output.read(), "");
        }
        fixture.delete(created);
        while nix::sys::wait::waitpid(None, None).is_ok() {}
        fixture.assert_gone();
    }
}

fn filter() {
    for uid in [0, 1000] {
        for no_new_privileges in [true, false] {
            let mut fixture =
                Fixture::shell("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; mkdir /tmp/x 2>&1; ls /tmp");
            fixture.seccomp = Some(no_mkdir());
            fixture.no_new_privileges = no_new_privileges;
            if uid != 0 {
                fixture.user(uid);
            }
            let (_, text) = fixture.run();
            let flag = i32::from(no_new_privileges);
            assert!(text.contains(&format!("NoNewPrivs:\t{flag}\nSeccomp:\t2")), "uid {uid}: {text}");
            assert!(text.contains("RFS specific error"), "uid {uid}: {text}");
        }
    }
    let (_, text) = Fixture::shell("grep ^Seccomp: /proc/self/status").run();
    assert_eq!(text, "Seccomp:\t0", "unconfined");
}

fn signals() {
    // As a supervisor may have them.
    let mut all = nix::sys::signal::SigSet::empty();
    all.add(nix::sys::signal::Signal::SIGTERM);
    all.add(nix::sys::signal::Signal::SIGCHLD);
    all.thread_block().unwrap();
    let (_, text) = Fixture::new(&["/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]).run();
    assert_eq!(text, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000");
    // And so a writer ends when its reader has.
    let (_, text) = Fixture::shell("yes | head -n 1; echo done").run();
    assert_eq!(text, "y\ndone");
}

fn capabilities() {
    let grep = ["/bin/grep", "-E", "^Cap", "/proc/self/status"];
    let expect = |held: &str, bounding: &str| {
        format!("CapInh:\t{0}\nCapPrm:\t{held}\nCapEff:\t{held}\nCapBnd:\t{bounding}\nCapAmb:\t{0}", "0".repeat(16))
    };
    for no_new_privileges in [true, false] {
        for seccomp in [None, Some(no_mkdir())] {
            let mut fixture = Fixture::new(&grep);
            fixture.no_new_privileges = no_new_privileges;
            fixture.seccomp = seccomp;
            assert_eq!(fixture.run().1, expect("00000000a80425fb", "00000000a80425fb"), "root, {no_new_privileges}");
            fixture.user(1000);
            assert_eq!(fixture.run().1, expect("0000000000000000", "00000000a80425fb"), "a user, {no_new_privileges}");
        }
    }
}

fn umask_and_cwd() {
    let mut fixture = Fixture::shell("umask; pwd; id -u; id -G; stat -c %a /made /made/here");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mounts = fixture.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/made/here", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }));
    fixture.spec["process"]["cwd"] = json!("/work");
    fixture.user(1000);
    assert_eq!(fixture.run().1, "0022\n/work\n1000\n1000 7\n755\n755");
}

fn descriptors() {
    let _held = std::fs::File::open("/etc").unwrap();
    // One more than the three: the directory that `ls` itself reads.
    let (_, text) = Fixture::shell("exec ls /proc/self/fd").run();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

fn environment() {
    let mut fixture = Fixture::new(&["/bin/env"]);
    fixture.spec["process"]["env"] = json!(["PATH=/bin", "HOME=/x", "ODD==a b", "EMPTY=", "LD_PRELOAD=/nope"]);
    assert_eq!(fixture.run().1, "PATH=/bin\nHOME=/x\nODD==a b\nEMPTY=\nLD_PRELOAD=/nope");
}

fn oom_score() {
    let own = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let before = own();
    for uid in [0, 1000] {
        let mut fixture = Fixture::new(&["/bin/cat", "/proc/self/oom_score_adj"]);
        fixture.user(uid);
        fixture.oom_score_adj = Some(321);
        fixture.spec["process"]["oomScoreAdj"] = json!(321);
        assert_eq!(fixture.run().1, "321", "uid {uid}");
    }
    assert_eq!(own(), before);
}

/// gpurun's cgroup module writes the limits. libcontainer, which would write those of the spec by its own rules, only enters the cgroup.
fn own_cgroup() {
    let mut fixture = Fixture::shell("cat /proc/self/cgroup; read line");
    fixture.spec["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    let host = gpurun::testing::cgroup::Host::probe(std::path::Path::new("/")).unwrap();
    let limits = gpurun::testing::spec::Limits { pids: Some(Some(77)), ..Default::default() };
    let everything =
        gpurun::testing::spec::DeviceRule { allow: true, kind: 'a', major: None, minor: None, access: "rwm".into() };
    host.create(&fixture.cgroup_path(), &limits, &[everything]).unwrap();
    let (created, _output) = fixture.create();
    let pids = fixture.cgroups().into_iter().find(|dir| dir.join("pids.max").exists()).expect("a pids controller");
    assert_eq!(std::fs::read_to_string(pids.join("pids.max")).unwrap().trim(), "77");
    let procs = std::fs::read_to_string(pids.join("cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), created.pid.to_string(), "pid 1 is in before its first instruction");
    fixture.delete(created);
}

fn terminal() {
    let fixture = Fixture::shell("stty size; tty; read x; echo got $x");
    let mut created =
        fixture.try_create(Stdio::Pty { size: Some((33, 101)) }).unwrap_or_else(|report| panic!("{report}"));
    let master = created.pty.take().expect("a terminal");
    created.start().unwrap();
    read_until(&master, "/dev/pts/0");
    nix::unistd::write(&master, b"word\n").unwrap();
    let seen = read_until(&master, "got word");
    assert!(seen.contains("word"), "{seen}");
    assert_eq!(wait(created.pid), 0);
    fixture.delete(created);
    // The size, in a run of its own: reading above stops at the terminal's name.
    let fixture = Fixture::shell("stty size; echo end");
    let mut created =
        fixture.try_create(Stdio::Pty { size: Some((33, 101)) }).unwrap_or_else(|report| panic!("{report}"));
    let master = created.pty.take().expect("a terminal");
    created.start().unwrap();
    assert!(read_until(&master, "end").contains("33 101"));
    wait(created.pid);
    fixture.delete(created);
    fixture.assert_gone();
}

fn long_path() {
    let fixture = Fixture::shell("tty; echo end");
    let long = fixture.dir.path().join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    std::fs::remove_dir(fixture.state()).unwrap();
    symlink(&long, fixture.state()).unwrap();
    let mut created = fixture.try_create(Stdio::Pty { size: None }).unwrap_or_else(|report| panic!("{report}"));
    let master = created.pty.take().expect("a terminal");
    created.start().unwrap();
    read_until(&master, "end");
    wait(created.pid);
    fixture.delete(created);
}

fn snippets() {
    // (arguments, at create or at start, exit code, words)
    let case = |args: &[&str], code: u8, snippets: &str| {
        let fixture = Fixture::new(args);
        fixture.file("bin/plain", 0o644, b"text");
        fixture.file("bin/orphan", 0o755, b"#!/no/such/shell\n");
        fixture.file("bin/noise", 0o755, b"\x01\x02 neither ELF nor script");
        let (stdio, _output) = piped();
        let report = match fixture.try_create(stdio) {
            Err(report) => report,
            Ok(mut created) => {
                let error = created.start().expect_err("a start that fails");
                fixture.delete(created);
                while nix::sys::wait::waitpid(None, None).is_ok() {}
                Report::from(error)
            }
        };
        assert_eq!(report.exit_code, code, "{args:?}: {report}");
        assert!(report.message.contains(snippets), "{args:?}: {report}");
        fixture.assert_gone();
    };
    case(&["nothing"], 127, "cannot execute `nothing`: there is no such program in the container's PATH");
    case(&["/bin/nothing"], 127, "cannot execute `/bin/nothing`: there is no such file in the image");
    case(&["/bin/plain"], 126, "cannot execute `/bin/plain`: it is not an executable file");
    case(&["/bin"], 126, "cannot execute `/bin`: it is a directory");
    case(&["orphan"], 127, "the interpreter that `/bin/orphan` names is not in the image");
    case(&["/bin/noise"], 126, "it is not a program for this machine");
}

fn missing_source() {
    let mut fixture = Fixture::new(&["/bin/true"]);
    let mounts = fixture.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/work", "type": "bind", "source": "/no/such/place", "options": ["rbind"] }));
    let (stdio, _output) = piped();
    let report = fixture.try_create(stdio).expect_err("no such source");
    // The path stands only in what a child of libcontainer logged.
    assert!(report.message.contains("/no/such/place"), "{report}");
    assert_eq!(report.exit_code, 125);
    fixture.assert_gone();
}

fn failing_hook() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let mut fixture = Fixture::new(&["/bin/true"]);
        fixture.spec["hooks"] = json!({ stage: [{ "path": "/bin/false" }] });
        let (stdio, _output) = piped();
        let report = fixture.try_create(stdio).expect_err("a hook that fails");
        assert!(report.message.contains("hook"), "{stage}: {report}");
        // The cgroup is its maker's to remove: libcontainer tries, and on version 2 comes before the killed process is gone.
        fixture.remove_cgroup();
        fixture.assert_gone();
    }
}

fn bad_spec() {
    let mut fixture = Fixture::new(&["/bin/true"]);
    fixture.spec["ociVersion"] = json!("9");
    let (stdio, _output) = piped();
    fixture.try_create(stdio).expect_err("a version of the future");
    fixture.assert_gone();
    let mut fixture = Fixture::new(&["/bin/true"]);
    fixture.spec["root"]["path"] = json!("/no/such/root");
    // With a terminal, so that its socket has to go, too.
    fixture.try_create(Stdio::Pty { size: None }).expect_err("a root that is not there");
    fixture.assert_gone();
}

fn threads() {
    let fixture = Fixture::new(&["/bin/true"]);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv());
    let (stdio, _output) = piped();
    let report = fixture.try_create(stdio).expect_err("two threads");
    assert!(report.message.contains("2 threads"), "{report}");
    drop(stop);
    let _ = thread.join();
}
