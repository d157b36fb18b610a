//! The command line: which arguments are whose, how containers are named, what errors and output look like.

use std::process::Stdio;

use crate::host::Host;

pub const TESTS: &[(&str, fn())] = &[
    ("what_follows_the_image_or_the_container_is_the_commands", belongs_to_the_command),
    ("help_that_cannot_be_written_is_an_error", unwritable_help),
    ("a_host_without_swap_is_announced_everywhere_alike", no_swap),
    ("ports_of_a_host_network_are_discarded_with_a_notice", discarded_ports),
    ("cp_writes_to_a_device_or_a_pipe_of_this_host", copy_to_streams),
    ("doctor_finds_a_read_only_store", read_only_store),
    ("errors_and_tables_fit_the_terminal", narrow_terminal),
    ("the_daily_commands_of_the_readme_work_in_order", readme),
];

fn belongs_to_the_command() {
    let host = Host::new();
    let path = host.dir.join("served.tar");
    let mut archive = crate::archive::busybox();
    archive.name = "served".into();
    archive.config["config"]["Entrypoint"] = serde_json::json!(["echo", "served"]);
    archive.write(&path);
    host.ok(&["image", "load", path.to_str().unwrap()]);
    // gpurun's flags before the image, known and unknown ones of the program behind it.
    for line in [
        "--name bob",
        "--help",
        "-h",
        "-p 80",
        "-it --rm",
        "--no-such-flag=1 -Z",
        "-- --rm",
        "--root /nowhere --run-dir /nowhere --verbose",
        "x --name bob",
    ] {
        let snippets: Vec<&str> = line.split(' ').collect();
        let args = [&["run", "--rm", "--network", "none", "served"], &snippets[..]].concat();
        assert_eq!(host.ok(&args), format!("served {line}"));
    }
    assert!(host.fails(125, &["run", "--no-such-flag", "served"]).contains("--no-such-flag"));
    assert_eq!(host.ok(&["ps", "-aq"]), "", "no container by the name bob");
    // docker's `-h`.
    let args = ["run", "--rm", "--network", "none", "-h", "desk", "--entrypoint", "hostname", "served"];
    assert_eq!(host.ok(&args), "desk");

    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "--entrypoint", "sleep", "served", "1000"]);
    for line in ["--help", "-it -u nobody", "-- --rm", "--root /nowhere -e A=B"] {
        let snippets: Vec<&str> = line.split(' ').collect();
        assert_eq!(host.ok(&[&["exec", "lab", "echo"], &snippets[..]].concat()), line);
    }
    assert_eq!(host.ok(&["exec", "-e", "A=B", "lab", "sh", "-c", "echo $A $0", "-e"]), "B -e");
    // A command that begins with `-` is not there; gpurun does not take it for a flag of its own.
    assert!(host.fails(127, &["exec", "lab", "--detach", "true"]).contains("`--detach`"));
}

fn unwritable_help() {
    let host = Host::new();
    let cases = [(125, &["--help"][..]), (125, &["--version"]), (125, &["run", "-h"]), (1, &["image", "rm", "--help"])];
    for (code, args) in cases {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let answer = crate::host::answer(host.command(args).stdout(full).stderr(Stdio::piped()).output().unwrap());
        assert!(
            answer.code == code && answer.err.contains("No space left"),
            "{args:?}: {} {}",
            answer.code,
            answer.err
        );
        // A reader that goes away is no failure.
        assert_eq!(host.command(args).stdout(crate::host::deaf()).status().unwrap().code(), Some(0), "{args:?}");
    }
}

/// doctor, the lab and a launch.
fn no_swap() {
    if std::fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1 {
        return with_swap();
    }
    let host = Host::with_box();
    let said = "this host has no swap";
    assert!(host.ok(&["doctor"]).contains(said));
    assert!(host.ok(&["lab", "run", "swap"]).contains(said));
    let run = |swap: &[&str]| {
        let args = [&["run", "--rm", "--network", "none", "--memory", "32m"], swap, &["box", "true"]].concat();
        let answer = host.run(&args);
        assert_eq!(answer.code, 0, "{}", answer.err);
        answer.err
    };
    assert!(run(&["--memory-swap", "64m"]).contains(said));
    assert!(run(&["--memory-swap", "-1"]).contains(said));
    assert_eq!(run(&["--memory-swap", "32m"]), "", "no swap is what was asked for");
    assert_eq!(run(&[]), "");
    assert!(host.ok(&["explain", "--memory", "32m", "--memory-swap", "64m"]).contains(said));
}

