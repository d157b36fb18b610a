//! podman's commands and flags that docker does not have, and the options of docker's driver for volumes.

use std::fs;

use serde_json::Value;

use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("what_exists_is_an_exit_status", exists),
    ("names_are_removed_and_images_stay", untag),
    ("a_health_check_runs_when_it_is_asked_for", healthcheck),
    ("an_unhealthy_container_is_killed_restarted_or_stopped", on_failure),
    ("the_logs_of_several_containers_name_them", logs),
    ("the_newest_container_is_chosen", latest),
    ("a_filter_selects_from_the_names", filtered),
    ("containers_are_removed_with_those_that_depend_on_them", depend),
    ("a_stop_that_kills_says_so", killed),
    ("a_wait_ends_with_the_first_exit", wait),
    ("the_files_of_a_volume_are_exported_and_imported", archive),
    ("a_volume_stands_for_a_file_system", driver),
    ("a_volume_is_mounted_while_it_is_used", mounted),
    ("details_have_podmans_names", fields),
    ("removed_containers_have_a_history", history),
];

fn run(host: &Host, more: &[&str]) -> String {
    host.ok(&[&["run", "-d", "--network", "none"], more].concat())
}

fn exists() {
    let host = Host::with_box();
    let id = run(&host, &["--name", "lab", "-v", "data:/data", "box", "true"]);
    host.ok(&["network", "create", "net"]);
    for (kind, there) in [("container", "lab"), ("container", &id[..12]), ("image", "box"), ("volume", "data")] {
        assert_eq!(host.ok(&[kind, "exists", there]), "", "{kind} {there}");
    }
    assert_eq!(host.ok(&["network", "exists", "net"]), "");
    for kind in ["container", "image", "volume", "network"] {
        let answer = host.run(&[kind, "exists", "nosuch"]);
        assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (1, "", ""), "{kind}");
    }
}

fn untag() {
    let host = Host::with_box();
    let id = host.ok(&["images", "-q", "--no-trunc"]);
    host.ok(&["tag", "box", "lab:1", "lab:2"]);
    assert_eq!(host.ok(&["untag", "box", "lab:1"]), "");
    let names = || host.ok(&["image", "inspect", "-f", "{{json .RepoTags}}", &id]);
    assert_eq!(names(), r#"["box:latest","lab:2"]"#);
    let error = host.fails(1, &["untag", "box", "other"]);
    assert!(error.contains("has no name `other`") && error.contains("`box:latest`, `lab:2`"), "{error}");
    // The last name is no reason to remove the image.
    host.ok(&["untag", "box"]);
    assert_eq!((names(), host.ok(&["images", "-q", "--no-trunc"])), ("[]".to_owned(), id.clone()));
    host.fails(1, &["untag", "box"]);
    host.ok(&["tag", &id, "box"]);
}

fn status(host: &Host, name: &str) -> String {
    host.ok(&["inspect", "-f", "{{.State.Health.Status}} {{.State.Healthcheck.FailingStreak}}", name])
}

fn healthcheck() {
    let host = Host::with_box();
    let check = ["--health-cmd", "! test -e /bad", "--health-interval", "disable", "--health-retries", "2"];
    run(&host, &[&["--name", "lab", "--init"], &check[..], &["box", "sleep", "1000"]].concat());
    assert_eq!(status(&host, "lab"), "starting 0");
    assert_eq!(host.ok(&["healthcheck", "run", "lab"]), "");
    assert_eq!(status(&host, "lab"), "healthy 0");
    host.ok(&["exec", "lab", "touch", "/bad"]);
    for (streak, want) in [(1, "healthy 1"), (2, "unhealthy 2")] {
        let answer = host.run(&["healthcheck", "run", "lab"]);
        assert_eq!((answer.code, answer.out.trim()), (1, "unhealthy"), "{streak}: {}", answer.err);
        assert_eq!(status(&host, "lab"), want);
    }
    assert_eq!(host.ok(&["healthcheck", "run", "--ignore-result", "lab"]), "unhealthy");
    host.ok(&["pause", "lab"]);
    assert!(host.fails(1, &["healthcheck", "run", "lab"]).contains("is paused"));
    host.ok(&["resume", "lab"]);
    host.ok(&["rm", "-f", "lab"]);
    assert!(host.fails(1, &["healthcheck", "run", "lab"]).contains("there is no container `lab`"));
    run(&host, &["--name", "none", "--init", "box", "sleep", "1000"]);
    assert!(host.fails(1, &["healthcheck", "run", "none"]).contains("has no health check"));
    host.ok(&["stop", "-t", "0", "none"]);
    assert!(host.fails(1, &["healthcheck", "run", "none"]).contains("is not running"));
}

fn on_failure() {
    let host = Host::with_box();
    let state = |name: &str| host.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name]);
    for (action, want) in [("none", "running 0"), ("kill", "exited 137"), ("stop", "exited 143")] {
        let flags = ["--health-on-failure", action, "--health-cmd", "false", "--health-interval", "disable"];
        let flags = [&["--name", action, "--init", "--health-retries", "1"], &flags[..], &["box", "sleep", "1000"]];
        run(&host, &flags.concat());
        assert_eq!(host.run(&["healthcheck", "run", action]).code, 1, "{action}");
        eventually(action, || state(action) == want);
        let shown = host.ok(&["inspect", "-f", "{{.Config.HealthcheckOnFailureAction}}", action]);
        assert_eq!(shown, action);
    }
    // The container starts again without a restart policy, and is fine then.
    let check = "if test -e /bad; then rm /bad; exit 1; fi";
    let flags = ["--health-on-failure", "restart", "--health-cmd", check, "--health-interval", "disable"];
    let flags = [&["--name", "again", "--init", "--health-retries", "1"], &flags[..], &["box", "sleep", "1000"]];
    run(&host, &flags.concat());
    host.ok(&["exec", "again", "touch", "/bad"]);
    assert_eq!(host.run(&["healthcheck", "run", "again"]).code, 1);
    eventually("the restart", || {
        host.ok(&["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again"]) == "1 running"
    });
    assert_eq!(host.ok(&["healthcheck", "run", "again"]), "");
    assert_eq!(status(&host, "again"), "healthy 0");
    let error = host.fails(125, &["create", "--health-on-failure", "kill", "box"]);
    assert!(error.contains("cannot set on-failure action to kill without a health check"), "{error}");
    host.fails(125, &["create", "--health-on-failure", "reboot", "--health-cmd", "true", "box"]);
    host.ok(&["rm", "-f", "--all"]);
}

