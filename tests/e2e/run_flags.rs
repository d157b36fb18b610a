//! Flags of `run` and `create` that scripts, editors and Makefiles written for docker use: each one's effect, read in the container or from
//! the kernel, and what `inspect` shows.

use std::process::Stdio;

use serde_json::json;

use crate::host::{Host, answer, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("each_flag_has_its_effect", effects),
    ("each_flag_is_shown_in_dockers_shape", shown),
    ("what_contradicts_or_is_not_there_is_refused", refused),
    ("a_privileged_container_has_everything", privileged),
    ("streams_are_attached_one_by_one", attach),
    ("signals_are_not_forwarded_without_sig_proxy", sig_proxy),
    ("the_id_is_written_to_a_file", cidfile),
    ("ports_of_a_range_and_exposed_ports_are_published", ports),
    ("a_log_of_none_is_none", no_log),
    ("a_container_is_replaced", replace),
    ("the_image_goes_with_its_last_container", rmi),
    ("exec_has_dockers_flags", exec),
];

const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

/// Flags, a command of the container, and what it prints.
const EFFECTS: &[(&[&str], &str, &str)] = &[
    (&["-h", "lab"], "hostname", "lab"),
    (&["-hlab"], "hostname", "lab"),
    (&["--domainname", "example.org"], "cat /proc/sys/kernel/domainname", "example.org"),
    (&["-h", "lab", "--domainname", "example.org"], "grep -c 'lab.example.org lab$' /etc/hosts", "1"),
    (
        &["--dns-search", "a.example", "--dns-search", "b.example"],
        "grep ^search /etc/resolv.conf",
        "search a.example b.example",
    ),
    (&["--dns-search", "."], "grep -c ^search /etc/resolv.conf || true", "0"),
    (&["--dns-option", "ndots:2", "--dns-opt", "rotate"], "grep ^options /etc/resolv.conf", "options ndots:2 rotate"),
    (&["--dns", "192.0.2.1"], "grep ^nameserver /etc/resolv.conf", "nameserver 192.0.2.1"),
    (&["--init=false", "--rm=true", "--read-only=false"], "touch /x; echo $$", "1"),
    (&["--init=true"], "cat /proc/1/comm", "gpurun-init"),
    // The last one counts.
    (&["--workdir", "/etc", "--workdir", "/tmp"], "pwd", "/tmp"),
    (&["--userns", "host", "--isolation", "default", "--runtime", "runc", "--volume-driver", "local"], "echo x", "x"),
    (&["--pull", "missing", "--cgroupns", "private", "--ipc", "private", "--log-driver", "json-file"], "echo x", "x"),
    (&["--security-opt", "label=disable", "--security-opt", "apparmor=unconfined"], "echo x", "x"),
    (&["--security-opt", "systempaths=unconfined"], "grep -c ' /proc/[^ ]* ' /proc/self/mounts || true", "0"),
    (&["--ipc", "none"], "grep -c ' /dev/shm ' /proc/self/mounts || true", "0"),
    (&["--umask", "027"], "umask; touch /f; stat -c %a /f", "0027\n640"),
    (&["--unsetenv", "HOSTNAME"], "tr '\\0' '\\n' </proc/1/environ | grep -c ^HOSTNAME= || true", "0"),
    (
        &["--unsetenv-all", "-e", "A=1"],
        "tr '\\0' '\\n' </proc/1/environ | sort",
        // gpurun sets the last one for NVIDIA's hooks.
        "A=1\nHOME=/root\nNVIDIA_VISIBLE_DEVICES=void",
    ),
    (&["--mount", "type=bind,source=/etc,target=/x,readonly,consistency=cached"], "test -f /x/passwd && echo x", "x"),
    (&["-q", "--annotation", "org.example=1", "--expose", "80"], "echo x", "x"),
];

