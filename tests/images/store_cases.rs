//! The store's own commands: save, show, remove, mount, verify and repair.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::Test;
use crate::fixture::{Fixture, answer, listing, sh};
use crate::layer::Layer;
use crate::test_image::{Packing, TestImage};

pub const TESTS: &[Test] = &[
    ("what_is_saved_is_what_others_read", &["podman", "skopeo", "umoci"], saved),
    ("save_and_load_round_trips", &[], round_trips),
    ("every_byte_is_accounted_for", &[], df),
    ("prune_takes_what_nobody_needs", &["busybox"], prune),
    ("mounts_are_kept_leased_and_swept", &["busybox"], mounts),
    ("any_damage_is_named_and_mended", &[], damage),
    ("a_source_picks_one_image", &[], picks),
    ("df_reads_what_there_is_once", &["strace"], df_is_linear),
    ("hints_fit_their_commands", &[], hints),
    ("images_without_names_can_be_told_apart", &[], untagged),
    ("an_image_of_another_platform_runs_with_a_warning", &["busybox"], foreign),
    ("directories_that_no_layer_lists_are_dockers", &["busybox"], implied),
    ("attributes_that_a_file_system_has_no_room_for", &["mkfs.ext4"], attributes),
];

fn loaded(fixture: &Fixture, seed: u64, layers: usize, name: &str) {
    let dir = format!("layout-{seed}");
    TestImage::new(seed, layers).layout(&fixture.path(&dir), name, Packing::Gzip);
    fixture.ok(&["image", "load", &dir]);
}

fn saved() {
    let fixture = Fixture::new();
    loaded(&fixture, 1, 3, "localhost/one:1");
    let tree = listing(&fixture.mounted("localhost/one:1"));
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    let storage = format!("--root {0}/podman --runroot {0}/podman-run", fixture.dir.display());
    for (format, compression) in
        [("docker-archive", "none"), ("oci-archive", "gzip"), ("oci-archive", "zstd"), ("oci-dir", "gzip")]
    {
        let to = format!("{format}-{compression}");
        fixture.ok(&["image", "save", "--format", format, "--compression", compression, "-o", &to, "localhost/one:1"]);
        // podman 4.3 loads a directory, too.
        sh(&format!("cd {} && podman {storage} load -q -i {to}", fixture.dir.display()));
        let name = sh(&format!("podman {storage} images --format '{{{{.ID}}}}' --no-trunc")).trim().to_owned();
        assert_eq!(name, fixture.json(&["image", "inspect", "localhost/one:1"])[0]["Id"].as_str().unwrap(), "{to}");
        let mounted = sh(&format!("podman {storage} image mount {name}"));
        assert_eq!(files(&listing(mounted.trim().as_ref())), files(&tree), "{to}");
        sh(&format!("podman {storage} image umount {name} && podman {storage} rmi -f {name}"));
    }
    sh(&format!("umount {}/podman/overlay 2>/dev/null || true", fixture.dir.display()));
    sh(&format!("cd {} && umoci unpack --image oci-dir-gzip:1 bundle", fixture.dir.display()));
    assert_eq!(files(&listing(&fixture.path("bundle/rootfs"))), files(&tree));
    for source in ["docker-archive:docker-archive-none", "oci-archive:docker-archive-none:1", "oci:oci-dir-gzip:1"] {
        sh(&format!("cd {} && skopeo inspect {source}", fixture.dir.display()));
    }
}

