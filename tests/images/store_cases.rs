//! The store's own commands: what is saved, shown, removed, mounted, checked and mended.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::Test;
use crate::desk::{Desk, listing, sh};
use crate::picture::{Packing, Picture};

pub const TESTS: &[Test] = &[
    ("what_is_saved_is_what_others_read", &["podman", "skopeo", "umoci"], saved),
    ("save_and_load_round_trips", &[], round_trips),
    ("every_byte_is_accounted_for", &[], df),
    ("prune_takes_what_nobody_needs", &["busybox"], prune),
    ("mounts_are_kept_leased_and_swept", &["busybox"], mounts),
    ("any_damage_is_named_and_mended", &[], damage),
    ("a_source_picks_one_image", &[], picks),
];

fn loaded(desk: &Desk, seed: u64, layers: usize, name: &str) {
    let dir = format!("layout-{seed}");
    Picture::new(seed, layers).layout(&desk.path(&dir), name, Packing::Gzip);
    desk.ok(&["image", "load", &dir]);
}

fn saved() {
    let desk = Desk::new();
    loaded(&desk, 1, 3, "localhost/one:1");
    let tree = listing(&desk.mounted("localhost/one:1"));
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    let storage = format!("--root {0}/podman --runroot {0}/podman-run", desk.dir.display());
    for (format, compression) in
        [("docker-archive", "none"), ("oci-archive", "gzip"), ("oci-archive", "zstd"), ("oci-dir", "gzip")]
    {
        let to = format!("{format}-{compression}");
        desk.ok(&["image", "save", "--format", format, "--compression", compression, "-o", &to, "localhost/one:1"]);
        // podman 4.3 loads a directory, too.
        sh(&format!("cd {} && podman {storage} load -q -i {to}", desk.dir.display()));
        let name = sh(&format!("podman {storage} images --format '{{{{.ID}}}}' --no-trunc")).trim().to_owned();
        assert_eq!(name, desk.json(&["image", "inspect", "localhost/one:1"])[0]["Id"].as_str().unwrap(), "{to}");
        let mounted = sh(&format!("podman {storage} image mount {name}"));
        assert_eq!(files(&listing(mounted.trim().as_ref())), files(&tree), "{to}");
        sh(&format!("podman {storage} image umount {name} && podman {storage} rmi -f {name}"));
    }
    sh(&format!("umount {}/podman/overlay 2>/dev/null || true", desk.dir.display()));
    sh(&format!("cd {} && umoci unpack --image oci-dir-gzip:1 bundle", desk.dir.display()));
    assert_eq!(files(&listing(&desk.path("bundle/rootfs"))), files(&tree));
    for source in ["docker-archive:docker-archive-none", "oci-archive:docker-archive-none:1", "oci:oci-dir-gzip:1"] {
        sh(&format!("cd {} && skopeo inspect {source}", desk.dir.display()));
    }
}

