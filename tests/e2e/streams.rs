//! What crosses between a caller and its containers: output, input and exit codes do, in whole; descriptors, variables, keys and modes do not.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::host::{self, Answer, Host, answer, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("a_slow_client_loses_neither_output_nor_exit_code", slow_client),
    ("input_that_is_not_read_holds_nothing_up", unread_input),
    ("exec_has_streams_of_its_own", own_streams),
    ("exec_passes_everything_on", passes),
    ("what_exec_leaves_behind_lives_and_holds_nothing", left_behind),
    ("exec_survives_its_terminal_s_detaching", detached_terminal),
    ("a_slow_follower_knows_what_it_missed", follower),
    ("the_log_s_size_and_number_are_options", rotation),
    ("the_caller_s_umask_changes_no_mode", umask),
    ("nothing_of_the_caller_s_is_inherited", inheritance),
    ("exec_without_its_filter_is_refused", filter),
    ("exec_as_another_user_keeps_the_added_groups", groups),
    ("a_supervisor_s_diagnostics_outlive_it", diagnostics),
];

/// The command, ended by force when it hangs.
fn bounded(host: &Host, args: &[&str]) -> Command {
    host.behind(&["timeout", "-s", "KILL", "60"], args)
}

fn up(host: &Host, name: &str, rest: &[&str]) {
    let mut args = vec!["run", "-d", "--network", "none", "--name", name];
    args.extend(rest);
    host.ok(&args);
}

/// Each system call by which the client sends or receives is late, one after the other and all together.
fn slow_client() {
    let host = Host::with_box();
    let late = |inject: &str, args: &[&str]| {
        let trace = host.dir.join("trace");
        let inject = format!("inject={inject}");
        let snippets = ["timeout", "-s", "KILL", "60", "strace", "-o", trace.to_str().unwrap(), "-e", &inject];
        answer(host.behind(&snippets, args).output().unwrap())
    };
    let expect = |what: &str, got: &Answer, out: &str, code: i32| {
        assert_eq!((&*got.out, got.code), (out, code), "{what}: {}", got.err);
    };
    let quick = ["run", "--rm", "--network", "none", "box", "sh", "-c", "echo quick; exit 3"];
    for inject in [
        "sendto:delay_enter=400000:when=1",
        "sendto:delay_enter=400000:when=2+",
        "recvfrom:delay_enter=200000",
        "poll,ppoll:delay_enter=200000",
    ] {
        expect(inject, &late(inject, &quick), "quick\n", 3);
    }
    host.ok(&["run", "-d", "--name", "again", "--network", "none", "box", "sh", "-c", "echo quick; exit 3"]);
    eventually("it ends", || host.inspect("again")["State"]["Running"] == false);
    let inject = "sendto:delay_enter=400000:when=1";
    expect("start -a", &late(inject, &["start", "-a", "again"]), "quick\n", 3);
    // A client that attaches while the container ends learns how it ended.
    host.ok(&["run", "-d", "--name", "ending", "--network", "none", "box", "sh", "-c", "sleep 4; exit 5"]);
    let got = late("sendto:delay_enter=6000000:when=1", &["attach", "ending"]);
    expect("attach", &got, "", 5);
}

/// Output that waits for a client that waits for its input to be read; and commands that come while input waits.
fn unread_input() {
    let host = Host::with_box();
    let input = vec![b'x'; 6 << 20];
    let mut od = bounded(&host, &["run", "-i", "--rm", "--network", "none", "box", "sh", "-c", "od -v -c"]);
    let mut child = od.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines, (6 << 20) / 16 + 1);
    assert!(output.stdout.ends_with(b"\n30000000\n"));
    let deaf = |name: &str| {
        let mut run =
            bounded(&host, &["run", "-i", "--name", name, "--network", "none", "--init", "box", "sleep", "1000"]);
        let zero = File::open("/dev/zero").unwrap();
        let child = run.stdin(zero).spawn().unwrap();
        // Room for a mebibyte and the socket's own: full when the client's standard input is no longer read. A client
        // that has read less has not begun.
        let offset = || -> u64 {
            let pid = sh(&format!("pgrep -f '^{} run -i --name {name}' | tail -1", host::binary().display()));
            let text = fs::read_to_string(format!("/proc/{}/io", pid.trim())).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0)
        };
        let mut last = 0;
        eventually("the client stops reading", || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let now = offset();
            now > 1 << 20 && std::mem::replace(&mut last, now) == now
        });
        child
    };
    let mut child = deaf("one");
    let stop = answer(host.behind(&["timeout", "-s", "KILL", "60"], &["stop", "-t", "5", "one"]).output().unwrap());
    assert_eq!(stop.code, 0, "stop: {}", stop.err);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let mut child = deaf("two");
    sh(&format!("pkill -TERM -f '^{} run -i --name two'", host::binary().display()));
    assert_eq!(child.wait().unwrap().code(), Some(143), "SIGTERM reaches the container");
}