fn round_trips() {
    let fixture = Fixture::new();
    loaded(&fixture, 1, 2, "localhost/one:1");
    loaded(&fixture, 2, 1, "localhost/two:1");
    fixture.ok(&["image", "tag", "localhost/one:1", "three:x"]);
    let names = fixture.names();
    fixture.ok(&["image", "save", "-o", "all.tar", "localhost/one:1", "localhost/two:1", "three:x"]);
    fixture.ok(&["image", "save", "-o", "again.tar", "localhost/one:1", "localhost/two:1", "three:x"]);
    assert!(
        fs::read(fixture.path("all.tar")).unwrap() == fs::read(fixture.path("again.tar")).unwrap(),
        "equal archives"
    );
    let ids = fixture.ok(&["image", "ls", "-q", "--no-trunc"]);
    let other = Fixture::new();
    let saved = fixture.command(&["image", "save", "localhost/one:1"]).output().unwrap();
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
    other.ok(&["image", "load", fixture.path("all.tar").to_str().unwrap()]);
    assert_eq!(other.names(), names);
    assert_eq!(other.ok(&["image", "ls", "-q", "--no-trunc"]), ids);
    other.assert_whole();
    // An archive that cannot be finished leaves what was there.
    fs::write(fixture.path("precious"), "x").unwrap();
    fs::remove_file(fixture.path("root/layers").join(first_layer(&fixture))).unwrap();
    fixture.fails(&["image", "save", "-o", "precious", "localhost/one:1", "localhost/two:1"]);
    assert_eq!(fs::read(fixture.path("precious")).unwrap(), b"x");
    let left: Vec<_> = fs::read_dir(&fixture.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    let history = fixture.json(&["image", "history", "--json", "localhost/two:1"]);
    assert_eq!(
        (history[0]["CreatedBy"].as_str(), history[0]["Size"].as_u64().unwrap() > 1 << 20),
        (Some("COPY . /"), true)
    );
}

fn first_layer(fixture: &Fixture) -> String {
    let mut names: Vec<_> = fs::read_dir(fixture.path("root/layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.swap_remove(0)
}

fn df() {
    let fixture = Fixture::new();
    loaded(&fixture, 1, 3, "localhost/one:1");
    loaded(&fixture, 2, 2, "localhost/two:1");
    let du = || {
        sh(&format!("du -s -B1 {}", fixture.path("root").display()))
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let usage = fixture.json(&["image", "df", "--json"]);
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
    let mut test_image = TestImage::new(1, 3);
    test_image.layers.truncate(1);
    test_image.layout(&fixture.path("small"), "localhost/small:1", Packing::Gzip);
    fixture.ok(&["image", "load", "small"]);
    let now = fixture.json(&["image", "df", "--json"]);
    assert_eq!(now["Bytes"]["Layers"], usage["Bytes"]["Layers"]);
    let small =
        now["Images"].as_array().unwrap().iter().find(|image| image["Names"][0] == "localhost/small:1").unwrap();
    assert_eq!(small["UniqueSize"], 0);
    assert_eq!(now["Bytes"]["Total"].as_u64().unwrap(), du());
}

fn prune() {
    let fixture = Fixture::new();
    loaded(&fixture, 1, 1, "localhost/a:1");
    // The name moves on: what it meant is without one.
    loaded(&fixture, 2, 1, "localhost/a:1");
    TestImage::bootable().layout(&fixture.path("boot"), "localhost/boot:1", Packing::None);
    fixture.ok(&["image", "load", "boot"]);
    fixture.ok(&["run", "--name", "user", "--network", "none", "localhost/boot:1"]);
    let refused = fixture.run(&["image", "prune"]);
    assert!(refused.code == 2 && refused.err.contains("--force"), "{}", refused.err);
    let pruned = fixture.json(&["image", "prune", "--json"]);
    assert_eq!((pruned["Removed"].as_array().unwrap().len(), pruned["Freed"].as_u64().unwrap() > 1 << 20), (1, true));
    assert_eq!(fixture.names(), ["localhost/a:1", "localhost/boot:1"]);
    fixture.ok(&["image", "prune", "-a", "-f"]);
    assert_eq!(fixture.names(), ["localhost/boot:1"], "a container, even one that ended, keeps its image");
    fixture.ok(&["rm", "user"]);
    fixture.ok(&["image", "prune", "-a", "-f"]);
    assert_eq!(fixture.names(), [] as [&str; 0]);
    fixture.assert_whole();
}

fn mounts() {
    let fixture = Fixture::new();
    TestImage::bootable().layout(&fixture.path("boot"), "localhost/boot:1", Packing::None);
    fixture.ok(&["image", "load", "boot"]);
    let dir = fixture.mounted("localhost/boot:1");
    assert_eq!(fs::read(dir.join("etc/hello")).unwrap(), b"hi\n");
    let error = fs::write(dir.join("etc/hello"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fixture.mounted("localhost/boot:1"), dir, "a second mount is the same one");
    assert!(fixture.ok(&["image", "mount"]).contains("localhost/boot:1  /"));
    assert!(fixture.fails(&["image", "rm", "localhost/boot:1"]).contains("gpurun image unmount localhost/boot:1"));
    // Kept, however old: no command takes it away.
    let lease: PathBuf = format!("{}.lease", dir.display()).into();
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    fixture.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists());
    fixture.ok(&["image", "unmount", "localhost/boot:1"]);
    assert!(!dir.exists(), "unmounted at once");
    assert!(fixture.fails(&["image", "unmount", "localhost/boot:1"]).contains("is not mounted"));

    // A container's: it stays for the next one, until it was idle for long enough.
    assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "localhost/boot:1"]), "hi");
    fixture.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists(), "just used");
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    fixture.ok(&["ps"]);
    assert!(!dir.exists() && !lease.exists(), "idle");
    // While a container runs on it, it is not idle.
    fixture.ok(&["run", "-d", "--name", "busy", "--network", "none", "localhost/boot:1", "sleep", "1000"]);
    sh(&format!("touch -d '2 hours ago' {}", lease.display()));
    fixture.ok(&["ps"]);
    assert!(dir.join("etc/hello").exists());
    fixture.ok(&["rm", "-f", "busy"]);
    // A removed image's mount goes with it: only then is the space free.
    fixture.ok(&["image", "rm", "localhost/boot:1"]);
    assert!(!dir.exists());
    fixture.assert_whole();
}

