//! Every system call that a command makes of the disk, failing (EIO, ENOSPC) or being its last (SIGKILL), one after the other.
//!
//! strace is the broken disk: it answers the n-th call of a kind with an error that the kernel never saw, or kills there. A commit's run
//! goes through the steps with a stride; GPURUN_BIG=1 takes every one.

use std::fs;
use std::process::{Command, Stdio};

use crate::Test;
use crate::fixture::{Fixture, answer};
use crate::rogue::{Reply, Rogue};
use crate::test_image::{Packing, TestImage};

pub const TESTS: &[Test] = &[
    ("a_disk_that_fails", &["strace"], failing),
    ("a_disk_that_is_full", &["strace"], full),
    ("killed_at_every_step", &["strace"], killed),
    ("no_more_threads_and_no_more_locks", &["strace"], refused),
];

/// What asks something of the disk.
const READS: &[&str] = &["openat", "read", "statx", "getdents64", "pread64"];
const WRITES: &[&str] = &["openat", "write", "fsync", "rename", "linkat", "mkdir", "unlink", "unlinkat"];
/// What takes room on it.
const ROOM: &[&str] = &["openat", "write", "fsync", "rename", "linkat", "mkdir"];

fn failing() {
    through(&[READS, WRITES].concat(), "error=EIO");
}

fn full() {
    through(ROOM, "error=ENOSPC");
}

fn killed() {
    through(WRITES, "signal=KILL");
}

/// Neither is a disk's fault, and neither may be a panic: a limit of processes, a file system (NFS) whose locks are gone.
fn refused() {
    let threads = through_with(&["clone3"], "error=EAGAIN", 1);
    let locks = through_with(&["flock"], "error=ENOLCK", 4);
    assert!(threads > 3 && locks > 7, "only {threads} and {locks} steps");
}

struct Bench {
    fixture: Fixture,
    _rogue: Rogue,
    remote: String,
    /// Which of the steps are taken.
    stride: usize,
    taken: usize,
}

fn through(calls: &[&str], fault: &str) {
    let taken = through_with(calls, fault, 13);
    assert!(taken > 15, "only {taken} steps");
}

/// Takes every `stride`-th step; answers how many.
fn through_with(calls: &[&str], fault: &str, stride: usize) -> usize {
    let fixture = Fixture::new();
    TestImage::new(1, 2).layout(&fixture.path("other"), "localhost/other:1", Packing::None);
    let victim = TestImage::new(2, 2);
    victim.layout(&fixture.path("layout"), "localhost/victim:1", Packing::Gzip);
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.with("victim:1", &victim, Packing::Gzip);
    let remote = rogue.name("victim:1");
    fixture.ok(&["image", "load", "other"]);
    let stride = if std::env::var_os("GPURUN_BIG").is_some() { 1 } else { stride };
    let mut bench = Bench { fixture, _rogue: rogue, remote: remote.clone(), stride, taken: 0 };
    let commands: [&[&str]; 7] = [
        &["image", "load", "layout"],
        &["image", "pull", &remote],
        &["image", "rm", "-f", "localhost/victim:1"],
        &["image", "prune", "-a", "-f"],
        &["image", "tag", "localhost/other:1", "localhost/third:1"],
        &["image", "save", "-o", "saved.tar", "localhost/other:1"],
        &["image", "save", "--format", "oci-dir", "-o", "saved", "localhost/other:1"],
    ];
    for command in commands {
        for call in calls {
            bench.every_step(command, call, fault);
        }
    }
    bench.taken
}

impl Bench {
    fn every_step(&mut self, command: &[&str], call: &str, fault: &str) {
        // Another beginning for every call and command, so that a few runs see more of the steps.
        let mut step = 1 + (self.taken * 5) % self.stride;
        while self.one_step(command, call, fault, step) {
            self.taken += 1;
            step += self.stride;
        }
    }

    /// Answers whether there was such a step.
    fn one_step(&self, command: &[&str], call: &str, fault: &str, step: usize) -> bool {
        let fixture = &self.fixture;
        let is_removal = matches!(command[1], "rm" | "prune");
        match command[1] {
            "load" | "pull" => {
                fixture.run(&["image", "rm", "-f", "localhost/victim:1"]);
                fixture.run(&["image", "rm", "-f", &self.remote]);
            }
            "rm" | "prune" => drop(fixture.ok(&["image", "load", "layout"])),
            _ => {
                let _ = fs::remove_dir_all(fixture.path("saved"));
            }
        }
        if command[1] == "prune" {
            // In use, as only its mount can tell: nothing may take it.
            fixture.ok(&["image", "mount", "localhost/other:1"]);
        }
        let log = fixture.path("strace.log");
        let plain = fixture.command(command);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}:when={step}")]);
        traced.arg("-o").arg(&log).arg(plain.get_program()).args(plain.get_args()).current_dir(&fixture.dir);
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => traced.env(name, value),
                None => traced.env_remove(name),
            };
        }
        let output = traced.stdin(Stdio::null()).output().unwrap();
        let seen = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let hit = seen.lines().find(|line| line.contains("(INJECTED)") || line.contains("killed by SIGKILL"));
        let Some(hit) = hit.map(str::to_owned) else { return false };
        let reported = answer(output);
        let what = format!("{command:?}, {fault} at {call} {step}: {hit}\n{}", reported.err);
        // The loader of programs has its own words for a library that cannot be read; an answer that went nowhere is no failure.
        let before_main = reported.code == 127 && reported.err.contains("shared libraries");
        let message_lost = seen.lines().any(|line| line.contains("write(2,") && line.contains("(INJECTED)"));
        if !fault.starts_with("signal") && !before_main {
            assert!(matches!(reported.code, 0 | 1), "{what}");
            assert!(
                reported.code == 0
                    || message_lost
                    || reported.err.contains("caused by:")
                    || reported.err.contains("error:"),
                "{what}"
            );
        }
        self.look(&what, false);
        // The fault was none of the command's (a library's file, say), or it came after the layout was complete.
        let complete = fixture.path("saved/index.json").exists() && !fixture.path("saved/.gpurun.partial").exists();
        if reported.code == 0 || complete {
            let _ = fs::remove_dir_all(fixture.path("saved"));
        }
        let again = fixture.run(command);
        assert!(again.code == 0 || (is_removal && again.err.contains("no image")), "{what}\nand again: {}", again.err);
        self.look(&what, true);
        if command[1] == "save" {
            fixture.ok(&["image", "load", if command.contains(&"saved") { "saved" } else { "saved.tar" }]);
        }
        true
    }

    /// After the next command, whatever it is, the store is in order; after the same one again, its place too.
    fn look(&self, what: &str, repeated: bool) {
        let names = self.fixture.names();
        assert!(names.contains(&"localhost/other:1".to_owned()), "{what}");
        self.fixture.assert_whole_after(what);
        let left: Vec<_> = fs::read_dir(&self.fixture.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let partial = left.iter().any(|name| name.to_string_lossy().ends_with(".partial"));
        assert!(!repeated || !partial && !self.fixture.path("saved/.gpurun.partial").exists(), "{what}: {left:?}");
    }
}
