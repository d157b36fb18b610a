//! `--gpus` on a stand-in of a driver: what the hook is given, which GPUs a word means, who has which. What a container can do with
//! them: `gpu_filter`.

use std::process::Command;

use crate::driver::{self, FakeDriver, VERSION, uuid};
use crate::host::{Answer, Host, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("the_hook_gets_what_nvidia_asks_for", contract),
    ("a_failing_hook_is_quoted_and_nothing_runs", failure),
    ("without_a_driver_or_a_hook_it_is_refused", refused),
    ("hooks_run_in_the_order_of_their_stages", order),
    ("the_device_filter_stands_before_the_hook", filtered),
    ("what_a_hook_put_there_is_in_no_commit", committed),
    ("a_hook_that_hangs_is_ended_with_all_its_children", hangs),
    ("doctor_knows_the_drivers_troubles", doctor),
    ("an_image_that_needs_more_is_refused", requirements),
    ("defaults_that_save_a_day", defaults),
];

/// A host with a stand-in of a driver.
pub struct Lab {
    pub host: Host,
    pub driver: FakeDriver,
}

impl Lab {
    pub fn new(gpus: usize) -> Self {
        let host = Host::with_box();
        let driver = FakeDriver::new(&host.dir.join("driver"), gpus);
        Self { host, driver }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(args);
        command.env("GPURUN_DRIVER_ROOT", &self.driver.root);
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        let output = self.command(args).output().unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "gpurun {args:?}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.out.trim().to_owned()
    }

    /// A shell line in a fresh container with these flags.
    #[track_caller]
    pub fn shell(&self, flags: &[&str], line: &str) -> String {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend(["box", "sh", "-c", line]);
        self.ok(&args)
    }

    /// A shell line in a fresh container of another image.
    #[track_caller]
    pub fn shell_in(&self, image: &str, line: &str) -> String {
        self.ok(&["run", "--rm", "--network", "none", image, "sh", "-c", line])
    }
}

fn contract() {
    let lab = Lab::new(2);
    let host = &lab.host;
    let seen = host.dir.join("seen");
    std::fs::create_dir(&seen).unwrap();
    let dir = seen.display();
    let script = format!(
        "echo \"$@\" > {dir}/args; cat > {dir}/state; env > {dir}/env; pwd > {dir}/cwd; readlink /proc/self/ns/mnt > {dir}/mnt\n\
         bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/' {dir}/state); pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' {dir}/state)\n\
         cp $bundle/config.json {dir}/config.json; cat /proc/$pid/cgroup > {dir}/cgroup; ls /proc/$pid/root > {dir}/root"
    );
    lab.driver.hook(&script);
    let out = lab.ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--memory",
        "64m",
        "-e",
        "NVIDIA_VISIBLE_DEVICES=all",
        "--gpus",
        "device=1",
        "box",
        "env",
    ]);
    let visible = out.lines().find(|line| line.starts_with("NVIDIA_VISIBLE_DEVICES=")).unwrap();
    assert_eq!(visible, format!("NVIDIA_VISIBLE_DEVICES={}", uuid(1)), "what was asked wins over everything");
    let read = |name: &str| std::fs::read_to_string(seen.join(name)).unwrap();
    assert_eq!(read("args"), "prestart\n");
    assert!(
        read("env")
            .lines()
            .all(|line| ["PATH=", "PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|key| line.starts_with(key))),
        "{}",
        read("env")
    );
    let config: serde_json::Value = serde_json::from_str(&read("config.json")).unwrap();
    assert!(
        config["root"]["path"].as_str().unwrap().starts_with('/'),
        "the hook resolves a relative one against its own directory"
    );
    let env = config["process"]["env"].as_array().unwrap();
    assert!(env.iter().any(|entry| entry.as_str() == Some(visible)));
    assert!(
        !config["process"]["capabilities"]["bounding"].as_array().unwrap().iter().any(|name| name == "CAP_SYS_ADMIN")
    );
    let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
    assert!(state["pid"].as_i64().unwrap() > 0 && state["bundle"].as_str().unwrap().contains("/run/"));
    assert!(read("cgroup").contains("/gpurun/"), "it is in its cgroup before the hook runs: {}", read("cgroup"));
    // Other tests name their directories `gpurun-…`.
    assert!(!read("root").lines().any(|name| name == "gpurun"), "{}", read("root"));
    // An image that asks for rights over other GPUs is not granted them; a person is.
    lab.ok(&["run", "--name", "base", "--network", "none", "box", "true"]);
    lab.ok(&["commit", "-c", "ENV NVIDIA_IMEX_CHANNELS=0 NVIDIA_MIG_MONITOR_DEVICES=all", "base", "greedy"]);
    lab.ok(&["rm", "base"]);
    for (mine, reached) in [(None, vec![]), (Some("NVIDIA_IMEX_CHANNELS=1"), vec!["NVIDIA_IMEX_CHANNELS=1"])] {
        let mut args = vec!["run", "--rm", "--network", "none", "--gpus", "1"];
        args.extend(mine.iter().flat_map(|entry| ["-e", entry]));
        args.extend(["greedy", "true"]);
        let answer = lab.run(&args);
        assert_eq!(answer.code, 0, "{}", answer.err);
        assert!(answer.err.contains("the image's `NVIDIA_IMEX_CHANNELS=0` is omitted"), "{}", answer.err);
        let config: serde_json::Value = serde_json::from_str(&read("config.json")).unwrap();
        let env = config["process"]["env"].as_array().unwrap().iter().filter_map(|entry| entry.as_str());
        let rights: Vec<&str> = env.filter(|entry| entry.contains("IMEX") || entry.contains("_MIG_")).collect();
        assert_eq!(rights, reached);
    }
    // Quoted as docker wants it, two of them, and a number.
    for (asked, expected) in [("\"device=0,1\"", 2), ("2", 2), ("1", 1)] {
        let out = lab.ok(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--gpus",
            asked,
            "box",
            "sh",
            "-c",
            "echo $NVIDIA_VISIBLE_DEVICES",
        ]);
        assert_eq!(out.trim().split(',').count(), expected, "{asked}: {out}");
    }
    assert_eq!(host.leftovers(), "");
}

