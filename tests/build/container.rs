//! What a container changed: `commit`, `diff`, `export`; and `cp`, both ways, with a container that sets traps.

use std::fs;
use std::process::Stdio;

use crate::fixture::{Fixture, counts, listing};

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
fn done(fixture: &Fixture, name: &str, script: &str) {
    fixture.ok(&["run", "--name", name, "--network", "none", "box", "sh", "-c", script]);
}

/// One that lives.
fn living(fixture: &Fixture, name: &str, script: &str) {
    let script = format!("{script}; touch /tmp/ready; exec sleep 1000");
    fixture.ok(&["run", "-d", "--name", name, "--network", "none", "box", "sh", "-c", &script]);
    let ready = || fixture.run(&["exec", name, "test", "-f", "/tmp/ready"]).code == 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "{name} does not get ready");
    }
}

fn diff_and_commit() {
    let fixture = Fixture::shared();
    done(fixture, "changed", "echo new >/new; echo x >>/etc/group; rm /etc/passwd; mkdir /tmp/d");
    assert_eq!(
        fixture.ok(&["diff", "changed"]).lines().collect::<Vec<_>>(),
        ["C /etc", "C /etc/group", "D /etc/passwd", "A /new", "C /tmp", "A /tmp/d"]
    );
    let id = fixture.ok(&[
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
        fixture.news("committed"),
        [
            "f 644 0:0 /etc/group root:x:0:|users:x:100:|staff:x:50:me|x|",
            "- /etc/passwd",
            "f 644 0:0 /new new|",
            "d 755 0:0 /tmp/d"
        ]
    );
    assert_eq!(fixture.config(&id)["Cmd"], serde_json::json!(["cat", "/new"]));
    assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "committed"]), "new");
    assert!(fixture.ok(&["image", "history", "committed"]).contains("commit"));
    let answer = fixture.run(&["commit", "--change", "RUN x", "changed"]);
    assert!(answer.code == 2 && answer.err.contains("--change RUN x"), "{}", answer.err);
    done(fixture, "nothing", "true");
    assert_eq!(fixture.ok(&["diff", "nothing"]), "", "mount points are not a change");
    fixture.ok(&["rm", "changed", "nothing"]);
}

fn commit_running() {
    let fixture = Fixture::shared();
    living(fixture, "busy", "echo here >/here");
    fixture.ok(&["commit", "busy", "snapshot"]);
    assert!(fixture.news("snapshot").contains(&"f 644 0:0 /here here|".to_owned()));
    assert_eq!(fixture.ok(&["exec", "busy", "echo", "goes on"]), "goes on", "it is not left paused");
    fixture.ok(&["rm", "-f", "busy"]);
}

fn export() {
    let fixture = Fixture::shared();
    done(fixture, "exported", "echo e >/e; ln /e /tmp/hard; rm /etc/group");
    let file = fixture.dir.join("export.tar");
    fixture.ok(&["export", "-o", file.to_str().unwrap(), "exported"]);
    let dir = fixture.dir.join("exported");
    fs::create_dir(&dir).unwrap();
    let status = std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&dir).status().unwrap();
    assert!(status.success());
    fixture.ok(&["commit", "exported", "as-image"]);
    let exported: std::collections::BTreeSet<String> = listing(&dir).into_iter().filter(|line| counts(line)).collect();
    assert_eq!(exported, fixture.tree("as-image"));
    fixture.ok(&["rm", "exported"]);
}

