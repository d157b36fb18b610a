//! GPU support: from a GPU request to the GPU selection, and from there to the edits to the container.
//!
//! ```text
//! request::GpuRequest  ──>  Selection  ──>  Edits
//! --gpus, parsed            the units       what launch changes in the container
//!
//! vendor, vendors     what differs between vendors (a trait), and the table of the vendors
//! inventory           the units that a host has, with their names, nodes and readings
//! select, lease       all GPUs, named ones, or idle ones; the GPUs that containers hold (/run/gpurun/gpus)
//! query               a question to a vendor's library, in a process of its own
//! queue               the commands that wait for idle GPUs
//! edits               the result; cdi and ldcache are formats that injections use
//! opens               device nodes that the container must be able to open, and those that it must not
//! step                the GPUs that a cluster's step has
//! usage, doctor       containers and processes per GPU; problems with the host's setup
//! nvidia/             NVIDIA: discovery, NVML, MIG, the three injection modes, driver requirements
//! cdi_gpus            GPUs of any vendor that only a CDI file describes
//! ```
//!
//! To support another vendor, add a folder with an implementation of `vendor::Vendor` and an entry in
//! `vendors::VENDORS`.
//!
//! This module does not touch a container. [`plan`] reads the host, takes the lease and returns the edits. `launch`
//! applies them, and releases the lease when the container ends ([`lease::release`]). In a container without `--gpus`,
//! the vendor's variable denies GPUs, whatever the image sets: CUDA images set `NVIDIA_VISIBLE_DEVICES=all`, and the
//! host's own hooks would act on it.
//!
//! Functions that read the host take the driver's root directory (`/`, or another directory), so that tests can provide
//! /proc, /dev and the driver as fixtures.

pub(crate) mod cdi;
mod cdi_gpus;
pub(crate) mod doctor;
mod edits;
mod error;
mod inventory;
pub(crate) mod ldcache;
pub(crate) mod lease;
pub(crate) mod nvidia;
pub(crate) mod opens;
mod query;
pub(crate) mod queue;
mod root;
mod select;
mod selection;
pub(crate) mod step;
pub(crate) mod usage;
mod vendor;
mod vendors;

use std::path::Path;

pub(crate) use edits::{Edits, FileMount, Library};
pub(crate) use error::GpuError;
pub(crate) use inventory::{Given, Inventory};
pub(crate) use query::Early;
pub(crate) use select::gib;
pub(crate) use vendor::Container;

use crate::report::Explain;
use crate::request::{CdiName, GpuMode, GpuRequest, Which};
use crate::spec::Rlimit;
use doctor::{Finding, Level};
use edits::THE_USER;
use error::Reason;
use inventory::Unit;
use lease::Ledger;
use opens::Opens;
use selection::Selection;
use vendor::{Detail, Injection, Notice};
use vendors::VENDORS;

/// The annotation that lists the GPUs of a container. Hook definitions can match on it.
pub(crate) const ANNOTATION: &str = "org.gpurun.gpus";

/// The parts of a container's request that concern GPUs.
#[derive(Debug, Clone)]
pub(crate) struct Requested<'a> {
    /// `--gpus`
    pub gpus: Option<&'a GpuRequest>,
    /// `--gpu-mode`
    pub mode: GpuMode,
    /// `--share-gpu`
    pub share: bool,
    /// `--device vendor.com/class=name`
    pub devices: Vec<CdiName>,
}

impl Requested<'_> {
    /// The options of the selection, for messages.
    fn option(&self, request: &GpuRequest) -> String {
        let share = if self.share { " --share-gpu" } else { "" };
        format!("--gpus {request}{share}")
    }
}

/// Checks the request without asking a vendor's library and without taking a lease, so that a command can refuse it
/// before it starts any work.
pub(crate) fn check(requested: &Requested<'_>, root: &Path) -> Result<(), GpuError> {
    if let Some(first) = requested.devices.first() {
        let edits = vendors::registry(root).edits(&requested.devices, (0, 0));
        edits.map_err(|error| GpuError::of(format!("--device {first}"))(error.into()))?;
    }
    let Some(request) = requested.gpus else { return Ok(()) };
    let check = || {
        let (gpus, mode) = vendors::gpus_of(request, requested.mode, root, Detail::Presence, None, &mut |_| {})?;
        let inventory = gpus.inventory();
        if inventory.units.is_empty() {
            return Err(Reason::NoGpu);
        }
        if let Which::Devices(devices) = &request.which
            && let Some(device) = devices.iter().find(|name| gpus.resolve(name).is_empty() && !gpus.is_opaque(name))
        {
            return Err(Reason::NoSuchGpu { device: device.clone(), there: inventory.listing() });
        }
        gpus.check(mode, root)
    };
    check().map_err(GpuError::of(requested.option(request)))
}

