//! A place for one test: a store, a run directory, room for files; gpurun on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Fixture {
    pub dir: PathBuf,
}

/// The program under test: another build where GPURUN_TEST_BINARY names one.
pub fn gpurun() -> PathBuf {
    std::env::var_os("GPURUN_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_gpurun").into(), PathBuf::from)
}

/// What a gpurun command answered.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Fixture {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var_os("GPURUN_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = base.join(format!("gpurun-img-{}-{number}", std::process::id()));
        fs::create_dir_all(dir.join("home")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(gpurun());
        command.args(args).env("GPURUN_ROOT", self.dir.join("root")).env("GPURUN_RUN", self.dir.join("run"));
        // No login and no mirror of this machine's.
        command.env("HOME", self.dir.join("home")).env("GPURUN_STALL_TIMEOUT", "1");
        for name in
            ["SUDO_USER", "SUDO_UID", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "GPURUN_MIRRORS"]
        {
            command.env_remove(name);
        }
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"] {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        answer(self.command(args).output().unwrap())
    }

    /// Runs, and answers with the most memory that it had at a time, too. (Not by `wait4`: its number begins with the memory of the
    /// process that called `exec`, which is this test.)
    pub fn peak(&self, args: &[&str]) -> (Answer, u64) {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let high =
                text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
            peak = high.unwrap_or(peak);
            std::thread::sleep(Duration::from_millis(1));
        }
        (answer(child.wait_with_output().unwrap()), peak * 1024)
    }

    /// Runs, and insists that it works; answers with standard output, trimmed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "gpurun {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.out.trim().to_owned()
    }

    /// Runs, and insists that gpurun fails; answers with standard error.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        let code = if args[0] == "run" { 125 } else { 1 };
        assert_eq!(answer.code, code, "gpurun {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.err
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// The names of all images of the store.
    pub fn names(&self) -> Vec<String> {
        let images = self.json(&["image", "ls", "--json"]);
        let names = images.as_array().unwrap().iter().flat_map(|image| image["Names"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// Checks that every image is complete, that the store has no file that no image needs, and that `df` counts every block.
    #[track_caller]
    pub fn assert_whole(&self) {
        self.assert_whole_after("");
    }

    /// The same, with what happened before for the message.
    #[track_caller]
    pub fn assert_whole_after(&self, what: &str) {
        let verified = self.json(&["image", "verify", "--json"]);
        assert_eq!(verified["Faults"], serde_json::json!([]), "{what}");
        let root = self.dir.join("root");
        let names = |dir: &Path| -> Vec<String> {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(&root.join("tmp")), [] as [&str; 0], "workplaces: {what}");
        assert_eq!(names(&root.join("layers")).len() as u64, verified["Layers"].as_u64().unwrap(), "layers: {what}");
        // An index, and one that some have, of each image; no temporary file anywhere.
        let images = names(&root.join("images"));
        let dirs = images.iter().filter(|name| !name.contains('.')).count() as u64;
        assert_eq!(dirs, verified["Images"].as_u64().unwrap(), "{images:?}: {what}");
        let odd = |name: &&String| name.starts_with('.') || name.ends_with(".tmp");
        assert_eq!(names(&root).iter().chain(&images).find(odd), None, "{what}");
        let reported = self.json(&["image", "df", "--json"])["Bytes"]["Total"].as_u64().unwrap();
        let found = sh(&format!("du -s -B1 {}", root.display()));
        assert_eq!(Some(reported.to_string().as_str()), found.split_whitespace().next(), "df and du: {what}");
    }

    /// Where an image's files can be seen.
    #[track_caller]
    pub fn mounted(&self, name: &str) -> PathBuf {
        self.ok(&["image", "mount", name]).into()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = |line: &&str| line.contains(self.dir.to_str().unwrap());
        for line in mounts.lines().filter(ours).collect::<Vec<_>>().into_iter().rev() {
            let point = line.split(' ').nth(1).unwrap_or_default();
            let _ = Command::new("umount").args(["-l", point]).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Runs a program that must work; answers with its standard output.
#[track_caller]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that can be seen below a directory, as lines: type, mode, owner, size, time, target, and the files' digests.
pub fn listing(dir: &Path) -> String {
    let dir = dir.display();
    sh(&format!(
        "cd {dir} && find . -mindepth 1 -printf '%P %y %m %U:%G %l %T@\\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum"
    ))
}
