//! GPUs: what the host has, which of them a container gets, and what has to change in it for them.
//!
//! ```text
//! selection   docker's grammar                    host, nvml, inventory   /proc, NVML, and both as what can be given
//! choose      all, these, or idle ones            lease                   who has which (/run/gpurun/gpus)
//! require     what the image needs of the driver
//! toolkit | cdi | native (driver, ldcache)        the three ways in, each ending in [`Edits`]
//! usage       who uses which GPU                  doctor                  what is wrong with the host
//! ```
//!
//! Nothing here touches a container: [`plan`] reads the host, takes the lease, and answers what is to change; `launch` changes it, and gives the
//! lease back ([`lease::release`]). A container without `--gpus` gets `NVIDIA_VISIBLE_DEVICES=void`, whatever its image says: CUDA images
//! set `all`, and a host's own hooks would listen to it.
//!
//! Readers take the root directory below which the driver is (`/`, or a tree of its own), so that /proc, /dev and the driver can be fixtures.

pub mod cdi;
mod choose;
pub mod doctor;
pub mod driver;
mod error;
mod host;
mod inventory;
pub mod ldcache;
pub mod lease;
pub mod native;
pub mod nvml;
pub mod params;
mod require;
mod selection;
mod toolkit;
pub mod usage;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use choose::{Busy, gib, numa_nodes};
pub use error::GpuError;
pub use host::{Gpu, Host};
pub use inventory::{Inventory, Unit};
pub use require::Unmet;
pub use selection::{Selection, SelectionError, Which};
pub use toolkit::Missing;

use crate::hook::{self, Chosen};
use crate::spec::{Device, Rlimit, Stage};
use crate::units::CpuSet;
use choose::{Choice, Wish};
use lease::{Ledger, Taker};

/// The annotation that says which GPUs a container was given: hook definitions may ask for it.
pub const ANNOTATION: &str = "org.gpurun.gpus";

/// How a container comes by its GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The first that works here: NVIDIA's hook, CDI, native.
    #[default]
    Auto,
    Hook,
    Cdi,
    Native,
}

impl std::str::FromStr for Mode {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        Ok(match text {
            "auto" => Self::Auto,
            "hook" => Self::Hook,
            "cdi" => Self::Cdi,
            "native" => Self::Native,
            other => return Err(GpuError::Mode(other.to_owned())),
        })
    }
}

/// What a person asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub selection: Option<&'a Selection>,
    /// `--device vendor.com/class=name`
    pub devices: &'a [cdi::Name],
    pub mode: Mode,
    /// `--share-gpu`
    pub share: bool,
}

/// Where it is asked.
#[derive(Debug)]
pub struct Place<'a> {
    /// Below which the driver, its hook and CDI files are.
    pub root: &'a Path,
    /// The leases' directory.
    pub leases: &'a Path,
    pub taker: Taker,
    /// The container's CPUs, where they are restricted.
    pub cpus: Option<&'a CpuSet>,
    /// The container's environment as the image and the person have it.
    pub env: &'a [(String, String)],
    /// Numbers of the container's user and group.
    pub user: (u32, u32),
    /// Only to show what would be: no lease is taken, none is waited for.
    pub dry: bool,
}

/// A file or directory of the host, or a file system, in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMount {
    pub source: PathBuf,
    /// In the container, its links not yet resolved.
    pub destination: PathBuf,
    pub kind: String,
    pub options: Vec<String>,
}

/// A unit that a container has, for showing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub index: String,
    /// Its UUID.
    pub name: String,
    pub model: String,
}

/// What a container is given for its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edits {
    /// These win over the image's and the person's own.
    pub env: Vec<(String, String)>,
    /// Set only where neither the image nor the person did.
    pub default_env: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    /// In the order in which they run.
    pub hooks: Vec<Chosen>,
    pub devices: Vec<Device>,
    pub mounts: Vec<FileMount>,
    /// The driver's, to be put where the container's linker finds them.
    pub libraries: Vec<driver::Library>,
    /// Paths that are covered in the container, where they exist.
    pub masked: Vec<String>,
    pub gids: Vec<u32>,
    /// Defaults (an explicit `--ulimit` of the same name wins, and a hard limit of the host's lowers them).
    pub rlimits: Vec<Rlimit>,
    pub given: Vec<Given>,
    /// For a person: what was chosen and how.
    pub summary: Option<String>,
    /// For a person: what he may not expect.
    pub notices: Vec<String>,
}

/// How it is done here.
#[derive(Debug)]
enum Way {
    Hook(hook::Command),
    Cdi(cdi::Registry),
    Native,
}