fn damage() {
    let mut victim = TestImage::new(1, 2);
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
            let fixture = Fixture::new();
            victim.layout(&fixture.path("layout"), "localhost/victim:1", Packing::Gzip);
            fixture.ok(&["image", "load", "layout"]);
            let path = sh(&format!("ls -S {}/{pattern} | head -1", fixture.path("root").display()));
            let path = match pattern {
                "layers" => fixture.path("root/layers").join(path.trim()),
                _ => PathBuf::from(path.trim()),
            };
            loaded(&fixture, 2, 1, "localhost/other:1");
            let whole = listing(&fixture.mounted("localhost/other:1"));
            fixture.ok(&["image", "unmount", "--all"]);
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
            let found = fixture.run(&["image", "verify"]);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(found.code == 1 && found.out.contains(name), "{pattern} {spoilt}: {}{}", found.out, found.err);
            assert!(found.out.contains("gpurun image verify --repair"), "{}", found.out);
            if pattern != "names.json" {
                assert!(found.out.contains("`localhost/victim:1`"), "{}", found.out);
                // The other image is none the worse for it.
                assert!(fixture.ok(&["image", "ls"]).contains("localhost/other"), "{pattern} {spoilt}");
                assert_eq!(listing(&fixture.mounted("localhost/other:1")), whole);
                fixture.ok(&["image", "unmount", "--all"]);
            }
            fixture.ok(&["image", "verify", "--repair"]);
            fixture.ok(&["image", "load", "layout"]);
            fixture.ok(&["image", "load", "layout-2"]);
            fixture.assert_whole();
            fixture.mounted("localhost/victim:1");
            fixture.ok(&["image", "unmount", "--all"]);
            fixture.ok(&["image", "rm", "localhost/victim:1"]);
            fixture.assert_whole();
        }
    }
}

fn picks() {
    let fixture = Fixture::new();
    loaded(&fixture, 1, 1, "localhost/one:1");
    loaded(&fixture, 2, 1, "localhost/two:2");
    fixture.ok(&["image", "save", "-o", "both.tar", "localhost/one:1", "localhost/two:2"]);
    let id = |name: &str| fixture.json(&["image", "inspect", name])[0]["Id"].as_str().unwrap().to_owned();
    for (source, name) in
        [("docker-archive:both.tar:localhost/two:2", "localhost/two:2"), ("oci-archive:both.tar:1", "localhost/one:1")]
    {
        assert_eq!(fixture.ok(&["image", "load", "-q", source]), id(name));
    }
    let error = fixture.fails(&["image", "load", "docker-archive:both.tar:three"]);
    assert!(error.contains("has no image `three`") && error.contains("`localhost/one:1`"), "{error}");
    let error = fixture.run(&["image", "unpack", "./both.tar", "tree"]);
    assert!(error.code == 2 && error.err.contains("contains 2 images"), "{}", error.err);
    fixture.ok(&["image", "unpack", "docker-archive:both.tar:localhost/one:1", "tree"]);
    assert!(fixture.path("tree/etc/1-0").exists());
    let error = fixture.run(&["image", "load", "dir:x"]);
    assert!(error.code == 2 && error.err.contains("transport"), "{}", error.err);
}

