//! The program in a lab's cgroup: `gpurun lab-payload --enter FILE… -- KIND ARGUMENT…`.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::rootfs::{self, Overlay};
use crate::sys::mount;

const MIB: usize = 1 << 20;

/// Runs a payload and returns its exit code.
pub(crate) fn main(enter: &[PathBuf], argv: &[String]) -> u8 {
    // Die with the lab, even if the lab is killed.
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return 1;
    }
    for file in enter {
        if let Err(error) = fs::write(file, "0") {
            say(&format!("cannot enter {}: {error}", file.display()));
            return 1;
        }
    }
    // The name for the kernel's log and `ps`.
    let name = format!("lab-{}", argv.first().map_or("payload", String::as_str));
    let _ = std::ffi::CString::new(name).map(|name| nix::sys::prctl::set_name(&name));
    let number = |index: usize| argv.get(index).and_then(|item| item.parse::<usize>().ok()).unwrap_or(0);
    match argv.first().map(String::as_str) {
        Some("hog") => hog(number(1), number(2)),
        Some("burn") => burn(number(1), number(2)),
        Some("bomb") => bomb(),
        Some("open") => open(argv.get(1).map(String::as_str).unwrap_or_default()),
        Some("overlay") => return overlay(Path::new(argv.get(1).map(String::as_str).unwrap_or_default())),
        Some("namespace") => return in_pid_namespace(&argv[1..]),
        Some("pid1") => pid1(argv.get(1).is_some_and(|item| item == "careful")),
        Some("orphan") => orphan(),
        Some("sleep") => std::thread::sleep(Duration::from_millis(number(1) as u64)),
        _ => return 1,
    }
    0
}

fn again(argv: &[&str]) -> std::io::Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("lab-payload").arg("--").args(argv);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Writes a line for the lab. The lab may be gone, so a failed write is ignored and does not panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Allocates `mib` MiB in steps of 1 MiB, touches every page, and holds the memory for `hold` milliseconds.
fn hog(mib: usize, hold: usize) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        let mut block = vec![0u8; MIB];
        // No page is all zeros, and few pages of a block are alike, so that the kernel cannot share them.
        for (index, page) in block.chunks_mut(4096).enumerate() {
            page[0] = (index % 251) as u8 + 1;
        }
        held.push(black_box(block));
        std::thread::sleep(Duration::from_millis(15));
    }
    std::thread::sleep(Duration::from_millis(hold as u64));
    say(&format!("kept {mib} MiB until the end"));
    drop(black_box(held));
}

/// Keeps `threads` threads busy for `milliseconds` of wall time.
fn burn(threads: usize, milliseconds: usize) {
    // Count the CPUs by affinity, as nproc does. Rust's available_parallelism also considers the quota.
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    let count = (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count();
    say(&count.to_string());
    let until = Instant::now() + Duration::from_millis(milliseconds as u64);
    let busy = move || {
        let mut number = 1u64;
        while Instant::now() < until {
            for _ in 0..1000 {
                number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
    };
    let all: Vec<_> = (0..threads).filter_map(|_| std::thread::Builder::new().spawn(busy).ok()).collect();
    for thread in all {
        let _ = thread.join();
    }
}

/// A fork bomb. A process stays alive when its fork is refused, so that the processes can be counted.
fn bomb() {
    let until = Instant::now() + Duration::from_secs(2);
    let mut children = Vec::new();
    while Instant::now() < until {
        match again(&["bomb"]) {
            Ok(child) => children.push(child),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn open(path: &str) {
    match File::open(path) {
        Ok(_) => say("opened"),
        Err(error) => say(&error.to_string()),
    }
}

/// Mounts an overlay on a tmpfs in a private mount namespace, changes it, and lists it from both sides. The tmpfs covers
/// `dir`, which exists: nothing remains on the host, whatever ends the lab.
fn overlay(dir: &Path) -> u8 {
    let list = |dir: &Path| -> std::io::Result<String> {
        use std::os::unix::fs::FileTypeExt;
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
            names.push(if kind.is_char_device() {
                format!("{name} (whiteout, a 0:0 device)")
            } else {
                format!("{name} ({})", fs::read_to_string(entry.path())?.trim())
            });
        }
        names.sort();
        Ok(names.join(", "))
    };
    let experiment = || -> Result<(), Box<dyn std::error::Error>> {
        mount::unshare_slave()?;
        let tmpfs = mount::FsContext::open(c"tmpfs")?.mount(mount::Attr::NONE)?;
        mount::attach(std::os::fd::AsFd::as_fd(&tmpfs), std::os::fd::AsFd::as_fd(&File::open(dir)?))?;
        let path = |name: &str| dir.join(name);
        fs::create_dir(path("lower"))?;
        for name in ["kept", "changed", "removed"] {
            fs::write(path("lower").join(name), "image")?;
        }
        rootfs::overlay(&Overlay {
            lower: &path("lower"),
            above: None,
            upper: &path("upper"),
            work: &path("work"),
            merged: &path("merged"),
            volatile: true,
        })?;
        say(&format!("before, inside: {}", list(&path("merged"))?));
        say(&format!("before, above:  {}", list(&path("upper"))?));
        fs::write(path("merged/changed"), "container")?;
        fs::remove_file(path("merged/removed"))?;
        fs::write(path("merged/new"), "container")?;
        say(&format!("after, inside:  {}", list(&path("merged"))?));
        say(&format!("after, above:   {}", list(&path("upper"))?));
        say(&format!("after, below:   {}", list(&path("lower"))?));
        Ok(())
    };
    match experiment() {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

/// Runs another payload as PID 1 of a new PID namespace, and prints its PID on the host.
fn in_pid_namespace(argv: &[String]) -> u8 {
    if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID) {
        say(&format!("cannot create a PID namespace: {errno}"));
        return 1;
    }
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    match again(&argv) {
        Ok(mut child) => {
            say(&child.id().to_string());
            let _ = std::io::stdout().flush();
            let _ = child.wait();
            0
        }
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

/// A PID 1 that gets five orphans. If it is `careful`, it reaps them.
fn pid1(careful: bool) {
    for _ in 0..5 {
        // Drop the handle, because only PID 1 should reap the child.
        drop(again(&["orphan"]));
    }
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        while careful
            && nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        {}
    }
}

/// Starts a child and exits without waiting for it.
fn orphan() {
    drop(again(&["sleep", "100"]));
}