fn effects() {
    let host = Host::with_box();
    for (flags, script, want) in EFFECTS {
        let args = [&RUN[..], flags, &["box", "sh", "-c", script]].concat();
        assert_eq!(host.ok(&args), *want, "{flags:?}");
    }
    let in_namespace = |flags: &[&str], kind: &str| {
        let link = format!("readlink /proc/self/ns/{kind}");
        let args = [&RUN[..], flags, &["box", "sh", "-c", &link]].concat();
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        host.ok(&args) == own.to_str().unwrap()
    };
    for (flag, kind) in [("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup"), ("--pid", "pid")] {
        assert!(in_namespace(&[flag, "host"], kind), "{flag} host");
        assert!(!in_namespace(&[], kind), "{kind}");
    }
    let name = host.ok(&[&RUN[..], &["--uts", "host", "box", "hostname"]].concat());
    assert_eq!(name, std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    // The host's /dev/shm, and not a copy.
    let path = format!("/dev/shm/gpurun-e2e-{}", std::process::id());
    host.ok(&[&RUN[..], &["--ipc", "host", "box", "sh", "-c", &format!("echo here >{path}")]].concat());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "here\n");
    std::fs::remove_file(&path).unwrap();
    let said = host.run(&[&RUN[..], &["--ipc", "host", "--shm-size", "1g", "box", "true"]].concat());
    assert!(said.code == 0 && said.err.contains("`--shm-size` has no effect with `--ipc host`"), "{}", said.err);
    // An annotation is in the spec that hooks read, and a file of labels gives way to the flag.
    std::fs::write(host.dir.join("labels"), "# from a file\na=file\nb=file\n").unwrap();
    host.ok(&["create", "--name", "lab", "--label-file", "labels", "-l", "b=flag", "box"]);
    let labels = host.inspect("lab")["Config"]["Labels"].clone();
    assert_eq!((&labels["a"], &labels["b"]), (&json!("file"), &json!("flag")));
    host.ok(&["rm", "lab"]);
    host.ok(&[
        "run",
        "-d",
        "--name",
        "lab",
        "--network",
        "none",
        "--annotation",
        "org.example=1",
        "box",
        "sleep",
        "1000",
    ]);
    assert_eq!(host.inspect("lab")["Spec"]["annotations"]["org.example"], "1");
    host.ok(&["rm", "-f", "lab"]);
    environment(&host);
    device_rule(&host);
    assert_eq!(host.leftovers(), "");
}

/// The caller's variables, secrets and time zones.
fn environment(host: &Host) {
    let print = "echo $FROM_HOST; echo $PATH";
    let mut command = host.command(&[&RUN[..], &["--env-host", "box", "sh", "-c", print]].concat());
    let said = answer(command.env("FROM_HOST", "here").output().unwrap());
    assert!(said.code == 0 && said.out.starts_with("here\n"), "{} {}", said.out, said.err);
    std::fs::write(host.dir.join("token"), "s3cret").unwrap();
    let (mounted, variable) = ("id=token,src=token,mode=400", "id=other,src=token,type=env,target=TOKEN");
    let flags = ["--network", "none", "--secret", mounted, "--secret", variable];
    let run = [&["run", "-d", "--name", "lab"][..], &flags, &["box", "sleep", "1000"]].concat();
    host.ok(&run);
    for _ in 0..2 {
        let script = "cat /run/secrets/token; echo $TOKEN; stat -c %a /run/secrets/token; touch /run/secrets/token 2>/dev/null || echo ro";
        assert_eq!(host.ok(&["exec", "lab", "sh", "-c", script]), "s3crets3cret\n400\nro");
        std::fs::write(host.dir.join("token"), "s3cret").unwrap();
        host.ok(&["restart", "-t", "0", "lab"]);
    }
    // It is in no layer, and `inspect` shows no content.
    host.ok(&["commit", "lab", "kept"]);
    assert_eq!(host.ok(&[&RUN[..], &["kept", "sh", "-c", "ls /run/secrets 2>/dev/null; echo $TOKEN"]].concat()), "");
    let shown = host.inspect("lab");
    assert!(!shown["Config"].to_string().contains("s3cret") && !shown["Request"].to_string().contains("s3cret"));
    let upper = shown["Paths"]["UpperDir"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(format!("{upper}/run/secrets/token")).unwrap(), "");
    host.ok(&["rm", "-f", "lab"]);
    let said = host.run(&[&RUN[..], &["--tz", "local", "box", "cat", "/etc/localtime"]].concat());
    if std::path::Path::new("/etc/localtime").exists() {
        assert!(said.code == 0 && said.out.starts_with("TZif"), "{}", said.err);
    }
    let error = host.fails(125, &[&RUN[..], &["--tz", "No/Where", "box", "true"]].concat());
    assert!(error.contains("cannot use `--tz No/Where`") && error.contains("-e TZ="), "{error}");
}

