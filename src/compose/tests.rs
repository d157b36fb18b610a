//! Tests of whole projects: files in a directory, and what they become.

use std::path::Path;

use super::{Plan, Project, Source, load};

/// Writes files into a directory and loads the project.
fn project(files: &[(&str, &str)]) -> Result<(tempfile::TempDir, Project), String> {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    let loaded = load(&source(dir.path()), &[], true).map_err(|error| error.to_string())?;
    Ok((dir, loaded))
}

fn source(dir: &Path) -> Source {
    Source { current_directory: dir.to_owned(), name: Some("p".into()), ..Source::default() }
}

fn plan(service: &str) -> Result<Plan, String> {
    let text = format!("services:\n  a: {service}\n  b: {{image: x}}\nvolumes: {{data: , ext: {{external: true}}}}\n");
    let (_dir, project) = project(&[("compose.yaml", &text)])?;
    let mut plans = project.plans().map_err(|error| error.to_string())?;
    Ok(plans.services.remove("a").expect("the service"))
}

/// Returns the flags of a service that begin with a name.
fn flags(service: &str, name: &str) -> Result<Vec<String>, String> {
    let plan = plan(service)?;
    Ok(plan.flags.into_iter().filter(|flag| flag.starts_with(name)).collect())
}

#[test]
fn gpus_become_the_request_of_the_command_line() {
    let reserved =
        |device: &str| format!("{{image: x, deploy: {{resources: {{reservations: {{devices: [{device}]}}}}}}}}");
    for (service, expected) in [
        (reserved("{driver: nvidia, count: all, capabilities: [gpu]}"), "--gpus=all"),
        (reserved("{driver: nvidia, capabilities: [gpu]}"), "--gpus=all"),
        (reserved("{capabilities: [gpu]}"), "--gpus=all"),
        (reserved("{driver: nvidia}"), "--gpus=all"),
        (reserved("{driver: nvidia, count: 2, capabilities: [gpu, utility]}"), "--gpus=2"),
        (reserved("{driver: nvidia, count: '2', capabilities: [gpu]}"), "--gpus=2"),
        (reserved("{device_ids: ['0', '2'], capabilities: [gpu]}"), "--gpus=device=0,2"),
        (reserved("{device_ids: ['GPU-1234'], capabilities: [gpu]}"), "--gpus=device=GPU-1234"),
        ("{image: x, gpus: all}".into(), "--gpus=all"),
        ("{image: x, gpus: [{count: 1}]}".into(), "--gpus=1"),
        ("{image: x, runtime: nvidia}".into(), "--gpus=all"),
        ("{image: x, runtime: nvidia, environment: [NVIDIA_VISIBLE_DEVICES=0]}".into(), "--gpus=device=0"),
    ] {
        assert_eq!(flags(&service, "--gpus"), Ok(vec![expected.to_owned()]), "{service}");
    }
    let cdi = reserved("{driver: cdi, device_ids: ['nvidia.com/gpu=all'], capabilities: [gpu]}");
    assert_eq!(flags(&cdi, "--device"), Ok(vec!["--device=nvidia.com/gpu=all".to_owned()]));
    assert_eq!(flags(&cdi, "--gpus"), Ok(vec![]));
    for (service, reason) in [
        (reserved("{driver: amd, capabilities: [gpu]}"), "no driver `amd`"),
        (reserved("{capabilities: [tpu]}"), "GPUs only"),
        (reserved("{count: 1, device_ids: ['0'], capabilities: [gpu]}"), "exclude each other"),
        (reserved("{count: 1, capabilities: [gpu]}, {count: 2, capabilities: [gpu]}"), "twice"),
        (reserved("{count: many, capabilities: [gpu]}"), "a number or `all`"),
        ("{image: x, runtime: kata}".into(), "its own runtime"),
    ] {
        let error = flags(&service, "--gpus").expect_err(&service);
        assert!(error.contains(reason) && error.contains("line 2"), "{service}: {error}");
    }
}

