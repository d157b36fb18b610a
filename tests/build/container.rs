//! What a container changed: `commit`, `diff`, `export`; and `cp`, both ways, with a container that sets traps.

use std::fs;
use std::process::Stdio;

use crate::place::{Place, counts, listing};

pub const TESTS: &[(&str, fn())] = &[
    ("container::diff_and_commit", diff_and_commit),
    ("container::commit_of_a_running_container", commit_running),
    ("container::export_is_the_whole_tree", export),
    ("container::cp_follows_dockers_rules", cp_rules),
    ("container::cp_of_a_stopped_container", cp_stopped),
    ("container::cp_streams", cp_streams),
    ("container::cp_follows_a_link_that_is_the_destination", cp_links),
    ("container::cp_at_rest_sees_volumes", cp_volumes),
    ("container::links_in_a_container_never_touch_the_host", cp_traps),
    ("container::what_comes_out_cannot_run_as_somebody_else", cp_out_is_tame),
];

/// A container that has done this and ended.
fn done(place: &Place, name: &str, script: &str) {
    place.ok(&["run", "--name", name, "--network", "none", "box", "sh", "-c", script]);
}

/// One that lives.
fn living(place: &Place, name: &str, script: &str) {
    let script = format!("{script}; touch /tmp/ready; exec sleep 1000");
    place.ok(&["run", "-d", "--name", name, "--network", "none", "box", "sh", "-c", &script]);
    let ready = || place.run(&["exec", name, "test", "-f", "/tmp/ready"]).code == 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "{name} does not get ready");
    }
}

fn diff_and_commit() {
    let place = Place::shared();
    done(place, "changed", "echo new >/new; echo x >>/etc/group; rm /etc/passwd; mkdir /tmp/d");
    assert_eq!(
        place.ok(&["diff", "changed"]).lines().collect::<Vec<_>>(),
        ["C /etc", "C /etc/group", "D /etc/passwd", "A /new", "C /tmp", "A /tmp/d"]
    );
    let id = place.ok(&[
        "commit",
        "--change",
        "CMD [\"cat\", \"/new\"]",
        "--change",
        "ENV A=1",
        "--message",
        "by hand",
        "--author",
        "me",
        "changed",
        "committed",
    ]);
    assert_eq!(
        place.news("committed"),
        [
            "f 644 0:0 /etc/group root:x:0:|users:x:100:|staff:x:50:me|x|",
            "- /etc/passwd",
            "f 644 0:0 /new new|",
            "d 755 0:0 /tmp/d"
        ]
    );
    assert_eq!(place.config(&id)["Cmd"], serde_json::json!(["cat", "/new"]));
    assert_eq!(place.ok(&["run", "--rm", "--network", "none", "committed"]), "new");
    assert!(place.ok(&["image", "history", "committed"]).contains("commit"));
    let answer = place.run(&["commit", "--change", "RUN x", "changed"]);
    assert!(answer.code == 2 && answer.err.contains("--change RUN x"), "{}", answer.err);
    done(place, "nothing", "true");
    assert_eq!(place.ok(&["diff", "nothing"]), "", "mount points are nobody's change");
    place.ok(&["rm", "changed", "nothing"]);
}

fn commit_running() {
    let place = Place::shared();
    living(place, "busy", "echo here >/here");
    place.ok(&["commit", "busy", "snapshot"]);
    assert!(place.news("snapshot").contains(&"f 644 0:0 /here here|".to_owned()));
    assert_eq!(place.ok(&["exec", "busy", "echo", "goes on"]), "goes on", "it is not left paused");
    place.ok(&["rm", "-f", "busy"]);
}

fn export() {
    let place = Place::shared();
    done(place, "exported", "echo e >/e; ln /e /tmp/hard; rm /etc/group");
    let file = place.dir.join("export.tar");
    place.ok(&["export", "-o", file.to_str().unwrap(), "exported"]);
    let dir = place.dir.join("exported");
    fs::create_dir(&dir).unwrap();
    let status = std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&dir).status().unwrap();
    assert!(status.success());
    place.ok(&["commit", "exported", "as-image"]);
    let exported: std::collections::BTreeSet<String> = listing(&dir).into_iter().filter(|line| counts(line)).collect();
    assert_eq!(exported, place.tree("as-image"));
    place.ok(&["rm", "exported"]);
}

