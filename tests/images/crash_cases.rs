//! SIGKILL anywhere, two at once, full disks: other images stay whole, the repeat succeeds, nothing is left.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Test;
use crate::desk::{Desk, answer, sh};
use crate::picture::{Packing, Picture, noise};
use crate::rogue::{Reply, Rogue};

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
fn prepared() -> (Desk, Rogue, String) {
    let desk = Desk::new();
    Picture::new(1, 2).layout(&desk.path("other"), "localhost/other:1", Packing::None);
    desk.ok(&["image", "load", "other"]);
    let picture = Picture::new(2, 4);
    picture.layout(&desk.path("layout"), "localhost/victim:1", Packing::Gzip);
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.with("victim:1", &picture, Packing::Gzip);
    let name = rogue.name("victim:1");
    (desk, rogue, name)
}

/// The next command, whichever that is, takes the mount away: the space of the image's files is free only then, and nobody waits ten minutes.
fn mounted() {
    let desk = Desk::new();
    let name = "localhost/hello:1";
    Picture::bootable().layout(&desk.path("layout"), name, Packing::Gzip);
    desk.ok(&["image", "load", "layout"]);
    assert_eq!(desk.run(&["run", "--rm", "--network", "none", name]).out, "hi\n");
    let mounts = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().filter(|line| line.contains(desk.path("run/images").to_str().unwrap())).count()
    };
    let ls = || desk.ok(&["image", "ls", "-q"]);
    assert_eq!((ls(), mounts()), (Picture::bootable().id()[7..19].to_owned(), 1), "it stays for the next container");
    let rm = desk.command(&["image", "rm", name]);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=umount2", "-e", "inject=umount2:signal=SIGKILL"]);
    traced.arg(rm.get_program()).args(rm.get_args()).current_dir(&desk.dir);
    traced.envs(rm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(!traced.status().unwrap().success());
    assert_eq!(mounts(), 1, "it was killed before");
    assert_eq!((ls(), mounts()), (String::new(), 0));
    desk.assert_whole();
}

/// Kills each command at moments spread over the time that it takes, and looks at what is left.
fn sigkill() {
    let (desk, _rogue, remote) = prepared();
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
                desk.ok(&["image", "mount", "localhost/other:1"]);
            }
            match is_removal {
                true => drop(desk.ok(&load)),
                false => drop(desk.run(&["image", "prune", "-f", "-a"])),
            }
            desk.ok(&["image", "load", "other"]);
            let _ = std::fs::remove_dir_all(desk.path("saved"));
            let began = Instant::now();
            let mut child = desk.start(command);
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
            assert!(desk.names().contains(&"localhost/other:1".to_owned()), "{command:?} at {moment:?}");
            desk.assert_whole();
            if command == save_dir
                && desk.path("saved/index.json").exists()
                && !desk.path("saved/.gpurun.partial").exists()
            {
                // It was done.
                std::fs::remove_dir_all(desk.path("saved")).unwrap();
            }
            let again = desk.run(command);
            let fine = again.code == 0 || (is_removal && again.err.contains("no image"));
            assert!(fine, "{command:?} at {moment:?}: {}", again.err);
            desk.assert_whole();
        }
        desk.run(&["image", "unmount", "--all"]);
    }
    for saved in ["saved.tar", "saved"] {
        desk.ok(&["image", "load", saved]);
    }
    sh(&format!("cd {} && ! ls -A . saved | grep -q partial", desk.dir.display()));
}

/// Every pair of commands side by side: neither fails for the other's sake, and the store is whole after each.
fn two_at_once() {
    let (desk, _rogue, remote) = prepared();
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
                side_by_side(&desk, one, other, round, &remote);
            }
        }
    }
}

