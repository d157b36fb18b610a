//! The state of a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::health::Health;
use crate::gpu::Given;
use crate::net::Endpoint;
use crate::report::Report;

/// The phases of a container's life, as `ps` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// The record exists, and no process has been started yet.
    #[default]
    Created,
    Running,
    /// The container has ended, and its restart policy is about to start it again.
    Restarting,
    Exited,
}

/// A published port with its actual numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublishedPort {
    pub host_ip: String,
    pub host_port: u16,
    pub container_port: u16,
    /// `tcp` or `udp`
    pub protocol: String,
}

/// One limit, as read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitRow {
    pub flag: String,
    /// Its field in the OCI specification. For a cgroup file, the field is relative to `linux.resources`.
    #[serde(default)]
    pub oci: String,
    pub file: String,
    pub asked: String,
    pub kernel: String,
    /// The smallest value over all ancestors. It differs from `kernel` if an ancestor's limit is lower.
    pub effective: String,
    pub note: Option<String>,
}

/// A process of the container that the kernel killed for memory, with the details from the kernel's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OomRow {
    /// Microseconds since boot, as in the kernel's log.
    pub at_us: u64,
    /// The process's name. If the kernel's log has no entry, the name is empty and the pid is 0.
    pub process: String,
    pub pid: i32,
    /// Bytes.
    pub resident: Option<u64>,
    /// The cgroup whose limit was reached, or `None` if the host itself was out of memory.
    pub limit_of: Option<String>,
    /// That limit in bytes, and its file.
    #[serde(default)]
    pub limit: Option<u64>,
    #[serde(default)]
    pub limit_file: Option<String>,
    /// The largest processes before the kill: name and bytes.
    pub biggest: Vec<(String, u64)>,
    /// The container's peak memory usage until then, in bytes.
    #[serde(default)]
    pub peak: Option<u64>,
    /// `memory.events` at that time. Under version 1, `failcnt` and `oom_kill`.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// The total resource usage of a run of the container, read before its cgroup was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    /// Bytes.
    pub memory_peak: Option<u64>,
    pub cpu_usage_us: Option<u64>,
    pub cpu_throttled_us: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
    /// `memory.events`. Under version 1, `failcnt` and `oom_kill`.
    pub memory_events: BTreeMap<String, u64>,
}

/// The limit at which the supervisor stopped a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StopLimit {
    Timeout,
    IdleTimeout,
    GpuMemory,
}

impl StopLimit {
    /// The name in `ps` and `events`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::IdleTimeout => "idle-timeout",
            Self::GpuMemory => "gpu-memory",
        }
    }
}

/// Why the supervisor stopped a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StopReason {
    pub limit: StopLimit,
    /// `it has run for 8h (…)`
    pub detail: String,
}

/// The contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub phase: Phase,
    /// The host pid of the container's pid 1.
    pub pid: Option<i32>,
    /// Its start time in clock ticks since boot, which makes the pid unambiguous.
    pub pid_start: Option<u64>,
    pub boot_id: Option<String>,
    /// Nanoseconds since 1970.
    pub started: Option<u64>,
    pub finished: Option<u64>,
    pub exit_code: Option<u8>,
    /// Whether the container is frozen, by `pause` or by a command that holds it.
    pub paused: bool,
    /// Whether the kernel killed a process of this container for memory.
    pub oom_killed: bool,
    pub oom_kills: u64,
    /// The last few kills of the last run.
    pub ooms: Vec<OomRow>,
    /// The usage of the last run, once it has ended.
    pub usage: Option<Usage>,
    /// Why the container could not be started, or which outside event ended it.
    pub error: Option<Report>,
    pub restarts: u32,
    /// Whether `gpurun create` made the container. It is kept, although it has not run.
    pub kept: bool,
    /// Whether a user stopped it. The restart policy then does not apply until the next start.
    pub stopped_by_user: bool,
    /// The limit at which it was stopped in its last run.
    #[serde(deserialize_with = "known")]
    pub stop_reason: Option<StopReason>,
    pub ip: Option<String>,
    /// The networks of the current or last run.
    pub networks: Vec<Endpoint>,
    pub ports: Vec<PublishedPort>,
    /// The absolute cgroup path, which is the same below every controller.
    pub cgroup: Option<String>,
    pub limits: Vec<LimitRow>,
    /// The GPUs of the current or last run.
    pub gpus: Vec<Given>,
    /// Which mode injected the GPUs, and why.
    pub gpus_by: Option<String>,
    /// The URL of Jupyter, without its token.
    pub url: Option<String>,
    /// The health of the current or last run. `None` if the container has no health check.
    pub health: Option<Health>,
}

/// Reads a reason. One of a later release counts as none.
fn known<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<StopReason>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).ok())
}

impl State {
    /// The pid of the container's pid 1 if that process is alive. The pid, the start time and the boot must match.
    #[must_use]
    pub(crate) fn living_pid(&self, boot: Option<&str>) -> Option<i32> {
        let pid = self.pid.filter(|_| self.boot_id.is_some() && self.boot_id.as_deref() == boot)?;
        let start = crate::sys::process::start_time(pid);
        (start.is_some() && start == self.pid_start).then_some(pid)
    }

    /// Whether, by this state alone, a run of the container has begun and not ended. Between the recorded start and the
    /// phase `Running`, only the times show it.
    #[must_use]
    pub(crate) fn claims_to_run(&self) -> bool {
        let began = self.started.is_some() && self.finished.is_none();
        matches!(self.phase, Phase::Running | Phase::Restarting) || began
    }

    /// Whether the container's process has ever run and so may have written files. Releases up to 0.1 lost `started`
    /// with the first start that failed. A container that has never run is never `Exited`, because its first failure
    /// removes it.
    #[must_use]
    pub(crate) fn has_run(&self) -> bool {
        self.started.is_some() || self.phase != Phase::Created
    }
}
