//! `--gpus`: docker's grammar, what the host has, and what a container needs changed for it.
//!
//! First slice: the mode that the project is named for, NVIDIA's prestart hook. It is told what to do by the container's environment
//! (NVIDIA_VISIBLE_DEVICES) and injects driver files and device nodes itself; the device filter must stand on the container's cgroup before
//! it runs. A container without `--gpus` gets `void`, whatever its image says: CUDA images set `all`.
//!
//! Readers take the host's root directory, so that /proc, /dev and the driver can be fixtures.

mod host;
mod selection;

use std::path::{Path, PathBuf};

pub use host::{Gpu, Host};
pub use selection::{Selection, SelectionError, Which};

use crate::hook::{self, Chosen};
use crate::report::Explain;
use crate::spec::{Rlimit, Stage};

/// The annotation that says which GPUs a container was given: hook definitions may ask for it.
pub const ANNOTATION: &str = "org.gpurun.gpus";

/// Names under which NVIDIA's prestart hook is installed; the second is what it was called before 1.0 of the toolkit's runtime hook.
const HOOK_NAMES: [&str; 2] = ["nvidia-container-runtime-hook", "nvidia-container-toolkit"];
const HOOK_DIRS: [&str; 3] = ["usr/bin", "usr/local/bin", "usr/local/nvidia/toolkit"];

/// What a container is given for its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edits {
    /// These win over the image's and the person's own.
    pub env: Vec<(String, String)>,
    /// Set only where neither the image nor the person did.
    pub default_env: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    pub hooks: Vec<Chosen>,
    /// Defaults (an explicit `--ulimit` of the same name wins, and a hard limit of the host's lowers them).
    pub rlimits: Vec<Rlimit>,
    /// For a person: what was chosen and how.
    pub summary: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GpuError {
    #[error("`--gpus {asked}`: this host has no NVIDIA driver (`{}` is missing)", .missing.display())]
    NoDriver { asked: String, missing: PathBuf },
    #[error("`--gpus {asked}`: NVIDIA's driver is loaded, but the host has no GPU")]
    NoGpu { asked: String },
    #[error(
        "`--gpus {asked}`: NVIDIA's container hook is not installed (no `nvidia-container-runtime-hook` in {searched})"
    )]
    NoHook { asked: String, searched: String },
    #[error("`--gpus {asked}`: NVIDIA's `nvidia-container-cli`, which the hook runs, is not installed")]
    NoCli { asked: String },
    #[error("`--gpus {asked}`: {wanted} GPUs were asked for, the host has {there}")]
    TooMany { asked: String, wanted: u32, there: usize },
    #[error("`--gpus {asked}`: there is no GPU `{device}`; the host has {there}")]
    NoSuchGpu { asked: String, device: String, there: String },
    #[error("`--gpus {asked}`: only the driver `nvidia` is known, not `{driver}`")]
    Driver { asked: String, driver: String },
}

impl Explain for GpuError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDriver { .. } => "install NVIDIA's driver so that `nvidia-smi` works on the host, or leave `--gpus` out".into(),
            Self::NoGpu { .. } => "see `lspci | grep -i nvidia` and `nvidia-smi` on the host, or leave `--gpus` out".into(),
            Self::NoHook { .. } | Self::NoCli { .. } => {
                "install the NVIDIA Container Toolkit: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
                    .into()
            }
            Self::TooMany { .. } | Self::NoSuchGpu { .. } => "`nvidia-smi -L` lists the GPUs with their numbers and UUIDs".into(),
            Self::Driver { .. } => "leave `driver=` out".into(),
        })
    }
}

