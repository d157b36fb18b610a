//! `--gpus` with NVIDIA's toolkit as hosts have it: unusual configurations, tools that report success for nothing, its own messages. gpurun's
//! rule is the same for all: every selected GPU opens in the container, as its user, and no other does; or the launch stops.
//!
//! The stand-ins behave as NVIDIA's hook 1.20 and its tool (tests/fake-driver/hook.sh, cli.sh). An open of a node answers ENXIO where the device
//! filter and the node's permissions allow it, since no driver is behind it.

use std::process::Command;
use std::time::Instant;

use crate::driver::{VERSION, uuid};
use crate::gpu::{Lab, leased};
use crate::host::{Answer, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("whatever_the_toolkits_configuration_the_gpu_opens", configurations),
    ("what_opens_stays_open_after_exec_update_and_restart", lasting),
    ("a_tool_that_reports_success_for_nothing_is_caught", lies),
    ("a_cdi_file_that_gives_other_nodes_is_caught", wrong_cdi),
    ("a_node_that_the_user_may_not_open_names_its_group", groups),
    ("auto_tries_the_next_mode_and_says_why", next_mode),
    ("the_toolkits_messages_become_sentences", messages),
    ("a_driver_that_hangs_is_waited_for_once", hanging),
    ("hints_about_cdi_write_the_file_that_counts", cdi_hints),
    ("a_hooks_long_message_is_shortened_and_not_lost", long_message),
    ("explain_on_a_host_without_a_gpu", laptop),
];

/// What a container answers for a GPU's node that it has, and for one that it makes for another GPU.
const LOOK: &str = "look() { if [ ! -e /dev/nvidia$1 ]; then mknod /tmp/n$1 c 195 $1 2>/dev/null || { echo $1 closed; return; }; p=/tmp/n$1; else p=/dev/nvidia$1; fi; \
     if dd if=$p of=/dev/null count=0 2>&1 | grep -q -e 'not permitted' -e 'ermission denied'; then echo $1 closed; else echo $1 open; fi; }; look 0; look 1; rm -f /tmp/n*";

#[track_caller]
fn refused(answer: &Answer, reported: &[&str]) {
    refused_with(125, answer, reported);
}

#[track_caller]
fn refused_with(code: i32, answer: &Answer, reported: &[&str]) {
    assert_eq!((answer.code, answer.out.as_str()), (code, ""), "{}", answer.err);
    for snippets in reported {
        assert!(answer.err.contains(snippets), "{snippets}: {}", answer.err);
    }
    assert!(answer.err.contains("\nhint: "), "{}", answer.err);
}

fn configurations() {
    let lab = Lab::new(2);
    lab.driver.hook("true");
    // An image that asks for every GPU by each variable that a host may have named for it.
    lab.ok(&["run", "--name", "base", "--network", "none", "box", "true"]);
    lab.ok(&[
        "commit",
        "-c",
        "ENV NVIDIA_VISIBLE_DEVICES=all DOCKER_RESOURCE_GPU=all OTHER_GPUS=0,1",
        "base",
        "greedy",
    ]);
    lab.ok(&["rm", "base"]);
    let off = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n";
    let mounts = "accept-nvidia-visible-devices-as-volume-mounts = true\n";
    let swarm = "swarm-resource = \"DOCKER_RESOURCE_GPU,OTHER_GPUS\"\n";
    let no_cgroups = "[nvidia-container-cli]\nno-cgroups = true\n";
    let all = [off, mounts, swarm, no_cgroups].concat();
    for config in ["", off, swarm, no_cgroups, &all] {
        lab.driver.config(config);
        for user in ["0", "1000"] {
            let flags = ["run", "--rm", "--network", "none", "-u", user, "--gpus", "device=1", "--gpu-mode", "hook"];
            let out = lab
                .ok(&[&flags[..], &["greedy", "sh", "-c", &format!("{LOOK}; echo $NVIDIA_VISIBLE_DEVICES")]].concat());
            assert_eq!(out, format!("0 closed\n1 open\n{}", uuid(1)), "user {user}: {config}");
        }
    }
    let answer = lab.run(&["doctor"]);
    let reported = (answer.out + &answer.err).split_whitespace().collect::<Vec<_>>().join(" ");
    for snippets in
        ["no-cgroups = true", "accept-nvidia-visible-devices-envvar-when-unprivileged = false", "swarm-resource"]
    {
        assert!(reported.contains(snippets), "{snippets}: {reported}");
    }
    assert_eq!(leased(&lab), 0);
    assert_eq!(lab.host.leftovers(), "");
}

