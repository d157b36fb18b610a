//! The device nodes that a container with GPUs must be able to open, and those that it must not. This is gpurun's own
//! check of every injection.
//!
//! A toolkit that injects nothing, or that injects nodes which the device filter denies, may still report success.
//! gpurun therefore checks the nodes itself, in the container's first process, after all hooks and before its program:
//! as the container's user, in its root and its cgroup (`runtime::DeviceCheck`). This module lists the nodes to check,
//! and turns a finding into a message.
//!
//! access(2) is enough to know whether the device filter and the node's permissions allow an open, because the kernel
//! consults both for it. It does not wake a GPU, which takes seconds without persistence mode. A node whose driver
//! answers at once is opened as well.

use std::path::Path;

use super::inventory::Unit;
use crate::spec::Device;

/// The device nodes to check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Opens {
    /// `--gpus all`
    pub request: String,
    /// `NVIDIA's prestart hook`
    pub by: String,
    pub nodes: Vec<Node>,
    /// At least one of these must open. Used if the GPU is known by a name that only the vendor's tool can resolve.
    pub any_of: Vec<Node>,
    /// GPUs and MIG devices of the host that were not selected.
    pub others: Vec<Node>,
    pub hints: Hints,
}

/// The vendor's hints for a failed check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hints {
    /// The injection did not do what it should.
    pub injection: String,
    /// The driver refuses to open a node.
    pub driver: String,
    /// How to change the mode of the host's nodes, after "or ".
    pub node_mode: String,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `GPU 0`
    pub what: String,
    pub path: String,
    /// `None`: any number that the tool assigned.
    pub number: Option<(u32, u32)>,
    /// Whether the driver answers an open(2) at once.
    pub awake: bool,
    /// Whether it is opened read-only, as a MIG capability is: NVIDIA creates these nodes with mode 0444.
    pub read_only: bool,
}

impl Node {
    /// The node of a device. It is opened read-only if its mode or its rule allows no writing.
    pub(super) fn of(device: &Device, what: impl Into<String>, awake: bool) -> Self {
        let read_only = device.mode & 0o222 == 0 || !device.access.contains('w');
        Self {
            what: what.into(),
            path: device.path.clone(),
            number: Some((device.major, device.minor)),
            awake,
            read_only,
        }
    }
}

impl Opens {
    /// Adds the nodes of the units: those of the selected units to [`Self::nodes`], and those of all others, except the
    /// shared ones, to [`Self::others`].
    pub(super) fn add_units(&mut self, units: &[Unit], selected: &[&Unit]) {
        let nodes_of = |wanted: bool| -> Vec<Node> {
            let is_selected = |unit: &Unit| selected.iter().any(|other| other.name == unit.name);
            let units = units.iter().filter(|unit| is_selected(unit) == wanted);
            let mut nodes: Vec<Node> = units
                .flat_map(|unit| unit.nodes.iter().map(|device| Node::of(device, unit.noun(), unit.awake)))
                .collect();
            nodes.sort_by(|one, other| one.path.cmp(&other.path));
            nodes.dedup_by(|one, other| one.path == other.path);
            nodes
        };
        let (nodes, mut others) = (nodes_of(true), nodes_of(false));
        self.nodes.extend(nodes);
        others.retain(|other| !self.nodes.iter().any(|node| node.number == other.number));
        self.others = others;
    }

    /// Accounts for nodes that the caller requested in another way (`--device /dev/nvidia1`). The container may open
    /// them too.
    pub(crate) fn except(&mut self, devices: &[Device]) {
        self.others.retain(|other| !devices.iter().any(|device| other.number == Some((device.major, device.minor))));
    }
}

