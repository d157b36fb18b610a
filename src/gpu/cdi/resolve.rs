//! From names of devices to what changes in a container.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::spec::{ContainerEdits, DeviceNode};
use super::{CdiError, File, Name, Registry};
use crate::gpu::host::inside;
use crate::gpu::{Edits, FileMount};
use crate::hook::{Chosen, Command};
use crate::spec::{Device, Stage};

impl Registry {
    /// What a container with these devices gets: of each file its common edits, once, before those of its first device.
    ///
    /// `driver` is the version of NVIDIA's loaded module: files that name libraries of another one are stale. `owner` is the user and group of
    /// the container's process, whose the nodes are of which a file does not say whose they are.
    pub fn edits(&self, names: &[Name], driver: Option<&str>, owner: (u32, u32)) -> Result<Edits, CdiError> {
        let mut all = Edits::default();
        let mut seen = BTreeSet::new();
        for name in names {
            let (file, device) = self.find(name)?;
            let about = About { registry: self, file, name, driver, owner };
            if seen.insert(&file.path) {
                about.apply(&file.spec.container_edits, &mut all)?;
            }
            about.apply(&device.container_edits, &mut all)?;
        }
        // What is mounted on `/a` must not hide what another device mounts on `/a/b`.
        all.mounts.sort_by_key(|mount| mount.destination.components().count());
        Ok(all)
    }

    /// The first thing that is wrong with NVIDIA's devices, for whoever only wants to know.
    pub fn check(&self, kind: &str, driver: Option<&str>) -> Result<(), CdiError> {
        for device in self.devices(kind) {
            self.edits(&[Name { kind: kind.to_owned(), device: device.to_owned() }], driver, (0, 0))?;
        }
        Ok(())
    }
}

struct About<'a> {
    registry: &'a Registry,
    file: &'a File,
    name: &'a Name,
    driver: Option<&'a str>,
    owner: (u32, u32),
}

impl About<'_> {
    fn stale(&self, why: String) -> CdiError {
        CdiError::Stale { file: self.file.path.clone(), why }
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
            // One of the last stage before the program lies in the container, all others on the host.
            let path = if stage == Stage::StartContainer { hook.path.clone() } else { self.existing(&hook.path)? };
            let (args, env) = (hook.args.clone(), hook.env.clone());
            let name =
                format!("cdi-{}-{}", self.name.kind.replace('/', "-"), hook.args.get(1).map_or("hook", String::as_str));
            all.hooks.push(Chosen { name, stage, command: Command { path, args, env, timeout: hook.timeout } });
        }
        // 0 is what every container's root has anyway: the specification says to pass over it.
        all.gids.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }

    /// A path of the host, which must be there, and of NVIDIA's loaded driver if it is a library of that.
    fn existing(&self, path: &Path) -> Result<std::path::PathBuf, CdiError> {
        if let Some((driver, version)) =
            self.driver.zip(driver_version(path)).filter(|(driver, version)| driver != version)
        {
            return Err(
                self.stale(format!("it names `{}`, but the loaded driver is {driver}, not {version}", path.display()))
            );
        }
        let real = inside(&self.registry.root, path);
        match real.exists() {
            true => Ok(real),
            false => Err(self.stale(format!("`{}` is not there", path.display()))),
        }
    }

    /// The node, with what the file leaves out taken from the host's. (A minor number that is left out beside a major one is 0.) One that
    /// the file describes wholly need not be on the host.
    fn device(&self, node: &DeviceNode) -> Result<Device, CdiError> {
        let kind = node.kind.as_deref().filter(|kind| !kind.is_empty());
        if kind == Some("p") {
            return Err(self.unsupported("a FIFO as a device node"));
        }
        // Elsewhere it would lie among the image's files, whose links lead where they want.
        if !node.path.starts_with("/dev") || node.path.components().any(|part| part.as_os_str() == "..") {
            return Err(self.unsupported("a device node outside `/dev`"));
        }
        let path = node.host_path.as_ref().unwrap_or(&node.path);
        let host = std::fs::metadata(inside(&self.registry.root, path)).ok();
        let host = host.filter(|host| host.file_type().is_char_device() || host.file_type().is_block_device());
        let gone = || self.stale(format!("the device node `{}` is not there", path.display()));
        let host_kind = host.as_ref().map(|host| if host.file_type().is_block_device() { 'b' } else { 'c' });
        // `u` is a character device by its older name.
        let said = kind.map(|kind| if kind == "b" { 'b' } else { 'c' });
        let kind = said.or(host_kind).ok_or_else(gone)?;
        if host_kind.is_some_and(|host_kind| host_kind != kind) {
            return Err(self.stale(format!("the device node `{}` is of another type", path.display())));
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

/// Linux's major and minor of a device number.
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

/// `…/libcuda.so.550.54.15` → `550.54.15`. Numbers such as those of `libnvidia-egl-gbm.so.1.1.1` are a library's own.
fn driver_version(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let (stem, version) = name.split_once(".so.")?;
    let nvidias = stem.starts_with("libnvidia-") || stem.starts_with("libcuda") || stem.ends_with("_nvidia");
    let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    (nvidias && numbers.is_some_and(|numbers| numbers.len() >= 2 && numbers[0] >= 100)).then_some(version)
}
