//! NVIDIA's CDI files: facts about them, and the devices in them that the selected units are.

use std::path::Path;

use super::error::NvidiaError;
use super::host::Host;
use crate::gpu::cdi::{Facts, Registry};
use crate::gpu::inventory::Inventory;
use crate::gpu::selection::Selection;
use crate::request::CdiName;

/// The kind of NVIDIA's GPUs.
pub(super) const KIND: &str = "nvidia.com/gpu";

pub(super) static FACTS: Facts = Facts {
    kind: KIND,
    file_name: "nvidia",
    // The file of the service `nvidia-cdi-refresh`. It takes precedence over any file in /etc/cdi.
    service_file: "/var/run/cdi/nvidia.yaml",
    generate,
    loaded_driver: |root| Host::version(root).ok(),
    driver_of,
};

/// Reads the host's CDI files.
pub(super) fn registry(root: &Path) -> Registry {
    Registry::read(root, &[&FACTS])
}

fn generate(file: &Path) -> String {
    let format = if file.extension().is_some_and(|extension| extension == "json") { " --format=json" } else { "" };
    format!("`sudo nvidia-ctk cdi generate{format} --output={}`", file.display())
}

/// `…/libcuda.so.550.54.15` → `550.54.15`. A number such as that of `libnvidia-egl-gbm.so.1.1.1` is the library's own
/// version.
fn driver_of(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let (stem, version) = name.split_once(".so.")?;
    let of_driver = stem.starts_with("libnvidia-") || stem.starts_with("libcuda") || stem.ends_with("_nvidia");
    let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    (of_driver && numbers.is_some_and(|numbers| numbers.len() >= 2 && numbers[0] >= 100)).then_some(version)
}

/// Returns the CDI names of the selected units. Each unit is looked up by the names that `nvidia-ctk` may give its
/// device: the UUID, the index, or the index with a `gpu` or `mig` prefix. A file that only defines `all`, such as one
/// that was written without `nvidia-ctk`, works if all units are selected.
pub(super) fn names(
    registry: &Registry,
    inventory: &Inventory,
    selection: &Selection<'_>,
) -> Result<Vec<CdiName>, NvidiaError> {
    let known = registry.devices(KIND);
    let all = if selection.units.len() == inventory.units.len() { "all" } else { "" };
    let name_of = |candidates: &[&str], wanted: &str| {
        let found = candidates.iter().find(|name| known.contains(name));
        found.map(|name| CdiName { kind: KIND.into(), device: (*name).to_owned() }).ok_or_else(|| {
            NvidiaError::NotInCdi { device: wanted.to_owned(), generate: registry.generate(KIND).unwrap_or_default() }
        })
    };
    let mut names = Vec::new();
    for unit in &selection.units {
        let prefixed = format!("{}{}", if unit.mig.is_some() { "mig" } else { "gpu" }, unit.index);
        names.push(name_of(&[&unit.name, &unit.index, &prefixed, all], &unit.name)?);
    }
    for device in &selection.opaque {
        names.push(name_of(&[device], device)?);
    }
    names.dedup();
    Ok(names)
}
