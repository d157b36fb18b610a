//! docker's command line: names of commands, `--format` and `--filter`, the shape of the output, exit codes.

use serde_json::Value;

use crate::host::{Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("dockers_names_are_the_same_commands", names),
    ("ps_selects_and_formats", ps),
    ("images_are_selected_and_formatted", images),
    ("inspect_has_dockers_shape", inspect),
    ("an_editor_finds_its_container", editor),
    ("a_container_is_created_and_started_later", create),
    ("ports_and_processes_are_listed", port_and_top),
    ("logs_of_a_time", logs),
    ("logs_have_details_that_were_asked_for", log_details),
    ("containers_are_stopped_by_signal_and_all_at_once", stop),
    ("a_state_is_waited_for", wait),
    ("volumes_are_made_listed_and_removed", volumes),
    ("what_is_not_used_is_pruned", prune),
    ("what_gpurun_does_not_have_is_one_sentence", refused),
    ("events_are_selected_and_have_dockers_shape", events),
    ("stats_are_formatted", stats),
    ("a_tar_archive_becomes_an_image", import),
    ("containers_are_chosen_by_file_filter_and_all", chosen),
    ("lists_are_sorted_and_without_titles", sorted_lists),
    ("files_are_copied_between_containers", between),
    ("builds_take_dockers_forms", builds),
    ("the_table_is_of_dockers_help", oracle),
];

const NO_NET: [&str; 2] = ["--network", "none"];

