//! What a container cannot do, and what a hostile image cannot do to the host.

use crate::archive::{Layer, busybox};
use crate::host::{Host, binary, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("capabilities_are_dockers", capabilities),
    ("seccomp_and_no_new_privileges", seccomp),
    ("system_calls_of_every_calling_convention_obey_the_filter", conventions),
    ("memory_policies_are_the_containers_own", memory_policy),
    ("devices_are_denied", devices),
    ("a_device_has_exactly_the_access_that_was_asked_for", device_access),
    ("masked_and_readonly_paths", masked),
    ("signals_are_at_their_defaults", signals),
    ("no_resource_limit_is_inherited", resource_limits),
    ("no_text_of_an_image_or_a_container_commands_the_terminal", terminal),
    ("a_dev_that_is_a_link_touches_nothing", dev_link),
    ("etc_files_that_are_links_touch_nothing", etc_links),
    ("a_workdir_that_leads_out_is_refused", workdir),
    ("pid_host_sees_the_host", pid_host),
    ("the_binary_cannot_be_overwritten", sealed),
];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(rest);
    args
}

fn capabilities() {
    let host = Host::with_box();
    let bounding = |flags: &[&str]| {
        let mut args = run(flags);
        args.extend(["box", "grep", "CapBnd", "/proc/self/status"]);
        host.ok(&args).split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(bounding(&[]), "00000000a80425fb");
    assert_eq!(bounding(&["--cap-drop", "ALL"]), "0000000000000000");
    assert_eq!(bounding(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), "0000000000002000");
    host.fails(125, &run(&["--cap-add", "FLY", "box", "true"]));
    let effective = host.ok(&run(&["-u", "1000", "box", "grep", "CapEff", "/proc/self/status"]));
    assert!(effective.ends_with("0000000000000000"), "{effective}");
}

fn seccomp() {
    let host = Host::with_box();
    let status = |flags: &[&str]| {
        let mut args = run(flags);
        args.extend(["box", "sh", "-c", "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status"]);
        host.ok(&args)
    };
    assert_eq!(status(&[]), "NoNewPrivs:\t1\nSeccomp:\t2");
    assert_eq!(status(&["--security-opt", "no-new-privileges=false"]), "NoNewPrivs:\t0\nSeccomp:\t2");
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"]), "NoNewPrivs:\t1\nSeccomp:\t0");
    let held = |flags: &[&str]| {
        let mut args = run(flags);
        args.extend(["box", "grep", "CapEff", "/proc/self/status"]);
        host.ok(&args)
    };
    assert_eq!(
        held(&[]),
        held(&["--security-opt", "no-new-privileges=false"]),
        "the loan of CAP_SYS_ADMIN is given back"
    );
    // mount is refused by the filter even where the capability is there.
    host.fails(1, &run(&["box", "mount", "-t", "tmpfs", "x", "/tmp"]));
}

/// A host with an image `calls`: busybox, and syscall.c as /32 and /64.
fn host_with_calls() -> Host {
    let host = Host::new();
    let mut layer = Layer::default();
    let dir = crate::host::compiled(&host);
    for bits in ["32", "64"] {
        layer = layer.file(bits, 0o755, &std::fs::read(dir.join(bits)).unwrap());
    }
    let path = host.dir.join("calls.tar");
    let mut archive = busybox();
    archive.name = "calls".into();
    archive.layer(layer).write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    host
}

/// x86-64 alone: elsewhere there is no second way into the kernel that a test could use.
fn conventions() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let host = host_with_calls();
    // What each line answers: a descriptor or 0 (`ok`), or the number of the error. AF_INET 2, AF_ALG 38, AF_VSOCK 40.
    let cases = [
        ("a 32-bit program's socketcall(SOCKET, AF_VSOCK)", "/32 i 102 1 @40,1,0", "-1"),
        ("its socketcall(SOCKET, AF_INET), whose family a filter cannot see", "/32 i 102 1 @2,1,0", "-1"),
        ("its socketcall(SOCKETPAIR)", "/32 i 102 8 @40,1,0,0", "-1"),
        ("its socketcall(BIND): EBADF", "/32 i 102 2 @99,0,0", "-9"),
        ("its socket(AF_INET)", "/32 i 359 2 1 0", "ok"),
        ("its socket(AF_VSOCK)", "/32 i 359 40 1 0", "-1"),
        ("its socket(AF_ALG)", "/32 i 359 38 5 0", "-1"),
        ("its socketpair(AF_UNIX)", "/32 i 360 1 1 0 @0,0", "ok"),
        ("a 64-bit program's int 0x80", "/64 i 102 1 @40,1,0", "-1"),
        ("int 0x80 with a set upper half", "/64 i 102 4294967297 @40,1,0", "-1"),
        ("int 0x80 with a family that is vsock in its lower half", "/64 i 359 4294967336 1 0", "-1"),
        ("a 64-bit socket(AF_VSOCK)", "/64 s 41 40 1 0", "-1"),
        ("one with a set upper half", "/64 s 41 4294967336 1 0", "-1"),
        ("a 64-bit socketpair(AF_VSOCK)", "/64 s 53 40 1 0 @0,0", "-1"),
        ("a 64-bit socketpair(AF_UNIX)", "/64 s 53 1 1 0 @0,0", "ok"),
        ("a 64-bit socket(AF_INET)", "/64 s 41 2 1 0", "ok"),
        ("x32's socket(AF_VSOCK): ENOSYS", "/64 s 1073741865 40 1 0", "-38"),
        ("x32's getpid: ENOSYS", "/64 s 1073741863", "-38"),
    ];
    let script: Vec<&str> = cases.iter().map(|(_, line, _)| *line).collect();
    for inside in [&["run", "--rm", "--network", "none", "calls"][..], &["exec", "one"]] {
        if inside[0] == "exec" {
            host.ok(&["run", "-d", "--network", "none", "--name", "one", "calls", "sleep", "1000"]);
        }
        let script = script.join("; ");
        let args: Vec<&str> = inside.iter().copied().chain(["sh", "-c", &script]).collect();
        let out = host.ok(&args);
        assert_eq!(out.lines().count(), cases.len(), "{out}");
        for ((what, line, expected), answer) in cases.iter().zip(out.lines()) {
            let answer = if answer.starts_with('-') { answer } else { "ok" };
            assert_eq!(answer, *expected, "{what}: `{line}` in {inside:?}");
        }
    }
}

