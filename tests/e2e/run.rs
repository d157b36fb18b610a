//! `gpurun run`: the process that docker's flags describe.

use std::process::Stdio;

use crate::archive::Layer;
use crate::host::{Host, slow};

pub const TESTS: &[(&str, fn())] = &[
    ("exit_codes_are_handed_through", exit_codes),
    ("what_cannot_be_executed_has_its_own_codes", cannot_execute),
    ("output_and_input_pass_through", streams),
    ("the_environment_is_dockers", environment),
    ("user_workdir_hostname_entrypoint", identity),
    ("a_working_directory_is_made_or_named", workdir),
    ("mounts_of_every_kind", mounts),
    ("a_missing_host_path_is_an_error", missing_path),
    ("an_unknown_image_is_an_error", unknown_image),
    ("two_hundred_starts_in_a_row", two_hundred),
    ("eight_times_twenty_starts_side_by_side", side_by_side),
    ("volumes_keep_their_files", volumes),
    ("an_archive_runs_from_where_it_lies", from_an_archive),
];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(rest);
    args
}

fn exit_codes() {
    let host = Host::with_box();
    host.ok(&run(&["box", "true"]));
    for code in [1, 2, 42, 125, 255] {
        host.fails(code, &run(&["box", "sh", "-c", &format!("exit {code}")]));
    }
    host.fails(128 + 9, &run(&["--init", "box", "sh", "-c", "kill -9 $$; sleep 5"]));
    assert_eq!(host.leftovers(), "");
}

fn cannot_execute() {
    let host = Host::with_box();
    let error = host.fails(127, &run(&["box", "no-such-command"]));
    assert!(error.contains("`no-such-command`"), "{error}");
    let error = host.fails(126, &run(&["box", "/etc/passwd"]));
    assert!(error.contains("/etc/passwd"), "{error}");
    host.fails(126, &run(&["box", "/etc"]));
    assert_eq!(host.ok(&["ps", "-aq"]), "", "--rm holds for a failed start too");
    assert_eq!(host.leftovers(), "");
}

fn streams() {
    let host = Host::with_box();
    let answer = host.run(&run(&["box", "sh", "-c", "echo out; echo err >&2"]));
    assert_eq!((answer.out.as_str(), answer.err.as_str()), ("out\n", "err\n"));
    // More than a pipe and a socket hold, both ways.
    let input: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n % 23) as u8).collect();
    let answer = host.with_input(&run(&["-i", "box", "cat"]), &input);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.out.as_bytes() == input, "{} of {} bytes came back", answer.out.len(), input.len());
    // Without -i nothing is typed.
    assert_eq!(host.with_input(&run(&["box", "cat"]), b"x").out, "");
}

fn environment() {
    let host = Host::with_box();
    std::fs::write(host.dir.join("file.env"), "# comment\nFROM_FILE=1\nA=file\n").unwrap();
    let out =
        host.ok(&run(&["-e", "A=flag", "-e", "B=x y", "--env-file", "file.env", "--hostname", "h1", "box", "env"]));
    for line in ["A=flag", "B=x y", "FROM_FILE=1", "PATH=/bin", "HOSTNAME=h1", "HOME=/root"] {
        assert!(out.lines().any(|other| other == line), "{line} is not in\n{out}");
    }
    assert!(out.lines().any(|line| line == "NVIDIA_VISIBLE_DEVICES=void"), "no GPU without --gpus:\n{out}");
}

fn identity() {
    let host = Host::with_box();
    assert_eq!(host.ok(&run(&["-u", "ann", "box", "id"])), "uid=1000(ann) gid=1000(ann) groups=10(wheel),1000(ann)");
    assert_eq!(host.ok(&run(&["-u", "4242:7", "box", "sh", "-c", "id -u; id -g"])), "4242\n7");
    host.fails(125, &run(&["-u", "nobody-here", "box", "true"]));
    assert_eq!(host.ok(&run(&["-w", "/made/up", "box", "pwd"])), "/made/up");
    assert_eq!(host.ok(&run(&["--hostname", "spark", "box", "hostname"])), "spark");
    assert_eq!(host.ok(&run(&["--entrypoint", "echo", "box", "a", "b"])), "a b");
    assert_ne!(host.ok(&run(&["--init", "box", "sh", "-c", "echo $$"])), "1", "pid 1 is the init");
}