/// A rule of the device filter, as the kernel enforces it, and after a restart too. No driver answers for the node: the
/// kernel says so only to those whom the filter lets through.
fn device_rule(host: &Host) {
    const OPEN: &str = "No such device or address";
    let script = "mknod /node c 1 200 && head -c 0 /node";
    let run = |rule: &str| {
        let flags: &[&str] = if rule.is_empty() { &[] } else { &["--device-cgroup-rule", rule] };
        host.run(&[&RUN[..], flags, &["box", "sh", "-c", script]].concat()).err
    };
    assert!(run("").contains("not permitted"));
    // The rule may be wide, and the access narrow.
    for (rule, want) in
        [("c 1:200 rwm", OPEN), ("c *:* rm", OPEN), ("c 1:201 rwm", "not permitted"), ("c 1:200 m", "not permitted")]
    {
        let error = run(rule);
        assert!(error.contains(want), "{rule}: {error}");
    }
    let rule = ["--device-cgroup-rule", "c 1:200 r"];
    host.ok(&[&["run", "-d", "--name", "lab", "--network", "none"], &rule[..], &["box", "sleep", "1000"]].concat());
    host.ok(&["restart", "-t", "0", "lab"]);
    let error = host.run(&["exec", "lab", "sh", "-c", "mknod /node c 1 200; head -c 0 /node"]).err;
    assert!(error.contains(OPEN), "{error}");
    let id = host.inspect("lab")["Id"].as_str().unwrap().to_owned();
    for dir in cgroups_of(&id) {
        if let Ok(list) = std::fs::read_to_string(dir.join("devices.list")) {
            assert!(list.contains("c 1:200 r\n") && !list.contains("c 1:201"), "{list}");
        }
    }
    host.ok(&["rm", "-f", "lab"]);
}

fn shown() {
    let host = Host::with_box();
    host.ok(&[
        "create",
        "--name",
        "lab",
        "--network",
        "none",
        "--domainname",
        "d",
        "--annotation",
        "a=1",
        "--expose",
        "80",
        "--expose",
        "90-91/udp",
        "-P",
        "--ipc",
        "shareable",
        "--cgroupns",
        "host",
        "--privileged",
        "--runtime",
        "runc",
        "--dns-search",
        "s",
        "--dns-option",
        "rotate",
        "--log-driver",
        "local",
        "--log-opt",
        "max-size=1m",
        "--device-cgroup-rule",
        "c 1:11 r",
        "box",
    ]);
    let all = host.inspect("lab");
    let (host_config, config) = (&all["HostConfig"], &all["Config"]);
    for (key, want) in [
        ("Annotations", json!({"a": "1"})),
        ("PublishAllPorts", json!(true)),
        ("IpcMode", json!("shareable")),
        ("CgroupnsMode", json!("host")),
        ("Privileged", json!(true)),
        ("Runtime", json!("runc")),
        ("DnsSearch", json!(["s"])),
        ("DnsOptions", json!(["rotate"])),
        ("DeviceCgroupRules", json!(["c 1:11 r"])),
        ("UTSMode", json!("")),
        ("SecurityOpt", json!([])),
    ] {
        assert_eq!(host_config[key], want, "{key}");
    }
    assert_eq!((&host_config["LogConfig"]["Type"], &config["Domainname"]), (&json!("local"), &json!("d")));
    assert_eq!(host_config["LogConfig"]["Config"]["max-size"], "1048576");
    assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "90/udp": {}, "91/udp": {}}));
    host.ok(&["rm", "lab"]);
    host.ok(&["create", "--name", "lab", "--uts", "host", "--log-driver", "none", "--cidfile", "id", "box"]);
    let host_config = host.inspect("lab")["HostConfig"].clone();
    let log = &host_config["LogConfig"];
    assert_eq!(
        (&host_config["UTSMode"], &log["Type"], &log["Config"], &log["Path"]),
        (&json!("host"), &json!("none"), &json!({}), &json!(""))
    );
    assert_eq!(host_config["ContainerIDFile"], host.dir.join("id").to_str().unwrap());
    assert_eq!(host_config["VolumesFrom"], json!(null));
    for (number, (args, streams)) in [
        (&["create"][..], [false, true, true, false, false]),
        (&["create", "-i"], [true, true, true, true, true]),
        (&["create", "-i", "-a", "stdout"], [false, true, false, true, false]),
        (&["run", "-d", "-i"], [false, false, false, true, false]),
        (&["run"], [false, true, true, false, false]),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("streams{number}");
        let more = ["--name", &name, "--network", "none", "--volumes-from", "lab:ro", "box", "true"];
        host.ok(&[args, &more].concat());
        let all = host.inspect(&name);
        let shown = ["AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "StdinOnce"]
            .map(|key| all["Config"][key].clone());
        assert_eq!(shown, streams.map(|on| json!(on)), "{args:?}");
        assert_eq!(all["HostConfig"]["VolumesFrom"], json!(["lab:ro"]));
    }
}