/// What can be refused without asking NVML and without taking anything: for a command, before it begins.
pub fn check(ask: &Ask<'_>, root: &Path) -> Result<(), GpuError> {
    if !ask.devices.is_empty() {
        cdi::Registry::read(root).edits(ask.devices, None, (0, 0))?;
    }
    let Some(selection) = ask.selection else { return Ok(()) };
    let asked = checked_driver(selection)?;
    let inventory =
        Inventory::read_shallow(root).map_err(|missing| GpuError::NoDriver { asked: Some(asked.clone()), missing })?;
    if inventory.units.is_empty() {
        return Err(GpuError::NoGpu { asked });
    }
    if let Which::Devices(devices) = &selection.which
        && let Some(device) = devices.iter().find(|device| !inventory.may_have(device))
    {
        return Err(GpuError::NoSuchGpu { asked, device: device.clone(), there: inventory.listing() });
    }
    way(ask.mode, root, &asked, &inventory.host).map(drop)
}

/// What a container gets for `--gpus` and `--device` (or for their absence). Takes the lease of what it chose (give it back in
/// the end), unless it is only asked what would be ([`Place::dry`]).
pub fn plan(ask: &Ask<'_>, place: &Place<'_>) -> Result<Edits, GpuError> {
    let mut edits = Edits::default();
    let mut driver = None;
    if let Some(selection) = ask.selection {
        let asked = checked_driver(selection)?;
        let inventory = Inventory::read(place.root)
            .map_err(|missing| GpuError::NoDriver { asked: Some(asked.clone()), missing })?;
        if inventory.units.is_empty() {
            return Err(GpuError::NoGpu { asked });
        }
        driver = Some(inventory.host.driver.clone());
        edits = plan_gpus(ask, selection, place, &asked, &inventory)?;
    }
    if !ask.devices.is_empty() {
        let driver = driver.or_else(|| Host::read(place.root).ok().map(|host| host.driver));
        let more = cdi::Registry::read(place.root).edits(ask.devices, driver.as_deref(), place.user)?;
        edits.add(more);
        if ask.selection.is_none() {
            lease_by_name(ask.devices, place, &mut edits)?;
        }
    }
    if !edits.env.iter().any(|(name, _)| name == VISIBLE) {
        edits.env.insert(0, visible("void"));
    }
    Ok(edits)
}

fn plan_gpus(
    ask: &Ask<'_>,
    selection: &Selection,
    place: &Place<'_>,
    asked: &str,
    inventory: &Inventory,
) -> Result<Edits, GpuError> {
    let (way, why) = way(ask.mode, place.root, asked, &inventory.host)?;
    let ledger = if place.dry { Ledger::peek(place.leases)? } else { Ledger::open(place.leases)? };
    let nodes = numa_nodes(place.root, place.cpus);
    let wish = Wish { asked, selection, share: ask.share, taker: &place.taker, nodes: &nodes };
    let choice = choose::choose(&wish, inventory, &ledger)?;
    require::check(place.env, &facts(inventory, &choice))
        .map_err(|unmet| GpuError::Unmet { asked: asked.to_owned(), source: unmet })?;
    let mut edits = match &way {
        Way::Hook(command) => by_hook(command, selection, &choice),
        Way::Cdi(registry) => by_cdi(registry, asked, place, inventory, &choice)?,
        Way::Native => {
            if let Some(device) = choice.unknown.first() {
                let unread = inventory.readings.clone().err();
                return Err(GpuError::NeedsNvml { asked: asked.to_owned(), device: device.clone(), source: unread });
            }
            let env = place.env.iter().rev().find(|(name, _)| name == CAPABILITIES_VARIABLE);
            let capabilities = native::capabilities(&selection.capabilities, env.map(|(_, value)| value.as_str()));
            let mut edits = native::edits(asked, place.root, inventory, &choice.units, &capabilities)?;
            edits.env.push(visible(&choice.names().join(",")));
            edits
        }
    };
    if !selection.options.is_empty() {
        edits
            .notices
            .push(format!("`--gpus {asked}`: NVIDIA's driver has no use for `options=`, they are passed over"));
    }
    if !place.dry {
        ledger.take(&place.taker, choice.units.iter().map(|unit| unit.name.clone()).collect(), choice.exclusive)?;
    }
    finish(&mut edits, &way, why, inventory, choice);
    Ok(edits)
}

