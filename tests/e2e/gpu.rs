//! `--gpus` by the prestart hook, proved with a stand-in that writes down what it was given.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("the_hook_gets_what_nvidia_asks_for", contract),
    ("a_failing_hook_is_quoted_and_nothing_runs", failure),
    ("without_a_driver_or_a_hook_it_is_refused", refused),
    ("hooks_run_in_the_order_of_their_stages", order),
];

/// A driver tree with two GPUs, and a hook in it that records.
struct Driver {
    root: PathBuf,
}

impl Driver {
    fn new(host: &Host, script: &str) -> Self {
        let root = host.dir.join("driver");
        for (number, uuid) in
            ["GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"].iter().enumerate()
        {
            let dir = root.join(format!("proc/driver/nvidia/gpus/0000:0{number}:00.0"));
            std::fs::create_dir_all(&dir).unwrap();
            let text = format!("Model: \t\t Stand-in\nGPU UUID: \t {uuid}\nDevice Minor: \t {number}\n");
            std::fs::write(dir.join("information"), text).unwrap();
        }
        std::fs::write(
            root.join("proc/driver/nvidia/version"),
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Release Build\n",
        )
        .unwrap();
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.join("dev")).unwrap();
        std::fs::write(root.join("dev/nvidiactl"), "").unwrap();
        let driver = Self { root };
        driver.program("nvidia-container-runtime-hook", script);
        driver.program("nvidia-container-cli", "exit 0");
        driver
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.root.join("usr/bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn contract() {
    let host = Host::with_box();
    let seen = host.dir.join("seen");
    std::fs::create_dir(&seen).unwrap();
    let dir = seen.display();
    let script = format!(
        "echo \"$@\" > {dir}/args; cat > {dir}/state; env > {dir}/env; pwd > {dir}/cwd; readlink /proc/self/ns/mnt > {dir}/mnt\n\
         bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/' {dir}/state); pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' {dir}/state)\n\
         cp $bundle/config.json {dir}/config.json; cat /proc/$pid/cgroup > {dir}/cgroup; ls /proc/$pid/root > {dir}/root"
    );
    let driver = Driver::new(&host, &script);
    let gpurun = |args: &[&str]| {
        let output = host.command(args).env("GPURUN_DRIVER_ROOT", &driver.root).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let out = gpurun(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--memory",
        "64m",
        "-e",
        "NVIDIA_VISIBLE_DEVICES=all",
        "--gpus",
        "device=1",
        "box",
        "env",
    ]);
    let visible = out.lines().find(|line| line.starts_with("NVIDIA_VISIBLE_DEVICES=")).unwrap();
    assert_eq!(
        visible, "NVIDIA_VISIBLE_DEVICES=GPU-bbbbbbbb-0000-0000-0000-000000000000",
        "what was asked wins over everything"
    );
    let read = |name: &str| std::fs::read_to_string(seen.join(name)).unwrap();
    assert_eq!(read("args"), "prestart\n");
    assert!(
        read("env")
            .lines()
            .all(|line| ["PATH=", "PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|key| line.starts_with(key))),
        "{}",
        read("env")
    );
    let config: serde_json::Value = serde_json::from_str(&read("config.json")).unwrap();
    assert!(
        config["root"]["path"].as_str().unwrap().starts_with('/'),
        "the hook resolves a relative one against its own directory"
    );
    let env = config["process"]["env"].as_array().unwrap();
    assert!(env.iter().any(|entry| entry.as_str() == Some(visible)));
    assert!(
        !config["process"]["capabilities"]["bounding"].as_array().unwrap().iter().any(|name| name == "CAP_SYS_ADMIN")
    );
    let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
    assert!(state["pid"].as_i64().unwrap() > 0 && state["bundle"].as_str().unwrap().contains("/run/"));
    assert!(read("cgroup").contains("/gpurun/"), "it is in its cgroup before the hook runs: {}", read("cgroup"));
    assert!(!read("root").contains("gpurun"), "{}", read("root"));
    // Quoted as docker wants it, two of them, and a number.
    for (asked, expected) in [("\"device=0,1\"", 2), ("2", 2), ("1", 1)] {
        let out = gpurun(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--gpus",
            asked,
            "box",
            "sh",
            "-c",
            "echo $NVIDIA_VISIBLE_DEVICES",
        ]);
        assert_eq!(out.trim().split(',').count(), expected, "{asked}: {out}");
    }
    assert_eq!(host.leftovers(), "");
}

fn failure() {
    let host = Host::with_box();
    let driver = Driver::new(
        &host,
        "echo 'nvidia-container-cli: initialization error: nvml error: driver/library version mismatch' >&2; exit 1",
    );
    let output = host
        .command(&["run", "--rm", "--network", "none", "--gpus", "all", "box", "echo", "ran"])
        .env("GPURUN_DRIVER_ROOT", &driver.root)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert_eq!(output.stdout, b"", "the container's process never ran");
    assert!(
        error.contains("prestart hook") && error.contains("version mismatch") && error.contains("hint:"),
        "{error}"
    );
    eventually("nothing is left", 5, || host.leftovers().is_empty());
}

fn refused() {
    let host = Host::with_box();
    let empty = host.dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let run = |asked: &str, root: &std::path::Path| {
        let output = host
            .command(&["run", "--rm", "--network", "none", "--gpus", asked, "box", "true"])
            .env("GPURUN_DRIVER_ROOT", root)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, error) = run("all", &empty);
    assert!(code == Some(125) && error.contains("no NVIDIA driver") && error.contains("hint:"), "{error}");
    let driver = Driver::new(&host, "exit 0");
    let (code, error) = run("3", &driver.root);
    assert!(code == Some(125) && error.contains("3 GPUs were asked for, the host has 2"), "{error}");
    let (code, error) = run("some", &driver.root);
    assert!(code == Some(2) && error.contains("--gpus"), "{error}");
    std::fs::remove_file(driver.root.join("usr/bin/nvidia-container-runtime-hook")).unwrap();
    let (code, error) = run("all", &driver.root);
    assert!(code == Some(125) && error.contains("hook is not installed"), "{error}");
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

fn order() {
    let host = Host::with_box();
    let (dir, log) = (host.dir.join("hooks.d"), host.dir.join("order"));
    std::fs::create_dir(&dir).unwrap();
    for stage in ["poststop", "createRuntime", "prestart", "poststart"] {
        let script = format!("echo {stage} >> {}", log.display());
        let text = format!(
            r#"{{"version":"1.0.0","hook":{{"path":"/bin/sh","args":["sh","-c","{script}"]}},"when":{{"always":true}},"stages":["{stage}"]}}"#
        );
        std::fs::write(dir.join(format!("{stage}.json")), text).unwrap();
    }
    host.ok(&["run", "--rm", "--network", "none", "--hooks-dir", dir.to_str().unwrap(), "box", "sleep", "0.2"]);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "prestart\ncreateRuntime\npoststart\npoststop\n");
    assert_eq!(host.leftovers(), "");
}
