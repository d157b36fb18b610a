//! The GPUs of a host as NVIDIA's driver shows them below a root directory: /proc/driver/nvidia, /proc/devices, /sys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// NVML's number: the order of the bus addresses.
    pub index: usize,
    /// `0000:3b:00.0`
    pub bus: String,
    /// `GPU-…`, where the driver tells it (it shows `GPU-????…` to whoever may not know).
    pub uuid: Option<String>,
    pub model: String,
    /// n of /dev/nvidiaN
    pub minor: Option<u32>,
    /// The NUMA node that it is plugged in at; none on a host that has no such thing.
    pub numa_node: Option<u32>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `550.54.15`
    pub driver: String,
    pub gpus: Vec<Gpu>,
    /// Character majors of /proc/devices by name: `nvidia`, `nvidia-uvm`, `nvidia-caps`, …
    pub majors: BTreeMap<String, u32>,
    /// `gpu0/gi1/ci0/access` → minor of /dev/nvidia-caps/nvidia-capN; `gpu0` counts by device minor.
    pub mig_minors: BTreeMap<String, u32>,
}

impl Gpu {
    /// A name that outlives a reboot: the UUID, or else the number.
    #[must_use]
    pub fn stable_name(&self) -> String {
        self.uuid.clone().unwrap_or_else(|| self.index.to_string())
    }

    /// Whether a bus address means this GPU: with a domain of four digits (/proc) or of eight (nvidia-smi), in either case.
    #[must_use]
    pub fn is_at(&self, bus: &str) -> bool {
        let (bus, lower) = (self.bus.to_ascii_lowercase(), bus.to_ascii_lowercase());
        lower == bus || lower.strip_prefix("0000").is_some_and(|short| short == bus)
    }
}

impl Host {
    /// Reads what the driver shows below `root`. Without a driver: the path that is missing.
    pub fn read(root: &Path) -> Result<Self, PathBuf> {
        let base = Path::new("/proc/driver/nvidia");
        let version = base.join("version");
        let text = std::fs::read_to_string(inside(root, &version)).map_err(|_| version)?;
        let mut gpus: Vec<Gpu> = std::fs::read_dir(inside(root, &base.join("gpus")))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let information = std::fs::read_to_string(entry.path().join("information")).ok()?;
                let bus = entry.file_name().to_string_lossy().into_owned();
                let mut gpu = parse_information(&bus, &information);
                gpu.numa_node = numa_node(root, &bus);
                Some(gpu)
            })
            .collect();
        gpus.sort_by(|one, other| one.bus.cmp(&other.bus));
        for (index, gpu) in gpus.iter_mut().enumerate() {
            gpu.index = index;
        }
        let read = |path: &str| std::fs::read_to_string(inside(root, Path::new(path))).unwrap_or_default();
        Ok(Self {
            driver: parse_version(&text).unwrap_or("of unknown version").to_owned(),
            gpus,
            majors: parse_majors(&read("/proc/devices")),
            mig_minors: parse_mig_minors(&read("/proc/driver/nvidia-caps/mig-minors")),
        })
    }

    /// The GPUs whose UUID begins like this (eight characters at least, as `nvidia-smi` shortens them) or whose bus address it is.
    pub fn matching<'a>(&'a self, device: &'a str) -> impl Iterator<Item = &'a Gpu> {
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

/// `path` of the host whose root directory is `root`.
pub(super) fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The kernel says -1 where a device belongs to no node.
fn numa_node(root: &Path, bus: &str) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{}/numa_node", bus.to_ascii_lowercase());
    std::fs::read_to_string(inside(root, Path::new(&path))).ok()?.trim().parse().ok()
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue …`, or `… Open Kernel Module for x86_64  550.54.15  Release …`
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
    }
}

/// The first half of /proc/devices: `195 nvidia-frontend`, `511 nvidia-caps`.
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
