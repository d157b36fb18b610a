//! A container for a test: its root file system, its spec, its cgroup's path, and what it printed.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpurun::testing::report::Report;
use gpurun::testing::runtime::{self, CreateRequest, Created, ExecChild, ExecRequest, INIT_PAYLOAD, Stdio};
use gpurun::testing::spec::seccomp::Filter;
use gpurun::testing::spec::{Capabilities, Process};
use gpurun::testing::sys::process;
use gpurun::testing::sys::seccomp::Instruction;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub mod measure;

const APPLETS: [&str; 22] = [
    "sh", "true", "false", "cat", "echo", "id", "grep", "sleep", "kill", "ls", "stty", "env", "readlink", "mkdir",
    "touch", "stat", "tty", "pwd", "ps", "head", "yes", "mknod",
];

/// A busybox that runs without libraries.
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

pub fn private_mounts() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a private mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .expect("slave propagation");
}

/// Everything for one container; removed when dropped.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: Value,
    pub no_new_privileges: bool,
    pub seccomp: Option<Filter>,
    pub oom_score_adj: Option<i32>,
    pub check: Option<String>,
}

impl Fixture {
    /// A container that runs `script` by a shell.
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn new(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("gpurun-runtime-").tempdir().expect("a directory");
        let root = dir.path().join("rootfs");
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc", "work"] {
            fs::create_dir_all(root.join(name)).expect("a directory");
        }
        fs::copy(busybox().expect("busybox"), root.join("bin/busybox")).expect("a copy");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/work:/bin/sh\n")
            .expect("a file");
        let name = dir.path().file_name().expect("a name").to_string_lossy().into_owned();
        let caps = Capabilities::default();
        let spec = spec(&root, args, &format!("/gpurun-test/{name}"), &caps.names());
        fs::create_dir_all(dir.path().join("state")).expect("a directory");
        Self { dir, id: name, spec, no_new_privileges: true, seccomp: None, oom_score_adj: None, check: None }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Adds a file to the root.
    pub fn file(&self, path: &str, mode: u32, text: &[u8]) {
        let path = self.root().join(path);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
    }

    pub fn install_init(&self) {
        self.file("bin/init", 0o755, INIT_PAYLOAD);
    }

    /// As another user than root.
    pub fn user(&mut self, uid: u32) {
        self.spec["process"]["user"] = json!({ "uid": uid, "gid": uid, "additionalGids": [7] });
        for set in ["effective", "permitted"] {
            self.spec["process"]["capabilities"][set] = json!([]);
        }
    }

    pub fn try_create(&self, stdio: Stdio) -> Result<Created, Report> {
        let mut spec = self.spec.clone();
        spec["process"]["terminal"] = json!(matches!(stdio, Stdio::Pty { .. }));
        spec["process"]["noNewPrivileges"] = json!(self.no_new_privileges);
        fs::write(self.dir.path().join("config.json"), spec.to_string()).expect("the spec");
        let process = Process { oom_score_adj: self.oom_score_adj, ..self.process(&spec) };
        let created = runtime::create(CreateRequest {
            passed_fds: &[],
            lines: &[],
            id: &self.id,
            bundle: self.dir.path(),
            state_root: &self.state(),
            stdio,
            program: self.check.as_deref().unwrap_or(&process.args[0]),
            process: &process,
            devices: None,
        })?;
        Ok(created)
    }

    /// The process that a spec describes, with the fixture's filter.
    fn process(&self, spec: &Value) -> Process {
        Process::of_spec(spec.to_string().as_bytes(), self.seccomp.clone()).expect("a process")
    }

    /// Creates the container with its output going to a pipe.
    pub fn create(&self) -> (Created, Output) {
        let (stdio, output) = piped();
        match self.try_create(stdio) {
            Ok(created) => (created, output),
            Err(report) => panic!("{report}"),
        }
    }

    /// Creates, starts, waits, deletes: exit code and output.
    pub fn run(&self) -> (i32, String) {
        let (mut created, output) = self.create();
        if let Err(error) = created.start() {
            panic!("{}", Report::from(error));
        }
        let text = output.read();
        let code = wait(created.pid);
        self.delete(created);
        (code, text)
    }

    /// Deletes as the launch does: the cgroup, which libcontainer has made here, after the container.
    pub fn delete(&self, created: Created) {
        created.delete().map_err(Report::from).unwrap_or_else(|report| panic!("{report}"));
        self.remove_cgroup();
    }

    pub fn remove_cgroup(&self) {
        let host = gpurun::testing::cgroup::Host::probe(Path::new("/")).expect("cgroups");
        if let Some(cgroup) =
            gpurun::testing::cgroup::Cgroup::open(&host, &self.cgroup_path()).expect("a look at the cgroup")
        {
            cgroup.remove().map_err(Report::from).unwrap_or_else(|report| panic!("{report}"));
        }
    }

    /// A running container that waits until it is killed, for exec.
    pub fn sleeper() -> Self {
        Self::new(&["/bin/sleep", "1000"])
    }

