//! Limits by their effects, not only by their files.

use std::time::Duration;

use crate::host::{Host, cgroups_of, eventually, sh};

pub const TESTS: &[(&str, fn())] = &[
    ("a_busy_loop_gets_no_more_cpu_than_asked", cpus),
    ("threads_stay_on_the_cpuset", cpuset),
    ("exec_and_checks_are_in_the_cgroup", joined),
    ("forks_end_at_the_pids_limit", pids),
    ("the_table_shows_what_the_kernel_holds", table),
    (crate::NEEDS_SYSTEMD[0], daemon_reload),
    ("a_container_cannot_change_its_own_limits", own_limits),
    ("a_disk_is_no_faster_than_asked", disk),
];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--network", "none"];
    args.extend(rest);
    args
}

/// A process that joins later has the cgroup and the CPUs of the container, in every hierarchy, and no descriptor of either.
fn joined() {
    let host = Host::with_box();
    let check = "grep Cpus_allowed_list: /proc/self/status > /checked.new; sort -u /proc/self/cgroup >> /checked.new; mv /checked.new /checked";
    let words = ["-d", "--name", "lab", "--cpuset-cpus", "0", "--memory", "64m", "--pids-limit", "20"];
    let health = ["--health-cmd", check, "--health-interval", "1s", "box", "sleep", "1000"];
    host.ok(&run(&[&words[..], &health].concat()));
    let line =
        "grep Cpus_allowed_list: /proc/self/status; ls -l /proc/self/fd | grep -c cgroup; sort -u /proc/self/cgroup";
    let said = host.ok(&["exec", "lab", "sh", "-c", line]);
    let mut lines = said.lines();
    assert_eq!((lines.next(), lines.next()), (Some("Cpus_allowed_list:\t0"), Some("0")), "{said}");
    // The container's cgroup is the root of its namespace.
    assert!(lines.all(|line| line.ends_with(":/")), "{said}");
    eventually("a check runs", || host.run(&["exec", "lab", "cat", "/checked"]).code == 0);
    let checked = host.ok(&["exec", "lab", "cat", "/checked"]);
    assert!(checked.starts_with("Cpus_allowed_list:\t0\n"), "{checked}");
    // Many at once, each with its own exit code, and none of them remains.
    let command = |number: &str| host.command(&["exec", "lab", "sh", "-c", &format!("exit {number}")]).spawn().unwrap();
    let children: Vec<_> = ["3", "4", "5", "6"].into_iter().map(|number| (number, command(number))).collect();
    for (number, mut child) in children {
        assert_eq!(child.wait().unwrap().code().map(|code| code.to_string()).as_deref(), Some(number));
    }
    // At the limit of processes there is an error, and no process outside of the limit.
    host.ok(&run(&["-d", "--name", "full", "box", "sh", "-c", "sleep 1000 & wait"]));
    let count = || host.run(&["top", "full"]).out.lines().count();
    eventually("both processes run", || count() == 3);
    host.ok(&["update", "--pids-limit", "2", "full"]);
    let answer = host.run(&["exec", "full", "true"]);
    assert!(answer.code != 0 && answer.err.contains("cannot"), "{} {}", answer.code, answer.err);
    host.ok(&["update", "--pids-limit", "20", "full"]);
    host.ok(&["exec", "full", "true"]);
    host.ok(&["rm", "-f", "full"]);
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}

fn cpus() {
    let host = Host::with_box();
    host.ok(&run(&["-d", "--name", "busy", "--cpus", "0.5", "box", "sh", "-c", "while true; do :; done"]));
    let id = host.inspect("busy")["Id"].as_str().unwrap().to_owned();
    let used = || -> Duration {
        for dir in cgroups_of(&id) {
            if let Ok(text) = std::fs::read_to_string(dir.join("cpuacct.usage")) {
                return Duration::from_nanos(text.trim().parse().unwrap());
            }
            let stat = std::fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
            if let Some(usec) = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
                return Duration::from_micros(usec.parse().unwrap());
            }
        }
        panic!("no CPU time for {id}");
    };
    let (began, before) = (std::time::Instant::now(), used());
    std::thread::sleep(Duration::from_secs(2));
    let share = (used() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    // Two periods may be cut off at the ends; a busy machine may give less, never more.
    assert!(share <= 0.62, "{share}");
    assert!(share > 0.01, "{share}");
}

/// A disk of its own: a file behind a loop device.
struct Disk(String);