/// What `readlink` says of the descriptors of the process itself.
const OWN: &str = "for f in 0 1 2; do readlink /proc/self/fd/$f; done; ls /proc/$$/fd | tr '\\n' ' '";

fn own_streams() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    let (input, log) = (host.dir.join("caller-input"), host.dir.join("caller-log"));
    fs::write(&input, "precious\n").unwrap();
    for flags in [&["exec"][..], &["exec", "-i"]] {
        fs::write(&log, "kept\n").unwrap();
        let mut args = flags.to_vec();
        args.extend(["one", "sh", "-c"]);
        args.push(
            "echo spoilt > /proc/self/fd/0; : > /proc/self/fd/1; for f in 0 1 2; do readlink /proc/self/fd/$f; done",
        );
        let out = File::options().append(true).open(&log).unwrap();
        let mut command = bounded(&host, &args);
        command.stdin(File::open(&input).unwrap()).stderr(out.try_clone().unwrap()).stdout(out);
        assert_eq!(command.status().unwrap().code(), Some(0));
        assert_eq!(fs::read_to_string(&input).unwrap(), "precious\n", "{flags:?}");
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("kept\n") && !text.contains("caller-") && !text.contains("(deleted)"), "{text}");
        let links: Vec<&str> = text.lines().rev().take(3).collect();
        assert!(links.iter().all(|link| link.starts_with("pipe:") || *link == "/dev/null"), "{text}");
    }
    // A caller's terminal is never the command's, with -t and without.
    let (mut master, slave) = pty();
    let stream = || Stdio::from(slave.try_clone().unwrap());
    let mut plain = bounded(&host, &["exec", "-i", "one", "sh", "-c", OWN]);
    plain.stdin(stream()).stdout(stream()).stderr(stream());
    assert_eq!(plain.status().unwrap().code(), Some(0));
    let seen = read_until(&mut master, "0 1 2");
    assert!(!seen.contains("/dev/") && seen.contains("pipe:"), "{seen}");
}

fn passes() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    let exec = |flags: &[&str], script: &str, input: Option<&[u8]>| {
        let mut args = vec!["exec"];
        args.extend(flags);
        args.extend(["one", "sh", "-c", script]);
        let mut command = bounded(&host, &args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.unwrap_or_default().to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    };
    let big: Vec<u8> = (0..5_000_000u32).map(|number| (number % 251) as u8).collect();
    assert_eq!(exec(&["-i"], "cat", Some(&big)).stdout, big, "every byte, in order, and the end of the input");
    assert_eq!(exec(&["-i"], "od -v -c | wc -c", Some(&big)).stdout.len(), 9);
    assert_eq!(exec(&[], "cat; echo end", Some(b"not passed on")).stdout, b"end\n");
    let both = exec(&[], "echo out; echo err >&2; exit 7", None);
    assert_eq!((both.stdout, both.stderr, both.status.code()), (b"out\n".into(), b"err\n".into(), Some(7)));
    assert_eq!(exec(&[], "kill -9 $$", None).status.code(), Some(137));
    // A slow reader holds the writer up, and loses nothing.
    let script = format!("{} exec one seq 300000 | (sleep 1; tail -1)", host::binary().display());
    let slow = answer(host.shell(&script).output().unwrap());
    assert_eq!(slow.out, "300000\n", "{}", slow.err);
    let script = format!("{} exec one yes | head -1; echo ${{PIPESTATUS[0]}}", host::binary().display());
    let cut = answer(host.shell(&script).output().unwrap());
    assert_eq!(cut.out, "y\n141\n", "{}", cut.err);
    let big = exec(&["-t"], "seq 20000", None).stdout;
    assert!(big.ends_with(b"19999\r\n20000\r\n"), "a terminal's last bytes too");
}

