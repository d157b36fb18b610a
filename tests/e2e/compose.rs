//! `gpurun compose`: services from compose files, with the real binary.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use crate::host::{Answer, Host, answer, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_project_starts_in_order_and_leaves_nothing", life),
    ("containers_are_created_without_being_started", created),
    ("a_dry_run_changes_nothing", dry_run),
    ("variables_are_printed_as_they_are", raw_config),
    ("variables_are_listed_and_files_shown_as_written", listed_config),
    ("only_changed_services_are_replaced", recreation),
    ("dependencies_are_replaced_when_asked", recreated_dependencies),
    ("output_is_shown_of_chosen_services", attached),
    ("limits_are_read_back_like_flags", limits),
    ("services_find_each_other_by_name", names),
    ("up_in_the_foreground_shows_lines_and_stops", foreground),
    ("an_exit_code_comes_from_a_service", exit_code),
    ("ps_shows_the_command_and_the_ports_as_gpurun_ps_does", listed),
    ("exec_run_cp_port_and_kill_find_their_container", commands),
    ("images_are_built_and_the_cache_can_be_left_out", builds),
    ("services_are_paused_and_resumed", pauses),
    ("a_build_reads_the_image_of_another_service", builds_from_services),
    ("secrets_and_configs_are_mounted", secrets),
    ("scale_profiles_and_orphans", scale),
    ("what_gpurun_cannot_do_is_refused_with_its_line", refused),
    ("volumes_of_a_project", volumes),
];

/// A host with a project directory `lab` and its file.
pub fn project(text: &str) -> Host {
    let host = Host::with_box();
    fs::create_dir_all(host.dir.join("lab")).unwrap();
    write(&host, text);
    host
}

pub fn write(host: &Host, text: &str) {
    fs::write(host.dir.join("lab/compose.yaml"), text).unwrap();
}

pub fn compose(host: &Host, args: &[&str]) -> Answer {
    let mut command = host.command(&[&["compose"], args].concat());
    command.current_dir(host.dir.join("lab"));
    answer(command.output().unwrap())
}

#[track_caller]
pub fn ok(host: &Host, args: &[&str]) -> String {
    let answer = compose(host, args);
    assert_eq!(answer.code, 0, "compose {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
    answer.out.trim().to_owned()
}

#[track_caller]
pub fn fails(host: &Host, args: &[&str]) -> String {
    let answer = compose(host, args);
    assert_ne!(answer.code, 0, "compose {args:?}\nstdout: {}", answer.out);
    answer.err
}

pub fn id(host: &Host, name: &str) -> String {
    host.inspect(name)["Id"].as_str().unwrap().to_owned()
}

const THREE: &str = "
services:
  db:
    image: box
    command: sleep 1000
    init: true
  migrate:
    image: box
    command: sh -c 'echo migrated; exit 0'
    depends_on: [db]
  api:
    image: box
    command: [sh, -c, 'echo ready; exec sleep 1000']
    init: true
    environment: {MODE: prod}
    depends_on:
      migrate: {condition: service_completed_successfully}
      db: {condition: service_started}
";

fn life() {
    let host = project(THREE);
    let up = compose(&host, &["up", "-d"]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert_eq!(up.out, "", "what happens is said on standard error");
    let started: Vec<&str> = up.err.lines().filter_map(|line| line.trim().strip_prefix("Container ")).collect();
    assert_eq!(started, ["lab-db-1  Started", "lab-migrate-1  Started", "lab-api-1  Started"]);
    let inspect = host.inspect("lab-api-1").to_string();
    for label in ["com.docker.compose.project", "com.docker.compose.config-hash", "com.docker.compose.depends_on"] {
        assert!(inspect.contains(label), "{label}");
    }
    assert_eq!(ok(&host, &["ps", "--services"]), "api\ndb");
    assert_eq!(ok(&host, &["ps", "--services", "-a"]), "api\ndb\nmigrate");
    let list: serde_json::Value = serde_json::from_str(&ok(&host, &["ls", "--format", "json"])).unwrap();
    assert_eq!(list[0]["Name"], "lab");
    assert!(list[0]["ConfigFiles"].as_str().unwrap().ends_with("lab/compose.yaml"), "{list}");
    assert_eq!(ok(&host, &["ls", "-q", "--filter", "name=la"]), "lab");
    assert_eq!(ok(&host, &["ls", "-q", "--filter", "name=other"]), "");
    let logs = ok(&host, &["logs"]);
    assert!(logs.contains("api-1     | ready") && logs.contains("migrate-1 | migrated"), "{logs}");
    ok(&host, &["stop", "-t", "1"]);
    assert_eq!(ok(&host, &["ps", "-q"]), "");
    ok(&host, &["start"]);
    assert_eq!(ok(&host, &["ps", "--services"]), "api\ndb");
    ok(&host, &["restart", "-t", "1", "api"]);
    assert_eq!(ok(&host, &["ps", "--services"]), "api\ndb");
    ok(&host, &["down", "-t", "1"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
    assert_eq!(host.leftovers(), "");
    assert!(compose(&host, &["down"]).err.contains("nothing to remove"));
}

/// The lines about a project's resources.
fn events(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.code, 0, "{}", answer.err);
    answer.err.lines().map(str::trim).filter(|line| !line.starts_with("gpurun:")).collect()
}

fn created() {
    let host = project(THREE);
    assert_eq!(
        events(&compose(&host, &["create"]))[1..],
        ["Container lab-db-1  Created", "Container lab-migrate-1  Created", "Container lab-api-1  Created"]
    );
    assert_eq!(host.ok(&["ps", "-q"]), "");
    let states = |host: &Host| host.ok(&["ps", "-a", "--format", "{{.State}}"]);
    assert_eq!(states(&host), "created\ncreated\ncreated");
    let ids = |host: &Host| ["lab-db-1", "lab-migrate-1", "lab-api-1"].map(|name| id(host, name));
    let before = ids(&host);
    // What has not changed is kept, by both forms.
    for args in [&["up", "--no-start"][..], &["create", "db", "api"]] {
        let answer = compose(&host, args);
        assert!(events(&answer).iter().all(|line| line.ends_with("  Created")), "{}", answer.err);
        assert_eq!(ids(&host), before, "{args:?}");
    }
    ok(&host, &["start", "db"]);
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}}"]), "lab-db-1");
    let again = compose(&host, &["create"]);
    assert_eq!(events(&again)[0], "Container lab-db-1  Running");
    // `up` starts the containers that exist.
    ok(&host, &["up", "-d"]);
    assert_eq!((ok(&host, &["ps", "--services"]), ids(&host)), ("api\ndb".to_owned(), before.clone()));
    let changed = THREE.replace("MODE: prod", "MODE: test");
    write(&host, &changed);
    assert!(
        events(&compose(&host, &["up", "--no-start", "--scale", "db=2"])).contains(&"Container lab-api-1  Recreated")
    );
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}}"]), "lab-db-1", "the changed one is not started");
    assert_eq!(host.inspect("lab-db-2")["State"]["Status"], "created");
    assert!(fails(&host, &["up", "--no-start", "-d"]).contains("--no-start"));
    ok(&host, &["down", "-t", "0"]);
    // A container that shares another's network is created after it.
    write(
        &host,
        "
services:
  one: {image: box, network_mode: 'service:two', command: sleep 1000, init: true}
  two: {image: box, command: sleep 1000, init: true}
",
    );
    ok(&host, &["create"]);
    ok(&host, &["start"]);
    assert_eq!(ok(&host, &["ps", "--services"]), "one\ntwo");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
}