fn lasting() {
    let lab = Lab::new(2);
    lab.driver.hook("true");
    lab.driver.config("[nvidia-container-cli]\nno-cgroups = true\n");
    lab.driver.cdi("etc/cdi/nvidia.yaml", 2);
    for mode in ["hook", "cdi", "native"] {
        let flags =
            ["run", "-d", "--name", "lab", "--network", "none", "-u", "1000", "--gpus", "device=0", "--gpu-mode", mode];
        lab.ok(&[&flags[..], &["box", "sleep", "1000"]].concat());
        let look = |when: &str| {
            for user in ["1000", "0"] {
                let out = lab.ok(&["exec", "-u", user, "lab", "sh", "-c", LOOK]);
                assert_eq!(out, "0 open\n1 closed", "{mode}, user {user}, {when}");
            }
        };
        look("exec");
        lab.ok(&["update", "--memory", "128m", "--cpus", "1", "lab"]);
        look("update");
        lab.ok(&["restart", "-t", "0", "lab"]);
        look("restart");
        lab.ok(&["rm", "-f", "lab"]);
    }
    assert_eq!(lab.host.leftovers(), "");
}

fn lies() {
    let lab = Lab::new(2);
    lab.driver.hook("echo 'time=\"now\" level=warning msg=\"the toolkit knows\"' >&2");
    let run = |user: &str, gpus: &str| {
        lab.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-u",
            user,
            "--gpus",
            gpus,
            "--gpu-mode",
            "hook",
            "box",
            "echo",
            "ran",
        ])
    };
    let v1 = std::path::Path::new("/sys/fs/cgroup/devices").exists();
    let cases: [(&str, &str, &[&str]); 5] = [
        ("nothing", "0", &["is not in the container", "did not create `/dev/nvidia"]),
        ("numbers", "0", &["`/dev/nvidia0` in the container is not GPU 0, but the device 1:7"]),
        ("nodev", "0", &["`/dev/nvidia0` is on a mount with the option `nodev`"]),
        ("closed", "1000", &["user 1000 cannot open GPU 0: `/dev/nvidia0` has the mode 0600"]),
        ("all", "0", &["GPU 1, which was not selected, can be opened in the container"]),
    ];
    for (lie, user, reported) in cases {
        if lie == "all" && !v1 {
            // Version 2's filter is beyond a script.
            continue;
        }
        lab.driver.lie(lie);
        let answer = run(user, "device=0");
        refused(&answer, reported);
        assert!(
            answer
                .err
                .contains("the hook `50-nvidia-prestart` wrote: time=\"now\" level=warning msg=\"the toolkit knows\""),
            "{}",
            answer.err
        );
        assert_eq!(lab.host.ok(&["ps", "-aq"]), "", "{lie}");
        eventually("nothing is left", || lab.host.leftovers().is_empty());
        assert_eq!(leased(&lab), 0, "{lie}");
    }
    // The same tool without a lie: the warning is shown all the same.
    lab.driver.lie("");
    let answer = run("0", "device=0");
    assert_eq!((answer.code, answer.out.as_str()), (0, "ran\n"), "{}", answer.err);
    assert!(answer.err.contains("the toolkit knows") && !answer.err.contains("Auto-detected"), "{}", answer.err);
    // A running container that is started again is looked at again.
    lab.ok(&[
        "run",
        "-d",
        "--name",
        "lab",
        "--network",
        "none",
        "--gpus",
        "device=0",
        "--gpu-mode",
        "hook",
        "box",
        "sleep",
        "1000",
    ]);
    lab.ok(&["stop", "-t", "0", "lab"]);
    lab.driver.lie("nothing");
    refused_with(1, &lab.run(&["start", "lab"]), &["is not in the container"]);
    lab.driver.lie("");
    lab.ok(&["start", "lab"]);
    lab.ok(&["rm", "-f", "lab"]);
    assert_eq!(lab.host.leftovers(), "");
}

