//! The Container Device Interface: files in which vendors say what a container needs for their devices, `--device vendor.com/class=name`.
//!
//! ```text
//! /etc/cdi/*.{json,yaml}          written by an administrator
//! /var/run/cdi/*.{json,yaml}      written by a driver's own service; wins over the other
//! ```
//!
//! A device that two files of the same directory describe is nobody's: asking for it is an error that names both. A file that cannot be
//! understood is one only when a device that might be in it is asked for. What a file names must be there when it is used: a file from
//! before the driver's last upgrade is stale, and said to be.
//!
//! A reader of our own, because the crate (container-device-interface 1.1.1) brings 103 packages along, an HTTP client, a second TLS library, tokio
//! and a JSON schema engine among them; knows no stale file; leaves a minor number unset that is left out beside a major one; and lets the
//! first of two files win that conflict.

mod resolve;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use spec::Spec;

use super::host::inside;
use crate::report::{EXIT_GPURUN, EXIT_USAGE, Explain};

/// In order of rising precedence.
const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// NVIDIA's GPUs.
pub const NVIDIA: &str = "nvidia.com/gpu";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    #[error("`{0}` is not `vendor.com/class=name`")]
    Name(String),
    #[error("the CDI file `{}` cannot be used: {why}", .file.display())]
    Wrong { file: PathBuf, why: String },
    #[error("there is no CDI device `{name}`{known}")]
    NoDevice { name: String, known: String, source: Option<Box<CdiError>> },
    #[error("the CDI device `{name}` is described by two files, `{}` and `{}`", .one.display(), .other.display())]
    Conflict { name: String, one: PathBuf, other: PathBuf },
    #[error("the CDI file `{}` is stale: {why}", .file.display())]
    Stale { file: PathBuf, why: String },
    #[error("the CDI device `{name}` (`{}`) needs {what}, which gpurun does not do", .file.display())]
    Unsupported { name: String, file: PathBuf, what: &'static str },
}

impl Explain for CdiError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name(_) => "for example `--device nvidia.com/gpu=0`".into(),
            Self::Wrong { .. } => "write it anew with its vendor's tool, or take it away".into(),
            Self::NoDevice { name, .. } if name.starts_with(NVIDIA) => REGENERATE.into(),
            Self::NoDevice { .. } => {
                format!("CDI files are looked for in {}", DIRS.map(|dir| format!("`{dir}`")).join(" and "))
            }
            Self::Conflict { .. } => "take one of the files away".into(),
            Self::Stale { file, .. } => format!("write it anew: {REGENERATE} (now `{}`)", file.display()),
            Self::Unsupported { .. } => return None,
        })
    }
    fn exit_code(&self) -> u8 {
        if matches!(self, Self::Name(_)) { EXIT_USAGE } else { EXIT_GPURUN }
    }
}

const REGENERATE: &str = "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`";

/// `vendor.com/class=name`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub kind: String,
    pub device: String,
}

impl FromStr for Name {
    type Err = CdiError;

    fn from_str(text: &str) -> Result<Self, CdiError> {
        let parts = text.split_once('=').and_then(|(kind, device)| Some((kind, kind.split_once('/')?, device)));
        match parts {
            Some((kind, (vendor, class), device))
                if spec::is_vendor(vendor) && spec::is_class(class) && spec::is_device(device) =>
            {
                Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
            }
            _ => Err(CdiError::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// One file that could be understood.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Of its directory.
    priority: usize,
    spec: Spec,
}

/// Everything that the host's directories say.
#[derive(Debug)]
pub struct Registry {
    root: PathBuf,
    files: Vec<File>,
    broken: Vec<CdiError>,
}

impl Registry {
    /// Reads the directories below `root`. Nothing in them is an error yet.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let (mut files, mut broken) = (Vec::new(), Vec::new());
        for (priority, dir) in DIRS.iter().enumerate() {
            let entries = std::fs::read_dir(inside(root, Path::new(dir))).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml"));
            paths.sort();
            for path in paths.into_iter().filter(|path| path.is_file()) {
                match read_file(&path) {
                    Ok(spec) => files.push(File { path, priority, spec }),
                    Err(error) => broken.push(error),
                }
            }
        }
        Self { root: root.to_path_buf(), files, broken }
    }

    /// Names of all devices of a kind.
    #[must_use]
    pub fn devices(&self, kind: &str) -> Vec<&str> {
        let files = self.files.iter().filter(|file| file.spec.kind == kind);
        let mut names: Vec<&str> =
            files.flat_map(|file| file.spec.devices.iter().map(|device| device.name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The files that could not be understood.
    #[must_use]
    pub fn broken(&self) -> &[CdiError] {
        &self.broken
    }

    /// The file that has a device's last word, and the device's place in it.
    fn find(&self, name: &Name) -> Result<(&File, &spec::Device), CdiError> {
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

    fn no_device(&self, name: &Name) -> CdiError {
        let known = self.devices(&name.kind);
        let known = match known.is_empty() {
            true => String::new(),
            false => format!("; of `{}` there are {}", name.kind, known.join(", ")),
        };
        CdiError::NoDevice { name: name.to_string(), known, source: self.broken.first().cloned().map(Box::new) }
    }
}

fn read_file(path: &Path) -> Result<Spec, CdiError> {
    let wrong = |why: String| CdiError::Wrong { file: path.to_path_buf(), why };
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > spec::MAX_SIZE {
        return Err(wrong(format!("it has {size} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    Spec::parse(path, &text)
}

#[cfg(test)]
mod tests;
