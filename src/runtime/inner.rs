//! The spec that libcontainer reads.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::unistd::Gid;
use serde_json::Value;

use super::late::{self, Late};
use super::{CreateRequest, RuntimeError, early};
use crate::cgroup::{Entrance, OpenEntrance};
use crate::spec::{Process, SeenLine};

const SPEC: &str = "config.json";

/// The spec that libcontainer reads, and what gpurun reads from it.
#[derive(Debug)]
pub(super) struct Inner {
    /// The directory with the spec.
    pub(super) dir: PathBuf,
    /// The process's arguments.
    pub(super) args: Vec<String>,
    pub(super) cwd: PathBuf,
    /// Set if libcontainer does not put the container into its cgroup.
    entrance: Option<Entrance>,
    spec: Value,
    /// The hooks that the container's first process makes unnecessary.
    replaced_hooks: Option<Value>,
    lines: Vec<SeenLine>,
    /// Held until the container has its copies of these mounts.
    _early: early::Made,
}

/// Makes a copy of the spec for libcontainer, with the changes that work around its bugs, and the mounts that need no
/// process of the container.
pub(super) fn adapt_spec(request: &CreateRequest<'_>, entrance: Option<Entrance>) -> Result<Inner, RuntimeError> {
    let path = request.bundle.join(SPEC);
    let io = |action: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| RuntimeError::Io { action, path, source }
    };
    let bytes = std::fs::read(&path).map_err(io("read", &path))?;
    let mut spec: Value =
        serde_json::from_slice(&bytes).map_err(|source| RuntimeError::Spec { path: path.clone(), source })?;
    let args = spec["process"]["args"].as_array().into_iter().flatten();
    let args = args.filter_map(|arg| arg.as_str().map(str::to_owned)).collect();
    let cwd = spec["process"]["cwd"].as_str().unwrap_or("/").into();
    adapt(&mut spec, request);
    let dir = request.state_root.join("bundle");
    std::fs::create_dir_all(&dir).map_err(io("create the directory", &dir))?;
    let cgroups = request.state_root.join("cgroups");
    let early = early::make(&mut spec, &cgroups);
    // libcontainer looks for version 2 at one path only.
    let is_usual = |entrance: &Entrance| match entrance {
        Entrance::Directory { mount, .. } => mount == Path::new(early::CGROUPS),
        Entrance::Tasks(_) => true,
    };
    let entrance = entrance.filter(is_usual);
    // Without faccessat2, libcontainer recurses without end where it finds no procfs of its own.
    let hooks = has_hooks(&spec, &[]);
    let is_late = !has_hooks(&spec, &request.lines.iter().map(|line| line.hook).collect::<Vec<_>>())
        && is_late(&spec, request.process);
    let entrance =
        entrance.filter(|_| (!hooks || is_late) && !has_binds(&spec, &cgroups) && crate::sys::access::has_faccessat2());
    let replaced_hooks = entrance.as_ref().and_then(|_| spec.as_object_mut()?.remove("hooks"));
    let lines = request.lines.to_vec();
    let inner = Inner { dir, args, cwd, entrance, spec, replaced_hooks, lines, _early: early };
    if !inner.is_apart() {
        inner.write_own()?;
    }
    Ok(inner)
}

impl Inner {
    /// Whether a process of the container's cgroup creates the container (`creator`).
    pub(super) fn is_apart(&self) -> bool {
        self.entrance.is_some()
    }

    /// Opens the way into the cgroup.
    pub(super) fn open_entrance(&self) -> io::Result<Option<OpenEntrance>> {
        self.entrance.as_ref().map(Entrance::open).transpose()
    }

    /// Opens the cgroup in which the process is to be created, under version 2.
    pub(super) fn open_entrance_dir(&self) -> io::Result<Option<OwnedFd>> {
        Ok(self.entrance.as_ref().map(Entrance::open_dir).transpose()?.flatten())
    }

    /// Whether the calling process has the CPUs of the cgroup in which it was created.
    pub(super) fn has_sets(&self) -> bool {
        self.entrance.as_ref().is_none_or(Entrance::has_sets)
    }

    /// Removes from the spec what the container's first process does late.
    pub(super) fn take_late(&mut self, process: &Process) -> io::Result<Option<Late>> {
        is_late(&self.spec, process).then(|| late::take(&mut self.spec, process, &self.lines, &self.dir)).transpose()
    }

