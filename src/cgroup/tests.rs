//! Tests on the running kernel, whatever its cgroup version. They create cgroups `/gpurun-test-PID-N` and remove them.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::delegation::V2;
use super::*;
use crate::report::Explain;
use crate::spec::{Swap, device_rules};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A cgroup that is removed with the test.
struct Temporary(Cgroup);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = self.0.kill_all();
        let _ = self.0.remove();
    }
}

fn host() -> Option<Host> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    Some(Host::probe(Path::new("/")).unwrap())
}

fn path() -> String {
    format!("/gpurun-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn limits() -> Limits {
    Limits {
        memory: Some(64 << 20),
        memory_reservation: Some(32 << 20),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        cpuset_cpus: Some("0".parse().unwrap()),
        pids: Some(Some(20)),
        ..Limits::default()
    }
}

/// Runs a shell command in the cgroup and returns its exit code.
fn run_in(cgroup: &Cgroup, line: &str) -> Option<i32> {
    let enter: String = cgroup.entry_files().iter().map(|file| format!("echo $$ > {} && ", file.display())).collect();
    Command::new("sh")
        .args(["-c", &format!("{enter} exec sh -c '{line}'")])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .code()
}

#[test]
fn limits_are_written_and_read_back() {
    let Some(host) = host() else { return };
    let (cgroup, rows) = host.create(&path(), &limits(), &device_rules(&[])).unwrap();
    let cgroup = Temporary(cgroup);
    let row = |flag: &str| rows.iter().find(|row| row.flag == flag).unwrap_or_else(|| panic!("{flag} in {rows:?}"));
    assert_eq!(row("--memory").kernel, (64 << 20).to_string());
    assert_eq!(row("--pids-limit").kernel, "20");
    assert_eq!(row("--cpuset-cpus").kernel, "0");
    assert_eq!(cgroup.0.verify(&limits()).unwrap(), rows);
    // A change of a limit from outside is detected.
    let pids = cgroup.0.dir("pids").unwrap().join("pids.max");
    fs::write(&pids, "30").unwrap();
    let error = cgroup.0.verify(&limits()).unwrap_err();
    assert!(matches!(&error, CgroupError::Differs { flag: "--pids-limit", kernel, .. } if kernel == "30"), "{error}");
}

#[test]
fn a_tighter_ancestor_is_named() {
    let Some(host) = host() else { return };
    let parent = path();
    let outer = Temporary(
        host.create(&parent, &Limits { memory: Some(32 << 20), ..Limits::default() }, &device_rules(&[])).unwrap().0,
    );
    if host.version() == "v2" {
        // Version 2 gives a child only the controllers that its parent has enabled.
        enable_controllers(outer.0.v2.as_ref().unwrap(), outer.0.v2.as_ref().unwrap(), &V2);
    }
    let (inner, rows) = host
        .create(&format!("{parent}/inner"), &Limits { memory: Some(64 << 20), ..Limits::default() }, &device_rules(&[]))
        .unwrap();
    let _inner = Temporary(inner);
    let memory = rows.iter().find(|row| row.flag == "--memory").unwrap();
    assert_eq!(memory.effective, (32 << 20).to_string());
    assert!(memory.binding.as_ref().unwrap().to_str().unwrap().contains(&parent), "{memory:?}");
}

#[test]
fn what_the_kernel_refuses_leaves_nothing() {
    let Some(host) = host() else { return };
    let path = path();
    let limits = Limits { cpuset_cpus: Some("8000".parse().unwrap()), ..Limits::default() };
    let error = host.create(&path, &limits, &device_rules(&[])).unwrap_err();
    assert!(matches!(error, CgroupError::Refused { flag: "--cpuset-cpus", .. }), "{error}");
    assert!(Cgroup::open(&host, &path).unwrap().is_none());
}

#[test]
fn denied_devices_cannot_be_opened() {
    let Some(host) = host() else { return };
    let (cgroup, _) = host.create(&path(), &Limits::default(), &device_rules(&[])).unwrap();
    let cgroup = Temporary(cgroup);
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("mem");
    // 1:1 is /dev/mem. It exists on every kernel, and no container may open it.
    let line = format!("mknod {0} c 1 1 && ! head -c 1 {0}", node.display());
    assert_eq!(run_in(&cgroup.0, &line), Some(0), "making is allowed, opening is not");
    assert_eq!(run_in(&cgroup.0, "echo x > /dev/null && head -c 1 /dev/zero"), Some(0));
}

#[test]
fn the_device_program_works_where_version_2_is_mounted() {
    let Some(host) = host() else { return };
    let mount = match &host.hierarchy {
        Hierarchy::V1 { unified: Some(mount), .. } | Hierarchy::V2 { mount } => mount.clone(),
        Hierarchy::V1 { unified: None, .. } => return,
    };
    let dir = mount.join(path().trim_start_matches('/'));
    fs::create_dir(&dir).unwrap();
    let cgroup = Temporary(Cgroup { dirs: BTreeMap::new(), v2: Some(dir), is_v2: true, place: "/".into() });
    cgroup.0.filter_devices(&device_rules(&[])).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let node = temp.path().join("kmsg");
    let line = format!("mknod {0} c 1 11 && ! head -c 1 {0}", node.display());
    assert_eq!(run_in(&cgroup.0, &line), Some(0), "making is allowed, opening is not");
    assert_eq!(run_in(&cgroup.0, "echo x > /dev/null && head -c 1 /dev/zero"), Some(0));
}

#[test]
fn an_oom_kill_is_reported_and_counted() {
    let Some(host) = host() else { return };
    let mut limits = Limits { memory: Some(16 << 20), swap: Some(Swap::Total(16 << 20)), ..Limits::default() };
    if !host.has_swap_accounting() {
        limits.swap = None;
    }
    let (cgroup, _) = host.create(&path(), &limits, &device_rules(&[])).unwrap();
    let cgroup = Temporary(cgroup);
    let mut watch = cgroup.0.oom_watch().unwrap();
    assert_eq!(cgroup.0.oom_kills(), Some(0));
    assert_ne!(run_in(&cgroup.0, "tail /dev/zero"), Some(0));
    let mut fds = [nix::poll::PollFd::new(watch.fd(), watch.poll_flags())];
    assert_eq!(nix::poll::poll(&mut fds, 5000u16), Ok(1), "the watch becomes ready");
    assert!(watch.clear());
    assert!(cgroup.0.oom_kills().unwrap() >= 1);
}

#[test]
fn everything_in_it_is_killed() {
    let Some(host) = host() else { return };
    let (cgroup, _) = host.create(&path(), &Limits::default(), &device_rules(&[])).unwrap();
    let cgroup = Temporary(cgroup);
    let enter: String = cgroup.0.entry_files().iter().map(|file| format!("echo $$ > {}; ", file.display())).collect();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{enter} sleep 1000 & sleep 1000 & echo ready; sleep 1000")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    assert!(cgroup.0.pids().unwrap().len() >= 3);
    let killed = std::thread::scope(|scope| {
        let reaper = scope.spawn(|| child.wait());
        cgroup.0.kill_all().unwrap();
        reaper.join().unwrap()
    });
    assert!(!killed.unwrap().success());
    assert_eq!(cgroup.0.pids().unwrap(), [] as [i32; 0]);
    cgroup.0.remove().unwrap();
    assert!(!cgroup.0.entry_files().iter().any(|file| file.exists()));
}

#[test]
fn a_kernel_without_swap_accounting_refuses_a_swap_limit_by_name() {
    for is_v2 in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(if is_v2 { "memory.max" } else { "memory.limit_in_bytes" }), "67108864").unwrap();
        let own = dir.path().to_path_buf();
        let cgroup = Cgroup {
            dirs: [("memory".to_owned(), own.clone())].into(),
            v2: is_v2.then_some(own),
            is_v2,
            place: "/".into(),
        };
        let limits = |swap| Limits { memory: Some(64 << 20), swap: Some(swap), ..Limits::default() };
        let error = cgroup.verify(&limits(Swap::Total(64 << 20))).unwrap_err();
        let file = if is_v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        assert!(
            error.to_string().contains(&format!("cannot enforce `--memory-swap`: the kernel has no `{file}`")),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("swapaccount=1"));
        // A limit that `--memory` only implies is left out, and the memory limit remains in effect.
        let rows = cgroup.verify(&limits(Swap::Implicit { total: 128 << 20 })).unwrap();
        assert_eq!(rows.iter().map(|row| row.flag).collect::<Vec<_>>(), ["--memory"]);
    }
}
