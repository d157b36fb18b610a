//! A small process beside the supervisor that ends the container when the supervisor dies.
//!
//! A container dies with its supervisor through the PDEATHSIG of pid 1. The kernel drops that signal when pid 1 changes
//! its credentials (setpriv, gosu, many start scripts) or executes a privileged program. With `--pid host` or
//! `--pid container:NAME`, the death of pid 1 also ends no other process. Such containers get a keeper: gpurun's static
//! init under another name. It holds the pidfds of the supervisor and of pid 1, and the files that kill the container's
//! cgroup, all opened before pid 1 runs. It holds no image, no record and no lock, and uses a few kilobytes.
//!
//! When the supervisor and the keeper are killed at the same moment, the container runs until the next command, which
//! kills its cgroup (`reconcile`). A keeper that is killed alone is replaced.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::cgroup::Cgroup;
use crate::request::{Payload, Request};
use crate::runtime::INIT_PAYLOAD;
use crate::sys::{exe, process};

/// Whether a process of the container may outlive its supervisor under the kernel's rules.
pub(super) fn is_needed(request: &Request) -> bool {
    let own_init = request.init || matches!(request.payload, Payload::Jupyter(_));
    request.pid_host || request.pid_container.is_some() || !own_init
}

/// Starts a keeper for the container that this process supervises.
pub(super) fn start(pid_1: &OwnedFd, cgroup: &Cgroup) -> io::Result<Child> {
    let supervisor = process::open_pidfd(std::process::id() as i32)?;
    let files = cgroup.kill_files();
    let passed: [Option<BorrowedFd<'_>>; 5] = [
        Some(supervisor.as_fd()),
        Some(pid_1.as_fd()),
        files.kill.as_ref().map(AsFd::as_fd),
        files.freezer.as_ref().map(AsFd::as_fd),
        files.processes.as_ref().map(AsFd::as_fd),
    ];
    let program = exe::sealed(c"gpurun-keeper", INIT_PAYLOAD)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0("gpurun-keeper").env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    for fd in &passed {
        command.arg(fd.map_or_else(|| "-".to_owned(), |fd| fd.as_raw_fd().to_string()));
    }
    let passed: Vec<i32> = passed.iter().flatten().map(AsRawFd::as_raw_fd).collect();
    process::pass_only(&mut command, &passed);
    command.spawn()
}

/// Ends a keeper whose container has ended.
pub(super) fn end(mut keeper: Child) {
    let _ = keeper.kill();
    // The wait fails if `reap` has already reaped the keeper.
    let _ = keeper.wait();
}
