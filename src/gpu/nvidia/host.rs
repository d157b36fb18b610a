//! The GPUs of a host, as NVIDIA's driver lists them below a root directory in /proc/driver/nvidia, /proc/devices and
//! /sys.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::gpu::root::inside;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// NVML's index, which follows the order of the bus addresses.
    pub index: usize,
    /// `0000:3b:00.0`
    pub bus: String,
    /// `GPU-…`, if the driver reveals it. To unprivileged callers it shows `GPU-????…`.
    pub uuid: Option<String>,
    pub model: String,
    /// n of /dev/nvidiaN
    pub minor: Option<u32>,
    /// The NUMA node of the GPU's slot. `None` on a host without NUMA.
    pub numa_node: Option<u32>,
    /// Whether the PCI bus answers for the device. It does not for a GPU that fell off the bus.
    pub on_bus: bool,
    /// Whether the GPU has MIG devices.
    pub has_migs: bool,
}

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// `550.54.15`
    pub driver: String,
    pub gpus: Vec<Gpu>,
    /// Character majors of /proc/devices by name: `nvidia`, `nvidia-uvm`, `nvidia-caps`, …
    pub majors: BTreeMap<String, u32>,
    /// `gpu0/gi1/ci0/access` → minor number of /dev/nvidia-caps/nvidia-capN. The number in `gpu0` is the device minor.
    pub mig_minors: BTreeMap<String, u32>,
}

impl Gpu {
    /// A name that is stable across reboots: the UUID, or else the index.
    #[must_use]
    pub(crate) fn stable_name(&self) -> String {
        self.uuid.clone().unwrap_or_else(|| self.index.to_string())
    }

    /// Whether a bus address is this GPU's. The domain may have four digits (/proc) or eight (nvidia-smi), in upper or
    /// lower case.
    #[must_use]
    pub(crate) fn is_at(&self, bus: &str) -> bool {
        let (bus, lower) = (self.bus.to_ascii_lowercase(), bus.to_ascii_lowercase());
        lower == bus || lower.strip_prefix("0000").is_some_and(|short| short == bus)
    }
}

impl Host {
    /// Reads the driver's files below `root`. Without a driver, returns the path that is missing.
    pub(crate) fn read(root: &Path) -> Result<Self, PathBuf> {
        let driver = Self::version(root)?;
        let mut gpus: Vec<Gpu> = std::fs::read_dir(inside(root, Path::new("/proc/driver/nvidia/gpus")))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let information = std::fs::read_to_string(entry.path().join("information")).ok()?;
                let bus = entry.file_name().to_string_lossy().into_owned();
                let mut gpu = parse_information(&bus, &information);
                gpu.numa_node = numa_node(root, &bus);
                gpu.on_bus = is_on_bus(root, &bus);
                gpu.has_migs = gpu.minor.is_some_and(|minor| has_migs(root, minor));
                Some(gpu)
            })
            .collect();
        gpus.sort_by(|one, other| one.bus.cmp(&other.bus));
        for (index, gpu) in gpus.iter_mut().enumerate() {
            gpu.index = index;
        }
        let read = |path: &str| std::fs::read_to_string(inside(root, Path::new(path))).unwrap_or_default();
        Ok(Self {
            driver,
            gpus,
            majors: parse_majors(&read("/proc/devices")),
            mig_minors: parse_mig_minors(&read("/proc/driver/nvidia-caps/mig-minors")),
        })
    }

    /// Reads the version of the loaded driver. Without a driver, returns the path that is missing.
    pub(crate) fn version(root: &Path) -> Result<String, PathBuf> {
        let path = PathBuf::from("/proc/driver/nvidia/version");
        let text = std::fs::read_to_string(inside(root, &path)).map_err(|_| path)?;
        Ok(parse_version(&text).unwrap_or("of unknown version").to_owned())
    }

    /// Whether the driver hides UUIDs, as it does from unprivileged callers.
    pub(crate) fn hides_names(&self) -> bool {
        self.gpus.iter().any(|gpu| gpu.uuid.is_none())
    }

    /// Whether /proc is not enough to list the units: UUIDs are hidden, there are MIG devices, or a GPU fell off the
    /// bus.
    pub(crate) fn needs_nvml(&self) -> bool {
        self.hides_names() || self.gpus.iter().any(|gpu| gpu.has_migs || !gpu.on_bus)
    }

    /// Returns the GPUs whose UUID starts with `device` (at least eight characters, as `nvidia-smi` shortens them) or
    /// whose bus address it is.
    pub(crate) fn matching<'a>(&'a self, device: &'a str) -> impl Iterator<Item = &'a Gpu> {
        let lower = device.to_ascii_lowercase();
        self.gpus.iter().filter(move |gpu| {
            gpu.is_at(device)
                || gpu
                    .uuid
                    .as_ref()
                    .is_some_and(|uuid| lower.len() >= 8 && uuid.to_ascii_lowercase().starts_with(&lower))
        })
    }
}

/// The kernel reports -1 for a device without a NUMA node.
fn numa_node(root: &Path, bus: &str) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{}/numa_node", bus.to_ascii_lowercase());
    std::fs::read_to_string(inside(root, Path::new(&path))).ok()?.trim().parse().ok()
}

/// The configuration space of a device that does not answer reads as ones.
fn is_on_bus(root: &Path, bus: &str) -> bool {
    let path = format!("/sys/bus/pci/devices/{}/config", bus.to_ascii_lowercase());
    let mut vendor = [0; 2];
    let read = File::open(inside(root, Path::new(&path))).and_then(|mut file| file.read_exact(&mut vendor));
    read.is_err() || vendor != [0xff; 2]
}

/// The driver lists the GPU instances of a GPU in MIG mode: /proc/driver/nvidia/capabilities/gpu0/mig/gi1.
fn has_migs(root: &Path, minor: u32) -> bool {
    let path = format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig");
    let entries = std::fs::read_dir(inside(root, Path::new(&path))).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"gi"))
}

/// Parses `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue …`, or
/// `… Open Kernel Module for x86_64  550.54.15  Release …`.
fn parse_version(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|word| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok()))
}

fn parse_information(bus: &str, text: &str) -> Gpu {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    Gpu {
        index: 0,
        bus: bus.to_owned(),
        uuid: field("GPU UUID").filter(|uuid| uuid.starts_with("GPU-") && !uuid.contains('?')),
        model: field("Model").unwrap_or_else(|| "NVIDIA GPU".into()),
        minor: field("Device Minor").and_then(|minor| minor.parse().ok()),
        numa_node: None,
        on_bus: true,
        has_migs: false,
    }
}

/// Parses the first part of /proc/devices: `195 nvidia-frontend`, `511 nvidia-caps`.
fn parse_majors(text: &str) -> BTreeMap<String, u32> {
    let characters = text.lines().take_while(|line| !line.starts_with("Block devices"));
    characters
        .filter_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            Some((name.to_owned(), major.parse().ok()?))
        })
        .collect()
}

/// `gpu0/gi1/access 12`
fn parse_mig_minors(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, minor)| Some((name.to_owned(), minor.trim().parse().ok()?)))
        .collect()
}