/// A finding of the check in the container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding<'a> {
    /// There is no such node, or it is not a device.
    Missing { path: &'a str },
    /// It is the node of another device.
    Other { path: &'a str, number: (u32, u32) },
    /// The device filter denies it.
    Denied { path: &'a str },
    /// The node's permissions deny it.
    Permissions { path: &'a str, mode: u32, owner: (u32, u32) },
    /// It is on a mount with the option `nodev`.
    NoDevices { path: &'a str },
    /// The driver refuses the open.
    Driver { path: &'a str, errno: i32 },
    /// One of [`Opens::others`] can be opened.
    Reachable { path: &'a str },
}

/// The container's user, for a message about permissions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User<'a> {
    pub uid: u32,
    /// The name of the node's group in the container, if it has one.
    pub group: Option<&'a str>,
}

/// Returns the message and the hint for a finding.
#[must_use]
pub(crate) fn explain(opens: &Opens, finding: &Finding<'_>, user: User<'_>) -> (String, String) {
    let of = |path: &str| {
        let nodes = opens.nodes.iter().chain(&opens.others);
        nodes.filter(|node| node.path == path).map(|node| node.what.clone()).next().unwrap_or_else(|| "a GPU".into())
    };
    let Opens { by, hints, .. } = opens;
    let (reason, hint) = match *finding {
        Finding::Missing { path } => {
            (format!("{} is not in the container: {by} did not create `{path}`", of(path)), hints.injection.clone())
        }
        Finding::Other { path, number: (major, minor) } => (
            format!("`{path}` in the container is not {}, but the device {major}:{minor}", of(path)),
            hints.injection.clone(),
        ),
        Finding::Denied { path } => (
            format!("{} cannot be opened in the container: the device filter denies `{path}`", of(path)),
            hints.injection.clone(),
        ),
        Finding::Permissions { path, mode, owner } => {
            let group = user.group.map_or_else(|| owner.1.to_string(), str::to_owned);
            let reason = format!(
                "user {} cannot open {}: `{path}` has the mode {mode:04o} and belongs to {}:{group}",
                user.uid,
                of(path),
                owner.0
            );
            let hint = match (mode & 0o060 == 0o060, user.group) {
                (false, _) => format!("run the container as root (`--user 0`), or {}", hints.node_mode),
                (true, Some(group)) => format!("add `--group-add {group}`"),
                (true, None) => format!("add `--group-add {}`, the group of the host's node", owner.1),
            };
            (reason, hint)
        }
        Finding::NoDevices { path } => (
            format!("{} cannot be opened in the container: `{path}` is on a mount with the option `nodev`", of(path)),
            format!(
                "mount the host's device nodes without `nodev`: run `findmnt -T {path}` on the host to see the mount"
            ),
        ),
        Finding::Driver { path, errno } => (
            format!(
                "{} cannot be opened in the container: `{path}`: {}",
                of(path),
                std::io::Error::from_raw_os_error(errno)
            ),
            hints.driver.clone(),
        ),
        Finding::Reachable { path } => (
            format!("{}, which was not selected, can be opened in the container too", of(path)),
            hints.injection.clone(),
        ),
    };
    (format!("cannot provide `{}`: {reason}", opens.request), hint)
}

/// Major numbers of character devices for which the running kernel has a driver. An open of any other node fails with
/// ENXIO if the filter allows it. Such a node is a stand-in (tests, another driver root), and ENXIO then proves that
/// the filter allows it. The number of a real driver is always in this list, and ENXIO then means that the GPU is gone.
#[must_use]
pub(crate) fn driven_majors() -> Vec<u32> {
    let text = std::fs::read_to_string(Path::new("/proc/devices")).unwrap_or_default();
    let characters = text.lines().take_while(|line| !line.starts_with("Block devices"));
    characters.filter_map(|line| line.trim().split_once(' ')?.0.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_a_message_and_a_hint() {
        let node = |what: &str, path: &str, minor| Node {
            what: what.into(),
            path: path.into(),
            number: Some((195, minor)),
            awake: false,
            read_only: false,
        };
        let opens = Opens {
            request: "--gpus device=0".into(),
            by: "NVIDIA's prestart hook".into(),
            nodes: vec![node("GPU 0", "/dev/nvidia0", 0)],
            any_of: Vec::new(),
            others: vec![node("GPU 1", "/dev/nvidia1", 1)],
            hints: Hints {
                injection: "INJECTION".into(),
                driver: "DRIVER".into(),
                node_mode: "change the mode of the host's node".into(),
            },
        };
        let path = "/dev/nvidia0";
        let findings = [
            Finding::Missing { path },
            Finding::Other { path, number: (195, 1) },
            Finding::Denied { path },
            Finding::Permissions { path, mode: 0o660, owner: (0, 44) },
            Finding::Permissions { path, mode: 0o600, owner: (0, 0) },
            Finding::NoDevices { path },
            Finding::Driver { path, errno: libc::EIO },
            Finding::Reachable { path: "/dev/nvidia1" },
        ];
        let mut all = String::new();
        for finding in findings {
            for group in [None, Some("video")] {
                let (message, hint) = explain(&opens, &finding, User { uid: 1000, group });
                if group.is_none() || matches!(finding, Finding::Permissions { mode: 0o660, .. }) {
                    all += &format!("{message}\nhint: {hint}\n\n");
                }
            }
        }
        insta::assert_snapshot!(all);
    }

    #[test]
    fn the_kernels_own_devices_are_driven() {
        let majors = driven_majors();
        assert!(majors.contains(&1) && majors.contains(&5), "{majors:?}");
    }
}
