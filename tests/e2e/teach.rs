//! What teaches: explain, the labs, doctor.

use serde_json::Value;

use crate::driver::{self, GIB, VERSION, uuid};
use crate::gpu::Lab;
use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("explain_says_what_flags_become", dry),
    ("explain_shows_what_a_container_has", running),
    ("explain_tree_shows_cgroup_namespaces_mounts_and_devices", tree),
    ("every_lab_comes_out_as_the_kernel_promises", labs),
    ("a_killed_lab_leaves_nothing", killed_lab),
    ("ctrl_c_ends_a_lab_and_leaves_nothing", interrupted_lab),
    ("doctor_finds_this_host_fit", doctor),
    ("explain_says_what_gpus_become", explained),
];

fn dry() {
    let host = Host::new();
    let text = host.ok(&["explain", "--memory", "2g", "--memory-swap", "2g", "--cpus", "1.5"]);
    for snippets in [
        "linux.resources.memory.limit",
        "cgroup v2  memory.max = 2147483648",
        "cgroup v1  memory/memory.limit_in_bytes = 2147483648",
        "cgroup v2  memory.swap.max = 0",
        "cgroup v2  cpu.max = 150000 100000",
        "command    echo 2147483648",
        "cgroup-v2.rst",
    ] {
        assert!(text.contains(snippets), "`{snippets}` is not in\n{text}");
    }
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty(), "longer than 80 columns: {long:?}");
    let json: Value = serde_json::from_str(&host.ok(&["explain", "--json", "--pids-limit", "9"])).unwrap();
    assert_eq!(json[0]["files"][0]["value"], "9");
    assert!(host.fails(2, &["explain", "--memory", "1m"]).contains("minimum memory limit"));
    assert!(host.ok(&["explain"]).contains("--cpuset-cpus"));
    assert_eq!(host.leftovers(), "");
}

fn running() {
    let host = Host::with_box();
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; while true; do :; done";
    host.ok(&[
        "run",
        "-d",
        "--name",
        "lab",
        "--network",
        "none",
        "--memory",
        "64m",
        "--cpus",
        "0.2",
        "box",
        "sh",
        "-c",
        script,
    ]);
    // A loop that gets less from a busy host than its quota is not throttled: this is the smallest quota.
    host.ok(&["update", "lab", "--cpus", "0.01"]);
    eventually("it is throttled", || {
        let json: Value = serde_json::from_str(&host.ok(&["explain", "--json", "lab"])).unwrap();
        let cpus = json.as_array().unwrap().iter().find(|one| one["flag"] == "--cpus").unwrap();
        cpus["now"][0]
            .as_str()
            .is_some_and(|now| now.starts_with("throttled in ") && !now.starts_with("throttled in 0"))
    });
    let text = host.ok(&["explain", "lab"]);
    assert!(text.contains("kernel     memory.") && text.contains(" used, "), "{text}");
    // What an update would do, without doing it.
    assert!(host.ok(&["explain", "lab", "--memory", "96m"]).contains("memory.max = 100663296"));
    let text = host.ok(&["explain", "lab"]);
    assert!(text.contains("memory.max = 67108864 (64 MiB)"), "{text}");
    // Readable at 80 columns, with IDs, and the shown commands do what the text says.
    for text in [text.clone(), host.ok(&["explain", "--tree", "lab"])] {
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty() && !text.contains('\x1b'), "longer than 80 columns: {long:?}");
    }
    let id = text.lines().find_map(|line| line.strip_prefix("  ID=")).expect("the id");
    let (_, rest) = text.split_once("command    echo 67108864 \\\n").expect("the line by hand");
    let line = format!("ID={id}; echo 50331648 {}", rest.lines().next().unwrap());
    crate::host::sh(&line);
    let error = host.fails(1, &["explain", "lab"]);
    assert!(error.contains("cannot enforce `--memory`") && error.contains("reports `50331648`"), "{error}");
}

fn tree() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "--memory", "64m", "box", "sleep", "1000"]);
    let json: Value = serde_json::from_str(&host.ok(&["explain", "--tree", "--json", "lab"])).unwrap();
    let own: Vec<&str> = json["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["shared"] == false)
        .map(|one| one["kind"].as_str().unwrap())
        .collect();
    assert_eq!(own, ["mnt", "pid", "net", "uts", "ipc", "cgroup"]);
    let has =
        |list: &str, field: &str, value: &str| json[list].as_array().unwrap().iter().any(|one| one[field] == value);
    assert!(has("mounts", "point", "/") && has("devices", "path", "/dev/null"));
    let groups = json["cgroups"].as_array().unwrap();
    let with_process = groups.iter().filter(|group| group["processes"][0][1] == "sleep").count();
    assert!(with_process >= 1, "{groups:?}");
    assert!(
        groups.iter().any(|group| group["limits"]["memory.max"] == "67108864"
            || group["limits"]["memory.limit_in_bytes"] == "67108864")
    );
    let text = host.ok(&["explain", "--tree", "lab"]);
    assert!(text.contains("namespaces") && text.contains("the host's") && text.contains("sleep"), "{text}");
    host.ok(&["stop", "-t", "0", "lab"]);
    assert!(host.fails(1, &["explain", "--tree", "lab"]).contains("is not running"));
}