fn run(host: &Host, more: &[&str]) -> String {
    host.ok(&[&["run", "-d"], &NO_NET[..], more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn names() {
    let host = Host::with_box();
    run(&host, &["--name", "lab", "box", "sleep", "1000"]);
    for (docker, own) in [
        ("images", "image ls"),
        ("images -q --no-trunc", "image ls -q --no-trunc"),
        ("history box", "image history box"),
        ("container ls -q", "ps -q"),
        ("container ps -a", "ps -a"),
        ("container inspect lab", "inspect --type container lab"),
        ("container port lab", "port lab"),
        ("system info --format {{.Containers}}", "info --format {{.Containers}}"),
    ] {
        let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
        // An age may change between the two.
        eventually(docker, || host.ok(&words(docker)) == host.ok(&words(own)));
        let help = host.ok(&[&words(docker)[..], &["--help"]].concat());
        assert!(
            help.contains(&format!(
                "Usage: gpurun {}",
                own.split(" -").next().unwrap().split(" box").next().unwrap().split(" lab").next().unwrap()
            )),
            "{help}"
        );
    }
    assert_eq!(host.ok(&["tag", "box", "other:1"]), "");
    host.ok(&["save", "-o", "saved.tar", "other:1"]);
    assert_eq!(host.ok(&["rmi", "other:1"]), "Untagged: other:1");
    assert_eq!(host.ok(&["load", "-qi", "saved.tar"]).len(), 71);
    // One that is missing does not keep the others.
    let answer = host.run(&["rmi", "nosuch", "other:1"]);
    assert!(
        answer.code == 1 && answer.out.contains("Untagged: other:1"),
        "{} {} {}",
        answer.code,
        answer.out,
        answer.err
    );
    assert!(answer.err.contains("nosuch"));
    assert_eq!(host.ok(&["container", "exec", "lab", "echo", "-n", "x"]), "x");
    assert_eq!(host.ok(&["container", "run", "--rm", "--network", "none", "box", "echo", "images"]), "images");
    host.ok(&["container", "rm", "-f", "lab"]);
    let version = json(&host.ok(&["version", "--format", "{{json .}}"]));
    assert!(version["Server"]["Version"].is_string() && version["Client"]["ApiVersion"].is_string(), "{version}");
    assert_eq!(host.ok(&["version", "-f", "{{.Server.Version}}"]), version["Server"]["Version"].as_str().unwrap());
    assert_eq!(json(&host.ok(&["info", "-f", "json"]))["ContainersRunning"], 0);
    let list = host.ok(&["--help"]);
    for name in ["images", "rmi", "pull", "container", "volume", "system", "create"] {
        assert!(list.contains(&format!("\n  {name} ")), "{name}: {list}");
    }
}

fn ps() {
    let host = Host::with_box();
    let one =
        run(&host, &["--name", "one", "-l", "course=cgroups", "-l", "n=1", "-v", "data:/data", "box", "sleep", "1000"]);
    host.run(&["run", "--name", "two", "--network", "none", "-l", "n=2", "box", "sh", "-c", "exit 3"]);
    host.run(&["run", "--name", "three", "--network", "none", "box", "true"]);
    let listed = |args: &[&str]| {
        let args = [&["ps", "--format", "{{.Names}}"], args].concat();
        host.ok(&args).lines().collect::<Vec<_>>().join(" ")
    };
    for (args, want) in [
        (&[][..], "one"),
        (&["-a"], "three two one"),
        (&["-n", "2"], "three two"),
        (&["-l"], "three"),
        (&["-n", "0"], ""),
        (&["-f", "status=exited"], "three two"),
        (&["-f", "exited=3"], "two"),
        (&["-a", "-f", "name=o"], "two one"),
        (&["-a", "-f", "name=^one$"], "one"),
        (&["-a", "--filter", "label=n"], "two one"),
        (&["-a", "--filter", "label=n=2"], "two"),
        (&["-a", "--filter", "label=n", "--filter", "label=course"], "one"),
        (&["-a", "--filter", "ancestor=box"], "three two one"),
        (&["-a", "--filter", "ancestor=nosuch"], ""),
        (&["-a", "--filter", "before=two"], "one"),
        (&["-a", "--filter", "since=two"], "three"),
        (&["-a", "--filter", "volume=data"], "one"),
        (&["-a", "--filter", "volume=/data"], "one"),
        (&["-a", "--filter", "network=bridge"], ""),
        (&["-a", "--filter", "network=none", "--filter", "status=running", "--filter", "status=created"], "one"),
        (&["-a", "-f", &format!("id={}", &one[..8])], "one"),
    ] {
        assert_eq!(listed(args), want, "{args:?}");
    }
    let line = host.ok(&["ps", "--no-trunc", "--format", "{{json .}}"]);
    let row = json(&line);
    assert_eq!(line.lines().count(), 1);
    assert_eq!(
        (&row["ID"], &row["Names"], &row["Image"], &row["Command"], &row["State"], &row["Networks"], &row["Mounts"]),
        (
            &one.as_str().into(),
            &"one".into(),
            &"box".into(),
            &"\"sleep 1000\"".into(),
            &"running".into(),
            &"none".into(),
            &"data".into()
        )
    );
    assert_eq!(row["Labels"], "course=cgroups,n=1");
    assert!(row["CreatedAt"].as_str().unwrap().starts_with("20") && row["Status"].as_str().unwrap().starts_with("Up "));
    assert_eq!(
        host.ok(&["ps", "--format", "{{.Label \"course\"}} {{.Size}}"]),
        "cgroups 0B (virtual 1.94MB)".replace("1.94MB", &virtual_size(&host))
    );
    let table = host.ok(&["ps", "--format", r"table {{.ID}}\t{{.Names}}"]);
    assert_eq!(table, format!("CONTAINER ID   NAMES\n{}   one", &one[..12]));
    let table = host.ok(&["ps", "-a", "-s"]);
    let titles: Vec<&str> =
        table.lines().next().unwrap().split("  ").filter(|title| !title.is_empty()).map(str::trim).collect();
    assert_eq!(titles, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "SIZE"]);
    assert!(host.fails(2, &["ps", "--filter", "nam=x"]).contains("hint: the filters are id, name, label"));
    assert!(host.fails(1, &["ps", "--format", "{{.Nme}}"]).contains("there is no field `Nme`"));
    assert!(host.fails(2, &["ps", "--format", "{{.Names"]).contains("`{{` without `}}`"));
}

fn virtual_size(host: &Host) -> String {
    host.ok(&["images", "--format", "{{.Size}}", "box"])
}

fn images() {
    let host = Host::with_box();
    host.ok(&["tag", "box", "localhost/lab/box:2"]);
    let listed = |args: &[&str]| {
        let args = [&["images", "--format", "{{.Repository}}:{{.Tag}}"], args].concat();
        let mut names: Vec<String> = host.ok(&args).lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    for (args, want) in [
        (&[][..], "box:latest localhost/lab/box:2"),
        (&["box"], "box:latest"),
        (&["localhost/lab/box:2"], "localhost/lab/box:2"),
        (&["localhost/lab/box:3"], ""),
        (&["--filter", "reference=*"], "box:latest"),
        (&["--filter", "reference=localhost/*/box"], "localhost/lab/box:2"),
        (&["--filter", "reference=*:2", "--filter", "reference=box:lat*"], "box:latest"),
        (&["--filter", "dangling=true"], ""),
        (&["--filter", "dangling=false"], "box:latest localhost/lab/box:2"),
        (&["--filter", "label=none"], ""),
        (&["--filter", "until=1h"], "box:latest localhost/lab/box:2"),
        (&["--filter", "since=box"], ""),
    ] {
        assert_eq!(listed(args), want, "{args:?}");
    }
    let row = json(host.ok(&["images", "--no-trunc", "--format", "json", "box"]).as_str());
    assert!(row["ID"].as_str().unwrap().starts_with("sha256:"), "{row}");
    assert_eq!(row["CreatedSince"], "N/A", "this image does not say when it was created");
    let table = host.ok(&["images"]);
    let titles: Vec<&str> =
        table.lines().next().unwrap().split("  ").filter(|title| !title.is_empty()).map(str::trim).collect();
    assert_eq!(titles, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert!(host.ok(&["images", "--digests"]).lines().next().unwrap().contains("DIGEST"));
    // Docker shows a time for the steps of a build too.
    std::fs::write(host.dir.join("Containerfile"), "FROM box\nRUN echo a >/a\nRUN echo b >/b\n").unwrap();
    host.ok(&["build", "-q", "-t", "steps", "--network", "none", "."]);
    let all = host.ok(&["images", "-a", "--filter", "dangling=true", "--format", "{{.Tag}} {{.CreatedSince}}"]);
    assert!(all.starts_with("<none> ") && all.contains("ago") && !all.contains("N/A"), "{all}");
    let history = host.ok(&["history", "box"]);
    assert!(history.starts_with("IMAGE"), "{history}");
    assert_eq!(host.ok(&["history", "-q", "--no-trunc", "box"]).lines().next().unwrap(), row["ID"].as_str().unwrap());
    let size: u64 =
        host.ok(&["history", "--human=false", "--format", "{{.Size}}", "box"]).lines().next().unwrap().parse().unwrap();
    assert!(size > 100_000, "{size}");
    assert_eq!(host.ok(&["image", "inspect", "-f", "{{.Os}} {{index .RepoTags 0}}", "box"]), "linux box:latest");
    // What is missing does not hide what was found.
    for (args, out) in [(&["nosuch", "box"][..], "linux\n"), (&["nosuch"], "")] {
        let answer = host.run(&[&["image", "inspect", "-f", "{{.Os}}"], args].concat());
        assert!(
            answer.code == 1 && answer.out == out && answer.err.contains("nosuch"),
            "{} {}",
            answer.out,
            answer.err
        );
    }
    assert_eq!(host.run(&["image", "inspect", "nosuch"]).out, "[]\n");
}

fn inspect() {
    let host = Host::with_box();
    let script = "echo out; sleep 1000";
    let args = [
        "--name",
        "lab",
        "-e",
        "A=1",
        "-l",
        "n=1",
        "-m",
        "64m",
        "-v",
        "data:/data:ro",
        "-w",
        "/tmp",
        "--user",
        "1:2",
        "--hostname",
        "desk",
    ];
    let id = run(&host, &[&args[..], &["--restart", "on-failure:3", "box", "sh", "-c", script]].concat());
    let all = json(&host.ok(&["inspect", "lab"]));
    let lab = &all[0];
    assert_eq!((all.as_array().unwrap().len(), &lab["Id"], &lab["Name"]), (1, &id.as_str().into(), &"/lab".into()));
    assert_eq!((&lab["Path"], &lab["Args"]), (&"sh".into(), &serde_json::json!(["-c", script])));
    let state = &lab["State"];
    assert_eq!((&state["Status"], &state["Running"], &state["ExitCode"]), (&"running".into(), &true.into(), &0.into()));
    assert!(state["Pid"].as_u64().unwrap() > 1 && state["StartedAt"].as_str().unwrap().starts_with("20"));
    assert_eq!((&state["FinishedAt"], &state["Error"]), (&"0001-01-01T00:00:00Z".into(), &"".into()));
    let config = &lab["Config"];
    assert_eq!(
        (&config["Image"], &config["User"], &config["WorkingDir"]),
        (&"box".into(), &"1:2".into(), &"/tmp".into())
    );
    assert_eq!((&config["Cmd"], &config["Hostname"]), (&serde_json::json!(["sh", "-c", script]), &"desk".into()));
    assert!(config["Env"].as_array().unwrap().contains(&"A=1".into()) && config["Labels"]["n"] == "1");
    let host_config = &lab["HostConfig"];
    assert_eq!((&host_config["Memory"], &host_config["NetworkMode"]), (&(64 << 20).into(), &"none".into()));
    assert_eq!(host_config["RestartPolicy"], serde_json::json!({"Name": "on-failure", "MaximumRetryCount": 3}));
    assert_eq!(host_config["Binds"], serde_json::json!(["data:/data:ro"]));
    let mount = &lab["Mounts"][0];
    assert_eq!(
        (&mount["Type"], &mount["Name"], &mount["Destination"], &mount["RW"]),
        (&"volume".into(), &"data".into(), &"/data".into(), &false.into())
    );
    assert_eq!(mount["Source"], host.dir.join("root/volumes/data").to_str().unwrap());
    assert!(lab["Gpurun"]["Limits"].as_array().unwrap().iter().any(|row| row["flag"] == "--memory"));

    let format = |format: &str| host.ok(&["inspect", "-f", format, "lab"]);
    assert_eq!(format("{{.State.Status}} {{.State.Running}} {{.Name}}"), "running true /lab");
    assert_eq!(format("{{json .Config.Labels}}"), r#"{"n":"1"}"#);
    assert_eq!(format("{{.Config.Labels.none}}|{{index .Config.Labels \"none\"}}"), "<no value>|");
    assert_eq!(format("{{range .Mounts}}{{.Name}}:{{.Destination}} {{end}}"), "data:/data");
    assert_eq!(format("{{range $net, $conf := .NetworkSettings.Networks}}{{$net}}{{end}}"), "none");
    assert_eq!(json(&format("json"))["Id"], id);
    assert!(host.fails(1, &["inspect", "-f", "{{.Stat}}", "lab"]).contains("there is no field `Stat`"));
    let sized = json(&host.ok(&["inspect", "--size", "lab"]));
    assert!(sized[0]["SizeRootFs"].as_u64().unwrap() > 0 && lab.get("SizeRw").is_none());

    // Of a kind, and what is missing.
    assert_eq!(json(&host.ok(&["inspect", "--type", "image", "box"]))[0]["RepoTags"][0], "box:latest");
    assert_eq!(
        host.ok(&["inspect", "--type", "volume", "-f", "{{.Mountpoint}}", "data"]),
        mount["Source"].as_str().unwrap()
    );
    assert!(host.fails(1, &["inspect", "--type", "container", "box"]).contains("there is no container `box`"));
    let answer = host.run(&["inspect", "lab", "nosuch"]);
    assert!(answer.code == 1 && json(&answer.out).as_array().unwrap().len() == 1, "{}", answer.err);
    let answer = host.run(&["inspect", "nosuch"]);
    assert_eq!((answer.code, answer.out.trim()), (1, "[]"));

    host.ok(&["rm", "-f", "lab"]);
    let text = host.ok(&["run", "-d", "--name", "web", "-p", "127.0.0.1::80", "box", "sleep", "1000"]);
    let port = host.ok(&["inspect", "-f", r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#, "web"]);
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{port} {text}");
    let ip = host.ok(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "web"]);
    assert_eq!(ip, host.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]));
    assert!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
}

/// The calls of Visual Studio Code's "Attach to Running Container".
fn editor() {
    let host = Host::with_box();
    let id = run(&host, &["--name", "lab", "-l", "devcontainer.local_folder=/work", "box", "sleep", "1000"]);
    json(&host.ok(&["version", "--format", "{{json .}}"]));
    assert_eq!(host.ok(&["ps", "-q", "-a", "--filter", "label=devcontainer.local_folder=/work"]), id[..12]);
    assert_eq!(host.ok(&["ps", "-q", "-a", "--filter", "label=devcontainer.local_folder=/other"]), "");
    assert_eq!(json(&host.ok(&["ps", "--no-trunc", "--format", "{{json .}}"]))["ID"], id);
    let container = json(&host.ok(&["inspect", "--type", "container", &id]))[0].clone();
    for path in [
        "/Id",
        "/Created",
        "/Name",
        "/State/Status",
        "/State/StartedAt",
        "/State/Pid",
        "/State/ExitCode",
        "/Image",
        "/Config/Image",
        "/Config/User",
        "/Config/Env",
        "/Config/Labels",
        "/Config/Entrypoint",
        "/Config/Cmd",
        "/Config/WorkingDir",
        "/Mounts",
        "/NetworkSettings/Ports",
    ] {
        assert!(container.pointer(path).is_some(), "{path}: {container:#}");
    }
    let image = json(&host.ok(&["inspect", "--type", "image", container["Image"].as_str().unwrap()]))[0].clone();
    assert_eq!(image["Id"], container["Image"]);
    assert_eq!(host.ok(&["exec", "-i", "-u", "root", "-e", "A=1", &id, "/bin/sh", "-c", "echo $A"]), "1");
}

fn create() {
    let host = Host::with_box();
    let id = host.ok(&[
        "create",
        "--name",
        "lab",
        "--network",
        "none",
        "-v",
        "/anon",
        "box",
        "sh",
        "-c",
        "echo $0; cat /f; exit 3",
        "-h",
    ]);
    assert_eq!(id.len(), 64);
    assert_eq!(host.ok(&["ps", "-aq", "--filter", "status=created", "--no-trunc"]), id);
    assert_eq!(host.ok(&["ps", "-q"]), "");
    assert_eq!(host.inspect("lab")["State"]["Status"], "created");
    assert!(host.fails(125, &["create", "--name", "lab", "--network", "none", "box"]).contains("is taken"));
    // It is there for every command, and nothing of it runs.
    assert_eq!(host.leftovers(), "");
    std::fs::write(host.dir.join("f"), "file\n").unwrap();
    host.ok(&["cp", "f", "lab:/f"]);
    assert_eq!(host.ok(&["ps", "-aq", "--no-trunc"]), id);
    let answer = host.run(&["start", "-a", "lab"]);
    assert_eq!((answer.code, answer.out.as_str()), (3, "-h\nfile\n"), "{}", answer.err);
    host.ok(&["rm", "lab"]);
    // A first start that fails keeps it.
    host.ok(&["create", "--name", "bad", "--network", "none", "box", "/nosuch"]);
    host.fails(1, &["start", "bad"]);
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "bad");
    host.ok(&["rm", "bad"]);
    assert!(host.fails(125, &["create", "-d", "box"]).contains("`gpurun create` starts nothing"));
    assert!(host.fails(125, &["create", "--memory", "1", "box"]).contains("6MB"));
    // With --rm, it is gone when it ends.
    host.ok(&["create", "--rm", "--name", "once", "--network", "none", "box", "true"]);
    host.ok(&["start", "once"]);
    eventually("it is gone", || host.ok(&["ps", "-aq"]).is_empty());
}

fn port_and_top() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "web", "-p", "18080:80", "-p", "18053:53/udp", "box", "sleep", "1000"]);
    assert_eq!(host.ok(&["port", "web"]), "53/udp -> 0.0.0.0:18053\n80/tcp -> 0.0.0.0:18080");
    assert_eq!(host.ok(&["port", "web", "80"]), "0.0.0.0:18080");
    assert_eq!(host.ok(&["port", "web", "53/udp"]), "0.0.0.0:18053");
    assert!(host.fails(1, &["port", "web", "81"]).contains("does not publish the port 81/tcp"));
    assert!(host.fails(2, &["port", "web", "x"]).contains("is not a port"));
    assert_eq!(
        host.ok(&["ps", "--filter", "publish=80", "--format", "{{.Ports}}"]),
        "0.0.0.0:18080->80/tcp, 0.0.0.0:18053->53/udp"
    );
    assert_eq!(host.ok(&["ps", "-q", "--filter", "publish=81"]), "");

    let pid = host.inspect("web")["State"]["Pid"].to_string();
    let text = host.ok(&["top", "web"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("PID") && lines[1].contains("sleep 1000"), "{text}");
    assert_eq!(lines[1].split_whitespace().nth(1), Some(pid.as_str()));
    let text = host.ok(&["top", "web", "-o", "pid,cmd"]);
    assert!(text.lines().nth(1).unwrap().trim_start().starts_with(&format!("{pid} sleep")), "{text}");
    assert!(host.fails(2, &["top", "web", "-o", "cmd"]).contains("no column PID"));
    host.fails(2, &["top", "web", "--nosuch"]);
    assert!(host.fails(2, &["container", "top"]).contains("gpurun top --once"));
    host.ok(&["stop", "-t", "0", "web"]);
    assert!(host.fails(1, &["top", "web"]).contains("is not running"));
    assert_eq!(host.ok(&["port", "web"]), "");
}

fn logs() {
    let host = Host::with_box();
    host.ok(&["run", "--name", "lab", "--network", "none", "box", "sh", "-c", "echo one; sleep 1.2; echo two"]);
    let times: Vec<String> =
        host.ok(&["logs", "-t", "lab"]).lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(host.ok(&["logs", "--since", &times[1], "lab"]), "two");
    assert_eq!(host.ok(&["logs", "--until", &times[1], "lab"]), "one");
    assert_eq!(host.ok(&["logs", "--since", "1h", "lab"]), "one\ntwo");
    assert_eq!(host.ok(&["logs", "--until", "1h", "lab"]), "");
    assert_eq!(host.ok(&["logs", "--since", &times[0], "-n", "1", "lab"]), "two");
    assert!(host.fails(2, &["logs", "--since", "yesterday", "lab"]).contains("`--since yesterday` is not a time"));
    // Following ends at the time, although the container does not.
    run(&host, &["--name", "long", "box", "sh", "-c", "while true; do echo x; sleep 0.1; done"]);
    let until = (std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2).to_string();
    assert!(host.ok(&["logs", "-f", "--until", &until, "long"]).starts_with("x\nx"));
}

fn log_details() {
    let host = Host::with_box();
    let options = ["--log-opt", "labels=course,nosuch", "--log-opt", "env-regex=^GREET"];
    let rest = ["-l", "course=a b", "-l", "other=1", "-e", "GREETING=x=y", "--name", "lab", "box", "echo", "hello"];
    host.ok(&[&["run"], &NO_NET[..], &options, &rest].concat());
    // docker encodes names and values as in the query of a URL.
    assert_eq!(host.ok(&["logs", "--details", "lab"]), "GREETING=x%3Dy,course=a+b hello");
    let line = host.ok(&["logs", "--details", "-t", "lab"]);
    assert!(line.ends_with("Z GREETING=x%3Dy,course=a+b hello"), "{line}");
    assert_eq!(host.ok(&["logs", "lab"]), "hello");
    let shown = host.inspect("lab")["HostConfig"]["LogConfig"]["Config"].clone();
    assert_eq!((&shown["labels"], &shown["env-regex"]), (&"course,nosuch".into(), &"^GREET".into()));
    host.ok(&["run", "--network", "none", "--name", "plain", "box", "echo", "hello"]);
    assert_eq!(host.run(&["logs", "--details", "plain"]).out, " hello\n");
    assert!(host.fails(125, &["run", "--log-opt", "env-regex=(", "box"]).contains("the expression is not valid"));
}

fn stop() {
    let host = Host::with_box();
    let script = "trap 'echo usr1; exit 7' USR1; echo up; while true; do sleep 0.1; done";
    let start = |name: &str| {
        run(&host, &["--name", name, "box", "sh", "-c", script]);
        eventually("it is up", || host.ok(&["logs", name]).contains("up"));
    };
    start("one");
    assert_eq!(host.ok(&["stop", "--signal", "USR1", "one"]), "one");
    assert_eq!(host.inspect("one")["State"]["ExitCode"], 7);
    // A signal that is ignored is followed by SIGKILL.
    host.ok(&["start", "one"]);
    host.ok(&["stop", "-s", "SIGWINCH", "-t", "1", "one"]);
    assert_eq!(host.inspect("one")["State"]["ExitCode"], 137);
    assert!(host.fails(2, &["stop", "--signal", "NOSUCH", "one"]).contains("is not a signal"));
    start("two");
    start("three");
    assert_eq!(host.ok(&["kill", "-s", "WINCH", "--all"]).lines().count(), 2);
    assert_eq!(host.ok(&["stop", "-t", "0", "-a"]).lines().count(), 2);
    assert_eq!((host.ok(&["ps", "-q"]), host.ok(&["ps", "-aq"]).lines().count()), (String::new(), 3));
    host.ok(&["start", "two"]);
    let answer = host.run(&["rm", "--all"]);
    assert!(
        answer.code != 0 && answer.out.lines().count() == 2 && answer.err.contains("`two` is running"),
        "{}",
        answer.err
    );
    assert_eq!(host.ok(&["rm", "-f", "-v", "-a"]).lines().count(), 1);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert_eq!(host.ok(&["stop", "-a"]), "");
    host.fails(2, &["stop"]);
}

fn wait() {
    let host = Host::with_box();
    let script = "until [ -e /end ]; do sleep 0.1; done; exit 4";
    host.ok(&["create", "--name", "lab", "--network", "none", "box", "sh", "-c", script]);
    let wait = |condition: &str| {
        let mut command = host.command(&["wait", "--condition", condition, "lab"]);
        command.stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let (running, removed) = (wait("running"), wait("removed"));
    host.ok(&["start", "lab"]);
    assert_eq!(crate::host::answer(running.wait_with_output().unwrap()).out, "-1\n");
    let descriptors = format!("/proc/{}/fd", removed.id());
    eventually("the second one listens to the supervisor", || {
        let mut links =
            std::fs::read_dir(&descriptors).unwrap().filter_map(|entry| entry.ok()?.path().read_link().ok());
        links.any(|link| link.to_string_lossy().starts_with("socket:"))
    });
    // The end of the container kills `touch` too.
    host.run(&["exec", "lab", "touch", "/end"]);
    assert_eq!(host.ok(&["wait", "lab"]), "4");
    assert_eq!(host.ok(&["wait", "--condition", "exited", "lab"]), "4");
    host.ok(&["rm", "lab"]);
    assert_eq!(crate::host::answer(removed.wait_with_output().unwrap()).out, "4\n");
    host.fails(2, &["wait", "--condition", "nosuch", "lab"]);
}

fn volumes() {
    let host = Host::with_box();
    assert_eq!(host.ok(&["volume", "create", "--label", "course=cgroups", "data"]), "data");
    assert_eq!(host.ok(&["volume", "create", "data"]), "data", "it exists already");
    let random = host.ok(&["volume", "create"]);
    assert_eq!(random.len(), 64);
    host.ok(&["volume", "rm", &random]);
    // Its first use fills it with the image's files, and the second does not.
    let script = "ls /bin/busybox && rm /bin/busybox; echo mine >/bin/file";
    host.ok(&["run", "--rm", "--network", "none", "-v", "data:/copy", "box", "true"]);
    host.ok(&["volume", "create", "bin"]);
    host.ok(&["run", "--rm", "--network", "none", "-v", "bin:/bin", "box", "sh", "-c", script]);
    let dir = host.dir.join("root/volumes/bin");
    assert!(dir.join("file").exists() && !dir.join("busybox").exists(), "{dir:?}");
    host.ok(&[
        "run",
        "-d",
        "--name",
        "lab",
        "--network",
        "none",
        "-v",
        "data:/data",
        "-v",
        "/anon",
        "box",
        "sleep",
        "1000",
    ]);
    let id = host.ok(&["ps", "-q"]);
    let listed = |args: &[&str]| host.ok(&[&["volume", "ls", "-q"], args].concat()).replace('\n', " ");
    let anonymous = host.ok(&["inspect", "-f", "{{range .Mounts}}{{.Name}} {{end}}", "lab"]);
    let anonymous = anonymous.split(' ').find(|name| name.starts_with(&id)).unwrap();
    assert_eq!(listed(&[]), format!("bin data {anonymous}"));
    assert_eq!(listed(&["--filter", "dangling=true"]), "bin");
    assert_eq!(listed(&["--filter", "label=course"]), "data");
    assert_eq!(listed(&["--filter", "name=at"]), "data");
    assert_eq!(listed(&["--filter", "name=^d.t"]), "data");
    assert_eq!(listed(&["--filter", "name=["]), "", "no regular expression");
    assert_eq!(host.ok(&["volume", "ls"]).lines().next().unwrap(), "DRIVER    VOLUME NAME");
    assert_eq!(
        host.ok(&["volume", "ls", "--format", "{{.Driver}} {{.Label \"course\"}}", "-f", "name=data"]),
        "local cgroups"
    );
    let shown = json(&host.ok(&["volume", "inspect", "data"]));
    assert_eq!((&shown[0]["Name"], &shown[0]["Driver"]), (&"data".into(), &"local".into()));
    assert_eq!((&shown[0]["Gpurun"]["Containers"][0], &shown[0]["UsageData"]["RefCount"]), (&"lab".into(), &1.into()));
    assert_eq!(host.ok(&["volume", "inspect", "-f", "{{.Labels.course}}", "data"]), "cgroups");
    let error = host.fails(1, &["volume", "rm", "data"]);
    assert!(error.contains("the container `lab` uses it") && error.contains("gpurun rm lab"), "{error}");
    assert!(host.fails(1, &["volume", "rm", anonymous]).contains("it belongs to the container `lab`"));
    assert!(host.fails(1, &["volume", "rm", "nosuch"]).contains("there is no volume `nosuch`"));
    host.ok(&["volume", "rm", "-f", "nosuch"]);
    assert!(host.fails(2, &["volume", "create", "--driver", "nfs", "x1"]).contains("no volume driver"));
    assert!(host.fails(2, &["volume", "create", "../x"]).contains("not a volume's name"));
    assert!(host.ok(&["volume", "prune", "-f"]).contains("Total reclaimed space: 0B"));
    let pruned = host.ok(&["volume", "prune", "-f", "-a"]);
    assert!(pruned.starts_with("Deleted Volumes:\nbin\n\nTotal reclaimed space: "), "{pruned}");
    host.ok(&["rm", "-f", "-v", "lab"]);
    assert_eq!(listed(&[]), "data");
    host.ok(&["volume", "rm", "data"]);
    assert_eq!(std::fs::read_dir(host.dir.join("root/volumes")).unwrap().count(), 0);
    // A volume without a name is anonymous, so that `prune` removes it when nothing uses it.
    let unnamed = ["", "--label=a=b"].map(|flag| host.ok(&["volume", "create", flag]));
    host.ok(&["volume", "create", "named"]);
    assert_eq!(host.ok(&["volume", "ls", "-q", "-f", "label=com.docker.volume.anonymous"]).lines().count(), 2);
    host.ok(&["create", "--name", "user", "--network", "none", "-v", &format!("{}:/data", unnamed[0]), "box", "true"]);
    assert!(host.ok(&["volume", "prune", "-f"]).contains(&format!("Deleted Volumes:\n{}\n", unnamed[1])));
    host.ok(&["rm", "user"]);
    assert!(host.ok(&["volume", "prune", "-f"]).contains(&unnamed[0]));
    assert_eq!(listed(&[]), "named");
    // The answer may come through a pipe.
    let answer = host.with_input(&["volume", "prune", "-a"], b"n\n");
    assert!(answer.code == 1 && answer.err.contains("nothing was removed"), "{}", answer.err);
    let answer = host.with_input(&["volume", "prune", "-a"], b"y\n");
    assert!(answer.code == 0 && answer.out.contains("named"), "{}", answer.err);
    assert!(host.fails(2, &["volume", "prune", "-a"]).contains("standard input is not a terminal"));
}

fn prune() {
    let host = Host::with_box();
    run(&host, &["--name", "up", "-l", "keep=1", "box", "sleep", "1000"]);
    host.ok(&["run", "--name", "ended", "--network", "none", "-v", "named:/data", "box", "sh", "-c", "echo x >/file"]);
    let ended = host.inspect("ended")["Id"].as_str().unwrap().to_owned();
    host.ok(&["create", "--name", "made", "--network", "none", "-l", "keep=1", "box", "true"]);
    let df = host.ok(&["system", "df"]);
    let titles: Vec<&str> = df.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    assert_eq!(
        host.ok(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]),
        "Images 1 1\nContainers 3 1\nLocal Volumes 1 1\nBuild Cache 0 0"
    );
    let df = host.ok(&["system", "df", "-v"]);
    let sections =
        ["Images space usage:", "Containers space usage:", "Local Volumes space usage:", "Build cache usage: 0B"];
    let found: Vec<&str> = df.lines().filter(|line| line.contains(" usage:")).collect();
    assert_eq!(found, sections, "{df}");
    let row = df.lines().find(|line| line.ends_with(" ended")).unwrap();
    assert!(row.starts_with(&ended[..12]) && row.contains("   1   "), "{row}");
    assert!(df.lines().any(|line| line.starts_with("named ") && line.contains("   1   ")), "{df}");
    assert_eq!(
        host.ok(&["system", "df", "-v", "--format", "{{range .Images}}{{.Repository}} {{.Containers}}{{end}}"]),
        "box 3"
    );
    assert!(host.fails(2, &["container", "prune"]).contains("gpurun container prune --force"));
    let pruned = host.ok(&["container", "prune", "-f", "--filter", "label!=keep"]);
    assert!(pruned.starts_with(&format!("Deleted Containers:\n{ended}\n\nTotal reclaimed space: ")), "{pruned}");
    assert_eq!(host.ok(&["container", "prune", "-f", "--filter", "until=1h"]), "Total reclaimed space: 0B");
    let pruned = host.ok(&["system", "prune", "-f", "--volumes", "--all"]);
    assert!(pruned.contains("Deleted Containers:") && pruned.contains("Deleted Volumes:\nnamed\n"), "{pruned}");
    assert_eq!(host.ok(&["ps", "-a", "--format", "{{.Names}}"]), "up");
    assert_eq!(host.ok(&["images", "--format", "{{.Repository}}"]), "box", "it is used");
    host.ok(&["rm", "-f", "up"]);
    let pruned = host.ok(&["system", "prune", "-af"]);
    assert!(pruned.contains("Deleted Images:\nUntagged: box:latest"), "{pruned}");
}

fn refused() {
    let host = Host::new();
    for (line, want) in [
        ("swarm init", "gpurun has no command `swarm`"),
        ("context ls", "gpurun has no command `context`"),
        ("plugin ls", "gpurun has no command `plugin`"),
        ("trust sign x", "gpurun has no command `trust`"),
        ("checkpoint create x y", "gpurun has no command `checkpoint`"),
        ("stack deploy x", "gpurun has no command `stack`"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let error = host.fails(2, &words);
        assert!(error.starts_with(&format!("error: {want}\n\nhint: ")) && error.lines().count() == 3, "{error}");
        assert!(!error.contains("tip:"), "{error}");
    }
}

fn events() {
    let host = Host::with_box();
    host.run(&["run", "--name", "past", "--network", "none", "-l", "n=1", "box", "sh", "-c", "exit 3"]);
    let until = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
    };
    let since = |args: &[&str]| {
        let until = until();
        host.ok(&[&["events", "--since", "1h", "--until", &until], args].concat())
    };
    let line = since(&["--format", "{{json .}}", "--filter", "event=die"]);
    let event = json(&line);
    assert_eq!(
        (&event["Type"], &event["Action"], &event["status"]),
        (&"container".into(), &"die".into(), &"die".into())
    );
    let attributes = &event["Actor"]["Attributes"];
    assert_eq!(
        (&attributes["name"], &attributes["image"], &attributes["exitCode"], &attributes["n"]),
        (&"past".into(), &"box".into(), &"3".into(), &"1".into())
    );
    assert_eq!(event["Actor"]["ID"], host.inspect("past")["Id"]);
    assert_eq!(since(&["--format", "{{.Action}}"]), "create\nstart\ndie");
    assert_eq!(since(&["--format", "{{.Actor.Attributes.name}}", "--filter", "label=n=2"]), "");
    assert_eq!(since(&["--format", "{{.Action}}", "--filter", "container=past", "--filter", "event=start"]), "start");
    assert_eq!(since(&["--filter", "type=volume"]), "");
    assert_eq!(host.ok(&["events", "--since", "1h", "--until", "30m"]), "");
    // As they happen, and the end comes by itself. `--since` covers a start before the first look.
    let later = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 6;
    let mut command = host.command(&[
        "events",
        "--since",
        "1m",
        "--until",
        &later.to_string(),
        "--filter",
        "container=now",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap())).map(Result::unwrap);
    host.ok(&["run", "--rm", "--name", "other", "--network", "none", "box", "true"]);
    run(&host, &["--name", "now", "box", "sleep", "1000"]);
    assert!(lines.by_ref().any(|line| line == "start now"), "it ended without the start");
    host.ok(&["rm", "-f", "now"]);
    let rest: Vec<String> = lines.collect();
    assert!(rest.contains(&"destroy now".to_owned()) && rest.iter().all(|line| line.ends_with(" now")), "{rest:?}");
    assert!(child.wait().unwrap().success());
    host.fails(2, &["events", "--filter", "nosuch=1"]);
}

fn stats() {
    let host = Host::with_box();
    let id = run(&host, &["--name", "lab", "-m", "64m", "box", "sleep", "1000"]);
    let row = json(&host.ok(&["stats", "--no-stream", "--no-trunc", "--format", "{{json .}}"]));
    assert_eq!((&row["ID"], &row["Name"], &row["PIDs"]), (&id.into(), &"lab".into(), &"1".into()));
    assert!(row["MemUsage"].as_str().unwrap().ends_with(" / 64MiB") && row["CPUPerc"].as_str().unwrap().ends_with('%'));
    let table = host.ok(&["stats", "--no-stream", "--format", r"table {{.Name}}\t{{.MemPerc}}"]);
    assert!(table.starts_with("NAME      MEM %\nlab       "), "{table}");
    // Without a limit, docker shows the host's memory.
    run(&host, &["--name", "free", "box", "sleep", "1000"]);
    let usage = host.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.MemPerc}}", "free"]);
    assert!(usage.contains("iB ") && !usage.contains("/ 0B"), "{usage}");
}

