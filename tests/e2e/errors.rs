//! The text of every error that a command line can cause: one snapshot per prepared state, with the exit status and all of standard error.
//!
//! The tables are `errors/*.txt`: one command line per line, without `gpurun`, in the words of a shell with single quotes. After a wanted
//! change, run this group with `INSTA_UPDATE=always` and read the difference. What differs between hosts is replaced by `<PLACEHOLDER>`.

use std::fmt::Write as _;
use std::fs;

use crate::host::{Host, answer};

pub const TESTS: &[(&str, fn())] = &[
    ("usage_errors_without_a_store", usage),
    ("refused_commands_and_flags_of_docker", docker),
    ("errors_about_images", images),
    ("errors_about_containers", containers),
    ("errors_of_builds", builds),
    ("errors_of_late_instructions_come_before_the_first_step", late),
    ("errors_of_compose_files", compose_files),
    ("errors_of_the_configuration_file", configuration),
];

/// Whether the checkout is here: a virtual machine has the test program only.
pub fn has_snapshots() -> bool {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/errors")).is_dir()
}

/// Splits a line into arguments. Single quotes keep blanks, and `''` is an empty argument.
fn arguments(line: &str) -> Vec<String> {
    let (mut all, mut current, mut quoted) = (Vec::new(), None::<String>, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                current.get_or_insert_default();
            }
            ' ' if !quoted => all.extend(current.take()),
            letter => current.get_or_insert_default().push(letter),
        }
    }
    all.extend(current);
    all
}

/// Replaces what differs from run to run and from host to host.
fn stable(host: &Host, text: &str) -> String {
    let mut text = text.replace(&host.dir.display().to_string(), "<DIR>");
    for (pattern, with) in [
        // Only the first network of a host says this, and not if the host forwards packets already.
        (r"gpurun: this host now forwards packets [^\n]*\n", ""),
        (r"\bpid \d+", "pid <PID>"),
        (r"kill -9 \d+", "kill -9 <PID>"),
        (r"\b[0-9a-f]{64}\b", "<ID>"),
        (r"\b[0-9a-f]{12}\b", "<ID>"),
        (r"linux/(amd64|arm64)", "linux/<ARCH>"),
        (r"only \d+ CPUs", "only <N> CPUs"),
        (r"0\.01 to \d+\.00", "0.01 to <N>.00"),
        (r"to `--cpus \d+`", "to `--cpus <N>`"),
        (r"available: [0-9,-]+", "available: <SET>"),
        (r"use some of `(--cpuset-[a-z]+) [0-9,-]+`", "use some of `$1 <SET>`"),
        (r"/var/tmp/[^ `:]*", "<TMP>"),
    ] {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

/// Runs every line of a table and compares the transcript. Every line must fail.
fn run_table(name: &str, host: &Host, table: &str) {
    let (mut text, mut successful) = (String::new(), Vec::new());
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            writeln!(text, "{line}\n").unwrap();
            continue;
        }
        let args = arguments(line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answer = host.run(&args);
        if answer.code == 0 {
            successful.push(line);
        }
        writeln!(text, "$ gpurun {line}\n[{}] {}\n", answer.code, stable(host, answer.err.trim_end())).unwrap();
    }
    check(name, &text);
    assert_eq!(successful, [""; 0], "these command lines are not refused");
}

fn check(name: &str, transcript: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("errors");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, transcript));
}

fn usage() {
    let host = Host::new();
    fs::write(host.dir.join("bad.env"), "A B=1\n").unwrap();
    fs::write(host.dir.join("no-equals.env"), "=1\n").unwrap();
    fs::write(host.dir.join("bad.json"), "{").unwrap();
    fs::write(host.dir.join("empty"), "").unwrap();
    run_table("usage", &host, include_str!("errors/usage.txt"));
}

fn docker() {
    let host = Host::new();
    run_table("docker", &host, include_str!("errors/docker.txt"));
}

fn images() {
    let host = Host::with_box();
    fs::write(host.dir.join("text.tar"), "no archive").unwrap();
    fs::write(host.dir.join("empty.tar"), [0; 10240]).unwrap();
    fs::create_dir_all(host.dir.join("full/dir")).unwrap();
    fs::write(host.dir.join("bad-auth.json"), "{").unwrap();
    fs::write(host.dir.join("two-lines"), "a\nb\n").unwrap();
    fs::write(host.dir.join("empty"), "").unwrap();
    host.ok(&["image", "tag", "box", "other"]);
    host.ok(&["image", "save", "-o", "one.tar", "box"]);
    run_table("images", &host, include_str!("errors/images.txt"));
}

