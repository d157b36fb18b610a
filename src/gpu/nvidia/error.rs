//! Why NVIDIA's GPUs cannot be injected.

use super::nvml::Unread;
use super::require::Unmet;
use super::toolkit::Missing;
use crate::gpu::cdi::CdiError;
use crate::gpu::error::{Reason, VendorReason};
use crate::report::Explain;

#[derive(Debug, thiserror::Error)]
pub(super) enum NvidiaError {
    #[error("NVIDIA's prestart hook cannot be used")]
    NoHook(#[source] Missing),
    /// `generate` is the command that writes a CDI file.
    #[error("no CDI file of this host describes NVIDIA's GPUs")]
    NoCdi { generate: String, source: Option<CdiError> },
    #[error("no CDI file describes the GPU `{device}`")]
    NotInCdi { device: String, generate: String },
    #[error("only NVML can resolve `{device}`")]
    NeedsNvml { device: String, source: Option<Unread> },
    #[error("NVIDIA's driver does not answer")]
    Silent(#[source] Unread),
    #[error("the driver's library `{library}` of version {driver} is missing")]
    NoLibraries { library: String, driver: String },
    #[error(
        "the loaded driver has the version {module}, but the libraries on the disk have {libraries}: the driver was upgraded without a reboot"
    )]
    Mismatch { module: String, libraries: String },
    #[error("the kernel module `nvidia_uvm`, which CUDA needs, is not loaded")]
    NoUvm,
    #[error("the driver does not reveal the device node of `{device}`")]
    NoNode { device: String },
    #[error("the host's driver does not meet the image's requirements")]
    Unmet(#[source] Unmet),
}

impl Explain for NvidiaError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoHook(missing) => return Some(missing.hint()),
            // A file that cannot be used has its own hint.
            Self::NoCdi { source: Some(error), .. } => return error.hint(),
            Self::NoCdi { generate, .. } => {
                return Some(format!("run {generate}, or omit `--gpu-mode` so that gpurun uses another mode"));
            }
            Self::NotInCdi { generate, .. } => return Some(format!("run {generate}")),
            Self::NeedsNvml { .. } | Self::NoNode { .. } => "check that `nvidia-smi` works on the host",
            Self::Silent(_) => {
                "check whether `nvidia-smi` answers on the host, and run `dmesg | grep -i -e nvrm -e xid`; often only a reboot helps"
            }
            Self::NoLibraries { .. } => "check that `nvidia-smi` works on the host, then run `sudo ldconfig`",
            Self::Mismatch { .. } => "reboot the host",
            Self::NoUvm => "run `sudo modprobe nvidia_uvm` or `sudo nvidia-modprobe -u`",
            Self::Unmet(Unmet::Invalid { variable, .. }) => {
                return Some(format!("set it to a valid requirement or to nothing: `-e {variable}=`"));
            }
            Self::Unmet(_) => {
                "upgrade the host's driver, use an image with an older CUDA, or skip the check at your own risk with `-e NVIDIA_DISABLE_REQUIRE=1`"
            }
        };
        Some(text.into())
    }
}

impl VendorReason for NvidiaError {}

impl From<NvidiaError> for Reason {
    fn from(error: NvidiaError) -> Self {
        Self::Vendor(Box::new(error))
    }
}