fn builds() {
    let host = Host::with_box();
    std::fs::create_dir(host.dir.join("context")).unwrap();
    std::fs::write(host.dir.join("context/Dockerfile"), "FROM box\n").unwrap();
    // BuildKit's boolean forms.
    host.ok(&["build", "-q", "--pull=false", "context"]);
    assert!(host.fails(1, &["build", "--pull=true", "context"]).contains("cannot pull"));
    assert_eq!(host.with_input(&["build", "-q", "-"], b"FROM box\n").code, 0);
    std::fs::write(host.dir.join("context/Limited"), "FROM box\nRUN ulimit -n >/soft; ulimit -H -n >/hard\n").unwrap();
    host.ok(&["build", "-q", "-t", "limited", "-f", "Limited", "--ulimit", "nofile=101:102", "context"]);
    let limits = host.ok(&["run", "--rm", "--network", "none", "limited", "cat", "/soft", "/hard"]);
    assert_eq!(limits, "101\n102");
    assert!(host.fails(2, &["build", "--ulimit", "nofile=3:2", "context"]).contains("above the hard limit"));
    std::fs::write(
        host.dir.join("context/compose.yaml"),
        "services:\n  web: {image: other, build: {context: ., dockerfile: Limited, no_cache: true, ulimits: {nofile: 103}}}\n",
    )
    .unwrap();
    host.ok(&["compose", "--project-directory", "context", "-f", "context/compose.yaml", "build"]);
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "other", "cat", "/soft", "/hard"]), "103\n103");
    for name in ["Limited", "compose.yaml"] {
        std::fs::remove_file(host.dir.join("context").join(name)).unwrap();
    }
    context_on_stdin(&host);
}

