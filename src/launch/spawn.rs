//! From the command to the supervisor: gpurun executes itself again, through a handle of its executable that nobody can write to.

use std::os::fd::AsRawFd;
use std::path::Path;

use crate::durable::ProcessLock;
use crate::record::Entry;
use crate::report::Report;
use crate::supervise::CLIENT_FD;
use crate::supervise::protocol::Connection;

/// A container whose launch has begun.
#[derive(Debug)]
pub struct Spawned {
    pub id: String,
    /// The first client's socket: the supervisor tells on it how the launch goes.
    pub connection: Connection,
    /// Held until this command ends or lets go: nobody clears the container away while its supervisor has no lock of its own yet.
    _launching: ProcessLock,
}

/// Starts the supervisor of a recorded container.
pub fn spawn(root: &Path, run_dir: &Path, entry: &Entry, launching: ProcessLock) -> Result<Spawned, Report> {
    let failed = |error: std::io::Error| {
        Report::new(format!("cannot start the supervisor of container `{}`", entry.record.name)).with_cause(error)
    };
    let (ours, theirs) = Connection::pair().map_err(failed)?;
    let theirs = theirs.into_fd();
    let mut command = crate::sys::exe::sealed_command()
        .map_err(|error| Report::new("cannot make a sealed handle of gpurun's executable").with_cause(error))?;
    command.arg("--root").arg(root).arg("--run-dir").arg(run_dir).arg("supervise").arg(&entry.record.id);
    crate::sys::process::pass_fd(&mut command, theirs.as_raw_fd(), CLIENT_FD);
    command.current_dir("/");
    command.spawn().map_err(failed)?;
    Ok(Spawned { id: entry.record.id.clone(), connection: ours, _launching: launching })
}