/// Flags, and what the sentence and the hint must say.
const REFUSED: &[(&[&str], &str, &str)] = &[
    (&["--ipc", "hots"], "`--ipc hots` is not a mode", "shareable"),
    (&["--ipc", "container:nosuch"], "nosuch", "gpurun ps"),
    (&["--volumes-from", "nosuch"], "nosuch", "gpurun ps"),
    (&["--volumes-from", "a:x"], "`--volumes-from a:x`", "data:ro"),
    (&["--uts", "private2"], "`--uts private2`", "--uts host"),
    (&["--cgroupns", "none"], "`--cgroupns none`", "`private` or `host`"),
    (&["--userns", "keep-id"], "`--userns keep-id` is not supported", "--user UID:GID"),
    (&["--runtime", "kata"], "there is no runtime `kata`", "nvidia"),
    (&["--log-driver", "journald"], "there is no log driver `journald`", "gpurun logs -f"),
    (&["--log-driver", "none", "--log-opt", "max-size=1m"], "`--log-opt max-size=1m`", "omit"),
    (&["--isolation", "hyperv"], "Windows", "default"),
    (&["--storage-opt", "size=1g"], "no flag `--storage-opt`", "quota"),
    (&["--uts", "host", "-h", "x"], "`--uts host` and `--hostname`", "omit one"),
    (&["--rmi", "--restart", "always"], "`--rmi` and `--restart`", "omit one"),
    (&["--ipc", "none", "--shm-size", "1g"], "`--ipc none` and `--shm-size`", "omit one"),
    (&["-a", "stdout", "-d"], "`--attach <STREAM>` cannot be combined with `--detach`", "omit one"),
    (&["-a", "out"], "`--attach out` is not a stream", "stderr"),
    (&["--expose", "x"], "`--expose x`", "8000-8010"),
    (&["--dns-search", "a b"], "`--dns-search a b`", "`--dns-search .`"),
    (&["--dns-option", ""], "`--dns-option", ""),
    (&["--domainname", "a b"], "`--domainname a b`", "lab.example"),
    (&["--annotation", "x"], "`--annotation x` is not `KEY=VALUE`", ""),
    (&["--device-cgroup-rule", "c 1:11"], "`--device-cgroup-rule c 1:11`", "ls -l /dev/NODE"),
    (&["--label-file", "nosuch"], "cannot use `--label-file nosuch`", ""),
    (&["--rm=maybe"], "`--rm=maybe` is neither true nor false", "`--rm=false`"),
    (&["--sysctl", "vm.swappiness=1"], "would change this host", "sysctl -w"),
    (&["--ipc", "host", "--sysctl", "kernel.shmmax=1"], "would change this host", "sysctl -w"),
    (&["--network", "host", "--sysctl", "net.core.somaxconn=1"], "would change this host", "sysctl -w"),
    (&["--hooks-dir", "nosuch"], "nosuch", ""),
    (&["--platform", "windows/amd64"], "`--platform windows/amd64`", "linux/amd64"),
    (&["--secret", "token"], "`--secret token`", "id=token,src="),
    (&["--secret", "id=a,src=nosuch"], "cannot use `", ""),
    (&["--umask", "9"], "`--umask 9`", "027"),
    (&["--tz", "../x"], "`--tz ../x`", "Europe/Berlin"),
    (&["-v", "/tmp:/x:ro,rw"], "`ro` and `rw` contradict", "ro"),
    (&["-v", "/tmp:/x:rshared"], "do not reach this host", ""),
    (&["-v", "/etc:/x:U"], "it belongs to the system", "omit `U`"),
    (&["-v", "/tmp:/x:nocopy"], "`nocopy` is for volumes", ""),
    (&["-p", "8000-8002:9000-9001"], "different lengths", ""),
];

