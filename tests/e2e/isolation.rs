//! What a container cannot do, and what a hostile image cannot do to the host.

use crate::archive::{Layer, busybox};
use crate::host::{Host, binary};

pub const TESTS: &[(&str, fn())] = &[
    ("capabilities_are_dockers", capabilities),
    ("seccomp_and_no_new_privileges", seccomp),
    ("devices_are_denied", devices),
    ("masked_and_readonly_paths", masked),
    ("signals_are_at_their_defaults", signals),
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
    host.fails(2, &run(&["--cap-add", "FLY", "box", "true"]));
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