fn memory_policy() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let host = host_with_calls();
    // get_mempolicy; set_mempolicy(MPOL_BIND) to node 0 and to one that the cpuset does not have (EINVAL); mbind of a page of its own,
    // and with MPOL_MF_MOVE_ALL, which moves pages of others (EPERM); move_pages.
    let script = "/64 s 239 0 0 0 0 0; /64 s 238 2 @1,0 64; /64 s 238 2 @2147483648,0 64; /64 s 237 4194304 4096 2 @1,0 64 0; \
                  /64 s 237 4194304 4096 2 @1,0 64 4; /64 s 279 0 0 0 0 0 0";
    assert_eq!(host.ok(&run(&["calls", "sh", "-c", script])), "0\n0\n-22\n0\n-1\n-1");
}

/// Every access, as the container meets it and as version 1 lists it.
fn device_access() {
    let host = Host::with_box();
    let script = "(exec 3</dev/kmsg) 2>/dev/null && echo r; (exec 3>/dev/kmsg) 2>/dev/null && echo w; \
                  mknod /tmp/node c 1 11 2>/dev/null && echo m; test -c /dev/kmsg && echo there; echo end; exec sleep 1000";
    for access in ["r", "w", "rw", "m", "rm", "rwm"] {
        let device = format!("/dev/kmsg:/dev/kmsg:{access}");
        let name = format!("access-{access}");
        // Reading the kernel's log takes a capability as well.
        let flags = ["run", "-d", "--network", "none", "--name", &name, "--cap-add", "SYSLOG", "--tmpfs", "/tmp"];
        host.ok(&flags.iter().copied().chain(["--device", &device, "box", "sh", "-c", script]).collect::<Vec<_>>());
        eventually("its last line", || host.ok(&["logs", &name]).contains("end"));
        let seen = host.ok(&["logs", &name]);
        let expected: String = access.chars().map(|letter| format!("{letter}\n")).collect();
        assert_eq!(seen, format!("{expected}there\nend"), "{access}");
        let id = host.inspect(&name)["Id"].as_str().unwrap().to_owned();
        let list = std::path::Path::new("/sys/fs/cgroup/devices/gpurun").join(&id).join("devices.list");
        if let Ok(list) = std::fs::read_to_string(list) {
            assert!(list.lines().any(|line| line == format!("c 1:11 {access}")), "{access}: {list}");
        }
        host.ok(&["restart", "-t", "0", &name]);
        host.ok(&["rm", "-f", &name]);
    }
}

