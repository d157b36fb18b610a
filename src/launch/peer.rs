//! The container whose network another one shares (`--network container:NAME`).

use std::fs::File;
use std::path::PathBuf;

use crate::net;
use crate::record::{Records, short};
use crate::report::Report;

/// A running container whose network namespace and files are shared.
#[derive(Debug)]
pub(super) struct Peer {
    name: String,
    /// The container's directory.
    dir: PathBuf,
    pid: i32,
    start: Option<u64>,
}

impl Peer {
    pub(super) fn find(records: &Records, id: &str) -> Result<Self, Report> {
        let entry = records.get(id)?.ok_or_else(|| {
            Report::new(format!("cannot share the network of container {}: it does not exist any more", short(id)))
                .with_hint("remove this container, and run it again with another `--network`")
        })?;
        let (name, state) = (entry.record.name.clone(), entry.state()?);
        let boot = crate::sys::process::boot_id();
        let pid = state.living_pid(boot.as_deref()).ok_or_else(|| {
            Report::new(format!("cannot share the network of container `{name}`: it is not running"))
                .with_hint(format!("start it first: `gpurun start {name}`"))
        })?;
        Ok(Self { name, dir: entry.dir, pid, start: state.pid_start })
    }

    /// The container's network namespace.
    pub(super) fn network(&self) -> Result<net::Network, Report> {
        let failed = |error: std::io::Error| {
            Report::new(format!("cannot open the network of container `{}`", self.name)).with_cause(error)
        };
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid)).map_err(failed)?;
        // Another process may have this pid by now.
        if crate::sys::process::start_time(self.pid) != self.start {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        }
        Ok(net::Network { namespace: Some(namespace.into()), ..net::Network::default() })
    }

    /// The container's own file of this name, such as `hosts`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
