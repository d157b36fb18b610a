//! What NVIDIA's tools say, in plain words.

/// One of NVIDIA's messages, understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{says}")]
pub struct PlainWords {
    pub says: &'static str,
    pub hint: &'static str,
}

/// In the order in which they are tried: the more special text stands first.
const KNOWN: [(&[&str], PlainWords); 14] = [
    (
        &["driver/library version mismatch"],
        PlainWords {
            says: "NVIDIA's driver was upgraded while the old kernel module is still loaded",
            hint: "reboot the host, or unload the old module (`sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia`) and load the new one",
        },
    ),
    (
        &["load library failed: libnvidia-ml.so"],
        PlainWords {
            says: "NVIDIA's driver is not installed on this host, or its libraries are not in the linker's cache",
            hint: "`nvidia-smi` must work on the host first: install the driver, then `sudo ldconfig`",
        },
    ),
    (
        &["unsatisfied condition: cuda"],
        PlainWords {
            says: "the image needs a newer CUDA than the host's driver supports",
            hint: "upgrade the host's driver, take an image with an older CUDA, or try at your own risk with `-e NVIDIA_DISABLE_REQUIRE=1`",
        },
    ),
    (
        &["unsatisfied condition"],
        PlainWords {
            says: "the image asks for a driver or a GPU that the host does not have (NVIDIA_REQUIRE_*)",
            hint: "compare the image's NVIDIA_REQUIRE_* variables with `nvidia-smi`, or try at your own risk with `-e NVIDIA_DISABLE_REQUIRE=1`",
        },
    ),
    (
        &["unknown device"],
        PlainWords {
            says: "one of the chosen GPUs does not exist on this host",
            hint: "`nvidia-smi -L` lists the GPUs with their numbers and UUIDs",
        },
    ),
    (
        &["invoking the NVIDIA Container Runtime Hook directly"],
        PlainWords {
            says: "NVIDIA's toolkit is set to CDI on this host, and its hook refuses to run",
            hint: "`--gpu-mode cdi` or `--gpu-mode native`; or set `skip-mode-detection = true` below [nvidia-container-runtime-hook] in /etc/nvidia-container-runtime/config.toml",
        },
    ),
    (
        &["file creation failed"],
        PlainWords {
            says: "the image carries files of a driver in the place where the hook puts the host's",
            hint: "`--gpu-mode native` replaces them; or remove libcuda.so*, libnvidia-* and nvidia-smi from the image",
        },
    ),
    (
        &["gpu is lost", "detection error: nvml error: unknown error"],
        PlainWords {
            says: "a GPU of this host does not answer any more",
            hint: "`nvidia-smi` shows which one, `dmesg | grep -i xid` why; often only a reboot brings it back",
        },
    ),
    (
        &["cgroup subsystem devices not found"],
        PlainWords {
            says: "NVIDIA's tool is too old for this host's cgroup version 2",
            hint: "upgrade the NVIDIA Container Toolkit (1.8 or later), or use `--gpu-mode native`",
        },
    ),
    (
        &["unresolvable CDI devices"],
        PlainWords {
            says: "NVIDIA's toolkit looks for a CDI file that does not describe these GPUs",
            hint: "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, or use `--gpu-mode native`",
        },
    ),
    (
        &["unable to generate new device filter program", "failed to add device rules"],
        PlainWords {
            says: "NVIDIA's hook found no device filter on the container's cgroup to add its rules to",
            hint: "this is a fault in gpurun: please report it with the output of `gpurun inspect`",
        },
    ),
    (
        &["driver not loaded", "nvml error: driver not loaded", "nvidia-modprobe"],
        PlainWords {
            says: "NVIDIA's kernel module is not loaded",
            hint: "load it with `sudo modprobe nvidia && sudo modprobe nvidia_uvm`, then see that `nvidia-smi` works on the host",
        },
    ),
    (
        &["insufficient permissions"],
        PlainWords {
            says: "NVIDIA's tool was not allowed to use the GPU's device nodes",
            hint: "see that `sudo nvidia-smi` works on the host and that /dev/nvidia* are character devices",
        },
    ),
    (
        &["ldcache error", "open failed: /sbin/ldconfig", "ldconfig"],
        PlainWords {
            says: "NVIDIA's tool could not refresh the container's library cache",
            hint: "set `ldconfig` in /etc/nvidia-container-runtime/config.toml to the host's ldconfig (`@/sbin/ldconfig`, Debian and Ubuntu: `@/sbin/ldconfig.real`)",
        },
    ),
];

/// What a message of nvidia-container-cli or its hook means; `None` where it is none that is known.
#[must_use]
pub fn explain(stderr: &str) -> Option<&'static PlainWords> {
    if !["nvidia", "nvml", "NVIDIA"].iter().any(|name| stderr.contains(name)) {
        return None;
    }
    KNOWN.iter().find(|(marks, _)| marks.iter().any(|mark| stderr.contains(mark))).map(|(_, words)| words)
}