impl Disk {
    fn new(host: &Host) -> Self {
        let file = host.dir.join("disk");
        std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        Self(sh(&format!("losetup --find --show {}", file.display())).trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Past the page cache, so that it is the disk's pace: two megabytes at one a second, and forty operations at twenty a second.
fn disk() {
    let host = Host::with_box();
    let disk = Disk::new(&host);
    let path = disk.0.as_str();
    let took = |limit: &[&str], line: String| -> f64 {
        let device = format!("{path}:/dev/it");
        let timed = format!("a=$(cat /proc/uptime); {line} 2>/dev/null || exit; echo $a; cat /proc/uptime");
        let flags = [&["--rm", "--device", &device][..], limit, &["box", "sh", "-c", &timed]].concat();
        let said = host.ok(&run(&flags));
        let seconds = |line: Option<&str>| -> f64 { line.unwrap().split(' ').next().unwrap().parse().unwrap() };
        let mut lines = said.lines();
        let began = seconds(lines.next());
        seconds(lines.next()) - began
    };
    let read = |block: &str, count| format!("dd if=/dev/it of=/dev/null bs={block} count={count} iflag=direct");
    let write = |block: &str, count| format!("dd if=/dev/zero of=/dev/it bs={block} count={count} oflag=direct");
    let (bytes, operations) = (format!("{path}:1mb"), format!("{path}:20"));
    for (flag, rate, line) in [
        ("--device-read-bps", &bytes, read("64k", 32)),
        ("--device-write-bps", &bytes, write("64k", 32)),
        ("--device-read-iops", &operations, read("4k", 40)),
        ("--device-write-iops", &operations, write("4k", 40)),
    ] {
        let held = took(&[flag, rate], line.clone());
        // Other programs on a busy machine may hold one of these up.
        let free = (0..3).map(|_| took(&[], line.clone())).find(|free| *free < held / 2.0).unwrap_or(held);
        // A slice of a tenth of a second at either end is free; what a busy machine adds is in both.
        assert!(held >= 1.6, "{flag}: {held} s");
        assert!(free < held / 2.0 || crate::host::slow(), "{flag}: {held} s with it, {free} s without");
        assert!(held < free + 6.0 || crate::host::slow(), "{flag}: {held} s with it, {free} s without");
    }
}

fn cpuset() {
    let host = Host::with_box();
    assert_eq!(host.ok(&run(&["--rm", "--cpuset-cpus", "0", "box", "nproc"])), "1");
    // Eight busy processes on the one CPU that they may have, wherever they were before.
    let busy = "for i in 1 2 3 4 5 6 7 8; do (while true; do :; done) & done; wait";
    host.ok(&run(&["-d", "--name", "busy", "--cpuset-cpus", "1", "box", "sh", "-c", busy]));
    let id = host.inspect("busy")["Id"].as_str().unwrap().to_owned();
    let procs = || -> Vec<String> {
        let text = std::fs::read_to_string(cgroups_of(&id)[0].join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    eventually("all eight run", || procs().len() == 9);
    // proc_pid_stat(5): the 39th field is the CPU that it ran on last; the name before may hold blanks, so counted from behind it.
    let ran_on = |pid: &String| -> String {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(36).unwrap().to_owned()
    };
    let cpus: Vec<String> = procs().iter().map(ran_on).collect();
    assert!(cpus.len() == 9 && cpus.iter().all(|cpu| cpu == "1"), "{cpus:?}");
    host.ok(&["update", "busy", "--cpuset-cpus", "0"]);
    // Pid 1 waits, and so runs nowhere.
    eventually("they have moved", || procs().iter().filter(|pid| ran_on(pid) == "0").count() >= 8);
}

fn pids() {
    let host = Host::with_box();
    // The shell is one of twelve: eleven forks go well, and the next one answers EAGAIN.
    let script = "n=0; while sleep 30 & do n=$((n+1)); echo $n; done";
    let answer = host.run(&run(&["--rm", "--pids-limit", "12", "box", "sh", "-c", script]));
    assert_eq!(answer.out.lines().last(), Some("11"), "{}", answer.err);
    assert!(answer.code != 0 && answer.err.contains("fork: Resource temporarily unavailable"), "{}", answer.err);
}

fn table() {
    let host = Host::with_box();
    let all =
        ["--verbose", "--memory", "64m", "--cpus", "0.5", "--cpuset-cpus", "0", "--pids-limit", "50", "box", "true"];
    let answer = host.run(&run(&all));
    assert_eq!(answer.code, 0, "{}", answer.err);
    for flag in ["--memory 67108864 → ", "--cpus ", "--cpuset-cpus 0 → ", "--pids-limit 50 → "] {
        assert!(answer.err.contains(flag), "{flag} is not in\n{}", answer.err);
    }
    let name = host.ok(&["ps", "-aq"]);
    let limits = host.inspect(&name)["Limits"].clone();
    let memory = limits.as_array().unwrap().iter().find(|row| row["flag"] == "--memory").unwrap().clone();
    assert_eq!(memory["kernel"], "67108864");
}

fn own_limits() {
    let host = Host::with_box();
    // As root of the container, in every hierarchy, by every file and by making cgroups; the second pass is an exec'ed process's.
    let script = "cd /sys/fs/cgroup
        for file in $(find . -type f); do
            case $file in *.max|*_in_bytes|*quota_us|*.cpus|*devices.allow|*cgroup.procs)
                value=$(head -n 1 $file 2>/dev/null)
                (echo ${value:-a} > $file) 2>/dev/null && echo written: $file ;;
            esac
        done
        for dir in $(find . -type d); do mkdir $dir/own 2>/dev/null && echo made: $dir; done
        ls */memory.limit_in_bytes memory.max 2>/dev/null | head -1
        (mount -o remount,rw /sys/fs/cgroup) 2>/dev/null && echo remounted
        true";
    let out = host.ok(&run(&["--rm", "--memory", "64m", "box", "sh", "-c", script]));
    assert!(out == "memory.max" || out == "memory/memory.limit_in_bytes", "{out}");
    host.ok(&run(&["-d", "--name", "lab", "--memory", "64m", "box", "sleep", "100"]));
    assert_eq!(host.ok(&["exec", "lab", "sh", "-c", script]), out);
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}

/// What has taken limits and devices from other people's containers: systemd, which knows nothing of our cgroup, sets up its own tree again.
fn daemon_reload() {
    let gpus = crate::gpu::Lab::new(2);
    let host = &gpus.host;
    gpus.ok(&run(&["-d", "--name", "gpu", "--gpus", "device=0", "--gpu-mode", "native", "box", "sleep", "1000"]));
    let opens = "for n in 0 1; do mknod /tmp/$n c 195 $n; dd if=/tmp/$n of=/dev/null count=1; done 2>&1 | grep -o -e 'No such device or address' -e 'Operation not permitted'";
    let gpu_holds = || {
        // GPU 0 can be made and opened, GPU 1 not even made (and what is not there cannot be opened).
        let said = gpus.ok(&["exec", "gpu", "sh", "-c", &format!("rm -f /tmp/0; {opens}")]);
        assert_eq!(said, "No such device or address\nOperation not permitted", "GPU 0 and no other");
    };
    gpu_holds();
    let flags = ["--memory", "64m", "--cpus", "0.5", "--cpuset-cpus", "0", "--pids-limit", "50"];
    host.ok(&run(&[&["-d", "--name", "lab"][..], &flags, &["box", "sleep", "1000"]].concat()));
    let id = host.inspect("lab")["Id"].as_str().unwrap().to_owned();
    let held = || -> Vec<String> {
        let files = ["memory.max", "cpu.max", "cpuset.cpus", "pids.max"];
        let dirs = cgroups_of(&id);
        files.iter().map(|file| std::fs::read_to_string(dirs[0].join(file)).unwrap().trim().to_owned()).collect()
    };
    let before = held();
    assert_eq!(before, ["67108864", "50000 100000", "0", "50"]);
    // A unit with limits of its own has systemd set up every controller from the root down.
    let unit = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=true\nSlice=other.slice\nMemoryMax=100M\nCPUQuota=50%\n";
    std::fs::write("/run/systemd/system/other.service", unit).unwrap();
    crate::host::sh("systemctl daemon-reload && systemctl start other.service && systemctl daemon-reload");
    assert_eq!(held(), before);
    gpu_holds();
    let answer =
        host.run(&["exec", "lab", "sh", "-c", "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem; head -c 1 /dev/zero | wc -c"]);
    assert!(answer.err.contains("Operation not permitted") && answer.out.trim() == "1", "{}", answer.err);
    assert!(host.ok(&["explain", "lab"]).contains("kernel     cpuset.cpus = 0"));
}