fn failure() {
    let lab = Lab::new(1);
    lab.driver.hook(
        "echo 'nvidia-container-cli: initialization error: nvml error: driver/library version mismatch' >&2; exit 1",
    );
    let answer = lab.run(&["run", "--rm", "--network", "none", "--gpus", "all", "box", "echo", "ran"]);
    let error = &answer.err;
    assert_eq!(answer.code, 125, "{error}");
    assert_eq!(answer.out, "", "the container's process never ran");
    assert!(
        error.contains("prestart hook") && error.contains("version mismatch") && error.contains("hint:"),
        "{error}"
    );
    eventually("nothing is left", || lab.host.leftovers().is_empty());
    assert_eq!(leased(&lab), 0, "the GPU is given back");
}

/// What NVIDIA's own tool finds: a filter that it can add to, and that allows the selected GPU already (a host with `no-cgroups = true` adds
/// nothing). The body goes into the container's cgroup and tries both GPUs.
fn filtered() {
    let lab = Lab::new(2);
    let seen = lab.host.dir.join("seen");
    let script = format!(
        "exec 2> {0}.err\nstate=$(cat); pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')\n\
         path=$(sed -n 's/^[0-9]*:devices://p' /proc/$pid/cgroup); dir=/sys/fs/cgroup/devices$path\n\
         if [ -z \"$path\" ]; then dir=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup); fi\n\
         for n in 0 1; do mknod {0}.node$n c 195 $n; sh -c \"echo \\$\\$ > $dir/cgroup.procs; dd if={0}.node$n of=/dev/null count=0\" 2> {0}.open$n; done; true\n",
        seen.display()
    );
    lab.driver.hook(&script);
    let line = "dd if=/dev/nvidia0 of=/dev/null count=1 2>&1 | grep -o -e 'No such device or address' -e 'Operation not permitted'; \
         mknod /tmp/x c 195 1; dd if=/tmp/x of=/dev/null count=1 2>&1 | grep -o -e 'No such device or address' -e 'Operation not permitted'";
    let said = lab.shell(&["--gpus", "device=0", "--gpu-mode", "hook"], line);
    let read = |what: &str| std::fs::read_to_string(format!("{}.{what}", seen.display())).unwrap_or_default();
    assert!(
        !read("open0").contains("Operation not permitted"),
        "the selected one: {:?} {}",
        read("open0"),
        read("err")
    );
    assert!(read("open1").contains("Operation not permitted"), "before the hook: {:?} {}", read("open1"), read("err"));
    assert_eq!(said, "No such device or address\nOperation not permitted", "{}", read("err"));
}

