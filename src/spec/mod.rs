//! What a container is to be: limits, capabilities, devices, seccomp, and the [`Plan`] that becomes an OCI runtime spec.
//!
//! Pure: no disk, no libcontainer. Whoever plans looks at the host; this room only says what docker's rules make of it.

mod asked;
mod capabilities;
mod device;
mod limits;
mod plan;
mod resources;
pub mod seccomp;

pub use asked::{
    AskedLimits, BLKIO_WEIGHTS, BlockDevice, CPU_PERIODS_US, CPU_QUOTAS_US, CPU_SHARES, HostFacts, LimitsError,
    MINIMUM_MEMORY, PIDS, SWAPPINESS,
};
pub use capabilities::{Capabilities, CapabilityError};
pub use device::{Device, DeviceRule, device_rules};
pub use limits::{IoKind, IoLimit, Limits, Swap};
pub use plan::{HookEntry, Mount, Network, Plan, Rlimit, SpecError, Stage, oci_spec};
pub use resources::{cpu_weight, io_weight};
