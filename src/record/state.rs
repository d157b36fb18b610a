//! Where a container stands.

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
    pub file: String,
    pub asked: String,
    pub kernel: String,
    /// The smallest over all ancestors; differs from `kernel` where an ancestor binds.
    pub effective: String,
    pub note: Option<String>,
}

/// Something that happened to the container that its owner should hear of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    OomKill { count: u64 },
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
    /// The kernel killed a process of this container for its memory limit.
    pub oom_killed: bool,
    pub oom_kills: u64,
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
    /// Where Jupyter answers, without its token.
    pub url: Option<String>,
}