fn refused() {
    // No image is there, and none is pulled for flags that are wrong.
    let host = Host::new();
    for (flags, want, hint) in REFUSED {
        for command in ["run", "create"] {
            if command == "create" && flags.contains(&"-d") {
                continue;
            }
            let error = host.fails(125, &[&[command], *flags, &["nosuchimage"]].concat());
            assert!(error.contains(want) && error.contains(hint), "{command} {flags:?}: {error}");
            assert!(!error.contains("pulling") && !error.contains("tip:"), "{command} {flags:?}: {error}");
        }
    }
    assert_eq!(host.ok(&["ps", "-aq"]), "", "nothing was made");
}

fn privileged() {
    let host = Host::with_box();
    let script = "grep -E '^(CapBnd|CapEff|Seccomp|NoNewPrivs):' /proc/self/status; \
                  grep ' /sys sysfs ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1; \
                  grep -q ' /proc/sys ' /proc/self/mounts || echo unmasked; ls /dev/kmsg; \
                  head -c 0 /dev/kmsg && echo open; \
                  grep ' /sys/fs/cgroup' /proc/self/mounts | grep -c ' ro,' || true";
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = |key: &str| all.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    let said = host.run(&[&RUN[..], &["--privileged", "box", "sh", "-c", script]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("gpurun: `--privileged` grants all capabilities, all devices"), "{}", said.err);
    let words: Vec<&str> = said.out.split_whitespace().collect();
    let bounding = own("CapBnd:");
    for want in [&*bounding, "rw", "unmasked", "/dev/kmsg", "open"] {
        assert!(words.contains(&want), "{want}: {}", said.out);
    }
    let has = |line: &str| said.out.lines().any(|known| known.split_whitespace().collect::<Vec<_>>().join(" ") == line);
    assert!(has("Seccomp: 0") && has("NoNewPrivs: 0"), "{}", said.out);
    assert!(said.out.ends_with("\n0\n"), "the cgroup is writable: {}", said.out);
    // `--cap-drop` applies to it too.
    let dropped = host.ok(&[&RUN[..], &["--privileged", "--cap-drop", "ALL", "box", "sh", "-c", script]].concat());
    let none = format!("CapBnd:\t{}", "0".repeat(16));
    assert!(dropped.contains(&none) && dropped.contains("unmasked"), "{dropped}");
    // What is not asked for is not there.
    let plain = host.run(&[&RUN[..], &["box", "sh", "-c", script]].concat());
    for absent in ["rw", "unmasked", "open", &bounding] {
        assert!(!plain.out.split_whitespace().any(|word| word == absent), "{absent}: {}", plain.out);
    }
    // Options of their own hold, a restart repeats it, and `exec` has it too.
    let flags =
        ["run", "-d", "--name", "lab", "--network", "none", "--privileged", "--security-opt", "no-new-privileges"];
    host.ok(&[&flags[..], &["box", "sleep", "1000"]].concat());
    host.ok(&["restart", "-t", "0", "lab"]);
    let status = host.ok(&["exec", "lab", "cat", "/proc/self/status"]);
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    assert_eq!((line("CapEff:"), line("NoNewPrivs:"), line("Seccomp:")), (bounding, "1".into(), "0".into()));
    let id = host.inspect("lab")["Id"].as_str().unwrap().to_owned();
    for dir in cgroups_of(&id) {
        if let Ok(list) = std::fs::read_to_string(dir.join("devices.list")) {
            assert_eq!(list.trim(), "a *:* rwm");
        }
    }
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}

fn attach() {
    let host = Host::with_box();
    let both = ["box", "sh", "-c", "echo out; echo error >&2; exit 3"];
    for (flags, out, err) in [
        (&[][..], "out\n", "error\n"),
        (&["-a", "stdout"], "out\n", ""),
        (&["-a", "STDERR"], "", "error\n"),
        (&["-a", "stdout", "-a", "stderr"], "out\n", "error\n"),
        (&["--sig-proxy=false", "-a", "STDOUT", "-a", "STDERR"], "out\n", "error\n"),
    ] {
        let said = host.run(&[&RUN[..], flags, &both].concat());
        assert_eq!((said.code, &*said.out, &*said.err), (3, out, err), "{flags:?}");
    }
    let said = host.with_input(&[&RUN[..], &["-i", "-a", "stdin", "-a", "stdout", "box", "cat"]].concat(), b"x\n");
    assert_eq!((said.code, &*said.out), (0, "x\n"));
    // docker's way to feed a container: the ID is shown, and the command ends with its input.
    let said =
        host.with_input(&["run", "--name", "fed", "--network", "none", "-i", "-a", "stdin", "box", "cat"], b"fed\n");
    assert_eq!((said.code, said.out.trim().len()), (0, 64), "{}", said.err);
    assert_eq!(host.ok(&["wait", "fed"]), "0");
    assert_eq!(host.ok(&["logs", "fed"]), "fed");
    // Input that is not attached stays open, and empty.
    host.ok(&["run", "-d", "--name", "open", "--network", "none", "-i", "box", "cat"]);
    assert_eq!(host.inspect("open")["State"]["Running"], true);
    host.ok(&["rm", "-f", "open", "fed"]);
    assert_eq!(host.leftovers(), "");
}

fn sig_proxy() {
    let host = Host::with_box();
    let start = |args: &[&str]| host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let interrupt = |child: &std::process::Child| {
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    };
    let script = "trap 'echo got; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let run = ["run", "--name", "lab", "--network", "none"];
    for (flags, code) in [(&["--sig-proxy=false"][..], 130), (&[], 7)] {
        let child = start(&[&run[..], flags, &["box", "sh", "-c", script]].concat());
        eventually("the container is ready", || host.run(&["logs", "lab"]).out == "ready\n");
        interrupt(&child);
        let said = answer(child.wait_with_output().unwrap());
        assert_eq!(said.code, code, "{} {}", said.out, said.err);
        assert_eq!(host.inspect("lab")["State"]["Running"], code == 130);
        if code == 130 {
            let child = start(&["attach", "--sig-proxy=false", "lab"]);
            eventually("attach handles SIGINT", || handles_interrupts(&child));
            interrupt(&child);
            let said = answer(child.wait_with_output().unwrap());
            assert!([130, 0].contains(&said.code), "{}", said.err);
            assert_eq!(host.inspect("lab")["State"]["Running"], true);
        }
        host.ok(&["rm", "-f", "lab"]);
    }
}

/// Whether a process blocks, ignores or catches SIGINT.
fn handles_interrupts(child: &std::process::Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let masks = status.lines().filter(|line| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|mask| line.starts_with(mask)));
    let sets = masks.filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok());
    let interrupt = 1 << (nix::libc::SIGINT - 1);
    sets.fold(0, |all, set| all | set) & interrupt != 0
}

