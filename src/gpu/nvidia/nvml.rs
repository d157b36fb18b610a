//! Readings that NVML provides and /proc does not: memory, utilization, processes, MIG devices.
//!
//! The library is part of the host's driver and is loaded at run time, in a short-lived process of its own
//! (`gpurun gpu-probe`, see `query`). The caller waits for [`PATIENCE`] at most, and after [`QUIET`] gets a notice that
//! says why it waits.
//!
//! GPUs are in NVML's index order, which is the order of the bus addresses. The indices may change across a reboot; the
//! UUIDs do not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::{Deserialize, Serialize};

use crate::gpu::inventory::{GpuProcess, Memory};
use crate::gpu::query::{Answer, Query};
use crate::sys::nvml;

/// The internal subcommand that queries NVML.
pub(crate) const SUBCOMMAND: &str = "gpu-probe";
/// On a host with eight GPUs and no persistence mode, NVML first initializes all of them, which takes a second or two
/// each.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time, the caller gets a notice that gpurun waits for the driver.
const QUIET: Duration = Duration::from_secs(5);

/// A MIG device: a compute instance of a GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigReading {
    pub uuid: String,
    pub name: String,
    pub gpu_instance: u32,
    pub compute_instance: u32,
    pub memory: Option<Memory>,
    pub processes: Vec<GpuProcess>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GpuReading {
    pub uuid: String,
    pub name: String,
    /// `00000000:3B:00.0`
    pub bus: String,
    pub minor: Option<u32>,
    pub memory: Option<Memory>,
    /// Percentage of the last sampling period in which a kernel ran. A GPU in MIG mode has no such value.
    pub utilization: Option<u32>,
    pub persistence: Option<bool>,
    /// `tesla`, `geforce`, …
    pub brand: Option<String>,
    /// Major and minor version.
    pub compute_capability: Option<(i32, i32)>,
    /// Compute processes. Those of a MIG device are listed with the MIG device.
    pub processes: Vec<GpuProcess>,
    pub mig_enabled: bool,
    pub migs: Vec<MigReading>,
}

/// A snapshot of all GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readings {
    pub driver: String,
    /// The newest CUDA version that the driver supports, as major and minor.
    pub cuda: Option<(i32, i32)>,
    /// In NVML's order.
    pub gpus: Vec<GpuReading>,
}

/// Why NVML could not be queried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Unread {
    #[error("the driver's library `libnvidia-ml.so.1` does not exist")]
    NoLibrary,
    #[error("the version of the driver's library `{}` differs from that of the loaded kernel module", .library.display())]
    Mismatch { library: PathBuf },
    #[error("NVML (`{}`) returned an error: {error}", .library.display())]
    Refused { library: PathBuf, error: String },
    #[error("NVML (`{}`) did not answer within {} s", .library.display(), PATIENCE.as_secs())]
    Silent { library: PathBuf },
    #[error("NVML (`{}`) crashed: {how}", .library.display())]
    Crashed { library: PathBuf, how: String },
}

/// Begins to query the library in a separate process.
pub(super) fn begin(library: &Path) -> Option<Query> {
    // A unit test's executable has no subcommands.
    if cfg!(test) { None } else { Query::begin(SUBCOMMAND, library).ok() }
}

/// Queries the library in a separate process, or waits for the query that was begun.
pub(crate) fn read(
    library: Option<&Path>,
    begun: Option<Query>,
    notice: &mut dyn FnMut(String),
) -> Result<Readings, Unread> {
    let library = library.ok_or(Unread::NoLibrary)?;
    // Tests only load libraries of their own, so an in-process call is safe.
    if cfg!(test) {
        return read_here(library);
    }
    let crashed = |how: String| Unread::Crashed { library: library.to_path_buf(), how };
    let begun = begun.filter(|query| query.library == library);
    let query = begun.map_or_else(|| Query::begin(SUBCOMMAND, library), Ok);
    let (quiet, patience) = waits();
    let tell = || {
        let seconds = patience.as_secs();
        notice(format!("NVIDIA's driver has not answered yet; gpurun waits up to {seconds} s for it"));
    };
    match query.and_then(|query| query.finish(quiet, patience, tell)) {
        Ok(Answer::Text(text, status)) => {
            serde_json::from_slice(&text).unwrap_or_else(|_| Err(crashed(status.to_string())))
        }
        Ok(Answer::Silent) => Err(Unread::Silent { library: library.to_path_buf() }),
        Err(error) => Err(crashed(error.to_string())),
    }
}