fn dry_run() {
    let host = project(&format!(
        "{THREE}    volumes: ['./new:/new', 'data:/data']\n  built:\n    build: .\n    command: sleep 1000\n    init: true\nvolumes: {{data: }}\nnetworks: {{other: }}\n"
    ));
    fs::write(host.dir.join("lab/Dockerfile"), "FROM box\n").unwrap();
    // Everything on disk, and what runs.
    let state = |host: &Host| {
        let mut find = std::process::Command::new("find");
        find.args(["root", "run", "lab", "-printf", "%p %i %T@\\n"]).current_dir(&host.dir);
        let tree = find.output().unwrap();
        let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
        // Commands that only read take locks.
        let mut lines: Vec<&str> = tree.lines().filter(|line| !line.contains("lock")).collect();
        lines.sort_unstable();
        (lines.join("\n"), host.ok(&["ps", "-a", "--format", "{{.ID}} {{.State}}"]))
    };
    let dry = |args: &[&str]| {
        // What is created once, such as the directory of records, exists afterwards.
        state(&host);
        let before = state(&host);
        let answer = compose(&host, args);
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        let after = state(&host);
        assert!(before == after, "{args:?} changed something:\n{}\n{}", before.0, after.0);
        let lines: Vec<String> = answer.err.lines().map(str::to_owned).collect();
        assert!(lines.iter().all(|line| line.starts_with("DRY-RUN MODE - ")), "{args:?}: {lines:?}");
        lines.into_iter().map(|line| line["DRY-RUN MODE - ".len()..].trim().to_owned()).collect::<Vec<_>>()
    };
    let up = dry(&["--dry-run", "up"]);
    let first = ["Service built  Building", "gpurun: created the directory"];
    assert!(up[0] == first[0] && up[1].starts_with(first[1]), "{up:?}");
    assert_eq!(up[2], "Network lab_default  Created");
    for name in ["db", "migrate", "api", "built"] {
        assert!(up.contains(&format!("Container lab-{name}-1  Started")), "{up:?}");
    }
    assert!(dry(&["create", "--dry-run"]).contains(&"Container lab-api-1  Created".to_owned()));
    assert_eq!(dry(&["build", "--dry-run"]), ["Service built  Building"]);
    ok(&host, &["up", "-d"]);
    assert!(dry(&["up", "-d", "--dry-run"]).contains(&"Container lab-db-1  Running".to_owned()));
    assert!(dry(&["up", "--dry-run", "--force-recreate"]).contains(&"Container lab-db-1  Recreated".to_owned()));
    assert_eq!(dry(&["--dry-run", "stop", "api"]), ["Container lab-api-1  Stopped"]);
    assert_eq!(dry(&["--dry-run", "restart", "api"]), ["Container lab-api-1  Stopped", "Container lab-api-1  Started"]);
    assert_eq!(dry(&["--dry-run", "kill", "db"]), ["Container lab-db-1  Killed"]);
    assert_eq!(dry(&["--dry-run", "pause", "db"]), ["Container lab-db-1  Paused"]);
    assert_eq!(dry(&["--dry-run", "rm"]), ["Container lab-migrate-1  Removed"]);
    assert_eq!(dry(&["--dry-run", "exec", "db", "rm", "/x"]), ["Container lab-db-1  Executed rm /x"]);
    assert_eq!(dry(&["--dry-run", "cp", "db:/etc/passwd", "."]), ["Copied lab-db-1:/etc/passwd to ."]);
    assert!(dry(&["--dry-run", "run", "--no-deps", "db"])[0].ends_with("  Started"));
    let down = dry(&["--dry-run", "down", "-v", "--rmi", "local"]);
    for line in [
        "Container lab-db-1  Removed",
        "Network lab_default  Removed",
        "Volume lab_data  Removed",
        "Image lab-built  Removed",
    ] {
        assert!(down.contains(&line.to_owned()), "{down:?}");
    }
    ok(&host, &["down", "-t", "0", "-v"]);
    assert_eq!(host.leftovers(), "");
}

