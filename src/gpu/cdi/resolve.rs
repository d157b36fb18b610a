//! Resolves device names to edits of a container.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::CdiError;
use super::facts::Facts;
use super::registry::{File, Registry};
use super::spec::{ContainerEdits, DeviceNode};
use crate::gpu::edits::{Edits, FileMount};
use crate::gpu::root::inside;
use crate::hook::{Chosen, Command};
use crate::request::CdiName;
use crate::spec::{Device, Stage};

impl Registry {
    /// Returns the edits for a container with these devices. The common edits of each file apply once, before those of
    /// the first device of that file.
    ///
    /// `owner` is the user and group of the container's process. Device nodes belong to them unless the file names an
    /// owner.
    pub(in crate::gpu) fn edits(&self, names: &[CdiName], owner: (u32, u32)) -> Result<Edits, CdiError> {
        let mut all = Edits::default();
        let mut seen = BTreeSet::new();
        for name in names {
            let (file, device) = self.find(name)?;
            let about = self.about(file, name, owner);
            if seen.insert(&file.path) {
                about.apply(&file.spec.container_edits, &mut all)?;
            }
            about.apply(&device.container_edits, &mut all)?;
        }
        // Sort by depth: a mount on `/a` must not hide another device's mount on `/a/b`.
        all.mounts.sort_by_key(|mount| mount.destination.components().count());
        Ok(all)
    }

    /// Returns the device nodes that the edits of one device add, without those that every device of its file has.
    pub(in crate::gpu) fn own_nodes(&self, name: &CdiName, owner: (u32, u32)) -> Result<Vec<Device>, CdiError> {
        let (file, device) = self.find(name)?;
        let mut own = Edits::default();
        self.about(file, name, owner).apply(&device.container_edits, &mut own)?;
        Ok(own.devices)
    }

    /// Checks all devices of a kind, and returns the first error.
    pub(in crate::gpu) fn check(&self, kind: &str) -> Result<(), CdiError> {
        for device in self.devices(kind) {
            self.edits(&[CdiName { kind: kind.to_owned(), device: device.to_owned() }], (0, 0))?;
        }
        Ok(())
    }

    fn about<'a>(&'a self, file: &'a File, name: &'a CdiName, owner: (u32, u32)) -> About<'a> {
        About { registry: self, file, name, vendor: self.vendor_of(&file.spec.kind), owner }
    }
}

struct About<'a> {
    registry: &'a Registry,
    file: &'a File,
    name: &'a CdiName,
    vendor: Option<(&'static Facts, Option<&'a str>)>,
    owner: (u32, u32),
}

