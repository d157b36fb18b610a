//! Native injection: what a container needs for its GPUs, from nothing but the installed driver.
//!
//! The nodes go into the OCI spec and the device filter, so that nothing but these can be opened, made by `mknod` or not, and no
//! `systemctl daemon-reload` takes them away. The driver's files are bound read-only. /proc/driver/nvidia shows its GPUs only, and its
//! `params` tell the driver's libraries to leave device nodes alone.

use std::collections::BTreeSet;
use std::path::Path;

use super::driver::{self, CAPABILITIES};
use super::host::{Host, inside};
use super::inventory::{Inventory, Unit};
use super::{Edits, FileMount, GpuError};
use crate::hook::{Chosen, Command};
use crate::spec::{Device, Stage};

/// The subcommand that covers /proc/driver/nvidia/params, as a createContainer hook.
pub const PARAMS_SUBCOMMAND: &str = "gpu-params";
/// What the driver's registry of parameters must say in a container.
pub const PARAMS: &str = "/proc/driver/nvidia/params";

const NVIDIA_MAJOR: u32 = 195;
const CONTROL_MINOR: u32 = 255;
const MODESET_MINOR: u32 = 254;

/// NVIDIA_DRIVER_CAPABILITIES as a set: the toolkit's default where nothing is said, `all` as everything.
pub fn capabilities(asked: &[String], env: Option<&str>) -> BTreeSet<String> {
    let from_env = || env.into_iter().flat_map(|text| text.split(',')).map(|name| name.trim().to_owned());
    let mut set: BTreeSet<String> =
        if asked.is_empty() { from_env().collect() } else { asked.iter().cloned().collect() };
    set.retain(|name| !name.is_empty());
    if set.is_empty() {
        set = ["utility", "compute"].map(str::to_owned).into();
    }
    if set.contains("all") {
        set = CAPABILITIES.map(str::to_owned).into();
    }
    set
}

/// Everything for these units.
pub(super) fn edits(
    asked: &str,
    root: &Path,
    inventory: &Inventory,
    units: &[&Unit],
    capabilities: &BTreeSet<String>,
) -> Result<Edits, GpuError> {
    let host = &inventory.host;
    let files = driver::files(root, &host.driver, capabilities);
    let essential = if capabilities.contains("compute") { "libcuda" } else { "libnvidia-ml" };
    if !files.libraries.iter().any(|library| library.file.starts_with(&format!("{essential}.so"))) {
        let on_disk = driver::library_version(root).filter(|version| *version != host.driver);
        return Err(match on_disk {
            Some(libraries) => GpuError::Mismatch { asked: asked.to_owned(), module: host.driver.clone(), libraries },
            None => GpuError::NoLibraries {
                asked: asked.to_owned(),
                library: essential.into(),
                driver: host.driver.clone(),
            },
        });
    }
    let mounts = files.others.into_iter().map(|file| FileMount {
        source: file.source,
        destination: file.destination,
        kind: "bind".into(),
        options: ["ro", "nosuid", "nodev", "bind", "rprivate"].map(str::to_owned).into(),
    });
    Ok(Edits {
        devices: devices(asked, root, host, units, capabilities)?,
        libraries: files.libraries,
        mounts: mounts.collect(),
        masked: masked(host, units),
        hooks: vec![params_hook()],
        ..Edits::default()
    })
}

fn node(path: &str, major: u32, minor: u32) -> Device {
    // rwm: making the nodes that it has anyway is harmless, and others cannot be made.
    Device { path: path.into(), kind: 'c', major, minor, mode: 0o666, uid: 0, gid: 0, access: "rwm".into() }
}

