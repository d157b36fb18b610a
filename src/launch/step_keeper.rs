//! A process outside of a cluster's step that cleans up after a container in the step.
//!
//! Slurm ends a step with SIGKILL for all of its processes at once: the command, the supervisor, its keeper and the
//! container. Nothing of the step is left then to remove the container's cgroup, and the step's own cgroup, which cannot
//! be removed before it, would stay on the node. A SIGKILL of `slurmstepd` kills nothing at all: the tasks would run on
//! without a limit of time. So before a launch creates anything, it starts this process, which moves itself out of the
//! step's cgroups, waits for the ends of the command and of `slurmstepd`, both by pidfd, and then does what the next
//! command would do (`reconcile`). It holds no lock, no image and no descriptor of the step's streams.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{inherit, reconcile};
use crate::cgroup::{Host, Place};
use crate::cluster::Step;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::spec::Limits;
use crate::sys::process;

/// The name of the command.
pub(crate) const STEP_KEEPER: &str = "step-keeper";

/// The cgroup of this process.
const OUTSIDE: &str = "/gpurun/supervisors";

/// How long to wait between two looks at the locks of a container that is neither running nor idle.
const LOOK: Duration = Duration::from_millis(5);

/// How long `slurmstepd` has to end after all processes of its step were killed.
const DAEMON_ENDS: Duration = Duration::from_secs(10);

/// Starts the process for a container that is about to be launched, if it is in a step. The process has left the step
/// when this function returns.
pub(super) fn start(root: &Path, run_dir: &Path, entry: &Entry, host: &Host) -> Result<(), Report> {
    if entry.record.cgroup.step.is_none() {
        return Ok(());
    }
    let run = || -> io::Result<()> {
        let outside = host.make(OUTSIDE, &Limits::default()).map_err(io::Error::other)?;
        let open = |path: std::path::PathBuf| OpenOptions::new().write(true).open(path);
        let entrance = outside.entry_files().into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let client = process::open_pidfd(std::process::id() as i32)?;
        let daemon = Step::daemon().and_then(|pid| process::open_pidfd(pid).ok());
        let mut command = crate::sys::exe::sealed_command()?;
        command.arg(STEP_KEEPER).arg("--root").arg(root).arg("--run-dir").arg(run_dir).arg(&entry.record.id);
        let fds: Vec<i32> = std::iter::once(&client).chain(&daemon).map(AsRawFd::as_raw_fd).collect();
        for (flag, fd) in ["--client", "--daemon"].into_iter().zip(&fds) {
            command.arg(flag).arg(fd.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env_clear().envs(inherit::environment()).current_dir("/");
        process::enter_cgroup(&mut command, entrance);
        process::pass_only(&mut command, &fds);
        command.spawn().map(drop)
    };
    run().map_err(|error| Report::new("cannot start the process that cleans up after the Slurm step").with_cause(error))
}

/// Waits until the container has ended, and cleans up. `client` is the pidfd of the command that launches the
/// container, and `daemon` that of the step's `slurmstepd`.
pub(crate) fn step_keeper_main(
    root: &Path,
    run_dir: &Path,
    id: &str,
    client: OwnedFd,
    daemon: Option<OwnedFd>,
) -> Result<(), Report> {
    inherit::choose()?;
    let records = Records::open(root, run_dir)?;
    let place = records.get(id)?.map(|entry| entry.record.cgroup);
    wait_any(&client, daemon.as_ref());
    loop {
        if daemon.as_ref().is_some_and(has_ended) {
            let _ = process::signal(&client, libc::SIGKILL);
            process::wait_pidfd(&client, Duration::from_secs(1));
        }
        match supervisor(&records, id)? {
            Some(supervisor) if daemon.as_ref().is_some_and(has_ended) => {
                let _ = process::signal(&supervisor, libc::SIGKILL);
                process::wait_pidfd(&supervisor, Duration::from_secs(1));
            }
            Some(supervisor) => wait_any(&supervisor, daemon.as_ref()),
            None if crate::record::is_idle(&records.paths(id).1)? => break,
            None => std::thread::sleep(LOOK),
        }
    }
    // A supervisor that ends by itself removes this directory.
    let was_killed = records.paths(id).1.exists();
    reconcile(&records)?;
    // The daemon may have tried to remove the step's cgroups while the container's was in them, or may have been killed.
    if let (true, Some(place), Some(daemon)) = (was_killed, place, &daemon)
        && process::wait_pidfd(daemon, DAEMON_ENDS)
    {
        end_step(&place)?;
    }
    Ok(())
}

/// Kills what is left of a step whose daemon has ended, and removes its cgroups. The daemon has done both, unless it was
/// killed.
fn end_step(place: &Place) -> Result<(), Report> {
    Host::probe(Path::new("/"))?.end_step(place, DAEMON_ENDS);
    Ok(())
}

/// Waits until one of the processes has ended.
fn wait_any(one: &OwnedFd, other: Option<&OwnedFd>) {
    let fds = std::iter::once(one).chain(other);
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    while poll(&mut fds, PollTimeout::NONE) == Err(nix::Error::EINTR) {}
}

fn has_ended(process: &OwnedFd) -> bool {
    process::wait_pidfd(process, Duration::ZERO)
}

/// The pidfd of the container's supervisor, if it lives.
fn supervisor(records: &Records, id: &str) -> Result<Option<OwnedFd>, Report> {
    let pid = crate::record::supervisor_of(&records.paths(id).1)?;
    let Some(pid) = pid else { return Ok(None) };
    let Ok(pidfd) = process::open_pidfd(pid) else { return Ok(None) };
    // The pid may have been reused before it was opened.
    Ok((crate::record::supervisor_of(&records.paths(id).1)? == Some(pid)).then_some(pidfd))
}