fn left_behind() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    let script = "(for i in $(seq 100); do [ -e /tmp/go ] && break; sleep 0.1; done; echo late; echo later; touch /tmp/lived) & echo now";
    // Its output would not end as long as a process of the container held it.
    let got = answer(bounded(&host, &["exec", "one", "sh", "-c", script]).output().unwrap());
    assert_eq!((&*got.out, got.code), ("now\n", 0), "{}", got.err);
    host.ok(&["exec", "one", "touch", "/tmp/go"]);
    eventually("a write does not kill it", || host.run(&["exec", "one", "test", "-e", "/tmp/lived"]).code == 0);
    eventually("nothing is left to drain", || drains(&host).is_empty());
}

/// The processes that keep the streams of what `exec` has left, of this host.
fn drains(host: &Host) -> Vec<i32> {
    let inode =
        fs::metadata(format!("/run/netns/{}", host.netns)).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let net = fs::read_link(entry.path().join("ns/net")).unwrap_or_default();
        if line.contains("exec-drain") && net.to_string_lossy().contains(&inode.to_string()) {
            found.push(pid);
        }
    }
    found
}

fn detached_terminal() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    let (mut master, slave) = pty();
    let stream = || Stdio::from(slave.try_clone().unwrap());
    let script = "trap 'touch /tmp/hup' HUP; while :; do tty; tty >/tmp/tty; date >>/tmp/ticks; sleep 0.1; done";
    let mut command = bounded(&host, &["exec", "-it", "one", "sh", "-c", script]);
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    read_until(&mut master, "/dev/pts/");
    master.write_all(b"\x10\x11").unwrap();
    read_until(&mut master, "left running");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop((master, slave));
    let ticks = || host.ok(&["exec", "one", "cat", "/tmp/ticks"]).lines().count();
    let before = ticks();
    eventually("it goes on", || ticks() > before + 3);
    // The script empties the file before it writes to it.
    eventually("with its terminal", || host.ok(&["exec", "one", "cat", "/tmp/tty"]).starts_with("/dev/pts/"));
    host.fails(1, &["exec", "one", "test", "-e", "/tmp/hup"]);
    // The same without a caller's terminal; and one that writes more than a terminal holds.
    host.ok(&["exec", "-dt", "one", "sh", "-c", "tty; seq 100000; touch /tmp/wrote; sleep 1000"]);
    eventually("its terminal is drained", || host.run(&["exec", "one", "test", "-e", "/tmp/wrote"]).code == 0);
    assert!(!drains(&host).is_empty());
    host.ok(&["rm", "-f", "one"]);
    eventually("the keepers end with the container", || drains(&host).is_empty());
}

fn follower() {
    let host = Host::with_box();
    let script = "echo 0; until [ -e /tmp/go ]; do sleep 0.1; done; seq 60000";
    up(&host, "one", &["--log-opt", "max-size=100k", "--log-opt", "max-file=3", "box", "sh", "-c", script]);
    let mut child =
        bounded(&host, &["logs", "-f", "one"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It follows. Nothing more is read before the container has written everything: a pipe's content and what is kept
    // must arrive, the rest is counted.
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 2];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"0\n");
    host.ok(&["exec", "one", "touch", "/tmp/go"]);
    host.ok(&["wait", "one"]);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    let reported = answer(child.wait_with_output().unwrap());
    let numbers: Vec<u64> =
        text.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("joined: {line}"))).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.last() == Some(&60000));
    let count = |line: &str| line.split_whitespace().find_map(|snippet| snippet.parse::<u64>().ok());
    let lost: u64 = reported.err.lines().filter(|line| line.contains("lines were lost")).filter_map(count).sum();
    assert!(lost > 0, "{}", reported.err);
    assert_eq!(numbers.len() as u64 + lost, 60000, "{}", reported.err);
    // Without -f, what is gone is counted as well; a tail that is there needs no notice.
    let all = host.run(&["logs", "one"]);
    let first: u64 = all.out.lines().next().unwrap().parse().unwrap();
    assert!(all.err.contains(&format!("the first {first} lines were removed")), "{}", all.err);
    let tail = host.run(&["logs", "-n", "2", "one"]);
    assert_eq!((&*tail.out, &*tail.err), ("59999\n60000\n", ""));
}