fn with_swap() {
    let host = Host::with_box();
    assert!(!host.ok(&["doctor"]).contains("this host has no swap"));
    let answer =
        host.run(&["run", "--rm", "--network", "none", "--memory", "32m", "--memory-swap", "64m", "box", "true"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
}

fn discarded_ports() {
    let host = Host::with_box();
    for network in ["host", "none"] {
        let answer = host.run(&["run", "--rm", "--network", network, "-p", "8080:80", "box", "echo", "runs"]);
        assert_eq!((answer.code, answer.out.as_str()), (0, "runs\n"), "{}", answer.err);
        assert!(
            answer.err.contains(&format!("published ports are discarded with `--network {network}`")),
            "{}",
            answer.err
        );
    }
    // A port that cannot be parsed is an error all the same.
    host.fails(125, &["run", "--rm", "--network", "host", "-p", "x:80", "box", "true"]);
}

fn copy_to_streams() {
    let host = Host::with_box();
    let script = "echo content >/f; mkdir /d; ln -s /f /link; sleep 1000";
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "box", "sh", "-c", script]);
    crate::host::eventually("the link is there", || host.run(&["exec", "lab", "test", "-L", "/link"]).code == 0);
    assert_eq!(host.ok(&["cp", "lab:/f", "/dev/stdout"]), "content");
    assert_eq!(host.ok(&["cp", "-L", "lab:/link", "/dev/stdout"]), "content");
    host.ok(&["cp", "lab:/f", "/dev/null"]);
    // Into a file to which something was written before.
    let path = host.dir.join("out");
    let mut file = std::fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut file, b"before ").unwrap();
    assert!(host.command(&["cp", "lab:/f", "/dev/stdout"]).stdout(file).status().unwrap().success());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before content\n");
    for source in ["lab:/d", "lab:/link", "lab:/dev/null"] {
        assert!(host.fails(2, &["cp", source, "/dev/stdout"]).contains("only a regular file"), "{source}");
    }
    assert!(host.fails(2, &["cp", "/dev/stdin", "lab:/x"]).contains("name the source `-`"));
    assert!(host.fails(1, &["cp", "lab:/none", "/dev/stdout"]).contains("`lab:/none` does not exist"));
}

fn read_only_store() {
    let host = Host::new();
    let dir = host.dir.to_str().unwrap();
    let line = format!("mount --bind {dir} {dir} && mount -o remount,bind,ro {dir} && exec \"$0\" \"$@\"");
    let answer = crate::host::answer(host.behind(&["unshare", "-m", "sh", "-c", &line], &["doctor"]).output().unwrap());
    assert_eq!(answer.code, 1, "{}", answer.out);
    let text = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        format!("`{dir}` cannot be written: Read-only file system"),
        "`mount -o remount,rw".into(),
        "with `--root DIR`".into(),
        "with `--run-dir DIR`".into(),
        "2 problems".into(),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert_eq!(host.run(&["doctor"]).code, 0);
}

fn narrow_terminal() {
    let host = Host::with_box();
    let ports = ["-p", "18000-18005:8000-8005", "-p", "19001:80", "-p", "19003:81/udp"];
    host.ok(&[&["run", "-d", "--name", "a-container-with-a-long-name"], &ports[..], &["box", "sleep", "1000"]].concat());
    let on_terminal = |columns: u32, args: &str| {
        let inner = host.command(&args.split(' ').collect::<Vec<_>>());
        let snippets: Vec<_> = std::iter::once(inner.get_program()).chain(inner.get_args()).collect();
        let snippets: Vec<_> = snippets.iter().map(|snippet| snippet.to_string_lossy()).collect();
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &format!("stty cols {columns} rows 40; {}", snippets.join(" ")), "/dev/null"]);
        command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        let text = crate::host::answer(command.output().unwrap()).out.replace('\r', "");
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > columns as usize).collect();
        assert!(long.is_empty(), "longer than {columns} columns: {long:?}");
        text
    };
    let text = on_terminal(80, "ps");
    let (column, next) = (text.find("PORTS").expect("the title"), text.find("NAMES").expect("the title"));
    let ports: String =
        text.lines().skip(1).filter_map(|line| line.get(column..next.min(line.len()))).map(str::trim_end).collect();
    assert!(ports.contains("0.0.0.0:18000-18005->8000-8005/tcp,0.0.0.0:19001->80/tcp,"), "{ports}\n{text}");
    let text = on_terminal(60, "logs no-such-container-of-this-name");
    assert!(text.contains("hint: list all containers with `gpurun ps -a`"), "{text}");
    on_terminal(50, "run --network none --memory 32 box true");
    on_terminal(72, "run --help");
    // Without a terminal a line is a line.
    let text = host.ok(&["ps"]);
    assert_eq!(text.lines().count(), 2);
    assert!(
        text.contains("0.0.0.0:18000-18005->8000-8005/tcp, 0.0.0.0:19001->80/tcp, 0.0.0.0:19003->81/udp"),
        "{text}"
    );
}