fn labs() {
    let host = Host::new();
    let all: Value = serde_json::from_str(&host.ok(&["lab", "list", "--json"])).unwrap();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 9);
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let swap = std::fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1;
    for lab in all {
        let name = lab["name"].as_str().unwrap();
        let (began, out) = (std::time::Instant::now(), host.ok(&["lab", "run", "--json", name]));
        // A few seconds each; on a busy machine some more.
        assert!(crate::host::slow() || began.elapsed().as_secs() < 60, "{name} took {:?}", began.elapsed());
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let busy = last["text"].as_str().unwrap().contains("other work keeps this host's CPUs busy");
        if busy && ["cpuset", "throttle"].contains(&name) {
            continue;
        }
        // What this host cannot do is said, and only that.
        let possible = match name {
            "pressure" => v2,
            "swap" => swap,
            _ => true,
        };
        assert_eq!(last["verdict"], if possible { "expected" } else { "impossible" }, "{name}: {out}");
    }
    assert!(host.fails(2, &["lab", "run", "nope"]).contains("hint: use one of: memory, swap"));
    // Other tests may have labs of their own at this moment: a group is left behind where its lab is gone.
    let owner =
        |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().split('-').nth(1).map(str::to_owned);
    let left = || {
        lab_groups()
            .into_iter()
            .any(|path| owner(&path).is_none_or(|pid| !std::path::Path::new("/proc").join(pid).exists()))
    };
    eventually("no lab has left a cgroup", || !left());
}

fn lab_groups() -> Vec<std::path::PathBuf> {
    let mut roots = vec![std::path::PathBuf::from("/sys/fs/cgroup/gpurun")];
    roots.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join("gpurun")));
    let inside =
        |root: std::path::PathBuf| std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_lab = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("lab-");
    roots.into_iter().flat_map(inside).filter(is_lab).collect()
}

fn killed_lab() {
    let host = Host::new();
    let mut child = host.command(&["lab", "run", "pids"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mark = format!("lab-{}-", child.id());
    let of_child = || lab_groups().into_iter().any(|path| path.to_string_lossy().contains(&mark));
    eventually("the lab has its cgroup", of_child);
    child.kill().unwrap();
    child.wait().unwrap();
    // The next command, whichever it is.
    eventually("the cgroup is gone", || {
        host.ok(&["ps"]);
        !of_child()
    });
    assert!(cgroups_of("nobody").is_empty());
}

fn interrupted_lab() {
    let host = Host::new();
    let mut child = host
        .command(&["lab", "run", "pids"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mark = format!("lab-{}-", child.id());
    let of_child = || lab_groups().into_iter().any(|path| path.to_string_lossy().contains(&mark));
    eventually("the lab has its cgroup", of_child);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let mut error = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut error).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{error}");
    assert!(error.contains("the lab was interrupted; its cgroups and processes were removed"), "{error}");
    assert!(!of_child(), "by itself, without another command");
}

/// What only teaches asks for no rights, and leaves nothing that a student could not remove.
fn students() {
    // Where a build lies others may not look.
    let open = std::env::temp_dir().join(format!("gpurun-e2e-student-{}", std::process::id()));
    std::fs::copy(crate::host::binary(), &open).unwrap();
    let student = |args: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&open).args(args);
        crate::host::answer(command.current_dir("/").output().unwrap())
    };
    for (args, snippets) in [
        (&["explain", "--memory", "1g"][..], "memory.max = 1073741824"),
        (&["explain"], "--cpuset-cpus"),
        (&["lab", "list"], "zombies"),
    ] {
        let answer = student(args);
        assert!(answer.code == 0 && answer.out.contains(snippets), "{args:?}: {}{}", answer.out, answer.err);
    }
    assert!(student(&["lab", "run", "pids"]).err.contains("gpurun needs root"));
    std::fs::remove_file(&open).unwrap();
}

fn doctor() {
    let host = Host::new();
    let answer = host.run(&["doctor", "--json"]);
    let all: Value = serde_json::from_str(&answer.out).unwrap();
    let all = all.as_array().unwrap();
    let problems: Vec<&Value> = all.iter().filter(|finding| finding["level"] == "problem").collect();
    assert!(problems.is_empty() && answer.code == 0, "{problems:?}");
    for area in ["kernel", "cgroup", "isolation", "images", "network", "disk", "gpu"] {
        assert!(all.iter().any(|finding| finding["area"] == area), "{area} is not in {all:?}");
    }
    for finding in all {
        assert!(finding["level"] == "fine" || finding["hint"].is_string(), "no way out of {finding}");
    }
    let text = host.ok(&["doctor"]);
    assert!(text.contains("overlayfs works"), "{text}");
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty(), "longer than 80 columns: {long:?}");
    students();
    assert_eq!(host.leftovers(), "");
}