fn logs() {
    let host = Host::with_box();
    let ids = ["one", "two"].map(|name| {
        let id = run(&host, &["--name", name, "box", "sh", "-c", &format!("echo {name} 1; echo {name} 2 >&2")]);
        host.ok(&["wait", name]);
        id
    });
    for follow in [&[][..], &["-f"]] {
        let answer = host.run(&[&["logs"], follow, &["one", "two"]].concat());
        let line = |number: usize, text: &str| format!("{} {text}\n", &ids[number][..12]);
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
            lines.sort();
            lines
        };
        let want =
            |number: usize| sorted(&[line(0, &format!("one {number}")), line(1, &format!("two {number}"))].concat());
        assert_eq!((sorted(&answer.out), sorted(&answer.err)), (want(1), want(2)), "{follow:?}");
    }
    let answer = host.run(&["logs", "--names", "two", "one"]);
    assert_eq!((answer.out.as_str(), answer.err.as_str()), ("two two 1\none one 1\n", "two two 2\none one 2\n"));
    assert_eq!(host.ok(&["logs", "one"]), "one 1", "one container has no label");
    assert!(host.fails(1, &["logs", "one", "nosuch"]).contains("nosuch"));
    assert_eq!(host.ok(&["logs", "-l"]), "two 1");
    // A time to come.
    assert_eq!(host.ok(&["logs", "--since", "-1h", "one"]), "");
    assert_eq!(host.ok(&["logs", "--until=-1h", "one"]), "one 1");
}

fn latest() {
    let host = Host::with_box();
    assert!(host.fails(1, &["inspect", "-l"]).contains("there are no containers"));
    for name in ["old", "new"] {
        run(&host, &["--name", name, "--init", "box", "sleep", "1000"]);
    }
    let id = host.ok(&["inspect", "-f", "{{.Id}}", "new"]);
    assert_eq!(host.ok(&["inspect", "-l", "-f", "{{.Id}}"]), id);
    assert_eq!(host.ok(&["stop", "-t", "0", "--latest"]), id);
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}}"]), "old");
    assert_eq!(host.ok(&["start", "--latest"]), id);
    assert_eq!(host.ok(&["kill", "-s", "-KILL", "--latest"]), id, "a signal as for kill(1)");
    assert_eq!(host.ok(&["rm", "--latest"]), id);
    assert_eq!(host.ok(&["pause", "--latest"]), host.ok(&["inspect", "-f", "{{.Id}}", "old"]));
    host.ok(&["rm", "-f", "old"]);
}

