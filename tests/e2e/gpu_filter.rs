//! What a container with GPUs, or with other devices of the host, can open and load, and what it cannot.
//!
//! `open()` of a node answers EPERM where the device filter denies it; behind the filter there is no driver (ENXIO), or a real one: an exact question.

use std::path::Path;
use std::process::Command;

use crate::archive::{Archive, Layer, busybox};
use crate::driver::{self, GIB, LIBRARY_DIR, VERSION, mig_uuid};
use crate::gpu::{Lab, leased};
use crate::host::Host;

pub const TESTS: &[(&str, fn())] = &[
    ("natively_a_gpu_is_isolated", native),
    ("a_programs_linker_finds_the_driver", linker),
    ("a_mig_device_is_isolated", mig),
    ("cdi_files_are_followed", cdi),
    ("gpus_of_any_vendor_by_cdi", any_vendor),
    ("devices_of_the_host", devices),
];

/// What opening a node says, for nodes that are there and nodes that are made.
/// Only the filter says `Operation not permitted`. Behind it there is no driver (ENXIO), or, on a host with GPUs, a real one.
const OPEN: &str = "try() { [ -c $1 ] || echo missing; if dd if=$1 of=/dev/null count=0 2>&1 | grep -q 'Operation not permitted'; then echo 'Operation not permitted'; else echo opened; fi; }";

fn native() {
    let lab = Lab::new(2);
    let line = format!(
        "{OPEN}; ls /dev | grep nvidia; try /dev/nvidia0; mknod /tmp/own c 195 0 && try /tmp/own; mknod /tmp/other c 195 1 2>&1 | grep -o 'Operation not permitted'; mknod /tmp/null c 1 3 && try /tmp/null; nvidia-smi"
    );
    let flags = ["--gpus", "device=0", "--gpu-mode", "native", "-e", "PATH=/bin:/usr/bin"];
    let expected = [
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia0",
        "nvidiactl",
        "opened",
        "opened",
        "Operation not permitted",
        "opened",
        &format!("nvidia-smi of {VERSION}"),
    ];
    assert_eq!(lab.shell(&flags, &line).lines().collect::<Vec<_>>(), expected);

    // A node that another container made, which had no GPU and may make any, as docker's may.
    lab.shell(&["-v", "nodes:/nodes"], "mknod /nodes/other c 195 1");
    let found = format!("{OPEN}; try /nodes/other");
    assert_eq!(lab.shell(&["--gpus", "device=0", "-v", "nodes:/nodes"], &found), "Operation not permitted");

    // A process that comes later is in the same filter.
    lab.ok(&["run", "-d", "--name", "lab", "--network", "none", "--gpus", "1", "box", "sleep", "1000"]);
    let later = format!("{OPEN}; try /dev/nvidia0; mknod /tmp/other c 195 1 2>&1 | grep -o 'Operation not permitted'");
    let said = lab.ok(&["exec", "lab", "sh", "-c", &later]);
    assert_eq!(said, "opened\nOperation not permitted");
    // Started again, it has its GPU again, and its linker's cache has not grown.
    let cache = || lab.ok(&["exec", "lab", "sh", "-c", "wc -c < /etc/ld.so.cache; ls /usr/lib/libcuda.so.1"]);
    let first = cache();
    lab.ok(&["stop", "-t", "0", "lab"]);
    lab.ok(&["start", "lab"]);
    assert_eq!(cache(), first);
    assert_eq!(lab.ok(&["exec", "lab", "sh", "-c", &later]), said);
    lab.ok(&["rm", "-f", "lab"]);
    let answer = lab.run(&["run", "--rm", "--network", "none", "-e", "NVIDIA_VISIBLE_DEVICES=1", "box", "env"]);
    assert!(
        answer.out.contains("NVIDIA_VISIBLE_DEVICES=void") && answer.err.contains("use `--gpus device=1`"),
        "{}",
        answer.err
    );
    let without = format!("{OPEN}; mknod /tmp/n c 195 0; try /tmp/n");
    assert_eq!(lab.shell(&[], &without), "Operation not permitted", "no --gpus, no GPU");
    assert_eq!(lab.host.leftovers(), "");
}