/// What a container gets for `--gpus` (or for its absence), on the host whose root directory is `root`.
pub fn plan(selection: Option<&Selection>, root: &Path) -> Result<Edits, GpuError> {
    let Some(selection) = selection else {
        return Ok(Edits { env: vec![visible("void")], ..Edits::default() });
    };
    let asked = selection.to_string();
    if let Some(driver) = selection.driver.as_deref().filter(|driver| *driver != "nvidia") {
        return Err(GpuError::Driver { asked, driver: driver.to_owned() });
    }
    let host = Host::read(root).map_err(|missing| GpuError::NoDriver { asked: asked.clone(), missing })?;
    let devices = choose(selection, &host, &asked)?;
    let command = nvidia_hook(root, &asked)?;
    let mut env = vec![visible(&devices)];
    if !selection.capabilities.is_empty() {
        env.push(("NVIDIA_DRIVER_CAPABILITIES".into(), selection.capabilities.join(",")));
    }
    let unlimited = |name: &str, value| Rlimit { name: name.into(), soft: value, hard: value };
    let name = BUILTIN_HOOK.to_owned();
    Ok(Edits {
        env,
        // CUDA counts "fastest first" by itself, nvidia-smi by bus: the same number should mean the same GPU.
        default_env: vec![("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into())],
        annotations: vec![(ANNOTATION.into(), devices.clone())],
        hooks: vec![Chosen { name, stage: Stage::Prestart, command }],
        // what NVIDIA advises for its framework images
        rlimits: vec![unlimited("RLIMIT_MEMLOCK", u64::MAX), unlimited("RLIMIT_STACK", 64 << 20)],
        summary: Some(summary(&devices, &host)),
    })
}

const BUILTIN_HOOK: &str = "50-nvidia-prestart";

impl Edits {
    /// All hooks of the container, in the order in which they run: those that matched, and NVIDIA's as [`plan`] has it, with the path where
    /// this host really has the program. Other definitions of NVIDIA's hook (the built-in one, or a host's that stands for every container)
    /// would run it a second time.
    #[must_use]
    pub fn combine(&self, matched: Vec<Chosen>) -> Vec<Chosen> {
        let mut all = self.hooks.clone();
        all.extend(matched.into_iter().filter(|hook| !is_nvidia(&hook.command)));
        all.sort_by_key(|hook| hook.stage);
        all
    }
}

fn is_nvidia(command: &hook::Command) -> bool {
    command.path.file_name().is_some_and(|name| HOOK_NAMES.iter().any(|known| name == *known))
}

fn visible(value: &str) -> (String, String) {
    ("NVIDIA_VISIBLE_DEVICES".into(), value.into())
}

/// The value of NVIDIA_VISIBLE_DEVICES. Numbers become UUIDs where the driver tells them: numbers may change with a reboot.
fn choose(selection: &Selection, host: &Host, asked: &str) -> Result<String, GpuError> {
    let gpus = &host.gpus;
    if gpus.is_empty() {
        return Err(GpuError::NoGpu { asked: asked.to_owned() });
    }
    match &selection.which {
        Which::All => Ok("all".into()),
        Which::Count(wanted) => {
            let count = usize::try_from(*wanted).unwrap_or(usize::MAX);
            let chosen = gpus.get(..count).ok_or_else(|| GpuError::TooMany {
                asked: asked.to_owned(),
                wanted: *wanted,
                there: gpus.len(),
            })?;
            Ok(join(chosen.iter().map(Gpu::stable_name)))
        }
        Which::Devices(devices) => {
            let names = devices.iter().map(|device| {
                host.resolve(device).ok_or_else(|| GpuError::NoSuchGpu {
                    asked: asked.to_owned(),
                    device: device.clone(),
                    there: join(gpus.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.stable_name())))
                        .replace(',', ", "),
                })
            });
            Ok(join(names.collect::<Result<Vec<_>, _>>()?.into_iter()))
        }
    }
}

fn join(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(",")
}

/// The built-in definition's command, with the program where this host has it.
fn nvidia_hook(root: &Path, asked: &str) -> Result<hook::Command, GpuError> {
    let find =
        |name: &str| HOOK_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| root.join(path).is_file());
    let Some(program) = HOOK_NAMES.iter().find_map(|name| find(name)) else {
        let searched = HOOK_DIRS.map(|dir| format!("`/{dir}`")).join(", ");
        return Err(GpuError::NoHook { asked: asked.to_owned(), searched });
    };
    let builtin = hook::builtin().into_iter().find(|definition| definition.name == BUILTIN_HOOK);
    let mut command = builtin.map(|definition| definition.command).unwrap_or_else(|| hook::Command {
        path: PathBuf::new(),
        args: vec![String::new(), "prestart".into()],
        env: vec![hook::DEFAULT_PATH.into()],
        timeout: None,
    });
    // The hook's own configuration may name another place for its tool; only a host without that file is judged by the usual places.
    if find("nvidia-container-cli").is_none() && !root.join("etc/nvidia-container-runtime/config.toml").exists() {
        return Err(GpuError::NoCli { asked: asked.to_owned() });
    }
    if let (Some(first), Some(name)) = (command.args.first_mut(), program.file_name()) {
        *first = name.to_string_lossy().into_owned();
    }
    // Absolute on the host, not below `root`: that is where it will run.
    command.path = Path::new("/").join(&program);
    if let Some(dir) = program.parent().filter(|dir| dir.starts_with("usr/local/nvidia")) {
        command.env = command.env.iter().map(|line| add_to_path(line, dir)).collect();
    }
    Ok(command)
}

fn add_to_path(line: &str, dir: &Path) -> String {
    match line.strip_prefix("PATH=") {
        Some(path) => format!("PATH={path}:/{}", dir.display()),
        None => line.to_owned(),
    }
}

fn summary(devices: &str, host: &Host) -> String {
    let chosen: Vec<String> = host
        .gpus
        .iter()
        .filter(|gpu| devices == "all" || devices.split(',').any(|device| device == gpu.stable_name()))
        .map(|gpu| format!("{} {}", gpu.index, gpu.model))
        .collect();
    let list = if chosen.is_empty() { devices.to_owned() } else { chosen.join(", ") };
    format!("GPU {list} by NVIDIA's prestart hook (driver {})", host.driver)
}

#[cfg(test)]
mod tests;
