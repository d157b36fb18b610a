//! NVIDIA's own prestart hook: where it is, and how it is run. It reads from the container's environment what to do, and injects driver files and
//! device nodes itself; the device filter must stand on the container's cgroup before it runs.

use std::path::{Path, PathBuf};

use super::host::inside;
use crate::hook;

/// Names under which NVIDIA's prestart hook is installed; the second is what it was called before 1.0 of the toolkit's runtime hook.
pub(super) const HOOK_NAMES: [&str; 2] = ["nvidia-container-runtime-hook", "nvidia-container-toolkit"];
const HOOK_DIRS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/local/nvidia/toolkit"];
/// The built-in definition's name (hooks/).
pub(super) const BUILTIN_HOOK: &str = "50-nvidia-prestart";

/// What is missing for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("NVIDIA's container hook is not installed (no `nvidia-container-runtime-hook` in {searched})")]
    Hook { searched: String },
    #[error("NVIDIA's `nvidia-container-cli`, which the hook runs, is not installed")]
    Cli,
    #[error("NVIDIA's toolkit is set to `mode = \"{mode}\"` in `{CONFIG}`, and its hook refuses to run then")]
    Mode { mode: String },
}

const CONFIG: &str = "/etc/nvidia-container-runtime/config.toml";

/// A program of the toolkit, as a path of the host.
pub(super) fn find(root: &Path, name: &str) -> Option<PathBuf> {
    HOOK_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| inside(root, path).is_file())
}

/// The built-in definition's command, with the program where this host has it.
pub(super) fn command(root: &Path) -> Result<hook::Command, Missing> {
    let Some(program) = HOOK_NAMES.iter().find_map(|name| find(root, name)) else {
        return Err(Missing::Hook { searched: HOOK_DIRS.map(|dir| format!("`{dir}`")).join(", ") });
    };
    // The hook's own configuration may name another place for its tool; only a host without that file is judged by the usual places.
    let config = std::fs::read_to_string(inside(root, Path::new(CONFIG))).ok();
    if find(root, "nvidia-container-cli").is_none() && config.is_none() {
        return Err(Missing::Cli);
    }
    if let Some(mode) = config.as_deref().and_then(refusing_mode) {
        return Err(Missing::Mode { mode });
    }
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
    if let Some(dir) = program.parent().filter(|dir| dir.starts_with("/usr/local/nvidia")) {
        command.env = command.env.iter().map(|line| add_to_path(line, dir)).collect();
    }
    // Found below the driver's root, and run from there.
    command.path = inside(root, &program);
    Ok(command)
}

/// The mode in which the hook would only tell to use NVIDIA's own runtime: anything but `legacy` and `auto` that was set by hand.
fn refusing_mode(config: &str) -> Option<String> {
    let (mut section, mut mode, mut skip) = (String::new(), None, false);
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            match (section.as_str(), key) {
                ("nvidia-container-runtime", "mode") => mode = Some(value.trim_matches('"').to_owned()),
                ("nvidia-container-runtime-hook", "skip-mode-detection") => skip = value == "true",
                _ => {}
            }
        }
    }
    mode.filter(|mode| !skip && !["legacy", "auto", ""].contains(&mode.as_str()))
}

fn add_to_path(line: &str, dir: &Path) -> String {
    match line.strip_prefix("PATH=") {
        Some(path) => format!("PATH={path}:{}", dir.display()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolkit_that_is_set_to_cdi_is_not_asked() {
        let config = |mode: &str, skip: &str| {
            format!(
                "#mode = \"x\"\n[nvidia-container-cli]\nmode = \"y\"\n[nvidia-container-runtime]\nmode = \"{mode}\"\n\n[nvidia-container-runtime-hook]\n{skip}\n"
            )
        };
        assert_eq!(refusing_mode(&config("cdi", "")).as_deref(), Some("cdi"));
        assert_eq!(refusing_mode(&config("cdi", "skip-mode-detection = true")), None);
        for mode in ["auto", "legacy", ""] {
            assert_eq!(refusing_mode(&config(mode, "")), None, "{mode}");
        }
        assert_eq!(refusing_mode(""), None);
    }
}