fn cp_rules() {
    let place = Place::shared();
    living(place, "rules", "mkdir -p /d/sub; echo f >/d/f; echo g >/d/sub/g");
    let host = place.context(&[("d/x", "x"), ("d/y/z", "z"), ("file", "file")]);
    let at = |name: &str| host.join(name).display().to_string();
    let cp = |from: &str, to: &str| place.run(&["cp", from, to]);
    let good = |from: &str, to: &str| {
        let answer = cp(from, to);
        assert_eq!(answer.code, 0, "{from} {to}: {}", answer.err);
    };
    good(&at("file"), "rules:/d");
    good(&at("file"), "rules:/d/renamed");
    good(&at("d"), "rules:/d");
    good(&at("d/."), "rules:/d/sub");
    good(&at("d"), "rules:/d/fresh");
    let found = place.ok(&["exec", "rules", "find", "/d"]);
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(
        found.join(" "),
        "/d /d/d /d/d/x /d/d/y /d/d/y/z /d/f /d/file /d/fresh /d/fresh/x /d/fresh/y /d/fresh/y/z /d/renamed /d/sub /d/sub/g /d/sub/x /d/sub/y /d/sub/y/z"
    );
    for (from, to) in [
        (at("none"), "rules:/d".to_owned()),
        (at("file"), "rules:/none/".into()),
        (at("file"), "rules:/none/deep/x".into()),
        (at("d"), "rules:/d/f".into()),
        ("rules:/none".into(), at(".")),
        ("rules:/d".into(), at("file")),
    ] {
        let answer = cp(&from, &to);
        assert_eq!(answer.code, 1, "{from} {to}: {}", answer.err);
    }
    fs::create_dir(host.join("out")).unwrap();
    good("rules:/d/sub", &at("out"));
    good("rules:/d/sub/.", &at("out"));
    good("rules:/d/f", &at("out/named"));
    assert_eq!(fs::read_to_string(host.join("out/sub/g")).unwrap(), "g\n");
    assert_eq!(fs::read_to_string(host.join("out/g")).unwrap(), "g\n");
    assert_eq!(fs::read_to_string(host.join("out/named")).unwrap(), "f\n");
    assert_eq!(cp("rules:/a", "rules:/b").code, 2);
    place.ok(&["rm", "-f", "rules"]);
}

fn cp_stopped() {
    let place = Place::shared();
    done(place, "stopped", "echo s >/s");
    let host = place.context(&[("in", "in")]);
    place.ok(&["cp", "stopped:/s", host.join("s").to_str().unwrap()]);
    place.ok(&["cp", host.join("in").to_str().unwrap(), "stopped:/tmp"]);
    assert_eq!(fs::read_to_string(host.join("s")).unwrap(), "s\n");
    assert!(place.ok(&["diff", "stopped"]).contains("A /tmp/in"));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.lines().any(|line| line.contains(" overlay ") && line.contains(place.dir.to_str().unwrap())));
    place.ok(&["rm", "stopped"]);
}

