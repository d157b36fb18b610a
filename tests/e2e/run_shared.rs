//! Flags of `run` for what a container shares with others and with the host: volumes, mounts, images, namespaces.

use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("volumes_come_from_another_container", volumes_from),
    ("volumes_are_mounted_in_part_uncopied_or_given_away", volumes),
    ("a_slave_mount_receives_the_hosts_mounts", propagation),
    ("an_image_is_mounted", image_mount),
    ("an_ipc_namespace_is_shared", ipc),
    ("a_pid_namespace_is_shared", pid),
];

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

fn volumes_from() {
    let host = Host::with_box();
    std::fs::create_dir(host.dir.join("dir")).unwrap();
    host.ok(&[
        "create",
        "--name",
        "data",
        "-v",
        "/anonymous",
        "-v",
        "named:/named",
        "-v",
        "./dir:/dir:ro",
        "--tmpfs",
        "/t",
        "box",
    ]);
    let run = |flags: &[&str], script: &str| host.run(&[&RUN[..], flags, &["box", "sh", "-c", script]].concat());
    let missing = run(&["--volumes-from", "data"], "true");
    assert!(
        missing.code == 125 && missing.err.contains("does not exist") && missing.err.contains("start container"),
        "{}",
        missing.err
    );
    host.ok(&["start", "-a", "data"]);
    let said = run(
        &["--volumes-from", "data"],
        "echo 1 >/anonymous/f; echo 2 >/named/f; touch /dir/f 2>/dev/null || echo ro; test -e /t || echo none",
    );
    assert_eq!((said.code, &*said.out), (0, "ro\nnone\n"), "{}", said.err);
    let said = run(&["--volumes-from", "data:ro"], "cat /anonymous/f /named/f; touch /named/g 2>/dev/null || echo ro");
    assert_eq!(&*said.out, "1\n2\nro\n", "{}", said.err);
    // Its own mount wins.
    assert_eq!(run(&["--volumes-from", "data", "-v", "/named"], "ls /named").out, "");
    host.ok(&["run", "-d", "--name", "user", "--network", "none", "--volumes-from", "data", "box", "sleep", "1000"]);
    let mounts = host.inspect("user")["Mounts"].clone();
    let names: Vec<&Value> = mounts.as_array().unwrap().iter().map(|mount| &mount["Destination"]).collect();
    assert!(names.contains(&&json!("/anonymous")) && names.contains(&&json!("/dir")), "{mounts}");
    let error = host.fails(1, &["rm", "data"]);
    assert!(error.contains("container `user` uses its volumes") && error.contains("gpurun rm user"), "{error}");
    assert_eq!(host.ok(&["container", "prune", "-f"]), "Total reclaimed space: 0B");
    host.ok(&["restart", "-t", "0", "user"]);
    assert_eq!(host.ok(&["exec", "user", "cat", "/anonymous/f"]), "1");
    // A third container has them through the second one.
    assert_eq!(run(&["--volumes-from", "user"], "cat /anonymous/f").out, "1\n");
    host.ok(&["rm", "-f", "user"]);
    host.ok(&["rm", "data"]);
    host.ok(&["run", "-d", "--rm", "--name", "gone", "--network", "none", "-v", "/v", "box", "sleep", "1000"]);
    let said = run(&["--volumes-from", "gone"], "true");
    assert!(said.code == 125 && said.err.contains("which has `--rm`"), "{}", said.err);
    host.ok(&["rm", "-f", "gone"]);
    assert_eq!(host.leftovers(), "");
}