fn raw_config() {
    let host = project(
        "
services:
  web:
    image: 'box:${TAG?no tag}'
    mem_limit: ${MEM}
    scale: ${N}
    ports: ['${PORT}:80', '81:81']
    volumes: ['${DATA:-./data}:/data', './here:/here']
    depends_on: {db: {condition: '${WHEN}'}}
  db: {image: box, profiles: [p], command: 'echo $$$$HOME'}
",
    );
    assert!(fails(&host, &["config"]).contains("no tag"));
    let shown = ok(&host, &["config", "--no-interpolate"]);
    let here = host.dir.join("lab/here");
    for line in [
        "    image: box:${TAG?no tag}",
        "    mem_limit: ${MEM}",
        "    scale: ${N}",
        "      - ${PORT}:80",
        "        published: \"81\"",
        "      - ${DATA:-./data}:/data",
        &format!("        source: {}", here.display()),
        "        condition: ${WHEN}",
        "    command: echo $$$$HOME",
        "name: lab",
    ] {
        assert!(shown.lines().any(|other| other == line), "{line}\n{shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&ok(&host, &["config", "--no-interpolate", "--format", "json", "web"])).unwrap();
    assert_eq!((&json["services"]["web"]["scale"], &json["services"]["db"]), (&"${N}".into(), &().into()));
    for (flag, expected) in
        [("--services", "db\nweb"), ("--images", "box\nbox:${TAG?no tag}"), ("--profiles", "p"), ("-q", "")]
    {
        assert_eq!(ok(&host, &["config", "--no-interpolate", flag]), expected, "{flag}");
    }
    // The result is a compose file that means the same.
    ok(&host, &["config", "--no-interpolate", "-o", "again.yaml"]);
    let variables = [("TAG", "latest"), ("MEM", "64m"), ("N", "2"), ("PORT", "8080"), ("WHEN", "service_started")];
    let resolved = |file: &str| {
        let mut command = host.command(&["compose", "-f", file, "--profile", "*", "config"]);
        let answer = answer(command.current_dir(host.dir.join("lab")).envs(variables).output().unwrap());
        assert_eq!(answer.code, 0, "{}", answer.err);
        answer.out
    };
    assert_eq!(resolved("again.yaml"), resolved("compose.yaml"));
    // What is no variable is checked.
    write(&host, "services:\n  web: {image: '${X}', mem_limt: 1m}\n");
    assert!(fails(&host, &["config", "--no-interpolate"]).contains("mem_limt"));
    write(&host, "services:\n  web: {image: '${X}', scale: many}\n");
    assert!(fails(&host, &["config", "--no-interpolate"]).contains("services.web.scale"));
}

fn listed_config() {
    let host = project(
        "
services:
  web:
    image: 'box:${TAG:?no tag}'
    environment: {MODE: '${MODE:-${KIND:-prod}}', DEBUG: '${DEBUG:+yes}', COST: '5$$'}
    volumes: ['data:/data']
    ports: ['$PORT:80']
    ipc: service:db
  db: {image: box}
volumes: {data: }
",
    );
    let shown = ok(&host, &["config", "--variables"]);
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            &["NAME", "REQUIRED", "DEFAULT", "VALUE", "ALTERNATE", "VALUE"][..],
            &["DEBUG", "false", "yes"],
            &["KIND", "false", "prod"],
            &["MODE", "false", "${KIND:-prod}"],
            &["PORT", "false"],
            &["TAG", "true"],
        ]
    );
    let json: serde_json::Value =
        serde_json::from_str(&ok(&host, &["config", "--variables", "--format", "json"])).unwrap();
    assert_eq!((&json["DEBUG"]["PresenceValue"], &json["TAG"]["Required"]), (&"yes".into(), &true.into()));
    // What the files say, and nothing that follows from it.
    let variables = [("TAG", "latest"), ("PORT", "8080")];
    let config = |flags: &[&str]| {
        let mut command = host.command(&[&["compose", "config", "--format", "json"], flags].concat());
        let answer = answer(command.current_dir(host.dir.join("lab")).envs(variables).output().unwrap());
        assert_eq!(answer.code, 0, "{}", answer.err);
        serde_json::from_str::<serde_json::Value>(&answer.out).unwrap()
    };
    let (full, written) = (config(&[]), config(&["--no-normalize"]));
    let web = |config: &serde_json::Value, key: &str| config["services"]["web"][key].clone();
    assert_eq!((&full["volumes"]["data"]["name"], web(&full, "image")), (&"lab_data".into(), "box:latest".into()));
    assert!(web(&full, "depends_on")["db"].is_object() && web(&full, "networks")["default"].is_null());
    assert!(full["networks"]["default"].is_object() && web(&full, "networks").is_object());
    assert_eq!(web(&written, "image"), "box:latest");
    assert!(web(&written, "depends_on").is_null() && web(&written, "networks").is_null(), "{written}");
    assert!(written["networks"].is_null() && written["volumes"]["data"]["name"].is_null(), "{written}");
}

