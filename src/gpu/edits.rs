//! The GPU edits: what an injection changes in a container. `launch` applies them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::inventory::Given;
use super::opens::Opens;
use crate::hook::Chosen;
use crate::request::{Mounted, check_destination, clean};
use crate::spec::{Device, Rlimit, SeenLine};

/// A mount in the container: a file or directory of the host, or a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileMount {
    pub source: PathBuf,
    /// Path in the container. Symbolic links in it are not resolved yet.
    pub destination: PathBuf,
    pub kind: String,
    pub options: Vec<String>,
}

/// The options of a mount whose file can be in a layer. The first three are required.
const USUAL: [&str; 7] = ["ro", "nosuid", "nodev", "bind", "rbind", "private", "rprivate"];
/// Where a layer may have files. gpurun's own files, the runtime's file systems and volumes are elsewhere.
const LAYERED: [&str; 8] = ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/etc"];
/// gpurun's own files below these.
const OWN: [&str; 4] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/ld.so.cache"];

impl FileMount {
    /// Whether the file can be in a layer above the image instead of being mounted.
    pub(crate) fn is_layered(&self) -> bool {
        let destination = clean(&self.destination);
        let has = |wanted: &&str| self.options.iter().any(|option| option == wanted);
        self.kind == "bind"
            && self.options.iter().all(|option| USUAL.contains(&option.as_str()))
            && USUAL[..3].iter().all(has)
            && LAYERED.iter().any(|top| destination.starts_with(top) && destination != Path::new(top))
            && !OWN.iter().any(|own| destination == Path::new(own))
            && check_destination(&destination, Mounted::Bind { source: &self.source, read_only: true }).is_ok()
            && self.source.is_file()
    }
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

/// In [`Device::uid`] and [`Device::gid`]: the container's user, who is not known yet. It is no valid id.
pub(super) const THE_USER: (u32, u32) = (u32::MAX, u32::MAX);

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
    /// Lines of the kernel's files that the container sees with another value. Each has a hook that does the same.
    pub lines: Vec<SeenLine>,
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

    /// Gives the device nodes that belong to the container's user to this user and group.
    pub(crate) fn give_nodes_to(&mut self, (uid, gid): (u32, u32)) {
        for device in self.devices.iter_mut().chain(&mut self.allowed) {
            device.uid = if device.uid == THE_USER.0 { uid } else { device.uid };
            device.gid = if device.gid == THE_USER.1 { gid } else { device.gid };
        }
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
