//! The two questions about MIG devices that nvml-wrapper has no safe call for.

use nvml_wrapper::{Device, Nvml};

/// Numbers of a MIG device's GPU instance and compute instance; `None` where it is no MIG device, or the library is too old to know.
#[must_use]
pub fn instance_ids(nvml: &Nvml, device: &Device<'_>) -> Option<(u32, u32)> {
    let library = nvml.lib();
    let gpu_instance = library.nvmlDeviceGetGpuInstanceId.as_ref().ok()?;
    let compute_instance = library.nvmlDeviceGetComputeInstanceId.as_ref().ok()?;
    let (mut gi, mut ci) = (0, 0);
    // SAFETY: the handle comes from this very library, which `nvml` keeps loaded and initialized; both functions write one unsigned int
    // to the place they are given (nvml.h) and keep nothing.
    let answers = unsafe { [gpu_instance(device.handle(), &mut gi), compute_instance(device.handle(), &mut ci)] };
    // NVML_SUCCESS
    (answers == [0, 0]).then_some((gi, ci))
}