/// podman's ways to name containers.
fn chosen() {
    let host = Host::with_box();
    let create = |name: &str, label: &str| {
        let file = format!("{name}.id");
        let args = [
            "create",
            "--network",
            "none",
            "--name",
            name,
            "-l",
            label,
            "--cidfile",
            &file,
            "--init",
            "box",
            "sleep",
            "1000",
        ];
        host.ok(&args)
    };
    let ids = [create("one", "kind=a"), create("two", "kind=b"), create("three", "kind=b")];
    let running = || {
        let mut names: Vec<String> = host.ok(&["ps", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(host.ok(&["start", "--filter", "label=kind=b"]), format!("{}\n{}", ids[1], ids[2]));
    assert_eq!(running(), "three two");
    assert_eq!(host.ok(&["start", "--all"]), ids[0], "only those that do not run");
    assert_eq!(
        host.ok(&["stop", "-t", "0", "--cidfile", "one.id", "--cidfile", "two.id"]),
        format!("{}\n{}", ids[0], ids[1])
    );
    assert_eq!(host.ok(&["pause", "--all"]), ids[2]);
    assert_eq!(host.ok(&["pause", "--all"]), "", "it is paused already");
    assert_eq!(host.ok(&["unpause", "--all"]), ids[2]);
    host.ok(&["restart", "-t", "0", "--running"]);
    assert_eq!(running(), "three");
    host.ok(&["restart", "-t", "0", "--all"]);
    assert_eq!(running(), "one three two");
    assert_eq!(host.ok(&["kill", "--all", "--filter", "label=kind=a"]), ids[0]);
    assert_eq!(running(), "three two");
    host.ok(&["update", "--restart", "on-failure:3", "one"]);
    assert_eq!(host.ok(&["ps", "-aq", "--no-trunc", "--filter", "restart-policy=on-failure"]), ids[0]);
    assert_eq!(host.ok(&["start", "--filter", "restart-policy=always"]), "");
    assert!(host.fails(2, &["start", "--filter", "restart-policy=sometimes"]).contains("use one of: no, always"));
    // What does not exist.
    assert!(host.fails(1, &["stop", "nosuch"]).contains("nosuch"));
    assert_eq!(host.ok(&["stop", "-t", "0", "--ignore", "nosuch", "two"]), "two");
    assert!(host.fails(1, &["rm", "--cidfile", "no.id"]).contains("cannot read the container's ID in `no.id`"));
    assert_eq!(host.ok(&["rm", "--ignore", "--cidfile", "no.id", "--cidfile", "one.id"]), ids[0]);
    assert_eq!(host.ok(&["wait", "--ignore", "nosuch"]), "-1");
    assert!(host.fails(2, &["stop"]).contains("CONTAINER"));
    // With a time, a forced removal lets the container end by itself.
    host.ok(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "tidy",
        "-v",
        "kept:/kept",
        "box",
        "sh",
        "-c",
        "trap 'echo done >/kept/file; exit' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    eventually("it is ready", || host.ok(&["logs", "tidy"]) == "ready");
    host.ok(&["rm", "-f", "-t", "60", "tidy"]);
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "-v", "kept:/kept", "box", "cat", "/kept/file"]), "done");
    host.ok(&["rm", "-f", "-t", "0", "--all", "--ignore"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    // Volumes and images.
    host.ok(&["volume", "create", "--ignore", "kept"]);
    host.ok(&["create", "--name", "user", "--network", "none", "-v", "used:/used", "box", "true"]);
    host.ok(&["volume", "create", "used"]);
    assert_eq!(host.ok(&["volume", "rm", "-a"]), "kept");
    host.ok(&["tag", "box", "other:1"]);
    assert!(host.fails(1, &["rmi", "--all"]).contains("user"), "a container uses it");
    host.ok(&["rm", "user"]);
    assert_eq!(host.ok(&["rmi", "--all"]).lines().count(), 3);
    assert_eq!(host.ok(&["images", "-q"]), "");
    host.ok(&["rmi", "--all"]);
    host.ok(&["rmi", "--ignore", "nosuch"]);
}

fn between() {
    let host = Host::with_box();
    run(
        &host,
        &[
            "--name",
            "from",
            "box",
            "sh",
            "-c",
            "mkdir -p /data/sub; echo x >/data/sub/file; ln -s /etc/passwd /data/link; chown -R 7:7 /data; echo ready; exec sleep 1000",
        ],
    );
    eventually("it is ready", || host.ok(&["logs", "from"]) == "ready");
    host.ok(&[
        "create",
        "--name",
        "to",
        "--network",
        "none",
        "-v",
        "kept:/kept",
        "box",
        "sh",
        "-c",
        "stat -c %u /copy/sub/file; cat /copy/sub/file; readlink /copy/link",
    ]);
    host.ok(&["cp", "from:/data", "to:/copy"]);
    assert_eq!(host.ok(&["start", "-a", "to"]), "0\nx\n/etc/passwd");
    host.ok(&["cp", "-a", "from:/data/.", "to:/copy"]);
    assert_eq!(host.ok(&["start", "-a", "to"]), "7\nx\n/etc/passwd");
    // Within one container, and into a directory that keeps the name.
    host.ok(&["cp", "from:/data/sub/file", "from:/tmp/other"]);
    host.ok(&["cp", "from:/data/sub", "from:/tmp"]);
    assert_eq!(host.ok(&["exec", "from", "cat", "/tmp/other", "/tmp/sub/file"]), "x\nx");
    // No link of a container leads to the host or to the other container's root.
    host.ok(&["exec", "from", "ln", "-s", "../../../../../..", "/data/up"]);
    host.ok(&["cp", "from:/data/sub/file", "to:/copy/link"]);
    assert_eq!(host.ok(&["start", "-a", "to"]), "7\nx\n/etc/passwd", "the link's target is written, in the container");
    assert_ne!(std::fs::read_to_string("/etc/passwd").unwrap(), "x\n");
    assert!(host.fails(1, &["cp", "from:/none", "to:/"]).contains("`from:/none` does not exist"));
    assert!(host.fails(1, &["cp", "from:/data", "to:/no/where"]).contains("`to:/no` does not exist"));
    assert!(host.fails(1, &["cp", "from:/data", "nosuch:/"]).contains("nosuch"));
    host.ok(&["rm", "-f", "--all"]);
    assert_eq!(host.leftovers(), "");
}

fn sorted_lists() {
    let host = Host::with_box();
    // Values may begin with a hyphen, names with a slash, and templates have docker's `ID`.
    let id = host.ok(&[
        "create",
        "--network",
        "none",
        "--name",
        "/slash",
        "--ulimit",
        "core=-1",
        "--group-add",
        "1,2",
        "box",
        "id",
        "-G",
    ]);
    assert_eq!(
        host.ok(&["inspect", "--format", "-{{.ID}} {{(index .HostConfig.Ulimits 0).Hard}}", "/slash"]),
        format!("-{id} -1")
    );
    assert_eq!(host.ok(&["start", "-a", "slash"]), "0 1 2");
    assert_eq!(host.ok(&["events", "--since", "1h", "--stream=false"]).lines().count(), 3);
    host.ok(&["rm", "/slash"]);
    let say = |entrypoint: &str| {
        host.ok(&["run", "--rm", "--network", "none", "--entrypoint", entrypoint, "box", "and more"])
    };
    assert_eq!(say("[\"echo\", \"words\"]"), "words and more");
    assert_eq!(say("echo"), "and more");
    let error = host.fails(127, &["run", "--rm", "--network", "none", "--entrypoint", "[list", "box"]);
    assert!(error.contains("`[list`"), "what is no list is a program: {error}");
    host.ok(&["tag", "box", "n1:1", "n2:2"]);
    assert_eq!(host.ok(&["rmi", "n1:1", "n2:2"]), "Untagged: n1:1\nUntagged: n2:2");
    for name in ["b1", "c1", "a1"] {
        host.ok(&["create", "--network", "none", "--name", name, "box", "sleep", &format!("1{name}")]);
    }
    let names = |by: &str| host.ok(&["ps", "-a", "--sort", by, "--format", "{{.Names}}"]).replace('\n', " ");
    assert_eq!(
        [names("created"), names("names"), names("command"), names("runningfor")],
        ["a1 c1 b1", "a1 b1 c1", "a1 b1 c1", "b1 c1 a1"]
    );
    assert!(host.fails(2, &["ps", "--sort", "age"]).contains("age"));
    assert_eq!(host.ok(&["ps", "-a", "--noheading"]).lines().count(), 3);
    assert_eq!(host.ok(&["ps", "-a", "--noheading", "--format", "table {{.Names}}"]), "a1\nc1\nb1");
    host.ok(&["tag", "box", "a/first:2"]);
    host.ok(&["tag", "box", "z/last:1"]);
    let images =
        |by: &str| host.ok(&["images", "-n", "--sort", by, "--format", "{{.Repository}}:{{.Tag}}"]).replace('\n', " ");
    assert_eq!(
        [images("repository"), images("tag")],
        ["a/first:2 box:latest z/last:1", "z/last:1 a/first:2 box:latest"]
    );
    assert!(!host.ok(&["images", "--noheading"]).contains("REPOSITORY"));
    assert!(!host.ok(&["network", "ls", "-n"]).contains("NETWORK ID"));
    host.ok(&["volume", "create", "v1"]);
    assert_eq!(host.ok(&["volume", "ls", "-n"]), "local     v1");
}

fn tar(dir: &std::path::Path, args: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new("tar").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `tar c . | docker build -`: standard input is the context, or only a Containerfile.
fn context_on_stdin(host: &Host) {
    let dir = host.dir.join("context");
    std::fs::write(dir.join("Dockerfile"), "FROM box\nCOPY . /context/\nRUN ls -A /context >/list\n").unwrap();
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::write(dir.join("sub/Other"), "FROM box\nCOPY sub/kept /kept\n").unwrap();
    for name in ["kept", "secret"] {
        std::fs::write(dir.join("sub").join(name), name).unwrap();
    }
    std::fs::write(dir.join(".dockerignore"), "**/secret\nDockerfile\n").unwrap();
    let cat = |image: &str, path: &str| host.ok(&["run", "--rm", "--network", "none", image, "cat", path]);
    for args in
        [&["-c", "."][..], &["-cz", "."], &["-c", "-H", "v7", "."], &["-cJ", "Dockerfile", ".dockerignore", "sub"]]
    {
        let answer = host.with_input(&["build", "-q", "-t", "piped", "-"], &tar(&dir, args));
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        assert_eq!(cat("piped", "/list"), ".dockerignore\nsub", "{args:?}");
        assert_eq!(host.ok(&["run", "--rm", "--network", "none", "piped", "ls", "/context/sub"]), "Other\nkept");
    }
    let archive = tar(&dir, &["-c", "."]);
    for file in ["sub/Other", "./sub/Other", "/sub/Other"] {
        let answer = host.with_input(&["build", "-q", "-t", "other", "-f", file, "-"], &archive);
        assert_eq!(answer.code, 0, "{file}: {}", answer.err);
        assert_eq!(cat("other", "/kept"), "kept");
    }
    assert_eq!(host.with_input(&["build", "-q", "-t", "context", "context", "-f", "-"], b"FROM box\n").code, 0);
    // A file that is not in this directory may be in the context.
    host.ok(&["build", "-q", "-f", "sub/Other", "context"]);
    assert!(host.fails(1, &["build", "-q", "-f", "sub/None", "context"]).contains("cannot read `sub/None`"));
    // No file of this host is read or written.
    std::os::unix::fs::symlink("/etc/passwd", dir.join("Linked")).unwrap();
    let linked = tar(&dir, &["-c", "."]);
    let outside = tar(&dir, &["-cP", "--transform", "s,^,../../,", "Dockerfile"]);
    let empty = tar(&dir, &["-c", "sub"]);
    for (input, args, code, expected) in [
        (&archive, &["-f", "none", "-"][..], 1, "the build context has no `none`"),
        (&archive, &["-f", "../../../etc/passwd", "-"], 1, "the build context has no `../../../etc/passwd`"),
        (&archive, &["-f", "-", "-"], 2, "cannot use `-` as the context and as `--file`"),
        (&archive, &["-f", "-", "context"], 1, "hint: to build from an archive, pass it as the context"),
        (&linked, &["-f", "Linked", "-"], 1, "it is a link to `/etc/passwd`"),
        (&outside, &["-"], 1, "cannot unpack the archive on standard input"),
        (&empty, &["-"], 1, "there is no Containerfile or Dockerfile in the archive on standard input"),
        (&b"FROM box\n".to_vec(), &["-f", "Dockerfile", "-"], 2, "standard input is a Containerfile"),
        (&archive[..700].to_vec(), &["-"], 1, "cannot unpack the archive on standard input"),
        (&b"\x1f\x8bno gzip".to_vec(), &["-"], 1, "cannot unpack the archive on standard input"),
    ] {
        let answer = host.with_input(&[&["build", "-q"], args].concat(), input);
        assert_eq!(answer.code, code, "{args:?}: {}", answer.err);
        assert!(answer.err.contains(expected), "{args:?}: {}", answer.err);
    }
    assert_eq!(std::fs::read_dir(host.dir.join("root/tmp")).unwrap().count(), 0, "the unpacked contexts are gone");
}

fn import() {
    let host = Host::with_box();
    host.ok(&["create", "--name", "lab", "--network", "none", "box", "true"]);
    host.ok(&["export", "-o", "files.tar", "lab"]);
    let id = host.ok(&[
        "import",
        "-c",
        "CMD [\"echo\", \"imported\"]",
        "-c",
        "ENV A=1",
        "-m",
        "by hand",
        "files.tar",
        "made:1",
    ]);
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "made:1"]), "imported");
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "made:1", "sh", "-c", "echo $A"]), "1");
    assert_eq!(host.ok(&["history", "--format", "{{.Comment}}", "made:1"]), "by hand");
    assert!(host.ok(&["images", "--format", "{{.CreatedSince}}", "made:1"]).ends_with(" ago"));
    let archive = std::fs::read(host.dir.join("files.tar")).unwrap();
    let answer = host.with_input(&["image", "import", "-", "piped"], &archive);
    assert_eq!((answer.code, answer.out.len()), (0, 72), "{}", answer.err);
    assert!(host.fails(1, &["import", "nosuch.tar"]).contains("cannot read `nosuch.tar`"));
    let answer = host.with_input(&["import", "-", "bad"], b"this is no archive");
    assert_ne!(answer.code, 0);
    host.fails(2, &["import", "-c", "RUN true", "files.tar"]);
}

/// docker's own client says what commands and flags there are.
fn oracle() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docker-help.py");
    let output = std::process::Command::new("python3").args([script, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