/// NVIDIA's GPUs that were asked for as `--device nvidia.com/gpu=…`: written down as those of `--gpus device=…` are, so that nobody takes them
/// for free.
fn lease_by_name(names: &[cdi::Name], place: &Place<'_>, edits: &mut Edits) -> Result<(), GpuError> {
    let names: Vec<&str> =
        names.iter().filter(|name| name.kind == cdi::NVIDIA).map(|name| name.device.as_str()).collect();
    if names.is_empty() || place.dry {
        return Ok(());
    }
    // A CDI file may describe what no driver here shows (a stand-in, another root): there is nothing to write down then.
    let Ok(inventory) = Inventory::read(place.root) else { return Ok(()) };
    let ledger = Ledger::open(place.leases)?;
    let is_asked = |at: usize| names.iter().any(|name| *name == "all" || inventory.resolve(name).contains(&at));
    let units: Vec<&Unit> =
        (0..inventory.units.len()).filter(|at| is_asked(*at)).map(|at| &inventory.units[at]).collect();
    let shared = units.iter().filter_map(|unit| choose::shared_with(&place.taker, unit, &ledger));
    edits.notices.extend(shared);
    edits.given = units.iter().map(|unit| given(unit)).collect();
    ledger.take(&place.taker, units.iter().map(|unit| unit.name.clone()).collect(), false)?;
    Ok(())
}

fn given(unit: &Unit) -> Given {
    Given { index: unit.index.clone(), name: unit.name.clone(), model: unit.model.clone() }
}

/// What is the same whichever way they come.
fn finish(edits: &mut Edits, way: &Way, why: Option<String>, inventory: &Inventory, choice: Choice<'_>) {
    // CUDA counts "fastest first" by itself, nvidia-smi by bus: the same number should mean the same GPU.
    edits.default_env.push(("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()));
    edits.annotations.push((ANNOTATION.into(), choice.names().join(",")));
    // What NVIDIA advises for its framework images.
    let limit = |name: &str, value| Rlimit { name: name.into(), soft: value, hard: value };
    edits.rlimits.extend([limit("RLIMIT_MEMLOCK", u64::MAX), limit("RLIMIT_STACK", 64 << 20)]);
    let by = match way {
        Way::Hook(_) => "NVIDIA's prestart hook",
        Way::Cdi(_) => "CDI",
        Way::Native => "native injection",
    };
    let list: Vec<String> = choice.units.iter().map(|unit| format!("{} {}", unit.index, unit.model)).collect();
    let list = if list.is_empty() { choice.unknown.join(", ") } else { list.join(", ") };
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    edits.summary = Some(format!("GPU {list} by {by} (driver {}{why})", inventory.host.driver));
    if choice.by_number {
        let alone = if choice.exclusive { "for this container alone" } else { "shared" };
        edits.notices.push(format!("GPU {list}, {alone}"));
    }
    if let (true, Err(unread)) = (choice.exclusive, &inventory.readings) {
        edits.notices.push(format!("which GPUs are idle is judged by gpurun's own containers alone: {unread}"));
    }
    edits.notices.extend(inventory.lost.iter().map(|bus| format!("the GPU at {bus} does not answer and is left out")));
    edits.notices.extend(choice.shared);
    edits.given = choice.units.iter().map(|unit| given(unit)).collect();
}

impl Choice<'_> {
    fn names(&self) -> Vec<String> {
        self.units.iter().map(|unit| unit.name.clone()).chain(self.unknown.iter().cloned()).collect()
    }
}

fn checked_driver(selection: &Selection) -> Result<String, GpuError> {
    let asked = selection.to_string();
    match selection.driver.as_deref().filter(|driver| *driver != "nvidia") {
        Some(driver) => Err(GpuError::Driver { asked, driver: driver.to_owned() }),
        None => Ok(asked),
    }
}

/// The way that was asked for, or the first that works here, and why not the ones before it.
fn way(mode: Mode, root: &Path, asked: &str, host: &Host) -> Result<(Way, Option<String>), GpuError> {
    let hook = || toolkit::command(root);
    let cdi = || -> Result<cdi::Registry, cdi::CdiError> {
        let registry = cdi::Registry::read(root);
        registry.check(cdi::NVIDIA, Some(&host.driver))?;
        Ok(registry)
    };
    match mode {
        Mode::Hook => match hook() {
            Ok(command) => Ok((Way::Hook(command), None)),
            Err(source) => Err(GpuError::NoHook { asked: asked.to_owned(), source }),
        },
        Mode::Cdi => {
            let registry = cdi()?;
            match registry.devices(cdi::NVIDIA).is_empty() {
                false => Ok((Way::Cdi(registry), None)),
                true => {
                    let source = registry.broken().first().cloned();
                    Err(GpuError::NoCdi { asked: asked.to_owned(), source })
                }
            }
        }
        Mode::Native => Ok((Way::Native, None)),
        Mode::Auto => match (hook(), cdi()) {
            (Ok(command), _) => Ok((Way::Hook(command), None)),
            (_, Ok(registry)) if !registry.devices(cdi::NVIDIA).is_empty() => Ok((Way::Cdi(registry), None)),
            (_, Err(stale)) => Ok((Way::Native, Some(stale.to_string()))),
            (Err(missing), _) => Ok((Way::Native, Some(missing.to_string()))),
        },
    }
}

fn by_hook(command: &hook::Command, selection: &Selection, choice: &Choice<'_>) -> Edits {
    let mut env = vec![visible(&choice.names().join(","))];
    if !selection.capabilities.is_empty() {
        env.push((CAPABILITIES_VARIABLE.into(), selection.capabilities.join(",")));
    }
    let hook = Chosen { name: toolkit::BUILTIN_HOOK.into(), stage: Stage::Prestart, command: command.clone() };
    Edits { env, hooks: vec![hook], ..Edits::default() }
}

/// The units by the names that the file has for them: UUIDs, or else numbers, in each of the ways in which `nvidia-ctk` names devices. A file that
/// knows no single ones (`--device-name-strategy` aside, one may be written by hand) serves whoever gets all of them.
fn by_cdi(
    registry: &cdi::Registry,
    asked: &str,
    place: &Place<'_>,
    inventory: &Inventory,
    choice: &Choice<'_>,
) -> Result<Edits, GpuError> {
    let known = registry.devices(cdi::NVIDIA);
    let named =
        |candidates: &[&str]| candidates.iter().find(|name| known.contains(name)).map(|name| (*name).to_owned());
    let mut names = Vec::new();
    for unit in &choice.units {
        let typed = format!("{}{}", if unit.mig.is_some() { "mig" } else { "gpu" }, unit.index);
        let all = if choice.units.len() == inventory.units.len() { "all" } else { "" };
        let found = named(&[&unit.name, &unit.index, &typed, all]);
        let device = found.ok_or_else(|| GpuError::NotInCdi { asked: asked.to_owned(), device: unit.name.clone() })?;
        names.push(cdi::Name { kind: cdi::NVIDIA.into(), device });
    }
    for device in &choice.unknown {
        let found = named(&[device]);
        let device = found.ok_or_else(|| GpuError::NotInCdi { asked: asked.to_owned(), device: device.clone() })?;
        names.push(cdi::Name { kind: cdi::NVIDIA.into(), device });
    }
    names.dedup();
    let edits = registry.edits(&names, Some(&inventory.host.driver), place.user)?;
    // What /proc tells of other people's GPUs, no file speaks of.
    Ok(Edits { masked: native::masked(&inventory.host, &choice.units), ..edits })
}

fn facts(inventory: &Inventory, choice: &Choice<'_>) -> Vec<require::Facts> {
    let readings = inventory.readings.as_ref().ok();
    let cuda = readings.and_then(|readings| readings.cuda);
    let one = |unit: &&Unit| {
        let gpu = &inventory.host.gpus[unit.gpu];
        let reading = readings.and_then(|readings| readings.gpus.iter().find(|reading| gpu.is_at(&reading.bus)));
        require::Facts {
            driver: inventory.host.driver.clone(),
            cuda,
            arch: reading.and_then(|reading| reading.compute_capability),
            brand: reading.and_then(|reading| reading.brand.clone()),
        }
    };
    choice.units.iter().map(one).collect()
}

const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";
const CAPABILITIES_VARIABLE: &str = "NVIDIA_DRIVER_CAPABILITIES";

/// What NVIDIA's hook takes as a wish for rights that reach beyond a container's own GPUs: the memory of other nodes' GPUs, and cutting up or
/// watching this host's.
const RIGHTS: [&str; 3] = ["NVIDIA_IMEX_CHANNELS", "NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"];

/// Whether an entry of an image's environment asks for such a right: a person may, an image may not.
#[must_use]
pub fn asks_for_rights(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, _)| RIGHTS.contains(&name))
}

