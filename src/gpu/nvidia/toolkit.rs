//! NVIDIA's prestart hook: where it is installed, and how gpurun runs it. The hook takes its instructions from the
//! container's environment, and injects the driver files and device nodes itself. The device filter must be attached to
//! the container's cgroup before the hook runs. gpurun's filter allows the nodes of the selected GPUs from the start,
//! because the hook of a host with `no-cgroups = true` does not change the filter.

use std::path::{Path, PathBuf};

use super::config::Config;
use crate::gpu::edits::HookConfig;
use crate::gpu::root::inside;
use crate::hook::{self, Chosen};
use crate::spec::Stage;

/// Names of NVIDIA's prestart hook. The second is its name before version 1.0 of the toolkit's runtime hook.
pub(super) const HOOK_NAMES: [&str; 2] = ["nvidia-container-runtime-hook", "nvidia-container-toolkit"];
const HOOK_DIRS: [&str; 3] = ["/usr/bin", "/usr/local/bin", OPERATOR_DIR];
/// Directory into which NVIDIA's GPU operator installs the toolkit, with its own configuration.
const OPERATOR_DIR: &str = "/usr/local/nvidia/toolkit";
/// Directories in which the hook looks for its tool: those of [`hook::DEFAULT_PATH`].
const TOOL_DIRS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Name of the built-in definition (hooks/).
const BUILTIN_HOOK: &str = "50-nvidia-prestart";
const TOOL: &str = "nvidia-container-cli";

/// Why the hook cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    #[error("NVIDIA's container hook is not installed (no `nvidia-container-runtime-hook` in {searched})")]
    Hook { searched: String },
    #[error("NVIDIA's `nvidia-container-cli`, which the hook `{}` runs, is not installed", .hook.display())]
    Tool { hook: PathBuf },
    #[error("`{}`, which `{}` sets as the path of `nvidia-container-cli`, does not exist", .tool.display(), .config.display())]
    ToolAt { tool: PathBuf, config: PathBuf },
    #[error("`{}` sets `mode = \"{mode}\"` for NVIDIA's toolkit, and its hook does not run in that mode", .config.display())]
    Mode { mode: String, config: PathBuf },
}

impl Missing {
    /// The hint for a caller who requested the hook: a command or a change that makes it work.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Hook { .. } => {
                "install the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html), or omit `--gpu-mode` so that gpurun injects the driver itself".into()
            }
            Self::Tool { .. } => {
                "install the package `libnvidia-container-tools`, or omit `--gpu-mode` so that gpurun uses another mode".into()
            }
            Self::ToolAt { config, .. } => format!(
                "correct `path` in the section [nvidia-container-cli] of `{}`, or omit `--gpu-mode` so that gpurun uses another mode",
                config.display()
            ),
            Self::Mode { config, .. } => format!(
                "use `--gpu-mode cdi`, omit `--gpu-mode`, or set `skip-mode-detection = true` in the section [nvidia-container-runtime-hook] of `{}`",
                config.display()
            ),
        }
    }

    /// Whether this is no reason for a warning: the administrator chose another mode, or the host has no toolkit.
    pub(super) fn is_expected(&self) -> bool {
        match self {
            Self::Hook { .. } => true,
            Self::Mode { mode, .. } => mode.ends_with("cdi"),
            Self::Tool { .. } | Self::ToolAt { .. } => false,
        }
    }
}

/// The hook of this host.
#[derive(Debug)]
pub(super) struct Hook {
    pub command: hook::Command,
    pub config: Option<Config>,
}

impl Hook {
    pub(super) fn chosen(&self) -> Chosen {
        Chosen { name: BUILTIN_HOOK.into(), stage: Stage::Prestart, command: self.command.clone() }
    }

    /// A configuration for this run, if the host's own would let an image choose its GPUs.
    pub(super) fn run_config(&self) -> Option<HookConfig> {
        let text = self.config.as_ref()?.for_run()?;
        Some(HookConfig { hook: BUILTIN_HOOK, file: "nvidia-config.toml", text })
    }
}

/// Returns the path of a toolkit program on the host.
pub(super) fn find(root: &Path, name: &str) -> Option<PathBuf> {
    HOOK_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| inside(root, path).is_file())
}

/// Returns the hook's program and configuration, whether or not they can be used.
pub(super) fn installed(root: &Path) -> Option<(PathBuf, Option<Config>)> {
    let program = HOOK_NAMES.iter().find_map(|name| find(root, name))?;
    let config = Config::read(root, &program);
    Some((program, config))
}

/// Returns the command of the built-in definition, with the program's path on this host.
pub(super) fn hook(root: &Path) -> Result<Hook, Missing> {
    let Some((program, config)) = installed(root) else {
        return Err(Missing::Hook { searched: HOOK_DIRS.map(|dir| format!("`{dir}`")).join(", ") });
    };
    if let Some(config) = &config
        && let Some(mode) = config.refusing_mode()
    {
        return Err(Missing::Mode { mode: mode.to_owned(), config: config.file.clone() });
    }
    let own_dir = program.parent().filter(|dir| dir.starts_with("/usr/local/nvidia"));
    find_tool(root, &program, own_dir, config.as_ref())?;
    let builtin = hook::builtin().into_iter().find(|definition| definition.name == BUILTIN_HOOK);
    let mut command = builtin.map(|definition| definition.command).unwrap_or_else(|| hook::Command {
        path: PathBuf::new(),
        args: vec![String::new(), "prestart".into()],
        env: vec![hook::DEFAULT_PATH.into()],
        timeout: None,
    });
    if let (Some(first), Some(name)) = (command.args.first_mut(), program.file_name()) {
        *first = name.to_string_lossy().into_owned();
    }
    if let Some(dir) = own_dir {
        command.env = command.env.iter().map(|line| add_to_path(line, dir)).collect();
    }
    // The program was found below the driver's root, and runs from there.
    command.path = inside(root, &program);
    Ok(Hook { command, config })
}

/// Checks for the tool that the hook runs: the one that its configuration names, or else the first in its PATH.
fn find_tool(root: &Path, program: &Path, own_dir: Option<&Path>, config: Option<&Config>) -> Result<(), Missing> {
    if let Some((tool, config)) = config.and_then(|config| Some((config.tool()?, config))) {
        return match inside(root, tool).is_file() {
            true => Ok(()),
            false => Err(Missing::ToolAt { tool: tool.to_owned(), config: config.file.clone() }),
        };
    }
    let mut dirs = TOOL_DIRS.iter().map(Path::new).chain(own_dir);
    match dirs.any(|dir| inside(root, &dir.join(TOOL)).is_file()) {
        true => Ok(()),
        false => Err(Missing::Tool { hook: program.to_owned() }),
    }
}

fn add_to_path(line: &str, dir: &Path) -> String {
    match line.strip_prefix("PATH=") {
        Some(path) => format!("PATH={path}:{}", dir.display()),
        None => line.to_owned(),
    }
}
