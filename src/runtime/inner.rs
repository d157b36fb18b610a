//! The spec that the container is created from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::first::{self, Own};
use super::{CreateRequest, RuntimeError, early};
use crate::cgroup::Entrance;

const SPEC: &str = "config.json";

/// The spec that is left when the early mounts are made, and what gpurun reads from it.
#[derive(Debug)]
pub(super) struct Inner {
    /// The directory with the spec that libcontainer reads.
    pub(super) dir: PathBuf,
    /// The process's arguments.
    pub(super) args: Vec<String>,
    pub(super) cwd: PathBuf,
    /// The spec for libcontainer.
    spec: Value,
    /// Set if the container can be created without libcontainer (`first`).
    pub(super) own: Option<Own>,
    /// Held until the container has its copies of these mounts.
    _early: early::Made,
}

/// Makes a copy of the spec, with the changes that work around bugs of libcontainer, and the mounts that need no process
/// of the container.
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
    let has_dev = has_own_dev(&spec);
    let early = early::make(&mut spec, &cgroups);
    let is_simple = has_dev && !has_hooks(&spec) && !has_binds(&spec, &cgroups);
    let own = entrance.filter(|_| is_simple).map(|entrance| own(&spec, entrance));
    let own = own.filter(|own| first::can(request, &own.spec));
    let inner = Inner { dir, args, cwd, spec, own, _early: early };
    if inner.own.is_none() {
        inner.write()?;
    }
    Ok(inner)
}

impl Inner {
    /// Writes the spec for libcontainer.
    pub(super) fn write(&self) -> Result<(), RuntimeError> {
        let path = self.dir.join(SPEC);
        std::fs::write(&path, self.spec.to_string()).map_err(|source| RuntimeError::Io {
            action: "write",
            path,
            source,
        })
    }
}

/// The spec for `first`. Under version 2, it binds the directory of the cgroup instead of making a mount of the file
/// system, which has the same root in the container's cgroup namespace.
fn own(spec: &Value, entrance: Entrance) -> Own {
    let mut spec = spec.clone();
    if let Entrance::Directory { dir, mount } = &entrance {
        let source = if first::has_namespace(&spec, "cgroup") { dir } else { mount };
        let mounts = spec["mounts"].as_array_mut().into_iter().flatten();
        for mount in mounts.filter(|mount| mount["type"] == "cgroup") {
            mount["type"] = "bind".into();
            mount["source"] = source.to_string_lossy().into();
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "relatime");
            }
        }
    }
    Own { entrance, spec }
}

/// Whether `/dev` is a tmpfs of the container.
fn has_own_dev(spec: &Value) -> bool {
    let mut mounts = spec["mounts"].as_array().into_iter().flatten();
    mounts.any(|mount| mount["destination"] == "/dev" && mount["type"] == "tmpfs")
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

fn has_hooks(spec: &Value) -> bool {
    let stages = spec["hooks"].as_object().into_iter().flat_map(serde_json::Map::values);
    stages.filter_map(Value::as_array).any(|hooks| !hooks.is_empty())
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
        assert!(!has_hooks(&json!({ "hooks": { "prestart": [], "poststop": [] } })));
        assert!(!has_hooks(&json!({})));
        assert!(has_hooks(&json!({ "hooks": { "prestart": [], "poststop": [{ "path": "/bin/true" }] } })));
    }

    #[test]
    fn a_directory_of_version_2_is_bound() {
        let mount = json!({ "type": "cgroup", "source": "cgroup", "options": ["nosuid", "relatime", "ro"] });
        let mut spec = json!({ "mounts": [mount], "linux": { "namespaces": [{ "type": "cgroup" }] } });
        let entrance = Entrance::Directory { dir: "/c/gpurun/ID".into(), mount: "/c".into() };
        let bound = |source: &str| json!([{ "type": "bind", "source": source, "options": ["nosuid", "ro"] }]);
        assert_eq!(own(&spec, entrance.clone()).spec["mounts"], bound("/c/gpurun/ID"));
        spec["linux"]["namespaces"] = json!([]);
        assert_eq!(own(&spec, entrance).spec["mounts"], bound("/c"));
        assert_eq!(own(&spec, Entrance::Tasks(Vec::new())).spec, spec);
    }
}
