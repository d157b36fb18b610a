//! The two queries about MIG devices for which nvml-wrapper has no safe function.

use nvml_wrapper::{Device, Nvml};

/// The numbers of a MIG device's GPU instance and compute instance. `None` if it is not a MIG device, or if the library
/// is too old.
#[must_use]
pub(crate) fn instance_ids(nvml: &Nvml, device: &Device<'_>) -> Option<(u32, u32)> {
    let library = nvml.lib();
    let gpu_instance = library.nvmlDeviceGetGpuInstanceId.as_ref().ok()?;
    let compute_instance = library.nvmlDeviceGetComputeInstanceId.as_ref().ok()?;
    let (mut gi, mut ci) = (0, 0);
    // SAFETY: the handle comes from this library, which `nvml` keeps loaded and initialized. Both functions write one
    // unsigned int to the given address (nvml.h) and keep no reference to it.
    let answers = unsafe { [gpu_instance(device.handle(), &mut gi), compute_instance(device.handle(), &mut ci)] };
    // NVML_SUCCESS
    (answers == [0, 0]).then_some((gi, ci))
}