fn filtered() {
    let host = Host::with_box();
    for (name, kind) in [("one", "a"), ("two", "b"), ("three", "a")] {
        host.ok(&["create", "--name", name, "--network", "none", "-l", &format!("kind={kind}"), "box", "true"]);
    }
    // Only what both the names and the filter say.
    assert_eq!(host.ok(&["rm", "--filter", "label=kind=a", "one", "two"]), "one");
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "three\ntwo");
    assert_eq!(host.ok(&["rm", "--filter", "label=kind=b", "three"]), "");
    assert_eq!(host.ok(&["rm", "--filter", "label=kind"]).lines().count(), 2);
}

fn depend() {
    let host = Host::with_box();
    let create = |name: &str, flags: &[&str]| host.ok(&[&["create", "--name", name], flags, &["box", "true"]].concat());
    create("base", &["--network", "none", "--ipc", "shareable"]);
    let one = create("one", &["--network", "container:base"]);
    let two = create("two", &["--network", "none", "--ipc", "container:base"]);
    let three = create("three", &["--network", "container:one"]);
    create("other", &["--network", "none"]);
    let removed = host.ok(&["rm", "--depend", "base"]);
    let removed: Vec<&str> = removed.lines().collect();
    assert_eq!(removed.len(), 4, "{removed:?}");
    let at = |name: &str| removed.iter().position(|line| *line == name).unwrap();
    assert!(at(&three) < at(&one) && at(&one) < at("base") && at(&two) < at("base"), "{removed:?}");
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "other");
    assert_eq!(host.ok(&["rm", "--depend", "other"]), "other");
    assert!(host.fails(1, &["rm", "--depend", "nosuch"]).contains("nosuch"));
}

fn killed() {
    let host = Host::with_box();
    run(&host, &["--name", "deaf", "box", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    let answer = host.run(&["stop", "-t", "1", "deaf"]);
    assert_eq!((answer.code, answer.out.trim()), (0, "deaf"));
    let notice = "gpurun: container `deaf` did not end within 1 s of its stop signal, and was killed\n";
    assert_eq!(answer.err, notice);
    host.ok(&["start", "deaf"]);
    // The caller has asked for it.
    assert_eq!(host.run(&["stop", "-t", "0", "deaf"]).err, "");
    run(&host, &["--name", "good", "--init", "box", "sleep", "1000"]);
    assert_eq!(host.run(&["stop", "good"]).err, "");
}

fn wait() {
    let host = Host::with_box();
    run(&host, &["--name", "lab", "--restart", "always", "box", "sh", "-c", "sleep 1; exit 3"]);
    assert_eq!(host.ok(&["wait", "lab"]), "3", "it is restarted, and has ended all the same");
    host.ok(&["rm", "-f", "lab"]);
}

fn archive() {
    let host = Host::with_box();
    host.ok(&["volume", "create", "from"]);
    host.ok(&["volume", "create", "to"]);
    let script = "mkdir /v/dir && echo text >/v/dir/file && chown 7:8 /v/dir/file && ln -s dir/file /v/link";
    host.ok(&["run", "--rm", "--network", "none", "-v", "from:/v", "box", "sh", "-c", script]);
    host.ok(&["volume", "export", "-o", "files.tar", "from"]);
    host.ok(&["volume", "import", "to", "files.tar"]);
    let show = "cat /v/link; stat -c %u:%g /v/dir/file; ls /v";
    let shown = |volume: &str, at: &str| {
        let script = show.replace("/v", at);
        host.ok(&["run", "--rm", "--network", "none", "-v", &format!("{volume}:{at}"), "box", "sh", "-c", &script])
    };
    assert_eq!(shown("to", "/v"), "text\n7:8\ndir\nlink");
    // Through pipes. A volume with files is not filled with the image's, wherever it is mounted.
    let tar = host.command(&["volume", "export", "from"]).output().unwrap().stdout;
    host.ok(&["volume", "create", "piped"]);
    let answer = host.with_input(&["volume", "import", "piped", "-"], &tar);
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "", ""));
    assert_eq!(shown("piped", "/usr"), "text\n7:8\ndir\nlink");
    assert!(host.fails(1, &["volume", "export", "nosuch"]).contains("there is no volume `nosuch`"));
    fs::write(host.dir.join("bad.tar"), "this is no archive").unwrap();
    host.fails(1, &["volume", "import", "to", "bad.tar"]);
}