fn recreated_dependencies() {
    let host = project(
        "
services:
  db: {image: box, command: sleep 1000, init: true, volumes: [/data]}
  api: {image: box, command: sleep 1000, init: true, depends_on: [db]}
",
    );
    ok(&host, &["up", "-d"]);
    let ids = || ["lab-db-1", "lab-api-1"].map(|name| id(&host, name));
    let replaced = |args: &[&str]| {
        let before = ids();
        ok(&host, &[&["up", "-d", "-t", "0"], args].concat());
        let after = ids();
        [before[0] != after[0], before[1] != after[1]]
    };
    // As in docker, these are about the named services, and about those that they depend on.
    assert_eq!(replaced(&["--force-recreate", "api"]), [false, true]);
    assert_eq!(replaced(&["--always-recreate-deps", "api"]), [true, false]);
    assert_eq!(replaced(&["--force-recreate", "--always-recreate-deps", "api"]), [true, true]);
    assert_eq!(replaced(&["--force-recreate"]), [true, true]);
    assert_eq!(replaced(&[]), [false, false]);
    assert!(fails(&host, &["up", "-d", "--no-recreate", "--always-recreate-deps"]).contains("--no-recreate"));
    // A container that is replaced has new anonymous volumes.
    host.ok(&["exec", "lab-db-1", "touch", "/data/file"]);
    assert_eq!(replaced(&["-V", "--force-recreate", "db"]), [true, false]);
    assert_eq!(host.ok(&["exec", "lab-db-1", "ls", "/data"]), "");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
}

fn attached() {
    let host = project(
        "
services:
  db: {image: box, command: echo from db}
  web: {image: box, command: echo from web, depends_on: [db]}
  quiet: {image: box, command: echo from quiet, attach: false}
",
    );
    let shown = |args: &[&str]| {
        let answer = compose(&host, &[&["up", "--force-recreate"], args].concat());
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        let mut lines: Vec<&str> = answer.out.lines().filter_map(|line| Some(line.split_once("| from ")?.1)).collect();
        lines.sort_unstable();
        lines.join(" ")
    };
    for (args, want) in [
        (&[][..], "db web"),
        (&["--attach", "web"], "web"),
        (&["--attach", "quiet", "--attach", "db"], "db quiet"),
        (&["--no-attach", "web"], "db"),
        (&["web"], "web"),
        (&["--attach-dependencies", "web"], "db web"),
    ] {
        assert_eq!(shown(args), want, "{args:?}");
    }
    assert!(fails(&host, &["up", "--attach", "nosuch"]).contains("there is no service `nosuch` for `--attach`"));
    assert!(fails(&host, &["up", "--no-attach", "nosuch"]).contains("`--no-attach`"));
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
}

fn recreation() {
    let host = project(THREE);
    ok(&host, &["up", "-d"]);
    let ids = |host: &Host| ["lab-db-1", "lab-api-1"].map(|name| id(host, name));
    let before = ids(&host);
    // The same, in another order and another form.
    let reordered = "
services:
  api:
    depends_on:
      db: {condition: service_started}
      migrate: {condition: service_completed_successfully}
    environment: [MODE=prod]
    init: true
    command: [sh, -c, 'echo ready; exec sleep 1000']
    image: box
  migrate: {depends_on: [db], command: [sh, -c, 'echo migrated; exit 0'], image: box}
  db: {init: true, command: [sleep, '1000'], image: box}
";
    write(&host, reordered);
    ok(&host, &["up", "-d"]);
    assert_eq!(ids(&host), before, "reordered keys replace nothing");
    write(&host, &THREE.replace("prod", "test"));
    ok(&host, &["up", "-d", "-t", "1"]);
    let after = ids(&host);
    assert_eq!(after[0], before[0], "db has not changed");
    assert_ne!(after[1], before[1], "api has");
    ok(&host, &["up", "-d", "-t", "1", "--force-recreate", "--no-deps", "api"]);
    let forced = ids(&host);
    assert!(forced[0] == after[0] && forced[1] != after[1]);
    // Another image under the same name.
    fs::write(host.dir.join("lab/Containerfile"), "FROM box\nRUN echo x >/x\n").unwrap();
    host.ok(&["build", "-q", "--network", "none", "-t", "box", "lab"]);
    ok(&host, &["up", "-d", "-t", "1", "--no-deps", "api"]);
    assert_ne!(id(&host, "lab-api-1"), forced[1], "the image has changed");
}