fn round_trips() {
    let desk = Desk::new();
    loaded(&desk, 1, 2, "localhost/one:1");
    loaded(&desk, 2, 1, "localhost/two:1");
    desk.ok(&["image", "tag", "localhost/one:1", "three:x"]);
    let names = desk.names();
    desk.ok(&["image", "save", "-o", "all.tar", "localhost/one:1", "localhost/two:1", "three:x"]);
    desk.ok(&["image", "save", "-o", "again.tar", "localhost/one:1", "localhost/two:1", "three:x"]);
    assert!(fs::read(desk.path("all.tar")).unwrap() == fs::read(desk.path("again.tar")).unwrap(), "equal archives");
    let ids = desk.ok(&["image", "ls", "-q", "--no-trunc"]);
    let other = Desk::new();
    let saved = desk.command(&["image", "save", "localhost/one:1"]).output().unwrap();
    let piped = {
        use std::io::Write;
        let mut child = other
            .command(&["image", "load", "-q", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&saved.stdout).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(piped.status.success() && ids.contains(String::from_utf8_lossy(&piped.stdout).trim()));
    other.ok(&["image", "load", desk.path("all.tar").to_str().unwrap()]);
    assert_eq!(other.names(), names);
    assert_eq!(other.ok(&["image", "ls", "-q", "--no-trunc"]), ids);
    other.assert_whole();
    // An archive that cannot be finished leaves what was there.
    fs::write(desk.path("precious"), "x").unwrap();
    fs::remove_file(desk.path("root/layers").join(first_layer(&desk))).unwrap();
    desk.fails(&["image", "save", "-o", "precious", "localhost/one:1", "localhost/two:1"]);
    assert_eq!(fs::read(desk.path("precious")).unwrap(), b"x");
    let left: Vec<_> = fs::read_dir(&desk.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    let history = desk.json(&["image", "history", "--json", "localhost/two:1"]);
    assert_eq!(
        (history[0]["CreatedBy"].as_str(), history[0]["Size"].as_u64().unwrap() > 1 << 20),
        (Some("COPY . /"), true)
    );
}

fn first_layer(desk: &Desk) -> String {
    let mut names: Vec<_> = fs::read_dir(desk.path("root/layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.swap_remove(0)
}

fn df() {
    let desk = Desk::new();
    loaded(&desk, 1, 3, "localhost/one:1");
    loaded(&desk, 2, 2, "localhost/two:1");
    let du = || {
        sh(&format!("du -s -B1 {}", desk.path("root").display()))
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let usage = desk.json(&["image", "df", "--json"]);
    assert_eq!(usage["Bytes"]["Total"].as_u64().unwrap(), du());
    let sum: u64 = usage["Bytes"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "Total")
        .map(|(_, bytes)| bytes.as_u64().unwrap())
        .sum();
    assert_eq!(sum, du());
    assert_eq!(usage["Reclaimable"], usage["Bytes"]["Layers"], "no container needs any");
    // Another image on the same layer costs nothing but its documents; what is unique is not shared.
    let mut picture = Picture::new(1, 3);
    picture.layers.truncate(1);
    picture.layout(&desk.path("small"), "localhost/small:1", Packing::Gzip);
    desk.ok(&["image", "load", "small"]);
    let now = desk.json(&["image", "df", "--json"]);
    assert_eq!(now["Bytes"]["Layers"], usage["Bytes"]["Layers"]);
    let small =
        now["Images"].as_array().unwrap().iter().find(|image| image["Names"][0] == "localhost/small:1").unwrap();
    assert_eq!(small["UniqueSize"], 0);
    assert_eq!(now["Bytes"]["Total"].as_u64().unwrap(), du());
}

fn prune() {
    let desk = Desk::new();
    loaded(&desk, 1, 1, "localhost/a:1");
    // The name moves on: what it meant is without one.
    loaded(&desk, 2, 1, "localhost/a:1");
    Picture::bootable().layout(&desk.path("boot"), "localhost/boot:1", Packing::None);
    desk.ok(&["image", "load", "boot"]);
    desk.ok(&["run", "--name", "user", "--network", "none", "localhost/boot:1"]);
    let refused = desk.run(&["image", "prune"]);
    assert!(refused.code == 2 && refused.err.contains("--force"), "{}", refused.err);
    let pruned = desk.json(&["image", "prune", "--json"]);
    assert_eq!((pruned["Removed"].as_array().unwrap().len(), pruned["Freed"].as_u64().unwrap() > 1 << 20), (1, true));
    assert_eq!(desk.names(), ["localhost/a:1", "localhost/boot:1"]);
    desk.ok(&["image", "prune", "-a", "-f"]);
    assert_eq!(desk.names(), ["localhost/boot:1"], "a container, even one that ended, keeps its image");
    desk.ok(&["rm", "user"]);
    desk.ok(&["image", "prune", "-a", "-f"]);
    assert_eq!(desk.names(), [] as [&str; 0]);
    desk.assert_whole();
}

fn mounts() {
    let desk = Desk::new();
    Picture::bootable().layout(&desk.path("boot"), "localhost/boot:1", Packing::None);
    desk.ok(&["image", "load", "boot"]);
    let dir = desk.mounted("localhost/boot:1");
    assert_eq!(fs::read(dir.join("etc/hello")).unwrap(), b"hi\n");
    let error = fs::write(dir.join("etc/hello"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(desk.mounted("localhost/boot:1"), dir, "a second mount is the same one");
    assert!(desk.ok(&["image", "mount"]).contains("localhost/boot:1  /"));
    assert!(desk.fails(&["image", "rm", "localhost/boot:1"]).contains("gpurun image unmount localhost/boot:1"));
    // Kept, however old: no command takes it away.
    let lease: PathBuf = format!("{}.lease", dir.display()).into();
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    desk.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists());
    desk.ok(&["image", "unmount", "localhost/boot:1"]);
    assert!(!dir.exists(), "unmounted at once");
    assert!(desk.fails(&["image", "unmount", "localhost/boot:1"]).contains("is not mounted"));

    // A container's: it stays for the next one, until it was idle for long enough.
    assert_eq!(desk.ok(&["run", "--rm", "--network", "none", "localhost/boot:1"]), "hi");
    desk.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists(), "just used");
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    desk.ok(&["ps"]);
    assert!(!dir.exists() && !lease.exists(), "idle");
    // While a container runs on it, it is not idle.
    desk.ok(&["run", "-d", "--name", "busy", "--network", "none", "localhost/boot:1", "sleep", "1000"]);
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    desk.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists());
    desk.ok(&["rm", "-f", "busy"]);
    // A removed image's mount goes with it: only then is the space free.
    desk.ok(&["image", "rm", "localhost/boot:1"]);
    assert!(!dir.exists());
    desk.assert_whole();
}

fn damage() {
    let mut victim = Picture::new(1, 2);
    // With a file in three pieces, which no run of a tar can be: the index has a side file, too.
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"90000"), ("GNU.sparse.map", b"0,2,5000,3,80000,4")];
    let head = crate::layer::Head::new(b'0', b"sparse", b"", 9);
    victim.layers.push(crate::layer::Layer::new().pax(&records).head(head).data(b"aabbbcccc").end());
    // Every stored file, and how it is spoilt: half of it gone, or one bit of it changed, at the beginning, in the middle, at the end.
    let files = [
        "layers",
        "images/*.erofs",
        "images/*.side",
        "images/*/config.json",
        "images/*/image.json",
        "images/*/manifest.json",
        "names.json",
    ];
    for pattern in files {
        for spoilt in ["cut", "0", "3", "4", "8"] {
            let cut = spoilt == "cut";
            let desk = Desk::new();
            victim.layout(&desk.path("layout"), "localhost/victim:1", Packing::Gzip);
            desk.ok(&["image", "load", "layout"]);
            let path = sh(&format!("ls -S {}/{pattern} | head -1", desk.path("root").display()));
            let path = match pattern {
                "layers" => desk.path("root/layers").join(path.trim()),
                _ => PathBuf::from(path.trim()),
            };
            loaded(&desk, 2, 1, "localhost/other:1");
            let whole = listing(&desk.mounted("localhost/other:1"));
            desk.ok(&["image", "unmount", "--all"]);
            let file = fs::File::options().read(true).write(true).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            if cut {
                file.set_len(len / 2).unwrap();
            } else {
                let at = (len - 1) * spoilt.parse::<u64>().unwrap() / 8;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                // The lowest bit: a letter becomes another letter.
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
            let found = desk.run(&["image", "verify"]);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(found.code == 1 && found.out.contains(name), "{pattern} {spoilt}: {}{}", found.out, found.err);
            assert!(found.out.contains("gpurun image verify --repair"), "{}", found.out);
            if pattern != "names.json" {
                assert!(found.out.contains("`localhost/victim:1`"), "{}", found.out);
                // The other image is none the worse for it.
                assert!(desk.ok(&["image", "ls"]).contains("localhost/other"), "{pattern} {spoilt}");
                assert_eq!(listing(&desk.mounted("localhost/other:1")), whole);
                desk.ok(&["image", "unmount", "--all"]);
            }
            desk.ok(&["image", "verify", "--repair"]);
            desk.ok(&["image", "load", "layout"]);
            desk.ok(&["image", "load", "layout-2"]);
            desk.assert_whole();
            desk.mounted("localhost/victim:1");
            desk.ok(&["image", "unmount", "--all"]);
            desk.ok(&["image", "rm", "localhost/victim:1"]);
            desk.assert_whole();
        }
    }
}

fn picks() {
    let desk = Desk::new();
    loaded(&desk, 1, 1, "localhost/one:1");
    loaded(&desk, 2, 1, "localhost/two:2");
    desk.ok(&["image", "save", "-o", "both.tar", "localhost/one:1", "localhost/two:2"]);
    let id = |name: &str| desk.json(&["image", "inspect", name])[0]["Id"].as_str().unwrap().to_owned();
    for (source, name) in
        [("docker-archive:both.tar:localhost/two:2", "localhost/two:2"), ("oci-archive:both.tar:1", "localhost/one:1")]
    {
        assert_eq!(desk.ok(&["image", "load", "-q", source]), id(name));
    }
    let error = desk.fails(&["image", "load", "docker-archive:both.tar:three"]);
    assert!(error.contains("has no image `three`") && error.contains("`localhost/one:1`"), "{error}");
    let error = desk.run(&["image", "unpack", "./both.tar", "tree"]);
    assert!(error.code == 2 && error.err.contains("holds 2 images"), "{}", error.err);
    desk.ok(&["image", "unpack", "docker-archive:both.tar:localhost/one:1", "tree"]);
    assert!(desk.path("tree/etc/1-0").exists());
    let error = desk.run(&["image", "load", "dir:x"]);
    assert!(error.code == 2 && error.err.contains("transport"), "{}", error.err);
}
