//! A host of its own for each test: a store, a run directory and a network namespace, and the promise that nothing is left behind.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Host {
    pub dir: PathBuf,
    pub netns: String,
}

/// What a gpurun command answered.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Host {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gpurun-e2e-{}-{number}", std::process::id());
        let dir =
            std::env::var_os("GPURUN_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from).join(&name);
        fs::create_dir_all(&dir).unwrap();
        for args in [&["netns", "add", &name][..], &["-n", &name, "link", "set", "lo", "up"]] {
            let output = Command::new("ip").args(args).output().unwrap();
            assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let host = Self { dir, netns: name };
        host.forward_packets();
        host
    }

    /// Turns on IPv4 forwarding, as on a host where gpurun has run before: the first run there says that it does so. A new network
    /// namespace takes the setting of the machine that the tests run on.
    fn forward_packets(&self) {
        let netns = fs::File::open(format!("/run/netns/{}", self.netns)).unwrap();
        let forward = move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        };
        // Only the thread that writes enters the namespace.
        std::thread::spawn(forward).join().unwrap();
    }

    /// A host with the image `box` (busybox) in its store, which is a copy of one that was loaded once.
    pub fn with_box() -> Self {
        let host = Self::new();
        let loaded = BOX_STORE.get_or_init(|| {
            let archive = box_archive();
            let output = host.command(&["image", "load", archive.to_str().unwrap()]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let kept = archive.with_extension("store");
            copy_tree(&host.dir.join("root"), &kept);
            kept
        });
        if !host.dir.join("root").exists() {
            copy_tree(loaded, &host.dir.join("root"));
        }
        host
    }

    /// `gpurun …` on this host.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_in(&self.netns, args)
    }

    pub fn command_in(&self, netns: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg(binary());
        command.args(args);
        command.env("GPURUN_ROOT", self.dir.join("root")).env("GPURUN_RUN", self.dir.join("run"));
        command.env_remove("SUDO_UID").env_remove("SUDO_GID").env_remove("GPURUN_KILL_AT");
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// `gpurun …` at the end of another command line, which says what it is run by.
    pub fn behind(&self, snippets: &[&str], args: &[&str]) -> Command {
        let inner = self.command(args);
        let mut command = Command::new(snippets[0]);
        command.args(&snippets[1..]).arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// A line of bash on this host: `gpurun` finds the same store as [`Host::command`]'s.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = self.program("bash", &["-c", line]);
        command.env("GPURUN_ROOT", self.dir.join("root")).env("GPURUN_RUN", self.dir.join("run"));
        command.env_remove("SUDO_UID").env_remove("SUDO_GID").env_remove("GPURUN_KILL_AT");
        command.current_dir(&self.dir);
        command
    }

    /// Another program in this host's network.
    pub fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg(program).args(args).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        answer(self.command(args).output().unwrap())
    }

    /// Runs, and insists that it works; answers with standard output, trimmed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "gpurun {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.out.trim().to_owned()
    }

    /// Runs, and insists that it ends with this code; answers with standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, code, "gpurun {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.err
    }

    pub fn with_input(&self, args: &[&str], input: &[u8]) -> Answer {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let answer = answer(child.wait_with_output().unwrap());
        writer.join().unwrap();
        answer
    }

    /// The first container that `inspect` shows under a name. What is below `Gpurun` is beside docker's keys here.
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(&self.ok(&["inspect", name])).unwrap();
        let mut container = all[0].clone();
        for (key, value) in container["Gpurun"].as_object().unwrap().clone() {
            match (&mut container[key.as_str()], value) {
                (serde_json::Value::Object(dockers), serde_json::Value::Object(own)) => dockers.extend(own),
                (slot, value) => *slot = value,
            }
        }
        container
    }

    /// Ids of all containers that have a directory anywhere.
    fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for dir in [self.dir.join("root/containers"), self.dir.join("run")] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.len() == 64 {
                    ids.push(name);
                }
            }
        }
        ids
    }

    /// Everything of this host that remains outside its directory after a gpurun command could remove it. The kernel
    /// removes the devices of a network namespace a moment after the namespace's last process: these are waited for.
    pub fn leftovers(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut links = self.links();
        while !links.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            links = self.links();
        }
        let mut found = links;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in mounts.lines().filter(|line| line.contains(self.dir.to_str().unwrap())) {
            // The image cache is leased, not left: see rootfs.
            if !line.contains("/run/images/") {
                writeln!(found, "mount: {line}").unwrap();
            }
        }
        for id in self.ids() {
            for cgroup in cgroups_of(&id) {
                writeln!(found, "cgroup: {}", cgroup.display()).unwrap();
            }
        }
        for entry in fs::read_dir(self.dir.join("run")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 64 {
                writeln!(found, "run directory: {name}").unwrap();
            }
        }
        let rules = answer(self.program("nft", &["list", "ruleset"]).output().unwrap());
        assert_eq!(rules.code, 0, "{}", rules.err);
        // The chains of a network stay until it is removed.
        let is_network = |line: &&str| line.contains(" : goto ") || line.contains("{ \"gpurun-");
        for line in rules.out.lines().filter(|line| line.contains("elements") && !is_network(line)) {
            writeln!(found, "nft: {line}").unwrap();
        }
        found
    }

    /// The host's ends of the containers' veth pairs: `gpurun0-2`, `gp1a2b3c-2`.
    fn links(&self) -> String {
        let links = answer(self.program("cat", &["/proc/net/dev"]).output().unwrap());
        assert_eq!(links.code, 0, "{}", links.err);
        let is_end = |line: &&str| {
            let name = line.trim_start().split(':').next().unwrap_or_default();
            name.starts_with("gpurun0-")
                || (name.starts_with("gp") && name.contains('-') && !name.starts_with("gpurun-"))
        };
        links.out.lines().filter(is_end).map(|line| format!("link: {line}\n")).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in self.ids() {
            let _ = self.run(&["rm", "-f", &id]);
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            if point.starts_with(self.dir.to_str().unwrap()) {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.netns]).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Directories of a container's cgroup below any hierarchy.
pub fn cgroups_of(id: &str) -> Vec<PathBuf> {
    cgroup_roots().into_iter().map(|root| root.join("gpurun").join(id)).filter(|path| path.is_dir()).collect()
}

/// The roots of the cgroup hierarchies: that of version 2, and those of version 1 below it.
pub fn cgroup_roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    roots
}

