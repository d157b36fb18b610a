//! A freeze that a command makes for itself ends with that command, whatever ends it; `pause` stays.

use std::process::Child;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("an_interrupted_commit_thaws_its_container", interrupted),
    ("a_commit_of_a_paused_container_leaves_it_paused", paused),
    ("resume_is_stronger_than_a_commit", resumed),
];

/// Whether the kernel has frozen the container.
fn frozen(id: &str) -> bool {
    cgroups_of(id).iter().any(|dir| {
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        read("freezer.state").starts_with("FROZEN") || read("cgroup.events").contains("frozen 1")
    })
}

/// While this is held, no command can begin an image in this host's store.
fn block_store(host: &Host) -> Flock<std::fs::File> {
    let lock = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(host.dir.join("root/lock"));
    Flock::lock(lock.unwrap(), FlockArg::LockExclusive).unwrap()
}

/// A container whose program has written its file.
fn up(host: &Host) -> String {
    let id =
        host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sh", "-c", "echo x > /file; sleep 1000"]);
    eventually("the file is written", || host.run(&["exec", "one", "cat", "/file"]).out == "x\n");
    id
}

/// A commit that is in the middle of its work.
fn begin_commit(host: &Host, id: &str) -> Child {
    let child = host.command(&["commit", "one", "made"]).spawn().unwrap();
    eventually("the container is frozen", || frozen(id));
    child
}

fn interrupted() {
    let host = Host::with_box();
    let id = up(&host);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let store = block_store(&host);
        let mut commit = begin_commit(&host, &id);
        kill(Pid::from_raw(commit.id() as i32), signal).unwrap();
        commit.wait().unwrap();
        eventually(signal.as_str(), || !frozen(&id));
        drop(store);
        assert_eq!(host.inspect("one")["State"]["Status"], "running", "{signal}");
        assert_eq!(host.ok(&["exec", "one", "cat", "/file"]), "x", "{signal}");
    }
    host.ok(&["commit", "one", "made"]);
    assert!(!frozen(&id));
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "made", "cat", "/file"]), "x");
}

fn paused() {
    let host = Host::with_box();
    let id = up(&host);
    host.ok(&["pause", "one"]);
    host.ok(&["commit", "one", "made"]);
    assert!(frozen(&id));
    let store = block_store(&host);
    let mut commit = begin_commit(&host, &id);
    kill(Pid::from_raw(commit.id() as i32), Signal::SIGTERM).unwrap();
    commit.wait().unwrap();
    drop(store);
    assert_eq!(host.inspect("one")["State"]["Status"], "paused");
    assert!(frozen(&id));
    host.ok(&["resume", "one"]);
    assert!(!frozen(&id));
    // Paused during a commit, it stays paused after it.
    let store = block_store(&host);
    let mut commit = begin_commit(&host, &id);
    host.ok(&["pause", "one"]);
    drop(store);
    assert!(commit.wait().unwrap().success());
    assert!(frozen(&id));
    host.ok(&["stop", "-t", "0", "one"]);
}

fn resumed() {
    let host = Host::with_box();
    let id = up(&host);
    let store = block_store(&host);
    let mut commit = begin_commit(&host, &id);
    kill(Pid::from_raw(commit.id() as i32), Signal::SIGSTOP).unwrap();
    host.ok(&["resume", "one"]);
    assert!(!frozen(&id));
    kill(Pid::from_raw(commit.id() as i32), Signal::SIGCONT).unwrap();
    drop(store);
    assert!(commit.wait().unwrap().success());
    assert!(!frozen(&id));
    // The end of a container that a commit holds still does not wait for the commit.
    let store = block_store(&host);
    let mut commit = begin_commit(&host, &id);
    host.ok(&["kill", "one"]);
    drop(store);
    commit.wait().unwrap();
    assert_eq!(host.leftovers(), "");
}
