//! Starting containers when the host boots.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::host::{Host, answer, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("containers_of_an_earlier_boot_start", start),
    ("a_host_without_systemd_says_so", without_systemd),
    ("a_unit_starts_containers_at_boot", unit),
];

fn up(host: &Host, name: &str, policy: &str) {
    host.ok(&["run", "-d", "--network", "none", "--restart", policy, "--name", name, "box", "sleep", "100000"]);
}

fn is_running(host: &Host, name: &str) -> bool {
    host.inspect(name)["State"]["Running"] == true
}

fn supervisor(host: &Host, name: &str) -> i32 {
    host.inspect(name)["Supervisor"]["Pid"].as_i64().unwrap() as i32
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    eventually("the supervisor ends", || !Path::new(&format!("/proc/{pid}")).exists());
}

/// What a power cut leaves: no process, nothing in /run, and states of another boot.
fn reboot(host: &Host, names: &[&str]) {
    for name in names {
        let container = host.inspect(name);
        let (id, pid) = (container["Id"].as_str().unwrap(), container["Supervisor"]["Pid"].as_i64());
        if let Some(pid) = pid {
            signal(pid as i32, nix::sys::signal::Signal::SIGKILL);
        }
        let path = host.dir.join("root/containers").join(id).join("state.json");
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if state["boot_id"].is_string() {
            state["boot_id"] = "11111111-2222-3333-4444-555555555555".into();
        }
        fs::write(&path, state.to_string()).unwrap();
    }
    host.ok(&["ps", "-a"]);
}

fn start() {
    let host = Host::with_box();
    for (name, policy) in [
        ("a-runs", "always"),
        ("a-stopped", "always"),
        ("u-runs", "unless-stopped"),
        ("u-stopped", "unless-stopped"),
        ("u-killed", "unless-stopped"),
        ("u-shutdown", "unless-stopped"),
        ("f-runs", "on-failure"),
        ("n-runs", "no"),
    ] {
        up(&host, name, policy);
    }
    let bound = host.dir.join("bound");
    fs::create_dir(&bound).unwrap();
    let volume = format!("{}:/bound", bound.display());
    let flags = ["--network", "none", "--restart", "always", "-v", &volume];
    host.ok(&[&["run", "-d", "--name", "a-broken"][..], &flags, &["box", "sleep", "100000"]].concat());
    host.ok(&["create", "--network", "none", "--restart", "always", "--name", "a-created", "box", "sleep", "1"]);
    host.ok(&["stop", "-t", "0", "a-stopped", "u-stopped"]);
    host.ok(&["kill", "u-killed"]);
    eventually("it is killed", || !is_running(&host, "u-killed"));
    // A shutdown sends SIGTERM to all processes. That is not a user's stop.
    signal(supervisor(&host, "u-shutdown"), nix::sys::signal::Signal::SIGTERM);
    assert!(!is_running(&host, "u-shutdown"));
    fs::remove_dir(&bound).unwrap();
    assert_eq!(host.ok(&["boot", "start"]), "", "nothing starts in the same boot");
    let all = [
        "a-runs",
        "a-stopped",
        "u-runs",
        "u-stopped",
        "u-killed",
        "u-shutdown",
        "f-runs",
        "n-runs",
        "a-broken",
        "a-created",
    ];
    let status: serde_json::Value = serde_json::from_str(&host.ok(&["boot", "status", "--json"])).unwrap();
    let mut expected = ["a-runs", "a-stopped", "u-runs", "u-shutdown", "a-broken"];
    let mut shown: Vec<&str> =
        status["Containers"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    expected.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, expected);
    reboot(&host, &all);
    let started = host.run(&["boot", "start"]);
    assert_eq!(started.code, 1, "{}", started.err);
    assert_eq!(started.out, "a-runs\na-stopped\nu-runs\nu-shutdown\n", "the oldest first");
    assert!(started.err.contains("cannot start container `a-broken` at boot"), "{}", started.err);
    assert!(started.err.contains("1 of 5 containers did not start at boot"), "{}", started.err);
    let running: Vec<&str> = all.into_iter().filter(|name| is_running(&host, name)).collect();
    assert_eq!(running, ["a-runs", "a-stopped", "u-runs", "u-shutdown"]);
    // Once more, after a user has stopped one: its boot is this one.
    host.ok(&["stop", "-t", "0", "a-runs"]);
    fs::create_dir(&bound).unwrap();
    host.ok(&["boot", "start"]);
    assert!(!is_running(&host, "a-runs"));
    // A stop for a shutdown is not a user's.
    host.ok(&["boot", "stop"]);
    assert_eq!(host.ok(&["ps", "-q"]), "");
    reboot(&host, &["u-runs", "u-stopped"]);
    assert_eq!(host.ok(&["boot", "start"]), "u-runs");
    host.ok(&["stop", "-t", "0", "u-runs"]);
    assert_eq!(host.leftovers(), "");
}

fn without_systemd() {
    if crate::host::runs_systemd() {
        return;
    }
    let host = Host::new();
    let told = host.fails(1, &["boot", "enable"]);
    assert!(told.contains("systemd does not run on this host"), "{told}");
    assert!(
        told.contains("`@reboot /") && told.contains(&format!("--root {}", host.dir.join("root").display())),
        "{told}"
    );
    assert_eq!(host.ok(&["boot", "status"]), "start at boot: not available: systemd does not run on this host");
}

/// The whole way, with systemd as PID 1 (tests/vm/suite --systemd).
fn unit() {
    let host = Host::with_box();
    let systemctl = |args: &[&str]| answer(Command::new("systemctl").args(args).output().unwrap());
    assert!(host.ok(&["boot", "status"]).contains("disabled"));
    up(&host, "web", "always");
    up(&host, "plain", "no");
    host.ok(&["boot", "enable"]);
    assert!(host.ok(&["boot", "status"]).starts_with("start at boot: enabled (gpurun-boot.service)\nweb  always"));
    assert_eq!(systemctl(&["is-enabled", "gpurun-boot"]).out, "enabled\n");
    assert_eq!(systemctl(&["stop", "gpurun-boot"]).code, 0);
    assert!(is_running(&host, "web") && is_running(&host, "plain"), "only a shutdown stops containers");
    reboot(&host, &["web", "plain"]);
    let started = systemctl(&["start", "gpurun-boot"]);
    assert_eq!(started.code, 0, "{}\n{}", started.err, sh("journalctl -u gpurun-boot --no-pager 2>&1 || true"));
    assert!(is_running(&host, "web") && !is_running(&host, "plain"));
    assert_eq!(systemctl(&["is-active", "gpurun-boot"]).out, "active\n");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", supervisor(&host, "web"))).unwrap();
    assert!(cgroup.contains("/gpurun/supervisors") && !cgroup.contains("gpurun-boot"), "{cgroup}");
    for verb in ["stop", "start", "restart", "kill"] {
        systemctl(&[verb, "gpurun-boot"]);
        assert!(is_running(&host, "web"), "{verb}");
    }
    host.ok(&["boot", "disable"]);
    host.ok(&["boot", "disable"]);
    assert!(!Path::new("/etc/systemd/system/gpurun-boot.service").exists());
    assert!(host.ok(&["boot", "status"]).contains("disabled") && is_running(&host, "web"));
    host.ok(&["rm", "-f", "web", "plain"]);
    assert_eq!(host.leftovers(), "");
}
