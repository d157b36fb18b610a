//! The exit codes of docker's commands: one table with a row for each way in which a command can fail.

use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] =
    &[("every_command_fails_with_dockers_exit_code", codes), ("a_start_that_fails_gives_1_and_a_run_more", starts)];

/// Only what starts a container has codes of its own: 125, and for the command in it 126 and 127.
const ROWS: &[(i32, &[&str])] = &[
    (
        1,
        &[
            "start nope",
            "stop nope",
            "restart nope",
            "kill nope",
            "kill ended",
            "kill paused nope",
            "pause nope",
            "pause paused",
            "pause ended",
            "unpause nope",
            "unpause up",
            "unpause ended",
            "rm nope",
            "rm up",
            "rename nope other",
            "rename up ended",
            "wait nope",
            "logs nope",
            "attach nope",
            "attach ended",
            "attach paused",
            "exec nope true",
            "exec ended true",
            "exec paused true",
            "exec -u nobody-here up true",
            "cp nope:/etc/passwd .",
            "cp up:/nosuch .",
            "cp nosuch up:/tmp",
            "diff nope",
            "commit nope x",
            "export nope",
            "update --memory 64m nope",
            "port nope",
            "port up 99",
            "top nope",
            "top ended",
            "stats --no-stream nope",
            "inspect nope",
            "inspect --type image up",
            "container inspect nope",
            "container rm up",
        ],
    ),
    (
        1,
        &[
            "image inspect nope",
            "image rm nope",
            "rmi nope",
            "rmi box",
            "history nope",
            "save nope",
            "save -o out.tar nope",
            "tag nope x",
            "push nope",
            "pull 127.0.0.1:1/nope",
            "load -i nope.tar",
            "load -i no-archive",
            "import nope.tar",
            "build nope",
            "build empty",
            "search 127.0.0.1:1/nope",
            "login -u a -p b 127.0.0.1:1",
        ],
    ),
    (
        1,
        &[
            "network inspect nope",
            "network rm nope",
            "network rm bridge",
            "network create lab",
            "network connect nope up",
            "network connect lab nope",
            "network disconnect lab up",
            "volume inspect nope",
            "volume rm nope",
            "volume rm used",
        ],
    ),
    (
        1,
        &[
            "compose up",
            "compose -f nope.yaml up",
            "compose -f wrong.yaml config",
            "compose -f right.yaml exec one true",
            "compose -f right.yaml logs nope",
            "compose -f right.yaml up nope",
            "compose -f right.yaml pull",
            "compose -f right.yaml up --pull never",
            "compose -f right.yaml port one 80",
        ],
    ),
    (126, &["exec up /etc", "run --rm --network none box /etc"]),
    (127, &["exec up nosuch", "run --rm --network none box nosuch"]),
    (
        125,
        &[
            "run nope:1 true",
            "create nope:1",
            "run --name up box true",
            "create --name up box",
            "run --network nope box true",
            "run --memory x box true",
            "run --nosuch box true",
            "run --volumes-from nope box true",
            "run -v /nosuch:/x box true",
            "run --ipc container:nope box true",
            "run",
        ],
    ),
];

fn codes() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "up", "--network", "none", "box", "sleep", "1000"]);
    host.ok(&["run", "-d", "--name", "paused", "--network", "none", "box", "sleep", "1000"]);
    host.ok(&["pause", "paused"]);
    host.ok(&["run", "--name", "ended", "--network", "none", "-v", "used:/data", "box", "true"]);
    host.ok(&["network", "create", "lab"]);
    for (file, text) in [
        ("no-archive", "no archive"),
        ("wrong.yaml", "services:\n  one:\n    port: 80\n"),
        ("right.yaml", "services:\n  one:\n    image: 127.0.0.1:1/nope\n"),
    ] {
        std::fs::write(host.dir.join(file), text).unwrap();
    }
    std::fs::create_dir(host.dir.join("empty")).unwrap();
    let mut wrong = String::new();
    for (code, lines) in ROWS {
        for line in *lines {
            let answer = host.run(&line.split(' ').collect::<Vec<_>>());
            if answer.code != *code || !answer.err.contains("error: ") {
                wrong += &format!("{line}: {} instead of {code}\n{}\n", answer.code, answer.err);
            }
        }
    }
    assert_eq!(wrong, "");
    // With `--force`, what does not exist is no failure.
    for line in ["rm -f nope", "rmi -f nope", "volume rm -f nope", "network rm -f nope", "container rm -f nope"] {
        let answer = host.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(answer.code, 0, "{line}: {}", answer.err);
    }
    assert!(host.run(&["rm", "-f", "nope"]).err.contains("there is no container `nope`"));
    assert_eq!(host.run(&["inspect", "nope"]).out, "[]\n", "docker's command prints an empty list");
    host.ok(&["rm", "-f", "up", "paused", "ended"]);
    host.ok(&["network", "rm", "lab"]);
    assert_eq!(host.leftovers(), "");
}

fn starts() {
    let host = Host::with_box();
    for (command, code) in [("nosuch", 127), ("/etc", 126)] {
        host.ok(&["create", "--name", "one", "--network", "none", "box", command]);
        for start in [&["start", "one"][..], &["start", "-a", "one"], &["restart", "one"]] {
            assert!(host.fails(1, start).contains(command), "{start:?}");
        }
        assert_eq!(host.inspect("one")["State"]["ExitCode"], code);
        host.ok(&["rm", "one"]);
    }
    // An attached command ends with the container's code.
    host.ok(&["create", "--name", "one", "--network", "none", "box", "sh", "-c", "exit 3"]);
    host.fails(3, &["start", "-a", "one"]);
    host.ok(&["start", "one"]);
    eventually("the end", || host.inspect("one")["State"]["Status"] == "exited");
    assert_eq!(host.ok(&["wait", "one"]), "3");
    host.ok(&["rm", "one"]);
    assert_eq!(host.leftovers(), "");
}