fn cp_links() {
    let place = Place::shared();
    done(place, "linked", "mkdir -p /d/sub; echo f >/d/f; ln -s d/f /lf; ln -s /d/new /dangling; ln -s round /round");
    let host = place.context(&[("in", "in"), ("old", "old"), ("link", "->old")]);
    let at = |name: &str| host.join(name).display().to_string();
    for to in ["linked:/lf", "linked:/dangling"] {
        place.ok(&["cp", &at("in"), to]);
    }
    let changes = place.ok(&["diff", "linked"]);
    assert!(changes.contains("A /d/new") && changes.contains("A /lf") && changes.contains("A /dangling"), "{changes}");
    for path in ["/d/f", "/d/new"] {
        place.ok(&["cp", &format!("linked:{path}"), &at("out")]);
        assert_eq!(fs::read_to_string(host.join("out")).unwrap(), "in", "{path}");
    }
    let answer = place.run(&["cp", &at("in"), "linked:/round"]);
    assert!(answer.code != 0 && answer.err.contains("/round") && answer.err.contains("oo many l"), "{}", answer.err);
    place.ok(&["cp", "linked:/d/f", &at("link")]);
    assert!(host.join("link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_to_string(host.join("old")).unwrap(), "in");
    // `..` takes a name away, and what is left has a name.
    fs::create_dir(host.join("into")).unwrap();
    place.ok(&["cp", "linked:/d/sub/..", &at("into")]);
    assert!(host.join("into/d/f").is_file());
    place.ok(&["rm", "linked"]);
}

fn cp_volumes() {
    let place = Place::shared();
    let host = place.context(&[("in", "in"), ("shared/h", "h"), ("locked/x", "x")]);
    let at = |name: &str| host.join(name).display().to_string();
    let (shared, locked) = (format!("{}:/mnt/deep", at("shared")), format!("{}:/locked:ro", at("locked")));
    place.ok(&[
        "run",
        "--name",
        "mounted",
        "--network",
        "none",
        "-v",
        "kept:/kept",
        "-v",
        &shared,
        "-v",
        &locked,
        "--tmpfs",
        "/gone",
        "box",
        "sh",
        "-c",
        "echo v >/kept/v; echo t >/gone/t",
    ]);
    place.ok(&["cp", "mounted:/kept/v", &at("v")]);
    assert_eq!(fs::read_to_string(host.join("v")).unwrap(), "v\n");
    place.ok(&["cp", &at("in"), "mounted:/kept/"]);
    place.ok(&["cp", &at("in"), "mounted:/mnt/deep/in"]);
    assert_eq!(fs::read_to_string(host.join("shared/in")).unwrap(), "in", "what is copied to a mount is there");
    assert_eq!(place.ok(&["run", "--rm", "--network", "none", "-v", "kept:/k", "box", "cat", "/k/in"]), "in");
    assert_ne!(place.run(&["cp", &at("in"), "mounted:/locked/"]).code, 0, "read-only stays read-only");
    assert!(!host.join("locked/in").exists());
    assert_eq!(place.run(&["cp", "mounted:/gone/t", &at("t")]).code, 1, "what lived in memory is gone");
    // A directory of the host that is gone hides nothing else.
    fs::rename(host.join("shared"), host.join("elsewhere")).unwrap();
    place.ok(&["cp", "mounted:/kept/v", &at("again")]);
    assert_eq!(place.ok(&["diff", "mounted"]), "", "mount points are nobody's change");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.lines().any(|line| line.contains(host.to_str().unwrap())), "nothing stays mounted");
    place.ok(&["rm", "mounted"]);
}

fn cp_streams() {
    let place = Place::shared();
    living(place, "stream", "mkdir /d; echo f >/d/f");
    let output = place.command(&["cp", "stream:/d", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["d/", "d/f"]);
    let mut child = place.command(&["cp", "-", "stream:/tmp"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &output.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(place.ok(&["exec", "stream", "cat", "/tmp/d/f"]), "f");
    // Packed, as docker takes it; and `/.` is what is in a directory.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &output.stdout).unwrap();
    let mut child = place.command(&["cp", "-", "stream:/bin"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &packed.finish().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(place.ok(&["exec", "stream", "cat", "/bin/d/f"]), "f");
    let output = place.command(&["cp", "stream:/d/.", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names.last().map(String::as_str), Some("f"), "{names:?}");
    place.ok(&["rm", "-f", "stream"]);
}

fn cp_traps() {
    let place = Place::shared();
    let host = place.context(&[("victim", "victim"), ("new", "from the host"), ("d/sub/x", "x")]);
    let dir = host.to_str().unwrap();
    // Wherever a link leads, it leads inside; a link that stands where a directory should is an error.
    living(
        place,
        "traps",
        &format!(
            "mkdir -p {dir} /w; ln -s / /w/root; ln -s {dir}/victim /w/file; ln -s {dir} /w/dir; ln -s ../../../../../../..{dir} /w/up; mkdir /w/d; ln -s {dir} /w/d/sub"
        ),
    );
    let new = host.join("new").display().to_string();
    for to in ["/w/file", "/w/dir/victim", "/w/up/victim", &format!("/w/root{dir}/victim")] {
        let answer = place.run(&["cp", &new, &format!("traps:{to}")]);
        assert_eq!(answer.code, 0, "{to}: {}", answer.err);
    }
    let answer = place.run(&["cp", host.join("d").to_str().unwrap(), "traps:/w"]);
    assert_ne!(answer.code, 0, "a link stands where the directory `sub` should be");
    assert_eq!(fs::read_to_string(host.join("victim")).unwrap(), "victim");
    assert!(!host.join("x").exists());
    let out = host.join("out");
    for from in ["/w/dir/new", "/w/up/new", "/w/root/etc/shadow"] {
        assert_eq!(
            place.run(&["cp", &format!("traps:{from}"), out.to_str().unwrap()]).code,
            1,
            "{from} is the container's, where it is not"
        );
    }
    assert!(!out.exists());
    place.ok(&["rm", "-f", "traps"]);
}

fn cp_out_is_tame() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::shared();
    done(
        place,
        "tame",
        "mkdir /t; echo x >/t/suid; chown 1000:100 /t/suid; chmod 6755 /t/suid; mkfifo /t/fifo; ln -s /etc/passwd /t/link",
    );
    let host = place.context(&[]);
    place.ok(&["cp", "tame:/t", host.to_str().unwrap()]);
    let meta = host.join("t/suid").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755, 0));
    assert!(host.join("t/link").symlink_metadata().unwrap().is_symlink() && !host.join("t/fifo").exists());
    place.ok(&["cp", "-a", "tame:/t/.", host.to_str().unwrap()]);
    let meta = host.join("suid").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o6755, 1000), "unless it is asked for");
    place.ok(&["rm", "tame"]);
}