fn mounts() {
    let host = Host::with_box();
    std::fs::create_dir(host.dir.join("data")).unwrap();
    std::fs::write(host.dir.join("data/in"), "hello").unwrap();
    assert_eq!(host.ok(&run(&["-v", "./data:/d:ro", "box", "cat", "/d/in"])), "hello");
    let error = host.fails(1, &run(&["-v", "./data:/d:ro", "box", "touch", "/d/new"]));
    assert!(error.contains("Read-only"), "{error}");
    host.ok(&run(&["-v", "./data:/deep/er/d", "box", "touch", "/deep/er/d/new"]));
    assert!(host.dir.join("data/new").exists());
    host.ok(&run(&["--mount", "type=bind,source=data/in,target=/one", "box", "cat", "/one"]));
    let out =
        host.ok(&run(&["--tmpfs", "/t:size=1m,mode=700", "box", "sh", "-c", "stat -c %a /t; df -k /t | tail -1"]));
    assert!(out.starts_with("700\n") && out.contains("1024"), "{out}");
    let error = host.fails(1, &run(&["--read-only", "box", "touch", "/x"]));
    assert!(error.contains("Read-only"), "{error}");
    let shm = host.ok(&run(&["--shm-size", "128m", "box", "sh", "-c", "df -k /dev/shm | tail -1"]));
    assert!(shm.contains("131072"), "{shm}");
}

fn workdir() {
    let host = Host::with_box();
    // Where docker makes it: in what is mounted, too.
    let data = host.dir.join("data");
    std::fs::create_dir(&data).unwrap();
    let bind = format!("{}:/data", data.display());
    assert_eq!(host.ok(&run(&["-v", &bind, "-w", "/data/a/b", "box", "pwd"])), "/data/a/b");
    assert!(data.join("a/b").is_dir());
    assert_eq!(host.ok(&run(&["-v", "vol:/vol", "-w", "/vol/a", "box", "pwd"])), "/vol/a");
    // Where it is not allowed, or not possible.
    let read_only = format!("{bind}:ro");
    for (flags, dir) in [(&["-v", &*read_only][..], "/data/new"), (&[], "/proc/new")] {
        let error = host.fails(125, &run(&[flags, &["-w", dir, "box", "pwd"]].concat()));
        assert!(error.contains(&format!("cannot enter the working directory `{dir}` of the container")), "{error}");
        assert!(error.contains("No such file or directory") && error.contains("hint: create it"), "{error}");
    }
    assert!(!data.join("new").exists());
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "box", "sleep", "1000"]);
    let error = host.fails(1, &["exec", "-w", "/new", "lab", "pwd"]);
    assert!(error.contains("container `lab` has no directory `/new`"), "{error}");
    let (_, way_out) =
        error.split_once("hint: create it with `gpurun ").unwrap_or_else(|| panic!("no way out in {error}"));
    host.ok(&way_out.split_once('`').unwrap().0.split(' ').collect::<Vec<_>>());
    assert_eq!(host.ok(&["exec", "-w", "/new", "lab", "pwd"]), "/new");
    let error = host.fails(1, &["exec", "-w", "/bin/busybox", "lab", "pwd"]);
    assert!(error.contains("`/bin/busybox` in container `lab` is not a directory"), "{error}");
    assert!(host.fails(2, &["exec", "-w", "new", "lab", "pwd"]).contains("`--workdir new` is not an absolute path"));
}

fn missing_path() {
    let host = Host::with_box();
    let error = host.fails(125, &run(&["-v", "/no/such/dir:/d", "box", "true"]));
    assert!(error.contains("/no/such/dir") && error.contains("hint:"), "{error}");
    assert_eq!(host.leftovers(), "");
}