/// A container with the host's own glibc: its linker finds the driver by the cache that was written for it, in a directory of no path.
fn linker() {
    let lab = Lab::new(1);
    let dir = lab.host.dir.join("linker");
    std::fs::create_dir(&dir).unwrap();
    let program = driver::built().join("load");
    let ldd = Command::new("ldd").arg(&program).output().unwrap();
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    // Debian's directory for the driver is one that the linker searches by itself; here only the cache knows it.
    let mut layer = Layer::default().dir("usr", 0o755).dir("usr/lib64", 0o755).dir("lib64", 0o755).dir("lib", 0o755);
    layer = layer.file("bin/load", 0o755, &std::fs::read(&program).unwrap());
    for path in ldd.split_whitespace().filter(|snippet| snippet.starts_with('/')) {
        layer = layer.file(path.trim_start_matches('/'), 0o755, &std::fs::read(path).unwrap());
    }
    let mut archive = Archive::new("glibc");
    archive.layers.extend(busybox().layers);
    archive.layer(layer).write(&dir.join("image.tar"));
    lab.ok(&["image", "load", dir.join("image.tar").to_str().unwrap()]);
    let run = |flags: &[&str]| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend(["glibc", "load"]);
        lab.run(&args)
    };
    let loaded = run(&["--gpus", "all"]);
    assert_eq!(loaded.out, "loaded\n", "{}", loaded.err);
    assert!(run(&[]).out.contains("libcuda.so.1: cannot open shared object file"));
    let denied = run(&["--gpus", "all,capabilities=utility"]);
    assert!(denied.out.contains("libcuda.so.1: cannot open"), "a set without compute has no CUDA: {}", denied.out);
    // A hostile image: its library directory and cache are links out of it.
    let outside = lab.host.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    let layer = Layer::default()
        .dir("usr", 0o755)
        .link("usr/lib64", outside.to_str().unwrap())
        .link("usr/lib", "../../../../../../var/tmp")
        .link("etc/ld.so.cache", outside.join("cache").to_str().unwrap());
    let mut archive = Archive::new("hostile");
    archive.layers.extend(busybox().layers);
    archive.layer(layer).write(&dir.join("image.tar"));
    lab.ok(&["image", "load", dir.join("image.tar").to_str().unwrap()]);
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "hostile", "cat", "/etc/ld.so.cache"]);
    assert!(answer.code == 0 && answer.out.contains("libcuda.so.1"), "{}", answer.err);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing of it touched the host");
    assert!(!Path::new("/var/tmp").join(format!("libcuda.so.{VERSION}")).exists());
}

fn mig() {
    let lab = Lab::new(1);
    let migs = format!("mig 0 {} 1 0 {} 0\nmig 0 {} 2 0 {} 0\n", mig_uuid(0, 0), 10 * GIB, mig_uuid(0, 1), 10 * GIB);
    lab.driver.nvml(&format!("driver {VERSION}\ncuda 12040\n{}{migs}", driver::gpu(0, 0, 0, true)));
    lab.driver.mig_minors(0);
    let line = format!(
        "{OPEN}; ls /dev/nvidia-caps; try /dev/nvidia-caps/nvidia-cap20; mknod /tmp/x c {} 10 2>&1 | grep -o 'Operation not permitted'; echo $NVIDIA_VISIBLE_DEVICES",
        driver::CAPS_MAJOR
    );
    let expected = format!("nvidia-cap20\nnvidia-cap21\nopened\nOperation not permitted\n{}", mig_uuid(0, 1));
    for asked in ["device=0:1".to_owned(), format!("device={}", mig_uuid(0, 1))] {
        assert_eq!(lab.shell(&["--gpus", &asked], &line), expected);
    }
    assert_eq!(lab.shell(&["--gpus", "all"], "ls /dev/nvidia-caps").lines().count(), 4);
    // NVIDIA's own nodes of capabilities can only be read, and that is enough for any user.
    lab.driver.hook("true");
    let read = "[ -r /dev/nvidia-caps/nvidia-cap20 ] && [ ! -w /dev/nvidia-caps/nvidia-cap20 ] && echo readable";
    assert_eq!(lab.shell(&["-u", "1000", "--gpus", "device=0:1"], read), "readable");
}

