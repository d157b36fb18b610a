//! `--pid`: the PID namespace of a container.
//!
//! The processes of a container that has joined another one's namespace are killed by the kernel when that one ends.

use std::os::fd::OwnedFd;

use super::context::Launch;
use super::joined::{self, Kind};
use crate::report::Report;
use crate::spec::Namespace;

/// Finds the namespace. The descriptor keeps another container's until the runtime has joined it.
pub(super) fn acquire(launch: Launch<'_>) -> Result<(Namespace, Option<OwnedFd>), Report> {
    let request = launch.request();
    let Some(id) = &request.pid_container else {
        return Ok((if request.pid_host { Namespace::Host } else { Namespace::New }, None));
    };
    let kind = Kind { name: "PID", flag: "--pid" };
    let other = kind.find(launch.records, id)?;
    let namespace = kind.open(&other, kind.running(&other)?, "pid")?;
    Ok((Namespace::Path(joined::path(&namespace)), Some(namespace)))
}