fn volumes() {
    let host = Host::with_box();
    let run = |flags: &[&str], script: &str| host.run(&[&RUN[..], flags, &["box", "sh", "-c", script]].concat());
    // The image's files at the destination fill a new volume, or do not.
    assert!(run(&["-v", "full:/etc"], "ls /etc").out.contains("passwd"));
    assert!(!run(&["-v", "none:/etc:nocopy"], "ls /etc").out.contains("passwd"));
    assert!(!run(&["--mount", "source=none2,target=/etc,volume-nocopy"], "ls /etc").out.contains("passwd"));
    let part = ["--mount", "type=volume,source=full,target=/x,volume-subpath=sub/dir"];
    let missing = run(&part, "true");
    assert!(
        missing.code == 125 && missing.err.contains("has no `sub/dir`") && missing.err.contains("mkdir -p"),
        "{}",
        missing.err
    );
    assert_eq!(run(&["-v", "full:/v"], "mkdir -p /v/sub/dir; ln -s / /v/out; ln -s sub/dir /v/in").code, 0);
    assert_eq!(run(&part, "echo x >/x/f; ls /x").out, "f\n");
    assert_eq!(run(&["-v", "full:/v"], "cat /v/sub/dir/f").out, "x\n");
    // A link that the container wrote leads nowhere outside of the volume.
    let out = run(&["--mount", "source=full,target=/x,volume-subpath=out"], "ls /x");
    assert!(out.out.contains("passwd") && !out.out.contains("proc"), "{} {}", out.out, out.err);
    // Given to the container's user, links not followed.
    let dir = host.dir.join("mine");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "x").unwrap();
    std::fs::write(host.dir.join("other"), "x").unwrap();
    std::os::unix::fs::symlink(host.dir.join("other"), dir.join("link")).unwrap();
    let owner = |path: std::path::PathBuf| std::fs::symlink_metadata(path).unwrap().uid();
    assert_eq!(run(&["-v", "./mine:/m"], "true").code, 0);
    assert_eq!(owner(dir.join("file")), 0);
    assert_eq!(run(&["-u", "1000:1000", "-v", "./mine:/m:U,z"], "echo y >/m/file && cat /m/file").out, "y\n");
    assert_eq!((owner(dir.clone()), owner(dir.join("file")), owner(dir.join("link"))), (1000, 1000, 1000));
    assert_eq!(owner(host.dir.join("other")), 0);
    assert_eq!(run(&["-u", "1000", "-v", "given:/m:U"], "touch /m/f && echo ok").out, "ok\n");
    assert_eq!(host.leftovers(), "");
}

fn propagation() {
    let host = Host::with_box();
    let dir = host.dir.join("shared");
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    let path = dir.to_str().unwrap().to_owned();
    let mount =
        |args: &[&str]| assert!(std::process::Command::new("mount").args(args).status().unwrap().success(), "{args:?}");
    let umount =
        |path: &str| assert!(std::process::Command::new("umount").arg(path).status().unwrap().success(), "{path}");
    mount(&["--bind", &path, &path]);
    mount(&["--make-private", &path]);
    let volume = |options: &str| format!("{path}:/x:{options}");
    let error = host.fails(125, &[&RUN[..], &["-v", &volume("rslave"), "box", "true"]].concat());
    assert!(error.contains("is private") && error.contains("mount --make-rshared"), "{error}");
    mount(&["--make-shared", &path]);
    for (name, options) in [("slave", "ro,rslave"), ("private", "ro")] {
        host.ok(&["run", "-d", "--name", name, "--network", "none", "-v", &volume(options), "box", "sleep", "1000"]);
    }
    let sub = format!("{path}/sub");
    mount(&["-t", "tmpfs", "none", &sub]);
    std::fs::write(dir.join("sub/new"), "").unwrap();
    assert_eq!(host.ok(&["exec", "slave", "ls", "/x/sub"]), "new");
    assert_eq!(host.ok(&["exec", "private", "ls", "/x/sub"]), "");
    assert_ne!(host.run(&["exec", "slave", "touch", "/x/f"]).code, 0, "it is read-only");
    umount(&sub);
    assert_eq!(host.ok(&["exec", "slave", "ls", "/x/sub"]), "");
    let error = host.fails(125, &[&RUN[..], &["-v", &volume("rslave"), "--tmpfs", "/x/sub", "box", "true"]].concat());
    assert!(error.contains("receives mounts of this host"), "{error}");
    host.ok(&["rm", "-f", "slave", "private"]);
    umount(&path);
    assert_eq!(host.leftovers(), "");
}