fn rotation() {
    let host = Host::with_box();
    let run = |name: &str, options: &[&str]| {
        let mut args: Vec<&str> = options.iter().flat_map(|option| ["--log-opt", option]).collect();
        args.extend(["box", "seq", "60000"]);
        up(&host, name, &args);
        host.ok(&["wait", name]);
        let dir = host.dir.join("root/containers").join(host.inspect(name)["Id"].as_str().unwrap());
        let log = |name: &str| dir.join(name).exists();
        (log("log"), log("log.1"), log("log.2"), log("log.3"))
    };
    assert_eq!(run("default", &[]), (true, false, false, false));
    assert_eq!(run("three", &["max-size=100k", "max-file=3"]), (true, true, true, false));
    assert_eq!(run("one", &["max-size=100k", "max-file=1"]), (true, false, false, false));
    for wrong in ["max-size=x", "max-file=0", "compress=true"] {
        let said = host.fails(125, &["run", "--log-opt", wrong, "box", "true"]);
        assert!(said.contains(wrong) && said.contains("hint:"), "{said}");
    }
}

/// Every path below the store and the run directory, with its mode; ids are replaced.
fn modes(host: &Host, umask: &str) -> Vec<String> {
    let script = format!(
        "umask {umask}; g={g}; set -e; printf 'FROM box\\nRUN echo x >/f; mkdir /d\\nCOPY Containerfile /c\\n' >Containerfile; \
         chmod 644 Containerfile; $g build -t made --network none . >/dev/null 2>&1; $g run -d --name one --network none -v vol:/v box sleep 1000 >/dev/null; \
         $g exec one sh -c 'echo x >/v/f; mkdir /x; id -u' >/dev/null; $g cp Containerfile one:/copied; \
         $g exec -u 1000 one cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null; \
         (cd {dir}; find root run -printf '%m %y %p\\n')",
        g = host::binary().display(),
        dir = host.dir.display(),
    );
    let got = answer(host.shell(&script).output().unwrap());
    assert_eq!(got.code, 0, "umask {umask}: {}", got.err);
    let id = |snippet: &str| snippet.len() >= 12 && snippet.bytes().all(|byte| byte.is_ascii_hexdigit());
    let plain = |line: &str| {
        line.split('/')
            .map(|snippet| if snippet.split('.').any(id) || snippet.len() == 2 { "ID" } else { snippet })
            .collect::<Vec<_>>()
            .join("/")
    };
    let mut lines: Vec<String> = got.out.lines().map(plain).collect();
    lines.sort();
    lines.dedup();
    lines
}

fn umask() {
    let mut usual = None;
    for umask in ["022", "077", "000"] {
        let host = Host::with_box();
        let modes = modes(&host, umask);
        assert_eq!(usual.get_or_insert(modes.clone()), &modes, "umask {umask}");
    }
    // The caller's own files are the caller's.
    let host = Host::with_box();
    for (umask, mode) in [("077", "600"), ("022", "644")] {
        let script =
            format!("umask {umask}; {} image save box -o out.tar && stat -c %a out.tar", host::binary().display());
        assert_eq!(answer(host.shell(&script).output().unwrap()).out.trim(), mode);
    }
}