fn cdi() {
    let lab = Lab::new(2);
    lab.driver.cdi("var/run/cdi/nvidia.yaml", 2);
    let seen = lab.host.dir.join("seen");
    lab.driver
        .program("nvidia-cdi-hook", &format!("echo \"$@\" > {0}.args; cat > {0}.state; env > {0}.env", seen.display()));
    let line = format!(
        "{OPEN}; try /dev/nvidia1; mknod /tmp/x c 195 0 2>&1 | grep -o 'Operation not permitted'; ls /{LIBRARY_DIR}"
    );
    let said = lab.shell(&["--gpus", "device=1", "--gpu-mode", "cdi"], &line);
    assert_eq!(said, format!("opened\nOperation not permitted\nlibcuda.so.{VERSION}"));
    let read = |what: &str| std::fs::read_to_string(format!("{}.{what}", seen.display())).unwrap();
    assert_eq!(read("args"), format!("create-symlinks --link libcuda.so.1::/{LIBRARY_DIR}/libcuda.so\n"));
    assert!(read("env").contains("NVIDIA_CTK_DEBUG=false"));
    let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
    assert!(state["bundle"].as_str().is_some_and(|bundle| bundle.contains("/run/")), "{state}");
    // By its own name, as podman's users write it; and `auto` chooses it where no hook is installed.
    assert_eq!(lab.shell(&["--device", "nvidia.com/gpu=0"], "ls /dev | grep 'nvidia[0-9]'"), "nvidia0");
    lab.ok(&[
        "run",
        "-d",
        "--name",
        "named",
        "--network",
        "none",
        "--device",
        "nvidia.com/gpu=0",
        "box",
        "sleep",
        "1000",
    ]);
    assert_eq!(lab.shell(&["--gpus", "1"], "ls /dev | grep 'nvidia[0-9]'"), "nvidia1", "the other one is not idle");
    lab.ok(&["rm", "-f", "named"]);
    assert_eq!(leased(&lab), 0);
    let answer = lab.run(&["--verbose", "run", "--rm", "--network", "none", "--gpus", "all", "box", "true"]);
    assert!(answer.err.contains("by CDI"), "{}", answer.err);
    // A node without the right to make it (`m`), as some files have it: passed, opened, and no twin of it can be made.
    let file = lab.driver.root.join("var/run/cdi/nvidia.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("permissions: rwm", "permissions: rw")).unwrap();
    let line = format!("{OPEN}; try /dev/nvidia1; mknod /tmp/x c 195 1 2>&1 | grep -o 'Operation not permitted'");
    let said = lab.shell(&["--gpus", "device=1", "--gpu-mode", "cdi"], &line);
    assert_eq!(said, "opened\nOperation not permitted");
    std::fs::write(&file, text).unwrap();
    // After an upgrade of the driver the file is stale: the mode that insists says so, `auto` does without it.
    std::fs::remove_file(lab.driver.root.join("dev/nvidia-uvm-tools")).unwrap();
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "--gpu-mode", "cdi", "box", "true"]);
    assert!(
        answer.code == 125 && answer.err.contains("stale") && answer.err.contains("nvidia-ctk cdi generate"),
        "{}",
        answer.err
    );
    let answer = lab.run(&["--verbose", "run", "--rm", "--network", "none", "--gpus", "all", "box", "true"]);
    assert!(
        answer.code == 0 && answer.err.contains("native injection") && answer.err.contains("stale"),
        "{}",
        answer.err
    );
    let answer = lab.run(&["run", "--rm", "--network", "none", "--device", "vendor.com/thing=0", "box", "true"]);
    assert!(answer.code == 125 && answer.err.contains("there is no CDI device"), "{}", answer.err);
    assert_eq!(lab.host.leftovers(), "");
}

