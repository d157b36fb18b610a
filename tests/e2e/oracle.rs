//! What gpurun writes, read back by code of others: a cgroup's limits by the crate cgroups-rs, tars by the crate tar.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;

use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuset::CpuSetController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use cgroups_rs::{Cgroup, CgroupPid, MaxValue, hierarchies};

use crate::host::Host;

pub const TESTS: &[(&str, fn())] = &[
    ("cgroups_rs_reads_the_limits_that_were_asked_for", limits),
    ("the_readme_shows_the_real_writes_of_a_launch", writes),
    ("the_crate_tar_reads_an_export_and_a_committed_layer", tars),
];

fn limits() {
    const MIB: i64 = 1 << 20;
    let host = Host::with_box();
    let asked = [
        "--memory",
        "96m",
        "--memory-reservation",
        "48m",
        "--cpus",
        "0.75",
        "--pids-limit",
        "77",
        "--cpuset-cpus",
        "0",
    ];
    let args =
        [&["run", "-d", "--network", "none", "--name", "limited"], &asked[..], &["box", "sleep", "1000"]].concat();
    host.ok(&args);
    let id = host.inspect("limited")["Id"].as_str().unwrap().to_owned();
    // A cgroup of the caller's own below which gpurun works (the virtual machine under systemd) is part of the path.
    let parent = host.inspect("limited")["Cgroup"].as_str().map_or(format!("gpurun/{id}"), str::to_owned);
    let cgroup = Cgroup::load(hierarchies::auto(), parent.trim_start_matches('/'));

    let check = |memory: i64, quota: i64, pids: i64| {
        let controller: &MemController = cgroup.controller_of().unwrap();
        let seen = controller.memory_stat();
        assert_eq!((seen.limit_in_bytes, seen.soft_limit_in_bytes), (memory, 48 * MIB));
        let controller: &CpuController = cgroup.controller_of().unwrap();
        assert_eq!((controller.cfs_quota().unwrap(), controller.cfs_period().unwrap()), (quota, 100_000));
        let controller: &PidController = cgroup.controller_of().unwrap();
        assert_eq!(controller.get_pid_max().unwrap(), MaxValue::Value(pids));
        let controller: &CpuSetController = cgroup.controller_of().unwrap();
        assert_eq!(controller.cpuset().cpus, [(0, 0)]);
    };
    check(96 * MIB, 75_000, 77);
    // The container's process is in this cgroup, not in one beside it.
    let pid = host.inspect("limited")["State"]["Pid"].as_u64().unwrap();
    assert!(cgroup.tasks().contains(&CgroupPid::from(pid)), "{pid} is not among {:?}", cgroup.tasks());
    host.ok(&["update", "limited", "--memory", "128m", "--cpus", "0.5", "--pids-limit", "88"]);
    check(128 * MIB, 50_000, 88);
    host.ok(&["rm", "-f", "limited"]);
}

/// What a launch does below /sys/fs/cgroup, as strace saw it: the container's directories, and every write to a file in them.
fn trace_of_a_launch(host: &Host) -> String {
    let file = host.dir.join("trace");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "200",
        "-e",
        "trace=mkdir,mkdirat,openat,write,clone3",
        "-o",
        file.to_str().unwrap(),
    ];
    let limits = [
        "--memory",
        "2g",
        "--memory-swap",
        "2g",
        "--cpus",
        "0.5",
        "--cpuset-cpus",
        "0",
        "--cpuset-mems",
        "0",
        "--pids-limit",
        "512",
    ];
    let launch = [&["run", "--rm", "--network", "none"], &limits[..], &["box", "true"]].concat();
    let answer = crate::host::answer(host.behind(&strace, &launch).output().unwrap());
    assert_eq!(answer.code, 0, "{}", answer.err);
    let mut shown = Vec::new();
    // The last path of each descriptor.
    let mut opened = std::collections::HashMap::new();
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some((number, path)) = call.rsplit_once(" = ").and_then(|(_, opened)| opened.split_once('<')) {
            opened.insert(number.to_owned(), path.trim_end_matches('>').to_owned());
        }
        let step = if call.starts_with("mkdir(\"/sys/fs/cgroup/") && call.ends_with("= 0") {
            call.split('"').nth(1).map(|path| format!("mkdir {path}"))
        } else if call.starts_with("write(") && call.contains("</sys/fs/cgroup/") {
            let path = call.split(['<', '>']).nth(1).unwrap();
            let value = call.split('"').nth(1).unwrap().trim_end_matches("\\n");
            let pid = if path.ends_with("cgroup.procs") { "PID" } else { value };
            Some(format!("{path} = {pid}"))
        } else if call.starts_with("clone3(") && call.contains("CLONE_INTO_CGROUP") {
            // A process that is created in the cgroup is moved by no write.
            let number = call.split_once(", cgroup=").and_then(|(_, rest)| rest.split([',', '}']).next());
            let path = number.and_then(|number| opened.get(number));
            path.map(|path| format!("clone3(CLONE_INTO_CGROUP) {path}"))
        } else {
            None
        };
        // Of the container alone; a v1 host has one tree for each controller.
        let Some((before, after)) = step.as_deref().and_then(|step| step.split_once("/gpurun/")) else { continue };
        let (id, rest) = after.split_once([' ', '/']).map_or((after, ""), |(id, _)| (id, &after[id.len()..]));
        // How the supervisor hears of OOM kills on v1 has the numbers of its descriptors in it.
        if id.len() == 64 && !rest.starts_with("/cgroup.event_control") {
            shown.push(format!("{before}/gpurun/ID{rest}"));
        }
    }
    // Of two values of one file the last counts: a new v1 cpuset first gets its parent's.
    let file = |line: &str| line.split(" = ").next().unwrap().to_owned();
    let last: Vec<String> = (0..shown.len())
        .filter(|at| {
            shown[*at].contains("devices.allow") || shown[at + 1..].iter().all(|later| file(later) != file(&shown[*at]))
        })
        .map(|at| shown[at].clone())
        .collect();
    assert!(
        last.iter().any(|line| ["cgroup.procs = PID", "tasks = 0", "clone3"].iter().any(|way| line.contains(way))),
        "it enters: {last:?}"
    );
    last.join("\n")
}