/// The driver's files belong to the host, not to an image that is made of the container.
fn committed() {
    let lab = Lab::new(1);
    // Beside what the toolkit's stand-in does: a link, the linker's cache and a library's place.
    let script = "state=$(cat); pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); bundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
         root=$(sed -n '/\"root\"/,/}/s/.*\"path\": *\"\\([^\"]*\\)\".*/\\1/p' $bundle/config.json)\n\
         nsenter -t $pid -m sh -c \"mkdir -p $root/opt/driver && echo driver > $root/opt/driver/libcuda.so.1\"\n";
    lab.driver.hook(script);
    lab.driver.cdi("etc/cdi/nvidia.yaml", 1);
    lab.driver.program(
        "nvidia-cdi-hook",
        "state=$(cat); bundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
         root=$(sed -n '/\"root\"/,/}/s/.*\"path\": *\"\\([^\"]*\\)\".*/\\1/p' $bundle/config.json)\n\
         mkdir -p $root/opt/driver; rm -f $root/opt/driver/libcuda.so.1; ln -s libcuda.so.550 $root/opt/driver/libcuda.so.1\n\
         echo cache > $root/etc/ld.so.cache~; mv $root/etc/ld.so.cache~ $root/etc/ld.so.cache\n",
    );
    let line = "[ -e /mine ] && touch /second; echo mine > /mine; mkdir -p /made; rm -rf /usr/share/man";
    for mode in ["hook", "cdi", "native"] {
        let flags = ["run", "--name", "it", "--network", "none", "--gpus", "device=0", "--gpu-mode", mode];
        lab.ok(&[flags.as_slice(), &["box", "sh", "-c", line]].concat());
        assert_eq!(lab.ok(&["diff", "it"]), "A /made\nA /mine", "{mode}");
        for _ in 0..2 {
            lab.ok(&["start", "-a", "it"]);
            assert_eq!(lab.ok(&["diff", "it"]), "A /made\nA /mine\nA /second", "{mode}, started again");
        }
        lab.ok(&["commit", "it", "made"]);
        let found = lab.shell_in(
            "made",
            "cat /mine; ls -d /opt/driver /etc/ld.so.cache /usr/lib/x86_64-linux-gnu/libcuda.so.1 2>&1 || true",
        );
        assert!(found.starts_with("mine") && found.matches("No such file").count() == 3, "{mode}: {found}");
        // What the container itself makes where the driver's files are is its own.
        lab.ok(&["rm", "it"]);
        lab.ok(&["image", "rm", "made"]);
    }
    assert_eq!(lab.host.leftovers(), "");
}

fn hangs() {
    let lab = Lab::new(1);
    let dir = lab.host.dir.join("hooks.d");
    std::fs::create_dir(&dir).unwrap();
    let pids = lab.host.dir.join("pids");
    let define = |timeout: u32| {
        let script = format!(
            "echo begun >&2; sleep 1000 & echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let text = serde_json::json!({
            "version": "1.0.0", "hook": { "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout },
            "when": { "always": true }, "stages": ["prestart"],
        });
        std::fs::write(dir.join("10-hang.json"), text.to_string()).unwrap();
    };
    let args = [
        "run",
        "--name",
        "it",
        "--network",
        "none",
        "--gpus",
        "1",
        "--hooks-dir",
        dir.to_str().unwrap(),
        "box",
        "true",
    ];
    // Neither the hook nor its children live. A zombie does not count.
    let living = || {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        let lives =
            |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        text.lines().filter(lives).count()
    };
    define(1);
    let answer = lab.run(&args);
    assert!(
        answer.code == 125 && answer.err.contains("hook `10-hang`") && answer.err.contains("did not end within 1 s"),
        "{}",
        answer.err
    );
    assert!(answer.err.contains("begun"), "{}", answer.err);
    eventually("the hook and its child are ended", || living() == 0);

    // The process that waits for it is killed, and it ends as well, long before its timeout.
    std::fs::remove_file(&pids).unwrap();
    define(1000);
    let mut command =
        lab.command(&args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually("the hook runs", || living() == 2);
    let hook: i32 = std::fs::read_to_string(&pids).unwrap().lines().nth(1).unwrap().parse().unwrap();
    let parent = |pid: i32| -> i32 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
    };
    let supervisor = parent(parent(hook));
    let snippets = std::fs::read(format!("/proc/{supervisor}/cmdline")).unwrap();
    assert!(
        snippets.split(|byte| *byte == 0).any(|snippet| snippet == b"supervise"),
        "{}",
        String::from_utf8_lossy(&snippets)
    );
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_ne!(command.wait().unwrap().code(), Some(0));
    eventually("the hook goes with its supervisor", || living() == 0);
    lab.ok(&["rm", "-f", "it"]);
    assert_eq!((lab.host.leftovers().as_str(), leased(&lab)), ("", 0));
}