/// What is mounted on a volume's directory on the host.
fn mounts(host: &Host, name: &str) -> usize {
    let point = fs::canonicalize(host.dir.join("root/volumes")).unwrap().join(name);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|line| line.split(' ').nth(1) == point.to_str()).count()
}

fn driver() {
    let host = Host::with_box();
    let source = host.dir.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "text").unwrap();
    let device = format!("device={}", source.display());
    let bind = ["-o", "type=none", "-o", "o=bind", "-o", &device];
    assert_eq!(host.ok(&[&["volume", "create"], &bind[..], &["data"]].concat()), "data");
    let one = |volume: &str, script: &str| {
        let answer = host.run(&["run", "--rm", "--network", "none", "-v", volume, "box", "sh", "-c", script]);
        (answer.code, answer.out)
    };
    // The image's files are not copied to it.
    assert_eq!(one("data:/bin", "true"), (127, String::new()), "there is no shell");
    assert_eq!(one("data:/v", "cat /v/file; echo more >/v/more; ls /v | wc -l"), (0, "text2\n".into()));
    assert_eq!(fs::read_to_string(source.join("more")).unwrap(), "more\n");
    let options = host.ok(&["volume", "inspect", "-f", "{{.Options.o}} {{.Options.type}}", "data"]);
    assert_eq!(options, "bind none");
    // It exists already, with these options and no others.
    host.ok(&[&["volume", "create"], &bind[..], &["data"]].concat());
    let error = host.fails(2, &["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "data"]);
    assert!(error.contains("exists with other options"), "{error}");
    host.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind,ro", "-o", &device, "fixed"]);
    assert_eq!(one("fixed:/v", "cat /v/file; echo x >/v/x"), (1, "text".into()));
    host.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,noexec", "memory"]);
    let (code, out) = one("memory:/v", "grep ' /v ' /proc/mounts");
    assert!(
        code == 0 && out.starts_with("tmpfs /v tmpfs ") && out.contains("noexec") && out.contains("size=1024k"),
        "{out}"
    );
    // Files are copied to it, and its archive has them, without a container.
    host.ok(&["create", "--name", "lab", "--network", "none", "-v", "data:/v", "box", "true"]);
    host.ok(&["cp", "lab:/v/file", "copy"]);
    host.ok(&["cp", "copy", "lab:/v/copied"]);
    assert_eq!(fs::read_to_string(source.join("copied")).unwrap(), "text");
    host.ok(&["volume", "export", "-o", "data.tar", "data"]);
    let listed = std::process::Command::new("tar").arg("-tf").arg(host.dir.join("data.tar")).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("copied"));
    host.ok(&["rm", "lab"]);
    // The removal of a volume leaves what it stands for.
    assert_eq!(host.ok(&["volume", "rm", "data", "fixed", "memory"]).lines().count(), 3);
    assert!(source.join("file").exists());
    assert_eq!(fs::read_dir(host.dir.join("root/volumes")).unwrap().count(), 0);
    for (options, why) in [
        (&["type=tmpfs"][..], "the option `device` is missing"),
        (&["device=/x"], "the option `type` is missing"),
        (&["size=1g"], "no option `size`"),
        (&["bind"], "is not `KEY=VALUE`"),
    ] {
        let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
        let error = host.fails(2, &[&["volume", "create"], &options[..], &["bad"]].concat());
        assert!(error.contains(why), "{error}");
    }
    host.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/nosuch/x", "lost"]);
    let error = host.fails(125, &["run", "--rm", "--network", "none", "-v", "lost:/v", "box", "true"]);
    assert!(
        error.contains("cannot mount the volume `lost`") && error.contains("gpurun volume inspect lost"),
        "{error}"
    );
    host.ok(&["volume", "rm", "lost"]);
    assert_eq!(host.leftovers(), "");
}