fn containers() {
    let host = Host::with_box();
    host.ok(&["run", "-d", "--name", "up", "--network", "none", "box", "sleep", "1000"]);
    host.ok(&["run", "-d", "--name", "paused", "--network", "none", "box", "sleep", "1000"]);
    host.ok(&["pause", "paused"]);
    host.ok(&["run", "--name", "ended", "--network", "none", "-v", "used:/data", "box", "true"]);
    host.ok(&["exec", "up", "ln", "-s", "/tmp/loop", "/tmp/loop"]);
    nix::unistd::mkfifo(&host.dir.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(host.dir.join("dir")).unwrap();
    run_table("containers", &host, include_str!("errors/containers.txt"));
    host.ok(&["rm", "-f", "up", "paused", "ended"]);
    assert_eq!(host.leftovers(), "");
}

/// Each line of the table is a Containerfile, with `\n` between its lines.
fn builds() {
    let host = Host::with_box();
    let context = host.dir.join("context");
    fs::create_dir(&context).unwrap();
    for name in ["a", "ab", "ignored"] {
        fs::write(context.join(name), name).unwrap();
    }
    fs::write(context.join(".dockerignore"), "ignored\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", context.join("outside")).unwrap();
    nix::unistd::mkfifo(&context.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (mut text, mut successful) = (String::new(), Vec::new());
    for line in include_str!("errors/builds.txt").lines() {
        if line.starts_with("# ") && !line.contains("FROM") {
            writeln!(text, "{line}\n").unwrap();
            continue;
        }
        fs::write(context.join("Containerfile"), line.replace("\\n", "\n")).unwrap();
        let answer = host.run(&["build", "--quiet", "--network", "none", "--no-cache", "context"]);
        if answer.code == 0 {
            successful.push(line);
        }
        writeln!(text, "{line}\n[{}] {}\n", answer.code, stable(&host, answer.err.trim_end())).unwrap();
    }
    check("builds", &text);
    assert_eq!(successful, [""; 0], "these Containerfiles are not refused");
    assert_eq!(host.leftovers(), "");
}

/// Nothing is executed or pulled before an error that needs no execution.
fn late() {
    let host = Host::with_box();
    let context = host.dir.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("a"), "a").unwrap();
    for (line, what) in [
        ("EXPOSE abc", "`EXPOSE` needs ports"),
        ("STOPSIGNAL NOPE", "`STOPSIGNAL` needs a signal"),
        ("HEALTHCHECK --interval=x CMD true", "`HEALTHCHECK --interval`"),
        ("COPY nope /x", "the build context has no `nope`"),
        ("COPY --chmod=x a /x", "--chmod=x"),
        ("COPY --from=1 /a /x", "copies from itself"),
        ("COPY --from=last /a /x", "copies from itself"),
        ("RUN --mount=type=bind,from=last,target=/x true", "copies from itself"),
        ("RUN --mount=type=nosuch,target=/x true", "unknown type `nosuch`"),
        ("RUN --mount=type=bind,source=nope,target=/x true", "the build context has no `nope`"),
        // Known as soon as the base image is here.
        ("ENV PORT=abc\nEXPOSE $PORT", "`EXPOSE` needs ports"),
        ("ARG PORT=abc\nEXPOSE $PORT", "`EXPOSE` needs ports"),
    ] {
        let text = format!("FROM box AS first\nFROM box AS last\nRUN echo executed\n{line}\n");
        fs::write(context.join("Containerfile"), text).unwrap();
        let answer = host.run(&["build", "--network", "none", "--no-cache", "context"]);
        assert_eq!(answer.code, 1, "{line}");
        assert!(answer.err.contains(what), "{line}: {}", answer.err);
        assert!(!format!("{}{}", answer.out, answer.err).contains("executed"), "{line}: {}", answer.err);
    }
    // A stage that is not built is not checked, and a pattern need not match anything. The variables of an image are known.
    let image = "FROM box\nENV PORT=80\n";
    fs::write(context.join("Containerfile"), image).unwrap();
    host.ok(&["build", "--quiet", "-t", "ported", "context"]);
    let text = "FROM box AS unused\nEXPOSE abc\nFROM ported\nRUN true\nEXPOSE $PORT\nCOPY a no* /x/\n";
    fs::write(context.join("Containerfile"), text).unwrap();
    host.ok(&["build", "--quiet", "--network", "none", "context"]);
    assert_eq!(host.leftovers(), "");
}

/// Each file, and a command that reads it.
fn compose_files() {
    let host = Host::with_box();
    let mut text = String::new();
    for (file, args) in [
        ("services:\n  a:\n    image: ${IMG}\n", &["up", "-d"][..]),
        ("services:\n  a:\n    image: ${IMG}\n", &["ps"]),
        ("services:\n  a:\n    image: box\n    mem_limit: ${MEM}\n", &["up", "-d"]),
        ("services:\n  a:\n    image: box\n    mem_limit: ${MEM}\n", &["config"]),
        ("services:\n  a:\n    image: box\n    secrets: [key]\nsecrets:\n  key:\n    file: nosuch\n", &["up", "-d"]),
        ("services:\n  a:\n    image: box\n    configs: [key]\nconfigs:\n  key:\n    file: nosuch\n", &["up", "-d"]),
        ("services:\n  a:\n    image: box\n    secrets: [key]\nsecrets:\n  key:\n    file: nosuch\n", &["run", "a"]),
        (
            "services:\n  a:\n    image: box\n    volumes:\n      - {type: bind, source: ./nosuch, target: /x, bind: {create_host_path: false}}\n",
            &["up", "-d"],
        ),
        ("services:\n  a: {image: box, depends_on: [b]}\n  b: {image: box, depends_on: [a]}\n", &["config"]),
        ("services:\n  a:\n    image: 5\n", &["config"]),
        ("services:\n  a:\n    image: box\n    restart: [a]\n", &["config"]),
        ("services:\n  a:\n    image: box\n    cap_add: [1]\n", &["config"]),
        ("services:\n  a:\n    image: box\n    tty: maybe\n", &["config"]),
        ("services:\n  a:\n    image: box\n    labels: text\n", &["config"]),
        ("services:\n  a: box\n", &["config"]),
        ("services:\n  a: {image: box}\n", &["--env-file", "nosuch.env", "config"]),
        ("services:\n  a: {image: box}\n  b: {image: box}\n", &["kill", "-s", "NOPE"]),
    ] {
        fs::write(host.dir.join("compose.yaml"), file).unwrap();
        let answer = host.run(&[&["compose", "-p", "lab", "-f", "compose.yaml"], args].concat());
        let err = stable(&host, answer.err.trim_end());
        writeln!(text, "{file}$ gpurun compose {}\n[{}] {err}\n", args.join(" "), answer.code).unwrap();
    }
    check("compose", &text);
    assert_eq!(host.ok(&["ps", "-aq"]), "");
}

fn configuration() {
    let host = Host::new();
    let file = host.dir.join("config.toml");
    let mut text = String::new();
    for content in [
        "no toml",
        "[limits]\nmemory = \"x\"",
        "[limits]\nmemroy = \"1g\"",
        "[limits]\ncpus = 0.00000000001",
        "[limits]\npids_limit = -5",
        "[network]\nsubnet = \"8.8.8.0/24\"",
        "[network]\nsubnet = \"10.89.0.0/16\"",
        "[gpus]\nmode = \"magic\"",
        "[log]\nmax-size = \"much\"",
        "[log]\nmax-file = 0",
        "root = \"relative\"",
        "run_dir = \"relative\"",
        "[registries.mirrors]\n\"docker.io\" = \"not a list\"",
    ] {
        fs::write(&file, content).unwrap();
        let launch = ["run", "--rm", "--pull", "never", "nope"];
        let answer = answer(host.command(&launch).env("GPURUN_CONFIG", &file).output().unwrap());
        let err = stable(&host, answer.err.trim_end());
        writeln!(text, "{}\n[{}] {err}\n", content.replace('\n', "; "), answer.code).unwrap();
    }
    let answer = answer(host.command(&["ps"]).env("GPURUN_CONFIG", host.dir.join("none.toml")).output().unwrap());
    writeln!(text, "(no such file)\n[{}] {}", answer.code, stable(&host, answer.err.trim_end())).unwrap();
    check("configuration", &text);
}