pub fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a shell line that must work.
#[track_caller]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The directory with the C programs of the tests. tests/vm/suite builds them beforehand, because its machines have no compiler.
pub fn compiled(host: &Host) -> PathBuf {
    std::env::var_os("GPURUN_TEST_PROGRAMS").map_or_else(
        || {
            sh(&format!("{} {}", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/programs"), host.dir.display()));
            host.dir.clone()
        },
        PathBuf::from,
    )
}

/// The program under test: `GPURUN_TEST_BINARY`, or the one that cargo built beside the tests.
pub fn binary() -> PathBuf {
    std::env::var_os("GPURUN_TEST_BINARY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_gpurun")), PathBuf::from)
}

/// Whether systemd is PID 1. Its directory alone says nothing: scripts of packages make it elsewhere, too.
pub fn runs_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
        && std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd")
}

/// A host whose processor is emulated: load tests do less there, and waiting takes longer.
pub fn slow() -> bool {
    std::env::var_os("GPURUN_TEST_SLOW").is_some()
}

/// How long tests wait for what must happen. It is long because it costs time only when a test fails, and CI's machines
/// are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds. The test fails if it does not hold within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = if slow() { PATIENCE * 3 } else { PATIENCE };
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

static BOX_ARCHIVE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
/// A store with `box` alone in it.
static BOX_STORE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

/// Copies a store that is not in use.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_tree(&source, &target),
            kind if kind.is_symlink() => std::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap(),
            _ => drop(fs::copy(&source, &target).unwrap()),
        }
    }
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

/// A docker-archive with one image, `box`: Debian's static busybox and its applets. Made once a run.
pub fn box_archive() -> &'static Path {
    BOX_ARCHIVE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("gpurun-e2e-box-{}.tar", std::process::id()));
        super::archive::busybox().write(&path);
        path
    })
}

/// At the end of the run.
pub fn remove_box() {
    if let Some(path) = BOX_ARCHIVE.get() {
        let _ = fs::remove_file(path);
    }
    if let Some(path) = BOX_STORE.get() {
        let _ = fs::remove_dir_all(path);
    }
}

/// An output whose reader has closed it.
pub fn deaf() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}
