//! The projects of tests/compose/files really start, with one stand-in for all their images, and leave nothing.
//!
//! tests/compose/config.py compares what these files mean with docker-compose. Here they run, or are refused with the
//! expected sentence.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive;
use crate::driver::FakeDriver;
use crate::host::{Answer, Host, answer, sh};

pub const TESTS: &[(&str, fn())] = &[("all_projects_start_and_leave_nothing", all)];

/// What a project needs, and what becomes of it.
struct Project {
    name: &'static str,
    /// Arguments before the subcommand.
    flags: &'static [&'static str],
    /// What this host does not have: a text of the files, and what takes its place.
    instead: &'static [(&'static str, &'static str)],
    /// Files and their contents. A path that ends with `/` is a directory.
    files: &'static [(&'static str, &'static str)],
    variables: &'static [(&'static str, &'static str)],
    /// gpurun commands before the start.
    before: &'static [&'static [&'static str]],
    /// The text of the error, if the project is refused.
    refused: Option<&'static str>,
}

const NONE: Project =
    Project { name: "", flags: &[], instead: &[], files: &[], variables: &[], before: &[], refused: None };

const fn runs(name: &'static str) -> Project {
    Project { name, ..NONE }
}

const fn refused(name: &'static str, why: &'static str) -> Project {
    Project { name, refused: Some(why), ..NONE }
}

const FROM: &str = "FROM local/stand-in\n";

const PROJECTS: &[Project] = &[
    runs("01-one-notebook"),
    runs("02-gpu-all"),
    Project {
        instead: &[("memlock: -1", "memlock: 65536")],
        files: &[("docker/Dockerfile.gpu", FROM)],
        ..runs("03-gpu-count")
    },
    runs("04-gpu-ids"),
    Project { instead: &[("cpuset: 0-3", "cpuset: 0-0"), ("cpus: 1.5", "cpus: 0.5")], ..runs("05-runtime-nvidia") },
    Project { instead: &[("nvidia.com/gpu=all", "nvidia.com/gpu=1")], ..runs("06-cdi") },
    // Two containers cannot have the same port.
    Project { instead: &[("${PORT:-8080}:80", "80"), ("${TAG:-latest}", "latest")], ..runs("07-variables") },
    runs("08-env-files"),
    runs("09-anchors"),
    Project { files: &[("api/Dockerfile", FROM)], ..runs("10-healthy") },
    Project { instead: &[("\"[::1]:53:53/udp\"", "5353:53/udp")], ..runs("11-networks") },
    Project { flags: &["--profile", "gpu"], ..runs("12-profiles") },
    Project { instead: &[("ports: [\"80:80\"]", "ports: [\"80\"]")], ..runs("13-extends") },
    runs("14-include"),
    Project { files: &[("Dockerfile", "FROM local/stand-in AS dev\n")], ..runs("15-override") },
    runs("16-reset"),
    // The mounts of this test's host are private.
    Project {
        instead: &[("/abs:", "./abs:"), ("~/.cache", "./cache"), ("rslave", "rprivate")],
        files: &[("long/", "")],
        before: &[&["volume", "create", "ext"]],
        ..runs("17-volumes")
    },
    Project {
        instead: &[("/dev/snd", "/dev/full"), ("/dev/fuse", "/dev/zero")],
        ..refused("18-security", "the image has no group `video`")
    },
    Project { variables: &[("TOKEN", "secret")], ..refused("19-build", "is not a directory of this host") },
    Project { files: &[("one.txt", "one"), ("app.conf", "conf")], variables: &[("TWO", "two")], ..runs("20-secrets") },
    Project {
        instead: &[("pull_policy: always", "pull_policy: missing")],
        files: &[("Dockerfile", FROM)],
        ..runs("21-ollama-webui")
    },
    Project { files: &[("Dockerfile", FROM)], ..runs("22-develop") },
    runs("23-swarm"),
    Project { files: &[("mlflow/Dockerfile", FROM)], ..runs("24-mlflow") },
    runs("25-literal"),
    // The image has a command only without the empty entrypoint.
    Project { instead: &[("command: []", "command: [serve]")], ..runs("26-scale") },
    runs("27-links"),
    refused("28-blkio", "services.io"),
    Project {
        before: &[
            &["volume", "create", "shared"],
            &["volume", "create", "other-name"],
            &["network", "create", "proxy"],
        ],
        ..runs("29-external")
    },
    Project { files: &[("Dockerfile", FROM)], ..runs("30-extension-keys") },
    runs("31-json"),
    runs("32-airflow"),
    runs("33-directory-name"),
    runs("34-two-documents"),
    Project { files: &[("Dockerfile", FROM)], ..runs("35-passthrough") },
    Project {
        flags: &["-f", "base.yaml", "-f", "gpu.yaml"],
        instead: &[("/dev/snd", "/dev/full"), ("/dev/fuse", "/dev/zero")],
        files: &[("s", "secret")],
        ..runs("36-several")
    },
    runs("37-shell-words"),
    // A host may have few CPUs, and limit what root may lock and open.
    Project {
        instead: &[("memlock: -1, ", ""), ("65536", "1024"), ("cpus: 8", "cpus: 0.5")],
        files: &[("tf2/Dockerfile", FROM), ("pytorch/Dockerfile", FROM)],
        ..runs("38-recipe")
    },
    Project { files: &[("Dockerfile", FROM)], ..runs("39-contexts") },
];