fn limits() {
    let host = project(
        "
services:
  v2: {image: box, command: sleep 1000, init: true, mem_limit: 64m, pids_limit: 50, cpus: 0.5, shm_size: 16m}
  v3:
    image: box
    command: sleep 1000
    init: true
    ulimits: {nofile: {soft: 100, hard: 200}}
    deploy:
      resources:
        limits: {memory: 32M, cpus: '0.25', pids: 40}
",
    );
    ok(&host, &["up", "-d"]);
    for (name, memory, pids) in [("lab-v2-1", "67108864", "50"), ("lab-v3-1", "33554432", "40")] {
        let inspect = host.inspect(name);
        let rows = inspect["Limits"].as_array().unwrap().clone();
        let kernel = |flag: &str| {
            let row = rows.iter().find(|row| row["flag"] == flag).unwrap_or_else(|| panic!("{name} {flag}: {rows:?}"));
            fs::read_to_string(row["file"].as_str().unwrap()).unwrap().trim().to_owned()
        };
        assert_eq!(kernel("--memory"), memory, "{name}");
        assert_eq!(kernel("--pids-limit"), pids, "{name}");
    }
    assert_eq!(ok(&host, &["exec", "v3", "sh", "-c", "ulimit -n"]), "100");
    // The checks are those of the command line.
    write(&host, "services: {v2: {image: box, command: 'true', mem_limit: 1m}}");
    let error = fails(&host, &["up", "-d"]);
    assert!(
        error.contains("minimum memory limit allowed is 6MB") && error.contains("services.v2.mem_limit"),
        "{error}"
    );
}

fn names() {
    let host = project(
        "
services:
  db: {image: box, command: httpd -f -p 80, init: true, networks: {default: {aliases: [database]}}}
  web: {image: box, command: sleep 1000, init: true, depends_on: [db], container_name: front}
  early: {image: box, command: sleep 1000, init: true}
",
    );
    ok(&host, &["up", "-d"]);
    for (service, name) in [("web", "db"), ("web", "database"), ("early", "db"), ("early", "lab-db-1"), ("db", "front")]
    {
        let hosts = ok(&host, &["exec", service, "cat", "/etc/hosts"]);
        assert!(
            hosts.lines().any(|line| line.split_whitespace().skip(1).any(|word| word == name)),
            "{name} in {service}: {hosts}"
        );
    }
    // A real connection by name; 404 is an answer of the server.
    let answer = compose(&host, &["exec", "early", "wget", "-q", "-O", "-", "http://db/"]);
    assert!(answer.err.contains("404"), "{}", answer.err);
    // The address changes with a new container, and the others learn it.
    ok(&host, &["up", "-d", "--force-recreate", "--no-deps", "-t", "1", "db"]);
    let answer = compose(&host, &["exec", "early", "wget", "-q", "-O", "-", "http://db/"]);
    assert!(answer.err.contains("404"), "{}", answer.err);
}

