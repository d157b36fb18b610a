//! `--wait`: the queue for idle GPUs, on a stand-in of a driver.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::driver::{self, GIB, LIBRARY_DIR, VERSION, mig_uuid};
use crate::gpu::{Lab, leased};
use crate::host::eventually;

pub const TESTS: &[(&str, fn())] = &[
    ("twenty_waiters_keep_their_order", order),
    ("a_waiter_for_two_is_not_starved", starvation),
    ("the_time_limit_and_ctrl_c_leave_the_queue", leaving),
    ("a_gpu_that_becomes_idle_by_itself_is_noticed", by_itself),
    ("a_container_keeps_its_gpu_while_it_restarts", restarts),
    ("start_and_mig_devices_wait_too", start_and_mig),
    ("a_container_that_waits_can_be_removed", removal),
    ("a_stop_ends_the_wait", stop),
    ("a_gpu_that_is_taken_at_the_last_moment_is_waited_for_again", taken),
];

/// A command that waits, or that runs its container in the foreground.
fn spawn(lab: &Lab, name: &str, flags: &[&str], line: &str) -> Child {
    let head = ["run", "--rm", "--name", name, "--network", "none"];
    let mut command = lab.command(&[&head[..], flags, &["box", "sh", "-c", line]].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The containers in the queue, in their order.
fn queue(lab: &Lab) -> Vec<String> {
    let all: serde_json::Value = serde_json::from_str(&lab.ok(&["gpus", "--json"])).unwrap();
    all["queue"].as_array().unwrap().iter().map(|one| one["container"].as_str().unwrap().to_owned()).collect()
}

fn hold(lab: &Lab, name: &str) {
    lab.ok(&["run", "-d", "--name", name, "--network", "none", "--gpus", "1", "box", "sleep", "1000"]);
}

/// How a command ended, and what it printed on standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn supervisor(lab: &Lab, name: &str) -> Pid {
    Pid::from_raw(lab.host.inspect(name)["Supervisor"]["Pid"].as_i64().unwrap() as i32)
}

/// The waiters get the GPU in their order, although a waiter and the holder are killed.
fn order() {
    let lab = Lab::new(1);
    hold(&lab, "holder");
    let out = lab.host.dir.join("out");
    fs::create_dir(&out).unwrap();
    let volume = format!("{}:/out", out.display());
    let names: Vec<String> = (0..20).map(|number| format!("w{number}")).collect();
    let mut waiters: Vec<Child> = Vec::new();
    for name in &names {
        let line = format!("echo {name} >>/out/order");
        waiters.push(spawn(&lab, name, &["--gpus", "1", "--wait", "-v", &volume], &line));
        eventually(&format!("{name} waits"), || queue(&lab).last() == Some(name));
    }
    assert_eq!(queue(&lab), names);
    let table = lab.ok(&["gpus"]);
    assert!(table.contains("QUEUE") && table.contains("w19"), "{table}");
    // A container whose command waits is visible, and has its name.
    assert_eq!(lab.host.ok(&["ps", "-aq"]).lines().count(), 21);
    let mut killed = waiters.remove(7);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left: Vec<String> = names.iter().filter(|name| *name != "w7").cloned().collect();
    assert_eq!(queue(&lab), left);
    assert_eq!(lab.host.ok(&["ps", "-aq"]).lines().count(), 20);
    kill(supervisor(&lab, "holder"), Signal::SIGKILL).unwrap();
    for (waiter, name) in waiters.into_iter().zip(&left) {
        let (code, text) = end(waiter);
        assert_eq!(code, Some(0), "{name}: {text}");
        let holder = "container `holder` of root";
        assert!(text.contains("waiting for `--gpus 1`: position ") && text.contains(holder), "{name}: {text}");
    }
    let ran: Vec<String> = fs::read_to_string(out.join("order")).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(ran, left);
    lab.ok(&["rm", "-f", "holder"]);
    assert_eq!((queue(&lab).len(), leased(&lab), lab.host.leftovers().as_str()), (0, 0, ""));
}

fn starvation() {
    let lab = Lab::new(2);
    hold(&lab, "first");
    hold(&lab, "second");
    let two = spawn(&lab, "two", &["--gpus", "2", "--wait"], "true");
    eventually("two waits", || queue(&lab) == ["two"]);
    let later = spawn(&lab, "later", &["--gpus", "1", "--wait=1h"], "true");
    eventually("later waits", || queue(&lab) == ["two", "later"]);
    lab.ok(&["rm", "-f", "first"]);
    // A GPU is idle, and reserved for the first command.
    let overtaking = lab.run(&["run", "--rm", "--network", "none", "--gpus", "1", "box", "true"]);
    assert_eq!(overtaking.code, 125, "{}", overtaking.err);
    assert!(
        overtaking.err.contains("2 commands wait for idle GPUs, the first one for container `two` of root")
            && overtaking.err.contains("--wait"),
        "{}",
        overtaking.err
    );
    let third = spawn(&lab, "third", &["--gpus", "1", "--wait=1s"], "true");
    let (code, text) = end(third);
    assert!(code == Some(124) && text.contains("position 3 of 3"), "{code:?} {text}");
    assert!(text.contains("the idle GPUs are reserved for the commands before this one"), "{text}");
    assert_eq!(queue(&lab), ["two", "later"]);
    // An explicit GPU is shared, as without a queue.
    lab.ok(&["run", "--rm", "--network", "none", "--gpus", "device=1", "box", "true"]);
    lab.ok(&["rm", "-f", "second"]);
    for waiter in [two, later] {
        let (code, text) = end(waiter);
        assert_eq!(code, Some(0), "{text}");
    }
    // A request that the host can never fulfill does not wait.
    let never = lab.run(&["run", "--rm", "--network", "none", "--gpus", "3", "--wait", "box", "true"]);
    assert!(never.code == 125 && never.err.contains("the host has 2"), "{}", never.err);
    for gpus in ["all", "device=0"] {
        let usage = lab.run(&["run", "--rm", "--network", "none", "--gpus", gpus, "--wait", "box", "true"]);
        assert!(usage.code == 125 && usage.err.contains("cannot use `--wait`"), "{}", usage.err);
    }
    assert_eq!((leased(&lab), lab.host.leftovers().as_str()), (0, ""));
}

fn leaving() {
    let lab = Lab::new(1);
    hold(&lab, "holder");
    let flags = ["run", "--rm", "--name", "late", "--network", "none", "--gpus", "1"];
    let busy = lab.run(&[&flags[..], &["box", "true"]].concat());
    assert!(busy.code == 125 && busy.err.contains("add `--wait`"), "{}", busy.err);
    let late = lab.run(&[&flags[..], &["--wait=500ms", "box", "true"]].concat());
    assert_eq!(late.code, 124, "{}", late.err);
    for text in ["no GPU became available within 500ms", "container `holder` of root", "hint: see the queue"] {
        assert!(late.err.contains(text), "{text}: {}", late.err);
    }
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let waiter = spawn(&lab, "waiter", &["--gpus", "1", "--wait"], "true");
        eventually("it waits", || queue(&lab) == ["waiter"]);
        // nsenter executes gpurun, so that this is its pid.
        kill(Pid::from_raw(waiter.id() as i32), signal).unwrap();
        let (ended, text) = end(waiter);
        assert!(ended == Some(code) && text.contains("left the queue"), "{ended:?} {text}");
        assert!(queue(&lab).is_empty());
    }
    assert_eq!(lab.host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "holder");
    // After a reboot, the run directory is gone, and nothing waits.
    let stale = lab.host.dir.join("run/gpus/queue/000000000001-dead.json");
    fs::write(&stale, "{}").unwrap();
    lab.ok(&["rm", "-f", "holder"]);
    fs::remove_dir_all(lab.host.dir.join("run/gpus")).unwrap();
    lab.shell(&["--gpus", "1", "--wait"], "true");
    fs::write(&stale, "{}").unwrap();
    lab.shell(&["--gpus", "1"], "true");
    lab.shell(&["--gpus", "1", "--wait"], "true");
    assert_eq!((stale.exists(), leased(&lab), lab.host.leftovers().as_str()), (false, 0, ""));
}