fn image_mount() {
    let host = Host::with_box();
    host.ok(&["run", "--name", "made", "--network", "none", "box", "sh", "-c", "mkdir /data; echo x >/data/file"]);
    host.ok(&["commit", "made", "files:1"]);
    host.ok(&["rm", "made"]);
    let mount = |more: &str| format!("type=image,source=files:1,target=/m{more}");
    let run = |more: &str, script: &str| {
        host.run(&[&RUN[..], &["--mount", &mount(more), "box", "sh", "-c", script]].concat())
    };
    assert_eq!(run("", "cat /m/data/file; touch /m/x 2>/dev/null || echo ro").out, "x\nro\n");
    assert_eq!(run(",image-subpath=data", "ls /m").out, "file\n");
    assert!(run(",image-subpath=nosuch", "ls /m").err.contains("the image `files:1` has no `nosuch`"));
    let missing =
        host.fails(125, &[&RUN[..], &["--mount", "type=image,source=nosuch,target=/m", "box", "true"]].concat());
    assert!(missing.contains("cannot mount the image `nosuch` on `/m`"), "{missing}");
    host.ok(&[
        "run",
        "-d",
        "--name",
        "lab",
        "--network",
        "none",
        "--mount",
        &mount(",rw=true"),
        "box",
        "sleep",
        "1000",
    ]);
    host.ok(&["exec", "lab", "sh", "-c", "echo y >/m/data/file"]);
    assert_eq!(run("", "cat /m/data/file").out, "x\n", "the image is not changed");
    let shown = host.inspect("lab")["Mounts"][0].clone();
    assert_eq!((&shown["Type"], &shown["Name"], &shown["RW"]), (&json!("image"), &json!("files:1"), &json!(true)));
    let error = host.run(&["rmi", "files:1"]);
    assert!(error.code == 1 && error.err.contains("lab"), "{}", error.err);
    host.ok(&["restart", "-t", "0", "lab"]);
    assert_eq!(host.ok(&["exec", "lab", "cat", "/m/data/file"]), "x");
    host.ok(&["rm", "-f", "lab"]);
    host.ok(&["rmi", "files:1"]);
    assert_eq!(host.leftovers(), "");
}