#[test]
fn keys_become_flags() {
    for (service, expected) in [
        ("{image: x, mem_limit: 1g, memswap_limit: -1}", &["--memory=1073741824", "--memory-swap=-1"][..]),
        (
            "{image: x, deploy: {resources: {limits: {memory: 64M, cpus: '0.5', pids: 7}}}}",
            &["--memory=67108864", "--cpus=0.5", "--pids-limit=7"],
        ),
        (
            "{image: x, ulimits: {nofile: {soft: 1, hard: 2}, memlock: -1}}",
            &["--ulimit=memlock=-1", "--ulimit=nofile=1:2"],
        ),
        ("{image: x, stop_grace_period: 1m30s, stop_signal: SIGINT}", &["--stop-signal=SIGINT", "--stop-timeout=90"]),
        ("{image: x, network_mode: host}", &["--network=host"]),
        ("{image: x, pid: 'service:b', ipc: 'service:b'}", &["--ipc=container:p-b-1", "--pid=container:p-b-1"]),
        (
            "{image: x, blkio_config: {weight: 300, weight_device: [{path: /dev/sda, weight: 400}]}}",
            &["--blkio-weight=300", "--blkio-weight-device=/dev/sda:400"],
        ),
        ("{image: x, network_mode: 'service:b'}", &["--network=container:p-b-1"]),
        (
            "{image: x, volumes: ['data:/d:ro', 'ext:/e', /anonymous]}",
            &[
                "--mount=type=volume,source=p_data,target=/d,readonly",
                "--mount=type=volume,source=ext,target=/e",
                "--mount=type=volume,target=/anonymous",
            ],
        ),
        ("{image: x, volumes: ['/a,b:/c']}", &["--mount=type=bind,\"source=/a,b\",target=/c"]),
        (
            "{image: x, volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0o1777}}]}",
            &["--mount=type=tmpfs,tmpfs-size=1048576,tmpfs-mode=1777,target=/t"],
        ),
        (
            "{image: x, devices: [/dev/fuse], extra_hosts: ['h:1.2.3.4'], init: true}",
            &["--init", "--device=/dev/fuse:/dev/fuse:rwm", "--add-host=h:1.2.3.4"],
        ),
        ("{image: x, environment: {A: 1, B: , C: 'x=y'}}", &["--env=A=1", "--env=C=x=y"]),
        ("{image: x, deploy: {restart_policy: {condition: on-failure, max_attempts: 3}}}", &["--restart=on-failure:3"]),
    ] {
        let mut found = plan(service).expect(service).flags;
        let mut expected: Vec<String> = expected.iter().map(|flag| (*flag).to_owned()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{service}");
    }
    let ports =
        plan("{image: x, ports: ['80:81', '127.0.0.1:1:2/udp', 9, '[::1]:3:4', '5-6:7']}").expect("ports").ports;
    let expected = ["80:81", "127.0.0.1:1:2/udp", "9", "[::1]:3:4", "5-6:7"].map(|port| format!("--publish={port}"));
    assert_eq!(ports, expected);
}

#[test]
fn errors_name_the_file_the_line_and_the_key() {
    for (text, parts) in [
        ("services:\n  a:\n    imag: x\n", &["line 3", "`services.a.imag`", "no key `imag`"][..]),
        ("services:\n  a:\n    image: 5\n", &["line 3", "`services.a.image`", "must be a string, not"]),
        ("services:\n  a:\n    image: x\n    ports: ['x:y']\n", &["line 4", "`services.a.ports[0]`", "not a port"]),
        ("services:\n  a:\n    image: x\n    cpus: many\n", &["line 4", "must be a number"]),
        ("services:\n  a:\n    image: x\n    mem_limit: 1x\n", &["line 4", "`services.a.mem_limit`"]),
        ("services:\n  a:\n    image: x\n    tty: maybe\n", &["line 4", "true or false"]),
        ("services:\n  a:\n    image: x\n    restart: [a]\n", &["line 4", "must be a string, not"]),
        ("services:\n  a:\n    command: x\n", &["line 2", "neither `image` nor `build`"]),
        ("services:\n  a:\n    image: x\n    networks: [n]\n", &["line 4", "no network `n`"]),
        ("services:\n  a:\n    image: x\n    depends_on: [n]\n", &["line 4", "no service `n`"]),
        ("services:\n  a:\n    extends: a\n", &["line 3", "extends itself"]),
        ("services:\n  a:\n    extends: {service: n}\n", &["line 3", "no service `n`"]),
        ("services:\n  a:\n    extends: {service: n, file: no.yaml}\n", &["no.yaml", "No such file"]),
        ("include: [compose.yaml]\nservices: {a: {image: x}}\n", &["line 1", "includes itself"]),
        ("services:\n  a:\n    image: ${\n", &["line 3", "not a valid template"]),
        ("services:\n  'a b':\n    image: x\n", &["line 2", "not a name"]),
        ("service: {}\n", &["line 1", "no key `service`"]),
        ("services: []\n", &["line 1", "must be a mapping"]),
        ("- a\n", &["line 1", "must be a mapping"]),
        ("a: b: c\n", &["line 1"]),
        ("", &["empty"]),
        ("services:\n  a:\n    image: x\n    environment: {A: [b]}\n", &["line 4", "`services.a.environment.A`"]),
        (
            "services:\n  a: {image: x, container_name: c}\n  b: {image: x, container_name: c}\n",
            &["line 3", "same container name"],
        ),
        ("services:\n  a: {image: x, scale: 2, container_name: c}\n", &["line 2", "one container only"]),
        ("services:\n  a: {image: x, env_file: none.env}\n", &["line 2", "none.env"]),
        ("services:\n  a: {image: x, healthcheck: {test: [x]}}\n", &["line 2", "CMD-SHELL"]),
    ] {
        let error = project(&[("compose.yaml", text)]).map(drop).expect_err(text);
        for part in parts {
            assert!(error.contains(part), "{text}: `{part}` is not in: {error}");
        }
    }
}

#[test]
fn hostile_projects_end_with_an_error() {
    // Each service copies the one before it, twice.
    let mut copies = "services:\n  a0: {image: x, environment: [".to_owned();
    copies.push_str(&(0..2000).map(|n| format!("A{n}")).collect::<Vec<_>>().join(","));
    copies.push_str("]}\n");
    for n in 1..2000 {
        copies.push_str(&format!("  a{n}: {{extends: a{}}}\n", n - 1));
    }
    let fan: Vec<(String, String)> = (0..200)
        .map(|n| (format!("f{n}.yaml"), format!("include: [f{}.yaml]\nservices: {{s{n}: {{image: x}}}}\n", n + 1)))
        .collect();
    let mut fan: Vec<(&str, &str)> = fan.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    fan.push(("compose.yaml", "include: [f0.yaml]\n"));
    let long = format!("services: {{a: {{image: \"{}\"}}}}\n", "x".repeat(2 << 20));
    let ports = "services: {a: {image: x, ports: ['1-65535:1-65535']}}\n";
    for files in
        [&[("compose.yaml", copies.as_str())][..], &fan, &[("compose.yaml", &long)], &[("compose.yaml", ports)]]
    {
        assert!(project(files).is_err());
    }
}

#[test]
fn the_hash_depends_on_what_a_container_is_made_from() {
    let hash = |text: &str| project(&[("compose.yaml", text)]).expect(text).1.hash("a");
    let base = hash("services: {a: {image: x, environment: {A: '1', B: '2'}, command: a b}}");
    for same in [
        "services: {a: {command: [a, b], environment: [B=2, A=1], image: x}}",
        "services:\n  a:\n    image: x\n    command: a b\n    environment: {B: 2, A: 1}\n    scale: 3\n    pull_policy: always\n",
        "services: {a: {image: x, environment: {A: '1', B: '2'}, command: a b, build: .}}",
        "services: {a: {image: x, environment: {A: '1', B: '2'}, command: a b, depends_on: [b]}, b: {image: x}}",
        "services: {a: {image: x, environment: {A: '1', B: '2'}, command: a b}, b: {image: x, links: [a]}}",
        "networks: {default: {internal: true}}\nservices: {a: {image: x, environment: {A: '1', B: '2'}, command: a b}}",
    ] {
        assert_eq!(hash(same), base, "{same}");
    }
    for other in [
        "services: {a: {image: y, environment: {A: '1', B: '2'}, command: a b}}",
        "services: {a: {image: x, environment: {A: '1', B: '3'}, command: a b}}",
        "services: {a: {image: x, environment: {A: '1', B: '2'}, command: a b}, b: {image: x, links: ['a:z']}}",
        "networks: {default: {name: n}}\nservices: {a: {image: x, environment: {A: '1', B: '2'}, command: a b}}",
    ] {
        assert_ne!(hash(other), base, "{other}");
    }
}

/// Volumes and configs are named in a service, and described elsewhere.
#[test]
fn the_hash_depends_on_where_resources_come_from() {
    let hash = |resources: &str| {
        let service = "services: {a: {image: x, volumes: ['v:/v'], configs: [c], secrets: [s]}}";
        project(&[("compose.yaml", &format!("{service}\n{resources}"))]).expect(resources).1.hash("a")
    };
    let base = hash("volumes: {v: }\nconfigs: {c: {content: one}}\nsecrets: {s: {environment: S}}");
    for other in [
        "volumes: {v: {external: true}}\nconfigs: {c: {content: one}}\nsecrets: {s: {environment: S}}",
        "volumes: {v: }\nconfigs: {c: {content: two}}\nsecrets: {s: {environment: S}}",
        "volumes: {v: }\nconfigs: {c: {content: one}}\nsecrets: {s: {environment: T}}",
    ] {
        assert_ne!(hash(other), base, "{other}");
    }
    assert_eq!(hash("configs: {c: {content: one}}\nsecrets: {s: {environment: S}}\nvolumes: {v: {name: p_v}}"), base);
}

/// A command about some services gives them the hashes that they have without it.
#[test]
fn the_hash_does_not_depend_on_the_command() {
    let text = "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x}\n  c: {image: x, links: ['b:z']}\n";
    let (dir, all) = project(&[("compose.yaml", text)]).expect("a project");
    for (names, dependencies) in [(["a"], false), (["a"], true), (["b"], true)] {
        let names = names.map(str::to_owned);
        let some = load(&source(dir.path()), &names, dependencies).expect("a project");
        for name in some.service_names() {
            assert_eq!(some.hash(name), all.hash(name), "{name} of {names:?}");
        }
    }
}

/// The flags that connect the containers of a service to networks, and those that `compose run` uses.
fn connections(text: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let (_dir, project) = project(&[("compose.yaml", text)])?;
    let plans = project.plans().map_err(|error| error.to_string())?;
    let connections = &plans.services["a"].connections;
    let mac = plans.services["a"].flags.iter().filter(|flag| flag.starts_with("--mac-address")).cloned();
    let flags = connections.iter().map(super::Connection::flag).chain(mac).collect();
    Ok((flags, connections.iter().map(super::Connection::plain_flag).collect()))
}

#[test]
fn networks_become_flags() {
    let one = |text: &str| text.to_owned();
    for (text, flags) in [
        ("services: {a: {image: x}}", vec![one("--network=name=p_default,alias=a")]),
        (
            "services: {a: {image: x, network_mode: bridge, mac_address: '02:00:00:00:00:01'}}",
            vec![one("--mac-address=02:00:00:00:00:01")],
        ),
        ("services: {a: {image: x, network_mode: lab}}", vec![]),
        (
            "services: {a: {image: x, networks: {n: {aliases: [z, y], ipv4_address: 10.1.2.3}}, mac_address: '02:00:00:00:00:01'}}\nnetworks: {n: }",
            vec![one("--network=name=p_n,alias=a,alias=y,alias=z,ip=10.1.2.3,mac-address=02:00:00:00:00:01")],
        ),
        (
            "services: {a: {image: x, networks: {n: , m: {priority: 5}, o: {gw_priority: 1}}}}\nnetworks: {n: , m: {name: other}, o: {external: true}}",
            vec![
                one("--network=name=o,alias=a"),
                one("--network=name=other,alias=a"),
                one("--network=name=p_n,alias=a"),
            ],
        ),
        (
            "services: {a: {image: x}}\nnetworks: {default: {external: true, name: bridge}}",
            vec![one("--network=bridge")],
        ),
        (
            "services:\n  a: {image: x, networks: [n, m]}\n  b: {image: x, links: ['a:z', a], networks: [n]}\nnetworks: {n: , m: }",
            vec![one("--network=name=p_m,alias=a"), one("--network=name=p_n,alias=a,alias=z")],
        ),
    ] {
        assert_eq!(connections(text).map(|(flags, _)| flags), Ok(flags), "{text}");
    }
    let (_, plain) =
        connections("services: {a: {image: x, networks: {n: {aliases: [z]}}}}\nnetworks: {n: }").expect("plans");
    assert_eq!(plain, ["--network=p_n"]);
}

#[test]
fn networks_that_gpurun_does_not_have_are_refused() {
    for (text, key, reason) in [
        ("networks: {default: {driver: macvlan}}", "networks.default.driver", "no driver `macvlan`"),
        ("networks: {default: {ipam: {driver: x}}}", "networks.default.ipam.driver", "no driver `x`"),
        ("networks: {default: {ipam: {config: [{subnet: 10.0.0.1/8}]}}}", "networks.default.ipam.config", "10.0.0.0/8"),
        (
            "networks: {default: {ipam: {config: [{gateway: 10.0.0.1}]}}}",
            "networks.default.ipam.config",
            "needs a `subnet`",
        ),
        (
            "networks: {default: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.0.1.1}]}}}",
            "networks.default.ipam.config",
            "not an address of",
        ),
        (
            "networks: {default: {ipam: {config: [{subnet: 10.0.0.0/24}, {subnet: 10.0.1.0/24}]}}}",
            "networks.default.ipam.config",
            "one IPv4 subnet",
        ),
        ("networks: {default: {name: 'a b'}}", "networks.default.name", "not a network's name"),
    ] {
        let error = connections(&format!("services: {{a: {{image: x}}}}\n{text}")).expect_err(text);
        assert!(error.contains(key) && error.contains(reason) && error.contains("line 2"), "{text}: {error}");
    }
    for (services, key, reason) in [
        (
            "a: {image: x, network_mode: bridge, links: [b]}\n  b: {image: x}",
            "services.a.links",
            "network of the project",
        ),
        ("a: {image: x}\n  b: {image: x, links: ['a:c']}\n  c: {image: x}", "services.b.links", "name of a service"),
        (
            "a: {image: x}\n  b: {image: x}\n  c: {image: x, links: ['a:z']}\n  d: {image: x, links: ['b:z']}",
            "links",
            "`z` names both",
        ),
    ] {
        let error = connections(&format!("services:\n  {services}\n")).expect_err(services);
        assert!(error.contains(key) && error.contains(reason), "{services}: {error}");
    }
}