fn cp_rules() {
    let fixture = Fixture::shared();
    living(fixture, "rules", "mkdir -p /d/sub; echo f >/d/f; echo g >/d/sub/g");
    let host = fixture.context(&[("d/x", "x"), ("d/y/z", "z"), ("file", "file")]);
    let at = |name: &str| host.join(name).display().to_string();
    let cp = |from: &str, to: &str| fixture.run(&["cp", from, to]);
    let good = |from: &str, to: &str| {
        let answer = cp(from, to);
        assert_eq!(answer.code, 0, "{from} {to}: {}", answer.err);
    };
    good(&at("file"), "rules:/d");
    good(&at("file"), "rules:/d/renamed");
    good(&at("d"), "rules:/d");
    good(&at("d/."), "rules:/d/sub");
    good(&at("d"), "rules:/d/fresh");
    let found = fixture.ok(&["exec", "rules", "find", "/d"]);
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
    good("rules:/d/f", "rules:/copied");
    good("rules:/copied", &at("back"));
    assert_eq!(fs::read_to_string(host.join("back")).unwrap(), "f\n");
    assert_eq!(cp("rules:/none", "rules:/b").code, 1);
    fixture.ok(&["rm", "-f", "rules"]);
}

fn cp_stopped() {
    let fixture = Fixture::shared();
    done(fixture, "stopped", "echo s >/s");
    let host = fixture.context(&[("in", "in")]);
    fixture.ok(&["cp", "stopped:/s", host.join("s").to_str().unwrap()]);
    fixture.ok(&["cp", host.join("in").to_str().unwrap(), "stopped:/tmp"]);
    assert_eq!(fs::read_to_string(host.join("s")).unwrap(), "s\n");
    assert!(fixture.ok(&["diff", "stopped"]).contains("A /tmp/in"));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.lines().any(|line| line.contains(" overlay ") && line.contains(fixture.dir.to_str().unwrap())));
    fixture.ok(&["rm", "stopped"]);
}

fn cp_links() {
    let fixture = Fixture::shared();
    done(fixture, "linked", "mkdir -p /d/sub; echo f >/d/f; ln -s d/f /lf; ln -s /d/new /dangling; ln -s round /round");
    let host = fixture.context(&[("in", "in"), ("old", "old"), ("link", "->old")]);
    let at = |name: &str| host.join(name).display().to_string();
    for to in ["linked:/lf", "linked:/dangling"] {
        fixture.ok(&["cp", &at("in"), to]);
    }
    let changes = fixture.ok(&["diff", "linked"]);
    assert!(changes.contains("A /d/new") && changes.contains("A /lf") && changes.contains("A /dangling"), "{changes}");
    for path in ["/d/f", "/d/new"] {
        fixture.ok(&["cp", &format!("linked:{path}"), &at("out")]);
        assert_eq!(fs::read_to_string(host.join("out")).unwrap(), "in", "{path}");
    }
    let answer = fixture.run(&["cp", &at("in"), "linked:/round"]);
    assert!(answer.code != 0 && answer.err.contains("/round") && answer.err.contains("oo many l"), "{}", answer.err);
    fixture.ok(&["cp", "linked:/d/f", &at("link")]);
    assert!(host.join("link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_to_string(host.join("old")).unwrap(), "in");
    // `..` takes a name away, and what is left has a name.
    fs::create_dir(host.join("into")).unwrap();
    fixture.ok(&["cp", "linked:/d/sub/..", &at("into")]);
    assert!(host.join("into/d/f").is_file());
    fixture.ok(&["rm", "linked"]);
}

fn cp_volumes() {
    let fixture = Fixture::shared();
    let host = fixture.context(&[("in", "in"), ("shared/h", "h"), ("locked/x", "x")]);
    let at = |name: &str| host.join(name).display().to_string();
    let (shared, locked) = (format!("{}:/mnt/deep", at("shared")), format!("{}:/locked:ro", at("locked")));
    fixture.ok(&[
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
    fixture.ok(&["cp", "mounted:/kept/v", &at("v")]);
    assert_eq!(fs::read_to_string(host.join("v")).unwrap(), "v\n");
    fixture.ok(&["cp", &at("in"), "mounted:/kept/"]);
    fixture.ok(&["cp", &at("in"), "mounted:/mnt/deep/in"]);
    assert_eq!(fs::read_to_string(host.join("shared/in")).unwrap(), "in", "what is copied to a mount is there");
    assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "-v", "kept:/k", "box", "cat", "/k/in"]), "in");
    assert_ne!(fixture.run(&["cp", &at("in"), "mounted:/locked/"]).code, 0, "read-only stays read-only");
    assert!(!host.join("locked/in").exists());
    assert_eq!(fixture.run(&["cp", "mounted:/gone/t", &at("t")]).code, 1, "what lived in memory is gone");
    // A directory of the host that is gone hides nothing else.
    fs::rename(host.join("shared"), host.join("elsewhere")).unwrap();
    fixture.ok(&["cp", "mounted:/kept/v", &at("again")]);
    assert_eq!(fixture.ok(&["diff", "mounted"]), "", "mount points are not a change");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.lines().any(|line| line.contains(host.to_str().unwrap())), "nothing stays mounted");
    fixture.ok(&["rm", "mounted"]);
}