fn devices() {
    let host = Host::with_box();
    let script = "mknod /tmp/mem c 1 1 && dd if=/tmp/mem of=/dev/null bs=1 count=1";
    let error = host.fails(1, &run(&["box", "sh", "-c", script]));
    assert!(error.contains("not permitted"), "{error}");
    host.ok(&run(&[
        "box",
        "sh",
        "-c",
        "echo x > /dev/null; head -c 1 /dev/zero > /dev/null; test -c /dev/urandom; test ! -e /dev/mem",
    ]));
}

fn masked() {
    let host = Host::with_box();
    host.ok(&run(&["box", "grep", "-q", " /proc/interrupts ", "/proc/self/mountinfo"]));
    host.ok(&run(&["box", "test", "!", "-s", "/proc/interrupts"]));
    host.fails(1, &run(&["box", "sh", "-c", "echo x > /proc/sys/kernel/hostname"]));
    host.fails(1, &run(&["box", "sh", "-c", "echo b > /proc/sysrq-trigger"]));
    host.fails(1, &run(&["box", "touch", "/sys/x"]));
}

fn signals() {
    let host = Host::with_box();
    let out = host.ok(&run(&["box", "grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]));
    assert_eq!(out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
}

/// A shell with limits of its own starts a container, and a program in it: both have gpurun's limits.
fn resource_limits() {
    let host = Host::with_box();
    // Soft limits: where gpurun may not raise a hard limit, the caller's stays.
    let shell = "ulimit -S -c 0; ulimit -S -f 100000; ulimit -S -l 64; ulimit -S -s 2048; ulimit -S -n 1000; ulimit -S -t 600; \
                 ulimit -S -u 9000; ulimit -S -v 99999999; ulimit -S -i 500; ulimit -S -q 4096; exec \"$@\"";
    let limits = ["cat", "/proc/self/limits"];
    let limited = |args: &[&str]| {
        let answer = crate::host::answer(host.behind(&["bash", "-c", shell, "sh"], args).output().unwrap());
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        answer.out
    };
    let plain = host.ok(&[&run(&["box"])[..], &limits].concat());
    assert_eq!(limited(&[&run(&["box"])[..], &limits].concat()).trim(), plain);
    host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
    assert_eq!(limited(&[&["exec", "one"][..], &limits].concat()).trim(), plain);
    let asked = host.ok(&[&run(&["--ulimit", "core=0", "box"])[..], &limits].concat());
    assert!(asked.lines().any(|line| line.starts_with("Max core file size        0                    0 ")), "{asked}");
}

/// Every table, error and notice that shows a text of an image or a container. Raw are only JSON's values, by JSON's own escapes, and what
/// the container itself prints.
fn terminal() {
    const EVIL: &str = "\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}\r";
    let host = Host::new();
    let path = host.dir.join("evil.tar");
    let mut archive = busybox();
    archive.name = "evil".into();
    archive.config["history"] = serde_json::json!([
        { "created": format!("2026-01-01T00:00:00Z{EVIL}"), "created_by": format!("RUN {EVIL}"), "comment": format!("c{EVIL}\nline") },
    ]);
    archive.config["author"] = EVIL.into();
    archive.config["variant"] = EVIL.into();
    archive.config["config"]["Labels"] = serde_json::json!({ EVIL: EVIL });
    archive.config["config"]["Env"] = serde_json::json!(["PATH=/bin", format!("E={EVIL}")]);
    archive.config["config"]["Cmd"] = serde_json::json!(["sh", "-c", format!(": '{EVIL}'; exit 3")]);
    archive.layer(Layer::default().link("data", &format!("/proc/{}", EVIL.replace('\r', "")))).write(&path);
    let mut shown = Vec::new();
    let mut see = |args: &[&str], works: bool| {
        let answer = host.run(args);
        assert_eq!(answer.code == 0, works, "{args:?}: {}{}", answer.out, answer.err);
        shown.push((args.join(" "), answer.out + &answer.err));
    };
    see(&["image", "load", path.to_str().unwrap()], true);
    see(&["image", "ls"], true);
    see(&["image", "history", "evil"], true);
    see(&["image", "history", "--no-trunc", "evil"], true);
    see(&["image", "history", "--json", "evil"], true);
    see(&["inspect", "evil"], true);
    see(&["run", "--network", "none", "--name", "cmd", "evil"], false);
    see(&["ps", "-a", "--no-trunc"], true);
    see(&["ps", "-a"], true);
    see(&["ps", "-a", "--json"], true);
    see(&["inspect", "cmd"], true);
    // A file's name, in a table and in errors; a program's name; a mount that is refused; a user.
    let script = format!("touch '/{EVIL}'; mkdir '/dir{EVIL}'");
    see(&["run", "--network", "none", "--name", "files", "evil", "sh", "-c", &script], true);
    see(&["diff", "files"], true);
    see(&["diff", "--json", "files"], true);
    see(&["cp", &format!("files:/{EVIL}/x"), "."], false);
    see(&["run", "--rm", "--network", "none", "evil", EVIL], false);
    see(&["run", "--rm", "--network", "none", "-v", "/tmp:/data", "evil", "true"], false);
    see(&["run", "--rm", "--network", "none", "-u", EVIL, "evil", "true"], false);
    see(&["run", "--rm", "--network", "none", "-w", &format!("/bin/sh/{EVIL}"), "evil", "true"], false);
    see(&["exec", "files", "true"], false);
    see(&["image", "rm", &format!("no{EVIL}")], false);
    see(&["explain", "cmd"], true);
    for (args, text) in shown {
        let obeyed = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.contains(obeyed), "gpurun {args}: {text:?}");
    }
}

/// A host with an image of this name, made of busybox and one more layer.
fn host_with(name: &str, layer: Layer) -> Host {
    let host = Host::new();
    let path = host.dir.join("image.tar");
    let mut archive = busybox();
    archive.name = name.to_owned();
    archive.layer(layer).write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    host
}

fn dev_link() {
    // A plain host first: its directory's name must stand in the image.
    let canary = std::env::temp_dir().join(format!("gpurun-canary-{}", std::process::id()));
    std::fs::create_dir_all(&canary).unwrap();
    std::fs::write(canary.join("ptmx"), "mine").unwrap();
    let host = host_with("evil", Layer::default().link("dev", canary.to_str().unwrap()));
    let answer = host.run(&run(&["evil", "sh", "-c", "test -c /dev/null"]));
    assert_eq!(answer.code, 0, "{}", answer.err);
    let names: Vec<_> = std::fs::read_dir(&canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ptmx"], "the host's directory is as it was");
    assert_eq!(std::fs::read_to_string(canary.join("ptmx")).unwrap(), "mine");
    std::fs::remove_dir_all(&canary).unwrap();
}

fn etc_links() {
    let canary = std::env::temp_dir().join(format!("gpurun-canary-etc-{}", std::process::id()));
    std::fs::write(&canary, "mine").unwrap();
    let layer = Layer::default()
        .link("etc/hosts", canary.to_str().unwrap())
        .link("etc/resolv.conf", "/proc/1/environ")
        .link("proc", "/tmp")
        .link("sys", "/");
    let host = host_with("evil", layer);
    let answer = host.run(&run(&[
        "evil",
        "sh",
        "-c",
        "grep -q localhost /etc/hosts && test -d /proc/self && test -d /sys/kernel",
    ]));
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "mine");
    std::fs::remove_file(&canary).unwrap();
}

fn workdir() {
    let host = host_with("evil", Layer::default().link("out", "/proc/self/fd/7"));
    for dir in ["/proc/self/fd/7", "/proc/self/fd/3", "/out"] {
        let answer =
            host.run(&run(&["-w", dir, "evil", "sh", "-c", "ls ../../../../../../../var/lib 2>/dev/null; pwd -P"]));
        assert!(answer.code != 0 || !answer.out.contains("dpkg"), "{dir}: {} {}", answer.out, answer.err);
    }
}

fn pid_host() {
    let host = Host::with_box();
    let own = std::process::id();
    host.ok(&run(&["--pid", "host", "box", "test", "-d", &format!("/proc/{own}")]));
    host.fails(1, &run(&["box", "test", "-d", &format!("/proc/{own}")]));
}

fn sealed() {
    let host = Host::with_box();
    let before = std::fs::read(binary()).unwrap();
    // The image's command is gpurun itself, by way of the magic link.
    let layer = Layer::default().link("evil", "/proc/self/exe");
    let path = host.dir.join("evil.tar");
    let mut archive = busybox();
    archive.name = "evil".into();
    archive.layer(layer).write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    let _ = host.run(&run(&["evil", "/evil", "--version"]));
    host.ok(&["run", "-d", "--network", "none", "--name", "one", "evil", "sleep", "1000"]);
    let script = "for p in /proc/[0-9]*; do (echo broken > $p/exe) 2>/dev/null; done; true";
    host.ok(&["exec", "one", "sh", "-c", script]);
    let _ = host.run(&["exec", "one", "/evil", "--version"]);
    assert!(std::fs::read(binary()).unwrap() == before, "the host's binary has changed");
}
