//! SIGKILL anywhere, two at once, full disks: other images stay whole, the repeat succeeds, nothing is left.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Test;
use crate::fixture::{Fixture, answer, sh};
use crate::rogue::{Reply, Rogue};
use crate::test_image::{Packing, TestImage, noise};

pub const TESTS: &[Test] = &[
    ("sigkill_anywhere", &[], sigkill),
    ("two_at_once", &[], two_at_once),
    ("a_full_disk", &[], full_disk),
    ("a_removal_that_is_killed_before_it_unmounts", &["strace", "busybox"], mounted),
];

fn rounds(few: usize, many: usize) -> usize {
    if std::env::var_os("GPURUN_BIG").is_some() { many } else { few }
}

/// A store with an image that nothing may touch, and sources of another.
fn prepared() -> (Fixture, Rogue, String) {
    let fixture = Fixture::new();
    TestImage::new(1, 2).layout(&fixture.path("other"), "localhost/other:1", Packing::None);
    fixture.ok(&["image", "load", "other"]);
    let test_image = TestImage::new(2, 4);
    test_image.layout(&fixture.path("layout"), "localhost/victim:1", Packing::Gzip);
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.with("victim:1", &test_image, Packing::Gzip);
    let name = rogue.name("victim:1");
    (fixture, rogue, name)
}