/// A process outside gpurun computes on the GPU, and ends.
fn by_itself() {
    let lab = Lab::new(1);
    let me = std::process::id();
    let busy = driver::gpu(0, 20 * GIB, 90, false);
    lab.driver.nvml(&format!("driver {VERSION}\n{busy}process 0 {me} {GIB}\n"));
    let said = lab.host.dir.join("said");
    let mut command = lab.command(&["run", "--rm", "--network", "none", "--gpus", "1", "--wait", "box", "true"]);
    command.stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap());
    let mut waiter = command.spawn().unwrap();
    let text = || fs::read_to_string(&said).unwrap();
    eventually("it says who uses the GPU", || text().contains(&format!("[{me}] of root")));
    lab.driver.nvml(&format!("driver {VERSION}\n{}", driver::gpu(0, 0, 0, false)));
    assert_eq!(waiter.wait().unwrap().code(), Some(0), "{}", text());
    assert!(text().contains("position 1 of 1"), "{}", text());
    assert_eq!(lab.host.leftovers(), "");
}

fn restarts() {
    let lab = Lab::new(1);
    let flags = ["--network", "none", "--gpus", "1", "--restart", "on-failure:2"];
    let line = "sleep 0.3; exit 3";
    lab.ok(&[&["run", "-d", "--name", "again"], &flags[..], &["box", "sh", "-c", line]].concat());
    let waiter = spawn(&lab, "waiter", &["--gpus", "1", "--wait"], "true");
    let (code, text) = end(waiter);
    assert_eq!(code, Some(0), "{text}");
    let again = lab.host.inspect("again");
    assert_eq!((&again["RestartCount"], &again["State"]["ExitCode"]), (&2.into(), &3.into()), "{again}");
    lab.ok(&["rm", "again"]);
    assert_eq!((leased(&lab), lab.host.leftovers().as_str()), (0, ""));
}

