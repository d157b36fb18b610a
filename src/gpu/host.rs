//! The GPUs of a host as NVIDIA's driver shows them under /proc/driver/nvidia.

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
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `550.54.15`
    pub driver: String,
    pub gpus: Vec<Gpu>,
}

impl Gpu {
    /// A name that outlives a reboot: the UUID, or else the number.
    #[must_use]
    pub fn stable_name(&self) -> String {
        self.uuid.clone().unwrap_or_else(|| self.index.to_string())
    }
}

impl Host {
    /// Reads `root`/proc/driver/nvidia. Without a driver: the path that is missing.
    pub fn read(root: &Path) -> Result<Self, PathBuf> {
        let base = Path::new("/proc/driver/nvidia");
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let version = base.join("version");
        let text = std::fs::read_to_string(inside(&version)).map_err(|_| version)?;
        let mut gpus: Vec<Gpu> = std::fs::read_dir(inside(&base.join("gpus")))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let information = std::fs::read_to_string(entry.path().join("information")).ok()?;
                Some(parse_information(&entry.file_name().to_string_lossy(), &information))
            })
            .collect();
        gpus.sort_by(|one, other| one.bus.cmp(&other.bus));
        for (index, gpu) in gpus.iter_mut().enumerate() {
            gpu.index = index;
        }
        Ok(Self { driver: parse_version(&text).unwrap_or("of unknown version").to_owned(), gpus })
    }

    /// What a person called a GPU, as a stable name; `None` where no such GPU is there. MIG devices are left to NVIDIA's tool to judge.
    #[must_use]
    pub fn resolve(&self, device: &str) -> Option<String> {
        if device.starts_with("MIG-") || device.contains("gpu:") || is_mig_index(device) {
            return Some(device.to_owned());
        }
        if let Ok(index) = device.parse::<usize>() {
            return self.gpus.get(index).map(Gpu::stable_name);
        }
        // A UUID may be shortened, as nvidia-smi's are.
        let lower = device.to_ascii_lowercase();
        let mut found = self.gpus.iter().filter(|gpu| {
            gpu.uuid.as_ref().is_some_and(|uuid| lower.len() >= 8 && uuid.to_ascii_lowercase().starts_with(&lower))
                || same_bus(&gpu.bus, &lower)
        });
        match (found.next(), found.next()) {
            (Some(gpu), None) => Some(gpu.stable_name()),
            // The driver keeps the UUIDs to itself: NVIDIA's tool decides.
            (None, _) if lower.starts_with("gpu-") && self.gpus.iter().any(|gpu| gpu.uuid.is_none()) => {
                Some(device.to_owned())
            }
            _ => None,
        }
    }
}

/// `0:1`, the GPU instance 1 of GPU 0
fn is_mig_index(device: &str) -> bool {
    device.split_once(':').is_some_and(|(gpu, mig)| gpu.parse::<u16>().is_ok() && mig.parse::<u16>().is_ok())
}

/// Bus addresses with domains of four digits (/proc) and of eight (nvidia-smi) are the same.
fn same_bus(bus: &str, lower: &str) -> bool {
    let bus = bus.to_ascii_lowercase();
    lower == bus || lower.strip_prefix("0000").is_some_and(|short| short == bus)
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
    }
}
