//! Device nodes and who may use them.

use serde::{Deserialize, Serialize};

/// One rule of the container's device filter, in the order in which they are applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    /// `c`, `b`, or `a` for both.
    pub kind: char,
    /// `None`: any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

/// A device node to be made in the container's /dev, and allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path in the container.
    pub path: String,
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: String,
}

/// What every container may use: docker's list (oci.DefaultSpec's cgroup rules). The nodes themselves are made by the runtime.
const DEFAULT: [(char, Option<u32>, Option<u32>, &str); 10] = [
    // making nodes is harmless, opening them is what counts
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"), // null
    ('c', Some(1), Some(5), "rwm"), // zero
    ('c', Some(1), Some(7), "rwm"), // full
    ('c', Some(1), Some(8), "rwm"), // random
    ('c', Some(1), Some(9), "rwm"), // urandom
    ('c', Some(5), Some(0), "rwm"), // tty
    ('c', Some(5), Some(2), "rwm"), // ptmx
    ('c', Some(136), None, "rwm"),  // pts
];

/// The filter's rules for a container with these devices of its own: deny everything, then allow.
///
/// docker lets every container make any node, since opening it is denied all the same. One that has devices of the host may make only those and
/// the default ones: a GPU's neighbour is then not even a node (version 1 knows no "all but these", so the rule that allows all goes).
#[must_use]
pub fn device_rules(devices: &[Device]) -> Vec<DeviceRule> {
    let mut rules = vec![DeviceRule { allow: false, kind: 'a', major: None, minor: None, access: "rwm".into() }];
    // /dev/console is a pty of the container's own, bound over the node (136:n): 5:1 stays out.
    let default = DEFAULT.into_iter().filter(|(_, major, ..)| major.is_some() || devices.is_empty());
    rules.extend(default.map(|(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        access: access.into(),
    }));
    rules.extend(devices.iter().map(|device| DeviceRule {
        allow: true,
        kind: device.kind,
        major: Some(device.major),
        minor: Some(device.minor),
        access: device.access.clone(),
    }));
    rules
}
