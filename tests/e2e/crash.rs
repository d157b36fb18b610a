//! SIGKILL, anywhere: the next command works, and nothing is left.

use std::process::Stdio;

use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_supervisor_killed_at_every_step", every_step),
    ("removals_beside_a_dying_supervisor_leave_nothing", removals),
    ("a_volume_that_was_being_filled_is_filled_again", filling),
    ("a_killed_supervisor_ends_its_container", supervisor),
    ("a_container_that_changed_its_user_dies_with_its_supervisor", changed_user),
    ("a_keeper_is_replaced_and_ends_with_its_container", keeper),
    ("a_killed_command_leaves_the_container_running", command),
    ("a_killed_pid_1_is_an_exit", pid_1),
];

/// The steps of launch, in their order (src/launch). At the first it is the command that dies, at the others the supervisor.
const STEPS: [&str; 11] =
    ["made", "image", "overlay", "network", "gpus", "bundle", "cgroup", "created", "verified", "started", "running"];

fn every_step() {
    let host = Host::with_box();
    for step in STEPS {
        for keep in [false, true] {
            let mut args = vec!["run", "-d", "-p", "8080:80", "--memory", "64m", "--name", "victim"];
            if !keep {
                args.push("--rm");
            }
            args.extend(["box", "sleep", "1000"]);
            let output = host.command(&args).env("GPURUN_KILL_AT", step).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            match step {
                "made" => assert_eq!(output.status.code(), None, "{step}: {error}"),
                "running" => {}
                _ => {
                    assert_eq!(output.status.code(), Some(125), "{step}: {error}");
                    assert!(error.contains("supervisor ended"), "{step}: {error}");
                }
            }
            // The next command clears it away, whatever it is: the one that heard the socket hang up has waited for the supervisor's death. Not
            // so the one that heard that it runs; while the dying supervisor still holds its lock, that is left to the command after it.
            let cleared = || {
                let ps = host.ok(&["ps", "-a", "-q"]);
                ps.lines().count() == usize::from(keep) && host.leftovers().is_empty()
            };
            match step {
                "running" => eventually(step, cleared),
                _ => assert!(cleared(), "{step}: {}", host.leftovers()),
            }
            assert_eq!(host.ok(&["run", "--rm", "-p", "8080:80", "box", "echo", "fine"]), "fine", "{step}");
            if keep {
                host.ok(&["rm", "victim"]);
            }
        }
    }
}

