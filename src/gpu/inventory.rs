//! The GPUs of a host, as one vendor's driver or CDI file lists them at one moment. What differs between vendors is
//! already resolved here: a unit has its names, its device nodes and its readings.

use serde::{Deserialize, Serialize};

use crate::spec::Device;

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub used: u64,
    pub total: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GpuProcess {
    /// Process id in the host's PID namespace.
    pub pid: u32,
    /// Bytes, if the driver reports them.
    pub memory: Option<u64>,
}

/// A GPU or MIG device of a container, for display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    pub index: String,
    /// The UUID, or the CDI name.
    pub name: String,
    pub model: String,
}

/// The unit of selection: a GPU, or a part of a partitioned GPU (a MIG device). A partitioned GPU is only selected
/// through its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Unit {
    /// `0`, or `0:1` for MIG device 1 of GPU 0.
    pub index: String,
    /// The UUID or the CDI name, or else the index.
    pub name: String,
    pub model: String,
    /// Number of the physical GPU in the vendor's list. The parts of a partitioned GPU share it.
    #[serde(skip)]
    pub gpu: usize,
    /// Ids of a MIG device's GPU instance and compute instance.
    pub mig: Option<(u32, u32)>,
    pub memory: Option<Memory>,
    /// Percent.
    pub utilization: Option<u32>,
    pub processes: Vec<GpuProcess>,
    pub numa_node: Option<u32>,
    /// The unit's own device nodes, as far as their numbers are known.
    #[serde(skip)]
    pub nodes: Vec<Device>,
    /// Whether the driver answers an open(2) of the nodes at once, because the GPU is initialized.
    #[serde(skip)]
    pub awake: bool,
}

impl Unit {
    /// `GPU 0`, `MIG device 0:1`
    pub(super) fn noun(&self) -> String {
        let noun = if self.mig.is_some() { "MIG device" } else { "GPU" };
        format!("{noun} {}", self.index)
    }

    pub(super) fn given(&self) -> Given {
        Given { index: self.index.clone(), name: self.name.clone(), model: self.model.clone() }
    }
}

/// A snapshot of a vendor's GPUs on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inventory {
    /// Version of the driver, if there is one: `550.54.15`.
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports: `12.4`.
    pub cuda: Option<String>,
    pub units: Vec<Unit>,
    /// Addresses of GPUs that the kernel's driver lists and that do not answer. They are not selected.
    pub lost: Vec<String>,
    /// Why memory, utilization and processes are unknown.
    pub unread: Option<String>,
}

impl Inventory {
    /// `0 (GPU-…), 1 (GPU-…)`
    #[must_use]
    pub(crate) fn listing(&self) -> String {
        listing(&self.units.iter().collect::<Vec<_>>())
    }
}

/// `0 (GPU-…), 1 (GPU-…)`
#[must_use]
pub(super) fn listing(units: &[&Unit]) -> String {
    let one = |unit: &&Unit| match unit.name == unit.index {
        true => unit.index.clone(),
        false => format!("{} ({})", unit.index, unit.name),
    };
    units.iter().map(one).collect::<Vec<_>>().join(", ")
}