fn inheritance() {
    let host = Host::with_box();
    let keys = host::compiled(&host).join("keys");
    // The caller: descriptors that are not close-on-exec, a lock, a variable, a key, ignored signals, a limit.
    fs::write(host.dir.join("caller-file"), "").unwrap();
    let setup = "exec 7<>caller-file 9>caller-lock; flock 9; trap '' CHLD USR1 HUP; ulimit -S -f 100000; export CALLER_SECRET=hush; exec \"$0\" \"$@\"";
    let keys = keys.to_str().unwrap();
    let by = |args: &[&str]| {
        let got = answer(host.behind(&[keys, "/bin/bash", "-c", setup], args).output().unwrap());
        assert_eq!(got.code, 0, "{args:?}: {}", got.err);
        got.out
    };
    let hooks = host.dir.join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let hook = host.dir.join("hook");
    let seen = host.dir.join("hook-saw");
    let script = format!(
        "#!/bin/sh\nexec >{} 2>&1\nls -l /proc/$$/fd\nenv\n{keys} look\ngrep SigIgn /proc/self/status\n",
        seen.display()
    );
    fs::write(&hook, script).unwrap();
    sh(&format!("chmod 755 {}", hook.display()));
    let json = format!(
        r#"{{"version":"1.0.0","hook":{{"path":"{}"}},"when":{{"always":true}},"stages":["prestart"]}}"#,
        hook.display()
    );
    fs::write(hooks.join("one.json"), json).unwrap();
    let bind = format!("{keys}:/keys");
    let common = ["--network", "none", "--security-opt", "seccomp=unconfined", "-v", &bind];
    let mut args = vec!["run", "-d", "--name", "one", "--hooks-dir", hooks.to_str().unwrap()];
    args.extend(common);
    args.extend(["box", "sleep", "1000"]);
    by(&args);
    // The lock is free: nothing holds it for the container's life.
    sh(&format!("flock -n {} true", host.dir.join("caller-lock").display()));
    let state = host.inspect("one");
    let pid = state["State"]["Pid"].as_i64().unwrap() as i32;
    let supervisor = parent(pid);
    assert!(fs::read_to_string(format!("/proc/{supervisor}/cmdline")).unwrap().contains("supervise"));
    by(&["exec", "-d", "one", "sleep", "2000"]);
    by(&["exec", "-dt", "one", "sleep", "3000"]);
    eventually("both run", || children(pid, "sleep").len() == 2);
    let pids: Vec<(String, i32)> = [("the supervisor".to_owned(), supervisor), ("pid 1".to_owned(), pid)]
        .into_iter()
        .chain(children(pid, "sleep").into_iter().map(|pid| ("exec".to_owned(), pid)))
        .chain(drains(&host).into_iter().map(|pid| ("the drain".to_owned(), pid)))
        .collect();
    assert!(pids.len() >= 5, "{pids:?}");
    for (who, pid) in &pids {
        let own = ["/dev/null", "pipe:", "socket:", "anon_inode:", "net:", "mnt:", "/dev/pts/", "/dev/ptmx", "/memfd:"];
        for link in descriptors(*pid) {
            // On v2 it watches the container's memory.events.
            let of_cgroup = link.starts_with("/sys/fs/cgroup/") && link.contains("/gpurun/");
            let ours = (link.starts_with(host.dir.to_str().unwrap()) || of_cgroup) && who == "the supervisor";
            let known = own.iter().any(|kind| link.starts_with(kind)) || link == "/" || ours;
            assert!(known && !link.contains("caller-"), "{who}: {link}");
        }
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        assert!(!environment.contains("CALLER_SECRET") && !environment.contains("hush"), "{who}: {environment}");
        let allowed = ["PATH", "HOME", "HOSTNAME", "TERM", "NVIDIA_VISIBLE_DEVICES"];
        for entry in environment.split('\0').filter(|entry| !entry.is_empty()) {
            let name = entry.split('=').next().unwrap();
            assert!(allowed.contains(&name) || name.starts_with("GPURUN_"), "{who}: {entry}");
        }
    }
    // Container processes have their three streams and nothing else.
    for (who, pid) in pids.iter().filter(|(who, _)| who == "pid 1" || who == "exec") {
        assert_eq!(descriptors(*pid).len(), 3, "{who}");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("SigIgn:\t0000000000000000") && status.contains("SigBlk:\t0000000000000000"), "{who}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let size = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
        assert!(size.split_whitespace().nth(3) == Some("unlimited"), "{who}: {size}");
    }
    let saw = fs::read_to_string(&seen).unwrap();
    assert!(saw.contains("no key") && !saw.contains("caller-") && !saw.contains("CALLER_SECRET"), "the hook: {saw}");
    assert!(saw.contains("-> /memfd:") || saw.contains("container-state"), "the hook has its state: {saw}");
    // The session keyring, of pid 1 and of exec.
    let mut args = vec!["run", "--rm"];
    args.extend(common);
    args.extend(["box", "/keys", "look"]);
    assert_eq!(by(&args), "no key\n");
    assert_eq!(by(&["exec", "one", "/keys", "look"]), "no key\n");
    // A build step.
    let step = "FROM box\nRUN ls -l /proc/$$/fd; env; grep SigIgn /proc/self/status\n";
    fs::create_dir(host.dir.join("context")).unwrap();
    fs::write(host.dir.join("context/Containerfile"), step).unwrap();
    let snippets = [keys, "/bin/bash", "-c", setup];
    let built = answer(host.behind(&snippets, &["build", "--network", "none", "context"]).output().unwrap());
    let said = format!("{}{}", built.out, built.err);
    assert!(built.code == 0 && said.contains("PATH=") && said.contains("SigIgn"), "{said}");
    assert!(!said.contains("caller-") && !said.contains("hush"), "{said}");
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The processes of that name in the pid namespace of `pid`, without itself.
fn children(pid: i32, name: &str) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(pid);
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|other| *other != pid && namespace(*other) == own)
        .filter(|other| fs::read_to_string(format!("/proc/{other}/comm")).is_ok_and(|comm| comm.trim() == name))
        .collect()
}