/// The documented block for this host's version of cgroups: README has the one of v2, docs/limits.md that of v1. A failure prints what
/// belongs there.
fn writes() {
    let host = Host::with_box();
    let (version, document) = match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => ("v2", include_str!("../../README.md")),
        false => ("v1", include_str!("../../docs/limits.md")),
    };
    let marker = format!("<!-- the writes of a launch, {version} -->\n\n```text\n");
    let block = document.split_once(&marker).and_then(|(_, rest)| rest.split_once("\n```")).map(|(block, _)| block);
    let real = trace_of_a_launch(&host);
    assert!(real.lines().count() > 5, "{real}");
    assert_eq!(block, Some(&*real), "the block for cgroups {version} is not what a launch writes, which is\n{real}\n");
}

/// Path, then kind, mode, owner, link target and content.
type Members = BTreeMap<String, (tar::EntryType, u32, u64, String, Vec<u8>)>;

fn members(bytes: &[u8]) -> Members {
    let mut archive = tar::Archive::new(bytes);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("a member");
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let link = entry.link_name_bytes().map_or(String::new(), |link| String::from_utf8(link.into_owned()).unwrap());
        let header = entry.header();
        let (kind, mode, uid) = (header.entry_type(), header.mode().unwrap(), header.uid().unwrap());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name.trim_start_matches("./").trim_end_matches('/').to_owned(), (kind, mode & 0o7777, uid, link, content))
    };
    archive.entries().unwrap().map(read).collect()
}

fn tars() {
    let host = Host::with_box();
    let long = "n".repeat(180);
    let script = format!(
        "mkdir -p /d/e && echo text > /d/f && chown 1234:5678 /d/f && chmod 4751 /d/f && ln -s ../d/f /d/e/l && ln /d/f /d/hard && \
         mkfifo /d/p && echo long > /d/{long} && rm /bin/wget"
    );
    host.ok(&["run", "--network", "none", "--name", "made", "box", "sh", "-c", &script]);
    let check = |members: &Members| {
        use tar::EntryType as Kind;
        let get = |name: &str| members.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", members.keys()));
        let plain = |name: &str| get(name).0 == Kind::Regular;
        // Of two names of one file, one is the file and the other the link to it: which, is up to the writer.
        let (file, other) = if plain("d/f") { ("d/f", "d/hard") } else { ("d/hard", "d/f") };
        assert_eq!(*get(file), (Kind::Regular, 0o4751, 1234, String::new(), b"text\n".to_vec()));
        assert_eq!((get(other).0, get(other).3.trim_start_matches("./").trim_start_matches('/')), (Kind::Link, file));
        assert_eq!((get("d/e/l").0, get("d/e/l").3.as_str()), (Kind::Symlink, "../d/f"));
        assert_eq!(get("d/p").0, Kind::Fifo);
        assert_eq!(get(&format!("d/{long}")).4, b"long\n");
        assert_eq!(get("d").0, Kind::Directory);
    };
    let exported = host.command(&["export", "made"]).stdout(Stdio::piped()).output().unwrap();
    assert!(exported.status.success());
    let whole = members(&exported.stdout);
    check(&whole);
    assert!(whole.contains_key("bin/busybox") && !whole.contains_key("bin/wget"));

    host.ok(&["commit", "made", "kept"]);
    let saved = host.command(&["image", "save", "kept"]).stdout(Stdio::piped()).output().unwrap();
    assert!(saved.status.success());
    let archive = members(&saved.stdout);
    let manifest: serde_json::Value = serde_json::from_slice(&archive["manifest.json"].4).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap();
    let layer = members(&archive[layers.last().unwrap().as_str().unwrap()].4);
    check(&layer);
    assert!(layer.contains_key("bin/.wh.wget"), "{:?}", layer.keys());
    assert!(!layer.contains_key("bin/busybox"), "a layer holds changes only");
    host.ok(&["rm", "made"]);
}