/// Programs that stay.
const STAY: &str =
    "nvidia-smi serve worker server mlflow webserver run python x /usr/bin/tini /entrypoint start /usr/bin/python3";
/// Programs that end with success.
const END: &str = "mc indented pg_isready redis-cli curl bash migrate";

/// An image with all programs that the projects run.
fn stand_in(path: &Path) {
    let mut image = archive::busybox();
    let mut layer = archive::Layer::default().dir("usr", 0o755).dir("usr/bin", 0o755).dir("work", 0o755);
    for (names, last) in [(STAY, "exec sleep 1000"), (END, "exit 0")] {
        for name in names.split_whitespace() {
            let file = name.strip_prefix('/').map_or_else(|| format!("bin/{name}"), str::to_owned);
            layer = layer.file(&file, 0o755, format!("#!/bin/sh\necho \"$0 $*\"\n{last}\n").as_bytes());
        }
    }
    layer = layer.file("migrate", 0o755, b"#!/bin/sh\nexit 0\n");
    image.name = "local/stand-in".to_owned();
    image.config["config"]["Cmd"] = serde_json::json!(["sleep", "1000"]);
    // Its times apply where a file has none, so that no start takes long.
    let second = 1_000_000_000_u64;
    image.config["config"]["Healthcheck"] = serde_json::json!({
        "Test": ["CMD", "true"], "Interval": 30 * second, "StartPeriod": 600 * second, "StartInterval": second / 10,
    });
    image.layer(layer).write(path);
}

fn files() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/compose/files")
}

pub fn has_files() -> bool {
    files().is_dir()
}

struct Stage {
    host: Host,
    driver: FakeDriver,
    dir: PathBuf,
}

impl Stage {
    fn compose(&self, project: &Project, args: &[&str]) -> Answer {
        let mut command = self.host.command(&[&["compose"], project.flags, args].concat());
        command.current_dir(&self.dir).env("GPURUN_DRIVER_ROOT", &self.driver.root);
        command.envs(project.variables.iter().copied());
        answer(command.output().unwrap())
    }