/// Begins to ask the driver which GPUs are idle, if the request depends on it. A launch needs the answer later.
pub(crate) fn begin(requested: &Requested<'_>, root: &Path) -> Early {
    let by_number = requested.gpus.filter(|request| matches!(request.which, Which::Count(_) | Which::Free(_)));
    Early::new(by_number.and_then(|request| vendors::begin(request, root)))
}

/// Plans the edits for `--gpus` and `--device`, or for their absence. Takes the lease of the selected GPUs, which the
/// caller must release at the end; with [`Container::dry`], no lease is taken. `notice` receives a line when the driver
/// is slow to answer.
pub(crate) fn plan(
    requested: &Requested<'_>,
    container: &Container<'_>,
    notice: Notice<'_>,
) -> Result<Edits, GpuError> {
    let mut edits = match requested.gpus {
        Some(request) => {
            plan_gpus(requested, request, container, notice).map_err(GpuError::of(requested.option(request)))?
        }
        None => Edits::default(),
    };
    if let Some(first) = requested.devices.first() {
        plan_devices(requested, container, &mut edits, notice).map_err(GpuError::of(format!("--device {first}")))?;
    }
    for vendor in VENDORS {
        let (name, value) = vendor.denial();
        if !edits.env.iter().any(|(other, _)| other == name) {
            edits.env.insert(0, (name.into(), value.into()));
        }
        if requested.gpus.is_none() {
            edits.notices.extend(vendor.misled(container.env));
        }
    }
    Ok(edits)
}

fn plan_gpus(
    requested: &Requested<'_>,
    request: &GpuRequest,
    container: &Container<'_>,
    notice: Notice<'_>,
) -> Result<Edits, Reason> {
    let detail = match request.which {
        Which::All | Which::Devices(_) => Detail::Names,
        Which::Count(_) | Which::Free(_) => Detail::Usage,
    };
    let (gpus, mode) = vendors::gpus_of(request, requested.mode, container.root, detail, container.early, notice)?;
    gpus.ready()?;
    let inventory = gpus.inventory();
    if inventory.units.is_empty() {
        return Err(Reason::NoGpu);
    }
    let ledger = match container.dry {
        true => Ledger::peek(container.leases)?,
        false => Ledger::open(container.leases)?,
    };
    let selection = select::select(request, requested.share, container, &*gpus, &ledger)?;
    if selection.by_count && !ledger.has(&container.taker.id) {
        in_turn(container)?;
    }
    let Injection { mut edits, by, why, control, any_of, hints } =
        gpus.inject(request, mode, &selection, container, notice)?;
    let mut opens = Opens {
        request: format!("--gpus {request}"),
        by: by.to_owned(),
        nodes: control,
        any_of,
        others: Vec::new(),
        hints,
    };
    opens.add_units(&inventory.units, &selection.units);
    without_denied(&mut opens, container);
    if !opens.any_of.is_empty() {
        opens.others.clear();
    }
    edits.opens = Some(opens);
    if !container.dry {
        let names = selection.units.iter().map(|unit| unit.name.clone()).collect();
        ledger.take(&container.taker, names, selection.exclusive)?;
        queue::leave(container.leases, &container.taker.id);
    }
    if container.step.is_some() {
        edits.default_env.extend(visible(&selection));
    }
    finish(&mut edits, by, why, inventory, selection);
    Ok(edits)
}

/// Leaves out the other GPUs that the step's filter denies: the check needs their nodes, which this process cannot create.
fn without_denied(opens: &mut Opens, container: &Container<'_>) {
    if container.step.is_some() {
        opens.others.retain(|node| step::may_open(&root::inside(container.root, Path::new(&node.path))));
    }
}

