//! The host's GPUs as the driver lists them in /proc, with NVML's readings where they are needed.
//!
//! /proc knows the UUID and the device node of each GPU, which is enough for `--gpus all` and `device=…`. NVML is asked
//! for the use of the GPUs, for the MIG devices of a partitioned GPU, and for UUIDs that /proc hides.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::host::{Gpu, Host};
use super::nvml::{self, GpuReading, Readings, Unread};
use super::{driver, native};
use crate::gpu::inventory::{Inventory, Unit};
use crate::gpu::query::Early;
use crate::gpu::vendor::{Detail, Notice};

#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) root: PathBuf,
    /// Whether only the presence of GPUs was asked for.
    pub(super) shallow: bool,
    pub(super) host: Host,
    /// `None` if NVML was not asked.
    pub(super) readings: Option<Result<Readings, Unread>>,
    /// NVML's answer to a later question.
    later: OnceCell<Result<Readings, Unread>>,
    pub(super) inventory: Inventory,
}

impl Snapshot {
    pub(super) fn read(root: &Path, host: Host, detail: Detail, early: Option<&Early>, notice: Notice<'_>) -> Self {
        let wanted = match detail {
            Detail::Presence => false,
            Detail::Names => host.needs_nvml(),
            Detail::Usage => true,
        };
        let readings =
            wanted.then(|| nvml::read(driver::nvml_library(root).as_deref(), early.and_then(Early::take), notice));
        Self { shallow: detail == Detail::Presence, ..Self::of(root, host, readings) }
    }

    fn of(root: &Path, mut host: Host, readings: Option<Result<Readings, Unread>>) -> Self {
        let (mut units, mut lost) = (Vec::new(), Vec::new());
        let known = readings.as_ref().and_then(|readings| readings.as_ref().ok());
        if let Some(readings) = known {
            number_as_nvml(&mut host, readings);
        }
        for (at, gpu) in host.gpus.iter().enumerate() {
            let reading = known.map(|all| all.gpus.iter().find(|one| gpu.is_at(&one.bus)));
            match reading {
                Some(None) => lost.push(gpu.bus.clone()),
                Some(Some(reading)) if reading.mig_enabled => units.extend(migs(&host, at, reading)),
                reading => units.push(whole(&host, at, reading.flatten())),
            }
        }
        let cuda = known.and_then(|readings| readings.cuda).map(|(major, minor)| format!("{major}.{minor}"));
        let unread = readings.as_ref().and_then(|readings| readings.as_ref().err()).map(ToString::to_string);
        let inventory = Inventory { driver: Some(host.driver.clone()), cuda, units, lost, unread };
        Self { root: root.to_path_buf(), shallow: false, host, readings, later: OnceCell::new(), inventory }
    }

    /// Returns NVML's readings, and asks NVML if that has not happened yet.
    pub(super) fn readings(&self, notice: Notice<'_>) -> &Result<Readings, Unread> {
        let read = || nvml::read(driver::nvml_library(&self.root).as_deref(), None, notice);
        self.readings.as_ref().unwrap_or_else(|| self.later.get_or_init(read))
    }

    /// Why NVML could not be queried.
    pub(super) fn unread(&self) -> Option<&Unread> {
        self.readings.as_ref()?.as_ref().err()
    }

    /// `MIG-GPU-<UUID of the GPU>/<GPU instance>/<compute instance>`
    pub(super) fn old_mig_name(&self, unit: &Unit) -> Option<String> {
        let (gpu_instance, compute_instance) = unit.mig?;
        let uuid = self.host.gpus[unit.gpu].uuid.as_ref()?;
        Some(format!("MIG-{uuid}/{gpu_instance}/{compute_instance}"))
    }
}

/// Applies NVML's numbers and UUIDs, because `nvidia-smi` shows them. They differ from those of /proc only if the
/// driver hides the UUIDs there, or if a GPU fell off the bus.
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

fn whole(host: &Host, at: usize, reading: Option<&GpuReading>) -> Unit {
    let gpu = &host.gpus[at];
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
        nodes: native::unit_nodes(host, gpu, None),
        awake: reading.is_some_and(is_awake),
    }
}

fn migs(host: &Host, at: usize, reading: &GpuReading) -> Vec<Unit> {
    let gpu: &Gpu = &host.gpus[at];
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
        nodes: native::unit_nodes(host, gpu, Some((mig.gpu_instance, mig.compute_instance))),
        awake: is_awake(reading),
    };
    reading.migs.iter().enumerate().map(one).collect()
}

/// Persistence mode keeps a GPU initialized.
fn is_awake(reading: &GpuReading) -> bool {
    reading.persistence == Some(true)
}
