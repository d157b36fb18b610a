//! SIGKILL anywhere, two at once, full disks: other images stay whole, the repeat succeeds, nothing is left.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Test;
use crate::desk::{Desk, sh};
use crate::picture::{Packing, Picture, noise};
use crate::rogue::{Reply, Rogue};

pub const TESTS: &[Test] =
    &[("sigkill_anywhere", &[], sigkill), ("two_at_once", &[], two_at_once), ("a_full_disk", &[], full_disk)];

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
    for command in [&pull[..], &load, &rm, &prune, &save] {
        let is_removal = command == rm || command == prune;
        let mut whole = Duration::ZERO;
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
            let began = Instant::now();
            let mut child = desk.start(command);
            if round == 0 {
                assert!(child.wait().unwrap().success(), "{command:?}");
                whole = began.elapsed();
                continue;
            }
            let moment = whole.mul_f64(round as f64 / count as f64);
            while began.elapsed() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            // The next command, whatever it is, clears up; then everything that is listed is whole.
            assert!(desk.names().contains(&"localhost/other:1".to_owned()), "{command:?} at {moment:?}");
            desk.assert_whole();
            let again = desk.run(command);
            let fine = again.code == 0 || (is_removal && again.err.contains("no image"));
            assert!(fine, "{command:?} at {moment:?}: {}", again.err);
            desk.assert_whole();
        }
        desk.run(&["image", "unmount", "--all"]);
    }
    sh(&format!(
        "cd {} && tar tf saved.tar >/dev/null && ! ls -A | grep -v partial | grep -q '^saved.tar.'",
        desk.dir.display()
    ));
}

fn two_at_once() {
    let (desk, _rogue, remote) = prepared();
    let pull = ["image", "pull", &remote];
    let load = ["image", "load", "layout"];
    let rm = ["image", "rm", "-f", "localhost/victim:1"];
    let prune = ["image", "prune", "-f"];
    let pairs: [(&[&str], &[&str]); 5] =
        [(&pull, &pull), (&load, &load), (&pull, &load), (&load, &rm), (&load, &prune)];
    for (one, other) in pairs {
        for round in 0..20 {
            let starts_empty = other != rm || round % 2 == 0;
            if starts_empty {
                desk.run(&["image", "rm", "-f", "localhost/victim:1"]);
                desk.run(&["image", "rm", "-f", &remote]);
            }
            let (first, second) = (desk.command(one), desk.command(other));
            let run = |mut command: Command| std::thread::spawn(move || command.output().unwrap());
            let (first, second) = (run(first), run(second));
            let (first, second) = (first.join().unwrap(), second.join().unwrap());
            let error = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(first.status.success(), "{one:?} beside {other:?}: {}", error(&first));
            assert!(
                second.status.success() || error(&second).contains("no image"),
                "{other:?} beside {one:?}: {}",
                error(&second)
            );
            desk.assert_whole();
            assert!(desk.names().contains(&"localhost/other:1".to_owned()));
            if other != rm {
                assert!(desk.names().len() > 1, "{one:?} beside {other:?} round {round}");
            }
        }
    }
}

/// A small file system under the store, with less and less room on it.
fn full_disk() {
    let desk = Desk::new();
    let root = desk.path("root");
    std::fs::create_dir_all(&root).unwrap();
    sh(&format!("mount -t tmpfs -o size=16m tmpfs {}", root.display()));
    Picture::new(1, 2).layout(&desk.path("other"), "localhost/other:1", Packing::None);
    desk.ok(&["image", "load", "other"]);
    Picture::new(2, 4).layout(&desk.path("layout"), "localhost/victim:1", Packing::Gzip);
    let (mut failed, mut done) = (0, 0);
    for left in (0..2600).step_by(rounds(260, 40)) {
        // The reserve is a fiftieth of it, and the load needs 1.7 MiB.
        std::fs::write(root.join("ballast"), noise(7, 0)).unwrap();
        let free = sh(&format!("df --output=avail -k {} | tail -1", root.display())).trim().parse::<usize>().unwrap();
        std::fs::write(root.join("ballast"), vec![1; free.saturating_sub(left) << 10]).unwrap();
        let answer = desk.run(&["image", "load", "layout"]);
        match answer.code {
            0 => done += 1,
            125 => {
                failed += 1;
                assert!(answer.err.contains("fill the disk") || answer.err.contains("No space left"), "{}", answer.err);
                assert!(answer.err.contains("hint:"), "{}", answer.err);
            }
            code => panic!("{code}: {}", answer.err),
        }
        std::fs::remove_file(root.join("ballast")).unwrap();
        desk.assert_whole();
        assert!(desk.names().contains(&"localhost/other:1".to_owned()));
        desk.run(&["image", "rm", "localhost/victim:1"]);
    }
    assert!(failed > 2 && done > 0, "{failed} failed, {done} done");
    desk.ok(&["image", "load", "layout"]);
    desk.assert_whole();
}
