//! The table of the vendors, and which of them a GPU request is for.

use std::path::Path;

use super::cdi::{Facts, Registry};
use super::cdi_gpus::{self, CdiGpus};
use super::error::Reason;
use super::inventory::Inventory;
use super::nvidia::Nvidia;
use super::query::{Early, Query};
use super::vendor::{Detail, Gpus, Notice, Vendor};
use crate::request::{CDI_DRIVER, GpuMode, GpuRequest};

/// The vendors that gpurun discovers by their drivers. Without `driver=`, `--gpus` is for the first one whose driver the
/// host has.
pub(super) const VENDORS: [&dyn Vendor; 1] = [&Nvidia];

/// Reads the host's CDI files.
pub(super) fn registry(root: &Path) -> Registry {
    let facts: Vec<&'static Facts> = VENDORS.iter().map(|vendor| vendor.cdi()).collect();
    Registry::read(root, &facts)
}

/// The vendor of a CDI kind.
pub(super) fn of_kind(kind: &str) -> Option<&'static dyn Vendor> {
    VENDORS.into_iter().find(|vendor| vendor.cdi().kind == kind)
}

/// Reads the GPUs of a CDI kind: through their driver if the vendor is in the table, or else from the CDI files.
pub(super) fn gpus_of_kind(
    kind: &str,
    root: &Path,
    detail: Detail,
    early: Option<&Early>,
    notice: Notice<'_>,
) -> Result<Box<dyn Gpus>, Reason> {
    match of_kind(kind) {
        Some(vendor) => vendor.read(root, detail, early, notice),
        None => Ok(Box::new(CdiGpus::read(registry(root), kind)?)),
    }
}

/// Reads the GPUs that a request selects from, and returns them with the injection mode to use.
pub(super) fn gpus_of(
    request: &GpuRequest,
    mode: GpuMode,
    root: &Path,
    detail: Detail,
    early: Option<&Early>,
    notice: Notice<'_>,
) -> Result<(Box<dyn Gpus>, GpuMode), Reason> {
    match request.driver.as_deref() {
        None => Ok((first(root, detail, early, notice)?, mode)),
        Some(CDI_DRIVER) => {
            if mode != GpuMode::Auto && mode != GpuMode::Cdi {
                return Err(Reason::CdiOnly { mode });
            }
            let kind = cdi_gpus::kind_of(request, &registry(root))?;
            Ok((gpus_of_kind(&kind, root, detail, early, notice)?, GpuMode::Cdi))
        }
        Some(driver) => match VENDORS.into_iter().find(|vendor| vendor.name() == driver) {
            Some(vendor) => Ok((vendor.read(root, detail, early, notice)?, mode)),
            None => {
                let known = VENDORS.iter().map(|vendor| format!("`driver={}`", vendor.name()));
                let known = known.chain([format!("`driver={CDI_DRIVER}`")]).collect::<Vec<_>>().join(" or ");
                Err(Reason::UnknownDriver { driver: driver.to_owned(), known })
            }
        },
    }
}

/// Begins to ask the driver that a request selects from.
pub(super) fn begin(request: &GpuRequest, root: &Path) -> Option<Query> {
    let driver = request.driver.as_deref();
    let mut asked = VENDORS.into_iter().filter(|vendor| driver.is_none_or(|driver| driver == vendor.name()));
    asked.find_map(|vendor| vendor.begin(root))
}

/// Reads the GPUs of the first vendor whose driver the host has.
pub(super) fn first(
    root: &Path,
    detail: Detail,
    early: Option<&Early>,
    notice: Notice<'_>,
) -> Result<Box<dyn Gpus>, Reason> {
    let mut missing = None;
    for vendor in VENDORS {
        match vendor.read(root, detail, early, notice) {
            Err(reason @ Reason::NoDriver { .. }) => missing = missing.or(Some(reason)),
            found => return found,
        }
    }
    Err(match missing {
        // The host may have GPUs that only a CDI file describes. The hint says how to select them.
        Some(Reason::NoDriver { vendor, missing, hint }) => {
            let kinds = other_kinds(&registry(root)).join("`, `");
            let hint = if kinds.is_empty() { hint } else { format!("add `,driver=cdi` to use the GPUs of `{kinds}`") };
            Reason::NoDriver { vendor, missing, hint }
        }
        other => other.unwrap_or(Reason::NoGpu),
    })
}

/// The kinds of GPUs that only CDI files describe.
fn other_kinds(registry: &Registry) -> Vec<String> {
    let kinds = registry.gpu_kinds().into_iter().filter(|kind| of_kind(kind).is_none());
    kinds.map(str::to_owned).collect()
}

/// Lists all GPUs of the host for display: those of the first vendor whose driver the host has, and those that only
/// CDI files describe.
pub(super) fn inventory(root: &Path, notice: Notice<'_>) -> Result<Inventory, Reason> {
    let mut found = first(root, Detail::Usage, None, notice).map(|gpus| gpus.inventory().clone());
    for kind in other_kinds(&registry(root)) {
        // An unusable file is a finding of `gpurun doctor`.
        let Ok(gpus) = CdiGpus::read(registry(root), &kind) else { continue };
        match &mut found {
            Ok(inventory) => inventory.units.extend(gpus.inventory().units.iter().cloned()),
            Err(_) => found = Ok(gpus.inventory().clone()),
        }
    }
    found
}