fn mounted() {
    let host = Host::with_box();
    host.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "memory"]);
    run(&host, &["--name", "one", "--init", "-v", "memory:/v", "box", "sleep", "1000"]);
    host.ok(&["exec", "one", "touch", "/v/file"]);
    // Both have the same files, and the mount lasts as long as one of them.
    run(&host, &["--name", "two", "--init", "-v", "memory:/w", "box", "sleep", "1000"]);
    assert_eq!(host.ok(&["exec", "two", "ls", "/w"]), "file");
    assert_eq!(mounts(&host, "memory"), 1);
    host.ok(&["rm", "-f", "one"]);
    host.ok(&["restart", "-t", "0", "two"]);
    assert_eq!(mounts(&host, "memory"), 1);
    // A killed supervisor leaves it to the next command.
    let supervisor = host.inspect("two")["Gpurun"]["Supervisor"]["Pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the end of the mount", || {
        host.ok(&["ps"]);
        mounts(&host, "memory") == 0
    });
    // It stays mounted without a container until it is unmounted.
    let dir = host.ok(&["volume", "mount", "memory"]);
    fs::write(format!("{dir}/kept"), "").unwrap();
    host.ok(&["ps"]);
    assert_eq!(mounts(&host, "memory"), 1);
    assert_eq!(host.ok(&["volume", "unmount", "memory"]), "memory");
    assert_eq!(mounts(&host, "memory"), 0);
    host.ok(&["volume", "create", "plain"]);
    assert!(fs::read_dir(host.ok(&["volume", "mount", "plain"])).unwrap().next().is_none());
    host.ok(&["volume", "unmount", "plain"]);
    assert!(host.fails(1, &["volume", "mount", "nosuch"]).contains("there is no volume `nosuch`"));
    host.ok(&["volume", "rm", "plain"]);
    host.ok(&["start", "two"]);
    assert_eq!((mounts(&host, "memory"), host.ok(&["exec", "two", "ls", "/w"])), (1, String::new()));
    host.ok(&["rm", "-f", "two"]);
    host.ok(&["volume", "rm", "memory"]);
    assert_eq!(host.leftovers(), "");
}

fn fields() {
    let host = Host::with_box();
    run(&host, &["--name", "lab", "--init", "--log-opt", "max-size=2m", "box", "sh", "-c", "echo text; sleep 1000"]);
    let shown = host.inspect("lab");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    assert_eq!(
        (text(&shown["ImageName"]), &shown["HostConfig"]["AutoRemoveImage"]),
        ("docker.io/library/box:latest".into(), &false.into())
    );
    assert_eq!(shown["State"]["ConmonPid"], shown["Gpurun"]["Supervisor"]["Pid"]);
    let log = text(&shown["HostConfig"]["LogConfig"]["Path"]);
    eventually("the output", || fs::read_to_string(&log).is_ok_and(|log| log.ends_with(" stdout F text\n")));
    assert_eq!(text(&shown["HostConfig"]["LogConfig"]["Size"]), "2.10MB");
    assert_eq!(shown["State"]["StoppedByUser"], false);
    host.ok(&["stop", "-t", "0", "lab"]);
    let shown = host.inspect("lab");
    assert_eq!((&shown["State"]["StoppedByUser"], &shown["State"]["ConmonPid"]), (&true.into(), &0.into()));
    let mount = ["--mount", "type=image,src=box,dst=/box,subpath=/etc"];
    host.ok(&[&["create", "--name", "image", "--network", "none"], &mount[..], &["box", "true"]].concat());
    assert_eq!(host.ok(&["inspect", "-f", "{{(index .Mounts 0).Source}}", "image"]), "box");
    let info = host.ok(&["info", "-f", "{{.Store.GraphRoot}} {{.Store.ImageStore.Number}} {{.Host.CPUs}}"]);
    let cpus = std::thread::available_parallelism().unwrap();
    assert_eq!(info, format!("{} 1 {cpus}", host.dir.join("root").display()));
    let list: Value = serde_json::from_str(&host.ok(&["images", "--json"])).unwrap();
    assert!(list[0]["Labels"].is_object() && list[0]["CreatedAt"].is_string(), "{list}");
    let id = host.ok(&["images", "-q", "--no-trunc"]);
    let filter = |text: &str| host.ok(&["images", "-q", "--filter", text]).lines().count();
    assert_eq!((filter(&format!("id={}", &id[7..15])), filter("id=0000"), filter("after=box")), (1, 0, 0));
    assert!(host.ok(&["history", "--format", "{{.Created}}", "box"]).lines().count() > 0);
    // In seconds, as docker has it.
    host.ok(&["commit", "lab", "committed"]);
    let times = host.ok(&["history", "--format", "{{.CreatedAt}}", "committed"]);
    let time = times.lines().next().unwrap();
    assert!(is_time(time) && !time.contains('.'), "{time}");
    let script = ["--name", "changes", "box", "sh", "-c", "touch /new; rm /etc/passwd"];
    host.ok(&[&["run", "--network", "none"], &script[..]].concat());
    let changes: Value = serde_json::from_str(&host.ok(&["diff", "--format", "json", "-l"])).unwrap();
    let want = serde_json::json!({ "added": ["/new"], "changed": ["/etc"], "deleted": ["/etc/passwd"] });
    assert_eq!(changes, want);
    // A network that does not exist is no failure with --force, and is not printed, as in docker.
    host.ok(&["network", "create", "net"]);
    assert_eq!(host.ok(&["network", "rm", "-f", "nosuch", "net"]), "net");
    // A build without a directory is of this one, if a file is named.
    fs::write(host.dir.join("File"), "FROM box\nLABEL built=here\n").unwrap();
    host.ok(&["build", "-q", "-t", "made", "-f", "File"]);
    assert_eq!(host.ok(&["image", "inspect", "-f", "{{.Config.Labels.built}}", "made"]), "here");
    // Another ignore file, and a build without the cache.
    fs::create_dir(host.dir.join("context")).unwrap();
    for name in ["kept", "left"] {
        fs::write(host.dir.join("context").join(name), name).unwrap();
    }
    fs::write(host.dir.join("ignored"), "left\n").unwrap();
    fs::write(host.dir.join("File"), "FROM box\nCOPY . /copied\nRUN ls /copied\n").unwrap();
    let build = |flags: &[&str]| host.run(&[&["build", "-t", "made", "-f", "File"], flags, &["context"]].concat()).err;
    let log = build(&["--ignorefile", "ignored"]);
    assert!(log.contains("kept") && !log.contains("left"), "{log}");
    assert!(build(&["--ignorefile", "ignored"]).contains("CACHED"));
    assert!(!build(&["--ignorefile", "ignored", "--layers=false"]).contains("CACHED"));
    let error = host.fails(1, &["build", "--ignorefile", "nosuch", "context", "-f", "File"]);
    assert!(error.contains("cannot read the ignore file `nosuch`"), "{error}");
}

