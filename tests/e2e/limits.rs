//! Limits by their effects, not only by their files.

use std::time::Duration;

use crate::host::{Host, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("memory_past_the_limit_is_killed_and_told", oom),
    ("a_busy_loop_gets_no_more_cpu_than_asked", cpus),
    ("nproc_follows_the_cpuset", cpuset),
    ("forks_end_at_the_pids_limit", pids),
    ("the_table_shows_what_the_kernel_holds", table),
    ("what_docker_refuses_is_refused", refused),
    (crate::NEEDS_SYSTEMD, daemon_reload),
    ("ulimits_hold", ulimits),
    ("a_container_cannot_change_its_own_limits", own_limits),
];

fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--network", "none"];
    args.extend(rest);
    args
}

fn oom() {
    let host = Host::with_box();
    let answer =
        host.run(&run(&["--name", "hog", "--memory", "32m", "--memory-swap", "32m", "box", "tail", "/dev/zero"]));
    assert_eq!(answer.code, 137, "{}", answer.err);
    let told = "the kernel killed `tail` (pid ";
    assert!(answer.err.contains(told) && answer.err.contains("memory limit of 32 MiB was reached"), "{}", answer.err);
    assert!(answer.err.contains("gpurun update hog --memory 64m"), "{}", answer.err);
    assert!(host.run(&["logs", "hog"]).err.contains(told), "the log tells it, too");
    let state = &host.inspect("hog")["State"];
    assert_eq!((state["OOMKilled"].as_bool(), state["ExitCode"].as_u64()), (Some(true), Some(137)));
    assert!(state["OOMKills"].as_u64().unwrap() >= 1);
    assert_eq!(state["OOMs"][0]["process"], "tail");
    // 137 by itself is no OOM.
    host.fails(137, &run(&["--name", "killed", "--memory", "32m", "box", "sh", "-c", "kill -9 $$; exit 137"]));
    assert_eq!(host.inspect("killed")["State"]["OOMKilled"], false);
    let ps = host.ok(&["ps", "-a"]);
    assert!(ps.contains("Exited (137) OOMKilled"), "{ps}");
    // Half of the limit fits.
    host.ok(&run(&["--rm", "--memory", "32m", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=16M", "count=1"]));
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
    assert!(share > 0.1, "{share}");
}

fn cpuset() {
    let host = Host::with_box();
    assert_eq!(host.ok(&run(&["--rm", "--cpuset-cpus", "0", "box", "nproc"])), "1");
    assert_eq!(
        host.ok(&run(&["--rm", "--cpuset-cpus", "1", "box", "grep", "Cpus_allowed_list", "/proc/self/status"])),
        "Cpus_allowed_list:\t1"
    );
}

fn pids() {
    let host = Host::with_box();
    let script = "n=0; for i in $(seq 50); do sleep 5 & done; wait";
    let answer = host.run(&run(&["--rm", "--pids-limit", "12", "box", "sh", "-c", script]));
    assert!(answer.err.contains("fork"), "{}", answer.err);
    assert_ne!(answer.code, 0);
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

fn refused() {
    let host = Host::with_box();
    let cases: [(&[&str], &str); 6] = [
        (&["--memory", "4m"], "minimum memory limit allowed is 6MB"),
        (&["--memory", "64m", "--memory-swap", "32m"], "minimum memoryswap limit"),
        (&["--cpus", "1000"], "range of CPUs is from 0.01 to"),
        (&["--cpuset-cpus", "900"], "requested CPUs are not available - requested 900"),
        (&["--memory", "lots"], "`--memory lots`"),
        (&["--ulimit", "nofile=x"], "`--ulimit nofile=x`"),
    ];
    for (flags, words) in cases {
        let mut args = run(flags);
        args.extend(["box", "true"]);
        let error = host.fails(2, &args);
        assert!(error.contains(words) && error.contains("hint:"), "{flags:?}: {error}");
    }
    assert_eq!(host.ok(&["ps", "-aq"]), "", "nothing was made");
}

fn ulimits() {
    let host = Host::with_box();
    let out = host.ok(&run(&[
        "--rm",
        "--ulimit",
        "nofile=512:1024",
        "--ulimit",
        "core=0",
        "box",
        "sh",
        "-c",
        "ulimit -n; ulimit -Hn; ulimit -c",
    ]));
    assert_eq!(out, "512\n1024\n0");
    eventually("nothing is left", 5, || host.leftovers().is_empty());
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
