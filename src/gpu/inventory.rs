//! The host's GPUs as what a container can be given: whole GPUs, and the MIG devices of those that are divided.

use std::path::Path;

use serde::Serialize;

use super::driver;
use super::host::{Gpu, Host};
use super::nvml::{self, GpuProcess, GpuReading, Memory, Readings, Unread};

/// What a container can be given as one: a GPU, or a MIG device. A GPU in MIG mode is only given by its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// `0`, or `0:1` for the MIG device 1 of GPU 0.
    pub index: String,
    /// The UUID, or the index where the driver keeps the UUIDs to itself.
    pub name: String,
    pub model: String,
    /// Its GPU's place in [`Host::gpus`].
    #[serde(skip)]
    pub gpu: usize,
    /// Numbers of its GPU instance and compute instance.
    pub mig: Option<(u32, u32)>,
    pub memory: Option<Memory>,
    /// Percent.
    pub utilization: Option<u32>,
    pub processes: Vec<GpuProcess>,
    pub numa_node: Option<u32>,
}

/// All of it, at one moment.
#[derive(Debug)]
pub struct Inventory {
    pub host: Host,
    pub readings: Result<Readings, Unread>,
    pub units: Vec<Unit>,
    /// Bus addresses of GPUs that the kernel's driver knows and NVML does not: they fell off the bus, and nobody is given them.
    pub lost: Vec<String>,
}

impl Inventory {
    /// Reads /proc and asks NVML, both below `root`. Without a driver: the path that is missing.
    pub fn read(root: &Path) -> Result<Self, std::path::PathBuf> {
        let host = Host::read(root)?;
        let readings = nvml::read(driver::nvml_library(root).as_deref());
        Ok(Self::of(host, readings))
    }

    /// Without NVML: quick, and enough to know whether a GPU exists. No MIG device is known then.
    pub fn read_shallow(root: &Path) -> Result<Self, std::path::PathBuf> {
        Ok(Self::of(Host::read(root)?, Err(Unread::NoLibrary)))
    }

    fn of(mut host: Host, readings: Result<Readings, Unread>) -> Self {
        let (mut units, mut lost) = (Vec::new(), Vec::new());
        if let Ok(readings) = &readings {
            number_as_nvml(&mut host, readings);
        }
        for (at, gpu) in host.gpus.iter().enumerate() {
            let reading = readings.as_ref().ok().map(|all| all.gpus.iter().find(|one| gpu.is_at(&one.bus)));
            match reading {
                Some(None) => lost.push(gpu.bus.clone()),
                Some(Some(reading)) if reading.mig_enabled => units.extend(migs(at, gpu, reading)),
                reading => units.push(whole(at, gpu, reading.flatten())),
            }
        }
        Self { host, readings, units, lost }
    }

    /// `0 NVIDIA A100 (GPU-…), 1 …`
    #[must_use]
    pub fn listing(&self) -> String {
        let one = |unit: &Unit| match unit.name == unit.index {
            true => unit.index.clone(),
            false => format!("{} ({})", unit.index, unit.name),
        };
        self.units.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// What a person called a GPU or MIG device; empty where no such thing is there. A GPU in MIG mode is all of its devices.
    #[must_use]
    pub fn resolve(&self, device: &str) -> Vec<usize> {
        let of = |wanted: &dyn Fn(&Unit) -> bool| -> Vec<usize> {
            (0..self.units.len()).filter(|at| wanted(&self.units[*at])).collect()
        };
        let lower = device.to_ascii_lowercase();
        if lower.starts_with("mig-gpu-") {
            // The older name: MIG-GPU-<UUID of the GPU>/<GPU instance>/<compute instance>.
            return of(&|unit| self.old_mig_name(unit).is_some_and(|name| name.eq_ignore_ascii_case(device)));
        }
        if lower.starts_with("mig-") {
            let found = of(&|unit| unit.mig.is_some() && unit.name.to_ascii_lowercase().starts_with(&lower));
            return if lower.len() >= 8 && found.len() == 1 { found } else { Vec::new() };
        }
        if device.contains(':') && device.split(':').all(|part| part.parse::<u16>().is_ok()) {
            return of(&|unit| unit.index == device);
        }
        if let Ok(index) = device.parse::<usize>() {
            return of(&|unit| self.host.gpus[unit.gpu].index == index);
        }
        let mut found = self.host.matching(device);
        match (found.next(), found.next()) {
            (Some(gpu), None) => of(&|unit| self.host.gpus[unit.gpu].bus == gpu.bus),
            _ => Vec::new(),
        }
    }

    /// Whether a name could be meant for something here, as far as can be told without asking NVML.
    #[must_use]
    pub fn may_have(&self, device: &str) -> bool {
        !self.resolve(device).is_empty() || super::choose::only_nvidia_knows(self, device)
    }

    fn old_mig_name(&self, unit: &Unit) -> Option<String> {
        let (gpu_instance, compute_instance) = unit.mig?;
        let uuid = self.host.gpus[unit.gpu].uuid.as_ref()?;
        Some(format!("MIG-{uuid}/{gpu_instance}/{compute_instance}"))
    }
}

/// NVML's numbers and UUIDs win: they are what `nvidia-smi` shows. (They are the same but on drivers that hide their UUIDs in /proc, and where a GPU
/// fell off the bus.)
fn number_as_nvml(host: &mut Host, readings: &Readings) {
    let missing = host.gpus.iter_mut().filter(|gpu| !readings.gpus.iter().any(|reading| gpu.is_at(&reading.bus)));
    for (after, gpu) in missing.enumerate() {
        gpu.index = readings.gpus.len() + after;
    }
    for (index, reading) in readings.gpus.iter().enumerate() {
        if let Some(gpu) = host.gpus.iter_mut().find(|gpu| gpu.is_at(&reading.bus)) {
            gpu.index = index;
            gpu.uuid = Some(reading.uuid.clone());
            gpu.model.clone_from(&reading.name);
            gpu.minor = gpu.minor.or(reading.minor);
        }
    }
    host.gpus.sort_by_key(|gpu| gpu.index);
}

fn whole(at: usize, gpu: &Gpu, reading: Option<&GpuReading>) -> Unit {
    Unit {
        index: gpu.index.to_string(),
        name: gpu.stable_name(),
        model: gpu.model.clone(),
        gpu: at,
        mig: None,
        memory: reading.and_then(|reading| reading.memory),
        utilization: reading.and_then(|reading| reading.utilization),
        processes: reading.map(|reading| reading.processes.clone()).unwrap_or_default(),
        numa_node: gpu.numa_node,
    }
}

fn migs(at: usize, gpu: &Gpu, reading: &GpuReading) -> Vec<Unit> {
    let one = |(number, mig): (usize, &nvml::MigReading)| Unit {
        index: format!("{}:{number}", gpu.index),
        name: mig.uuid.clone(),
        model: mig.name.clone(),
        gpu: at,
        mig: Some((mig.gpu_instance, mig.compute_instance)),
        memory: mig.memory,
        utilization: None,
        processes: mig.processes.clone(),
        numa_node: gpu.numa_node,
    };
    reading.migs.iter().enumerate().map(one).collect()
}
