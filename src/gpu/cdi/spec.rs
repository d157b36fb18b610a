//! Parser of one CDI file (Container Device Interface 1.1.0). It is strict, and applies the checks of the
//! specification's own library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::request::{is_cdi_class, is_cdi_device, is_cdi_vendor};

/// The existing versions of the specification.
const VERSIONS: [(u32, u32); 10] = [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1)];
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// Larger files are invalid.
pub(super) const MAX_SIZE: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    pub cdi_version: String,
    /// `nvidia.com/gpu`
    pub kind: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Edits for every container that gets any of the devices.
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<NetDevice>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    #[serde(alias = "additionalGIDs")]
    pub additional_gids: Vec<u32>,
    pub intel_rdt: Option<IntelRdt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    pub path: PathBuf,
    pub host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<u32>,
    /// Omitted if it is 0.
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    #[serde(rename = "l3CacheSchema")]
    pub(crate) l3_cache_schema: Option<String>,
    #[serde(rename = "memBwSchema")]
    pub mem_bw_schema: Option<String>,
    pub schemata: Vec<String>,
    #[serde(rename = "enableMonitoring")]
    pub enable_monitoring: Option<bool>,
    #[serde(rename = "enableCMT")]
    pub enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM")]
    pub enable_mbm: Option<bool>,
}

impl ContainerEdits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Spec {
    /// Parses the text of a file, as JSON or YAML depending on its name, and checks it. An error is the reason why the
    /// file is invalid.
    pub fn parse(file: &Path, text: &str) -> Result<Self, String> {
        let spec: Self = if file.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            // Every writer of CDI files means `fileMode: 0666` as octal, because the specification's library reads YAML
            // 1.1.
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            // The parser's errors show the location in the file on further lines. Only the first line states the
            // problem.
            serde_saphyr::from_str_with_options(text, options).map_err(|error| first_line(&error.to_string()))?
        };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        let version = parse_version(&self.cdi_version)
            .filter(|version| VERSIONS.contains(version))
            .ok_or_else(|| format!("`cdiVersion: {}` is not a known version", self.cdi_version))?;
        let (vendor, class) =
            self.kind.split_once('/').ok_or_else(|| format!("the kind `{}` is not `vendor/class`", self.kind))?;
        if !is_cdi_vendor(vendor) || !is_cdi_class(class) {
            return Err(format!("the kind `{}` is not `vendor/class`", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it describes no device".into());
        }
        let mut names = std::collections::BTreeSet::new();
        for device in &self.devices {
            if !is_cdi_device(&device.name) {
                return Err(format!("`{}` is not a valid device name", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("it describes the device `{}` twice", device.name));
            }
            if device.container_edits.is_empty() {
                return Err(format!("the device `{}` has no edits", device.name));
            }
            device.container_edits.check()?;
        }
        self.container_edits.check()?;
        if version >= (1, 1) && self.all_edits().any(ContainerEdits::has_old_rdt) {
            return Err("`enableCMT` and `enableMBM` were removed in 1.1.0: use `enableMonitoring`".into());
        }
        match self.needs() {
            (needed, field) if needed > version => Err(format!(
                "`cdiVersion: {}` is too low for `{field}`, which needs {}.{}.0",
                self.cdi_version, needed.0, needed.1
            )),
            _ => Ok(()),
        }
    }

    fn all_edits(&self) -> impl Iterator<Item = &ContainerEdits> {
        self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits])
    }

    /// Returns the lowest version that has all the features in use, and the newest of these features.
    fn needs(&self) -> ((u32, u32), &'static str) {
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|device| !device.annotations.is_empty());
        let digit = self.devices.iter().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()));
        let dotted = self.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
        let any = |test: &dyn Fn(&ContainerEdits) -> bool| self.all_edits().any(test);
        let newer_rdt = |edits: &ContainerEdits| {
            edits.intel_rdt.as_ref().is_some_and(|rdt| !rdt.schemata.is_empty() || rdt.enable_monitoring.is_some())
        };
        let uses = [
            (any(&|edits| !edits.net_devices.is_empty()), (1, 1), "netDevices"),
            (any(&newer_rdt), (1, 1), "intelRdt.schemata"),
            (any(&|edits| edits.intel_rdt.is_some()), (0, 7), "intelRdt"),
            (any(&|edits| !edits.additional_gids.is_empty()), (0, 7), "additionalGids"),
            (annotated, (0, 6), "annotations"),
            (dotted, (0, 6), "a kind with a dot"),
            (
                any(&|edits| edits.device_nodes.iter().any(|node| node.host_path.is_some())),
                (0, 5),
                "deviceNodes.hostPath",
            ),
            (digit, (0, 5), "a name that begins with a digit"),
            (any(&|edits| edits.mounts.iter().any(|mount| mount.kind.is_some())), (0, 4), "mounts.type"),
        ];
        uses.into_iter().find(|(used, ..)| *used).map_or(((0, 1), ""), |(_, version, field)| (version, field))
    }
}

impl ContainerEdits {
    fn has_old_rdt(&self) -> bool {
        self.intel_rdt.as_ref().is_some_and(|rdt| rdt.enable_cmt.is_some() || rdt.enable_mbm.is_some())
    }

    fn check(&self) -> Result<(), String> {
        for entry in self.env.iter().chain(self.hooks.iter().flat_map(|hook| &hook.env)) {
            if entry.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                return Err(format!("`{entry}` is not `NAME=VALUE`"));
            }
        }
        for node in &self.device_nodes {
            let path = node.path.display();
            if !node.path.is_absolute() {
                return Err(format!("the path of the device node `{path}` is not absolute"));
            }
            if node.kind.as_ref().is_some_and(|kind| !["b", "c", "u", "p", ""].contains(&kind.as_str())) {
                return Err(format!("the device node `{path}` has an unknown type"));
            }
            if node.permissions.as_ref().is_some_and(|text| text.contains(|c| !"rwm".contains(c))) {
                return Err(format!("the permissions of the device node `{path}` may contain only `r`, `w` and `m`"));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.as_os_str().is_empty() || !mount.container_path.is_absolute() {
                return Err(format!(
                    "the mount on `{}` has no source, or its path is not absolute",
                    mount.container_path.display()
                ));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("`{}` is not a hook stage", hook.hook_name));
            }
            if !hook.path.is_absolute() {
                return Err(format!("the path of the hook `{}` is not absolute", hook.path.display()));
            }
        }
        let named = |device: &NetDevice| device.host_interface_name.is_empty() || device.name.is_empty();
        if self.net_devices.iter().any(named) {
            return Err("a network device has no name".into());
        }
        for (at, device) in self.net_devices.iter().enumerate() {
            let before = &self.net_devices[..at];
            if before
                .iter()
                .any(|other| other.host_interface_name == device.host_interface_name || other.name == device.name)
            {
                return Err(format!("the network device `{}` is named twice", device.host_interface_name));
            }
        }
        Ok(())
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or("not YAML");
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse::<u32>().ok());
    let version = (parts.next()??, parts.next()??);
    (parts.next()??, parts.next()).1.is_none().then_some(version)
}
