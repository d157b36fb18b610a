//! The state of a supervisor.

use nix::sys::signalfd::SignalFd;

use super::checks::Checks;
use super::clients::Clients;
use super::log::Log;
use super::timers::Timers;
use super::watch::Watch;
use crate::control::Listener;
use crate::durable::{FileLock, ProcessLock};
use crate::record::{Entry, InUse, Records, State};

/// The state that persists across the container's runs.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(super) entry: Entry,
    pub(super) records: Records,
    pub(super) root: std::path::PathBuf,
    pub(super) state: State,
    pub(super) clients: Clients,
    pub(super) listener: Listener,
    pub(super) signals: SignalFd,
    pub(super) log: Log,
    /// The user has asked for the end, so the restart policy no longer applies.
    pub(super) stopping: bool,
    /// The end was requested by a signal to this process, as a shutdown of the host sends it, and not by a command.
    pub(super) by_host: bool,
    pub(super) timers: Timers,
    /// How many more times to count OOM kills: the kernel reports an OOM before it has killed a process.
    pub(super) oom_looks: u32,
    /// The last health check has found the container unhealthy.
    pub(super) unhealthy: bool,
    /// The exit code of a check whose result the commands that wait for it get when the action after it is done.
    pub(super) late_check: Option<i32>,
    /// The container is started again when it has ended, whatever its restart policy says.
    pub(super) again: bool,
    /// The health checks of the running container.
    pub(super) checks: Option<Checks>,
    /// The number of this run's OOM kills that have been reported.
    pub(super) ooms_told: u64,
    /// The time of the last kill of an earlier run in the kernel's log, in microseconds since boot.
    pub(super) ooms_until_us: u64,
    /// Whether the container has never run before.
    pub(super) first_run: bool,
    /// Whether the container has ever run, in this supervisor or before. If so, it has files that only `rm` and `--rm`
    /// may remove.
    pub(super) ran: bool,
    /// Whether a run has begun in this supervisor.
    pub(super) lived: bool,
    /// Whether everything outside the container's own directories has been cleaned up.
    pub(super) clean: bool,
    /// Whether the container is removed completely at the end.
    pub(super) remove: bool,
    /// Whether a user has paused the container. `state.paused` is also set while a command holds it frozen.
    pub(super) paused: bool,
    /// The limits of time and GPU memory.
    pub(super) watch: Watch,
    pub(super) _alive: ProcessLock,
    pub(super) _forks: FileLock,
    pub(super) _in_use: InUse,
}
