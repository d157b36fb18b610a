//! The properties of the host that a plan depends on.

use std::path::{Path, PathBuf};

use super::masks;
use super::rlimits::HardLimits;
use crate::cgroup;
use crate::spec::Capabilities;

/// The capabilities that this process may pass on. All of them, unless the host itself is restricted.
pub(crate) fn own_capabilities() -> Capabilities {
    let status = crate::sys::file::read_control("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    Capabilities(held.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0))
}

/// The properties of the host that a plan depends on.
#[derive(Debug, Clone)]
pub(super) struct HostFacts {
    /// The number of the kernel's last capability.
    pub last_capability: u32,
    /// The capabilities of this process, which bound those of a privileged container.
    pub capabilities: Capabilities,
    pub rlimits: HardLimits,
    /// The host's memory in bytes.
    pub memory: Option<u64>,
    /// Paths to mask because they reveal the load of other users.
    pub masked: Vec<String>,
    /// The container's cgroup directories under version 1: the name of each mount point and the directory. Empty under
    /// version 2.
    pub v1_cgroups: Vec<(String, PathBuf)>,
}

impl HostFacts {
    /// Reads the facts for a container with this cgroup.
    pub(super) fn read(host: &cgroup::Host, cgroup: &cgroup::Place) -> Self {
        let text = |path: &str| crate::sys::file::read_control(path).unwrap_or_default();
        let memory = text("/proc/meminfo").lines().find_map(|line| {
            let kilobytes = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
            Some(kilobytes.parse::<u64>().ok()? << 10)
        });
        Self {
            last_capability: text("/proc/sys/kernel/cap_last_cap").trim().parse().unwrap_or(40),
            capabilities: own_capabilities(),
            rlimits: HardLimits::read(),
            memory,
            masked: masks::thermal(Path::new("/")),
            v1_cgroups: host.v1_dirs(cgroup),
        }
    }
}