fn visible(value: &str) -> (String, String) {
    (VISIBLE.into(), value.into())
}

impl Edits {
    /// All hooks of the container, in the order in which they run: those that matched, and ours as [`plan`] has them. Other definitions of
    /// NVIDIA's hook (the built-in one, or a host's that stands for every container) would run it a second time.
    #[must_use]
    pub fn combine(&self, matched: Vec<Chosen>) -> Vec<Chosen> {
        let mut all = self.hooks.clone();
        all.extend(matched.into_iter().filter(|hook| !is_nvidia(&hook.command)));
        all.sort_by_key(|hook| hook.stage);
        all
    }

    /// Takes up further edits; theirs win.
    fn add(&mut self, more: Self) {
        self.env.retain(|(name, _)| !more.env.iter().any(|(other, _)| other == name));
        self.env.extend(more.env);
        self.hooks.extend(more.hooks);
        self.devices.retain(|device| !more.devices.iter().any(|other| other.path == device.path));
        self.devices.extend(more.devices);
        self.mounts.retain(|mount| !more.mounts.iter().any(|other| other.destination == mount.destination));
        self.mounts.extend(more.mounts);
        self.gids.extend(more.gids);
    }
}

fn is_nvidia(command: &hook::Command) -> bool {
    command.path.file_name().is_some_and(|name| toolkit::HOOK_NAMES.iter().any(|known| name == *known))
}

#[cfg(test)]
mod tests;