fn wrong_cdi() {
    let lab = Lab::new(2);
    let write = |first: &str| {
        let second = r#"{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia1","major":195,"minor":1}]}}"#;
        let common = r#"{"deviceNodes":[{"path":"/dev/nvidiactl","major":195,"minor":255}]}"#;
        lab.driver.write(
            "var/run/cdi/nvidia.json",
            &format!(r#"{{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{{"name":"0","containerEdits":{first}}},{second}],"containerEdits":{common}}}"#),
        );
    };
    let right = r#"{"deviceNodes":[{"path":"/dev/nvidia0","major":195}]}"#;
    let cases = [
        (r#"{"env":["A=1"]}"#, "GPU 0 is not in the container: CDI did not create `/dev/nvidia0`"),
        (r#"{"deviceNodes":[{"path":"/dev/nvidia0","major":195,"minor":1}]}"#, "is not GPU 0, but the device 195:1"),
        (
            r#"{"deviceNodes":[{"path":"/dev/nvidia0","major":195},{"path":"/dev/nvidia1","major":195,"minor":1}]}"#,
            "GPU 1, which was not selected, can be opened",
        ),
    ];
    for asked in [["--gpus", "device=0"], ["--device", "nvidia.com/gpu=0"]] {
        let run = || lab.run(&[&["run", "--rm", "--network", "none"], &asked[..], &["box", "echo", "ran"]].concat());
        for (edits, reported) in cases {
            write(edits);
            refused(&run(), &[reported]);
        }
        write(right);
        assert_eq!(run().out, "ran\n");
    }
    // What the caller asks for beside it is no other GPU.
    for more in [["--device", "nvidia.com/gpu=1"], ["--device", "/dev/full:/dev/other"]] {
        lab.ok(&[&["run", "--rm", "--network", "none", "--gpus", "device=0"], &more[..], &["box", "true"]].concat());
    }
    assert_eq!(leased(&lab), 0);
}

/// A host's nodes of the mode 0660, as some distributions have them.
fn groups() {
    let lab = Lab::new(1);
    lab.driver.hook("true");
    let give = |group: &str| {
        for node in ["nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
            let node = lab.driver.root.join("dev").join(node);
            assert!(Command::new("chown").arg(format!("0:{group}")).arg(&node).status().unwrap().success());
            assert!(Command::new("chmod").arg("660").arg(&node).status().unwrap().success());
        }
    };
    let run = |flags: &[&str]| {
        let head = ["run", "--rm", "--network", "none", "--gpus", "all", "--gpu-mode", "hook"];
        lab.run(&[&head[..], flags, &["box", "sh", "-c", LOOK]].concat())
    };
    // A group that the image knows by a name, and one that it does not.
    for (group, named) in [("10", "wheel"), ("44", "44")] {
        give(group);
        let answer = run(&["-u", "1001"]);
        refused(&answer, &["user 1001 cannot open ", "has the mode 0660 and belongs to 0:"]);
        assert!(answer.err.contains(&format!("`--group-add {named}`")), "{}", answer.err);
        assert_eq!(run(&["-u", "1001", "--group-add", named]).out, "0 open\n1 closed\n");
        assert_eq!(run(&[]).out, "0 open\n1 closed\n", "root needs no group");
    }
    // By its own injection the nodes are everybody's.
    let flags = ["run", "--rm", "--network", "none", "-u", "1001", "--gpus", "all", "--gpu-mode", "native"];
    assert_eq!(lab.ok(&[&flags[..], &["box", "sh", "-c", LOOK]].concat()), "0 open\n1 closed");
}

fn next_mode() {
    let lab = Lab::new(1);
    let run = || lab.run(&["--verbose", "run", "--rm", "--network", "none", "--gpus", "all", "box", "true"]);
    let check = |by: &str, notice: Option<&str>| {
        let answer = run();
        assert_eq!(answer.code, 0, "{}", answer.err);
        assert!(answer.err.contains(&format!(" by {by} (driver {VERSION}")), "{by}: {}", answer.err);
        let reported = answer.err.lines().find(|line| line.contains("the GPUs are injected by"));
        match notice {
            Some(snippets) => {
                assert!(reported.is_some_and(|line| line.contains(snippets)), "{snippets}: {}", answer.err)
            }
            None => assert_eq!(reported, None, "nothing needs attention"),
        }
    };
    check("native injection", None);
    // The hook and a configuration, but not the tool.
    lab.driver.hook("true");
    let tool = lab.driver.root.join("usr/bin/nvidia-container-cli");
    let hidden = lab.driver.root.join("usr/bin/hidden");
    std::fs::rename(&tool, &hidden).unwrap();
    lab.driver.config("disable-require = false\n");
    check("native injection", Some("`nvidia-container-cli`, which the hook"));
    lab.driver.cdi("var/run/cdi/nvidia.yaml", 1);
    check("CDI", Some("`nvidia-container-cli`, which the hook"));
    // A configuration that names a tool of its own, and one that is set to CDI.
    std::fs::rename(&hidden, &tool).unwrap();
    lab.driver.config("[nvidia-container-cli]\npath = \"/opt/gone\"\n");
    check("CDI", Some("`/opt/gone`"));
    lab.driver.config("[nvidia-container-runtime]\nmode = \"cdi\"\n");
    check("CDI", None);
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "--gpu-mode", "hook", "box", "true"]);
    refused(&answer, &["mode = \"cdi\"", "--gpu-mode cdi", "skip-mode-detection"]);
    assert!(!answer.err.contains("install"), "it is installed: {}", answer.err);
    lab.driver.config(
        "[nvidia-container-runtime]\nmode = \"cdi\"\n[nvidia-container-runtime-hook]\nskip-mode-detection = true\n",
    );
    check("NVIDIA's prestart hook", None);
    // The GPU operator's layout, with a configuration of its own beside the hook.
    let toolkit = "usr/local/nvidia/toolkit";
    for name in ["nvidia-container-runtime-hook", "nvidia-container-cli"] {
        std::fs::remove_file(lab.driver.root.join("usr/bin").join(name)).unwrap();
    }
    lab.driver.toolkit(toolkit);
    let config = format!("{toolkit}/.config/nvidia-container-runtime/config.toml");
    lab.driver.write(&config, "[nvidia-container-cli]\npath = \"/usr/local/nvidia/toolkit/nvidia-container-cli\"\n");
    let hook = lab.driver.root.join(toolkit).join("nvidia-container-runtime-hook");
    let wrapped = lab.driver.root.join(toolkit).join("nvidia-container-runtime-hook.real");
    std::fs::rename(&hook, &wrapped).unwrap();
    let wrapper = format!(
        "#! /bin/sh\nNVIDIA_CTK_CONFIG_FILE_PATH={} {} \"$@\"\n",
        lab.driver.root.join(&config).display(),
        wrapped.display()
    );
    lab.driver.write(&format!("{toolkit}/nvidia-container-runtime-hook"), &wrapper);
    assert!(Command::new("chmod").arg("755").arg(&hook).status().unwrap().success());
    check("NVIDIA's prestart hook", None);
    lab.driver.write(&config, "[nvidia-container-cli]\npath = \"/usr/local/nvidia/toolkit/gone\"\n");
    check("CDI", Some("/usr/local/nvidia/toolkit/gone"));
    assert_eq!(lab.host.leftovers(), "");
}

fn messages() {
    let lab = Lab::new(1);
    lab.driver.hook("true");
    let run = |flags: &[&str]| {
        let head = ["run", "--rm", "--network", "none", "--gpus", "all", "--gpu-mode", "hook"];
        lab.run(&[&head[..], flags, &["box", "echo", "ran"]].concat())
    };
    let mig = ["-e", "NVIDIA_MIG_CONFIG_DEVICES=all"];
    refused(&run(&mig), &["cannot set MIG_CONFIG_DEVICES", "SYS_ADMIN", "--cap-add SYS_ADMIN"]);
    let answer = run(&[&mig[..], &["--cap-add", "SYS_ADMIN"]].concat());
    assert_eq!(answer.out, "ran\n", "the hint works: {}", answer.err);
    lab.driver.config("supported-driver-capabilities = \"compute,utility\"\n");
    refused(
        &run(&["-e", "NVIDIA_DRIVER_CAPABILITIES=video"]),
        &["unsupported capabilities found in 'video'", "does not allow"],
    );
    assert_eq!(run(&["-e", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]).out, "ran\n");
    lab.driver.config("a = 1\n\n]\n");
    refused(&run(&[]), &["(3, 1): parsing error", "cannot use its configuration file", "config.toml"]);
    lab.driver.config("");
    std::fs::remove_file(lab.driver.root.join("dev/nvidiactl")).unwrap();
    refused(&run(&[]), &["stat failed: /dev/nvidiactl", "is missing on the host", "nvidia-modprobe"]);
    lab.driver.node("dev/nvidiactl", 195, 255);
    // What the tool cannot ask NVML, gpurun cannot either; it still knows the GPU from /proc.
    lab.driver.nvml("fail 999");
    refused(&run(&[]), &["initialization error: nvml error: unknown error", "no longer responds"]);
    lab.driver.nvml(&crate::driver::plain(1));
    // Requirements: the tool's own grammar, in every mode, and the host's switch.
    let need = ["-e", "NVIDIA_REQUIRE_CUDA=cuda>=99.0"];
    refused(&run(&need), &["CUDA >= 99.0"]);
    refused(&run(&["-e", "NVIDIA_REQUIRE_CUDA=cuda==12.4"]), &["`cuda==12.4`, which is not a valid requirement"]);
    assert_eq!(run(&["-e", "NVIDIA_REQUIRE_CUDA=cuda>=12.4,", "-e", "NVIDIA_REQUIRE_JETPACK=x"]).out, "ran\n");
    lab.driver.config("disable-require = true\n");
    assert_eq!(run(&need).out, "ran\n");
    assert_eq!(leased(&lab), 0);
}

fn hanging() {
    let lab = Lab::new(1);
    let seen = lab.host.dir.join("seen");
    lab.driver.hook(&format!("touch {}", seen.display()));
    lab.driver.nvml("hang");
    let began = Instant::now();
    for mode in ["auto", "native"] {
        let mut command =
            lab.command(&["run", "--rm", "--network", "none", "--gpus", "1", "--gpu-mode", mode, "box", "echo", "ran"]);
        let answer = crate::host::answer(command.env("GPURUN_NVML_WAITS", "100,1500").output().unwrap());
        refused(
            &answer,
            &[
                "has not answered yet; gpurun waits up to 1 s for it",
                "NVIDIA's driver does not answer",
                "did not answer within",
            ],
        );
    }
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert!(!seen.exists(), "the hook would wait for the same driver");
    // GPUs that are named need no answer of NVML's.
    for named in ["all", "device=0", "device=GPU-aaaaaaaa"] {
        let answer = lab.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--gpus",
            named,
            "--gpu-mode",
            "native",
            "box",
            "echo",
            "ran",
        ]);
        assert!(answer.code == 0 && answer.out == "ran\n" && !answer.err.contains("driver"), "{named}: {}", answer.err);
    }
    let mut command = lab.command(&["gpus"]);
    let answer = crate::host::answer(command.env("GPURUN_NVML_WAITS", "100,500").output().unwrap());
    assert!(answer.code == 0 && answer.err.contains("has not answered yet"), "{}", answer.err);
    assert_eq!(leased(&lab), 0);
    assert_eq!(lab.host.leftovers(), "");
}