fn foreground() {
    let host = project(
        "
services:
  a: {image: box, command: sh -c 'echo from a; sleep 1000', init: true}
  bb: {image: box, command: sh -c 'echo from b >&2; sleep 1000', init: true}
",
    );
    let out = host.dir.join("out");
    let mut command = host.command(&["compose", "up", "-t", "1"]);
    command.current_dir(host.dir.join("lab")).stdout(fs::File::create(&out).unwrap()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let shown = || fs::read_to_string(&out).unwrap();
    eventually("both lines", || shown().contains("a-1  | from a\n") && shown().contains("bb-1 | from b\n"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    eventually("the end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(ok(&host, &["ps", "-q"]), "", "both are stopped");
    ok(&host, &["down"]);
    assert_eq!(host.leftovers(), "");
}

fn exit_code() {
    let host = project(
        "
services:
  server: {image: box, command: sleep 1000, init: true}
  tests: {image: box, command: sh -c 'echo testing; exit 3', depends_on: [server]}
",
    );
    let up = compose(&host, &["up", "-t", "1", "--exit-code-from", "tests"]);
    assert_eq!(up.code, 3, "{}{}", up.out, up.err);
    assert!(up.out.contains("tests-1  | testing"), "{}", up.out);
    assert!(up.out.contains("tests-1 exited with code 3\n"), "{}", up.out);
    assert_eq!(ok(&host, &["ps", "-q"]), "", "the server is stopped");
    let again = compose(&host, &["up", "-t", "1", "--exit-code-from", "tests"]);
    assert_eq!(
        (again.code, again.out.matches("testing").count()),
        (3, 1),
        "the output of the first run is not shown again"
    );
    // Without these flags, `up` ends with 0.
    write(&host, "services:\n  a: {image: box, command: sh -c 'exit 3'}\n");
    let up = compose(&host, &["up", "--remove-orphans"]);
    assert_eq!((up.code, up.out.as_str()), (0, "a-1 exited with code 3\n"), "{}", up.err);
    // A dependency that fails stops the start.
    write(
        &host,
        "
services:
  first: {image: box, command: sh -c 'exit 4'}
  second: {image: box, command: 'true', depends_on: {first: {condition: service_completed_successfully}}}
",
    );
    let error = fails(&host, &["up", "-d", "--remove-orphans"]);
    assert!(error.contains("service `first` ended with status 4"), "{error}");
    assert!(!host.ok(&["ps", "-a"]).contains("lab-second-1"));
    ok(&host, &["down"]);
}

/// The command of the image, cut with an ellipsis, and no ports of a container that has ended.
fn listed() {
    let host = project(
        "
services:
  a: {image: cmd, ports: ['127.0.0.1:18080:80'], init: true}
",
    );
    fs::write(
        host.dir.join("lab/Containerfile"),
        "FROM box\nCMD [\"sh\", \"-c\", \"exec sleep 1000\", \"and more\"]\n",
    )
    .unwrap();
    host.ok(&["build", "-t", "cmd", "lab"]);
    ok(&host, &["up", "-d"]);
    let whole = "sh -c exec sleep 1000 and more";
    let json = || serde_json::from_str::<serde_json::Value>(&ok(&host, &["ps", "-a", "--format", "json"])).unwrap();
    let (running, port) = (json(), "127.0.0.1:18080->80/tcp");
    assert_eq!((running["Command"].as_str(), running["Ports"].as_str()), (Some(whole), Some(port)));
    assert_eq!(running["Publishers"][0]["PublishedPort"], 18080);
    let table = ok(&host, &["ps"]);
    assert!(table.contains(" sh -c exec sleep 1000 a… ") && table.contains(port), "{table}");
    assert!(ok(&host, &["ps", "--no-trunc"]).contains(whole));
    ok(&host, &["kill"]);
    let ended = json();
    assert_eq!((ended["Ports"].as_str(), ended["Publishers"].as_array().map(Vec::len)), (Some(""), Some(0)));
    assert!(!ok(&host, &["ps", "-a"]).contains("18080"));
    ok(&host, &["down"]);
}

fn commands() {
    let host = project(
        "
services:
  web:
    image: box
    command: httpd -f -p 80
    init: true
    ports: ['127.0.0.1:18080:80']
    environment: {SECRET: from-file}
",
    );
    ok(&host, &["up", "-d"]);
    assert_eq!(ok(&host, &["port", "web", "80"]), "127.0.0.1:18080");
    assert!(fails(&host, &["port", "web", "81"]).contains("not published"));
    let line =
        ok(&host, &["ps", "--format", "{{.Service}} {{.State}} {{.Ports}}{{range .Publishers}} {{.URL}}{{end}}"]);
    assert_eq!(line, "web running 127.0.0.1:18080->80/tcp 127.0.0.1");
    assert!(ok(&host, &["ps", "--format", "table {{.Name}}\t{{.Status}}"]).starts_with("NAME"));
    assert_eq!(ok(&host, &["exec", "-T", "web", "sh", "-c", "echo $SECRET"]), "from-file");
    assert_eq!(compose(&host, &["exec", "web", "sh", "-c", "exit 7"]).code, 7);
    fs::write(host.dir.join("lab/file"), "content").unwrap();
    ok(&host, &["cp", "file", "web:/tmp/file"]);
    assert_eq!(ok(&host, &["exec", "web", "cat", "/tmp/file"]), "content");
    // A new container, with the service's settings and another command.
    let one = ok(&host, &["run", "--rm", "-T", "web", "sh", "-c", "echo $SECRET $0 $1", "-x", "--rm"]);
    assert_eq!(one, "from-file -x --rm");
    assert_eq!(ok(&host, &["run", "--rm", "-e", "SECRET=mine", "-T", "web", "sh", "-c", "echo $SECRET"]), "mine");
    assert_eq!(ok(&host, &["ps", "--services"]), "web", "`run` adds nothing to `ps`");
    assert!(ok(&host, &["images"]).contains("box"));
    assert!(ok(&host, &["top"]).contains("httpd"));
    ok(&host, &["kill", "web"]);
    assert_eq!(compose(&host, &["wait", "web"]).code, 137);
    ok(&host, &["rm", "-f"]);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

fn builds() {
    let host = project(
        "
services:
  app:
    build: {context: app, args: {WHO: lab}, target: last}
  named:
    image: local/named
    build:
      context: app
      dockerfile_inline: |
        FROM box
        CMD [\"echo\", \"inline\"]
  far:
    build:
      context: app
      additional_contexts: {shared: ./shared, base: 'docker-image://box'}
      dockerfile_inline: |
        FROM base
        COPY --from=shared one /one
        RUN --mount=type=bind,from=shared,target=/mnt cp /mnt/sub/two /two
        CMD [\"cat\", \"/one\", \"/two\"]
",
    );
    fs::create_dir_all(host.dir.join("lab/shared/sub")).unwrap();
    fs::write(host.dir.join("lab/shared/one"), "one\n").unwrap();
    fs::write(host.dir.join("lab/shared/sub/two"), "two\n").unwrap();
    fs::create_dir(host.dir.join("lab/app")).unwrap();
    fs::write(
        host.dir.join("lab/app/Dockerfile"),
        "FROM box AS first\nARG WHO\nRUN echo $WHO >/who; date +%s%N >/when\nFROM first AS last\nCMD [\"sh\", \"-c\", \"cat /who /when\"]\n",
    )
    .unwrap();
    ok(&host, &["build"]);
    ok(&host, &["up", "-d"]);
    ok(&host, &["wait", "app", "named", "far"]);
    let first = ok(&host, &["logs", "--no-log-prefix", "app"]);
    assert!(first.starts_with("lab\n"), "{first}");
    assert_eq!(ok(&host, &["logs", "--no-log-prefix", "named"]), "inline");
    assert_eq!(ok(&host, &["logs", "--no-log-prefix", "far"]), "one\ntwo");
    assert!(host.ok(&["image", "ls"]).contains("lab-app"));
    // The cache gives the same image, and the container stays.
    let before = id(&host, "lab-app-1");
    ok(&host, &["up", "-d", "--build"]);
    assert_eq!(id(&host, "lab-app-1"), before);
    fs::write(host.dir.join("lab/shared/one"), "three\n").unwrap();
    ok(&host, &["up", "-d", "--build", "far"]);
    ok(&host, &["wait", "far"]);
    assert_eq!(ok(&host, &["logs", "--no-log-prefix", "far"]), "three\ntwo", "the directory has changed");
    ok(&host, &["build", "--no-cache", "app"]);
    ok(&host, &["up", "-d"]);
    assert_ne!(id(&host, "lab-app-1"), before, "a new image makes a new container");
    ok(&host, &["down", "--rmi", "all"]);
    assert!(!host.ok(&["image", "ls"]).contains("lab-app"));
}

fn pauses() {
    let host = project(
        "services:\n  one: {image: box, command: sleep 1000, init: true}\n  two: {image: box, command: sleep 1000, init: true}\n",
    );
    ok(&host, &["--ansi", "never", "--progress", "plain", "--parallel", "2", "up", "-d"]);
    let states = || host.ok(&["ps", "--format", "{{.Names}} {{.State}}"]);
    let said = compose(&host, &["pause", "two"]);
    assert!(said.code == 0 && said.err.contains("Container lab-two-1  Paused"), "{}", said.err);
    assert!(states().contains("lab-two-1 paused") && states().contains("lab-one-1 running"), "{}", states());
    ok(&host, &["pause"]);
    assert!(states().contains("lab-one-1 paused"), "{}", states());
    ok(&host, &["unpause"]);
    assert!(!states().contains("paused"), "{}", states());
    let filtered = |filter: &str| ok(&host, &["ps", "--filter", filter, "--format", "{{.Name}}"]);
    assert_eq!((filtered("status=running").lines().count(), &*filtered("status=exited")), (2, ""));
    for flags in [&["--since", "1h"][..], &["--until", "1s", "--since", "1h"]] {
        ok(&host, &[&["logs"], flags, &["one"]].concat());
    }
    assert!(fails(&host, &["logs", "--since", "x"]).contains("`--since x` is not a time"));
    ok(&host, &["up", "-d", "--quiet-pull", "--pull", "missing"]);
    // Colors that are asked for are there without a terminal.
    assert!(compose(&host, &["--ansi", "always", "logs"]).code == 0);
    let error = fails(&host, &["push"]);
    assert!(error.contains("gpurun has no command `compose push`") && error.contains("gpurun push IMAGE"), "{error}");
    ok(&host, &["down", "-t", "0"]);
    assert_eq!(host.leftovers(), "");
}

fn builds_from_services() {
    let text = "
services:
  app:
    image: local/app
    build:
      context: app
      additional_contexts: {base: 'service:base'}
      dockerfile_inline: |
        FROM base
        COPY --from=base /made /copy
        CMD [\"cat\", \"/made\", \"/copy\"]
  base:
    profiles: [never]
    build:
      context: app
      additional_contexts: {deep: 'service:deep'}
      dockerfile_inline: |
        FROM deep
        RUN echo base >>/made
  deep:
    profiles: [never]
    build:
      context: app
      dockerfile_inline: |
        FROM box
        RUN echo deep >/made
";
    let host = project(text);
    fs::create_dir(host.dir.join("lab/app")).unwrap();
    ok(&host, &["up", "-d"]);
    ok(&host, &["wait", "app"]);
    assert_eq!(ok(&host, &["logs", "--no-log-prefix", "app"]), "deep\nbase\ndeep\nbase");
    assert_eq!(ok(&host, &["ps", "-a", "--services"]), "app", "the others are only built");
    // What is built again is built in the order in which one needs the other.
    write(&host, &text.replace("echo deep", "echo new"));
    let said = compose(&host, &["build", "app"]);
    let order: Vec<&str> = said.err.lines().filter(|line| line.starts_with(" Service ")).collect();
    assert_eq!(order, [" Service deep  Building", " Service base  Building", " Service app  Building"], "{}", said.err);
    ok(&host, &["up", "-d"]);
    ok(&host, &["wait", "app"]);
    assert_eq!(ok(&host, &["logs", "--no-log-prefix", "app"]), "new\nbase\nnew\nbase");
    ok(&host, &["down"]);
    for (from, to, reason) in [
        ("deep: 'service:deep'", "deep: 'service:nope'", "there is no service `nope`"),
        ("deep: 'service:deep'", "deep: 'service:app'", "in a circle"),
        ("base: 'service:base'", "base: 'service:app'", "in a circle"),
    ] {
        write(&host, &text.replace(from, to));
        let error = fails(&host, &["build"]);
        assert!(error.contains(reason) && error.contains("line "), "{error}");
    }
}

fn secrets() {
    let host = project(
        "
services:
  app:
    image: box
    command: sh -c 'cat /run/secrets/token /run/secrets/file /etc/app.conf; stat -c %a /run/secrets/token'
    secrets: [file, {source: token, mode: 0400}]
    configs: [{source: conf, target: /etc/app.conf}]
secrets:
  file: {file: ./secret.txt}
  token: {environment: TOKEN}
configs:
  conf: {content: 'key=$$value'}
",
    );
    fs::write(host.dir.join("lab/secret.txt"), "from a file\n").unwrap();
    assert!(fails(&host, &["up", "-d"]).contains("`TOKEN`, which is not set"));
    fs::File::create(host.dir.join("lab/.env")).unwrap().write_all(b"TOKEN=\"s3cret\n\"").unwrap();
    ok(&host, &["up", "-d"]);
    ok(&host, &["wait", "app"]);
    assert_eq!(ok(&host, &["logs", "--no-log-prefix"]), "s3cret\nfrom a file\nkey=$value400");
    assert!(host.dir.join("root/compose/lab").is_dir());
    ok(&host, &["down"]);
    assert!(!host.dir.join("root/compose/lab").exists(), "`down` removes the contents");
}

fn scale() {
    let host = project(
        "
services:
  worker: {image: box, command: sleep 1000, init: true, scale: 2}
  extra: {image: box, command: sleep 1000, init: true, profiles: [more]}
",
    );
    ok(&host, &["up", "-d"]);
    assert_eq!(ok(&host, &["ps", "-q"]).lines().count(), 2);
    ok(&host, &["up", "-d", "--scale", "worker=3"]);
    assert_eq!(ok(&host, &["ps", "-q"]).lines().count(), 3);
    ok(&host, &["up", "-d", "--scale", "worker=1", "-t", "1"]);
    assert_eq!(ok(&host, &["ps", "-q"]).lines().count(), 1);
    ok(&host, &["--profile", "more", "up", "-d"]);
    assert_eq!(ok(&host, &["ps", "--services"]), "extra\nworker");
    write(&host, "services: {worker: {image: box, command: sleep 1000, init: true}}");
    let up = compose(&host, &["up", "-d"]);
    assert!(up.err.contains("lab-extra-1") && up.err.contains("--remove-orphans"), "{}", up.err);
    ok(&host, &["up", "-d", "--remove-orphans", "-t", "1"]);
    assert_eq!(ok(&host, &["ps", "-a", "--services"]), "worker");
    ok(&host, &["-p", "lab", "down", "-t", "1"]);
    assert_eq!(host.leftovers(), "");
}

fn refused() {
    let cases = [
        (
            "services:\n  a:\n    image: box\n    port: ['80:80']\n",
            "line 4, key `services.a.port`",
            "did you mean `ports`?",
        ),
        (
            "services:\n  a: {image: box}\n  b:\n    image: box\n    external_links: [a]\n",
            "line 5",
            "services.b.external_links",
        ),
        ("services:\n  a:\n    image: box\n    storage_opt: {size: 1G}\n", "line 4", "services.a.storage_opt"),
        (
            "services:\n  a:\n    image: box\n    deploy:\n      resources: {reservations: {devices: [{capabilities: [tpu]}]}}\n",
            "line 4",
            "GPUs only",
        ),
        ("services:\n  a: {image: box, depends_on: [b]}\n  b: {image: box, depends_on: [a]}\n", "line 2", "circle"),
        ("services:\n  a: {image: box, volumes: ['data:/data']}\n", "line 2", "no volume `data`"),
        ("services:\n  a:\n    image: ${NO:?no image}\n", "line 3", "no image"),
        ("services:\n  a:\n   image: box\n  - x\n", "line 4", "cannot use"),
    ];
    let host = project("");
    for (text, place, what) in cases {
        write(&host, text);
        let error = fails(&host, &["up", "-d"]);
        assert!(error.contains(place) && error.contains(what), "{text}: {error}");
        assert_eq!(host.ok(&["ps", "-aq"]), "", "{text}: nothing is started");
    }
    // What has no effect is said once, and does not stop the start.
    write(&host, "version: '3'\nservices:\n  a:\n    image: box\n    command: 'true'\n    platform: linux/amd64\n");
    let up = compose(&host, &["up", "-d"]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert_eq!(up.err.matches("`services.a.platform` is ignored").count(), 1, "{}", up.err);
    assert_eq!(up.err.matches("obsolete").count(), 1, "{}", up.err);
}

fn volumes() {
    let host = project(
        "
services:
  a: {image: box, command: sh -c 'echo kept >/data/x; echo y >/made/y', volumes: ['data:/data', './made:/made']}
volumes: {data: }
",
    );
    let up = compose(&host, &["up", "-d"]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert!(up.err.contains("created the directory"), "{}", up.err);
    ok(&host, &["wait", "a"]);
    assert_eq!(fs::read_to_string(host.dir.join("lab/made/y")).unwrap(), "y\n");
    let volume = host.dir.join("root/volumes/lab_data");
    assert!(volume.is_dir());
    ok(&host, &["down"]);
    assert!(volume.is_dir(), "`down` alone keeps volumes");
    ok(&host, &["up", "-d"]);
    ok(&host, &["down", "-v"]);
    assert!(!volume.exists());
}
