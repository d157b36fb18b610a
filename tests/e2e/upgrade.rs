//! Containers that an earlier release of gpurun started, under the commands of this one. `GPURUN_TEST_EARLIER` names the
//! binary of the earlier release (`tests/earlier-release` builds it).

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, answer, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("commands_work_with_an_earlier_supervisor", commands),
    ("an_earlier_supervisor_keeps_what_this_release_recorded", changes),
    ("a_restart_moves_a_container_to_this_release", restart),
    ("what_an_earlier_supervisor_left_is_cleaned_up", killed),
];

pub fn binary() -> Option<PathBuf> {
    std::env::var_os("GPURUN_TEST_EARLIER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// `gpurun …` of the earlier release on a host.
#[track_caller]
fn earlier(host: &Host, args: &[&str]) -> String {
    let own = host.command(args);
    let mut command = Command::new(own.get_program());
    // The first argument enters the network, and the second one is the binary under test.
    command.arg(own.get_args().next().unwrap()).arg(binary().unwrap()).args(args).current_dir(&host.dir);
    command.env("GPURUN_ROOT", host.dir.join("root")).env("GPURUN_RUN", host.dir.join("run"));
    command.env_remove("SUDO_UID").env_remove("SUDO_GID").env_remove("GPURUN_KILL_AT");
    let answer = answer(command.output().unwrap());
    assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
    answer.out.trim().to_owned()
}

/// A container of the earlier release.
fn up(host: &Host) -> String {
    let script = "echo hello; exec sleep 1000";
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "50"];
    let mut args = vec!["run", "-d", "--name", "web", "-p", "18080:80", "-e", "A=1", "--stop-timeout", "1"];
    args.extend(limits);
    args.extend(["--cap-drop", "MKNOD", "--group-add", "7", "box", "sh", "-c", script]);
    earlier(host, &args)
}

fn commands() {
    let host = Host::with_box();
    let id = up(&host);
    let rows: serde_json::Value = serde_json::from_str(&host.ok(&["ps", "--json"])).unwrap();
    assert_eq!((&rows[0]["name"], &rows[0]["phase"]), (&"web".into(), &"running".into()), "{rows}");
    assert_eq!(rows[0]["ports"][0], "0.0.0.0:18080->80/tcp");
    let about = host.inspect("web");
    assert_eq!(about["Supervisor"]["Protocol"], 1, "{about}");
    assert_eq!(about["Cgroup"], format!("/gpurun/{id}"));
    assert_eq!(about["Owner"]["Name"], "root");
    eventually("the output is in the log", || host.ok(&["logs", "web"]) == "hello");
    let status = |who: &str| {
        let keys = "CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp:|Uid|Gid|Groups";
        host.ok(&["exec", "web", "grep", "-E", keys, &format!("/proc/{who}/status")])
    };
    assert_eq!(status("self"), status("1"), "an exec'ed process is restricted like pid 1");
    assert_eq!(
        host.ok(&["exec", "web", "cat", "/proc/self/cgroup"]),
        host.ok(&["exec", "web", "cat", "/proc/1/cgroup"])
    );
    assert_eq!(host.ok(&["exec", "-e", "B=2", "-w", "/tmp", "web", "sh", "-c", "echo $A $B $(pwd)"]), "1 2 /tmp");
    assert!(host.ok(&["exec", "-u", "ann", "web", "id", "-G"]).contains('7'));
    assert_eq!(host.with_input(&["exec", "-i", "web", "cat"], b"typed").out, "typed");
    let stats = host.ok(&["stats", "--no-stream", "--json", "web"]);
    assert!(stats.contains("67108864"), "{stats}");
    assert!(host.ok(&["explain", "web"]).contains("--memory"));
    host.ok(&["explain", "--tree", "web"]);
    host.ok(&["exec", "web", "touch", "/made"]);
    assert!(host.ok(&["diff", "web"]).contains("A /made"));
    host.ok(&["cp", "web:/made", "copy"]);
    host.ok(&["pause", "web"]);
    assert!(host.ok(&["ps"]).contains("(Paused)"));
    host.ok(&["resume", "web"]);
    let committed = host.run(&["commit", "web", "made"]);
    assert_eq!(committed.code, 0, "{}", committed.err);
    assert!(committed.err.contains("`gpurun resume web`"), "{}", committed.err);
    assert_eq!(host.inspect("web")["State"]["Status"], "running", "it is thawed");
    let doctor = host.run(&["doctor"]).out;
    assert!(doctor.contains("`web` (0.1)") && doctor.contains("`gpurun restart web`"), "{doctor}");
    let waiting = host.command(&["wait", "web"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    host.ok(&["stop", "web"]);
    assert_eq!(answer(waiting.wait_with_output().unwrap()).out.trim(), "137");
    assert!(host.ok(&["ps", "-a"]).contains("Exited (137)"));
    host.ok(&["rm", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn changes() {
    let host = Host::with_box();
    up(&host);
    let limit = |name: &str| {
        let limits = host.inspect(name)["Limits"].as_array().unwrap().clone();
        limits.iter().find(|row| row["flag"] == "--memory").unwrap()["kernel"].as_str().unwrap().to_owned()
    };
    host.ok(&["update", "web", "--memory", "80m"]);
    assert_eq!(limit("web"), (80 << 20).to_string());
    // This release rewrites the record, and the earlier supervisor then changes it.
    host.ok(&["rename", "web", "site"]);
    host.ok(&["update", "site", "--memory", "96m"]);
    assert_eq!(limit("site"), (96 << 20).to_string());
    let request = host.inspect("site")["Request"].clone();
    assert_eq!(request["limits"]["memory"], "96m", "{request}");
    assert_eq!(request["restart"], "no");
    // A message that is longer than a packet of the earlier protocol.
    let conf: Vec<String> = (0..1000).map(|n| format!("memory.none{n}={}", "x".repeat(60))).collect();
    let mut args = vec!["update", "site"];
    args.extend(conf.iter().flat_map(|conf| ["--cgroup-conf", conf.as_str()]));
    let error = host.fails(1, &args);
    assert!(error.contains("was started by gpurun 0.1") && error.contains("`gpurun restart site`"), "{error}");
    host.ok(&["restart", "site"]);
    assert_eq!(limit("site"), (96 << 20).to_string());
    host.ok(&["rm", "-f", "site"]);
    assert_eq!(host.leftovers(), "");
}

fn restart() {
    let host = Host::with_box();
    up(&host);
    host.ok(&["restart", "web"]);
    let about = host.inspect("web");
    assert_eq!(about["State"]["Status"], "running");
    assert_eq!(about["Supervisor"]["Release"], env!("CARGO_PKG_VERSION"), "{about}");
    assert_eq!(host.ok(&["exec", "web", "sh", "-c", "echo $A"]), "1");
    assert!(!host.run(&["doctor"]).out.contains("started by another release"));
    host.ok(&["rm", "-f", "web"]);
    // A container that the earlier release has stopped starts as well.
    up(&host);
    earlier(&host, &["stop", "web"]);
    host.ok(&["start", "web"]);
    assert_eq!(host.ok(&["exec", "web", "sh", "-c", "echo $A"]), "1");
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.leftovers(), "");
}

fn killed() {
    let host = Host::with_box();
    up(&host);
    let pid = host.inspect("web")["Supervisor"]["Pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    eventually("the end is recorded", || host.ok(&["ps", "-a"]).contains("Exited (137)"));
    assert_eq!(host.leftovers(), "");
    host.ok(&["rm", "web"]);
}
