//! What differs between the GPUs of different vendors: how they are found and named, and how they get into a container.
//! Everything else in this module works for any [`Vendor`].

use std::fmt;
use std::path::Path;

use super::cdi;
use super::doctor::Finding;
use super::edits::Edits;
use super::error::Reason;
use super::inventory::{Inventory, Unit};
use super::lease::Taker;
use super::opens::{Hints, Node};
use super::query::{Early, Query};
use super::selection::Selection;
use crate::request::{GpuMode, GpuRequest};
use crate::units::CpuSet;

/// How much a caller must know about the GPUs. Less detail is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Which GPUs exist, from files alone. Parts of a partitioned GPU may be missing.
    Presence,
    /// The names and device nodes of all units.
    Names,
    /// The use of each unit as well: memory, utilization, processes.
    Usage,
}

/// Receives a line for the caller when the driver is slow to answer.
pub(crate) type Notice<'a> = &'a mut dyn FnMut(String);

/// A container, as far as the selection and injection of its GPUs depend on it.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    /// Root directory that the paths of the driver, its hook and the CDI files are relative to.
    pub root: &'a Path,
    /// Directory of the leases.
    pub leases: &'a Path,
    pub taker: Taker,
    /// The container's CPUs, if they are restricted.
    pub cpus: Option<&'a CpuSet>,
    /// The environment of the image.
    pub image_env: &'a [(String, String)],
    /// The variables that the caller sets. They override the image's.
    pub env: &'a [(String, String)],
    /// The cluster's step that the container is in. Only the step's GPUs are selected.
    pub step: Option<&'a str>,
    /// A query of the driver that was begun.
    pub early: Option<&'a Early>,
    /// Plan only: take no lease, and do not wait for the lock.
    pub dry: bool,
}

impl<'a> Container<'a> {
    /// A container of a question that takes no lease: neither its CPUs nor its environment matter.
    pub(crate) fn question(root: &'a Path, leases: &'a Path, taker: Taker) -> Self {
        Self { root, leases, taker, cpus: None, image_env: &[], env: &[], step: None, early: None, dry: true }
    }

    /// The container's environment before the injection.
    pub(super) fn environment(&self) -> impl DoubleEndedIterator<Item = &(String, String)> {
        self.image_env.iter().chain(self.env)
    }
}

/// The result of an injection that a vendor planned.
pub(super) struct Injection {
    pub edits: Edits,
    /// `NVIDIA's prestart hook`
    pub by: &'static str,
    /// Why `auto` skipped the modes that come first.
    pub why: Option<String>,
    /// Nodes besides those of the units that the container must be able to open.
    pub control: Vec<Node>,
    /// At least one of these must open. Used if a unit is known by a name that only the vendor's own tool can resolve.
    pub any_of: Vec<Node>,
    /// The hints for a container in which a node does not open.
    pub hints: Hints,
}

/// A vendor of GPUs.
pub(super) trait Vendor: Sync {
    /// The value of `driver=` that selects this vendor.
    fn name(&self) -> &'static str;

    /// The vendor's CDI files.
    fn cdi(&self) -> &'static cdi::Facts;

    /// Begins to ask the driver for [`Detail::Usage`], if it is there.
    fn begin(&self, root: &Path) -> Option<Query>;

    /// Reads the GPUs of the host below `root`. An error says that the host does not have the vendor's driver. The
    /// answer of an `early` query is used if there is one.
    fn read(
        &self,
        root: &Path,
        detail: Detail,
        early: Option<&Early>,
        notice: Notice<'_>,
    ) -> Result<Box<dyn Gpus>, Reason>;

    /// Returns a variable for every container without edits that set it, so that nothing else gives it GPUs.
    fn denial(&self) -> (&'static str, &'static str);

    /// Whether an entry of an image's environment requests a right that only the caller may request.
    fn is_privilege(&self, entry: &str) -> bool;

    /// Returns a notice for a caller whose variables request GPUs without `--gpus`.
    fn misled(&self, env: &[(String, String)]) -> Option<String>;

    /// Returns the variables and the listing that a host with GPUs would show for this request.
    fn example(&self, request: &GpuRequest) -> Edits;

    /// Whether a variable or a device node belongs to the vendor's injection, for display.
    fn owns_variable(&self, entry: &str) -> bool;
    fn owns_node(&self, path: &Path) -> bool;

    /// Examines the host's setup.
    fn examine(&self, root: &Path) -> Vec<Finding>;
}

/// The GPUs of one vendor on this host.
pub(super) trait Gpus: fmt::Debug {
    fn inventory(&self) -> &Inventory;

    /// Resolves the caller's name of a GPU to positions in [`Inventory::units`]. The result is empty if there is no such
    /// GPU. The name of a partitioned GPU resolves to all of its parts.
    fn resolve(&self, name: &str) -> Vec<usize>;

    /// Whether a name has a valid form, and the host does not reveal the names to check it against. Only the vendor's
    /// own tool can resolve it then.
    fn is_opaque(&self, _name: &str) -> bool {
        false
    }

    /// Checks that the driver can serve a container now.
    fn ready(&self) -> Result<(), Reason> {
        Ok(())
    }

    /// Checks that an injection mode is available.
    fn check(&self, mode: GpuMode, root: &Path) -> Result<(), Reason>;

    /// Plans the injection of the selected units.
    fn inject(
        &self,
        request: &GpuRequest,
        mode: GpuMode,
        selection: &Selection<'_>,
        container: &Container<'_>,
        notice: Notice<'_>,
    ) -> Result<Injection, Reason>;

    /// Returns the hints for units that were injected by their CDI names, and the control nodes among the edits.
    fn named(&self, edits: &Edits) -> (Vec<Node>, Hints);
}

/// The positions of all units that a name stands for, with `all` for every unit.
pub(super) fn find<'a>(gpus: &'a dyn Gpus, name: &str) -> Vec<&'a Unit> {
    let units = &gpus.inventory().units;
    match name {
        "all" => units.iter().collect(),
        name => gpus.resolve(name).into_iter().map(|at| &units[at]).collect(),
    }
}
