//! The GPU edits: what an injection changes in a container. `launch` applies them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::inventory::Given;
use super::opens::Opens;
use crate::hook::Chosen;
use crate::spec::{Device, Rlimit};

/// A mount in the container: a file or directory of the host, or a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileMount {
    pub source: PathBuf,
    /// Path in the container. Symbolic links in it are not resolved yet.
    pub destination: PathBuf,
    pub kind: String,
    pub options: Vec<String>,
}

/// A library of the driver, to be mounted where the container's dynamic linker finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Library {
    /// Path on the host, below the driver's root directory.
    pub source: PathBuf,
    /// `libcuda.so.550.54.15`
    pub file: String,
    /// Names of the symbolic links to it: `libcuda.so.1`, `libcuda.so`.
    pub names: BTreeSet<String>,
    /// [`super::ldcache::NATIVE`] or [`super::ldcache::I386`].
    pub flags: u32,
}

/// A configuration file for one hook, for this run only. `launch` writes it to the container's run directory and passes
/// its path to the hook as `-config PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookConfig {
    /// Name of the hook among [`Edits::hooks`].
    pub hook: &'static str,
    /// Name of the file.
    pub file: &'static str,
    pub text: String,
}

/// The edits to a container that inject its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Edits {
    /// Variables that override the image's and the caller's.
    pub env: Vec<(String, String)>,
    /// Variables that are set only if neither the image nor the caller sets them.
    pub default_env: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    /// In execution order.
    pub hooks: Vec<Chosen>,
    /// Program names of hooks that must not run a second time: those that the vendor's own definitions run.
    pub replaced_hooks: Vec<&'static str>,
    pub devices: Vec<Device>,
    /// Nodes that a vendor's hook creates in the container. gpurun allows them in the device filter, but does not
    /// create them.
    pub allowed: Vec<Device>,
    /// Device nodes to check before the container's process starts: those that it must be able to open, and those that
    /// it must not.
    pub opens: Option<Opens>,
    pub hook_config: Option<HookConfig>,
    pub mounts: Vec<FileMount>,
    pub libraries: Vec<Library>,
    /// Paths to mask in the container, if they exist.
    pub masked: Vec<String>,
    pub gids: Vec<u32>,
    /// Default limits. An explicit `--ulimit` of the same name overrides them, and a hard limit of the host clamps
    /// them.
    pub rlimits: Vec<Rlimit>,
    pub given: Vec<Given>,
    /// A line for the caller that says which GPUs were selected and how they are injected.
    pub summary: Option<String>,
    /// Notices for the caller about behavior that may be unexpected.
    pub notices: Vec<String>,
}

impl Edits {
    /// Returns all hooks of the container in execution order: the hooks of hooks.d that matched, and those of the
    /// edits. Definitions of the host that run a vendor's hook are dropped, because they would run it a second time.
    #[must_use]
    pub(crate) fn combine(&self, matched: Vec<Chosen>) -> Vec<Chosen> {
        let is_replaced = |hook: &Chosen| {
            let program = hook.command.path.file_name();
            program.is_some_and(|program| self.replaced_hooks.iter().any(|name| program == *name))
        };
        let mut all = self.hooks.clone();
        all.extend(matched.into_iter().filter(|hook| !is_replaced(hook)));
        all.sort_by_key(|hook| hook.stage);
        all
    }

    /// Merges further edits. On a conflict, the further edits win.
    pub(super) fn add(&mut self, more: Self) {
        self.env.retain(|(name, _)| !more.env.iter().any(|(other, _)| other == name));
        self.env.extend(more.env);
        self.hooks.extend(more.hooks);
        self.devices.retain(|device| !more.devices.iter().any(|other| other.path == device.path));
        self.devices.extend(more.devices);
        self.mounts.retain(|mount| !more.mounts.iter().any(|other| other.destination == mount.destination));
        self.mounts.extend(more.mounts);
        self.gids.extend(more.gids.into_iter().filter(|gid| !self.gids.contains(gid)).collect::<Vec<_>>());
    }
}
