//! One CDI file (Container Device Interface 1.1.0): read strictly, checked as the specification's own library checks it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CdiError;

/// Versions that exist.
const VERSIONS: [(u32, u32); 10] = [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1)];
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// A file larger than this is none.
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
    /// Of every container that gets any of the devices.
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
    /// Left out when it is 0.
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
    pub l3_cache_schema: Option<String>,
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
    /// Reads a file's text, JSON or YAML by its name, and checks it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, CdiError> {
        let wrong = |why: String| CdiError::Wrong { file: file.to_path_buf(), why };
        let spec: Self = if file.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?
        } else {
            // `fileMode: 0666` is octal to every writer of CDI files (the specification's library reads YAML 1.1).
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            // Its errors draw the place in the file on further lines; the first one says what is wrong.
            serde_saphyr::from_str_with_options(text, options).map_err(|error| wrong(first_line(&error.to_string())))?
        };
        spec.check().map_err(wrong)?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        let version = parse_version(&self.cdi_version)
            .filter(|version| VERSIONS.contains(version))
            .ok_or_else(|| format!("`cdiVersion: {}` is no version that is known", self.cdi_version))?;
        let (vendor, class) =
            self.kind.split_once('/').ok_or_else(|| format!("the kind `{}` is not `vendor/class`", self.kind))?;
        if !is_vendor(vendor) || !is_class(class) {
            return Err(format!("the kind `{}` is not `vendor/class`", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it has no device".into());
        }
        let mut names = std::collections::BTreeSet::new();
        for device in &self.devices {
            if !is_device(&device.name) {
                return Err(format!("`{}` is no device name", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("it has two devices `{}`", device.name));
            }
            if device.container_edits.is_empty() {
                return Err(format!("the device `{}` changes nothing", device.name));
            }
            device.container_edits.check()?;
        }
        self.container_edits.check()?;
        if version >= (1, 1) && self.all_edits().any(ContainerEdits::has_old_rdt) {
            return Err("`enableCMT` and `enableMBM` went with 1.1.0: `enableMonitoring` stands for them".into());
        }
        match self.needs() {
            (needed, field) if needed > version => Err(format!(
                "`cdiVersion: {}` is too low for `{field}`, which came with {}.{}.0",
                self.cdi_version, needed.0, needed.1
            )),
            _ => Ok(()),
        }
    }

    fn all_edits(&self) -> impl Iterator<Item = &ContainerEdits> {
        self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits])
    }

    /// The lowest version that has everything that is used here, and what of it is the newest.
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
                return Err(format!("the device node `{path}` has no absolute path"));
            }
            if node.kind.as_ref().is_some_and(|kind| !["b", "c", "u", "p", ""].contains(&kind.as_str())) {
                return Err(format!("the device node `{path}` is of no type that is known"));
            }
            if node.permissions.as_ref().is_some_and(|text| text.contains(|c| !"rwm".contains(c))) {
                return Err(format!("the permissions of the device node `{path}` are not some of `rwm`"));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.as_os_str().is_empty() || !mount.container_path.is_absolute() {
                return Err(format!("the mount on `{}` lacks an absolute path", mount.container_path.display()));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("`{}` is no stage of a hook", hook.hook_name));
            }
            if !hook.path.is_absolute() {
                return Err(format!("the hook `{}` has no absolute path", hook.path.display()));
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

/// Ends in a letter or digit, and is made of these and `more`.
fn is_made_of(name: &str, more: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    name.chars().all(good) && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

pub(super) fn is_vendor(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_made_of(name, "_-.")
}

pub(super) fn is_class(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_made_of(name, "_-.")
}

pub(super) fn is_device(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_made_of(name, "_-.:")
}