fn descriptors(pid: i32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    links.filter_map(|entry| fs::read_link(entry.path()).ok()).map(|path| path.display().to_string()).collect()
}

fn filter() {
    let host = Host::with_box();
    up(&host, "one", &["box", "sleep", "1000"]);
    up(&host, "open", &["--security-opt", "seccomp=unconfined", "box", "sleep", "1000"]);
    let path = |name: &str| host.dir.join("run").join(host.inspect(name)["Id"].as_str().unwrap()).join("seccomp.bpf");
    assert!(host.ok(&["exec", "one", "grep", "Seccomp:", "/proc/self/status"]).ends_with('2'));
    assert!(host.ok(&["exec", "open", "grep", "Seccomp:", "/proc/self/status"]).ends_with('0'));
    fs::write(path("one"), "short").unwrap();
    assert!(host.fails(1, &["exec", "one", "true"]).contains("seccomp.bpf"));
    fs::remove_file(path("one")).unwrap();
    let said = host.fails(1, &["exec", "one", "true"]);
    assert!(said.contains("seccomp.bpf") && said.contains("gpurun restart one"), "{said}");
    host.ok(&["restart", "-t", "0", "one"]);
    assert!(host.ok(&["exec", "one", "grep", "Seccomp:", "/proc/self/status"]).ends_with('2'));
}

fn groups() {
    let host = Host::with_box();
    up(&host, "one", &["--group-add", "1234", "--group-add", "77", "box", "sleep", "1000"]);
    for user in ["0", "1000:1000", "65534"] {
        let groups = host.ok(&["exec", "-u", user, "one", "id", "-G"]);
        let groups: Vec<&str> = groups.split_whitespace().collect();
        assert!(groups.contains(&"1234") && groups.contains(&"77"), "{user}: {groups:?}");
    }
}

fn diagnostics() {
    let host = Host::with_box();
    let logs = || -> Vec<PathBuf> {
        let files = fs::read_dir(host.dir.join("root/logs")).into_iter().flatten().flatten();
        files.map(|entry| entry.path()).collect()
    };
    host.ok(&["run", "--rm", "--network", "none", "box", "true"]);
    assert_eq!(logs(), Vec::<PathBuf>::new(), "nothing to say, no file");
    let debug = |args: &[&str]| answer(host.command(args).env("GPURUN_LOG", "debug").output().unwrap());
    let got = debug(&["run", "--rm", "--network", "none", "box", "no-such-program"]);
    assert_eq!(got.code, 127);
    let [file] = &logs()[..] else { panic!("one file: {:?}", logs()) };
    assert!(got.err.contains(file.to_str().unwrap()), "{}", got.err);
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains("no-such-program") && text.contains("launch: cgroup"), "{text}");
    assert_eq!(debug(&["run", "--rm", "--network", "none", "box", "true"]).code, 0);
    assert_eq!(logs().len(), 1, "one that succeeds leaves none");
    // A hint to a file that is not there yet says how to get it; one that is killed leaves what it had written.
    let mut killed = host.command(&["run", "--rm", "--network", "none", "--name", "killed", "box", "sleep", "1000"]);
    let child = killed.env("GPURUN_LOG", "debug").stderr(Stdio::piped()).spawn().unwrap();
    let begun =
        || logs().iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("launch: running")));
    eventually("it runs, and has written so", || host.run(&["ps"]).out.contains("killed") && begun());
    let supervisor = parent(host.inspect("killed")["State"]["Pid"].as_i64().unwrap() as i32);
    sh(&format!("kill -9 {supervisor}"));
    let got = answer(child.wait_with_output().unwrap());
    let named = got.err.split('`').find(|snippet| snippet.starts_with("cat ")).unwrap_or_else(|| panic!("{}", got.err));
    host.ok(&["ps", "-a"]);
    assert!(fs::read_to_string(&named[4..]).unwrap().contains("launch: running"), "{named}");
    up(&host, "kept", &["box", "sleep", "1000"]);
    host.ok(&["rm", "-f", "kept"]);
    assert_eq!(logs().len(), 2);
}

fn pty() -> (File, File) {
    let pty = nix::pty::openpty(None, None).unwrap();
    (OwnedFd::into(pty.master), OwnedFd::into(pty.slave))
}

#[track_caller]
fn read_until(master: &mut File, what: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(what) {
        let count = master.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}