fn history() {
    let host = Host::with_box();
    let box_run = |flags: &[&str], code: &str| {
        host.run(&[&["run", "--network", "none"], flags, &["box", "sh", "-c", &format!("exit {code}")]].concat());
    };
    box_run(&["--name", "first", "--rm", "-l", "n=1"], "3");
    box_run(&["--name", "second"], "4");
    host.ok(&["rm", "second"]);
    box_run(&["--name", "third"], "5");
    host.ok(&["container", "prune", "-f"]);
    host.ok(&["create", "--name", "never", "--network", "none", "box"]);
    host.ok(&["rm", "never"]);
    let past = |flags: &[&str]| host.ok(&[&["events", "--stream=false", "--format"], flags].concat());
    for (name, code) in [("first", "3"), ("second", "4"), ("third", "5")] {
        let shown = past(&["{{.Action}} {{.Actor.Attributes.exitCode}}", "--filter", &format!("container={name}")]);
        let shown: Vec<&str> = shown.lines().map(str::trim).collect();
        let died = format!("die {code}");
        let want = ["create <no value>", "start <no value>", &died, "destroy <no value>"];
        assert_eq!(shown, want, "{name}");
    }
    assert_eq!(past(&["{{.Action}}", "--filter", "container=never"]), "create\ndestroy");
    assert_eq!(past(&["{{.Actor.Attributes.name}}", "--filter", "label=n=1", "--filter", "status=died"]), "first");
    assert_eq!(past(&["x", "--since", "-1h"]), "", "nothing was removed in the future");
    // A container that comes and goes between two looks is seen as it happens.
    let mut command = host.command(&["events", "--filter", "container=fast", "--format", "{{.Action}}"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut seen = Vec::new();
    eventually("the events of a fast container", || {
        // The command may have begun after the last one.
        box_run(&["--name", "fast", "--rm"], "0");
        seen.extend(receiver.try_iter());
        ["create", "start", "die", "destroy"].iter().all(|event| seen.iter().any(|line| line == event))
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Whether a text is a time such as `2026-01-31T12:00:00Z`.
fn is_time(text: &str) -> bool {
    let (date, time) = text.split_once('T').unwrap_or_default();
    date.len() == 10 && time.len() >= 9 && time.as_bytes()[2] == b':'
}
