//! The environment variables through which NVIDIA's tools take their instructions.

use crate::request::{GpuRequest, Which};

/// Selects the GPUs of NVIDIA's hook.
pub(super) const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";
/// Selects the parts of the driver that the hook injects.
pub(super) const CAPABILITIES: &str = "NVIDIA_DRIVER_CAPABILITIES";

/// By default, CUDA numbers GPUs "fastest first" and nvidia-smi numbers them by bus address. This makes both use the
/// same order.
pub(super) fn device_order() -> (String, String) {
    ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into())
}

/// Whether an entry of a container's environment belongs to the injection.
pub(super) fn owns(entry: &str) -> bool {
    ["NVIDIA_", "CUDA_DEVICE_ORDER="].iter().any(|start| entry.starts_with(start))
}

/// Variables that NVIDIA's hook treats as a request for rights beyond the container's own GPUs: access to the GPU
/// memory of other nodes, and configuring or monitoring this host's MIG devices.
const PRIVILEGES: [&str; 3] = ["NVIDIA_IMEX_CHANNELS", "NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"];

pub(super) fn is_privilege(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, _)| PRIVILEGES.contains(&name))
}

/// The notice for callers who set the variable of NVIDIA's own runtime instead of `--gpus`.
pub(super) fn misled(env: &[(String, String)]) -> Option<String> {
    let (_, value) = env.iter().rev().find(|(name, _)| name == VISIBLE)?;
    if ["", "void", "none"].contains(&value.as_str()) {
        return None;
    }
    let flag = if value == "all" { "all".to_owned() } else { format!("device={value}") };
    Some(format!("`{VISIBLE}={value}` selects no GPU: use `--gpus {flag}`"))
}

/// The variables that a host with GPUs would set.
pub(super) fn example(request: &GpuRequest) -> Vec<(String, String)> {
    let idle = |count: u32| if count == 1 { "1 idle GPU".to_owned() } else { format!("{count} idle GPUs") };
    let value = match &request.which {
        Which::All => "all GPUs of the host, by UUID".to_owned(),
        Which::Devices(devices) => devices.join(","),
        Which::Count(count) | Which::Free(count) => format!("{}, by UUID", idle(*count)),
    };
    let mut env = vec![(VISIBLE.into(), format!("<{value}>"))];
    if !request.capabilities.is_empty() {
        env.push((CAPABILITIES.into(), request.capabilities.join(",")));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_cannot_request_privileges() {
        for (entry, privilege) in [
            ("NVIDIA_IMEX_CHANNELS=0,1", true),
            ("NVIDIA_MIG_CONFIG_DEVICES=all", true),
            ("NVIDIA_MIG_MONITOR_DEVICES=", true),
            ("NVIDIA_DRIVER_CAPABILITIES=all", false),
            ("MY_NVIDIA_IMEX_CHANNELS=0", false),
            ("NVIDIA_IMEX_CHANNELS", false),
        ] {
            assert_eq!(is_privilege(entry), privilege, "{entry}");
        }
    }
}