impl About<'_> {
    fn stale(&self, why: String) -> CdiError {
        let generate = self.vendor.map(|(facts, _)| (facts.generate)(&self.file.path));
        CdiError::Stale { file: self.file.path.clone(), why, generate }
    }

    fn unsupported(&self, what: &'static str) -> CdiError {
        CdiError::Unsupported { name: self.name.to_string(), file: self.file.path.clone(), what }
    }

    fn apply(&self, edits: &ContainerEdits, all: &mut Edits) -> Result<(), CdiError> {
        if edits.intel_rdt.is_some() {
            return Err(self.unsupported("Intel RDT"));
        }
        if !edits.net_devices.is_empty() {
            return Err(self.unsupported("network devices"));
        }
        for entry in &edits.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            all.env.retain(|(other, _)| other != name);
            all.env.push((name.to_owned(), value.to_owned()));
        }
        for node in &edits.device_nodes {
            let device = self.device(node)?;
            all.devices.retain(|other| other.path != device.path);
            all.devices.push(device);
        }
        for mount in &edits.mounts {
            let kind = mount
                .kind
                .clone()
                .filter(|kind| !["", "none"].contains(&kind.as_str()))
                .unwrap_or_else(|| "bind".into());
            let is_bind = kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind");
            let source = if is_bind { self.existing(&mount.host_path)? } else { mount.host_path.clone() };
            all.mounts.retain(|other| other.destination != mount.container_path);
            all.mounts.push(FileMount {
                source,
                destination: mount.container_path.clone(),
                kind: if is_bind { "bind".into() } else { kind },
                options: with_bind(&mount.options, is_bind),
            });
        }
        for hook in &edits.hooks {
            let stage =
                STAGES.into_iter().find(|stage| stage.key() == hook.hook_name).unwrap_or(Stage::CreateContainer);
            // The program of a startContainer hook is in the container. The programs of all other hooks are on the
            // host.
            let path = if stage == Stage::StartContainer { hook.path.clone() } else { self.existing(&hook.path)? };
            let (args, env) = (hook.args.clone(), hook.env.clone());
            let name =
                format!("cdi-{}-{}", self.name.kind.replace('/', "-"), hook.args.get(1).map_or("hook", String::as_str));
            all.hooks.push(Chosen { name, stage, command: Command { path, args, env, timeout: hook.timeout } });
        }
        // Every container's root already has group 0. The specification says to ignore it.
        all.gids.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }

    /// Checks a path of the host. It must exist, and a driver library must have the version of the loaded module.
    fn existing(&self, path: &Path) -> Result<std::path::PathBuf, CdiError> {
        if let Some((facts, Some(driver))) = self.vendor
            && (facts.driver_of)(path).is_some_and(|version| version != driver)
        {
            return Err(
                self.stale(format!("it names `{}`, but the version of the loaded driver is {driver}", path.display()))
            );
        }
        let real = inside(&self.registry.root, path);
        match real.exists() {
            true => Ok(real),
            false => Err(self.stale(format!("`{}` does not exist", path.display()))),
        }
    }

    /// Returns the node. Values that the file omits are taken from the host's node, except that a minor number omitted
    /// next to a major one is 0. A fully described node need not exist on the host.
    fn device(&self, node: &DeviceNode) -> Result<Device, CdiError> {
        let kind = node.kind.as_deref().filter(|kind| !kind.is_empty());
        if kind == Some("p") {
            return Err(self.unsupported("a FIFO as a device node"));
        }
        // Outside /dev, the node would be among the image's files, whose symbolic links may lead anywhere.
        if !node.path.starts_with("/dev") || node.path.components().any(|part| part.as_os_str() == "..") {
            return Err(self.unsupported("a device node outside `/dev`"));
        }
        let path = node.host_path.as_ref().unwrap_or(&node.path);
        let host = std::fs::metadata(inside(&self.registry.root, path)).ok();
        let host = host.filter(|host| host.file_type().is_char_device() || host.file_type().is_block_device());
        let gone = || self.stale(format!("the device node `{}` does not exist", path.display()));
        let host_kind = host.as_ref().map(|host| if host.file_type().is_block_device() { 'b' } else { 'c' });
        // `u` is an older name for a character device.
        let said = kind.map(|kind| if kind == "b" { 'b' } else { 'c' });
        let kind = said.or(host_kind).ok_or_else(gone)?;
        if host_kind.is_some_and(|host_kind| host_kind != kind) {
            return Err(self.stale(format!("the device node `{}` has another type", path.display())));
        }
        let (major, minor) = match (node.major.filter(|major| *major != 0), &host) {
            (Some(major), _) => (major, node.minor.unwrap_or(0)),
            (None, Some(host)) => numbers(host.rdev()),
            (None, None) => return Err(gone()),
        };
        let access = node.permissions.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".into());
        Ok(Device {
            path: node.path.display().to_string(),
            kind,
            major,
            minor,
            mode: node.file_mode.or(host.map(|host| host.permissions().mode())).unwrap_or(0o666) & 0o777,
            uid: node.uid.unwrap_or(self.owner.0),
            gid: node.gid.unwrap_or(self.owner.1),
            access,
        })
    }
}

const STAGES: [Stage; 6] = [
    Stage::Prestart,
    Stage::CreateRuntime,
    Stage::CreateContainer,
    Stage::StartContainer,
    Stage::Poststart,
    Stage::Poststop,
];

/// The major and minor number of a Linux device number.
fn numbers(device: u64) -> (u32, u32) {
    (nix::sys::stat::major(device) as u32, nix::sys::stat::minor(device) as u32)
}

fn with_bind(options: &[String], is_bind: bool) -> Vec<String> {
    let mut options = options.to_vec();
    if is_bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".into());
    }
    options
}
