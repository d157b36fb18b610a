//! Every system call that a command makes of the disk, failing (EIO, ENOSPC) or being its last (SIGKILL), one after the other.
//!
//! strace is the broken disk: it answers the n-th call of a kind with an error that the kernel never saw, or kills there. A commit's run
//! goes through the steps with a stride; GPURUN_BIG=1 takes every one.

use std::fs;
use std::process::{Command, Stdio};

use crate::Test;
use crate::desk::{Desk, answer};
use crate::picture::{Packing, Picture};
use crate::rogue::{Reply, Rogue};

pub const TESTS: &[Test] = &[
    ("a_disk_that_fails", &["strace"], failing),
    ("a_disk_that_is_full", &["strace"], full),
    ("killed_at_every_step", &["strace"], killed),
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

struct Bench {
    desk: Desk,
    _rogue: Rogue,
    remote: String,
    /// Which of the steps are taken.
    stride: usize,
    taken: usize,
}

fn through(calls: &[&str], fault: &str) {
    let desk = Desk::new();
    Picture::new(1, 2).layout(&desk.path("other"), "localhost/other:1", Packing::None);
    let victim = Picture::new(2, 2);
    victim.layout(&desk.path("layout"), "localhost/victim:1", Packing::Gzip);
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.with("victim:1", &victim, Packing::Gzip);
    let remote = rogue.name("victim:1");
    desk.ok(&["image", "load", "other"]);
    let stride = if std::env::var_os("GPURUN_BIG").is_some() { 1 } else { 13 };
    let mut bench = Bench { desk, _rogue: rogue, remote: remote.clone(), stride, taken: 0 };
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
    assert!(bench.taken > 15, "only {} steps", bench.taken);
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
        let desk = &self.desk;
        let is_removal = matches!(command[1], "rm" | "prune");
        match command[1] {
            "load" | "pull" => {
                desk.run(&["image", "rm", "-f", "localhost/victim:1"]);
                desk.run(&["image", "rm", "-f", &self.remote]);
            }
            "rm" | "prune" => drop(desk.ok(&["image", "load", "layout"])),
            _ => {
                let _ = fs::remove_dir_all(desk.path("saved"));
            }
        }
        if command[1] == "prune" {
            // In use, as only its mount can tell: nothing may take it.
            desk.ok(&["image", "mount", "localhost/other:1"]);
        }
        let log = desk.path("strace.log");
        let plain = desk.command(command);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}:when={step}")]);
        traced.arg("-o").arg(&log).arg(plain.get_program()).args(plain.get_args()).current_dir(&desk.dir);
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
        let told = answer(output);
        let what = format!("{command:?}, {fault} at {call} {step}: {hit}\n{}", told.err);
        // The loader of programs has its own words for a library that cannot be read; an answer that went nowhere is no failure.
        let before_main = told.code == 127 && told.err.contains("shared libraries");
        if !fault.starts_with("signal") && !before_main {
            assert!(matches!(told.code, 0 | 125), "{what}");
            assert!(told.code == 0 || told.err.contains("caused by:") || told.err.contains("error:"), "{what}");
        }
        self.look(&what, false);
        if told.code == 0 {
            // The fault was none of the command's: a library's file, say.
            let _ = fs::remove_dir_all(desk.path("saved"));
        }
        let again = desk.run(command);
        assert!(again.code == 0 || (is_removal && again.err.contains("no image")), "{what}\nand again: {}", again.err);
        self.look(&what, true);
        if command[1] == "save" {
            desk.ok(&["image", "load", if command.contains(&"saved") { "saved" } else { "saved.tar" }]);
        }
        true
    }

    /// After the next command, whatever it is, the store is in order; after the same one again, its place too.
    fn look(&self, what: &str, repeated: bool) {
        let names = self.desk.names();
        assert!(names.contains(&"localhost/other:1".to_owned()), "{what}");
        self.desk.assert_whole_after(what);
        let left: Vec<_> = fs::read_dir(&self.desk.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let partial = left.iter().any(|name| name.to_string_lossy().ends_with(".partial"));
        assert!(!repeated || !partial && !self.desk.path("saved/.gpurun.partial").exists(), "{what}: {left:?}");
    }
}