    /// Writes the spec for a process that is in the cgroup. libcontainer reads it next.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.spec["linux"]["cgroupsPath"] = "/".into();
        std::fs::write(self.dir.join(SPEC), self.spec.to_string())
    }

    /// Writes the spec for libcontainer in this process, which puts the container into its cgroup.
    fn write_own(&self) -> Result<(), RuntimeError> {
        let path = self.dir.join(SPEC);
        std::fs::write(&path, self.spec.to_string()).map_err(|source| RuntimeError::Io {
            action: "write",
            path,
            source,
        })
    }

    /// Returns to libcontainer's own way into the cgroup.
    pub(super) fn without_entrance(&mut self) -> Result<(), RuntimeError> {
        self.entrance = None;
        if let Some(hooks) = self.replaced_hooks.take() {
            self.spec["hooks"] = hooks;
        }
        self.write_own()
    }

    /// Enters the namespaces that the container's mounts depend on, makes these mounts, and sets the groups. The
    /// container's first process inherits all of this from the calling one.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let (flags, paths) = take_namespaces(&mut self.spec);
        nix::sched::unshare(flags)?;
        for path in paths {
            nix::sched::setns(std::fs::File::open(path)?, CloneFlags::empty())?;
        }
        let groups = self.spec["process"]["user"].as_object_mut().and_then(|user| user.remove("additionalGids"));
        if let Some(groups) = groups {
            let groups: Vec<u32> = serde_json::from_value(groups)?;
            nix::unistd::setgroups(&groups.into_iter().map(Gid::from_raw).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Makes the mounts that depend on these namespaces. They end with the namespace of this process and of the
    /// container.
    pub(super) fn mount(&mut self) {
        if let Some(Entrance::Directory { dir, mount }) = &self.entrance {
            bind_cgroup(&mut self.spec, dir, mount);
        }
        std::mem::forget(early::make_in_namespaces(&mut self.spec));
    }
}

/// Under version 2, binds the directory of the cgroup instead of making a mount of the file system, which has the same
/// root in the container's cgroup namespace.
fn bind_cgroup(spec: &mut Value, dir: &Path, whole: &Path) {
    let has_namespace = |spec: &Value| {
        let mut namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
        namespaces.any(|namespace| namespace["type"] == "cgroup")
    };
    let source = if has_namespace(spec) { dir } else { whole };
    let mounts = spec["mounts"].as_array_mut().into_iter().flatten();
    for mount in mounts.filter(|mount| mount["type"] == "cgroup") {
        mount["type"] = "bind".into();
        mount["source"] = source.to_string_lossy().into();
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "relatime");
        }
    }
}

/// Removes the IPC namespace and the network namespace from a spec: the ones to create, and the paths of those to join.
/// Kernel parameters that belong to them are set by libcontainer, which then must know them.
fn take_namespaces(spec: &mut Value) -> (CloneFlags, Vec<PathBuf>) {
    let (mut flags, mut paths) = (CloneFlags::empty(), Vec::new());
    let has_parameters = spec["linux"]["sysctl"].as_object().is_some_and(|parameters| !parameters.is_empty());
    let Some(list) = spec["linux"]["namespaces"].as_array_mut().filter(|_| !has_parameters) else {
        return (flags, paths);
    };
    list.retain(|namespace| {
        match (namespace["type"].as_str(), namespace["path"].as_str()) {
            (Some("ipc"), None) => flags |= CloneFlags::CLONE_NEWIPC,
            (Some("ipc" | "network"), Some(path)) => paths.push(path.into()),
            _ => return true,
        }
        false
    });
    (flags, paths)
}

/// Removes what gpurun does itself.
fn adapt(spec: &mut Value, request: &CreateRequest<'_>) {
    // libcontainer would only warn about the filter. gpurun's executor loads it.
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("seccomp");
        linux.remove("resources");
        // For an empty list, it would check procfs.
        if linux.get("sysctl").and_then(Value::as_object).is_some_and(|parameters| parameters.is_empty()) {
            linux.remove("sysctl");
        }
    }
    let Some(process) = spec["process"].as_object_mut() else { return };
    process.remove("oomScoreAdj");
    if request.process.no_new_privileges {
        return;
    }
    process.remove("noNewPrivileges");
    if request.process.seccomp.is_none() {
        return;
    }
    // Loading a filter needs CAP_SYS_ADMIN. The bounding set stays as requested, because hooks may read it.
    for set in ["effective", "permitted"] {
        let held = process["capabilities"][set].as_array_mut();
        if let Some(held) = held.filter(|held| !held.iter().any(|name| name == "CAP_SYS_ADMIN")) {
            held.push("CAP_SYS_ADMIN".into());
        }
    }
}