    pub fn started(&self) -> Created {
        let (mut created, _) = self.create();
        created.start().expect("a start");
        created
    }

    /// Nothing of the container is left: no child, no state, no cgroup.
    pub fn assert_gone(&self) {
        assert!(process::children().is_empty(), "children are left");
        let left: Vec<_> = fs::read_dir(self.state()).expect("the state directory").filter_map(Result::ok).collect();
        assert!(left.is_empty(), "state is left: {left:?}");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
    }

    /// The container's directories in every cgroup hierarchy of the host.
    pub fn cgroup_path(&self) -> String {
        self.spec["linux"]["cgroupsPath"].as_str().expect("a path").to_owned()
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_parents().into_iter().map(|parent| parent.join(&self.id)).filter(|path| path.exists()).collect()
    }
}

/// Where the tests' cgroups lie, in every hierarchy of the host.
pub fn cgroup_parents() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        if right.starts_with("cgroup") {
            left.split(' ').nth(4).map(|point| Path::new(point).join("gpurun-test"))
        } else {
            None
        }
    };
    mounts.lines().filter_map(point).collect()
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for path in self.cgroups() {
            for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse() {
                    let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                    process::wait_pid_gone(pid, Duration::from_secs(60));
                    let _ = waitpid(Pid::from_raw(pid), None);
                }
            }
            let _ = fs::remove_dir(path);
        }
    }
}

fn spec(root: &Path, args: &[&str], cgroup: &str, caps: &[&str]) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "hostname": "box",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 }],
        },
        "root": { "path": root, "readonly": false },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "cgroup" }, { "type": "pid" }, { "type": "network" }],
            "rootfsPropagation": "private",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

/// What a container prints, on its way.
pub struct Output(File);

impl Output {
    /// Everything until the last writer is gone.
    pub fn read(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).expect("output");
        text.trim_end().to_owned()
    }

    /// One line: waits for it.
    pub fn line(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).expect("output") == 1 && byte[0] != b'\n' {
            bytes.push(byte[0]);
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

pub fn piped() -> (Stdio, Output) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let stdin = OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
    let stdio = Stdio::Fds { stdin, stdout: write.try_clone().expect("a copy"), stderr: write };
    (stdio, Output(read.into()))
}

/// The exit code of a child, 128 + number where a signal ended it.
pub fn wait(pid: i32) -> i32 {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) => {}
            Err(errno) => panic!("waiting for {pid}: {errno}"),
        }
    }
}

/// An exec request for a shell script, as the container's own process is.
pub fn exec_request<'a>(fixture: &'a Fixture, created: &'a Created, args: &[&str], stdio: Stdio) -> ExecRequest<'a> {
    ExecRequest {
        target: &created.pidfd,
        cgroup_procs: fixture.cgroups().into_iter().map(|dir| dir.join("cgroup.procs")).collect(),
        process: Process {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["PATH=/bin".into(), "HOME=/root".into()],
            cwd: "/".into(),
            uid: 0,
            gid: 0,
            groups: vec![],
            capabilities: Capabilities::default(),
            rlimits: vec![],
            no_new_privileges: fixture.no_new_privileges,
            seccomp: fixture.seccomp.clone(),
            oom_score_adj: None,
            umask: None,
        },
        stdio,
    }
}

pub fn exec_output(
    request: impl FnOnce(Stdio) -> Result<ExecChild, gpurun::testing::runtime::RuntimeError>,
) -> Result<(i32, String), Report> {
    let (stdio, output) = piped();
    let child = request(stdio)?;
    let text = output.read();
    Ok((wait(child.pid), text))
}

/// Reads a terminal until `text` was seen; answers with everything so far.
pub fn read_until(terminal: &OwnedFd, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = String::new();
    while !seen.contains(text) {
        assert!(Instant::now() < deadline, "`{text}` does not come, only: {seen}");
        let mut fds = [nix::poll::PollFd::new(terminal.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 1000u16).expect("poll");
        let mut bytes = [0; 1024];
        match nix::unistd::read(terminal, &mut bytes) {
            Ok(count) => seen += &String::from_utf8_lossy(&bytes[..count]),
            Err(errno) => panic!("{errno} after: {seen}"),
        }
    }
    seen
}

/// A filter, instruction by instruction: mkdir and mkdirat answer EPERM + 41 (an errno that nothing else gives), all else passes.
pub fn no_mkdir() -> Filter {
    let load = |offset| Instruction { code: 0x20, jt: 0, jf: 0, k: offset };
    let equal = |value: i64, jt| Instruction { code: 0x15, jt, jf: 0, k: value as u32 };
    let answer = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000 | libc::EDOTDOT as u32;
    #[cfg(target_arch = "x86_64")]
    let first = equal(libc::SYS_mkdir, 2);
    #[cfg(not(target_arch = "x86_64"))]
    let first = equal(libc::SYS_mkdirat, 2);
    Filter(vec![load(0), first, equal(libc::SYS_mkdirat, 1), answer(ALLOW), answer(ERRNO)])
}
