//! The CDI files of a host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{CdiError, DIRS};
use super::facts::Facts;
use super::spec::{self, Spec};
use crate::gpu::root::inside;
use crate::request::CdiName;

/// One valid file.
#[derive(Debug)]
pub(super) struct File {
    pub path: PathBuf,
    /// Precedence of its directory.
    pub priority: usize,
    pub spec: Spec,
}

/// The CDI files of the host.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(super) root: PathBuf,
    /// The vendors that are known, each with the version of its loaded driver.
    pub(super) vendors: Vec<(&'static Facts, Option<String>)>,
    pub(super) files: Vec<File>,
    pub(super) broken: Vec<CdiError>,
}

impl Registry {
    /// Reads the directories below `root`. Invalid files are kept in `broken` and are not an error here.
    #[must_use]
    pub(in crate::gpu) fn read(root: &Path, facts: &[&'static Facts]) -> Self {
        let (mut files, mut broken) = (Vec::new(), Vec::new());
        for (priority, dir) in DIRS.iter().enumerate() {
            let entries = std::fs::read_dir(inside(root, Path::new(dir))).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml"));
            paths.sort();
            for path in paths.into_iter().filter(|path| path.is_file()) {
                match read_file(&path, facts) {
                    Ok(spec) => files.push(File { path, priority, spec }),
                    Err(error) => broken.push(error),
                }
            }
        }
        let vendors = facts.iter().map(|facts| (*facts, (facts.loaded_driver)(root))).collect();
        Self { root: root.to_path_buf(), vendors, files, broken }
    }

    /// Returns the names of all devices of a kind.
    #[must_use]
    pub(crate) fn devices(&self, kind: &str) -> Vec<&str> {
        let files = self.files.iter().filter(|file| file.spec.kind == kind);
        let mut names: Vec<&str> =
            files.flat_map(|file| file.spec.devices.iter().map(|device| device.name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns all kinds of devices whose class is `gpu`.
    #[must_use]
    pub(in crate::gpu) fn gpu_kinds(&self) -> Vec<&str> {
        let kinds = self.files.iter().map(|file| file.spec.kind.as_str());
        let mut kinds: Vec<&str> = kinds.filter(|kind| kind.ends_with("/gpu")).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// The invalid files.
    #[must_use]
    pub(crate) fn broken(&self) -> &[CdiError] {
        &self.broken
    }

    /// Returns the file that takes precedence for a device, and the device in it.
    pub(super) fn find(&self, name: &CdiName) -> Result<(&File, &spec::Device), CdiError> {
        let mut best: Option<(&File, &spec::Device)> = None;
        let mut twins: BTreeMap<usize, (&Path, &Path)> = BTreeMap::new();
        for file in self.files.iter().filter(|file| file.spec.kind == name.kind) {
            let Some(device) = file.spec.devices.iter().find(|device| device.name == name.device) else { continue };
            match best {
                Some((other, _)) if other.priority == file.priority => {
                    twins.entry(file.priority).or_insert((&other.path, &file.path));
                }
                Some((other, _)) if other.priority > file.priority => {}
                _ => best = Some((file, device)),
            }
        }
        let (file, device) = best.ok_or_else(|| self.no_device(name))?;
        match twins.get(&file.priority) {
            Some((one, other)) => {
                Err(CdiError::Conflict { name: name.to_string(), one: one.to_path_buf(), other: other.to_path_buf() })
            }
            None => Ok((file, device)),
        }
    }

    fn no_device(&self, name: &CdiName) -> CdiError {
        let known = self.devices(&name.kind);
        let known = match known.is_empty() {
            true => String::new(),
            false => format!("; the devices of `{}` are {}", name.kind, known.join(", ")),
        };
        let source = self.broken.first().cloned().map(Box::new);
        CdiError::NoDevice { name: name.to_string(), known, generate: self.generate(&name.kind), source }
    }

    /// What is known about the vendor of a kind, with the version of its loaded driver.
    pub(super) fn vendor_of(&self, kind: &str) -> Option<(&'static Facts, Option<&str>)> {
        let (facts, driver) = self.vendors.iter().find(|(facts, _)| facts.kind == kind)?;
        Some((facts, driver.as_deref()))
    }

    /// Returns the command that writes the file in use for a kind, or the file of the vendor's service if there is none.
    /// A new file in a directory of lower precedence would have no effect.
    pub(in crate::gpu) fn generate(&self, kind: &str) -> Option<String> {
        let (facts, _) = self.vendor_of(kind)?;
        let files = self.files.iter().filter(|file| file.spec.kind == kind);
        let best = files.max_by_key(|file| file.priority);
        Some((facts.generate)(best.map_or(Path::new(facts.service_file), |file| &file.path)))
    }
}

fn read_file(path: &Path, facts: &[&'static Facts]) -> Result<Spec, CdiError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let vendor = facts.iter().find(|facts| name.contains(facts.file_name));
    let generate = vendor.map(|facts| (facts.generate)(path));
    let invalid = |why: String| CdiError::Invalid { file: path.to_path_buf(), why, generate: generate.clone() };
    let size = std::fs::metadata(path).map_err(|error| invalid(error.to_string()))?.len();
    if size > spec::MAX_SIZE {
        return Err(invalid(format!("its size is {size} bytes, and the maximum is {}", spec::MAX_SIZE)));
    }
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    Spec::parse(path, &text).map_err(invalid)
}