/// Returns the variable that says to CUDA which of the container's GPUs it uses. Programs for Slurm read it. In the
/// container, the GPUs are numbered from 0, and parts of GPUs have names only.
fn visible(selection: &Selection<'_>) -> Option<(String, String)> {
    let has_parts = selection.units.iter().any(|unit| unit.mig.is_some());
    let names = selection.units.iter().enumerate().map(|(number, unit)| match has_parts {
        true => unit.name.clone(),
        false => number.to_string(),
    });
    let names = names.collect::<Vec<_>>().join(",");
    (!names.is_empty()).then(|| ("CUDA_VISIBLE_DEVICES".into(), names))
}

/// Refuses GPUs for which another command waits.
fn in_turn(container: &Container<'_>) -> Result<(), Reason> {
    match queue::ahead_of(container.leases, &container.taker.id)? {
        None => Ok(()),
        Some((first, waiting)) => {
            Err(Reason::Queued { waiting, first: format!("container `{}` of {}", first.container, first.user) })
        }
    }
}

/// Checks whether the GPUs of a request are idle now, regardless of the queue. Takes no lease.
pub(crate) fn available(
    requested: &Requested<'_>,
    container: &Container<'_>,
    notice: Notice<'_>,
) -> Result<(), GpuError> {
    let Some(request) = requested.gpus else { return Ok(()) };
    let mut check = || {
        let (gpus, _) =
            vendors::gpus_of(request, requested.mode, container.root, Detail::Usage, container.early, notice)?;
        gpus.ready()?;
        if gpus.inventory().units.is_empty() {
            return Err(Reason::NoGpu);
        }
        let ledger = Ledger::peek(container.leases)?;
        select::select(request, requested.share, container, &*gpus, &ledger).map(drop)
    };
    check().map_err(GpuError::of(requested.option(request)))
}

/// Adds the edits that are common to all vendors and injection modes.
fn finish(edits: &mut Edits, by: &str, why: Option<String>, inventory: &Inventory, selection: Selection<'_>) {
    defaults(edits);
    edits.annotations.push((ANNOTATION.into(), selection.names().join(",")));
    let list = selection.listing();
    let driver = inventory.driver.as_ref().map(|version| format!("driver {version}"));
    let details: Vec<String> = driver.into_iter().chain(why).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join("; ")) };
    edits.summary = Some(format!("GPU {list} by {by}{details}"));
    if selection.by_count {
        let how = if selection.exclusive { "exclusive to this container" } else { "shared" };
        edits.notices.push(format!("GPU {list}, {how}"));
    }
    if let (true, Some(unread)) = (selection.exclusive, &inventory.unread) {
        edits.notices.push(format!("only the leases of gpurun's containers show which GPUs are idle: {unread}"));
    }
    let lost = inventory.lost.iter();
    edits.notices.extend(lost.map(|address| format!("the GPU at {address} does not answer and is omitted")));
    edits.notices.extend(selection.shared);
    edits.given = selection.units.iter().map(|unit| unit.given()).collect();
}

/// Defaults for every container with GPUs. They apply only if neither the image nor the caller sets the value.
fn defaults(edits: &mut Edits) {
    // NVIDIA recommends these limits for its framework images.
    let limit = |name: &str, value| Rlimit { name: name.into(), soft: value, hard: value };
    edits.rlimits.extend([limit("RLIMIT_MEMLOCK", u64::MAX), limit("RLIMIT_STACK", 64 << 20)]);
}