/// With four times the images it makes four times the calls, or fewer: not sixteen times.
fn df_is_linear() {
    let calls = |images: usize| {
        let fixture = Fixture::new();
        let members: Vec<(String, String)> = (0..images)
            .map(|at| (format!("{at}.config"), format!(r#"{{"author":"{at}","rootfs":{{"diff_ids":[]}}}}"#)))
            .collect();
        let list: Vec<_> = members.iter().map(|(name, _)| serde_json::json!({"Config": name, "Layers": []})).collect();
        let mut archive = Layer::new().file("manifest.json", &serde_json::json!(list).to_string());
        for (name, config) in &members {
            archive = archive.file(name, config);
        }
        fs::write(fixture.path("many.tar"), archive.end()).unwrap();
        fixture.ok(&["image", "load", "-q", "many.tar"]);
        let log = fixture.path("log");
        let plain = fixture.command(&["image", "df", "--images"]);
        let mut traced = std::process::Command::new("strace");
        traced
            .args(["-f", "-qq", "-e", "trace=openat", "-o"])
            .arg(&log)
            .arg(plain.get_program())
            .args(plain.get_args());
        traced.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(&fixture.dir);
        assert_eq!(answer(traced.output().unwrap()).code, 0);
        fs::read_to_string(log).unwrap().lines().filter(|line| line.contains("/images/")).count()
    };
    let (few, many) = (calls(20), calls(80));
    assert!(few > 20 && many < 6 * few, "{few} calls for 20 images, {many} for 80");
}

fn hints() {
    let fixture = Fixture::new();
    for command in ["rm", "unmount", "verify"] {
        let error = fixture.fails(&["image", command, "nope"]);
        assert!(error.contains("the store has no images") && !error.contains("image load"), "{command}: {error}");
    }
    assert!(fixture.fails(&["image", "history", "nope"]).contains("gpurun image pull NAME"));
    loaded(&fixture, 1, 1, "localhost/one:1");
    for command in ["rm", "unmount", "verify"] {
        let error = fixture.fails(&["image", command, "nope"]);
        assert!(error.contains("gpurun image ls") && !error.contains("image load"), "{command}: {error}");
    }
    // As docker: standard input needs no word.
    fixture.ok(&["image", "save", "-o", "one.tar", "localhost/one:1"]);
    fixture.ok(&["image", "rm", "localhost/one:1"]);
    let file = fs::File::open(fixture.path("one.tar")).unwrap();
    let reported = answer(fixture.command(&["image", "load"]).stdin(file).output().unwrap());
    assert_eq!((reported.code, reported.out.as_str()), (0, "Loaded image: localhost/one:1\n"), "{}", reported.err);
    // No terminal to ask on.
    let plain = fixture.command(&["image", "pull", "--creds", "ann", "127.0.0.1:1/x"]);
    let mut alone = std::process::Command::new("setsid");
    alone.arg("-w").arg(plain.get_program()).args(plain.get_args()).stdin(std::process::Stdio::null());
    alone.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let reported = answer(alone.output().unwrap());
    assert!(reported.code == 1 && reported.err.contains("cannot ask for the password of `ann`"), "{}", reported.err);
    assert!(
        reported.err.contains("there is no terminal for the question")
            && reported.err.contains("`--creds ann:PASSWORD`"),
        "{}",
        reported.err
    );
}

fn untagged() {
    let fixture = Fixture::new();
    for (seed, architecture) in [(1, "s390x"), (2, "arm64"), (3, "arm64")] {
        let test_image = TestImage { architecture, ..TestImage::new(seed, 1) };
        test_image.layout(&fixture.path("layout"), "latest", Packing::Gzip);
        fixture.ok(&["image", "load", "layout"]);
        sh(&format!("rm -r {}", fixture.path("layout").display()));
    }
    let text = fixture.ok(&["image", "ls", "--digests"]);
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows[0].contains("PLATFORM") && rows[0].contains("DIGEST"), "{text}");
    assert!(rows[1..].iter().all(|row| row.starts_with("<none>") && row.contains("sha256:")), "{text}");
    assert_eq!((text.matches("linux/s390x").count(), text.matches("linux/arm64").count()), (1, 2), "{text}");
    // The usual table is what it was.
    let fixture = Fixture::new();
    loaded(&fixture, 4, 1, "localhost/one:1");
    assert!(!fixture.ok(&["image", "ls"]).contains("PLATFORM"));
}

fn foreign() {
    let fixture = Fixture::new();
    let test_image = TestImage { architecture: "s390x", ..TestImage::bootable() };
    test_image.layout(&fixture.path("layout"), "localhost/f:1", Packing::Gzip);
    fixture.ok(&["image", "load", "--platform", "linux/s390x", "layout"]);
    // What it says is not what it is: here it runs.
    let run = |more: &[&str]| fixture.run(&[&["run", "--rm", "--network", "none"], more, &["localhost/f:1"]].concat());
    let reported = run(&[]);
    assert_eq!((reported.code, reported.out.as_str()), (0, "hi\n"), "{}", reported.err);
    assert!(
        reported.err.contains("warning: the platform of the image (linux/s390x) is not that of this host (linux/"),
        "{}",
        reported.err
    );
    let reported = run(&["--platform", "linux/s390x", "--pull", "never"]);
    assert!(reported.code == 0 && !reported.err.contains("warning: the platform"), "{}", reported.err);
}

/// 0755 and root's, whatever the umask of the caller: the root of an image, and what only its files' names imply.
fn implied() {
    let fixture = Fixture::new();
    let busybox = fs::read("/bin/busybox").unwrap();
    let layer = Layer::new().file("x/y/z", "1");
    let mut program = crate::layer::Head::new(b'0', b"deep/er/busybox", b"", busybox.len() as u64);
    program.put(100, b"0000755");
    let layer = layer.head(program).data(&busybox);
    TestImage { layers: vec![layer.end()], architecture: crate::test_image::host() }.layout(
        &fixture.path("l"),
        "localhost/i:1",
        Packing::None,
    );
    let run = |args: &[&str]| {
        let plain = fixture.command(args);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(&fixture.dir);
        let reported = answer(command.output().unwrap());
        assert_eq!(reported.code, 0, "{args:?}: {}", reported.err);
        reported.out
    };
    run(&["image", "load", "l"]);
    run(&["image", "unpack", "localhost/i:1", "tree"]);
    let seen =
        |dir: &std::path::Path| sh(&format!("cd {} && stat -c '%a %u:%g %n' . x x/y deep deep/er", dir.display()));
    let want = ". x x/y deep deep/er".split(' ').map(|name| format!("755 0:0 {name}\n")).collect::<String>();
    assert_eq!(seen(&fixture.path("tree")), want);
    assert_eq!(seen(run(&["image", "mount", "localhost/i:1"]).trim().as_ref()), want);
    let stat = ["/deep/er/busybox", "stat", "-c", "%a %u:%g %n", "/", "/x", "/x/y", "/deep", "/deep/er"];
    let want = "/ /x /x/y /deep /deep/er".split(' ').map(|name| format!("755 0:0 {name}\n")).collect::<String>();
    let start = ["run", "--rm", "--network", "none"];
    assert_eq!(run(&[&start[..], &["localhost/i:1"], &stat[..]].concat()), want);
    assert_eq!(run(&[&start[..], &["oci:l"], &stat[..]].concat()), want);
    let make = ["/deep/er/busybox", "mkdir", "-p", "/n/m"];
    run(&[&["run", "--name", "implied", "--network", "none", "localhost/i:1"], &make[..]].concat());
    run(&["commit", "implied", "localhost/c:1"]);
    run(&["rm", "implied"]);
    assert_eq!(run(&[&start[..], &["localhost/c:1"], &stat[..]].concat()), want);
}

/// ext4 has one block for a file's attributes: that is not a full disk.
fn attributes() {
    let fixture = Fixture::new();
    let layer = Layer::new().pax(&[("SCHILY.xattr.user.big", &[b'v'; 9000])]).file("f", "1").end();
    TestImage { layers: vec![layer], architecture: crate::test_image::host() }.layout(
        &fixture.path("l"),
        "localhost/a:1",
        Packing::None,
    );
    fixture.ok(&["image", "load", "l"]);
    let (disk, target) = (fixture.path("disk"), fixture.path("ext4"));
    fs::create_dir(&target).unwrap();
    sh(&format!(
        "truncate -s 16m {0} && mkfs.ext4 -q -F {0} && mount -o loop {0} {1}",
        disk.display(),
        target.display()
    ));
    let error = fixture.fails(&["image", "unpack", "localhost/a:1", "ext4/tree"]);
    assert!(error.contains("cannot set an extended attribute of `f`"), "{error}");
    assert!(
        error.contains("one block") && !error.contains("choose another directory") && !error.contains("image rm"),
        "{error}"
    );
}
