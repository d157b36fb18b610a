//! Every command, killed half-way: nothing is frozen, mounted, running or in the packet filter afterwards, and the next
//! command works.
//!
//! Each command has a test of its own, so that `cargo test --test e2e -- kills::image_load` runs one of them. The list of
//! the commands is clap's: a new command fails `kills::every_command_has_a_case` until it has a case here.
//! `GPURUN_BIG=1` (`./run-tests --big`) adds the commands that change nothing, all three signals and more moments.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{self, Host, PATIENCE, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[("every_command_has_a_case", every_command)];

/// What becomes of a command that is not interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It succeeds.
    Well,
    /// It fails here: there is no registry, no GPU, no image of that kind. It is killed before it knows.
    Somehow,
    /// It waits until it is interrupted.
    Never,
}

use End::{Never, Somehow, Well};

/// A command (without a subcommand: the launch of Jupyter), its arguments, and its end.
pub type Case = (&'static str, &'static [&'static str], End);

/// `up` runs, with a published port; `down` has run; `box` is an image, `box.tar` its archive; `context` holds a
/// Containerfile. A command may have several cases.
const CASES: &[Case] = &[
    ("", &["--image", "box", "--name", "new"], Somehow),
    ("run", &["--name", "new", "-p", "8081:80", "box", "true"], Well),
    ("run", &["--rm", "--memory", "64m", "-v", "volume:/v", "box", "true"], Well),
    ("run", &["-d", "--name", "new", "--restart", "always", "box", "sleep", "1000"], Well),
    ("run", &["--rm", "-v", "memory:/v", "box", "true"], Well),
    ("create", &["--name", "new", "-v", "kept:/data", "box", "true"], Well),
    ("port", &["up"], Well),
    ("top", &["up"], Well),
    ("container prune", &["--force"], Well),
    ("container exists", &["up"], Well),
    // These two change the host's own systemd, so only their help is interrupted.
    ("boot enable", &["--help"], Well),
    ("boot disable", &["--help"], Well),
    ("boot status", &[], Well),
    ("boot start", &[], Well),
    ("boot stop", &[], Well),
    ("system df", &[], Well),
    ("system prune", &["--force"], Well),
    ("volume create", &["data"], Well),
    ("volume exists", &["files"], Well),
    ("volume export", &["-o", "files.tar", "files"], Well),
    ("volume import", &["files", "box.tar"], Well),
    ("volume inspect", &["data"], Somehow),
    ("volume ls", &[], Well),
    ("volume mount", &["files"], Well),
    ("volume prune", &["--force", "--all"], Well),
    ("volume rm", &["--force", "data"], Well),
    ("volume unmount", &["files"], Well),
    ("untag", &["spare"], Well),
    ("login", &["-u", "ann", "-p", "x", "127.0.0.1:1"], Somehow),
    ("logout", &["--authfile", "auth.json", "127.0.0.1:1"], Well),
    ("search", &["127.0.0.1:1/x"], Somehow),
    ("version", &[], Well),
    ("buildx version", &[], Well),
    ("builder du", &[], Well),
    ("builder prune", &["--force", "--all"], Well),
    ("network connect", &["bridge", "up"], Somehow),
    ("network create", &["lan"], Well),
    ("network disconnect", &["bridge", "up"], Somehow),
    ("network exists", &["bridge"], Well),
    ("network inspect", &["bridge"], Well),
    ("network ls", &[], Well),
    ("network prune", &["--force"], Well),
    ("network rm", &["lan"], Somehow),
    ("shim install", &["--dir", "."], Somehow),
    ("shim remove", &["--dir", "."], Well),
    ("shim status", &["--dir", "."], Somehow),
    ("info", &[], Well),
    ("ps", &["-a"], Well),
    ("exec", &["up", "true"], Well),
    ("exec", &["-d", "up", "sleep", "1000"], Well),
    ("logs", &["-f", "up"], Never),
    ("attach", &["up"], Never),
    ("start", &["down"], Well),
    ("restart", &["-t", "0", "up"], Well),
    ("stop", &["-t", "0", "up"], Well),
    ("kill", &["up"], Well),
    ("rm", &["-f", "up", "down"], Well),
    ("rename", &["up", "other"], Well),
    ("explain", &["--memory", "64m"], Well),
    ("explain", &["--tree", "up"], Well),
    ("doctor", &[], Somehow),
    ("lab list", &[], Well),
    ("lab run", &["device"], Somehow),
    ("lab run", &["memory"], Somehow),
    ("lab run", &["overlay"], Somehow),
    ("lab run", &["zombies"], Somehow),
    ("update", &["--memory", "48m", "up"], Well),
    ("pause", &["up"], Well),
    ("resume", &["up"], Somehow),
    ("stats", &[], Never),
    ("events", &[], Never),
    ("healthcheck run", &["up"], Somehow),
    ("wait", &["up"], Never),
    ("inspect", &["up"], Well),
    ("commit", &["up", "made"], Well),
    ("cp", &["up:/bin/busybox", "copy"], Well),
    ("cp", &["box.tar", "up:/copy"], Well),
    ("diff", &["up"], Well),
    ("export", &["-o", "files.tar", "up"], Well),
    ("build", &["-t", "made", "--network", "none", "context"], Well),
    ("image load", &["--name", "again", "box.tar"], Well),
    ("image import", &["files.tar", "imported"], Somehow),
    ("image bootstrap", &["--mirror", "http://127.0.0.1:1", "debian:trixie"], Somehow),
    ("image pull", &["127.0.0.1:1/x"], Somehow),
    ("image push", &["box", "127.0.0.1:1/x"], Somehow),
    ("image exists", &["box"], Well),
    ("image ls", &[], Well),
    ("image rm", &["spare"], Well),
    ("image inspect", &["box"], Well),
    ("image history", &["box"], Well),
    ("image tag", &["box", "tagged"], Well),
    ("image prune", &["--force"], Well),
    ("image df", &[], Well),
    ("image verify", &[], Well),
    ("image save", &["-o", "saved.tar", "box"], Well),
    ("image mount", &["box"], Well),
    ("image unmount", &["box"], Somehow),
    ("image unpack", &["box", "unpacked"], Well),
    ("gpus", &[], Somehow),
    ("token", &["--password-stdin"], Somehow),
    ("url", &["up"], Somehow),
    ("completion", &["bash"], Well),
    ("man", &["."], Well),
    ("compose config", &["-q"], Well),
    ("compose build", &[], Well),
    ("compose cp", &["one:/f", "copy"], Somehow),
    ("compose create", &[], Well),
    ("compose down", &[], Well),
    ("compose exec", &["one", "true"], Somehow),
    ("compose images", &[], Well),
    ("compose kill", &[], Well),
    ("compose logs", &[], Well),
    ("compose ls", &[], Well),
    ("compose pause", &[], Somehow),
    ("compose port", &["one", "80"], Somehow),
    ("compose ps", &[], Well),
    ("compose pull", &[], Somehow),
    ("compose restart", &[], Well),
    ("compose rm", &["-f"], Well),
    ("compose run", &["one", "true"], Well),
    ("compose start", &[], Somehow),
    ("compose stop", &[], Well),
    ("compose top", &[], Well),
    ("compose unpause", &[], Somehow),
    ("compose up", &["-d"], Well),
    ("compose version", &[], Well),
    ("compose wait", &["one"], Somehow),
];

/// What belongs to every commit: commands that change a container or an image.
const SMALL: [&str; 11] =
    ["run", "create", "exec", "start", "restart", "stop", "rm", "update", "commit", "build", "image_load"];

const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM];

fn big() -> bool {
    std::env::var_os("GPURUN_BIG").is_some()
}

/// The cases that belong to this run, by name: `image_load`; the second case of a command is `run_2`.
pub fn by_name() -> Vec<(String, &'static Case)> {
    let mut all: Vec<(String, &'static Case)> = Vec::new();
    for case in CASES {
        let command = if case.0.is_empty() { "launch".to_owned() } else { case.0.replace(' ', "_") };
        let before = all.iter().filter(|(_, other)| other.0 == case.0).count();
        all.push((if before == 0 { command } else { format!("{command}_{}", before + 1) }, case));
    }
    all.retain(|(name, _)| big() || SMALL.contains(&name.as_str()));
    all
}

fn every_command() {
    let mut known: Vec<&str> = CASES.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
    let mut defined = gpurun::testing::cli::command_names();
    known.sort_unstable();
    known.dedup();
    defined.sort_unstable();
    assert_eq!(known, defined, "each command of clap's definition has a case, and each case a command");
}

/// Kills a command half-way: with every signal at several moments, or in a small run with one of the signals.
pub fn check(case: &Case) {
    let (name, rest, end) = *case;
    let args: Vec<&str> = name.split(' ').filter(|word| !word.is_empty()).chain(rest.iter().copied()).collect();
    let calls = if end == Never { Vec::new() } else { calls(&args, end) };
    let number = CASES.iter().position(|(other, ..)| *other == name).unwrap();
    let signals = if big() { &SIGNALS[..] } else { &SIGNALS[number % 3..=number % 3] };
    // A command that waits has one state only.
    let eighths: &[usize] = match (end, big()) {
        (Never, _) => &[8],
        (_, true) => &[1, 2, 3, 4, 5, 6, 7],
        _ => &[4, 6],
    };
    for &signal in signals {
        for eighth in eighths {
            let (call, at) = calls.get(calls.len() * eighth / 8).cloned().unwrap_or_default();
            let what = format!("{args:?}, {signal} at {eighth}/8 ({call} {at})");
            one(&args, end, signal, (&call, at), &what);
        }
    }
}

/// Kills a command on a host of its own when it makes a system call for the `at`-th time.
fn one(args: &[&str], end: End, signal: Signal, (call, at): (&str, usize), what: &str) {
    let host = ready();
    let id = host.inspect("up")["Id"].as_str().unwrap().to_owned();
    match end {
        Never => interrupt_waiting(&host, args, signal),
        Well | Somehow => {
            let (trace, inject) =
                (format!("trace={call}"), format!("inject={call}:signal={}:when={at}", signal.as_str()));
            let _ = traced(&host, &["-o", "/dev/null", "-e", &trace, "-e", &inject], args).output().unwrap();
        }
    }
    let ps = host.run(&["ps", "-a"]);
    assert_eq!(ps.code, 0, "{what}: {}", ps.err);
    assert!(args[0] == "pause" || holds_in_time(|| !frozen(&id)), "{what}: frozen");
    // Whatever the command has done or not: everything that exists can be removed.
    for container in host.ok(&["ps", "-aq"]).lines() {
        eventually(what, || host.run(&["rm", "-f", container]).code == 0);
    }
    let mut left = String::new();
    let clean = || {
        left = format!("{}{}{}{}", host.leftovers(), processes(&host), labs(), files_in(&host, "tmp"));
        left.is_empty()
    };
    if !holds_in_time(clean) {
        panic!("{what}: {left}");
    }
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "box", "echo", "fine"]), "fine", "{what}");
    // A command that uses the store removes what an interrupted one has begun.
    host.ok(&["image", "verify"]);
    assert_eq!(files_in(&host, "root/tmp"), "", "{what}");
}