fn pid() {
    let host = Host::with_box();
    let run = |name: &str, pid: &str, more: &[&str]| {
        let args = ["run", "-d", "--name", name, "--network", "none", "--pid", pid];
        host.run(&[&args[..], more, &["box", "sleep", "1000"]].concat())
    };
    assert!(host.fails(125, &["run", "--pid", "container:nope", "box"]).contains("`nope`"));
    assert_eq!(run("one", "private", &[]).code, 0);
    let answer = run("two", "container:one", &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let namespace = |name: &str| host.ok(&["exec", name, "readlink", "/proc/self/ns/pid"]);
    assert_eq!(namespace("one"), namespace("two"));
    // Each sees the processes of both, in its own /proc, and each has its own cgroup.
    for name in ["one", "two"] {
        let seen = host.ok(&["exec", name, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
        assert_eq!(seen.matches("sleep 1000").count(), 2, "{name}: {seen}");
        assert_eq!(host.ok(&["top", name]).lines().count(), 2, "{name}");
    }
    let one = host.inspect("one")["Id"].as_str().unwrap().to_owned();
    assert_eq!(host.inspect("two")["HostConfig"]["PidMode"], format!("container:{one}"));
    // What a container leaves behind ends with it, although the namespace lives on.
    host.ok(&["exec", "-d", "two", "sh", "-c", "sleep 2000"]);
    eventually("it runs", || host.ok(&["top", "two"]).contains("sleep 2000"));
    host.ok(&["stop", "-t", "0", "two"]);
    let seen = host.ok(&["exec", "one", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
    assert!(seen.contains("sleep 1000") && !seen.contains("sleep 2000"), "{seen}");
    host.ok(&["start", "two"]);
    // With its supervisor, the container ends, and the other one stays.
    let supervisor = host.inspect("two")["Supervisor"]["Pid"].as_i64().unwrap();
    kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).unwrap();
    eventually("only one is left", || {
        let seen = host.ok(&["exec", "one", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
        seen.matches("sleep 1000").count() == 1
    });
    host.ok(&["start", "two"]);
    // The kernel ends the processes of a namespace with its first one.
    host.ok(&["stop", "-t", "0", "one"]);
    eventually("its end", || host.inspect("two")["State"]["Status"] == "exited");
    assert_eq!(host.inspect("two")["State"]["ExitCode"], 137);
    let error = host.fails(1, &["start", "two"]);
    assert!(error.contains("container `one`: it is not running") && error.contains("gpurun start one"), "{error}");
    host.ok(&["start", "one"]);
    host.ok(&["start", "two"]);
    assert_eq!(namespace("one"), namespace("two"));
    // gpurun's init is not the namespace's first process then, and still passes signals on.
    assert_eq!(run("init", "container:one", &["--init"]).code, 0);
    assert!(host.ok(&["stop", "-t", "5", "init"]).contains("init"));
    assert_eq!(host.inspect("init")["State"]["ExitCode"], 143);
    host.ok(&["rm", "-f", "one"]);
    eventually("its end", || host.inspect("two")["State"]["Status"] == "exited");
    assert!(host.fails(1, &["start", "two"]).contains("it does not exist any more"));
    host.ok(&["rm", "-f", "two", "init"]);
    assert_eq!(host.leftovers(), "");
}

fn ipc() {
    let host = Host::with_box();
    let run = |name: &str, ipc: &str| {
        host.run(&["run", "-d", "--name", name, "--network", "none", "--ipc", ipc, "box", "sleep", "1000"])
    };
    assert_eq!(run("private", "private").code, 0);
    assert_eq!(run("one", "shareable").code, 0);
    let said = run("two", "container:private");
    assert!(
        said.code == 125 && said.err.contains("it is private") && said.err.contains("--ipc shareable"),
        "{}",
        said.err
    );
    assert_eq!(run("two", "container:one").code, 0);
    let namespace = |name: &str| host.ok(&["exec", name, "readlink", "/proc/1/ns/ipc"]);
    assert_eq!(namespace("one"), namespace("two"));
    host.ok(&["exec", "one", "sh", "-c", "echo shared >/dev/shm/file"]);
    assert_eq!(host.ok(&["exec", "two", "cat", "/dev/shm/file"]), "shared");
    let one = host.inspect("one")["Id"].as_str().unwrap().to_owned();
    assert_eq!(host.inspect("two")["HostConfig"]["IpcMode"], format!("container:{one}"));
    // A new name changes nothing, and a restart of the other one is noticed.
    host.ok(&["rename", "one", "first"]);
    let said = host.run(&["restart", "-t", "0", "first"]);
    assert!(
        said.code == 0 && said.err.contains("container `two` still has the IPC namespace of the earlier run"),
        "{}",
        said.err
    );
    assert_ne!(namespace("first"), namespace("two"));
    host.ok(&["restart", "-t", "0", "two"]);
    assert_eq!(namespace("first"), namespace("two"));
    host.ok(&["stop", "-t", "0", "first", "two"]);
    let error = host.fails(1, &["start", "two"]);
    assert!(error.contains("container `first`: it is not running") && error.contains("gpurun start first"), "{error}");
    host.ok(&["rm", "-f", "first"]);
    let error = host.fails(1, &["start", "two"]);
    assert!(error.contains("it does not exist any more"), "{error}");
    host.ok(&["rm", "-f", "two", "private"]);
    assert_eq!(host.leftovers(), "");
}