fn doctor() {
    let lab = Lab::new(2);
    // A finding is one line here, its hint another, however they are folded.
    let reported = || {
        let mut whole: Vec<String> = Vec::new();
        for line in lab.run(&["doctor"]).out.lines() {
            match (line.trim_start().starts_with("hint: "), line.strip_prefix(&" ".repeat(20))) {
                (false, Some(rest)) => *whole.last_mut().expect("a finding") += &format!(" {rest}"),
                _ => whole.push(line.to_string()),
            }
        }
        let of_gpus = whole.into_iter().filter(|line| line.split_whitespace().nth(1) == Some("gpu"));
        of_gpus.map(|line| format!("{line}\n")).collect::<String>()
    };
    assert!(
        reported().starts_with(&format!("ok       gpu        driver {VERSION}, CUDA up to 12.4, 2 GPUs\n")),
        "{}",
        reported()
    );
    lab.driver.hook("exit 0");
    lab.driver.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.17.4");
    lab.driver.cdi("etc/cdi/nvidia.yaml", 2);
    std::fs::remove_file(lab.driver.root.join("usr/bin/nvidia-cdi-hook")).unwrap();
    lab.driver.write("proc/devices", "Character devices:\n195 nvidia\n");
    let off = driver::gpu(0, 0, 0, false).replace(" 1 0\n", " 0 0\n") + &driver::gpu(1, 0, 0, false);
    lab.driver.nvml(&format!("driver {VERSION}\ncuda 12040\n{off}"));
    for snippets in [
        "PROBLEM  gpu        the kernel module `nvidia_uvm`, which CUDA needs, is not loaded",
        "container toolkit 1.17.4 lets images break out of their containers (CVE-2025-23266 and CVE-2025-23267)",
        "advice   gpu        persistence mode is off (GPU 0)",
        "is stale: `/usr/bin/nvidia-cdi-hook` does not exist; `--gpu-mode auto` uses another mode",
    ] {
        assert!(reported().contains(snippets), "{snippets}: {}", reported());
    }
    lab.driver.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Tue\n");
    lab.driver.nvml("fail 18");
    assert!(
        reported().contains(&format!(
            "the loaded driver has the version 570.86.10, but the libraries on the disk have {VERSION}: the driver was upgraded without a reboot"
        )),
        "{}",
        reported()
    );
}