fn side_by_side(desk: &Desk, one: &[&str], other: &[&str], round: usize, remote: &str) {
    // Half of the time there is something to remove, half of the time not.
    desk.run(&["image", "rm", "-f", "localhost/victim:1"]);
    desk.run(&["image", "rm", "-f", remote]);
    if round % 2 == 1 {
        desk.ok(&["image", "load", "layout"]);
        desk.ok(&["image", "tag", "localhost/victim:1", remote]);
    }
    let run = |mut command: Command| std::thread::spawn(move || answer(command.output().unwrap()));
    let (first, second) = (run(desk.command(one)), run(desk.command(other)));
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
    desk.assert_whole_after(&what);
    let names = desk.names();
    assert!(names.contains(&"localhost/other:1".to_owned()), "{what}: {names:?}");
    let removes = answers.iter().any(|(command, _)| matches!(command[1], "rm" | "prune"));
    let brings = answers.iter().any(|(command, _)| matches!(command[1], "load" | "pull"));
    assert!(removes || !brings || names.iter().any(|name| name.contains("victim")), "{what}: {names:?}");
}

/// A small file system on a loop device under the store, with less and less room on it, for every command that writes.
fn full_disk() {
    let desk = Desk::new();
    let root = desk.path("root");
    std::fs::create_dir_all(&root).unwrap();
    let image = desk.path("disk.img");
    // No block is kept for root: what fails for others must fail here.
    sh(&format!(
        "truncate -s 24M {0} && mkfs.ext4 -q -m 0 {0} && mount -o loop {0} {1} && rmdir {1}/lost+found",
        image.display(),
        root.display()
    ));
    Picture::new(1, 2).layout(&desk.path("other"), "localhost/other:1", Packing::None);
    desk.ok(&["image", "load", "other"]);
    let victim = Picture::new(2, 4);
    victim.layout(&desk.path("layout"), "localhost/victim:1", Packing::Gzip);
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
            // Its own blocks of addresses may not find room any more.
            sh(&format!("head -c {size} /dev/zero >{} 2>/dev/null || true", ballast.display()));
            let answer = desk.run(command);
            let what = format!("{command:?} with {left} KiB: {}", answer.err);
            match answer.code {
                0 => done += 1,
                125 => {
                    failed += 1;
                    assert!(answer.err.contains("fill the disk") || answer.err.contains("No space left"), "{what}");
                    assert!(answer.err.contains("hint:"), "{what}");
                }
                _ => panic!("{what}"),
            }
            // What helps must work on a disk without room.
            if command[1] != "tag" || answer.code == 0 {
                for name in ["localhost/victim:1", &remote, "localhost/third:1"] {
                    let removed = desk.run(&["image", "rm", "-f", name]);
                    assert!(removed.code == 0 || removed.err.contains("no image"), "{what}, and rm: {}", removed.err);
                }
            }
            let _ = std::fs::remove_file(&saved);
            std::fs::remove_file(&ballast).unwrap();
            desk.assert_whole_after(&what);
            assert!(desk.names() == ["localhost/other:1"], "{what}");
        }
        desk.ok(command);
        desk.run(&["image", "rm", "-f", "localhost/victim:1"]);
        desk.run(&["image", "rm", "-f", &remote]);
        desk.run(&["image", "rm", "-f", "localhost/third:1"]);
        let _ = std::fs::remove_file(&saved);
    }
    assert!(failed > 5 && done > 5, "{failed} failed, {done} done");
    // An image whose layers are all another's frees none of them, and its name must go all the same.
    std::fs::write(desk.path("Containerfile"), "FROM localhost/other:1\nENV a=b\n").unwrap();
    desk.ok(&["build", "-q", "-t", "localhost/twin:1", "."]);
    sh(&format!(
        "for size in 1M 4k 1k; do dd if=/dev/zero bs=$size >>{} 2>/dev/null || true; sync; done",
        ballast.display()
    ));
    desk.ok(&["image", "rm", "localhost/twin:1"]);
    std::fs::remove_file(&ballast).unwrap();
    desk.assert_whole_after("a twin was removed");
    assert!(desk.names() == ["localhost/other:1"]);
}
