//! Device nodes and the device filter rules that allow access to them.

use serde::{Deserialize, Serialize};

/// One rule of the container's device filter. Rules apply in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    /// `c`, `b`, or `a` for both.
    pub kind: char,
    /// `None` matches any number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Any combination of `r`, `w` and `m`.
    pub access: String,
}

/// A device node that is created in the container's /dev and allowed by the device filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
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

/// The devices that every container may use: docker's list (the cgroup rules of oci.DefaultSpec). The runtime creates
/// the nodes.
const DEFAULT: [(char, Option<u32>, Option<u32>, &str); 10] = [
    // Creating a node is harmless. The filter controls access when the node is opened.
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

/// Returns the filter rules for a container with these devices: deny everything, then allow the default devices and
/// these.
///
/// docker lets every container create any node because opening it is denied anyway. A container with host devices may
/// create only those nodes and the default ones, so that it cannot even create the node of another GPU. Version 1
/// cannot express "all nodes except these", so the rule that allows every node is left out.
#[must_use]
pub(crate) fn device_rules(devices: &[Device]) -> Vec<DeviceRule> {
    let mut rules = vec![DeviceRule { allow: false, kind: 'a', major: None, minor: None, access: "rwm".into() }];
    // /dev/console is a pty of the container (136:n) that is bind-mounted over the node, so 5:1 is not allowed.
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

/// Returns the filter rules that apply while the runtime creates the nodes, if they differ from [`device_rules`].
/// mknod(2) is subject to the filter, so a device whose access lacks `m` could not be created otherwise.
#[must_use]
pub(crate) fn creation_rules(devices: &[Device]) -> Option<Vec<DeviceRule>> {
    if devices.iter().all(|device| device.access.contains('m')) {
        return None;
    }
    let with_mknod = |device: &Device| {
        let mut device = device.clone();
        if !device.access.contains('m') {
            device.access.push('m');
        }
        device
    };
    Some(device_rules(&devices.iter().map(with_mknod).collect::<Vec<_>>()))
}
