//! GPUs that only a CDI file describes (`--gpus …,driver=cdi`): those of any vendor that gpurun has no discovery for.
//!
//! Each device of a kind `vendor.com/gpu` is a GPU. Several names with the same edits are names of one GPU. A device
//! `all` is only a GPU if it is alone. The device nodes that a device has for itself (`/dev/dri/renderD128`) are checked as those of the
//! selected and the other GPUs. Nodes that several devices share (`/dev/kfd`) belong to none of them, and must open.
//! What CDI does not reveal stays unknown: memory, utilization and processes. An idle GPU is one without a lease.

use std::path::Path;

use super::cdi::Registry;
use super::edits::{Edits, THE_USER};
use super::error::Reason;
use super::inventory::{Inventory, Unit};
use super::opens::{Hints, Node};
use super::selection::Selection;
use super::vendor::{Container, Gpus, Injection, Notice};
use crate::request::{CdiName, GpuMode, GpuRequest, Which};
use crate::spec::Device;

/// The GPUs of one kind.
#[derive(Debug)]
pub(super) struct CdiGpus {
    registry: Registry,
    kind: String,
    inventory: Inventory,
    /// For each unit, all CDI names of its device.
    names: Vec<Vec<String>>,
}

impl CdiGpus {
    /// Lists the devices of a kind as GPUs.
    pub(super) fn read(registry: Registry, kind: &str) -> Result<Self, Reason> {
        let name = |device: &str| CdiName { kind: kind.to_owned(), device: device.to_owned() };
        let mut found: Vec<(Vec<String>, Edits, Vec<Device>)> = Vec::new();
        let mut devices = registry.devices(kind);
        if devices.len() > 1 {
            devices.retain(|device| *device != "all");
        }
        for device in devices {
            let edits = registry.edits(&[name(device)], (0, 0))?;
            match found.iter_mut().find(|(_, other, _)| *other == edits) {
                Some((names, ..)) => names.push(device.to_owned()),
                None => {
                    let nodes = registry.own_nodes(&name(device), (0, 0))?;
                    found.push((vec![device.to_owned()], edits, nodes));
                }
            }
        }
        // A short name such as `0` comes before a UUID.
        found.iter_mut().for_each(|(names, ..)| names.sort_by_key(|name| (name.len(), name.clone())));
        found.sort_by_key(|(names, ..)| (names[0].len(), names[0].clone()));
        let shared: Vec<Device> = found.iter().flat_map(|(.., nodes)| nodes.clone()).collect();
        let is_shared = |node: &Device| shared.iter().filter(|other| same(other, node)).count() > 1;
        let units = found.iter().enumerate().map(|(gpu, (names, _, nodes))| Unit {
            index: names[0].clone(),
            name: name(&names[0]).to_string(),
            model: kind.to_owned(),
            gpu,
            mig: None,
            memory: None,
            utilization: None,
            processes: Vec::new(),
            numa_node: None,
            nodes: nodes.iter().filter(|node| node.kind == 'c' && !is_shared(node)).cloned().collect(),
            awake: false,
        });
        let unread = Some("a CDI file does not reveal the use of GPUs".to_owned());
        let inventory = Inventory { driver: None, cuda: None, units: units.collect(), lost: Vec::new(), unread };
        let names = found.into_iter().map(|(names, ..)| names).collect();
        Ok(Self { registry, kind: kind.to_owned(), inventory, names })
    }
}

fn same(one: &Device, other: &Device) -> bool {
    (one.kind, one.major, one.minor) == (other.kind, other.major, other.minor)
}

impl Gpus for CdiGpus {
    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// A name is that of the device, with or without its kind.
    fn resolve(&self, name: &str) -> Vec<usize> {
        let name = name.strip_prefix(&self.kind).and_then(|rest| rest.strip_prefix('=')).unwrap_or(name);
        (0..self.names.len()).filter(|at| self.names[*at].iter().any(|other| other == name)).collect()
    }

    fn check(&self, _mode: GpuMode, _root: &Path) -> Result<(), Reason> {
        Ok(())
    }

    fn inject(
        &self,
        _request: &GpuRequest,
        _mode: GpuMode,
        selection: &Selection<'_>,
        _container: &Container<'_>,
        _notice: Notice<'_>,
    ) -> Result<Injection, Reason> {
        let names = selection.units.iter().map(|unit| CdiName { kind: self.kind.clone(), device: unit.index.clone() });
        let edits = self.registry.edits(&names.collect::<Vec<_>>(), THE_USER)?;
        let (control, hints) = self.named(&edits);
        Ok(Injection { edits, by: "CDI", why: None, control, any_of: Vec::new(), hints })
    }

    fn named(&self, edits: &Edits) -> (Vec<Node>, Hints) {
        let is_own =
            |device: &Device| self.inventory.units.iter().any(|unit| unit.nodes.iter().any(|node| same(node, device)));
        let shared = edits.devices.iter().filter(|device| device.kind == 'c' && !is_own(device));
        let control = shared.map(|device| Node::of(device, format!("the device of `{}`", self.kind), false)).collect();
        let hints = Hints {
            injection: format!("write the CDI file of `{}` again with the tool of its vendor", self.kind),
            driver: "run `dmesg` on the host to see the messages of the GPU's driver".into(),
            node_mode: "change the mode of the host's node".into(),
        };
        (control, hints)
    }
}

/// Whether a node is one that the kernel's own GPU drivers create, for display.
pub(super) fn owns_node(path: &Path) -> bool {
    ["/dev/dri", "/dev/kfd", "/dev/accel"].iter().any(|start| path.starts_with(start))
}

/// The kind of the GPUs that a request with `driver=cdi` is for: that of the qualified names in it, or the only one on
/// this host.
pub(super) fn kind_of(request: &GpuRequest, registry: &Registry) -> Result<String, Reason> {
    let mut named: Vec<CdiName> = Vec::new();
    if let Which::Devices(devices) = &request.which {
        named.extend(devices.iter().filter_map(|device| device.parse().ok()));
    }
    let mut kinds: Vec<&str> = named.iter().map(|name| name.kind.as_str()).collect();
    if kinds.is_empty() {
        kinds = registry.gpu_kinds();
    }
    kinds.sort_unstable();
    kinds.dedup();
    match kinds[..] {
        [] => Err(Reason::NoCdiGpu { source: registry.broken().first().cloned() }),
        [kind] if registry.devices(kind).is_empty() => {
            Err(registry.edits(&named, (0, 0)).err().map_or(Reason::NoGpu, Reason::from))
        }
        [kind] => Ok(kind.to_owned()),
        [first, ..] => {
            let device = registry.devices(first).first().map_or_else(|| "0".to_owned(), |device| (*device).to_owned());
            Err(Reason::SeveralVendors { kinds: kinds.join(", "), example: format!("{first}={device}") })
        }
    }
}