/// The next command, whichever it is, unmounts the image. Only then is the space of its files free, and ten minutes would be too long.
fn mounted() {
    let fixture = Fixture::new();
    let name = "localhost/hello:1";
    TestImage::bootable().layout(&fixture.path("layout"), name, Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    assert_eq!(fixture.run(&["run", "--rm", "--network", "none", name]).out, "hi\n");
    let mounts = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().filter(|line| line.contains(fixture.path("run/images").to_str().unwrap())).count()
    };
    let ls = || fixture.ok(&["image", "ls", "-q"]);
    assert_eq!((ls(), mounts()), (TestImage::bootable().id()[7..19].to_owned(), 1), "it stays for the next container");
    let rm = fixture.command(&["image", "rm", name]);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=umount2", "-e", "inject=umount2:signal=SIGKILL"]);
    traced.arg(rm.get_program()).args(rm.get_args()).current_dir(&fixture.dir);
    traced.envs(rm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(!traced.status().unwrap().success());
    assert_eq!(mounts(), 1, "it was killed before");
    assert_eq!((ls(), mounts()), (String::new(), 0));
    fixture.assert_whole();
}

/// Kills each command at moments spread over the time that it takes, and looks at what is left.
fn sigkill() {
    let (fixture, _rogue, remote) = prepared();
    let count = rounds(15, 100);
    // The command, what must hold before it, and the command that succeeds afterwards.
    let pull = ["image", "pull", &remote];
    let load = ["image", "load", "layout"];
    let rm = ["image", "rm", "-f", "localhost/victim:1"];
    let prune = ["image", "prune", "-f", "-a"];
    let save = ["image", "save", "-o", "saved.tar", "localhost/other:1"];
    let save_dir =
        ["image", "save", "--format", "oci-dir", "--compression", "gzip", "-o", "saved", "localhost/other:1"];
    for command in [&pull[..], &load, &rm, &prune, &save, &save_dir] {
        let is_removal = command == rm || command == prune;
        let (mut whole, mut seed) = (Duration::ZERO, std::process::id().into());
        for round in 0..=count {
            if command == prune {
                // Only what is not in use is pruned.
                fixture.ok(&["image", "mount", "localhost/other:1"]);
            }
            match is_removal {
                true => drop(fixture.ok(&load)),
                false => drop(fixture.run(&["image", "prune", "-f", "-a"])),
            }
            fixture.ok(&["image", "load", "other"]);
            let _ = std::fs::remove_dir_all(fixture.path("saved"));
            let began = Instant::now();
            let mut child = fixture.start(command);
            if round == 0 {
                assert!(child.wait().unwrap().success(), "{command:?}");
                whole = began.elapsed();
                continue;
            }
            // A random point of each of as many stretches of the whole.
            let part = f64::from(u16::from_le_bytes(noise(seed, 2).try_into().unwrap())) / f64::from(u16::MAX);
            seed += 1;
            let moment = whole.mul_f64((round as f64 - part) / count as f64);
            while began.elapsed() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            // The next command, whatever it is, clears up; then everything that is listed is whole.
            assert!(fixture.names().contains(&"localhost/other:1".to_owned()), "{command:?} at {moment:?}");
            fixture.assert_whole();
            if command == save_dir
                && fixture.path("saved/index.json").exists()
                && !fixture.path("saved/.gpurun.partial").exists()
            {
                // It was done.
                std::fs::remove_dir_all(fixture.path("saved")).unwrap();
            }
            let again = fixture.run(command);
            let fine = again.code == 0 || (is_removal && again.err.contains("no image"));
            assert!(fine, "{command:?} at {moment:?}: {}", again.err);
            fixture.assert_whole();
        }
        fixture.run(&["image", "unmount", "--all"]);
    }
    for saved in ["saved.tar", "saved"] {
        fixture.ok(&["image", "load", saved]);
    }
    sh(&format!("cd {} && ! ls -A . saved | grep -q partial", fixture.dir.display()));
}

/// Every pair of commands side by side: neither fails for the other's sake, and the store is whole after each.
fn two_at_once() {
    let (fixture, _rogue, remote) = prepared();
    let commands: [&[&str]; 9] = [
        &["image", "pull", &remote],
        &["image", "load", "layout"],
        &["image", "rm", "-f", "localhost/victim:1"],
        &["image", "rm", "-f", &remote],
        &["image", "prune", "-f"],
        &["image", "save", "-o", "saved.tar", "localhost/other:1"],
        &["image", "verify"],
        &["image", "tag", "localhost/other:1", "localhost/third:1"],
        &["image", "push", "-q", "localhost/other:1", &remote.replace("victim", "pushed")],
    ];
    let asked_for = [(0, 0), (0, 3), (1, 4)];
    for (first, one) in commands.iter().enumerate() {
        // The registry takes nothing: a push is here for what it does to the store.
        for (second, other) in commands.iter().enumerate().skip(first).filter(|(at, _)| (first, *at) != (8, 8)) {
            let count = if asked_for.contains(&(first, second)) { 20 } else { rounds(2, 20) };
            for round in 0..count {
                side_by_side(&fixture, one, other, round, &remote);
            }
        }
    }
}

fn side_by_side(fixture: &Fixture, one: &[&str], other: &[&str], round: usize, remote: &str) {
    // Half of the time there is something to remove, half of the time not.
    fixture.run(&["image", "rm", "-f", "localhost/victim:1"]);
    fixture.run(&["image", "rm", "-f", remote]);
    if round % 2 == 1 {
        fixture.ok(&["image", "load", "layout"]);
        fixture.ok(&["image", "tag", "localhost/victim:1", remote]);
    }
    let run = |mut command: Command| std::thread::spawn(move || answer(command.output().unwrap()));
    let (first, second) = (run(fixture.command(one)), run(fixture.command(other)));
    let answers = [(one, first.join().unwrap()), (other, second.join().unwrap())];
    let what = format!("{one:?} beside {other:?}, round {round}");
    for (command, answer) in &answers {
        let fine = match command[1] {
            "rm" => answer.code == 0 || answer.err.contains("no image"),
            "push" => answer.err.contains("127.0.0.1"),
            _ => answer.code == 0,
        };
        assert!(fine, "{what}: {command:?}: {}{}", answer.out, answer.err);
    }
    fixture.assert_whole_after(&what);
    let names = fixture.names();
    assert!(names.contains(&"localhost/other:1".to_owned()), "{what}: {names:?}");
    let removes = answers.iter().any(|(command, _)| matches!(command[1], "rm" | "prune"));
    let brings = answers.iter().any(|(command, _)| matches!(command[1], "load" | "pull"));
    assert!(removes || !brings || names.iter().any(|name| name.contains("victim")), "{what}: {names:?}");
}

/// A small file system on a loop device under the store, with less and less room on it, for every command that writes.
fn full_disk() {
    let fixture = Fixture::new();
    let root = fixture.path("root");
    std::fs::create_dir_all(&root).unwrap();
    let image = fixture.path("disk.img");
    // No block is kept for root: what fails for others must fail here.
    sh(&format!(
        "truncate -s 24M {0} && mkfs.ext4 -q -m 0 {0} && mount -o loop {0} {1} && rmdir {1}/lost+found",
        image.display(),
        root.display()
    ));
    TestImage::new(1, 2).layout(&fixture.path("other"), "localhost/other:1", Packing::None);
    fixture.ok(&["image", "load", "other"]);
    let victim = TestImage::new(2, 4);
    victim.layout(&fixture.path("layout"), "localhost/victim:1", Packing::Gzip);
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.with("victim:1", &victim, Packing::Gzip);
    let remote = rogue.name("victim:1");
    let ballast = root.join("volumes");
    let saved = root.join("saved.tar");
    let commands: [&[&str]; 6] = [
        &["image", "load", "layout"],
        &["image", "pull", &remote],
        &["image", "tag", "localhost/other:1", "localhost/third:1"],
        &["image", "save", "-o", saved.to_str().unwrap(), "localhost/other:1"],
        &[
            "image",
            "save",
            "--compression",
            "gzip",
            "--format",
            "oci-archive",
            "-o",
            saved.to_str().unwrap(),
            "localhost/other:1",
        ],
        &["image", "verify"],
    ];
    let (mut failed, mut done) = (0, 0);
    for command in commands {
        for left in (0..2600).step_by(rounds(325, 40)) {
            std::fs::write(&ballast, noise(7, 0)).unwrap();
            let free = || {
                sh(&format!("sync; df --output=avail -k {} | tail -1", root.display())).trim().parse::<usize>().unwrap()
            };
            let size = free().saturating_sub(left) << 10;
            // There may be no space left for its own indirect blocks.
            sh(&format!("head -c {size} /dev/zero >{} 2>/dev/null || true", ballast.display()));
            let answer = fixture.run(command);
            let what = format!("{command:?} with {left} KiB: {}", answer.err);
            match answer.code {
                0 => done += 1,
                1 => {
                    failed += 1;
                    assert!(answer.err.contains("fill the disk") || answer.err.contains("No space left"), "{what}");
                    assert!(answer.err.contains("hint:"), "{what}");
                }
                _ => panic!("{what}"),
            }
            // The commands that free space must work on a full disk.
            if command[1] != "tag" || answer.code == 0 {
                for name in ["localhost/victim:1", &remote, "localhost/third:1"] {
                    let removed = fixture.run(&["image", "rm", "-f", name]);
                    assert!(removed.code == 0 || removed.err.contains("no image"), "{what}, and rm: {}", removed.err);
                }
            }
            let _ = std::fs::remove_file(&saved);
            std::fs::remove_file(&ballast).unwrap();
            fixture.assert_whole_after(&what);
            assert!(fixture.names() == ["localhost/other:1"], "{what}");
        }
        fixture.ok(command);
        fixture.run(&["image", "rm", "-f", "localhost/victim:1"]);
        fixture.run(&["image", "rm", "-f", &remote]);
        fixture.run(&["image", "rm", "-f", "localhost/third:1"]);
        let _ = std::fs::remove_file(&saved);
    }
    assert!(failed > 5 && done > 5, "{failed} failed, {done} done");
    // An image whose layers are all another's frees none of them, and its name must go all the same.
    std::fs::write(fixture.path("Containerfile"), "FROM localhost/other:1\nENV a=b\n").unwrap();
    fixture.ok(&["build", "-q", "-t", "localhost/twin:1", "."]);
    sh(&format!(
        "for size in 1M 4k 1k; do dd if=/dev/zero bs=$size >>{} 2>/dev/null || true; sync; done",
        ballast.display()
    ));
    fixture.ok(&["image", "rm", "localhost/twin:1"]);
    std::fs::remove_file(&ballast).unwrap();
    fixture.assert_whole_after("a twin was removed");
    assert!(fixture.names() == ["localhost/other:1"]);
}