    /// Copies the project, with what takes the place of what this host lacks.
    fn prepare(&mut self, project: &Project) {
        let files = files().join(project.name);
        self.dir = self.host.dir.join("projects").join(project.name);
        sh(&format!("mkdir -p {0} && cp -r {1}/. {0}", self.dir.display(), files.display()));
        let is_file = |path: &Path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml");
        if !fs::read_dir(&self.dir).unwrap().any(|entry| is_file(&entry.unwrap().path())) {
            self.dir = fs::read_dir(&self.dir).unwrap().next().unwrap().unwrap().path();
        }
        for entry in fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| is_file(path)) {
            let mut text = fs::read_to_string(&entry).unwrap();
            for (from, to) in project.instead {
                text = text.replace(from, to);
            }
            fs::write(entry, text).unwrap();
        }
        for (name, contents) in project.files {
            let path = self.dir.join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, contents).unwrap();
            }
        }
    }

    /// Starts a project, checks it and removes it. Returns the first fault.
    fn check(&mut self, project: &Project) -> Result<(), String> {
        self.prepare(project);
        let ok = |what: &str, answer: Answer| match answer.code {
            0 => Ok(answer.out),
            code => Err(format!("{what}: {code}\n{}{}", answer.out, answer.err)),
        };
        for image in ok("config --images", self.compose(project, &["config", "--images"]))?.lines() {
            self.host.ok(&["image", "tag", "local/stand-in", image]);
        }
        for args in project.before {
            self.host.ok(args);
        }
        let up = self.compose(project, &["up", "-d"]);
        let result = match project.refused {
            Some(why) if up.code != 0 && up.err.contains(why) => Ok(()),
            Some(why) => Err(format!("not refused with `{why}`: {}\n{}", up.code, up.err)),
            None => ok("up", up).and_then(|_| self.look(project)),
        };
        ok("down", self.compose(project, &["down", "-v", "-t", "0"]))?;
        result?;
        let left = self.host.ok(&["ps", "-aq"]);
        let volumes = self.host.ok(&["volume", "ls", "-q"]);
        let networks = self.host.ok(&["network", "ls", "-q", "--filter", "type=custom"]);
        let own = |kind: &str| project.before.iter().filter(|args| args[0] == kind).count();
        if !left.is_empty() || (volumes.lines().count(), networks.lines().count()) != (own("volume"), own("network")) {
            return Err(format!("left: {left} {volumes} {networks}"));
        }
        for args in project.before {
            self.host.ok(&[args[0], "rm", args[2]]);
        }
        match self.host.leftovers() {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        }
    }

    fn look(&self, project: &Project) -> Result<(), String> {
        let names = |args: &[&str]| -> Vec<String> {
            let mut names: Vec<String> = self.compose(project, args).out.lines().map(str::to_owned).collect();
            names.sort();
            names
        };
        let config = self.compose(project, &["config", "--format", "json"]).out;
        let config: serde_json::Value = serde_json::from_str(&config).map_err(|error| error.to_string())?;
        let services = config["services"].as_object().unwrap();
        let wanted: Vec<&String> =
            services.iter().filter(|(_, service)| service["deploy"]["replicas"] != 0).map(|(name, _)| name).collect();
        let found = names(&["ps", "-a", "--services"]);
        if found.iter().collect::<Vec<_>>() != wanted {
            return Err(format!("services: {found:?}, and not {wanted:?}"));
        }
        // The same files change nothing.
        let ids = names(&["ps", "-aq"]);
        let again = self.compose(project, &["up", "-d"]);
        if again.code != 0 || names(&["ps", "-aq"]) != ids {
            return Err(format!("a second `up` changes containers: {}", again.err));
        }
        Ok(())
    }
}

fn all() {
    let host = Host::new();
    let driver = FakeDriver::new(&host.dir.join("driver"), 3);
    driver.cdi("etc/cdi/nvidia.yaml", 3);
    let archive = host.dir.join("stand-in.tar");
    stand_in(&archive);
    host.ok(&["image", "load", archive.to_str().unwrap()]);
    let mut stage = Stage { dir: host.dir.clone(), host, driver };
    let only = std::env::var("GPURUN_TEST_PROJECT").unwrap_or_default();
    let mut wrong = String::new();
    for project in PROJECTS.iter().filter(|project| project.name.starts_with(&only)) {
        if let Err(why) = stage.check(project) {
            writeln!(wrong, "== {}\n{why}", project.name).unwrap();
            for id in stage.host.ok(&["ps", "-aq"]).lines() {
                stage.host.run(&["rm", "-f", id]);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let directories = fs::read_dir(files()).unwrap();
    assert_eq!(directories.count(), PROJECTS.len(), "every project is in the table");
}