fn cidfile() {
    let host = Host::with_box();
    let file = host.dir.join("id");
    let id = host.ok(&["run", "-d", "--name", "lab", "--network", "none", "--cidfile", "id", "box", "sleep", "1000"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), id);
    let error = host.fails(125, &["run", "--network", "none", "--cidfile", "id", "box", "true"]);
    assert!(error.contains("the file exists") && error.contains("`rm "), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), id, "it is another container's");
    host.ok(&["rm", "-f", "lab"]);
    std::fs::remove_file(&file).unwrap();
    // A container that does not start leaves no file.
    host.fails(127, &["run", "--network", "none", "--cidfile", "id", "box", "nosuch"]);
    assert!(!file.exists());
    let id = host.ok(&["create", "--cidfile", "id", "box"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), id);
}

fn ports() {
    let host = Host::with_box();
    let run = |name: &str, flags: &[&str]| {
        host.ok(&[&["run", "-d", "--name", name], flags, &["box", "sleep", "1000"]].concat())
    };
    let range = ["-p", "18000-18001:80"];
    run("one", &range);
    run("two", &range);
    let mut both = [host.ok(&["port", "one"]), host.ok(&["port", "two"])];
    both.sort();
    assert_eq!(both, ["80/tcp -> 0.0.0.0:18000", "80/tcp -> 0.0.0.0:18001"]);
    let error = host.fails(125, &[&["run", "--rm"], &range[..], &["box", "true"]].concat());
    assert!(
        error.contains("cannot publish port 0.0.0.0:18000-18001/tcp: it is in use: none of them is free"),
        "{error}"
    );
    host.ok(&["restart", "-t", "0", "two"]);
    assert_eq!(host.ok(&["port", "two"]), both[1]);
    run("all", &["-P", "--expose", "90", "--expose", "91/udp", "-p", "127.0.0.1:18090:90"]);
    let list = host.ok(&["port", "all"]);
    assert!(list.contains("90/tcp -> 127.0.0.1:18090") && list.contains("91/udp -> 0.0.0.0:"), "{list}");
    assert_eq!(list.lines().count(), 2, "{list}");
    run("exposed", &["--expose", "90"]);
    assert_eq!(host.ok(&["ps", "--filter", "name=exposed", "--format", "{{.Ports}}"]), "90/tcp");
    let all = host.inspect("exposed");
    assert_eq!(all["NetworkSettings"]["Ports"], json!({"90/tcp": null}));
    // `host-gateway` is the address at which the container reaches this host.
    let gateway = all["NetworkSettings"]["Gateway"].as_str().unwrap().to_owned();
    let line = host.ok(&["run", "--rm", "--add-host", "me:host-gateway", "box", "grep", "me$", "/etc/hosts"]);
    assert_eq!(line.split_whitespace().next(), Some(&*gateway), "{line}");
    host.ok(&["rm", "-f", "one", "two", "all", "exposed"]);
    assert_eq!(host.leftovers(), "");
}