fn unknown_image() {
    let host = Host::with_box();
    let error = host.fails(125, &run(&["nope", "true"]));
    assert!(error.contains("nope") && error.contains("hint:"), "{error}");
}

fn two_hundred() {
    let host = Host::with_box();
    for round in 0..if slow() { 10 } else { 200 } {
        let code = round % 7;
        host.fails(code, &run(&["box", "sh", "-c", &format!("exit {code}")]));
    }
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert_eq!(host.leftovers(), "");
}

fn side_by_side() {
    let host = Host::with_box();
    for _ in 0..if slow() { 2 } else { 20 } {
        let children: Vec<_> = (0..8)
            .map(|code| {
                let script = format!("exit {code}");
                host.command(&run(&["box", "sh", "-c", &script]))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for (code, child) in children.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code as i32), "{error}");
        }
    }
    assert_eq!(host.leftovers(), "");
}

fn volumes() {
    let host = Host::new();
    let path = host.dir.join("seeded.tar");
    let seeded = Layer::default().dir("data", 0o750).file("data/seed", 0o640, b"from the image");
    let mut archive = crate::archive::busybox();
    archive.name = "seeded".into();
    archive.layer(seeded).write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    // A named volume begins as a copy of what the image has there, and keeps what is written.
    assert_eq!(
        host.ok(&run(&["-v", "keep:/data", "seeded", "sh", "-c", "cat /data/seed; echo more > /data/more"])),
        "from the image"
    );
    assert_eq!(host.ok(&run(&["-v", "keep:/data", "seeded", "cat", "/data/more"])), "more");
}

fn from_an_archive() {
    let host = Host::new();
    let archive = host.dir.join("box.tar");
    std::fs::copy(crate::host::box_archive(), &archive).unwrap();
    let path = archive.to_str().unwrap();
    let count = |place: &str| std::fs::read_dir(host.dir.join("root").join(place)).unwrap().count();
    assert_eq!(host.ok(&run(&[path, "echo", "here"])), "here");
    assert_eq!((count("layers"), count("images"), count("archives")), (0, 0, 1), "no layer is copied");
    assert_eq!(host.ok(&run(&[&format!("docker-archive:{path}"), "echo", "again"])), "again");
    // What a container can do with its image it can do with this one, at rest too.
    host.ok(&["run", "--name", "kept", "--network", "none", path, "sh", "-c", "echo new >/new; rm /etc/group"]);
    let diff = host.ok(&["diff", "kept"]);
    assert!(diff.lines().any(|line| line == "D /etc/group") && diff.lines().any(|line| line == "A /new"), "{diff}");
    host.ok(&["start", "kept"]);
    host.ok(&["wait", "kept"]);
    let error = host.fails(1, &["commit", "kept", "made"]);
    assert!(error.contains("gpurun image load"), "{error}");
    host.ok(&["image", "load", "-q", path]);
    host.ok(&["commit", "kept", "made"]);
    assert_eq!(host.ok(&run(&["made", "cat", "/new"])), "new");
    host.ok(&["rm", "kept"]);
    host.ok(&["image", "rm", "made"]);
    host.ok(&["image", "prune", "--all", "--force"]);
    assert_eq!(count("archives"), 0);

    // Another file under the old name: its containers say so instead of reading something else.
    host.ok(&["run", "--name", "old", "--network", "none", path, "true"]);
    std::fs::copy(crate::host::box_archive(), &archive).unwrap();
    let error = host.fails(1, &["start", "old"]);
    assert!(error.contains("was removed or changed") && error.contains(path), "{error}");
    let mut damaged = std::fs::read(&archive).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&archive, damaged).unwrap();
    let error = host.fails(125, &run(&[path, "true"]));
    assert!(error.contains("diff ID"), "{error}");
    host.ok(&["rm", "-f", "old"]);
    assert_eq!(host.leftovers(), "");
}
