//! Starts the supervisor from the command: gpurun executes itself again, through a sealed handle of its executable that
//! no process can write to.
//!
//! Before that, under version 1, this module creates the container's cgroup, still without limits. Where another process
//! moves the container's into the cgroup, it then prepares the kernel for that, a wait of 4 to 19 ms that runs in
//! parallel with the supervisor's work. The order matters: the kernel creates no cgroup while such a wait is in progress.
//!
//! The command's first messages (that it is attached, and the size of its window) are in the supervisor's socket before
//! the supervisor starts. The supervisor reads them before it starts the container's process, so no output byte and no
//! exit code can be lost.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::cgroup::{Cgroup, Host, Version};

use crate::control::{Connection, ToSupervisor};
use crate::launch::inherit;
use crate::record::{Entry, Launching, Records};
use crate::report::Report;
use crate::spec::Limits;
use crate::sys::process;

/// A container whose launch has begun.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub id: String,
    /// The first client's socket, on which the supervisor reports the progress of the launch.
    pub connection: Connection,
    /// The supervisor's control socket.
    pub control: PathBuf,
    /// The supervisor's diagnostics.
    pub diagnostics: PathBuf,
    /// The supervisor, a child of this process. `None` if the kernel did not provide a pidfd.
    supervisor: Option<OwnedFd>,
    root: PathBuf,
    run_dir: PathBuf,
    /// Held until this command ends or drops it. While the supervisor has no lock of its own yet, this lock keeps other
    /// commands from cleaning up the container.
    launching: Option<Launching>,
}

/// How long to wait for a supervisor that is about to exit.
const DYING: Duration = Duration::from_secs(5);

impl Spawned {
    /// Waits until the supervisor is dead after a launch failed. The supervisor sends its last message and closes its
    /// socket shortly before its locks are free. Another command in between would take the container to be alive.
    pub(crate) fn outlive(&self) {
        if let Some(supervisor) = &self.supervisor {
            process::wait_pidfd(supervisor, DYING);
        }
    }

    /// Waits like [`Self::outlive`], and returns the lock for another launch of the container.
    pub(crate) fn end(&mut self) -> Option<Launching> {
        self.outlive();
        self.launching.take()
    }

    /// Waits like [`Self::outlive`] after the supervisor reported a failed launch. Then removes a container that never
    /// ran, if the supervisor failed too early to remove it itself.
    pub(crate) fn discard(&self) {
        self.outlive();
        let discarded = Records::open(&self.root, &self.run_dir)
            .map_err(Report::from)
            .and_then(|records| super::reconcile::discard(&records, &self.id));
        if let Err(report) = discarded {
            tracing::warn!("{report}");
        }
    }
}

/// Starts the supervisor of a recorded container. The messages `first` are in its socket from the start.
pub(crate) fn spawn(
    root: &Path,
    run_dir: &Path,
    entry: &Entry,
    launching: Launching,
    first: &[ToSupervisor],
) -> Result<Spawned, Report> {
    let host = Host::probe(Path::new("/"))?;
    let cgroup = &entry.record.cgroup;
    super::step_keeper::start(root, run_dir, entry, &host)?;
    // The supervisor repeats a step that fails here, and reports the reason. Under version 2 only the supervisor
    // creates the cgroup, because the available controllers depend on the cgroup of the process.
    if host.limits_version() == Version::V1 {
        let _ = host.make(cgroup, &Limits::default());
    }
    super::progress::step("made");
    // Only containers with hooks are moved by another process. GPUs may have some.
    if entry.record.request.gpus.is_some() {
        prime_moves(host.clone());
    }
    match start(root, run_dir, entry, first) {
        Ok((connection, supervisor)) => {
            let (id, control) = (entry.record.id.clone(), entry.control_socket());
            let (root, run_dir) = (root.to_path_buf(), run_dir.to_path_buf());
            Ok(Spawned {
                id,
                connection,
                control,
                diagnostics: entry.diagnostics(),
                supervisor,
                root,
                run_dir,
                launching: Some(launching),
            })
        }
        Err(error) => {
            if let Ok(Some(cgroup)) = Cgroup::open(&host, cgroup) {
                let _ = cgroup.remove();
            }
            let what = format!("cannot start the supervisor of container `{}`", entry.record.name);
            Err(Report::new(what).with_cause(error))
        }
    }
}

fn start(
    root: &Path,
    run_dir: &Path,
    entry: &Entry,
    first: &[ToSupervisor],
) -> std::io::Result<(Connection, Option<OwnedFd>)> {
    let (ours, theirs) = Connection::pair()?;
    for message in first {
        ours.send(message)?;
    }
    let theirs = theirs.into_fd();
    let mut command = crate::sys::exe::sealed_command()?;
    command.arg("supervise").arg("--root").arg(root).arg("--run-dir").arg(run_dir).arg(&entry.record.id);
    command.arg("--client").arg(theirs.as_raw_fd().to_string());
    let passed = [&[theirs.as_raw_fd()], &entry.record.request.passed_fds[..]].concat();
    process::pass_only(&mut command, &passed);
    command.env_clear().envs(inherit::environment()).current_dir("/");
    // The child has not been waited for yet, so its pid cannot have been reused.
    let child = command.spawn()?;
    Ok((ours, process::open_pidfd(child.id() as i32).ok()))
}

/// Runs in parallel with the following steps, until the supervisor needs the result. Failures are ignored.
fn prime_moves(host: Host) {
    // Block all signals in the new thread: the main thread handles them, including those that it has not blocked yet.
    let Ok(before) = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) else { return };
    let _ = std::thread::Builder::new().spawn(move || host.prime_moves());
    let _ = before.thread_set_mask();
}