fn explained() {
    let lab = Lab::new(2);
    let look = |args: &[&str]| {
        let all: serde_json::Value = serde_json::from_str(&lab.ok(&[&["explain", "--json"], args].concat())).unwrap();
        let one = all.as_array().unwrap().iter().find(|one| one["flag"] == "--gpus").unwrap().clone();
        let lines = |key: &str| -> Vec<String> {
            one[key].as_array().unwrap().iter().map(|line| line.as_str().unwrap_or_default().to_owned()).collect()
        };
        (lines("oci"), lines("now").join("\n"), one["files"].as_array().unwrap().clone())
    };
    // Without a hook: the driver's own files, the nodes and their rules.
    let (oci, now, files) = look(&["--gpus", "1", "--memory", "64m"]);
    assert!(now.contains("native injection") && now.contains("exclusive to this container"), "{now}");
    assert!(oci.contains(&format!("process.env: NVIDIA_VISIBLE_DEVICES={}", uuid(0))), "{oci:?}");
    assert!(oci.iter().any(|line| line.starts_with("linux.devices: /dev/nvidia0 c 195:0")), "{oci:?}");
    assert!(!oci.iter().any(|line| line.contains("/dev/nvidia1 ")), "{oci:?}");
    assert!(
        oci.iter().any(|line| line.starts_with("a layer of the root file system, the driver's files: ")),
        "{oci:?}"
    );
    let rule = |version: &str| files.iter().find(|file| file["version"] == version).unwrap()["value"].clone();
    assert!(
        rule("v1").as_str().unwrap().starts_with("c 195:") && rule("v2").as_str().unwrap().starts_with("allow c 195:")
    );
    // It took nothing: the same GPU is idle still, for a container that then has it.
    assert!(!lab.host.dir.join("run/gpus").exists());
    let device = ["--device", "/dev/full:/dev/other"];
    lab.ok(&[
        &["run", "-d", "--name", "lab", "--network", "none", "--gpus", "1"],
        &device[..],
        &["box", "sleep", "1000"],
    ]
    .concat());
    let (oci, ..) = look(&["--gpus", "1"]);
    assert!(oci.contains(&format!("process.env: NVIDIA_VISIBLE_DEVICES={}", uuid(1))), "{oci:?}");
    // A running container tells what it has, and how it came in.
    lab.driver.nvml(&format!(
        "driver {VERSION}\ncuda 12040\n{}{}",
        driver::gpu(0, 3 * GIB, 40, false),
        driver::gpu(1, 0, 0, false)
    ));
    let (oci, now, files) = look(&["lab"]);
    assert!(oci.contains(&format!("process.env: NVIDIA_VISIBLE_DEVICES={}", uuid(0))), "{oci:?}");
    assert!(oci.contains(&"linux.devices: /dev/nvidia0 c 195:0".to_owned()), "{oci:?}");
    assert!(!oci.iter().any(|line| line.contains("/dev/nvidia1 ") || line.contains("/dev/other")), "{oci:?}");
    assert!(files.iter().any(|file| file["version"] == "v2" && file["value"] == "allow c 195:0 rwm"), "{files:?}");
    assert!(now.contains("by native injection"), "{now}");
    assert!(
        now.contains("this container uses 0.0 GiB of the memory of GPU 0; its utilization by all users is 40 %"),
        "{now}"
    );
    let text = lab.ok(&["explain", "lab"]);
    assert!(text.starts_with("--gpus\n"), "it has no limits, and a GPU: {text}");
    // What cannot be had is refused as a launch would be.
    let asked = lab.run(&["explain", "--gpus", "2"]);
    let launched = lab.run(&["run", "--rm", "--network", "none", "--gpus", "2", "box", "true"]);
    // For how long `lab` has had its GPU grows between the two.
    let reported = |err: &str| {
        regex::Regex::new(r"for (less than a second|\d+ seconds?)").unwrap().replace(err, "for a while").into_owned()
    };
    assert_eq!((asked.code, launched.code, reported(&asked.err)), (1, 125, reported(&launched.err)));
    let error = lab.run(&["explain", "--gpus", "all", "lab"]);
    assert!(error.code == 2 && error.err.contains("cannot be changed after the start"), "{}", error.err);
    lab.ok(&["rm", "-f", "lab"]);
    lab.driver.hook("true");
    let (oci, now, files) = look(&["--gpus", "device=1"]);
    assert!(
        oci[0].starts_with("hooks.prestart: ") && oci[0].ends_with("nvidia-container-runtime-hook prestart"),
        "{oci:?}"
    );
    assert!(now.contains("NVIDIA's prestart hook") && files.is_empty(), "{now} {files:?}");
    let text = lab.ok(&["explain", "--gpus", "device=1", "--gpu-mode", "native"]);
    assert!(text.contains("--gpus\n") && text.contains("devices.allow = c 195:1"), "{text}");
    assert_eq!(lab.host.leftovers(), "");
}
