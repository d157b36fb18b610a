//! From the command to the supervisor: gpurun executes itself again, through a handle of its executable that nobody can write to.
//!
//! On the way the container's cgroup is made (version 1), still without limits, and the kernel is made ready for moves into it: a wait of 4 to 19 ms that
//! runs beside the supervisor's work. In this order, since the kernel makes no cgroup while somebody waits so.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::cgroup::{Cgroup, Host, Version};
use crate::durable::ProcessLock;
use crate::record::Entry;
use crate::report::Report;
use crate::spec::Limits;
use crate::supervise::CLIENT_FD;
use crate::supervise::protocol::Connection;
use crate::sys::process;

/// A container whose launch has begun.
#[derive(Debug)]
pub struct Spawned {
    pub id: String,
    /// The first client's socket: the supervisor tells on it how the launch goes.
    pub connection: Connection,
    /// The supervisor, a child of this process; `None` where the kernel would not give a descriptor of it.
    supervisor: Option<OwnedFd>,
    /// Held until this command ends or lets go: nobody clears the container away while its supervisor has no lock of its own yet.
    _launching: ProcessLock,
}

/// A dying supervisor has this long to die.
const DYING: Duration = Duration::from_secs(5);

impl Spawned {
    /// After a launch that failed: waits until the supervisor is dead. Its socket hangs up, and its last word comes, a moment before its locks
    /// are free; a command that comes in between would take the container for a living one.
    pub fn outlive(&self) {
        if let Some(supervisor) = &self.supervisor {
            process::wait_pidfd(supervisor, DYING);
        }
    }
}

/// Starts the supervisor of a recorded container.
pub fn spawn(root: &Path, run_dir: &Path, entry: &Entry, launching: ProcessLock) -> Result<Spawned, Report> {
    let host = Host::probe(Path::new("/"))?;
    let cgroup = super::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &entry.record.id);
    // What does not work here is tried again by the supervisor, which says why. Under version 2 it is the supervisor's alone: which controllers
    // can be had depends on where the process is.
    if host.limits_version() == Version::V1 {
        let _ = host.make(&cgroup, &Limits::default());
    }
    super::step("made");
    prime_moves(host.clone());
    match start(root, run_dir, entry) {
        Ok((connection, supervisor)) => {
            Ok(Spawned { id: entry.record.id.clone(), connection, supervisor, _launching: launching })
        }
        Err(error) => {
            if let Ok(Some(cgroup)) = Cgroup::open(&host, &cgroup) {
                let _ = cgroup.remove();
            }
            let what = format!("cannot start the supervisor of container `{}`", entry.record.name);
            Err(Report::new(what).with_cause(error))
        }
    }
}

fn start(root: &Path, run_dir: &Path, entry: &Entry) -> std::io::Result<(Connection, Option<OwnedFd>)> {
    let (ours, theirs) = Connection::pair()?;
    let theirs = theirs.into_fd();
    let mut command = crate::sys::exe::sealed_command()?;
    command.arg("supervise").arg("--root").arg(root).arg("--run-dir").arg(run_dir).arg(&entry.record.id);
    process::pass_fd(&mut command, theirs.as_raw_fd(), CLIENT_FD);
    command.current_dir("/");
    // Nobody has waited for it yet: the number is its own.
    let child = command.spawn()?;
    Ok((ours, process::open_pidfd(child.id() as i32).ok()))
}

/// Beside everything that follows, until the supervisor needs it. Only an attempt.
fn prime_moves(host: Host) {
    // Signals are for the main thread, also those that it has not blocked yet.
    let Ok(before) = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) else { return };
    std::thread::spawn(move || host.prime_moves());
    let _ = before.thread_set_mask();
}
