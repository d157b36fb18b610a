//! Every resource flag that docker has, row by row: what it becomes under both versions, by `update` on a running container where that can be
//! done, by `run` where not; and every error, with the value, the bound and a hint.

use serde_json::Value;

use crate::host::{Host, cgroups_of};

pub const TESTS: &[(&str, fn())] = &[
    ("every_flag_becomes_what_docker_makes_of_it", every_row),
    ("sizes_are_read_as_docker_reads_them", sizes),
    ("what_docker_refuses_is_refused_before_anything_is_made", refused),
    ("what_is_no_cgroup_file_is_read_back_too", process_limits),
    ("the_configuration_sets_defaults_that_flags_override", configuration),
];

/// A file of the cgroup and what it must hold; where there are two names, the kernel has either.
type Files = &'static [(&'static str, &'static str)];

/// What `update` is given, and what the files hold then. `None`: this version refuses it, by the other one's name.
struct Row {
    flags: &'static [&'static str],
    v1: Option<Files>,
    v2: Option<Files>,
}

/// In this order on one container: a limit stays until another row changes it.
const ROWS: &[Row] = &[
    Row {
        flags: &["--memory", "64m"],
        v1: Some(&[("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "134217728")]),
        v2: Some(&[("memory.max", "67108864"), ("memory.swap.max", "67108864")]),
    },
    // Whole pages, rounded down.
    Row {
        flags: &["--memory", "70000000"],
        v1: Some(&[("memory.limit_in_bytes", "69996544")]),
        v2: Some(&[("memory.max", "69996544")]),
    },
    Row {
        flags: &["--memory", "64m", "--memory-swap", "0"],
        v1: Some(&[("memory.memsw.limit_in_bytes", "134217728")]),
        v2: Some(&[("memory.swap.max", "67108864")]),
    },
    Row {
        flags: &["--memory", "64m", "--memory-swap", "96m"],
        v1: Some(&[("memory.memsw.limit_in_bytes", "100663296")]),
        v2: Some(&[("memory.swap.max", "33554432")]),
    },
    Row {
        flags: &["--memory", "64m", "--memory-swap", "64m"],
        v1: Some(&[("memory.memsw.limit_in_bytes", "67108864")]),
        v2: Some(&[("memory.swap.max", "0")]),
    },
    Row {
        flags: &["--memory", "64m", "--memory-swap", "-1"],
        v1: Some(&[("memory.memsw.limit_in_bytes", "9223372036854771712")]),
        v2: Some(&[("memory.swap.max", "max")]),
    },
    Row {
        flags: &["--memory-reservation", "32m"],
        v1: Some(&[("memory.soft_limit_in_bytes", "33554432")]),
        v2: Some(&[("memory.low", "33554432")]),
    },
    Row { flags: &["--memory-high", "48m"], v1: None, v2: Some(&[("memory.high", "50331648")]) },
    Row { flags: &["--memory-min", "1m"], v1: None, v2: Some(&[("memory.min", "1048576")]) },
    Row { flags: &["--memory-swappiness", "10"], v1: Some(&[("memory.swappiness", "10")]), v2: None },
    Row { flags: &["--oom-kill-disable"], v1: Some(&[("memory.oom_control", "oom_kill_disable 1")]), v2: None },
    Row {
        flags: &["--oom-kill-disable=false"],
        v1: Some(&[("memory.oom_control", "oom_kill_disable 0")]),
        v2: Some(&[]),
    },
    Row {
        flags: &["--cpus", "1.5"],
        v1: Some(&[("cpu.cfs_quota_us", "150000"), ("cpu.cfs_period_us", "100000")]),
        v2: Some(&[("cpu.max", "150000 100000")]),
    },
    Row {
        flags: &["--cpus", "1."],
        v1: Some(&[("cpu.cfs_quota_us", "100000")]),
        v2: Some(&[("cpu.max", "100000 100000")]),
    },
    Row {
        flags: &["--cpus", ".5"],
        v1: Some(&[("cpu.cfs_quota_us", "50000")]),
        v2: Some(&[("cpu.max", "50000 100000")]),
    },
    Row {
        flags: &["--cpus", "0.01"],
        v1: Some(&[("cpu.cfs_quota_us", "1000")]),
        v2: Some(&[("cpu.max", "1000 100000")]),
    },
    Row {
        flags: &["--cpu-period", "50000", "--cpu-quota", "20000"],
        v1: Some(&[("cpu.cfs_quota_us", "20000"), ("cpu.cfs_period_us", "50000")]),
        v2: Some(&[("cpu.max", "20000 50000")]),
    },
    Row { flags: &["--cpu-shares", "1024"], v1: Some(&[("cpu.shares", "1024")]), v2: Some(&[("cpu.weight", "100")]) },
    Row { flags: &["--cpu-shares", "512"], v1: Some(&[("cpu.shares", "512")]), v2: Some(&[("cpu.weight", "59")]) },
    Row { flags: &["--cpu-shares", "2"], v1: Some(&[("cpu.shares", "2")]), v2: Some(&[("cpu.weight", "1")]) },
    Row { flags: &["--cpuset-cpus", "1"], v1: Some(&[("cpuset.cpus", "1")]), v2: Some(&[("cpuset.cpus", "1")]) },
    Row { flags: &["--cpuset-cpus", "0,1"], v1: Some(&[("cpuset.cpus", "0-1")]), v2: Some(&[("cpuset.cpus", "0-1")]) },
    Row { flags: &["--cpuset-mems", "0"], v1: Some(&[("cpuset.mems", "0")]), v2: Some(&[("cpuset.mems", "0")]) },
    Row { flags: &["--pids-limit", "50"], v1: Some(&[("pids.max", "50")]), v2: Some(&[("pids.max", "50")]) },
    Row { flags: &["--pids-limit", "0"], v1: Some(&[("pids.max", "max")]), v2: Some(&[("pids.max", "max")]) },
    Row { flags: &["--pids-limit", "-1"], v1: Some(&[("pids.max", "max")]), v2: Some(&[("pids.max", "max")]) },
    Row {
        flags: &["--blkio-weight", "300"],
        v1: Some(&[("blkio.bfq.weight|blkio.weight", "300")]),
        v2: Some(&[("io.bfq.weight|io.weight", "default 300|default 2930")]),
    },
    Row {
        flags: &["--device-read-bps", "DISK:1mb"],
        v1: Some(&[("blkio.throttle.read_bps_device", "NUMBERS 1048576")]),
        v2: Some(&[("io.max", "NUMBERS rbps=1048576 ")]),
    },
    Row {
        flags: &["--device-write-bps", "DISK:2mb"],
        v1: Some(&[("blkio.throttle.write_bps_device", "NUMBERS 2097152")]),
        v2: Some(&[("io.max", " wbps=2097152 ")]),
    },
    Row {
        flags: &["--device-read-iops", "DISK:100"],
        v1: Some(&[("blkio.throttle.read_iops_device", "NUMBERS 100")]),
        v2: Some(&[("io.max", " riops=100 ")]),
    },
    Row {
        flags: &["--device-write-iops", "DISK:200"],
        v1: Some(&[("blkio.throttle.write_iops_device", "NUMBERS 200")]),
        v2: Some(&[("io.max", " wiops=200")]),
    },
];

fn is_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The first real disk of the host: its node and its numbers.
fn disk() -> (String, String) {
    let disks =
        std::fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let virtual_ = |name: &String| ["loop", "ram", "zram", "dm-", "md"].iter().any(|start| name.starts_with(start));
    let name = disks.filter(|name| !virtual_(name)).min().expect("a disk");
    let numbers = std::fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap().trim().to_owned();
    (format!("/dev/{name}"), numbers)
}

fn every_row() {
    let host = Host::with_box();
    let (node, numbers) = disk();
    host.ok(&["run", "-d", "--name", "lab", "--network", "none", "box", "sleep", "1000"]);
    let id = host.inspect("lab")["Id"].as_str().unwrap().to_owned();
    let read = |file: &str| -> String {
        let names = file.split('|');
        let dirs = cgroups_of(&id);
        let path = names.flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.exists());
        std::fs::read_to_string(path.unwrap_or_else(|| panic!("no {file} in {dirs:?}"))).unwrap()
    };
    for row in ROWS {
        let flags: Vec<String> = row.flags.iter().map(|flag| flag.replace("DISK", &node)).collect();
        let mut args = vec!["update", "lab"];
        args.extend(flags.iter().map(String::as_str));
        let Some(files) = (if is_v2() { row.v2 } else { row.v1 }) else {
            let error = host.fails(1, &args);
            let other = if is_v2() {
                "it needs cgroup v1, and this host has v2"
            } else {
                "it needs cgroup v2, and this host has"
            };
            assert!(error.contains(row.flags[0]) && error.contains(other) && error.contains("hint:"), "{error}");
            continue;
        };
        host.ok(&args);
        for (file, value) in files {
            let held = read(file);
            let holds = value.split('|').any(|value| held.contains(&value.replace("NUMBERS", &numbers)));
            assert!(holds, "{flags:?}: {file} holds {held}, not {value}");
        }
    }
    // Nothing is no wish to lift a limit.
    for flag in ["--cpuset-cpus", "--cpuset-mems"] {
        assert!(host.fails(2, &["update", "lab", flag, ""]).contains(&format!("`{flag}` has no value")));
    }
    assert_eq!(read("cpuset.cpus").trim(), "0-1");
    // What is written by name, and contradicts a flag: neither is dropped in silence.
    let error = host.fails(1, &["update", "lab", "--pids-limit", "50", "--cgroup-conf", "pids.max=40"]);
    assert!(
        error.contains("cannot enforce `--pids-limit`: `50` was written to")
            && error.contains("but the kernel reports `40`"),
        "{error}"
    );
    assert!(error.contains("hint: omit `--cgroup-conf pids.max=…` if you use it;"), "{error}");
    // A restart has them all at once, from the record.
    host.ok(&["restart", "-t", "0", "lab"]);
    assert_eq!(read("pids.max").trim(), "max");
    assert_eq!(read("cpu.weight|cpu.shares").trim(), if is_v2() { "1" } else { "2" });
    if is_v2() {
        // A controller that nothing else wants is handed down for a file that is named.
        host.ok(&["update", "lab", "--cgroup-conf", "hugetlb.2MB.max=0", "--cgroup-conf", "memory.oom.group=1"]);
        assert_eq!((read("hugetlb.2MB.max").trim(), read("memory.oom.group").trim()), ("0", "1"));
    } else {
        host.ok(&["update", "lab", "--cgroup-conf", "cpuset.memory_migrate=1"]);
        assert_eq!(read("cpuset.memory_migrate").trim(), "1");
    }
    host.ok(&["rm", "-f", "lab"]);
    assert_eq!(host.leftovers(), "");
}

fn sizes() {
    let host = Host::new();
    let mib = 1u64 << 20;
    for (text, bytes) in [
        ("512m", 512 * mib),
        ("512M", 512 * mib),
        ("512MB", 512 * mib),
        ("512MiB", 512 * mib),
        ("512 m", 512 * mib),
        ("1.5g", 1536 * mib),
        (".5g", 512 * mib),
        ("6291456", 6 * mib),
        ("6291456b", 6 * mib),
        ("8192k", 8 * mib),
        ("1t", mib << 20),
        ("1p", 1024 * (mib << 20)),
    ] {
        let json: Value = serde_json::from_str(&host.ok(&["explain", "--json", "--memory", text])).unwrap();
        assert_eq!(json[0]["files"][0]["value"], bytes.to_string(), "{text}");
    }
}

/// Flags, exit code, what the message must name (value and bound), and the hint.
const REFUSED: &[(&[&str], i32, &[&str], &str)] = &[
    (&["--memory", "512mi"], 125, &["`--memory 512mi`", "is not a size"], "`512m`"),
    (&["--memory", "1e"], 125, &["`--memory 1e`", "is not a size"], "`512m`"),
    (&["--memory", "-1"], 125, &["`--memory -1`", "is not a size"], "`512m`"),
    (&["--memory", "0x10000000"], 125, &["`0x10000000` is not a size"], "`512m`"),
    (&["--memory", " 64m"], 125, &["` 64m` is not a size"], "`512m`"),
    (&["--memory", "64X"], 125, &["`64X` is not a size"], "`512m`"),
    (&["--memory", "99999999999g"], 125, &["`99999999999g` is too large"], "`512m`"),
    (&["--memory", "5m"], 125, &["minimum memory limit allowed is 6MB", "`--memory 5m`"], "`--memory 6m`"),
    (
        &["--memory", "64m", "--memory-swap", "32m"],
        125,
        &["minimum memoryswap limit should be larger than memory limit", "`--memory-swap 32m`", "`--memory 64m`"],
        "`--memory-swap 64m` for no swap",
    ),
    (&["--memory-swap", "64m"], 125, &["`--memory-swap 64m` needs `--memory`"], "at most `--memory 64m`"),
    (
        &["--memory", "64m", "--memory-reservation", "65m"],
        125,
        &["`--memory-reservation 65m` is more than `--memory 64m`"],
        "`--memory-reservation 64m`",
    ),
    (
        &["--memory", "64m", "--memory-high", "65m"],
        125,
        &["`--memory-high 65m` is more than `--memory 64m`"],
        "`--memory-high 64m`",
    ),
    (
        &["--memory", "64m", "--memory-min", "65m"],
        125,
        &["`--memory-min 65m` is more than `--memory 64m`"],
        "`--memory-min 64m`",
    ),
    (&["--memory-swappiness", "101"], 125, &["`--memory-swappiness 101` is outside of 0 to 100"], "from 0 to 100"),
    (
        &["--cpus", "CPUS+1"],
        125,
        &["range of CPUs is from 0.01 to CPUS.00, as there are only CPUS CPUs available", "`--cpus CPUS+1`"],
        "from `--cpus 0.01` to `--cpus CPUS`",
    ),
    (&["--cpus", "0.009"], 125, &["range of CPUs is from 0.01", "`--cpus 0.009`"], "`--cpus 0.01`"),
    (&["--cpus", "-1"], 125, &["`--cpus -1`", "is not a number of CPUs"], "`1.5`"),
    (&["--cpus", "1.0000000001"], 125, &["`1.0000000001` is too precise"], "`1.5`"),
    (
        &["--cpus", "1", "--cpu-quota", "5000"],
        125,
        &["`--cpu-quota 5000` and `--cpus 1` contradict"],
        "`--cpu-period 100000",
    ),
    (
        &["--cpus", "1", "--cpu-period", "5000"],
        125,
        &["`--cpu-period 5000` and `--cpus 1` contradict"],
        "`--cpu-period 100000",
    ),
    (&["--cpu-quota", "999"], 125, &["`--cpu-quota 999` is less than the 1000 microseconds"], "--cpu-period"),
    (
        &["--cpu-quota", "17592186044416"],
        125,
        &["`--cpu-quota 17592186044416` is outside of 1000 to 17592186044415 microseconds"],
        "from 1000",
    ),
    (
        &["--cpu-period", "999"],
        125,
        &["`--cpu-period 999` is outside of 1000 to 1000000 microseconds"],
        "from 1000 to 1000000",
    ),
    (&["--cpu-shares", "1"], 125, &["`--cpu-shares 1` is outside of 2 to 262144"], "from 2 to 262144"),
    (
        &["--cpuset-cpus", "CPUS"],
        125,
        &["requested CPUs are not available - requested CPUS, available: 0-LAST"],
        "`--cpuset-cpus 0-LAST`",
    ),
    (&["--cpuset-cpus", "1-0"], 125, &["`--cpuset-cpus 1-0`", "is not a list"], "`0-3,7`"),
    (
        &["--cpuset-mems", "63"],
        125,
        &["requested memory nodes are not available - requested 63, available: 0"],
        "`--cpuset-mems 0",
    ),
    // An unset variable of a script: never a limit that is silently none.
    (&["--cpuset-cpus", ""], 125, &["`--cpuset-cpus` has no value"], "shell variable"),
    (&["--cpuset-mems", ""], 125, &["`--cpuset-mems` has no value"], "shell variable"),
    (&["--memory="], 125, &["`--memory` has no value"], "shell variable"),
    (&["--pids-limit", "1e3"], 125, &["`--pids-limit 1e3` is not a whole number"], "from -1 to 4194304"),
    (&["--pids-limit", "5000000"], 125, &["`--pids-limit 5000000` is outside of -1 to 4194304"], "from -1 to 4194304"),
    (
        &["--stop-timeout", "18446744073709551615"],
        125,
        &["`--stop-timeout 18446744073709551615` is outside of 0 to 2147483647"],
        "from 0 to",
    ),
    (&["--pids-limit", "1"], 125, &["`--pids-limit 1` is too low"], "`--pids-limit 2`"),
    (&["--blkio-weight", "9"], 125, &["`--blkio-weight 9` is outside of 10 to 1000"], "from 10 to 1000"),
    (
        &["--blkio-weight-device", "/dev/null:300"],
        125,
        &["`--blkio-weight-device /dev/null:300` names no block device"],
        "`lsblk`",
    ),
    (&["--blkio-weight-device", "DISK:9"], 125, &["`--blkio-weight-device 9` is outside of 10 to 1000"], "from 10"),
    (&["--blkio-weight-device", "DISK"], 125, &["`--blkio-weight-device DISK` is not `DEVICE:WEIGHT`"], "/dev/sda:300"),
    (
        &["--device-read-bps", "/dev/nope:1mb"],
        125,
        &["`--device-read-bps /dev/nope:1mb` names no block device"],
        "`lsblk`",
    ),
    (
        &["--device-write-bps", "/dev/null:1mb"],
        125,
        &["`--device-write-bps /dev/null:1mb` names no block device"],
        "`lsblk`",
    ),
    (
        &["--device-write-iops", "/dev/null"],
        125,
        &["`--device-write-iops /dev/null` is not `DEVICE:RATE`"],
        "/dev/sda:1000",
    ),
    (
        &["--device-read-iops", "DISK:99999999999"],
        125,
        &["`--device-read-iops DISK:99999999999` is more than the kernel counts, 4294967295 a second"],
        "omit `--device-read-iops`",
    ),
    (
        &["--device-write-bps", "DISK:1mb", "--device-read-bps", "DISK:1mb", "--device-read-bps", "DISK:2mb"],
        125,
        &["`--device-read-bps DISK:1mb` and `--device-read-bps DISK:2mb` contradict"],
        "omit one of them",
    ),
    (
        &["--device-write-bps", "DISK:1mb", "--device-write-bps", "DISK:2mb", "--device-read-bps", "DISK:3mb"],
        125,
        &["`--device-write-bps DISK:1mb` and `--device-write-bps DISK:2mb` contradict"],
        "omit one of them",
    ),
    (
        &["--cgroup-conf", "pids.max=10", "--cgroup-conf", "pids.max=20"],
        125,
        &["`--cgroup-conf pids.max=10` and `--cgroup-conf pids.max=20` contradict"],
        "omit one of them",
    ),
    (
        &["--device-read-iops", "/dev/null:1mb"],
        125,
        &["`--device-read-iops /dev/null:1mb` is not `DEVICE:RATE`"],
        "/dev/sda:1000",
    ),
    (&["--shm-size", "x"], 125, &["`--shm-size x`", "is not a size"], "`512m`"),
    (
        &["--ulimit", "nofile=10:5"],
        125,
        &["`--ulimit nofile=10:5`", "10 is above the hard limit 5"],
        "`--ulimit nofile=1024:4096`",
    ),
    (&["--ulimit", "foo=1"], 125, &["there is no resource limit `foo`"], "nofile"),
    (&["--oom-score-adj", "1001"], 125, &["`--oom-score-adj 1001` is outside of -1000 to 1000"], "-1000"),
    (&["--cgroup-conf", "foo"], 125, &["`--cgroup-conf foo` is not `FILE=VALUE`"], "memory.oom.group=1"),
    (
        &["--cgroup-conf", "cgroup.procs=1"],
        125,
        &["`--cgroup-conf cgroup.procs=1` would change what the cgroup is"],
        "memory.oom.group=1",
    ),
    (&["--cgroup-conf", "devices.allow=a"], 125, &["would go past the device filter"], "memory.oom.group=1"),
    (&["--cgroup-conf", "../x=1"], 125, &["`--cgroup-conf ../x=1` names no file of a cgroup"], "memory.oom.group=1"),
    // Without GPUs they mean nothing, and would be taken for a wish for some.
    (&["--gpu-mode", "cdi"], 125, &["--gpus <GPUS>"], ""),
    (&["--share-gpu"], 125, &["--gpus <GPUS>"], ""),
    (&["--cgroup-parent", "/a/../b"], 125, &["`--cgroup-parent /a/../b` is not a plain path"], "`/lab/alice`"),
];

fn refused() {
    // No image is there, and none is pulled for flags that are wrong.
    let host = Host::new();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let (node, _) = disk();
    let with = |text: &str| {
        let text = text.replace("DISK", &node);
        let text = text.replace("CPUS+1", &(cpus + 1).to_string()).replace("CPUS CPUs", &format!("{cpus} CPUs"));
        text.replace("CPUS", &cpus.to_string()).replace("LAST", &(cpus - 1).to_string())
    };
    for (flags, code, snippets, way_out) in REFUSED {
        let flags: Vec<String> = flags.iter().map(|flag| with(flag)).collect();
        let mut args = vec!["run", "--network", "none"];
        args.extend(flags.iter().map(String::as_str));
        args.extend(["box", "true"]);
        let error = host.fails(*code, &args);
        for snippet in *snippets {
            assert!(error.contains(&with(snippet)), "{flags:?}: `{}` is not in\n{error}", with(snippet));
        }
        let hint = error.split_once("hint: ").map_or("", |(_, hint)| hint);
        assert!(hint.contains(&with(way_out)), "{flags:?}: `{}` is not the way out of\n{error}", with(way_out));
        assert!(!error.contains("pulling"), "{flags:?}: {error}");
    }
    assert_eq!(host.ok(&["ps", "-aq"]), "", "nothing was made");
    // What only the kernel can refuse takes a launch.
    let host = Host::with_box();
    let error = host.fails(125, &["run", "--network", "none", "--cgroup-conf", "pids.nope=1", "box", "true"]);
    assert!(error.contains("the kernel has no `pids.nope`") && error.contains("hint:"), "{error}");
    let error = host.fails(125, &["run", "--network", "none", "--cgroup-conf", "pids.max=lots", "box", "true"]);
    assert!(error.contains("the kernel refused `lots` for `/sys/fs/cgroup"), "{error}");
    assert_eq!(host.leftovers(), "");
}

fn process_limits() {
    let host = Host::with_box();
    let script =
        "df -k /dev/shm | tail -1 | awk '{print $2}'; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; ulimit -c";
    let flags = ["--shm-size", "8m", "--oom-score-adj", "321", "--ulimit", "nofile=512:1024", "--ulimit", "core=0"];
    let args = [&["run", "--name", "lab", "--network", "none"][..], &flags, &["box", "sh", "-c", script]].concat();
    assert_eq!(host.ok(&args), "8192\n321\n512\n1024\n0");
    let limits = host.inspect("lab")["Limits"].clone();
    let row = |flag: &str| {
        limits.as_array().unwrap().iter().find(|row| row["flag"] == flag).unwrap_or_else(|| panic!("{flag}: {limits}"))
    };
    assert_eq!(
        (row("--shm-size")["kernel"].as_str(), row("--shm-size")["oci"].as_str()),
        (Some("8388608"), Some("mounts"))
    );
    assert_eq!(row("--oom-score-adj")["kernel"], "321");
    assert_eq!(row("--ulimit")["kernel"], "nofile=512:1024");
    // docker's: of two for one resource the later holds. One that is too low for the start is named.
    let run = ["run", "--rm", "--network", "none", "--ulimit", "nofile=100", "--ulimit", "nofile=200"];
    assert_eq!(host.ok(&[&run[..], &["box", "sh", "-c", "ulimit -n"]].concat()), "200");
    // The limits of another user's process can be read back without CAP_SYS_RESOURCE, too.
    assert_eq!(host.ok(&[&run[..], &["-u", "ann", "box", "sh", "-c", "ulimit -n"]].concat()), "200");
    let error = host.fails(125, &["run", "--network", "none", "--ulimit", "nofile=3", "box", "true"]);
    assert!(error.contains("hint: `--ulimit nofile=3` may leave too few descriptors"), "{error}");
    // A quota of a long period is not held up by an ancestor's period.
    let long = ["run", "--rm", "--network", "none", "--cpu-quota", "100000", "--cpu-period", "1000000", "box", "true"];
    assert_eq!(host.run(&long).err, "");
    // docker's 0 is its default, and a size is one in whole pages.
    let shm = |size: &str| {
        host.ok(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--shm-size",
            size,
            "box",
            "sh",
            "-c",
            "df -k /dev/shm | tail -1",
        ])
    };
    assert!(shm("0").contains(" 65536 "), "{}", shm("0"));
    let json: Value =
        serde_json::from_str(&host.ok(&["explain", "--json", "--shm-size", "1g", "--ulimit", "nofile=5:9"])).unwrap();
    assert_eq!(json[0]["by_hand"][0], "mount -t tmpfs -o size=1073741824 shm /dev/shm");
    assert_eq!(json[1]["by_hand"][0], "prlimit --nofile=5:9 COMMAND");
}

fn configuration() {
    let host = Host::with_box();
    let file = host.dir.join("config.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let run = |args: &[&str]| {
        let mut command = host.command(args);
        crate::host::answer(command.env("GPURUN_CONFIG", &file).output().unwrap())
    };
    write(
        "[network]\nsubnet = \"10.77.5.0/24\"\n[limits]\nmemory = \"64m\"\npids-limit = 55\n[log]\nmax-size = \"64k\"\nmax-file = 3\n",
    );
    let started =
        run(&["run", "-d", "--name", "one", "--pids-limit", "44", "--log-opt", "max-file=4", "box", "sleep", "1000"]);
    assert_eq!(started.code, 0, "{}", started.err);
    let one = host.inspect("one");
    let value = |flag: &str| {
        let rows = one["Limits"].as_array().unwrap();
        let row = rows.iter().find(|row| row["flag"] == flag).unwrap_or_else(|| panic!("no {flag} in {rows:?}"));
        std::fs::read_to_string(row["file"].as_str().unwrap()).unwrap().trim().to_owned()
    };
    assert_eq!(value("--memory"), (64 << 20).to_string(), "from the file");
    assert_eq!(value("--pids-limit"), "44", "a flag wins");
    let log = &one["HostConfig"]["LogConfig"]["Config"];
    assert_eq!((&log["max-size"], &log["max-file"]), (&"65536".into(), &"4".into()), "{log}");
    let ip = host.ok(&["exec", "one", "ip", "-4", "addr", "show", "eth0"]);
    assert!(ip.contains("10.77.5."), "{ip}");
    let doctor = run(&["doctor"]);
    for part in ["config.toml", "--memory 64m", "--log-opt max-size=64k", "subnet = 10.77.5.0/24"] {
        assert!(doctor.out.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "{part}: {}", doctor.out);
    }
    // The bridge of running containers is not renumbered below them.
    write("[network]\nsubnet = \"10.78.5.0/24\"\n");
    let other = run(&["run", "--rm", "box", "ip", "-4", "addr", "show", "eth0"]);
    assert!(
        other.out.contains("10.77.5.") && other.err.contains("ip link delete gpurun0"),
        "{}{}",
        other.out,
        other.err
    );
    write("[limits]\nmemroy = \"64m\"\n");
    let refused = run(&["ps"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("line 2: unknown field `memroy`") && refused.err.contains("hint: "),
        "{}",
        refused.err
    );
    host.ok(&["rm", "-f", "one"]);
}
