//! The specification of a container: limits, capabilities, devices, the seccomp profile, and the [`Plan`] from which
//! the OCI runtime spec is generated.
//!
//! This module neither reads the disk nor depends on libcontainer. The caller inspects the host; this module applies
//! docker's rules to the results.

mod capabilities;
mod device;
mod limits;
mod line;
mod plan;
mod process;
mod resources;
pub(crate) mod seccomp;

pub use capabilities::Capabilities;
pub(crate) use capabilities::CapabilityName;
pub use device::DeviceRule;
pub(crate) use device::{Device, device_rules};
pub use limits::Limits;
pub(crate) use limits::{DeviceWeight, IoKind, IoLimit, Swap};
pub(crate) use line::SeenLine;
pub(crate) use plan::{HookEntry, Mount, Namespace, Network, Plan, Stage, oci_spec};
pub use process::{Process, Rlimit};
pub(crate) use resources::{cpu_weight, io_weight};