/// Returns [`QUIET`] and [`PATIENCE`]. Tests of debug builds set both in milliseconds: `GPURUN_NVML_WAITS=100,500`.
fn waits() -> (Duration, Duration) {
    #[cfg(debug_assertions)]
    if let Some(text) = std::env::var_os("GPURUN_NVML_WAITS").and_then(|text| text.into_string().ok())
        && let Some((quiet, patience)) = text.split_once(',')
        && let (Ok(quiet), Ok(patience)) = (quiet.parse(), patience.parse())
    {
        return (Duration::from_millis(quiet), Duration::from_millis(patience));
    }
    (QUIET, PATIENCE)
}

/// The subcommand: takes the library's path, and writes JSON to standard output.
#[must_use]
pub(crate) fn main(library: &Path) -> u8 {
    match serde_json::to_string(&read_here(library)) {
        Ok(text) if writeln!(std::io::stdout(), "{text}").is_ok() => 0,
        _ => crate::report::EXIT_GPURUN,
    }
}

fn read_here(library: &Path) -> Result<Readings, Unread> {
    let refused = |error: NvmlError| match error {
        NvmlError::LibRmVersionMismatch => Unread::Mismatch { library: library.to_path_buf() },
        error => Unread::Refused { library: library.to_path_buf(), error: error.to_string() },
    };
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(refused)?;
    let count = nvml.device_count().map_err(refused)?;
    let mut gpus = Vec::new();
    for index in 0..count {
        let device = nvml.device_by_index(index).map_err(refused)?;
        gpus.push(read_gpu(&nvml, &device).map_err(refused)?);
    }
    let cuda = nvml.sys_cuda_driver_version().ok();
    Ok(Readings {
        driver: nvml.sys_driver_version().map_err(refused)?,
        cuda: cuda.map(|number| (number / 1000, number % 1000 / 10)),
        gpus,
    })
}

/// A GPU without a UUID or a bus address cannot be identified, so these are required. Any other reading may be
/// unavailable on some models.
fn read_gpu(nvml: &Nvml, device: &Device<'_>) -> Result<GpuReading, NvmlError> {
    let mig_enabled = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    let most = if mig_enabled { device.mig_device_count().unwrap_or(0) } else { 0 };
    // The indices of MIG devices may have gaps.
    let migs = (0..most).filter_map(|index| read_mig(nvml, &device.mig_device_by_index(index).ok()?)).collect();
    Ok(GpuReading {
        uuid: device.uuid()?,
        name: device.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
        bus: device.pci_info()?.bus_id,
        minor: device.minor_number().ok(),
        memory: memory(device),
        utilization: device.utilization_rates().ok().map(|rates| rates.gpu),
        persistence: device.is_in_persistent_mode().ok(),
        brand: device.brand().ok().map(|brand| format!("{brand:?}").to_ascii_lowercase()),
        compute_capability: device.cuda_compute_capability().ok().map(|version| (version.major, version.minor)),
        processes: processes(device, |_| true),
        mig_enabled,
        migs,
    })
}

fn read_mig(nvml: &Nvml, device: &Device<'_>) -> Option<MigReading> {
    let (gpu_instance, compute_instance) = nvml::instance_ids(nvml, device)?;
    Some(MigReading {
        uuid: device.uuid().ok()?,
        name: device.name().unwrap_or_else(|_| "MIG device".into()),
        gpu_instance,
        compute_instance,
        memory: memory(device),
        processes: processes(device, |info| info.compute_instance_id.is_none_or(|id| id == compute_instance)),
    })
}

fn memory(device: &Device<'_>) -> Option<Memory> {
    device.memory_info().ok().map(|info| Memory { used: info.used, total: info.total })
}

fn processes(
    device: &Device<'_>,
    wanted: impl Fn(&nvml_wrapper::struct_wrappers::device::ProcessInfo) -> bool,
) -> Vec<GpuProcess> {
    let all = device.running_compute_processes().unwrap_or_default();
    all.into_iter()
        .filter(|info| wanted(info))
        .map(|info| GpuProcess {
            pid: info.pid,
            memory: match info.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect()
}