/// Whether the container's first process does the late steps. libcontainer's terminals need its `/proc`, and so does a
/// working directory there.
fn is_late(spec: &Value, process: &Process) -> bool {
    spec["process"]["terminal"] != true && !process.cwd.starts_with("/proc")
}

/// Whether a spec has hooks besides these.
fn has_hooks(spec: &Value, besides: &[&str]) -> bool {
    let stages = spec["hooks"].as_object().into_iter().flat_map(serde_json::Map::values);
    let is_besides = |hook: &Value| {
        let args = hook["args"].as_array().into_iter().flatten();
        args.filter_map(Value::as_str).any(|arg| besides.contains(&arg))
    };
    stages.filter_map(Value::as_array).flatten().any(|hook| !is_besides(hook))
}

/// Whether libcontainer is left with a mount of a directory of the host, other than `cgroups`.
fn has_binds(spec: &Value, cgroups: &Path) -> bool {
    let is_bind = |mount: &Value| {
        let options = mount["options"].as_array().into_iter().flatten();
        mount["type"] == "bind" || options.into_iter().any(|option| option == "bind" || option == "rbind")
    };
    let of_host = |mount: &Value| mount["source"].as_str().map(Path::new) != Some(cgroups);
    spec["mounts"].as_array().into_iter().flatten().any(|mount| is_bind(mount) && of_host(mount))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hooks_and_directories_of_the_host_are_found() {
        let mount = |kind: &str, source: &str, option: &str| json!({ "mounts": [{ "type": kind, "source": source, "options": [option] }] });
        for (spec, binds) in [
            (mount("bind", "/run/c/cgroups", "rbind"), false),
            (mount("proc", "proc", "nosuid"), false),
            (mount("bind", "/sys/fs/cgroup", "ro"), true),
            (mount("none", "/data", "rbind"), true),
            (json!({}), false),
        ] {
            assert_eq!(has_binds(&spec, Path::new("/run/c/cgroups")), binds, "{spec}");
        }
        assert!(!has_hooks(&json!({ "hooks": { "prestart": [], "poststop": [] } }), &[]));
        assert!(!has_hooks(&json!({}), &[]));
        let one = json!({ "path": "/bin/true", "args": ["gpurun", "own"] });
        assert!(has_hooks(&json!({ "hooks": { "prestart": [], "poststop": [one] } }), &["other"]));
        assert!(!has_hooks(&json!({ "hooks": { "createContainer": [one] } }), &["own"]));
        assert!(has_hooks(&json!({ "hooks": { "createContainer": [one, { "path": "/bin/true" }] } }), &["own"]));
    }

    #[test]
    fn a_directory_of_version_2_is_bound() {
        let mount = json!({ "type": "cgroup", "source": "cgroup", "options": ["nosuid", "relatime", "ro"] });
        for (namespaces, source) in [(json!([{ "type": "cgroup" }]), "/c/gpurun/ID"), (json!([]), "/c")] {
            let mut spec = json!({ "mounts": [mount], "linux": { "namespaces": namespaces } });
            bind_cgroup(&mut spec, Path::new("/c/gpurun/ID"), Path::new("/c"));
            assert_eq!(spec["mounts"], json!([{ "type": "bind", "source": source, "options": ["nosuid", "ro"] }]));
        }
    }

    #[test]
    fn namespaces_of_mounts_are_taken_unless_parameters_need_them() {
        let namespaces = json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "network", "path": "/proc/9/fd/7" }]);
        let mut spec = json!({ "linux": { "namespaces": namespaces } });
        assert_eq!(take_namespaces(&mut spec), (CloneFlags::CLONE_NEWIPC, vec!["/proc/9/fd/7".into()]));
        assert_eq!(spec["linux"]["namespaces"], json!([{ "type": "mount" }]));
        let mut spec = json!({ "linux": { "namespaces": namespaces, "sysctl": { "net.ipv4.ip_forward": "1" } } });
        assert_eq!(take_namespaces(&mut spec), (CloneFlags::empty(), Vec::new()));
        assert_eq!(spec["linux"]["namespaces"], namespaces);
    }
}
