//! Where mounts may be, in which order they are made, and what they leave on the host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::archive::{Layer, busybox};
use crate::host::{Host, answer};

pub const TESTS: &[(&str, fn())] = &[
    ("what_the_runtime_populates_is_refused_and_the_host_is_as_it_was", refused),
    ("what_is_mounted_there_sensibly_works", sensible),
    ("links_and_volumes_of_an_image_cannot_lead_there", image),
    ("a_shallower_mount_never_hides_a_deeper_one", nested),
    ("at_the_same_destination_the_users_mount_wins", same),
    ("a_volume_is_never_filled_from_outside_the_image", filled),
    ("read_only_covers_what_is_mounted_below", read_only),
    ("a_link_in_a_directory_of_the_host_leads_no_mount_astray", astray),
    ("a_build_steps_mounts_obey_the_same_rule", build_step),
    ("devices_are_never_made_in_a_directory_of_the_host", nodes),
    ("cp_follows_the_rules_of_a_launch", at_rest),
    ("an_image_makes_nothing_in_a_shared_dev_shm", shared_memory),
];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(rest);
    args
}

fn dir(host: &Host, name: &str) -> PathBuf {
    let dir = host.dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn refused() {
    let host = Host::with_box();
    let empty = dir(&host, "empty");
    for destination in [
        "/dev",
        "/dev/pts",
        "/dev/null",
        "/dev/fd",
        "/proc",
        "/proc/sys",
        "/proc/self",
        "/sys",
        "/sys/fs/cgroup",
        "/x/../dev",
    ] {
        let bind = format!("{}:{destination}", empty.display());
        let read_only = format!("{bind}:ro");
        let mount = format!("type=bind,source={},target={destination}", empty.display());
        for flags in
            [["-v", &bind], ["-v", &read_only], ["-v", destination], ["--mount", &mount], ["--tmpfs", destination]]
        {
            let error = host.fails(125, &run(&[flags[0], flags[1], "box", "true"]));
            assert!(error.contains("cannot mount on") && error.contains("hint: "), "{flags:?}: {error}");
        }
    }
    assert_eq!(names(&empty), [""; 0]);
    let error = host.fails(125, &run(&["-v", "/tmp:/x", "--tmpfs", "/x", "box", "true"]));
    assert!(error.contains("duplicate mount point"), "{error}");
}

fn sensible() {
    let host = Host::with_box();
    let shared = dir(&host, "shm");
    fs::write(host.dir.join("cpuinfo"), "mine\n").unwrap();
    let bind = |source: &Path, destination: &str| format!("{}:{destination}", source.display());
    let script = "cat /proc/cpuinfo /dev/note && echo x > /dev/shm/x && ls -d /sys/class/net && test -c /dev/null";
    let out = host.ok(&run(&[
        "-v",
        &bind(&shared, "/dev/shm"),
        "-v",
        &bind(&host.dir.join("cpuinfo"), "/proc/cpuinfo:ro"),
        "-v",
        &bind(&host.dir.join("cpuinfo"), "/dev/note"),
        "-v",
        "/sys/class:/sys/class:ro",
        "box",
        "sh",
        "-c",
        script,
    ]));
    assert_eq!(out, "mine\nmine\n/sys/class/net");
    assert_eq!(names(&shared), ["x"]);
    let shm = host.ok(&run(&[
        "--tmpfs",
        "/dev/shm:size=1m",
        "box",
        "sh",
        "-c",
        "grep -c ' /dev/shm ' /proc/mounts; df -k /dev/shm",
    ]));
    assert!(shm.starts_with("1\n") && shm.contains(" 1024 "), "one mount, of the size asked for: {shm}");
    // The host's /sys, read-only, with the container's own cgroup in it.
    let sys = host.ok(&run(&[
        "-v",
        "/sys:/sys:ro",
        "box",
        "sh",
        "-c",
        "touch /sys/x /sys/fs/cgroup/x; ls /sys/fs/cgroup | wc -l",
    ]));
    assert_ne!(sys, "0");
    host.ok(&run(&["--mount", "type=tmpfs,\"target=/a,b\"", "box", "test", "-d", "/a,b"]));
}

/// A host whose store has an image `odd`: busybox, a layer, a configuration.
fn odd(layer: Layer, volumes: &[&str]) -> Host {
    let host = Host::new();
    let path = host.dir.join("odd.tar");
    let mut archive = busybox();
    archive.name = "odd".into();
    let volumes: serde_json::Map<_, _> = volumes.iter().map(|volume| ((*volume).to_owned(), json!({}))).collect();
    archive.config["config"]["Volumes"] = volumes.into();
    archive.layer(layer).write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    host
}

fn image() {
    let layer = Layer::default().link("data", "/proc").link("pts", "dev/pts").link("far", "/tmp/../dev");
    let host = odd(layer, &["/proc", "/dev/pts", "/sys/fs/cgroup", "/data", "/a/../../proc/sys", "/good"]);
    let empty = dir(&host, "empty");
    for destination in ["/data", "/data/sys", "/pts", "/far", "/far/null"] {
        let bind = format!("{}:{destination}", empty.display());
        let error = host.fails(125, &run(&["-v", &bind, "odd", "true"]));
        assert!(error.contains("a link in the image leads to"), "{destination}: {error}");
    }
    assert_eq!(names(&empty), [""; 0]);
    // The image's own volumes there are left out, and a notice names each.
    let script = "test -d /proc/self && test -c /dev/ptmx && test -e /sys/kernel && grep -c ' /good ' /proc/mounts";
    let answer = host.run(&run(&["odd", "sh", "-c", script]));
    assert_eq!((answer.code, answer.out.trim()), (0, "1"), "{}", answer.err);
    for volume in ["`/proc`", "`/dev/pts`", "`/sys/fs/cgroup`", "`/data`", "`/proc/sys`"] {
        assert!(
            answer.err.lines().any(|line| line.contains("is left out") && line.contains(volume)),
            "{volume}: {}",
            answer.err
        );
    }
}

/// A CDI device `example.com/toy=one` whose only edit is a mount, and the variable that makes gpurun find it.
fn cdi(host: &Host, source: &Path, destination: &str) -> (&'static str, PathBuf) {
    let root = dir(host, "driver-root");
    fs::create_dir_all(root.join("etc/cdi")).unwrap();
    let source = Path::new("/").join(source.strip_prefix(&root).unwrap());
    let text = json!({
        "cdiVersion": "0.6.0",
        "kind": "example.com/toy",
        "devices": [{ "name": "one", "containerEdits": { "mounts": [
            { "hostPath": source, "containerPath": destination, "options": ["ro", "nosuid", "nodev", "bind"] }
        ] } }],
    });
    fs::write(root.join("etc/cdi/toy.json"), text.to_string()).unwrap();
    ("GPURUN_DRIVER_ROOT", root)
}

fn nested() {
    let host = Host::with_box();
    let (opt, library) = (dir(&host, "opt"), dir(&host, "driver-root/library"));
    fs::write(opt.join("mine"), "").unwrap();
    fs::write(library.join("lib.so"), "driver").unwrap();
    let (name, root) = cdi(&host, &library, "/opt/driver/lib");
    let bind = format!("{}:/opt", opt.display());
    let toy =
        ["-v", &bind, "--device", "example.com/toy=one", "box", "sh", "-c", "ls /opt; cat /opt/driver/lib/lib.so"];
    let got = answer(host.command(&run(&toy)).env(name, &root).output().unwrap());
    assert_eq!((got.code, got.out.as_str()), (0, "driver\nmine\ndriver"), "{}", got.err);
    // Flags in any order; volumes, binds and tmpfs in each other.
    let inner = format!("{}:/a/b/c", library.display());
    let outer = format!("{}:/a", opt.display());
    fs::create_dir_all(opt.join("b")).unwrap();
    let all = [
        "-v",
        &inner,
        "--tmpfs",
        "/a/b",
        "-v",
        &outer,
        "box",
        "sh",
        "-c",
        "ls /a/b /a/b/c; grep -c ' /a' /proc/mounts",
    ];
    assert_eq!(host.ok(&run(&all)), "/a/b:\nc\n\n/a/b/c:\nlib.so\n3");
    // A mount point below a read-only directory of the host has to be there.
    let outer = format!("{}:/a:ro", library.display());
    let error = host.fails(125, &run(&["-v", &outer, "--tmpfs", "/a/tmp", "box", "true"]));
    assert!(
        error.contains(&format!("hint: make the mount point first: `mkdir -p {}/tmp`", library.display())),
        "{error}"
    );
    assert_eq!(names(&library), ["lib.so"]);
    // gpurun's own files are left out rather than made in a directory of the host.
    let etc = dir(&host, "etc");
    let bind = format!("{}:/etc", etc.display());
    let got = host.run(&run(&["-v", &bind, "box", "ls", "/etc"]));
    assert_eq!((got.code, got.out.as_str()), (0, ""), "{}", got.err);
    assert!(got.err.contains("`/etc/resolv.conf` is left out"), "{}", got.err);
    assert_eq!(names(&etc), [""; 0]);
}

fn same() {
    let host = Host::with_box();
    let (mine, library) = (dir(&host, "mine"), dir(&host, "driver-root/library"));
    fs::write(mine.join("lib.so"), "mine").unwrap();
    fs::write(library.join("lib.so"), "driver").unwrap();
    let (name, root) = cdi(&host, &library, "/opt/driver/lib");
    let bind = format!("{}:/opt/driver/lib", mine.display());
    let toy = [
        "-v",
        &bind,
        "--device",
        "example.com/toy=one",
        "box",
        "sh",
        "-c",
        "cat /opt/driver/lib/lib.so; grep -c /opt/driver /proc/mounts",
    ];
    let got = answer(host.command(&run(&toy)).env(name, &root).output().unwrap());
    assert_eq!((got.code, got.out.as_str()), (0, "mine1\n"), "{}", got.err);
    assert!(got.err.contains("the mount on `/opt/driver/lib` replaces"), "{}", got.err);
    let bind = format!("{}/lib.so:/etc/hosts", mine.display());
    let got = host.run(&run(&["-v", &bind, "box", "cat", "/etc/hosts"]));
    assert_eq!((got.code, got.out.as_str()), (0, "mine"), "{}", got.err);
}

fn filled() {
    // `opt/sub` leads to the host's /etc where it is not resolved in the image.
    let layer = Layer::default().link("opt/sub", "/etc").link("etc2", "/etc").file("etc/inside", 0o644, b"");
    let host = odd(layer, &[]);
    let opt = dir(&host, "opt");
    let bind = format!("{}:/opt", opt.display());
    // Below a directory of the host the volume begins empty.
    assert_eq!(host.ok(&run(&["-v", &bind, "-v", "data:/opt/sub", "odd", "ls", "/opt/sub"])), "");
    assert_eq!(host.ok(&run(&["-v", "other:/etc2/", "odd", "ls", "/etc/inside"])), "/etc/inside");
    let copied = names(&host.dir.join("root/volumes/other"));
    assert!(copied.contains(&"inside".to_owned()) && !copied.contains(&"shadow".to_owned()), "{copied:?}");
}

fn read_only() {
    let host = Host::with_box();
    let tree = dir(&host, "tree");
    fs::create_dir_all(tree.join("below")).unwrap();
    // In a mount namespace of its own, with a file system mounted below the source.
    let script = format!("mount -t tmpfs x {}/below && exec \"$@\"", tree.display());
    let bind = format!("{}:/t:ro", tree.display());
    for (mount, code) in
        [(["-v", &bind], 1), (["--mount", &format!("type=bind,source={},target=/t", tree.display())], 0)]
    {
        let args = run(&[mount[0], mount[1], "box", "touch", "/t/below/x"]);
        let mut command = host.behind(&["unshare", "-m", "sh", "-c", &script, "sh"], &args);
        let got = answer(command.output().unwrap());
        assert_eq!(got.code, code, "{mount:?}: {}", got.err);
    }
}

/// A directory that a container wrote to earlier, with a link where the next container's mount is to be.
fn astray() {
    let host = Host::with_box();
    let (work, data) = (dir(&host, "work"), dir(&host, "data"));
    for target in ["/dev", "/proc", "/proc/sys", "/dev/pts", "/etc", "..", "/sys/fs/cgroup"] {
        let _ = fs::remove_file(work.join("link"));
        std::os::unix::fs::symlink(target, work.join("link")).unwrap();
        let outer = format!("{}:/work", work.display());
        for destination in ["/work/link", "/work/link/below"] {
            for kind in ["bind", "volume", "tmpfs"] {
                let mount = match kind {
                    "bind" => format!("type=bind,source={},target={destination}", data.display()),
                    other => format!("type={other},target={destination}"),
                };
                let error = host.fails(125, &run(&["-v", &outer, "--mount", &mount, "box", "true"]));
                assert!(error.contains("is a link"), "{target} {mount}: {error}");
            }
        }
        assert_eq!((names(&work), names(&data)), (vec!["link".to_owned()], Vec::new()), "{target}");
    }
}

fn build_step() {
    let host = Host::with_box();
    let context = dir(&host, "context");
    for (target, why) in [
        ("/dev", "fills the container's /dev"),
        ("/proc/sys", "in the container's own /proc"),
        ("/pts", "leads to `/dev/pts`"),
    ] {
        let text = format!("FROM box\nRUN ln -s /dev/pts /pts\nRUN --mount=type=bind,target={target} true\n");
        fs::write(context.join("Containerfile"), text).unwrap();
        let got = host.run(&["build", "--network", "none", "-t", "x", context.to_str().unwrap()]);
        assert!(got.code != 0 && got.err.contains(why), "{target}: {} {}", got.code, got.err);
        assert_eq!(names(&context), ["Containerfile"]);
    }
}

fn nodes() {
    let host = Host::with_box();
    let empty = dir(&host, "empty");
    let bind = format!("{}:/dev/x", empty.display());
    let out = host.ok(&run(&["-v", &bind, "--device", "/dev/kmsg:/dev/x/kmsg", "box", "ls", "-A", "/dev/x"]));
    assert_eq!((out.as_str(), names(&empty)), ("", Vec::new()));
    let bind = format!("{}:/dev/kmsg", binary_file(&empty));
    assert_eq!(host.ok(&run(&["-v", &bind, "--device", "/dev/kmsg", "box", "cat", "/dev/kmsg"])), "text");
    for path in ["/dev", "/dev/pts/0", "/dev/fd", "/dev/stdin"] {
        let error = host.fails(125, &run(&["--device", &format!("/dev/kmsg:{path}"), "box", "true"]));
        assert!(error.contains("cannot"), "{path}: {error}");
    }
}

fn binary_file(dir: &Path) -> String {
    let path = dir.join("file");
    fs::write(&path, "text").unwrap();
    path.display().to_string()
}

fn at_rest() {
    let layer = Layer::default().link("www", "/opt/sub").file("data/file", 0o644, b"of the image").file(
        "opt/inner/file",
        0o644,
        b"of the image",
    );
    let host = odd(layer.file("more/file", 0o644, b"of the image"), &[]);
    let (work, data) = (dir(&host, "work"), dir(&host, "data"));
    fs::create_dir(work.join("inner")).unwrap();
    fs::write(work.join("inner/of-the-host"), "").unwrap();
    fs::write(data.join("file"), "of data").unwrap();
    let outer = format!("{}:/opt", work.display());
    std::os::unix::fs::symlink("/etc", work.join("sub")).unwrap();
    for destination in ["/opt/sub", "/opt/sub/below", "/www"] {
        let inner = format!("{}:{destination}", data.display());
        host.ok(&["create", "--name", "one", "-v", &outer, "-v", &inner, "odd", "true"]);
        let got = host.run(&["cp", "one:/etc/passwd", "copy"]);
        assert!(got.code != 0 && got.err.contains("is a link"), "{destination}: {}", got.err);
        host.ok(&["rm", "one"]);
    }
    assert_eq!((names(&work), names(&data)), (vec!["inner".into(), "sub".into()], vec!["file".to_owned()]));
    fs::remove_file(work.join("sub")).unwrap();
    let inner = format!("{}:/www", data.display());
    let mut args = vec!["create", "--name", "one"];
    args.extend(["-v", &outer, "-v", &inner, "-v", "below:/opt/inner", "-v", "empty:/data:nocopy", "-v", "full:/more"]);
    args.extend(["odd", "true"]);
    host.ok(&args);
    host.ok(&["cp", "one:/opt/sub/file", "copy"]);
    assert_eq!(fs::read_to_string(host.dir.join("copy")).unwrap(), "of data");
    for (volume, expected) in [("below", vec![]), ("empty", vec![]), ("full", vec!["file".to_owned()])] {
        assert_eq!(names(&host.dir.join("root/volumes").join(volume)), expected, "{volume}");
    }
    assert_eq!(host.leftovers(), "");
}

fn shared_memory() {
    let host = odd(Layer::default().link("etc", "/dev/shm"), &["/dev/shm/one", "/etc/two"]);
    host.ok(&["image", "load", crate::host::box_archive().to_str().unwrap()]);
    host.ok(&["run", "-d", "--network", "none", "--name", "owner", "--ipc", "shareable", "box", "sleep", "1000"]);
    // The host's /dev/shm is one of the test's own.
    let own = ["unshare", "-m", "sh", "-c", "mount -t tmpfs x /dev/shm && exec \"$@\"", "sh"];
    for ipc in ["host", "container:owner"] {
        let got = host.behind(&own, &run(&["--ipc", ipc, "odd", "ls", "-A", "/dev/shm"])).output().unwrap();
        let got = answer(got);
        assert_eq!((got.code, got.out.as_str()), (0, ""), "{ipc}: {}", got.err);
        for left_out in ["`/etc/hosts` is left out", "`/dev/shm/one` would be made", "`/etc/two` would be made"] {
            assert!(got.err.contains(left_out), "{ipc}: {left_out}: {}", got.err);
        }
    }
    assert_eq!(host.ok(&["exec", "owner", "ls", "-A", "/dev/shm"]), "");
    host.ok(&["rm", "-f", "owner"]);
}