/// `gpurun …` below strace, which sees this program alone.
fn traced(host: &Host, strace: &[&str], args: &[&str]) -> Command {
    let inner = command(host, args);
    let mut words = inner.get_args();
    let mut command = Command::new(inner.get_program());
    command.arg(words.next().unwrap()).args(["strace", "-qq"]).args(strace).args(words);
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(&host.dir).stdin(std::process::Stdio::null());
    command
}

/// `gpurun …` with a directory for temporary files of its own.
fn command(host: &Host, args: &[&str]) -> Command {
    let mut command = host.command(args);
    command.env("TMPDIR", host.dir.join("tmp"));
    command
}

fn holds_in_time(mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A host with a container that runs and one that has run.
fn ready() -> Host {
    let host = Host::with_box();
    std::fs::create_dir(host.dir.join("tmp")).unwrap();
    std::fs::copy(host::box_archive(), host.dir.join("box.tar")).unwrap();
    std::fs::create_dir(host.dir.join("context")).unwrap();
    std::fs::write(host.dir.join("context/Containerfile"), "FROM box\nRUN echo x > /f\nRUN echo y > /g\n").unwrap();
    std::fs::write(host.dir.join("compose.yaml"), "services:\n  one:\n    image: box\n").unwrap();
    host.ok(&["image", "tag", "box", "spare"]);
    host.ok(&["volume", "create", "files"]);
    host.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "memory"]);
    host.ok(&["run", "-d", "--name", "up", "-p", "8080:80", "--memory", "64m", "box", "sleep", "1000"]);
    host.ok(&["run", "--name", "down", "--network", "none", "box", "touch", "/kept"]);
    host
}