/// Answers as Jupyter does as far as a launch looks: closed without the token, open with it. It needs no Python.
fn small_jupyter() -> crate::archive::Archive {
    const SERVER: &[u8] = b"#!/bin/sh\n\
        busybox sed -n 's/.*\"token\": *\"\\([0-9a-f]*\\)\".*/\\1/p' \"$JUPYTER_CONFIG_DIR/jupyter_server_config.json\" | head -n 1 >/tmp/token\n\
        echo 'the server is up'\n\
        exec nc -ll -p 8888 -e /bin/answer\n";
    const ANSWER: &[u8] = b"#!/bin/sh\n\
        status=403 token=$(cat /tmp/token) return=$(printf '\\r')\n\
        while read -r line; do\n\
            line=${line%\"$return\"}\n\
            [ -n \"$line\" ] || break\n\
            case $line in *\"token $token\") status=200 ;; esac\n\
        done\n\
        printf 'HTTP/1.1 %s x\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}' $status\n";
    let layer = crate::archive::Layer::default()
        .file("bin/jupyter-lab", 0o755, SERVER)
        .file("bin/answer", 0o755, ANSWER)
        .file("bin/bash", 0o755, b"#!/bin/sh\nexec sh \"$@\"\n")
        .file("bin/python3", 0o755, b"#!/bin/sh\necho Python 3.12\n")
        .file("etc/passwd", 0o644, b"root:x:0:0:small:/:/bin/sh\n");
    let mut archive = crate::archive::busybox().layer(layer);
    archive.name = "jupyter".into();
    archive
}

/// The commands are pasted into a terminal, one after the other, with `jupyter.tar` in the current directory.
fn readme() {
    let text = include_str!("../../README.md");
    let (_, section) = text.split_once("\n## Daily commands\n").expect("the section");
    let block = section.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n")).expect("its commands");
    assert_eq!(block.lines().count(), 10, "ten daily commands");
    let host = Host::new();
    let desk = host.dir.join("desk");
    std::fs::create_dir(&desk).unwrap();
    small_jupyter().write(&desk.join("jupyter.tar"));
    let inner = host.command(&[]);
    let snippets: Vec<_> = std::iter::once(inner.get_program()).chain(inner.get_args()).collect();
    let snippets: Vec<_> = snippets.iter().map(|snippet| snippet.to_string_lossy()).collect();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let block = if cpus < 2 { block.replace("--cpus 1.5", "--cpus 0.5") } else { block.to_owned() };
    let script = format!("set -ex\ngpurun() {{ {} \"$@\"; }}\n{block}echo all of it\n", snippets.join(" "));
    std::fs::write(host.dir.join("pasted"), script).unwrap();
    let mut command = std::process::Command::new("timeout");
    command.args(["300", "script", "-qec", &format!("sh {}", host.dir.join("pasted").display()), "/dev/null"]);
    command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
    command.current_dir(&desk).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Typed again and again, since only the shell in the container reads it, once it is there.
    let mut keys = child.stdin.take().unwrap();
    let typing = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut keys, b"exit\n").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    let answer = crate::host::answer(child.wait_with_output().unwrap());
    typing.join().unwrap();
    assert!(answer.code == 0 && answer.out.contains("all of it"), "{}{}", answer.out, answer.err);
    for expected in ["http://", "?token=", "the server is up", "MEMORY / LIMIT", "2 GiB", "Python 3.12"] {
        assert!(answer.out.contains(expected), "{expected}: {}", answer.out);
    }
    assert!(std::fs::read_to_string(desk.join("passwd")).unwrap().contains(":small:"));
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert_eq!(host.leftovers(), "");
}