fn cp_streams() {
    let fixture = Fixture::shared();
    living(fixture, "stream", "mkdir /d; echo f >/d/f");
    let output = fixture.command(&["cp", "stream:/d", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["d/", "d/f"]);
    let mut child = fixture.command(&["cp", "-", "stream:/tmp"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &output.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fixture.ok(&["exec", "stream", "cat", "/tmp/d/f"]), "f");
    // Packed, as docker takes it; and `/.` is what is in a directory.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &output.stdout).unwrap();
    let mut child = fixture.command(&["cp", "-", "stream:/bin"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &packed.finish().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fixture.ok(&["exec", "stream", "cat", "/bin/d/f"]), "f");
    let output = fixture.command(&["cp", "stream:/d/.", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names.last().map(String::as_str), Some("f"), "{names:?}");
    fixture.ok(&["rm", "-f", "stream"]);
}

fn cp_traps() {
    let fixture = Fixture::shared();
    let host = fixture.context(&[("victim", "victim"), ("new", "from the host"), ("d/sub/x", "x")]);
    let dir = host.to_str().unwrap();
    // Wherever a link leads, it leads inside; a link that stands where a directory should is an error.
    living(
        fixture,
        "traps",
        &format!(
            "mkdir -p {dir} /w; ln -s / /w/root; ln -s {dir}/victim /w/file; ln -s {dir} /w/dir; ln -s ../../../../../../..{dir} /w/up; mkdir /w/d; ln -s {dir} /w/d/sub"
        ),
    );
    let new = host.join("new").display().to_string();
    for to in ["/w/file", "/w/dir/victim", "/w/up/victim", &format!("/w/root{dir}/victim")] {
        let answer = fixture.run(&["cp", &new, &format!("traps:{to}")]);
        assert_eq!(answer.code, 0, "{to}: {}", answer.err);
    }
    let answer = fixture.run(&["cp", host.join("d").to_str().unwrap(), "traps:/w"]);
    assert_ne!(answer.code, 0, "a link stands where the directory `sub` should be");
    assert_eq!(fs::read_to_string(host.join("victim")).unwrap(), "victim");
    assert!(!host.join("x").exists());
    let out = host.join("out");
    for from in ["/w/dir/new", "/w/up/new", "/w/root/etc/shadow"] {
        assert_eq!(
            fixture.run(&["cp", &format!("traps:{from}"), out.to_str().unwrap()]).code,
            1,
            "{from} is the container's, where it is not"
        );
    }
    assert!(!out.exists());
    fixture.ok(&["rm", "-f", "traps"]);
}

fn cp_out_is_tame() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::shared();
    done(
        fixture,
        "tame",
        "mkdir /t; echo x >/t/suid; chown 1000:100 /t/suid; chmod 6755 /t/suid; mkfifo /t/fifo; ln -s /etc/passwd /t/link",
    );
    let host = fixture.context(&[]);
    fixture.ok(&["cp", "tame:/t", host.to_str().unwrap()]);
    let meta = host.join("t/suid").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755, 0));
    assert!(host.join("t/link").symlink_metadata().unwrap().is_symlink() && !host.join("t/fifo").exists());
    fixture.ok(&["cp", "-a", "tame:/t/.", host.to_str().unwrap()]);
    let meta = host.join("suid").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o6755, 1000), "unless it is asked for");
    fixture.ok(&["rm", "tame"]);
}