/// The system calls of the command when nothing interrupts it: the name, and the number among those of that name, which
/// is what strace counts.
fn calls(args: &[&str], end: End) -> Vec<(String, usize)> {
    let host = ready();
    let trace = host.dir.join("trace").display().to_string();
    // strace is slow on an emulated processor.
    let which = if host::slow() { "trace=openat" } else { "trace=all" };
    let answer = host::answer(traced(&host, &["-o", &trace, "-e", which], args).output().unwrap());
    assert!(end != Well || answer.code == 0, "{args:?}: {} {}", answer.code, answer.err);
    let text = String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned();
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    let names = text.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name);
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .filter(|name| !["execve", "exit", "exit_group", "rt_sigreturn", "restart_syscall"].contains(name))
        .map(|name| {
            let count = seen.entry(name).or_default();
            *count += 1;
            (name.to_owned(), *count)
        })
        .collect()
}

fn interrupt_waiting(host: &Host, args: &[&str], signal: Signal) {
    let mut child: Child = command(host, args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let mut quiet = 0;
    eventually("it waits", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        quiet = if stat.contains(") S ") { quiet + 1 } else { 0 };
        quiet >= 10
    });
    kill(Pid::from_raw(pid as i32), signal).unwrap();
    eventually("it ends", || {
        // A signal that an attached command passes on may be ignored by `sleep` as pid 1; the second one says so.
        let ended = child.try_wait().unwrap().is_some();
        if !ended && signal != Signal::SIGKILL && args[0] == "attach" {
            let _ = child.kill();
        }
        ended
    });
}

