//! Namespaces of other containers, which a container joins: `--ipc container:NAME` and `--pid container:NAME`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use crate::record::{Entry, Records, short};
use crate::report::Report;
use crate::sys::process;

/// A kind of namespace, as messages and the flag of `run` name it.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) flag: &'static str,
}

impl Kind {
    /// Finds the other container, which need not run.
    pub(super) fn find(self, records: &Records, id: &str) -> Result<Entry, Report> {
        records.get(id)?.ok_or_else(|| {
            let flag = self.flag;
            self.refused(short(id), "it does not exist any more")
                .with_hint(format!("create this container again, with the `{flag} container:NAME` of another one"))
        })
    }

    /// Returns the pid of the other container.
    pub(super) fn running(self, other: &Entry) -> Result<i32, Report> {
        let name = &other.record.name;
        other.state()?.living_pid(process::boot_id().as_deref()).ok_or_else(|| {
            self.refused(name, "it is not running").with_hint(format!("start it with `gpurun start {name}`"))
        })
    }

    /// Opens a namespace of the other container by its name in /proc/PID/ns.
    pub(super) fn open(self, other: &Entry, pid: i32, name: &str) -> Result<OwnedFd, Report> {
        let opened = File::open(format!("/proc/{pid}/ns/{name}")).map_err(|error| self.closed(other, error))?;
        // The pid is checked after the file was opened, so that the namespace cannot be another process's.
        if self.running(other)? == pid {
            Ok(opened.into())
        } else {
            Err(self.closed(other, ErrorKind::NotFound.into()))
        }
    }

    pub(super) fn closed(self, other: &Entry, error: std::io::Error) -> Report {
        self.refused(&other.record.name, "its namespace cannot be entered").with_cause(error)
    }

    pub(super) fn refused(self, name: &str, why: &str) -> Report {
        Report::new(format!("cannot share the {} namespace of container `{name}`: {why}", self.name))
    }
}

/// The path at which the runtime finds an open namespace.
pub(super) fn path(namespace: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()).into()
}