fn cdi_hints() {
    let lab = Lab::new(1);
    let run = |flags: &[&str]| lab.run(&[&["run", "--rm", "--network", "none"], flags, &["box", "true"]].concat());
    let cdi = ["--gpus", "all", "--gpu-mode", "cdi"];
    let hint = |path: &str| format!("sudo nvidia-ctk cdi generate --output={path}");
    refused(&run(&cdi), &[&hint("/var/run/cdi/nvidia.yaml")]);
    // Two files: the one in /var/run/cdi wins, and is the stale one.
    lab.driver.cdi("etc/cdi/nvidia.yaml", 1);
    lab.driver.cdi("var/run/cdi/nvidia.yaml", 1);
    let file = lab.driver.root.join("var/run/cdi/nvidia.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(VERSION, "535.1.2")).unwrap();
    let winning = hint(&file.display().to_string());
    for flags in [&cdi[..], &["--device", "nvidia.com/gpu=0"], &["--device", "nvidia.com/gpu=7"]] {
        let answer = run(flags);
        refused(&answer, &[&winning]);
        assert!(!answer.err.contains("--output=/etc/cdi"), "{}", answer.err);
    }
    // The hint works: the file that is written again is used.
    std::fs::write(&file, text).unwrap();
    assert_eq!(run(&cdi).code, 0);
}

fn long_message() {
    let lab = Lab::new(1);
    lab.driver.hook("printf 'nvidia-container-cli: initialization error: ' >&2; i=0; while [ $i -lt 800 ]; do printf '%050d' 0 >&2; i=$((i+1)); done; echo ' driver/library version mismatch' >&2; exit 1");
    let answer =
        lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "--gpu-mode", "hook", "box", "echo", "ran"]);
    refused(&answer, &["initialization error", "driver/library version mismatch", "reboot the host"]);
    assert!(answer.err.len() < 4000, "{} bytes", answer.err.len());
    // Definitions with a timeout that no clock can count to.
    let dir = lab.host.dir.join("hooks.d");
    std::fs::create_dir(&dir).unwrap();
    let text = format!(
        r#"{{"version":"1.0.0","hook":{{"path":"/bin/true","timeout":{}}},"when":{{"always":true}},"stages":["prestart","createContainer","poststop"]}}"#,
        u64::MAX
    );
    std::fs::write(dir.join("10-long.json"), text).unwrap();
    lab.ok(&["run", "--rm", "--network", "none", "--hooks-dir", dir.to_str().unwrap(), "box", "true"]);
    assert_eq!(lab.host.leftovers(), "");
}

fn laptop() {
    let lab = Lab::new(0);
    let empty = lab.host.dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    for (root, why) in [(&empty, "this host has no NVIDIA driver"), (&lab.driver.root, "the host has no GPU")] {
        let explain = |args: &[&str]| {
            let output = lab.command(args).env("GPURUN_DRIVER_ROOT", root).output().unwrap();
            crate::host::answer(output)
        };
        let answer = explain(&["explain", "--cpus", "8", "--gpus", "1"]);
        assert_eq!(answer.code, 0, "{}", answer.err);
        for snippets in
            ["--cpus", "--gpus", "NVIDIA_VISIBLE_DEVICES=<1 idle GPU, by UUID>", "CUDA_DEVICE_ORDER", "RLIMIT_MEMLOCK"]
        {
            assert!(answer.out.contains(snippets), "{snippets}: {}", answer.out);
        }
        let flat = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(why) && flat.contains("a launch on this host would fail"), "{}", answer.out);
        let answer = explain(&["explain", "--gpus", "nonsense"]);
        assert_eq!(answer.code, 2, "{}", answer.err);
    }
}