/// AMD's GPUs: the nodes are stand-ins, and a CDI file describes them.
fn any_vendor() {
    let lab = Lab::new(0);
    std::fs::remove_dir_all(lab.driver.root.join("proc/driver")).unwrap();
    let device = |number: u32| {
        format!(
            r#"{{"name":"{number}","containerEdits":{{"deviceNodes":[{{"path":"/dev/dri/renderD{}","type":"c","major":510,"minor":{}}}]}}}}"#,
            128 + number,
            10 + number
        )
    };
    let text = format!(
        r#"{{"cdiVersion":"0.6.0","kind":"amd.com/gpu","devices":[{},{}],"containerEdits":{{"deviceNodes":[{{"path":"/dev/kfd","type":"c","major":511,"minor":1}}]}}}}"#,
        device(0),
        device(1)
    );
    lab.driver.write("etc/cdi/amd.json", &text);
    let line = format!(
        "{OPEN}; ls /dev/dri; try /dev/kfd; try /dev/dri/renderD129; mknod /tmp/x c 510 10 2>&1 | grep -o 'Operation not permitted'; echo $NVIDIA_VISIBLE_DEVICES"
    );
    let expected = "renderD129\nopened\nopened\nOperation not permitted\nvoid";
    for asked in [
        ["--gpus", "device=1,driver=cdi"],
        ["--gpus", "device=amd.com/gpu=1,driver=cdi"],
        ["--device", "amd.com/gpu=1"],
    ] {
        assert_eq!(lab.shell(&asked, &line), expected, "{asked:?}");
    }
    let flags =
        ["run", "-d", "--name", "lab", "--network", "none", "--device", "amd.com/gpu=0", "box", "sleep", "1000"];
    lab.ok(&flags);
    assert_eq!(lab.shell(&["--gpus", "1,driver=cdi"], "ls /dev/dri"), "renderD129", "the other one is not idle");
    let listed = lab.run(&["gpus"]);
    let holder = listed.out.lines().find(|line| line.contains("amd.com/gpu=0")).unwrap_or_default();
    assert!(listed.code == 0 && holder.contains("lab (root, "), "{} {}", listed.out, listed.err);
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "2,driver=cdi", "box", "true"]);
    assert!(answer.code == 125 && answer.err.contains("GPU 0 (amd.com/gpu=0): container `lab`"), "{}", answer.err);
    lab.ok(&["rm", "-f", "lab"]);
    // Without `driver=cdi`, the hint says how to get them.
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "box", "true"]);
    assert!(answer.code == 125 && answer.err.contains("hint: add `,driver=cdi`"), "{}", answer.err);
    assert_eq!(leased(&lab), 0);
    assert_eq!(lab.host.leftovers(), "");
}

fn devices() {
    let host = Host::with_box();
    let run = |device: &str, line: &str| {
        host.run(&["run", "--rm", "--network", "none", "--device", device, "box", "sh", "-c", line])
    };
    let answer = run("/dev/zero:/dev/nothing:r", "head -c 2 /dev/nothing | wc -c; stat -c %t:%T /dev/nothing");
    assert_eq!((answer.code, answer.out.as_str()), (0, "2\n1:5\n"), "{}", answer.err);
    assert_eq!(run("/dev/null", "mknod /tmp/x b 7 0").code, 1, "no other nodes beside the host's devices");
    for (device, code, snippets) in [
        ("/etc/passwd:/dev/x", 125, "is not a device node"),
        ("/dev/none", 125, "cannot be used"),
        ("/dev/null:/etc/x", 125, "is neither"),
    ] {
        let answer = run(device, "true");
        assert!(answer.code == code && answer.err.contains(snippets), "{device}: {}", answer.err);
    }
}
