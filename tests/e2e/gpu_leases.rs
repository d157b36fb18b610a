//! Who has which GPU: leases of idle GPUs, named GPUs, and what the host shows of their use.

use crate::driver::{self, GIB, VERSION, uuid};
use crate::gpu::{Lab, leased};
use crate::host::eventually;

pub const TESTS: &[(&str, fn())] = &[
    ("an_idle_gpu_goes_to_one_container", leases),
    ("many_at_once_get_one_each", crowd),
    ("named_gpus_need_no_nvml", named),
    ("who_uses_what_is_seen_from_the_host", seen),
];

/// NVML hangs, and nothing waits for it: `/proc` knows the GPUs. An idle GPU can only be found with NVML.
fn named() {
    let lab = Lab::new(2);
    lab.driver.cdi("etc/cdi/nvidia.yaml", 2);
    lab.driver.nvml("hang");
    let run = |gpus: &str, mode: &str, env: &str| {
        let head = ["run", "--rm", "--network", "none", "--gpus", gpus, "--gpu-mode", mode, "-e", env];
        let mut command = lab.command(&[&head[..], &["box", "echo", "ran"]].concat());
        crate::host::answer(command.env("GPURUN_NVML_WAITS", "100,500").output().unwrap())
    };
    let met = "NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470,driver<471";
    for mode in ["native", "cdi"] {
        for gpus in ["all", "device=0,1", &format!("device={}", uuid(1))] {
            let answer = run(gpus, mode, met);
            assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "ran\n", ""), "{mode} {gpus}");
        }
        assert!(run("1", mode, met).err.contains("does not answer"), "{mode}");
    }
    assert_eq!(lab.host.leftovers(), "");
}

fn leases() {
    let lab = Lab::new(2);
    let start = |name: &str| {
        lab.run(&["run", "-d", "--name", name, "--network", "none", "--gpus", "1", "box", "sleep", "1000"])
    };
    let has = |name: &str| lab.host.inspect(name)["Gpus"][0]["index"].as_str().unwrap().to_owned();
    let first = start("one");
    assert!(first.code == 0 && first.err.contains("GPU 0 Stand-in A100, exclusive to this container"), "{}", first.err);
    assert_eq!(start("two").code, 0);
    assert_eq!((has("one"), has("two")), ("0".into(), "1".into()));
    let third = start("three");
    assert_eq!(third.code, 125);
    assert!(third.err.contains("1 idle GPU is requested, but 0 are idle"), "{}", third.err);
    for snippets in ["GPU 0", "container `one` of root for", "GPU 1", "container `two`", "--share-gpu"] {
        assert!(third.err.contains(snippets), "{snippets}: {}", third.err);
    }
    let shared = lab.run(&["run", "--rm", "--network", "none", "--gpus", "device=1", "box", "true"]);
    assert!(shared.code == 0 && shared.err.contains("GPU 1 is also held by container `two` of root"), "{}", shared.err);
    // A lease dies with its owner, however that dies.
    let pid1 = lab.host.inspect("one")["State"]["Pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid1}/status")).unwrap();
    let pid: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("its lease goes with the rest", || lab.host.ok(&["ps", "-q"]).lines().count() == 1 && leased(&lab) == 1);
    assert_eq!(start("next").code, 0);
    assert_eq!(has("next"), "0");
    lab.ok(&["stop", "-t", "0", "two"]);
    assert_eq!(leased(&lab), 1);
    // A GPU that another program computes on is not idle.
    lab.ok(&["rm", "-f", "next"]);
    let busy = format!(
        "driver {VERSION}\n{}{}process 0 1 {GIB}\n",
        driver::gpu(0, 20 * GIB, 90, false),
        driver::gpu(1, 0, 0, false)
    );
    lab.driver.nvml(&busy);
    assert_eq!(start("last").code, 0);
    assert_eq!(has("last"), "1");
    // One that hangs must not keep the launch for ever, and one that is not there must not keep it at all.
    lab.ok(&["rm", "-f", "last"]);
    lab.driver.nvml("fail 15");
    let blind = start("blind");
    assert!(blind.code == 0 && blind.err.contains("only the leases of gpurun's containers"), "{}", blind.err);
}

