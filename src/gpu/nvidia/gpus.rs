//! NVIDIA's GPUs behind the interface for all vendors: how their names are resolved.

use std::path::Path;

use super::error::NvidiaError;
use super::nvml::Unread;
use super::snapshot::Snapshot;
use super::{cdi, inject, mode};
use crate::gpu::edits::Edits;
use crate::gpu::error::Reason;
use crate::gpu::inventory::{Inventory, Unit};
use crate::gpu::opens::{Hints, Node};
use crate::gpu::selection::Selection;
use crate::gpu::vendor::{Container, Gpus, Injection, Notice};
use crate::request::{GpuMode, GpuRequest};

impl Gpus for Snapshot {
    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn resolve(&self, name: &str) -> Vec<usize> {
        let units = &self.inventory.units;
        let of = |wanted: &dyn Fn(&Unit) -> bool| -> Vec<usize> {
            (0..units.len()).filter(|at| wanted(&units[*at])).collect()
        };
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("mig-gpu-") {
            // The older form of name: MIG-GPU-<UUID of the GPU>/<GPU instance>/<compute instance>.
            return of(&|unit| self.old_mig_name(unit).is_some_and(|old| old.eq_ignore_ascii_case(name)));
        }
        if lower.starts_with("mig-") {
            let found = of(&|unit| unit.mig.is_some() && unit.name.to_ascii_lowercase().starts_with(&lower));
            return if lower.len() >= 8 && found.len() == 1 { found } else { Vec::new() };
        }
        if name.contains(':') && name.split(':').all(|part| part.parse::<u16>().is_ok()) {
            return of(&|unit| unit.index == name);
        }
        if let Ok(index) = name.parse::<usize>() {
            return of(&|unit| self.host.gpus[unit.gpu].index == index);
        }
        let mut found = self.host.matching(name);
        match (found.next(), found.next()) {
            (Some(gpu), None) => of(&|unit| self.host.gpus[unit.gpu].bus == gpu.bus),
            _ => Vec::new(),
        }
    }

    fn is_opaque(&self, name: &str) -> bool {
        let lower = name.to_ascii_lowercase();
        let mig = lower.starts_with("mig-")
            || name.contains("gpu:")
            || name.split(':').all(|part| part.parse::<u16>().is_ok());
        let hidden = lower.starts_with("gpu-") && self.host.hides_names();
        let is_unread = self.shallow || self.unread().is_some();
        is_unread && (hidden || (mig && name.contains(['-', ':'])))
    }

    /// NVIDIA's hook and the container's own process would wait for the same unresponsive driver.
    fn ready(&self) -> Result<(), Reason> {
        match self.unread() {
            Some(unread @ Unread::Silent { .. }) => Err(NvidiaError::Silent(unread.clone()).into()),
            _ => Ok(()),
        }
    }

    fn check(&self, mode: GpuMode, root: &Path) -> Result<(), Reason> {
        mode::find(mode, root).map(drop)
    }

    fn inject(
        &self,
        request: &GpuRequest,
        mode: GpuMode,
        selection: &Selection<'_>,
        container: &Container<'_>,
        notice: Notice<'_>,
    ) -> Result<Injection, Reason> {
        inject::inject(self, request, mode, selection, container, notice)
    }

    fn named(&self, edits: &Edits) -> (Vec<Node>, Hints) {
        (inject::control(&edits.devices), inject::cdi_hints(&cdi::registry(&self.root)))
    }
}
