//! Builds that SIGKILL, SIGINT and SIGTERM end at every step: nothing is left, and the next build works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("ended::a_build_that_is_killed_at_every_step", killed),
    ("ended::a_build_that_is_interrupted_at_every_step", interrupted),
];
/// These need strace.
pub const TRACED: &[(&str, fn())] = &[
    ("ended::no_output_of_a_step_is_lost", early_output),
    ("ended::an_attribute_that_disappears_is_no_error", attributes),
];

/// Where debug builds of gpurun look for `GPURUN_KILL_AT` and `GPURUN_STOP_AT`.
const POINTS: [&str; 12] = [
    "build-locked",
    "build-mounts",
    "build-recorded",
    "build-spawned",
    "build-ended",
    "build-layer",
    "build-removed",
    "build-made",
    "build-committed",
    "build-remembered",
    "build-image",
    "build-named",
];

struct Trial {
    fixture: Fixture,
    context: PathBuf,
    file: PathBuf,
}

impl Trial {
    fn new() -> Self {
        let fixture = Fixture::with_box();
        let context = fixture.context(&[("d/x", "x")]);
        let file = context.with_extension("file-ended");
        let text =
            "FROM box\nRUN --mount=type=bind,source=d,target=/m --mount=type=tmpfs,target=/t cp /m/x /x\nCOPY d /d\n";
        fs::write(&file, text).unwrap();
        Self { fixture, context, file }
    }

    fn start(&self, variable: &str, point: &str) -> Child {
        let args =
            ["build", "--no-cache", "-t", "made", "-f", self.file.to_str().unwrap(), self.context.to_str().unwrap()];
        let mut command = self.fixture.command(&args);
        command.env(variable, point).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// A step's supervisor sees that its build is gone; the next command removes what they leave.
    #[track_caller]
    fn assert_clean(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert_eq!(self.fixture.ok(&["ps", "-aq"]), "", "{what}: a step is no container of the caller");
            self.fixture.ok(&["image", "ls", "-q"]);
            let left = self.left();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{what}: {left:?} are left");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.fixture.ok(&["image", "verify"]);
    }

    /// Directories of containers, drafts, mounts and cgroups.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let visible = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
            visible.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
        };
        let is_id = |path: &String| path.rsplit('/').next().is_some_and(|name| name.len() == 64);
        left.extend(names(&self.fixture.dir.join("root/containers")));
        left.extend(names(&self.fixture.dir.join("run")).into_iter().filter(is_id));
        left.extend(names(&self.fixture.dir.join("root/tmp")));
        let ours = format!("{}/", self.fixture.dir.display());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        // The base image's own mount is leased, and outlives its containers for a while.
        let images = format!("{ours}run/images");
        let is_ours = |line: &&str| line.contains(&ours) && !line.contains(&images);
        left.extend(mounts.lines().filter(is_ours).map(str::to_owned));
        left
    }
}

fn killed() {
    let trial = Trial::new();
    for point in POINTS {
        let status = trial.start("GPURUN_KILL_AT", point).wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc_sigkill()), "{point} is never reached");
        trial.assert_clean(point);
    }
    assert!(trial.start("GPURUN_NOTHING", "").wait().unwrap().success());
    assert_eq!(trial.fixture.tree("made").iter().filter(|line| line.ends_with(" x")).count(), 2);
    trial.assert_clean("a whole build");
}

fn libc_sigkill() -> i32 {
    Signal::SIGKILL as i32
}

fn interrupted() {
    let trial = Trial::new();
    for (number, point) in POINTS.iter().enumerate() {
        let signal = [Signal::SIGINT, Signal::SIGTERM][number % 2];
        let mut build = trial.start("GPURUN_STOP_AT", point);
        let id = Pid::from_raw(build.id() as i32);
        let deadline = Instant::now() + Duration::from_secs(60);
        let stopped = || {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        };
        while !stopped() {
            assert!(Instant::now() < deadline, "{point} is never reached");
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(id, signal).unwrap();
        // A point that is reached by two steps stops the build twice.
        let status = loop {
            kill(id, Signal::SIGCONT).unwrap();
            if let Some(status) = build.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{point}: the build does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        // Past the last look at the signals the build is whole.
        let late = point.starts_with("build-image") || point.starts_with("build-named");
        assert_eq!(status.code(), Some(if late { 0 } else { 130 }), "{point}");
        trial.assert_clean(point);
    }
}

/// gpurun under strace, which injects something.
fn traced(fixture: &Fixture, injection: &[&str], args: &[&str]) -> (i32, Vec<u8>, String) {
    let gpurun = fixture.command(args);
    let mut command = std::process::Command::new("strace");
    command.args(["-o", "/dev/null"]).args(injection).arg(gpurun.get_program()).args(args);
    for (name, value) in gpurun.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn early_output() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let file = context.with_extension("file-early");
    // The second step is over before a client that comes half a second late could attach.
    fs::write(&file, "FROM box\nRUN echo early; sleep 1; echo late\nRUN echo short\n").unwrap();
    let args = ["build", "--no-cache", "--network", "none", "-f", file.to_str().unwrap(), context.to_str().unwrap()];
    for when in ["1", "1+"] {
        let delay = format!("inject=sendto:delay_enter=500000:when={when}");
        let (code, _, err) = traced(fixture, &["-e", "trace=sendto", "-e", &delay], &args);
        assert_eq!(code, 0, "{err}");
        for line in ["early", "late", "short"] {
            assert!(err.lines().any(|shown| shown.ends_with(line) && !shown.contains("RUN")), "{line} is lost: {err}");
        }
    }
}

fn attributes() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.user.color", &b"red"[..])]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    tar.append_data(&mut header, "colored", &b"x"[..]).unwrap();
    fs::write(context.join("a.tar"), tar.into_inner().unwrap()).unwrap();
    fixture.build_ok(&context, "FROM box\nADD a.tar /\n", &["-t", "colored"]);
    fixture.ok(&["run", "--name", "colored", "--network", "none", "colored", "sh", "-c", "echo y >>/colored"]);
    let gone = ["-f", "-e", "trace=lgetxattr", "-e", "inject=lgetxattr:error=ENODATA"];
    for args in [&["commit", "colored", "colored:gone"][..], &["cp", "colored:/colored", "-"], &["export", "colored"]] {
        let (code, out, err) = traced(fixture, &gone, args);
        assert!(code == 0 && !out.is_empty(), "{args:?}: {err}");
    }
    fixture.ok(&["rm", "colored"]);
}