/// Adds the edits of CDI devices. Those that are GPUs get a lease and a check, as for `--gpus device=…`, so that no
/// other container takes them as idle.
fn plan_devices(
    requested: &Requested<'_>,
    container: &Container<'_>,
    edits: &mut Edits,
    notice: Notice<'_>,
) -> Result<(), Reason> {
    let registry = vendors::registry(container.root);
    if let Some(step) = container.step {
        for name in &requested.devices {
            let nodes = registry.own_nodes(name, (0, 0))?;
            if !nodes.iter().all(|node| step::may_open(&root::inside(container.root, Path::new(&node.path)))) {
                return Err(Reason::DeviceNotInStep { step: step.to_owned() });
            }
        }
    }
    edits.add(registry.edits(&requested.devices, THE_USER)?);
    let mut kinds: Vec<&str> = requested.devices.iter().map(|name| name.kind.as_str()).collect();
    kinds.retain(|kind| kind.ends_with("/gpu"));
    kinds.sort_unstable();
    kinds.dedup();
    if requested.gpus.is_some() {
        // The container may open the further GPUs too.
        if let (false, Some(opens)) = (kinds.is_empty(), &mut edits.opens) {
            opens.others.clear();
        }
        return Ok(());
    }
    if container.dry {
        return Ok(());
    }
    let mut names = Vec::new();
    let mut opens: Option<Opens> = None;
    let ledger = if kinds.is_empty() { None } else { Some(Ledger::open(container.leases)?) };
    for (kind, ledger) in kinds.iter().zip(ledger.iter().cycle()) {
        // A CDI file may describe devices that no driver here shows (a test stand-in, or another root). There is nothing
        // to lease then.
        let Ok(gpus) = vendors::gpus_of_kind(kind, container.root, Detail::Names, container.early, notice) else {
            continue;
        };
        let devices: Vec<&str> =
            requested.devices.iter().filter(|name| name.kind == *kind).map(|name| name.device.as_str()).collect();
        let found: Vec<Vec<&Unit>> = devices.iter().map(|name| vendor::find(&*gpus, name)).collect();
        let units: Vec<&Unit> = gpus
            .inventory()
            .units
            .iter()
            .filter(|unit| found.iter().flatten().any(|other| other.name == unit.name))
            .collect();
        // A CDI file may name its devices freely. A name that the driver does not know cannot be checked.
        if found.iter().all(|units| !units.is_empty()) {
            let (control, hints) = gpus.named(edits);
            let more = format!("--device {kind}={}", devices.join(","));
            let checked = opens.get_or_insert_default();
            checked.request = if checked.request.is_empty() { more } else { format!("{} {more}", checked.request) };
            (checked.by, checked.hints) = ("CDI".into(), hints);
            checked.nodes.extend(control);
            let others = std::mem::take(&mut checked.others);
            checked.add_units(&gpus.inventory().units, &units);
            checked.others.extend(others);
        }
        edits.notices.extend(units.iter().filter_map(|unit| select::shared_with(&container.taker, unit, ledger)));
        edits.given.extend(units.iter().map(|unit| unit.given()));
        names.extend(units.iter().map(|unit| unit.name.clone()));
    }
    if let Some(opens) = &mut opens {
        without_denied(opens, container);
    }
    edits.opens = opens;
    if let Some(ledger) = ledger.filter(|_| !names.is_empty()) {
        ledger.take(&container.taker, names, false)?;
    }
    Ok(())
}

/// The edits that a host with GPUs would make, for display on a host without one.
#[must_use]
pub(crate) fn example(request: &GpuRequest, error: &GpuError) -> Edits {
    let named = VENDORS.into_iter().find(|vendor| request.driver.as_deref() == Some(vendor.name()));
    let mut edits = named.unwrap_or(VENDORS[0]).example(request);
    defaults(&mut edits);
    edits.notices.push(format!("{error}: a launch on this host would fail"));
    edits
}

/// Reads the host's GPUs and their use, for display. Prints a note when the driver is slow to answer.
pub(crate) fn inventory(root: &Path) -> Result<Inventory, GpuError> {
    let found = vendors::inventory(root, &mut |line| crate::report::say(&format!("note: {line}")));
    found.map_err(|reason| GpuError { request: None, reason })
}

/// Examines the host's GPU setup. Returns the findings, worst first.
#[must_use]
pub(crate) fn examine(root: &Path) -> Vec<Finding> {
    let mut all: Vec<Finding> = VENDORS.into_iter().flat_map(|vendor| vendor.examine(root)).collect();
    let registry = vendors::registry(root);
    all.extend(registry.broken().iter().map(|error| Finding {
        level: Level::Advice,
        what: error.to_string(),
        hint: error.hint(),
    }));
    all.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    all
}

/// Whether an entry of an image's environment requests a right that only the caller may request.
#[must_use]
pub(crate) fn is_privilege(entry: &str) -> bool {
    VENDORS.into_iter().any(|vendor| vendor.is_privilege(entry))
}

/// Whether a variable belongs to an injection, for display.
#[must_use]
pub(crate) fn owns_variable(entry: &str) -> bool {
    VENDORS.into_iter().any(|vendor| vendor.owns_variable(entry))
}

/// Whether a device node belongs to an injection, for display.
#[must_use]
pub(crate) fn owns_node(path: &Path) -> bool {
    cdi_gpus::owns_node(path) || VENDORS.into_iter().any(|vendor| vendor.owns_node(path))
}

#[cfg(test)]
mod tests;
