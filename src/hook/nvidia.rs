//! Explanations of the error messages of NVIDIA's tools.

use std::path::Path;

/// The explanation of a known message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct KnownFailure {
    pub message: &'static str,
    pub hint: &'static str,
}

/// Tried in this order, so more specific texts come first.
const KNOWN: [(&[&str], KnownFailure); 20] = [
    (
        &["driver/library version mismatch"],
        KnownFailure {
            message: "NVIDIA's driver was upgraded while the old kernel module is still loaded",
            hint: "reboot the host, or unload the old module (`sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia`) and load the new one",
        },
    ),
    (
        &["load library failed: libnvidia-ml.so"],
        KnownFailure {
            message: "NVIDIA's driver is not installed on this host, or its libraries are not in the linker's cache",
            hint: "`nvidia-smi` must work on the host first: install the driver, then `sudo ldconfig`",
        },
    ),
    (
        &["unsatisfied condition: cuda"],
        KnownFailure {
            message: "the image needs a newer CUDA than the host's driver supports",
            hint: "upgrade the host's driver, use an image with an older CUDA, or try at your own risk with `-e \
                   NVIDIA_DISABLE_REQUIRE=1`",
        },
    ),
    (
        &["unsatisfied condition"],
        KnownFailure {
            message: "the image requires a driver or a GPU that the host does not have (NVIDIA_REQUIRE_*)",
            hint: "compare the image's NVIDIA_REQUIRE_* variables with `nvidia-smi`, or try at your own risk with `-e NVIDIA_DISABLE_REQUIRE=1`",
        },
    ),
    (
        &["cannot set MIG_CONFIG_DEVICES", "cannot set MIG_MONITOR_DEVICES"],
        KnownFailure {
            message: "NVIDIA_MIG_CONFIG_DEVICES and NVIDIA_MIG_MONITOR_DEVICES need the capability SYS_ADMIN",
            hint: "add `--cap-add SYS_ADMIN`, or remove the variable from the command line",
        },
    ),
    (
        &["unsupported capabilities found"],
        KnownFailure {
            message: "the image or `--gpus` requests driver capabilities that this host's toolkit does not allow",
            hint: "request fewer with `-e NVIDIA_DRIVER_CAPABILITIES=compute,utility`, or allow them in \
                   `supported-driver-capabilities` of NVIDIA's config.toml",
        },
    ),
    (
        &["error getting hook config", "Invalid value for config option"],
        KnownFailure {
            message: "NVIDIA's hook cannot use its configuration file",
            hint: "correct /etc/nvidia-container-runtime/config.toml (the message names the line and the column), or use `--gpu-mode native`",
        },
    ),
    (
        &["exec failed:", "couldn't find binary nvidia-container-cli"],
        KnownFailure {
            message: "NVIDIA's hook cannot execute `nvidia-container-cli`",
            hint: "install the package `libnvidia-container-tools`, or correct `path` in the section [nvidia-container-cli] of NVIDIA's config.toml; `--gpu-mode native` needs neither",
        },
    ),
    (
        &["invalid expression", "failed to get requirements"],
        KnownFailure {
            message: "a requirement of the image (NVIDIA_REQUIRE_*, or CUDA_VERSION) is not valid",
            hint: "add `-e NVIDIA_DISABLE_REQUIRE=1` to skip the requirements",
        },
    ),
    (
        &["stat failed: /dev/nvidia"],
        KnownFailure {
            message: "a device node of NVIDIA's driver is missing on the host",
            hint: "create the nodes with `sudo nvidia-modprobe -c 0 -u`",
        },
    ),
    (
        &["unknown device"],
        KnownFailure {
            message: "one of the selected GPUs does not exist on this host",
            hint: "run `nvidia-smi -L` to list the GPUs with their numbers and UUIDs",
        },
    ),
    (
        &["invoking the NVIDIA Container Runtime Hook directly"],
        KnownFailure {
            message: "NVIDIA's toolkit is configured for CDI on this host, and its hook refuses to run",
            hint: "use `--gpu-mode cdi` or `--gpu-mode native`, or set `skip-mode-detection = true` in the section \
                   [nvidia-container-runtime-hook] of /etc/nvidia-container-runtime/config.toml",
        },
    ),
    (
        &["file creation failed"],
        KnownFailure {
            message: "the image contains driver files at the destinations of the host's driver files",
            hint: "use `--gpu-mode native`, which replaces them, or remove libcuda.so*, libnvidia-* and nvidia-smi \
                   from the image",
        },
    ),
    (
        &["gpu is lost", "nvml error: unknown error"],
        KnownFailure {
            message: "a GPU of this host no longer responds",
            hint: "find it with `nvidia-smi`, and the reason with `dmesg | grep -i xid`; often only a reboot helps",
        },
    ),
    (
        &["cgroup subsystem devices not found"],
        KnownFailure {
            message: "NVIDIA's tool is too old for this host's cgroup version 2",
            hint: "upgrade the NVIDIA Container Toolkit (1.8 or later), or use `--gpu-mode native`",
        },
    ),
    (
        &["unresolvable CDI devices"],
        KnownFailure {
            message: "NVIDIA's toolkit uses a CDI file that does not describe these GPUs",
            hint: "run run run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, or use `--gpu-mode \
                   native`",
        },
    ),
    (
        &["unable to generate new device filter program", "failed to add device rules"],
        KnownFailure {
            message: "NVIDIA's hook found no device filter on the container's cgroup to add its rules to",
            hint: "report this bug in gpurun with the output of `gpurun inspect`",
        },
    ),
    (
        &["driver not loaded", "nvml error: driver not loaded", "nvidia-modprobe"],
        KnownFailure {
            message: "NVIDIA's kernel module is not loaded",
            hint: "load it with `sudo modprobe nvidia && sudo modprobe nvidia_uvm`, then check that `nvidia-smi` \
                   works on the host",
        },
    ),
    (
        &["insufficient permissions"],
        KnownFailure {
            message: "NVIDIA's tool was not allowed to use the GPU's device nodes",
            hint: "check that `sudo nvidia-smi` works on the host and that /dev/nvidia* are character devices",
        },
    ),
    (
        &["ldcache error", "open failed: /sbin/ldconfig", "ldconfig"],
        KnownFailure {
            message: "NVIDIA's tool could not refresh the container's library cache",
            hint: "set `ldconfig` in /etc/nvidia-container-runtime/config.toml to the host's ldconfig (`@/sbin/ldconfig`, Debian and Ubuntu: `@/sbin/ldconfig.real`)",
        },
    ),
];

/// Returns the explanation of a message from nvidia-container-cli or its hook, or `None` if the message is unknown.
/// `hook` is the program that ran, because not every message of NVIDIA's tools contains the tool's name.
#[must_use]
pub(crate) fn explain(hook: &Path, stderr: &str) -> Option<&'static KnownFailure> {
    let by_name = hook.file_name().is_some_and(|name| name.to_string_lossy().contains("nvidia"));
    if !by_name && !["nvidia", "nvml", "NVIDIA"].iter().any(|name| stderr.contains(name)) {
        return None;
    }
    KNOWN.iter().find(|(marks, _)| marks.iter().any(|mark| stderr.contains(mark))).map(|(_, known)| known)
}
