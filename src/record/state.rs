//! Where a container stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::Given;
use crate::report::Report;

/// The phases of a container's life, as `ps` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Recorded, nothing started yet.
    #[default]
    Created,
    Running,
    /// Ended, and about to be started again by its restart policy.
    Restarting,
    Exited,
}

/// A published port as it really stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub host_ip: String,
    pub host_port: u16,
    pub container_port: u16,
    /// `tcp` or `udp`
    pub protocol: String,
}

/// One limit as it was read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRow {
    pub flag: String,
    /// Its place in the OCI specification; of a cgroup's file below `linux.resources`.
    #[serde(default)]
    pub oci: String,
    pub file: String,
    pub asked: String,
    pub kernel: String,
    /// The smallest over all ancestors; differs from `kernel` where an ancestor binds.
    pub effective: String,
    pub note: Option<String>,
}

/// A process of the container that the kernel killed for memory, as far as the kernel's log says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomRow {
    /// Microseconds since boot, as in the kernel's log.
    pub at_us: u64,
    /// Empty, and the pid 0, where the kernel's log does not say.
    pub process: String,
    pub pid: i32,
    /// Bytes.
    pub resident: Option<u64>,
    /// The cgroup whose limit was reached; `None`: the host itself was out of memory.
    pub limit_of: Option<String>,
    /// That limit in bytes, and its file.
    #[serde(default)]
    pub limit: Option<u64>,
    #[serde(default)]
    pub limit_file: Option<String>,
    /// The biggest processes before: name and bytes.
    pub biggest: Vec<(String, u64)>,
    /// Most bytes that the container has held until then.
    #[serde(default)]
    pub peak: Option<u64>,
    /// `memory.events` then; under version 1 `failcnt` and `oom_kill`.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// What a run of the container has used in all, read before its cgroup was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Bytes.
    pub memory_peak: Option<u64>,
    pub cpu_usage_us: Option<u64>,
    pub cpu_throttled_us: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
    /// `memory.events`; under version 1 `failcnt` and `oom_kill`.
    pub memory_events: BTreeMap<String, u64>,
}

/// The whole of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub phase: Phase,
    /// Host pid of the container's pid 1.
    pub pid: Option<i32>,
    /// Its start time in clock ticks since boot: with the pid, the process and no other.
    pub pid_start: Option<u64>,
    pub boot_id: Option<String>,
    /// Nanoseconds since 1970.
    pub started: Option<u64>,
    pub finished: Option<u64>,
    pub exit_code: Option<u8>,
    /// A person has frozen it.
    pub paused: bool,
    /// The kernel killed a process of this container for its memory limit.
    pub oom_killed: bool,
    pub oom_kills: u64,
    /// The kills of the last run, the last few.
    pub ooms: Vec<OomRow>,
    /// Of the last run, once it has ended.
    pub usage: Option<Usage>,
    /// Why it could not be started, or what ended it from outside.
    pub error: Option<Report>,
    pub restarts: u32,
    /// A person stopped it: the restart policy is off until the next start.
    pub stopped_by_user: bool,
    pub ip: Option<String>,
    pub ports: Vec<PublishedPort>,
    /// Absolute cgroup path, the same below every controller.
    pub cgroup: Option<String>,
    pub limits: Vec<LimitRow>,
    /// The GPUs that it has, or had last.
    pub gpus: Vec<Given>,
    /// How it came by them, and why not in another way.
    pub gpus_by: Option<String>,
    /// Where Jupyter answers, without its token.
    pub url: Option<String>,
}