fn devices(
    asked: &str,
    root: &Path,
    host: &Host,
    units: &[&Unit],
    capabilities: &BTreeSet<String>,
) -> Result<Vec<Device>, GpuError> {
    let major =
        ["nvidia", "nvidia-frontend"].iter().find_map(|name| host.majors.get(*name)).copied().unwrap_or(NVIDIA_MAJOR);
    let mut nodes = vec![node("/dev/nvidiactl", major, CONTROL_MINOR)];
    if capabilities.contains("compute") {
        let uvm = *host.majors.get("nvidia-uvm").ok_or_else(|| GpuError::NoUvm { asked: asked.to_owned() })?;
        nodes.push(node("/dev/nvidia-uvm", uvm, 0));
        nodes.push(node("/dev/nvidia-uvm-tools", uvm, 1));
    }
    let graphics = capabilities.contains("graphics") || capabilities.contains("display");
    if graphics {
        nodes.push(node("/dev/nvidia-modeset", major, MODESET_MINOR));
    }
    let mut done = BTreeSet::new();
    for unit in units {
        let gpu = &host.gpus[unit.gpu];
        let minor = gpu.minor.ok_or_else(|| GpuError::NoNode { asked: asked.to_owned(), device: unit.name.clone() })?;
        if done.insert(minor) {
            nodes.push(node(&format!("/dev/nvidia{minor}"), major, minor));
            if graphics {
                nodes.extend(drm_nodes(root, &gpu.bus));
            }
        }
        if let Some((gpu_instance, compute_instance)) = unit.mig {
            let base = format!("gpu{minor}/gi{gpu_instance}");
            for name in [format!("{base}/access"), format!("{base}/ci{compute_instance}/access")] {
                let known = host.majors.get("nvidia-caps").zip(host.mig_minors.get(&name));
                let (caps, minor) =
                    known.ok_or_else(|| GpuError::NoNode { asked: asked.to_owned(), device: unit.name.clone() })?;
                let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
                // MIG devices of one GPU instance share its capability.
                if !nodes.iter().any(|node| node.path == path) {
                    nodes.push(node(&path, *caps, *minor));
                }
            }
        }
    }
    Ok(nodes)
}

/// /dev/dri/{card,renderD}N of a GPU, by sysfs.
fn drm_nodes(root: &Path, bus: &str) -> Vec<Device> {
    let dir = inside(root, Path::new(&format!("/sys/bus/pci/devices/{}/drm", bus.to_ascii_lowercase())));
    let mut nodes: Vec<Device> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let numbers = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = numbers.trim().split_once(':')?;
            let name = entry.file_name().into_string().ok()?;
            Some(node(&format!("/dev/dri/{name}"), major.parse().ok()?, minor.parse().ok()?))
        })
        .collect();
    nodes.sort_by(|one, other| one.path.cmp(&other.path));
    nodes
}

/// What /proc/driver/nvidia would tell of other people's GPUs.
pub(super) fn masked(host: &Host, units: &[&Unit]) -> Vec<String> {
    let others = host.gpus.iter().enumerate().filter(|(at, _)| !units.iter().any(|unit| unit.gpu == *at));
    others.map(|(_, gpu)| format!("/proc/driver/nvidia/gpus/{}", gpu.bus)).collect()
}

fn params_hook() -> Chosen {
    Chosen {
        name: PARAMS_SUBCOMMAND.into(),
        stage: Stage::CreateContainer,
        command: Command {
            // In the container's namespaces, but before it is shut in: this program is the hook's shim, which is gpurun.
            path: "/proc/self/exe".into(),
            args: vec!["gpurun".into(), PARAMS_SUBCOMMAND.into()],
            env: Vec::new(),
            timeout: Some(30),
        },
    }
}

/// The parameters with the one that matters changed, or added.
#[must_use]
pub fn sealed_params(text: &str) -> String {
    const KEY: &str = "ModifyDeviceFiles:";
    let lines = text.lines().filter(|line| !line.starts_with(KEY)).map(|line| format!("{line}\n"));
    lines.chain([format!("{KEY} 0\n")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_the_person_win_over_the_images() {
        let names = |asked: &[&str], env: Option<&str>| {
            let asked: Vec<String> = asked.iter().map(|&name| name.to_owned()).collect();
            capabilities(&asked, env).into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(names(&[], None), "compute,utility");
        assert_eq!(names(&[], Some("")), "compute,utility");
        assert_eq!(names(&[], Some("video, compute")), "compute,video");
        assert_eq!(names(&["graphics"], Some("compute")), "graphics");
        assert_eq!(names(&[], Some("all")), "compat32,compute,display,graphics,ngx,utility,video");
    }

    #[test]
    fn params_say_that_nodes_are_left_alone() {
        assert_eq!(
            sealed_params("Mobile: 0\nModifyDeviceFiles: 1\nUid: 0\n"),
            "Mobile: 0\nUid: 0\nModifyDeviceFiles: 0\n"
        );
    }
}