fn crowd() {
    let lab = Lab::new(3);
    let names: Vec<String> = (0..6).map(|number| format!("c{number}")).collect();
    let start = |name: &String| {
        lab.command(&["run", "-d", "--name", name, "--network", "none", "--gpus", "1", "box", "sleep", "1000"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = names.iter().map(start).collect();
    let codes: Vec<Option<i32>> = children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    let winners = names.iter().zip(&codes).filter(|(_, code)| **code == Some(0));
    let mut given: Vec<String> =
        winners.map(|(name, _)| lab.host.inspect(name)["Gpus"][0]["index"].as_str().unwrap().to_owned()).collect();
    given.sort();
    assert_eq!(given, ["0", "1", "2"], "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(125)).count(), 3, "{codes:?}");
}

fn seen() {
    let lab = Lab::new(3);
    lab.ok(&["run", "-d", "--name", "lab", "--network", "none", "--gpus", "1", "box", "sleep", "1000"]);
    lab.ok(&["run", "-d", "--name", "plain", "--network", "none", "box", "sleep", "1000"]);
    let pid = |name: &str| lab.host.inspect(name)["State"]["Pid"].as_i64().unwrap();
    // As the host counts: one in a container, this test itself, and one that has ended meanwhile.
    let mut text = format!("driver {VERSION}\ncuda 12040\n{}", driver::gpu(0, 12 * GIB, 93, false));
    text += &format!("{}{}", driver::gpu(1, 0, 0, false), driver::gpu(2, 0, 0, false));
    text += &format!(
        "process 0 {} {}\nprocess 0 {} {GIB}\nprocess 1 {} 1\n",
        pid("lab"),
        11 * GIB,
        std::process::id(),
        i32::MAX
    );
    lab.driver.nvml(&text);
    let table = lab.ok(&["gpus"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    for snippets in [
        &uuid(0),
        "Stand-in A100",
        "12.0 / 80.0 GiB",
        "93%",
        "lab (root, ",
        ", alone)",
        "lab: sleep [",
        "] 11.0 GiB",
        " (root): ",
        "] 1.0 GiB",
    ] {
        assert!(lines[1].contains(snippets), "{snippets}: {table}");
    }
    assert!(lines[2].contains("host (?): ?"), "{table}");
    assert!(lines[3].split_whitespace().rev().take(2).eq(["-", "-"]), "{table}");
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["gpus", "--json"])).unwrap();
    assert_eq!(
        (json["driver"].as_str(), json["cuda"].as_str(), &json["unread"]),
        (Some(VERSION), Some("12.4"), &serde_json::Value::Null)
    );
    let first = &json["gpus"][0];
    assert_eq!(first["users"][0]["container"], lab.host.inspect("lab")["Id"]);
    assert_eq!((&first["leases"][0]["container"], &first["leases"][0]["exclusive"]), (&"lab".into(), &true.into()));
    assert_eq!(first["memory"]["used"], 12 * GIB);
    assert_eq!(json["gpus"][2]["users"].as_array().unwrap().len(), 0);

    let ps = lab.ok(&["ps"]);
    let mut lines = ps.lines();
    let titles = lines.next().unwrap();
    let column = titles.find("GPU").expect("a column where any container has one");
    let next = titles.find("PORTS").unwrap();
    let cell = |name: &str| {
        let line = ps.lines().find(|line| line.contains(name)).unwrap();
        line.get(column..next).unwrap_or_default().split_whitespace().next().map(str::to_owned)
    };
    assert_eq!((cell("lab"), cell("plain")), (Some("0".into()), None), "{ps}");
    let stats = lab.ok(&["stats", "--no-stream"]);
    let line = |name: &str| stats.lines().find(|line| line.contains(name)).unwrap();
    assert!(line("lab").ends_with("0: 11.0 GiB, 93%") && line("plain").ends_with("-"), "{stats}");
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["stats", "--no-stream", "--json", "lab"])).unwrap();
    assert_eq!(json[0]["gpus"][0]["memory"], 11 * GIB);
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["top", "--once", "--json"])).unwrap();
    assert_eq!(
        (&json["host"]["gpus"][0]["memory_used"], &json["host"]["gpus"][0]["utilization"]),
        (&(12 * GIB).into(), &93.into())
    );
    let top = lab.ok(&["top", "--once"]);
    let line = |name: &str| top.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(line("GPU 0").contains("93% 12.0G/") && line("lab").contains("93  11.0G"), "{top}");
    lab.ok(&["rm", "-f", "lab"]);
    assert!(!lab.ok(&["ps"]).contains("GPU") && !lab.ok(&["stats", "--no-stream"]).contains("GPU"));

    // A driver that does not answer: what /proc knows is shown all the same.
    lab.driver.nvml("fail 999");
    let answer = lab.run(&["gpus"]);
    assert!(
        answer.code == 0 && answer.err.contains("are unknown: NVML") && answer.out.contains(&uuid(2)),
        "{}",
        answer.err
    );
    let empty = lab.host.dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let output = lab.command(&["gpus"]).env("GPURUN_DRIVER_ROOT", empty).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .starts_with("error: cannot list the GPUs: this host has no NVIDIA driver")
    );
}