fn refused() {
    let mut lab = Lab::new(2);
    let run = |lab: &Lab, flags: &[&str]| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend(["box", "true"]);
        let answer = lab.run(&args);
        (answer.code, answer.err)
    };
    let (code, error) = run(&lab, &["--gpus", "3"]);
    assert!(code == 125 && error.contains("3 GPUs are requested, but the host has 2"), "{error}");
    let (code, error) = run(&lab, &["--gpus", "device=2"]);
    assert!(code == 125 && error.contains("there is no GPU `2`"), "{error}");
    let (code, error) = run(&lab, &["--gpus", "some"]);
    assert!(code == 125 && error.contains("--gpus"), "{error}");
    let (code, error) = run(&lab, &["--gpus", "all", "--gpu-mode", "hook"]);
    assert!(code == 125 && error.contains("hook is not installed") && error.contains("hint:"), "{error}");
    let (code, error) = run(&lab, &["--gpus", "all", "--gpu-mode", "cdi"]);
    assert!(code == 125 && error.contains("no CDI file"), "{error}");
    let (code, _) = run(&lab, &["--gpus", "all", "--gpu-mode", "magic"]);
    assert_eq!(code, 125);
    lab.driver.root = lab.host.dir.join("empty");
    std::fs::create_dir(&lab.driver.root).unwrap();
    let (code, error) = run(&lab, &["--gpus", "all"]);
    assert!(code == 125 && error.contains("no NVIDIA driver") && error.contains("hint:"), "{error}");
    assert_eq!(lab.host.ok(&["ps", "-aq"]), "");
}

fn order() {
    let host = Host::with_box();
    let (dir, log) = (host.dir.join("hooks.d"), host.dir.join("order"));
    std::fs::create_dir(&dir).unwrap();
    for stage in ["poststop", "createContainer", "createRuntime", "prestart", "poststart"] {
        let script = format!("echo {stage} >> {}", log.display());
        let text = format!(
            r#"{{"version":"1.0.0","hook":{{"path":"/bin/sh","args":["sh","-c","{script}"]}},"when":{{"always":true}},"stages":["{stage}"]}}"#
        );
        std::fs::write(dir.join(format!("{stage}.json")), text).unwrap();
    }
    host.ok(&["run", "--rm", "--network", "none", "--hooks-dir", dir.to_str().unwrap(), "box", "sleep", "0.2"]);
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n"
    );
    assert_eq!(host.leftovers(), "");
}

fn requirements() {
    let lab = Lab::new(1);
    let flags = ["run", "--rm", "--network", "none", "--gpus", "all", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=12.9"];
    let answer = lab.run(&[&flags[..], &["box", "echo", "ran"]].concat());
    assert_eq!((answer.code, answer.out.as_str()), (125, ""));
    assert!(
        answer.err.contains("needs CUDA >= 12.9") && answer.err.contains("550.54.15") && answer.err.contains("12.4"),
        "{}",
        answer.err
    );
    let answer = lab.run(&[&flags[..], &["-e", "NVIDIA_DISABLE_REQUIRE=1", "box", "echo", "ran"]].concat());
    assert_eq!((answer.code, answer.out.as_str()), (0, "ran\n"), "{}", answer.err);
    assert_eq!(leased(&lab), 0);
}

/// What "unlimited" locked memory comes to on this host: everything, or the hard limit where it cannot be raised.
fn locked_memory() -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap();
    let capabilities =
        read("status").lines().find_map(|line| line.strip_prefix("CapEff:").map(str::trim).map(str::to_owned)).unwrap();
    if u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1 {
        return "unlimited".into();
    }
    let limits = read("limits");
    let line = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    line.split_whitespace().nth(4).unwrap().to_owned()
}

fn defaults() {
    let lab = Lab::new(1);
    let line = "df -m /dev/shm | tail -n 1 | awk '{print $2}'; grep -e 'locked memory' -e 'stack size' /proc/self/limits | awk '{print $4, $5}'; echo $CUDA_DEVICE_ORDER";
    let asked = ["--gpus", "all", "--memory", "256m"];
    assert_eq!(lab.shell(&asked, line), format!("128\n67108864 67108864\n{0} {0}\nPCI_BUS_ID", locked_memory()));
    let own = [
        "--gpus",
        "all",
        "--memory",
        "256m",
        "--shm-size",
        "32m",
        "--ulimit",
        "memlock=65536",
        "--ulimit",
        "stack=8388608",
        "-e",
        "CUDA_DEVICE_ORDER=FASTEST_FIRST",
    ];
    assert_eq!(lab.shell(&own, line), "32\n8388608 8388608\n65536 65536\nFASTEST_FIRST", "what a person says wins");
    assert!(lab.shell(&[], line).starts_with("64\n"));
}

/// How many containers have a lease.
pub fn leased(lab: &Lab) -> usize {
    let entries = std::fs::read_dir(lab.host.dir.join("run/gpus")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}
