//! Why a container cannot have the GPUs that were asked for.

use std::path::PathBuf;

use super::cdi::CdiError;
use super::choose::Busy;
use super::lease::LeaseError;
use super::nvml::Unread;
use super::require::Unmet;
use super::toolkit::Missing;
use crate::report::{EXIT_GPURUN, EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("`--gpu-mode {0}` is not a mode")]
    Mode(String),
    #[error("{}this host has no NVIDIA driver (`{}` is missing)", flag(.asked), .missing.display())]
    NoDriver { asked: Option<String>, missing: PathBuf },
    #[error("`--gpus {asked}`: NVIDIA's driver is loaded, but the host has no GPU")]
    NoGpu { asked: String },
    #[error("`--gpus {asked}`: {wanted} GPUs were asked for, the host has {there}")]
    TooMany { asked: String, wanted: u32, there: usize },
    #[error("`--gpus {asked}`: there is no GPU `{device}`; the host has {there}")]
    NoSuchGpu { asked: String, device: String, there: String },
    #[error("`--gpus {asked}`: {wanted} idle {} asked for, {free} {} idle", plural(*.wanted as usize, "GPU was", "GPUs were"), plural(*.free, "is", "are"))]
    NoneFree {
        asked: String,
        wanted: u32,
        free: usize,
        #[source]
        busy: Option<Box<Busy>>,
    },
    #[error("`--gpus {asked} --share-gpu`: {wanted} {} asked for, {free} {} nobody's alone", plural(*.wanted as usize, "GPU was", "GPUs were"), plural(*.free, "is", "are"))]
    NoneShared {
        asked: String,
        wanted: u32,
        free: usize,
        #[source]
        busy: Option<Box<Busy>>,
    },
    #[error("`--gpus {asked}`: only the driver `nvidia` is known, not `{driver}`")]
    Driver { asked: String, driver: String },
    #[error("`--gpus {asked}`: NVIDIA's prestart hook cannot be used")]
    NoHook { asked: String, source: Missing },
    #[error("`--gpus {asked}`: no CDI file of this host describes NVIDIA's GPUs")]
    NoCdi { asked: String, source: Option<CdiError> },
    #[error("`--gpus {asked}`: no CDI file describes the GPU `{device}`")]
    NotInCdi { asked: String, device: String },
    #[error("`--gpus {asked}`: only NVML could tell what `{device}` is")]
    NeedsNvml { asked: String, device: String, source: Option<Unread> },
    #[error("`--gpus {asked}`: the driver's library `{library}` ({driver}) is not there")]
    NoLibraries { asked: String, library: String, driver: String },
    #[error(
        "`--gpus {asked}`: the loaded driver is {module}, the libraries on the disk are {libraries}: it was upgraded without a reboot"
    )]
    Mismatch { asked: String, module: String, libraries: String },
    #[error("`--gpus {asked}`: the kernel module `nvidia_uvm`, which CUDA needs, is not loaded")]
    NoUvm { asked: String },
    #[error("`--gpus {asked}`: the driver does not tell the device node of `{device}`")]
    NoNode { asked: String, device: String },
    #[error("`--gpus {asked}`: the host's driver will not do for this image")]
    Unmet { asked: String, source: Unmet },
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

fn plural<'a>(count: usize, one: &'a str, more: &'a str) -> &'a str {
    if count == 1 { one } else { more }
}

/// Where it was said, if it was.
fn flag(asked: &Option<String>) -> String {
    asked.as_ref().map(|asked| format!("`--gpus {asked}`: ")).unwrap_or_default()
}

const TOOLKIT: &str = "install the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html), or leave `--gpu-mode` out: gpurun injects the driver itself then";

impl Explain for GpuError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Cdi(error) => return error.hint(),
            Self::Lease(error) => return error.hint(),
            Self::Mode(_) => "use `auto`, `hook`, `cdi` or `native`",
            Self::NoDriver { asked: None, .. } => "install NVIDIA's driver so that `nvidia-smi` works on the host",
            Self::NoDriver { .. } => {
                "install NVIDIA's driver so that `nvidia-smi` works on the host, or leave `--gpus` out"
            }
            Self::NoGpu { .. } => "see `lspci | grep -i nvidia` and `nvidia-smi` on the host, or leave `--gpus` out",
            Self::NoHook { .. } => TOOLKIT,
            Self::NoCdi { .. } => {
                "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` writes one; without `--gpu-mode cdi` none is needed"
            }
            Self::NotInCdi { .. } => {
                "write the file anew: `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
            }
            Self::TooMany { .. } | Self::NoSuchGpu { .. } => {
                "`gpurun gpus` lists the GPUs with their numbers and UUIDs"
            }
            Self::NoneFree { .. } => {
                "`gpurun gpus` shows who uses what; `--share-gpu` takes one in use that nobody has alone, `--gpus device=N` takes that one"
            }
            Self::NoneShared { .. } => {
                "wait for one of these containers to end, or insist: `--gpus device=N` shares any GPU, and says with whom"
            }
            Self::Driver { driver, .. } if driver == "cdi" => "leave `driver=` out, and say `--gpu-mode cdi`",
            Self::Driver { .. } => "leave `driver=` out",
            Self::NeedsNvml { .. } => "see that `nvidia-smi` works on the host",
            Self::NoLibraries { .. } => "see that `nvidia-smi` works on the host; then `sudo ldconfig`",
            Self::Mismatch { .. } => "reboot the host",
            Self::NoUvm { .. } => "`sudo modprobe nvidia_uvm`, or `sudo nvidia-modprobe -u`",
            Self::NoNode { .. } => "see that `nvidia-smi` works on the host",
            Self::Unmet { .. } => {
                "upgrade the host's driver, take an image with an older CUDA, or try at your own risk with `-e NVIDIA_DISABLE_REQUIRE=1`"
            }
        };
        Some(text.into())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Mode(_) => EXIT_USAGE,
            Self::Cdi(error) => error.exit_code(),
            _ => EXIT_GPURUN,
        }
    }
}