/// The supervisor dies between the copy of the image's files and the volume's name.
fn filling() {
    let host = Host::with_box();
    let volumes = || {
        let names = std::fs::read_dir(host.dir.join("root/volumes")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    host.ok(&["volume", "create", "made"]);
    for (volume, others) in [("new", &[".made.new", "made"][..]), ("made", &[".made.new", "made", "new"])] {
        let args = ["run", "--rm", "--network", "none", "-v", &format!("{volume}:/bin"), "box", "ls", "/bin/sh"];
        let output = host.command(&args).env("GPURUN_KILL_AT", "filled").output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", String::from_utf8_lossy(&output.stderr));
        // The container is gone, and so is the copy.
        assert_eq!(host.ok(&["ps", "-aq"]), "");
        let mut left = volumes();
        left.retain(|name| !name.ends_with(".lock"));
        assert_eq!(left, others, "{volume}");
        assert_eq!(host.ok(&args), "/bin/sh");
    }
    assert_eq!(host.ok(&["volume", "ls", "-q"]), "made\nnew");
    host.ok(&["volume", "rm", "made", "new"]);
    assert_eq!(volumes(), [""; 0]);
}

/// `rm -f`, again and again, while a supervisor makes a container and is killed. Directories take some time, so that most
/// removals come in the middle.
fn removals() {
    let host = Host::with_box();
    let parent = Parent(format!("gpurun-e2e-removals-{}", std::process::id()));
    let launch = ["run", "-d", "--name", "victim", "--network", "none", "--memory", "64m", "--cgroup-parent"];
    let launch = [&launch[..], &[&parent.0, "box", "sleep", "1000"]].concat();
    let delay = "inject=mkdir:delay_exit=5000";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=mkdir", "-e", delay];
    for step in ["made", "bundle", "cgroup", "created", "verified"] {
        for round in 0..3 {
            let mut run = host.behind(&strace, &launch);
            run.env("GPURUN_KILL_AT", step).stdout(Stdio::null()).stderr(Stdio::null());
            let mut run = run.spawn().unwrap();
            while run.try_wait().unwrap().is_none() {
                host.run(&["rm", "-f", "victim"]);
            }
            host.run(&["rm", "-f", "victim"]);
            eventually(&format!("nothing is left of round {round} at `{step}`"), || {
                host.ok(&["ps", "-aq"]).is_empty() && parent.cgroups().is_empty() && host.leftovers().is_empty()
            });
        }
    }
}

/// A cgroup for `--cgroup-parent`, in every hierarchy.
struct Parent(String);

impl Parent {
    /// The cgroups of containers below it.
    fn cgroups(&self) -> Vec<std::path::PathBuf> {
        let entries = |root: std::path::PathBuf| std::fs::read_dir(root.join(&self.0)).into_iter().flatten().flatten();
        let paths = crate::host::cgroup_roots().into_iter().flat_map(entries).map(|entry| entry.path());
        paths.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let own = crate::host::cgroup_roots().into_iter().map(|root| root.join(&self.0));
        self.cgroups().into_iter().chain(own).for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
}

fn pids(host: &Host, name: &str) -> (i32, i32) {
    let inspect = host.inspect(name);
    let pid = inspect["State"]["Pid"].as_i64().unwrap() as i32;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
    (pid, parent)
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn gone(pid: i32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

fn supervisor() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "one", "-p", "8080:80", "box", "sleep", "1000"]);
    let id = host.inspect("one")["Id"].as_str().unwrap().to_owned();
    let (pid, supervisor) = pids(&host, "one");
    host.ok(&["exec", "-d", "one", "sleep", "1000"]);
    kill(supervisor);
    eventually("pid 1 dies with it", || gone(pid));
    let state = host.inspect("one")["State"].clone();
    assert_eq!((state["Status"].as_str(), state["ExitCode"].as_u64()), (Some("exited"), Some(137)));
    assert!(state["Error"]["message"].as_str().unwrap().contains("supervisor was killed"));
    assert_eq!(host.leftovers(), "");
    assert!(cgroups_of(&id).is_empty());
    host.ok(&["start", "one"]);
    assert!(host.ok(&["ps"]).contains("Up"));
}

/// Pid 1 changes its credentials, for which the kernel forgets its PDEATHSIG; it has children, and may be frozen. No command comes to help.
fn changed_user() {
    let host = Host::with_box();
    let su = ["busybox", "su", "ann", "-c", "sleep 1000 & echo ready; exec sleep 1000"];
    for (flags, paused) in [(&[][..], false), (&[], true), (&["--pid", "host"], false), (&["--pid", "host"], true)] {
        let args = [&["run", "-d", "--network", "none", "--name", "one"], flags, &["box"], &su].concat();
        let id = host.ok(&args);
        eventually("it runs as ann", || host.ok(&["logs", "one"]).contains("ready"));
        let (pid, supervisor) = pids(&host, "one");
        let processes = || -> Vec<i32> {
            let read = |dir: &std::path::PathBuf| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            let all: String = cgroups_of(&id).iter().map(read).collect();
            all.lines().filter_map(|line| line.parse().ok()).filter(|pid| !gone(*pid)).collect()
        };
        eventually("both run", || processes().len() >= 2);
        if paused {
            host.ok(&["pause", "one"]);
        }
        kill(supervisor);
        eventually("pid 1 dies with it", || gone(pid));
        eventually("and all others", || processes().is_empty());
        host.ok(&["rm", "one"]);
        assert_eq!(host.leftovers(), "");
    }
}

/// The keeper of a container: a child of its supervisor that has this name.
fn keepers(supervisor: i32) -> Vec<i32> {
    let children =
        std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap_or_default();
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.filter(|pid| name(pid).trim() == "gpurun-keeper").collect()
}

fn keeper() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sleep", "1000"]);
    let (_, supervisor) = pids(&host, "one");
    let mut first = Vec::new();
    eventually("there is one", || {
        first = keepers(supervisor);
        first.len() == 1
    });
    kill(first[0]);
    let mut second = Vec::new();
    eventually("it is replaced", || {
        second = keepers(supervisor);
        second.len() == 1 && second != first
    });
    assert_eq!(host.inspect("one")["State"]["Running"], true);
    host.ok(&["stop", "-t", "0", "one"]);
    eventually("it is gone", || gone(second[0]));
    // Our own init changes no credentials: the kernel's rule is enough.
    host.ok(&["run", "-d", "--network", "none", "--init", "--name", "two", "box", "sleep", "1000"]);
    let (_, supervisor) = pids(&host, "two");
    assert!(keepers(supervisor).is_empty());
    host.ok(&["rm", "-f", "two"]);
}

fn command() {
    let host = Host::with_box();
    let mut child = host
        .command(&["run", "--name", "one", "--network", "none", "box", "sleep", "1000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it runs", || host.ok(&["ps"]).contains("Up"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(host.ok(&["ps"]).contains("Up"));
    host.ok(&["stop", "-t", "0", "one"]);
    assert_eq!(host.leftovers(), "");
}

fn pid_1() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "one", "box", "sleep", "1000"]);
    let (pid, _) = pids(&host, "one");
    kill(pid);
    assert_eq!(host.ok(&["wait", "one"]), "137");
    eventually("the container is cleaned up", || host.leftovers().is_empty());
    assert_eq!(host.inspect("one")["State"]["OOMKilled"], false);
}
