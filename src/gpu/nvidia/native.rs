//! Native injection: the edits for GPUs, from the installed driver alone.
//!
//! The device nodes go into the OCI spec and the device filter, so that the container can open no other nodes, even
//! ones made by `mknod`, and so that a `systemctl daemon-reload` does not remove them. The driver's files are
//! bind-mounted read-only. /proc/driver/nvidia shows only the container's GPUs, and its `params` tell the driver's
//! libraries not to create or change device nodes (`params`).

use std::collections::BTreeSet;
use std::path::Path;

use super::driver::{self, CAPABILITIES};
use super::error::NvidiaError;
use super::host::{Gpu, Host};
use super::params;
use crate::gpu::edits::{Edits, FileMount};
use crate::gpu::inventory::Unit;
use crate::gpu::root::inside;
use crate::spec::Device;

const NVIDIA_MAJOR: u32 = 195;
const CONTROL_MINOR: u32 = 255;
const MODESET_MINOR: u32 = 254;

/// Returns NVIDIA_DRIVER_CAPABILITIES as a set. Without a value it is the toolkit's default, and `all` stands for every
/// capability.
pub(super) fn capabilities(requested: &[String], env: Option<&str>) -> BTreeSet<String> {
    let from_env = || env.into_iter().flat_map(|text| text.split(',')).map(|name| name.trim().to_owned());
    let mut set: BTreeSet<String> =
        if requested.is_empty() { from_env().collect() } else { requested.iter().cloned().collect() };
    set.retain(|name| !name.is_empty());
    if set.is_empty() {
        set = ["utility", "compute"].map(str::to_owned).into();
    }
    if set.contains("all") {
        set = CAPABILITIES.map(str::to_owned).into();
    }
    set
}

/// Returns all edits for these units.
pub(super) fn edits(
    root: &Path,
    host: &Host,
    units: &[&Unit],
    capabilities: &BTreeSet<String>,
) -> Result<Edits, NvidiaError> {
    let files = driver::files(root, &host.driver, capabilities);
    let essential = if capabilities.contains("compute") { "libcuda" } else { "libnvidia-ml" };
    if !files.libraries.iter().any(|library| library.file.starts_with(&format!("{essential}.so"))) {
        let on_disk = driver::library_version(root).filter(|version| *version != host.driver);
        return Err(match on_disk {
            Some(libraries) => NvidiaError::Mismatch { module: host.driver.clone(), libraries },
            None => NvidiaError::NoLibraries { library: essential.into(), driver: host.driver.clone() },
        });
    }
    let mounts = files.others.into_iter().map(|file| FileMount {
        source: file.source,
        destination: file.destination,
        kind: "bind".into(),
        options: ["ro", "nosuid", "nodev", "bind", "rprivate"].map(str::to_owned).into(),
    });
    Ok(Edits {
        devices: devices(root, host, units, capabilities)?,
        libraries: files.libraries,
        mounts: mounts.collect(),
        masked: masked(host, units),
        hooks: vec![params::hook()],
        lines: vec![params::LINE],
        ..Edits::default()
    })
}

fn node(path: &str, major: u32, minor: u32) -> Device {
    // rwm: `mknod` of nodes that the container already has is harmless, and the filter denies it for all others.
    Device { path: path.into(), kind: 'c', major, minor, mode: 0o666, uid: 0, gid: 0, access: "rwm".into() }
}

/// Returns the nodes that NVIDIA's hook gives a container with these units, for the device filter. A node whose number
/// the driver does not show is skipped, not an error, because the hook loads missing modules and creates missing nodes.
pub(super) fn known_nodes(host: &Host, units: &[&Unit]) -> Vec<Device> {
    let major = gpu_major(host);
    let mut nodes =
        vec![node("/dev/nvidiactl", major, CONTROL_MINOR), node("/dev/nvidia-modeset", major, MODESET_MINOR)];
    if let Some(uvm) = host.majors.get("nvidia-uvm") {
        nodes.extend([node("/dev/nvidia-uvm", *uvm, 0), node("/dev/nvidia-uvm-tools", *uvm, 1)]);
    }
    for unit in units {
        nodes.extend(unit.nodes.iter().cloned());
    }
    nodes.sort_by(|one, other| one.path.cmp(&other.path));
    nodes.dedup_by(|one, other| one.path == other.path);
    nodes.iter_mut().for_each(|node| "rw".clone_into(&mut node.access));
    nodes
}