/// Whether the kernel has frozen the container.
fn frozen(id: &str) -> bool {
    cgroups_of(id).iter().any(|dir| {
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        read("freezer.state").starts_with("FROZEN") || read("cgroup.events").contains("frozen 1")
    })
}

/// Processes of this host: by their network namespace, or by its directory in their arguments, variables or working
/// directory.
fn processes(host: &Host) -> String {
    use std::os::unix::fs::MetadataExt;
    let mut found = String::new();
    let mark = host.dir.display().to_string();
    let namespace = std::fs::metadata(format!("/run/netns/{}", host.netns)).unwrap().ino();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        if path.file_name().is_none_or(|name| !name.as_encoded_bytes()[0].is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| {
            String::from_utf8_lossy(&std::fs::read(path.join(file)).unwrap_or_default()).replace('\0', " ")
        };
        let line = read("cmdline");
        let inside = std::fs::metadata(path.join("ns/net")).is_ok_and(|it| it.ino() == namespace);
        let at_work = std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&host.dir));
        // A zombie has ended; its parent may be outside of gpurun.
        let ended = read("stat").contains(") Z ");
        if !ended && (inside || at_work || line.contains(&mark) || read("environ").contains(&mark)) {
            found.push_str(&format!("process {}: {line}\n", path.display()));
        }
    }
    found
}

/// Cgroups of labs that have ended. Other tests may run labs of their own.
fn labs() -> String {
    let gone = |path: &std::path::Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let pid = name.strip_prefix("lab-").and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists())
    };
    let mut roots = vec![std::path::PathBuf::from("/sys/fs/cgroup/gpurun")];
    roots.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join("gpurun")));
    let inside = roots.iter().flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten());
    inside.map(|entry| entry.path()).filter(|path| gone(path)).map(|path| format!("{}\n", path.display())).collect()
}

/// What is in a directory of the host: `root/tmp` is the store's, `tmp` the one for temporary files of the commands.
fn files_in(host: &Host, dir: &str) -> String {
    let entries = std::fs::read_dir(host.dir.join(dir)).into_iter().flatten().flatten();
    entries.map(|entry| format!("{}\n", entry.path().display())).collect()
}