fn no_log() {
    let host = Host::with_box();
    let said = host.run(&["run", "--name", "lab", "--network", "none", "--log-driver", "none", "box", "echo", "shown"]);
    assert_eq!((said.code, &*said.out), (0, "shown\n"), "{}", said.err);
    let error = host.fails(1, &["logs", "lab"]);
    assert!(error.contains("container `lab` keeps no log") && error.contains("gpurun attach lab"), "{error}");
    let log = host.inspect("lab")["LogPath"].as_str().unwrap().to_owned();
    assert!(std::fs::metadata(&log).map_or(0, |about| about.len()) == 0, "{log}");
    host.ok(&["rm", "lab"]);
}

fn rmi() {
    let host = Host::with_box();
    let names = || host.ok(&["images", "--format", "{{.Repository}}"]);
    let run = |image: &str| host.ok(&["run", "--rmi", "--network", "none", image, "echo", "ran"]);
    host.ok(&["tag", "box", "other"]);
    assert_eq!((run("other"), names()), ("ran".into(), "box".into()), "a name of several");
    assert_eq!(host.ok(&["ps", "-aq"]), "", "it implies --rm");
    host.ok(&["create", "--name", "user", "--network", "none", "box"]);
    assert_eq!((run("box"), names()), ("ran".into(), "box".into()), "another container uses it");
    host.ok(&["rm", "user"]);
    // A start that fails removes nothing.
    host.fails(127, &["run", "--rmi", "--network", "none", "box", "nosuch"]);
    assert_eq!(names(), "box");
    host.ok(&["run", "-d", "--rmi", "--name", "lab", "--network", "none", "box", "sleep", "1000"]);
    host.ok(&["stop", "-t", "0", "lab"]);
    eventually("the image is removed", || names().is_empty());
    assert_eq!(host.leftovers(), "");
}

fn replace() {
    let host = Host::with_box();
    let run = ["run", "-d", "--replace", "--name", "lab", "--network", "none", "box", "sleep", "1000"];
    let (first, second) = (host.ok(&run), host.ok(&run));
    assert_ne!(first, second);
    assert_eq!(host.ok(&["ps", "-aq", "--no-trunc"]), second);
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}

fn exec() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "box", "sleep", "1000"]);
    let held =
        |flags: &[&str]| host.ok(&[&["exec"], flags, &["lab", "sh", "-c", "grep CapEff /proc/self/status"]].concat());
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let all =
        all.lines().find(|line| line.starts_with("CapBnd:")).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert!(held(&["--privileged"]).ends_with(&all) && !held(&[]).ends_with(&all));
    // The device filter is the container's.
    let error = host.run(&["exec", "--privileged", "lab", "sh", "-c", "mknod /kmsg c 1 11 && head -c 0 /kmsg"]);
    assert!(error.code != 0 && error.err.contains("not permitted"), "{}", error.err);
    std::fs::write(host.dir.join("env"), "# c\nA=1\n").unwrap();
    assert_eq!(host.ok(&["exec", "--env-file", "env", "-e", "B=2", "lab", "sh", "-c", "echo $A$B"]), "12");
    assert_eq!(host.ok(&["exec", "-d", "lab", "touch", "/done"]), "");
    eventually("the command in the background ran", || host.run(&["exec", "lab", "test", "-e", "/done"]).code == 0);
    // A terminal without input: the command ends, whatever standard input is.
    assert_eq!(host.ok(&["exec", "-t", "lab", "echo", "x"]), "x");
    assert_eq!(host.ok(&["exec", "-t=true", "-i=false", "--detach-keys", "ctrl-x", "lab", "tty"]), "/dev/pts/0");
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}