/// Returns the nodes of a GPU, or of one of its MIG devices (the ids of its instances): the GPU's node, and the
/// capabilities of the MIG device. Nodes whose number the driver does not show are left out.
pub(super) fn unit_nodes(host: &Host, gpu: &Gpu, mig: Option<(u32, u32)>) -> Vec<Device> {
    let Some(minor) = gpu.minor else { return Vec::new() };
    let mut nodes = vec![node(&format!("/dev/nvidia{minor}"), gpu_major(host), minor)];
    if let Some((gpu_instance, compute_instance)) = mig {
        for name in capability_names(minor, gpu_instance, compute_instance) {
            if let Some((major, minor)) = host.majors.get("nvidia-caps").zip(host.mig_minors.get(&name)) {
                let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
                // The driver creates these nodes read-only.
                nodes.push(Device { mode: 0o444, ..node(&path, *major, *minor) });
            }
        }
    }
    nodes
}

fn capability_names(minor: u32, gpu_instance: u32, compute_instance: u32) -> [String; 2] {
    let base = format!("gpu{minor}/gi{gpu_instance}");
    [format!("{base}/access"), format!("{base}/ci{compute_instance}/access")]
}

fn gpu_major(host: &Host) -> u32 {
    ["nvidia", "nvidia-frontend"].iter().find_map(|name| host.majors.get(*name)).copied().unwrap_or(NVIDIA_MAJOR)
}

fn devices(
    root: &Path,
    host: &Host,
    units: &[&Unit],
    capabilities: &BTreeSet<String>,
) -> Result<Vec<Device>, NvidiaError> {
    let major = gpu_major(host);
    let mut nodes = vec![node("/dev/nvidiactl", major, CONTROL_MINOR)];
    if capabilities.contains("compute") {
        let uvm = *host.majors.get("nvidia-uvm").ok_or(NvidiaError::NoUvm)?;
        nodes.push(node("/dev/nvidia-uvm", uvm, 0));
        nodes.push(node("/dev/nvidia-uvm-tools", uvm, 1));
    }
    let graphics = capabilities.contains("graphics") || capabilities.contains("display");
    if graphics {
        nodes.push(node("/dev/nvidia-modeset", major, MODESET_MINOR));
    }
    for unit in units {
        // A GPU has one node. A MIG device has two capabilities as well.
        if unit.nodes.len() < if unit.mig.is_some() { 3 } else { 1 } {
            return Err(NvidiaError::NoNode { device: unit.name.clone() });
        }
        let graphics_nodes = if graphics { drm_nodes(root, &host.gpus[unit.gpu].bus) } else { Vec::new() };
        for node in unit.nodes.iter().cloned().chain(graphics_nodes) {
            // MIG devices share the node of their GPU, and those of one GPU instance share its capability node.
            if !nodes.iter().any(|other| other.path == node.path) {
                nodes.push(node);
            }
        }
    }
    Ok(nodes)
}

/// Returns /dev/dri/{card,renderD}N of a GPU, as listed in sysfs.
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

/// Returns the /proc/driver/nvidia entries of GPUs that the container does not get.
pub(super) fn masked(host: &Host, units: &[&Unit]) -> Vec<String> {
    let others = host.gpus.iter().enumerate().filter(|(at, _)| !units.iter().any(|unit| unit.gpu == *at));
    others.map(|(_, gpu)| format!("/proc/driver/nvidia/gpus/{}", gpu.bus)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requested_capabilities_win_over_those_of_the_image() {
        let names = |requested: &[&str], env: Option<&str>| {
            let requested: Vec<String> = requested.iter().map(|&name| name.to_owned()).collect();
            capabilities(&requested, env).into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(names(&[], None), "compute,utility");
        assert_eq!(names(&[], Some("")), "compute,utility");
        assert_eq!(names(&[], Some("video, compute")), "compute,video");
        assert_eq!(names(&["graphics"], Some("compute")), "graphics");
        assert_eq!(names(&[], Some("all")), "compat32,compute,display,graphics,ngx,utility,video");
    }
}