fn start_and_mig() {
    let lab = Lab::new(1);
    lab.driver.mig_minors(0);
    let migs = format!("mig 0 {} 1 0 {} 0\nmig 0 {} 2 0 {} 0\n", mig_uuid(0, 0), 10 * GIB, mig_uuid(0, 1), 10 * GIB);
    lab.driver.nvml(&format!("driver {VERSION}\n{}{migs}", driver::gpu(0, 0, 0, true)));
    let flags = ["--network", "none", "--gpus", "1", "--wait"];
    let line = ["box", "sleep", "1000"];
    lab.ok(&[&["run", "-d", "--name", "one"], &flags[..], &line].concat());
    lab.ok(&[&["run", "-d", "--name", "two"], &flags[..], &line].concat());
    let first = |name: &str| lab.host.inspect(name)["Gpus"][0]["index"].as_str().unwrap().to_owned();
    assert_eq!((first("one"), first("two")), ("0:0".into(), "0:1".into()));
    lab.ok(&["stop", "-t", "0", "one"]);
    lab.ok(&["run", "-d", "--name", "three", "--network", "none", "--gpus", "1", "box", "sleep", "1000"]);
    let mut start = lab.command(&["start", "one"]);
    let start = start.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("`start` waits", || queue(&lab) == ["one"]);
    lab.ok(&["rm", "-f", "two"]);
    let (code, text) = end(start);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(first("one"), "0:1");
    assert!(text.contains("GPU 0:0") && text.contains("container `three`"), "{text}");
    // A `start` that gives up leaves the container as it was.
    lab.ok(&["stop", "-t", "0", "one"]);
    lab.ok(&["run", "-d", "--name", "four", "--network", "none", "--gpus", "1", "box", "sleep", "1000"]);
    let start = lab.command(&["start", "one"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("`start` waits", || queue(&lab) == ["one"]);
    kill(Pid::from_raw(start.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(end(start).0, Some(130));
    assert_eq!(lab.host.inspect("one")["State"]["Status"], "exited");
    lab.ok(&["rm", "-f", "one", "three", "four"]);
    assert_eq!((leased(&lab), lab.host.leftovers().as_str()), (0, ""));
}

fn stop() {
    let lab = Lab::new(1);
    hold(&lab, "holder");
    let names = || lab.host.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    for stop in [&["stop", "late"][..], &["stop", "-t", "0", "late"], &["stop", "-s", "KILL", "late"]] {
        let late = spawn(&lab, "late", &["--gpus", "1", "--wait"], "true");
        eventually("it waits", || queue(&lab) == ["late"]);
        let answer = lab.run(stop);
        assert_eq!((answer.code, &*answer.out), (0, "late\n"), "{}", answer.err);
        assert!(answer.err.contains("container `late` does not wait for idle GPUs any more"), "{}", answer.err);
        let (code, text) = end(late);
        assert!(code == Some(125) && text.contains("another command stopped or removed container `late`"), "{text}");
        assert_eq!(
            (queue(&lab).len(), &*names()),
            (0, "holder"),
            "a container that has never run goes, as with ctrl-c"
        );
    }
    // One that has run stays.
    lab.ok(&["rm", "-f", "holder"]);
    lab.ok(&["run", "--name", "old", "--network", "none", "--gpus", "1", "--wait", "box", "true"]);
    hold(&lab, "holder");
    let start = lab.command(&["start", "old"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("`start` waits", || queue(&lab) == ["old"]);
    // `--all` means those that wait, too.
    let mut stopped: Vec<String> = lab.ok(&["stop", "--all", "-t", "0"]).lines().map(str::to_owned).collect();
    let mut ids = ["holder", "old"].map(|name| lab.host.inspect(name)["Id"].as_str().unwrap().to_owned());
    stopped.sort();
    ids.sort();
    assert_eq!(stopped, ids);
    let (code, text) = end(start);
    assert!(code == Some(1) && text.contains("another command stopped or removed container `old`"), "{text}");
    assert!(names().contains("old") && queue(&lab).is_empty());
    lab.ok(&["rm", "holder", "old"]);
    assert_eq!((leased(&lab), lab.host.leftovers().as_str()), (0, ""));
}

fn removal() {
    let lab = Lab::new(1);
    hold(&lab, "holder");
    let late = spawn(&lab, "late", &["--gpus", "1", "--wait"], "true");
    eventually("it waits", || queue(&lab) == ["late"]);
    let refused = lab.host.fails(1, &["rm", "late"]);
    assert!(
        refused.contains("container `late` waits for idle GPUs") && refused.contains("gpurun rm -f late"),
        "{refused}"
    );
    lab.ok(&["rm", "-f", "late"]);
    let (code, text) = end(late);
    assert!(
        code == Some(125) && text.contains("another command stopped or removed container `late`"),
        "{code:?} {text}"
    );
    assert!(queue(&lab).is_empty());
    // A container that has run before, and whose `start` waits.
    lab.ok(&["rm", "-f", "holder"]);
    lab.ok(&["run", "--name", "old", "--network", "none", "--gpus", "1", "--wait", "box", "true"]);
    hold(&lab, "holder");
    let start = lab.command(&["start", "old"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("`start` waits", || queue(&lab) == ["old"]);
    lab.ok(&["rm", "-f", "old"]);
    let (code, text) = end(start);
    assert!(code == Some(1) && text.contains("another command stopped or removed container `old`"), "{code:?} {text}");
    assert_eq!(lab.host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "holder");
    lab.ok(&["rm", "-f", "holder"]);
    assert_eq!((queue(&lab).len(), leased(&lab), lab.host.leftovers().as_str()), (0, 0, ""));
}

/// The command finds an idle GPU, the supervisor a busy one.
fn taken() {
    let lab = Lab::new(1);
    let me = std::process::id();
    let idle = format!("driver {VERSION}\n{}", driver::gpu(0, 0, 0, false));
    let busy = format!("driver {VERSION}\n{}process 0 {me} {GIB}\n", driver::gpu(0, 20 * GIB, 90, false));
    let nvml: PathBuf = lab.driver.root.join(LIBRARY_DIR).join("fake-nvml");
    let out = lab.host.dir.join("out");
    fs::create_dir(&out).unwrap();
    let volume = format!("{}:/out", out.display());
    let wait = ["--gpus", "1", "--wait", "-v", &volume];
    // A pipe waits for the next query of NVML, so that the answers have an order. Each query has a pipe of its own.
    let pipe = |path: &Path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    };
    let next = nvml.with_extension("next");
    let answer = |text: &str| {
        let mut query = fs::File::options().write(true).open(&nvml).unwrap();
        fs::rename(&next, &nvml).unwrap();
        query.write_all(text.as_bytes()).unwrap();
    };
    fs::remove_file(&nvml).unwrap();
    pipe(&nvml);
    let said = out.join("said");
    let head = ["run", "--rm", "--name", "first", "--network", "none"];
    let mut first = lab.command(&[&head[..], &wait, &["box", "sh", "-c", "echo first >>/out/order"]].concat());
    let mut first = first.stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    pipe(&next);
    answer(&idle);
    // After the second query, the GPU stays busy.
    fs::write(&next, &busy).unwrap();
    answer(&busy);
    let text = || fs::read_to_string(&said).unwrap();
    eventually("it waits again", || text().contains("position 1 of 1"));
    assert!(text().contains("the GPUs were taken before the container started"), "{}", text());
    assert!(text().contains(&format!("[{me}] of root")), "{}", text());
    assert_eq!(lab.host.inspect("first")["State"]["Status"], "created");
    // It has kept its place.
    let second = spawn(&lab, "second", &wait, "echo second >>/out/order");
    eventually("another command waits", || queue(&lab) == ["first", "second"]);
    lab.driver.nvml(&idle);
    assert_eq!(first.wait().unwrap().code(), Some(0), "{}", text());
    let (code, said) = end(second);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(out.join("order")).unwrap(), "first\nsecond\n");
    assert_eq!((queue(&lab).len(), leased(&lab), lab.host.leftovers().as_str()), (0, 0, ""));
}
