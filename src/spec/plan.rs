//! The complete plan of one container, and its conversion to an OCI runtime spec (opencontainers/runtime-spec 1.2).

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::device::{Device, DeviceRule, creation_rules, device_rules};
use super::limits::Limits;
use super::process::Process;
use super::seccomp::{Action, Compare, Profile};
use crate::report::Explain;

/// The stages at which a hook can run, in the order of the runtime spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Stage {
    /// Returns the key of the stage in the spec's `hooks` and in the `stages` of a hooks.d file.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A hook command. The spec's `timeout` is never set because libcontainer would spawn a thread for it. gpurun's hook
/// shim enforces the timeout instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookEntry {
    pub path: PathBuf,
    /// The arguments, starting with the program name.
    pub args: Vec<String>,
    pub env: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// An absolute path. Links are already resolved in the container's root.
    pub destination: PathBuf,
    /// The file system type, such as `bind` or `tmpfs`.
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's network namespace.
    Host,
    /// The network namespace at this path.
    Path(PathBuf),
}

/// An IPC or PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// The container's own.
    New,
    Host,
    /// The namespace at this path.
    Path(PathBuf),
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// PID 1.
    pub process: Process,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// An absolute path. Hooks would resolve a relative path against their own working directory.
    pub rootfs: PathBuf,
    pub readonly_root: bool,
    pub tty: bool,
    pub limits: Limits,
    pub devices: Vec<Device>,
    /// Devices that the filter allows although the runtime creates no node for them. A hook creates these nodes.
    pub allowed: Vec<Device>,
    /// More rules of the device filter.
    pub rules: Vec<DeviceRule>,
    pub mounts: Vec<Mount>,
    /// Size in bytes of /dev/shm, or `None` for a container without it.
    pub shm_size: Option<u64>,
    pub network: Network,
    pub pid: Namespace,
    pub ipc: Namespace,
    pub uts_host: bool,
    pub cgroup_host: bool,
    /// Every device is allowed, and /sys and the cgroup are writable.
    pub privileged: bool,
    /// No path is masked or read-only.
    pub unmasked: bool,
    pub cgroup_path: String,
    /// The container's cgroup directories under version 1: the name of each mount point and the directory. Empty under
    /// version 2.
    pub v1_cgroups: Vec<(String, PathBuf)>,
    pub hooks: Vec<(Stage, HookEntry)>,
    pub sysctls: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    /// Additional paths to mask, if they exist.
    pub masked_paths: Vec<String>,
    /// The profile that the filter of `process` was compiled from, for readers of the spec.
    pub seccomp: Option<Profile>,
}

impl Plan {
    /// Returns the device filter rules for the nodes that the runtime creates and for the devices that a hook may add.
    #[must_use]
    pub(crate) fn device_rules(&self) -> Vec<DeviceRule> {
        self.with_allowed(device_rules(&self.devices))
    }

    /// Returns the rules that apply while the runtime creates the nodes, if they differ.
    #[must_use]
    pub(crate) fn creation_rules(&self) -> Option<Vec<DeviceRule>> {
        creation_rules(&self.devices).filter(|_| !self.privileged).map(|rules| self.with_allowed(rules))
    }

    fn with_allowed(&self, mut rules: Vec<DeviceRule>) -> Vec<DeviceRule> {
        if self.privileged {
            return vec![DeviceRule { allow: true, kind: 'a', major: None, minor: None, access: "rwm".into() }];
        }
        rules.extend(self.allowed.iter().map(|device| DeviceRule {
            allow: true,
            kind: device.kind,
            major: Some(device.major),
            minor: Some(device.minor),
            access: device.access.clone(),
        }));
        rules.extend(self.rules.iter().cloned());
        rules
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the container's OCI spec cannot be built")]
pub(crate) struct SpecError(#[source] serde_json::Error);

impl Explain for SpecError {}

/// Paths to mask: docker's list as of 2026. The launch module adds the `thermal_throttle` directories because each CPU
/// has its own.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that are read-only in a container.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Returns the mounts that every container has, in docker's order.
fn default_mounts(plan: &Plan) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let sys = if plan.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    mounts.extend(cgroup_mounts(&plan.v1_cgroups, sys));
    mounts.push(mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    mounts.extend(plan.shm_size.map(|size| {
        let size = format!("size={size}");
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", size] })
    }));
    mounts
}

/// Returns the mounts of the container's own cgroup, which are read-only unless `mode` is `rw`. Under version 1,
/// libcontainer mounts every controller writable and ignores the options, so that a container could raise its own
/// limits. Read-only bind mounts of the same directories avoid this.
fn cgroup_mounts(v1: &[(String, PathBuf)], mode: &str) -> Vec<Value> {
    let general = ["nosuid", "noexec", "nodev", "relatime", mode];
    let at = "/sys/fs/cgroup";
    if v1.is_empty() {
        return vec![json!({ "destination": at, "type": "cgroup", "source": "cgroup", "options": general })];
    }
    // The tmpfs is writable while the mount points are created. `readonlyPaths` makes it read-only afterwards.
    let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
    let mut mounts = vec![json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": options })];
    mounts.extend(v1.iter().map(|(name, dir)| {
        let options: Vec<&str> = ["rbind"].into_iter().chain(general).collect();
        json!({ "destination": format!("{at}/{name}"), "type": "bind", "source": dir, "options": options })
    }));
    mounts
}

/// Returns all mounts, parents before children. A mount of the plan replaces the runtime's mount at the same
/// destination (for example /dev/shm).
fn mounts(plan: &Plan) -> Vec<Value> {
    let mut mounts: Vec<(usize, Value)> = Vec::new();
    let depth = |path: &Path| path.components().count();
    for mount in default_mounts(plan) {
        let destination = Path::new(mount["destination"].as_str().unwrap_or_default());
        if !plan.mounts.iter().any(|other| other.destination == destination) {
            mounts.push((depth(destination), mount));
        }
    }
    mounts.extend(plan.mounts.iter().map(|mount| {
        let Mount { destination, kind, source, options } = mount;
        (depth(destination), json!({ "destination": destination, "type": kind, "source": source, "options": options }))
    }));
    mounts.sort_by_key(|(depth, _)| *depth);
    mounts.into_iter().map(|(_, mount)| mount).collect()
}

/// Returns whether a device node would be created in a directory of the host or would be hidden by a mount. In both
/// cases the runtime does not create the node, and the mount provides it. The device filter rule remains.
fn is_mounted(plan: &Plan, path: &str) -> bool {
    let in_host = |mount: &Mount| mount.kind == "bind" && Path::new(path).starts_with(&mount.destination);
    plan.mounts.iter().any(|mount| mount.destination == Path::new(path) || in_host(mount))
}

/// Generates the OCI spec of a plan.
pub(crate) fn oci_spec(plan: &Plan) -> Result<Spec, SpecError> {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": plan.process.oci(plan.tty),
        "root": { "path": plan.rootfs, "readonly": plan.readonly_root },
        "mounts": mounts(plan),
        "annotations": object(&plan.annotations),
        "linux": {
            "cgroupsPath": plan.cgroup_path,
            "namespaces": namespaces(plan),
            "devices": plan.devices.iter().filter(|device| !is_mounted(plan, &device.path)).map(|device| json!({
                "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
                "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })).collect::<Vec<_>>(),
            "resources": resources(plan),
            "rootfsPropagation": "private",
            "maskedPaths": masked_paths(plan),
            "readonlyPaths": readonly_paths(plan),
            "sysctl": object(&plan.sysctls),
        },
        "hooks": hooks(&plan.hooks),
    });
    if let Some(hostname) = &plan.hostname {
        spec["hostname"] = json!(hostname);
    }
    if let Some(domainname) = &plan.domainname {
        spec["domainname"] = json!(domainname);
    }
    if let Some(profile) = &plan.seccomp {
        spec["linux"]["seccomp"] = seccomp(profile);
    }
    serde_json::from_value(spec).map_err(SpecError)
}

fn masked_paths(plan: &Plan) -> Vec<&str> {
    let more = plan.masked_paths.iter().map(String::as_str);
    if plan.unmasked { Vec::new() } else { MASKED.into_iter().chain(more).collect() }
}

fn readonly_paths(plan: &Plan) -> Vec<&str> {
    // See `cgroup_mounts`.
    let cgroup = (!plan.v1_cgroups.is_empty() && !plan.privileged).then_some("/sys/fs/cgroup");
    let usual = READONLY.into_iter().filter(|_| !plan.unmasked);
    usual.chain(cgroup).collect()
}

fn object(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

fn namespaces(plan: &Plan) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    let one = |kind: &str, namespace: &Namespace| match namespace {
        Namespace::New => Some(json!({ "type": kind })),
        Namespace::Host => None,
        Namespace::Path(path) => Some(json!({ "type": kind, "path": path })),
    };
    list.extend(one("ipc", &plan.ipc));
    if !plan.uts_host {
        list.push(json!({ "type": "uts" }));
    }
    if !plan.cgroup_host {
        list.push(json!({ "type": "cgroup" }));
    }
    list.extend(one("pid", &plan.pid));
    match &plan.network {
        Network::Host => {}
        Network::Path(path) => list.push(json!({ "type": "network", "path": path })),
    }
    list.into()
}

fn resources(plan: &Plan) -> Value {
    let limits = &plan.limits;
    let devices: Vec<Value> = plan
        .device_rules()
        .into_iter()
        .map(|rule| {
            let mut entry = json!({ "allow": rule.allow, "type": rule.kind.to_string(), "access": rule.access });
            if let Some(major) = rule.major {
                entry["major"] = json!(major);
            }
            if let Some(minor) = rule.minor {
                entry["minor"] = json!(minor);
            }
            entry
        })
        .collect();
    super::resources::oci(limits, devices)
}

fn hooks(hooks: &[(Stage, HookEntry)]) -> Value {
    let mut stages = serde_json::Map::new();
    for (stage, hook) in hooks {
        let list = stages.entry(stage.key()).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({ "path": hook.path, "args": hook.args, "env": hook.env }));
        }
    }
    stages.into()
}

/// Renders the profile for readers of config.json. The filter that is loaded is compiled from the same rules.
fn seccomp(profile: &Profile) -> Value {
    let action = |action: Action| match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
        Action::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::Log => ("SCMP_ACT_LOG", None),
    };
    let syscalls: Vec<Value> = profile
        .rules
        .iter()
        .filter(|rule| !rule.names.is_empty())
        .map(|rule| {
            let (name, errno) = action(rule.action);
            let args: Vec<Value> = rule
                .conditions
                .iter()
                .map(|condition| {
                    let (op, value, second) = match condition.compare {
                        Compare::Equal(value) => ("SCMP_CMP_EQ", value, 0),
                        Compare::NotEqual(value) => ("SCMP_CMP_NE", value, 0),
                        Compare::Less(value) => ("SCMP_CMP_LT", value, 0),
                        Compare::LessOrEqual(value) => ("SCMP_CMP_LE", value, 0),
                        Compare::Greater(value) => ("SCMP_CMP_GT", value, 0),
                        Compare::GreaterOrEqual(value) => ("SCMP_CMP_GE", value, 0),
                        Compare::Masked { mask, value } => ("SCMP_CMP_MASKED_EQ", mask, value),
                    };
                    json!({ "index": condition.argument, "op": op, "value": value, "valueTwo": second })
                })
                .collect();
            let mut entry = json!({ "names": rule.names, "action": name });
            if let Some(errno) = errno {
                entry["errnoRet"] = json!(errno);
            }
            if !args.is_empty() {
                entry["args"] = args.into();
            }
            entry
        })
        .collect();
    let (name, errno) = action(profile.default);
    let architectures: &[&str] = if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    };
    let mut value = json!({ "defaultAction": name, "architectures": architectures, "syscalls": syscalls });
    if let Some(errno) = errno {
        value["defaultErrnoRet"] = json!(errno);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Capabilities, Swap};

    fn plan() -> Plan {
        Plan {
            process: Process {
                args: vec!["sh".into()],
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                uid: 0,
                gid: 0,
                groups: vec![],
                capabilities: Capabilities::default(),
                rlimits: vec![],
                no_new_privileges: true,
                seccomp: None,
                oom_score_adj: None,
                umask: None,
            },
            hostname: Some("box".into()),
            domainname: None,
            rootfs: "/run/gpurun/ID/rootfs".into(),
            readonly_root: false,
            tty: false,
            limits: Limits::default(),
            devices: vec![],
            allowed: vec![],
            rules: vec![],
            mounts: vec![],
            shm_size: Some(64 << 20),
            network: Network::Path("/proc/self/fd/9".into()),
            pid: Namespace::New,
            ipc: Namespace::New,
            uts_host: false,
            cgroup_host: false,
            privileged: false,
            unmasked: false,
            cgroup_path: "/gpurun/ID".into(),
            v1_cgroups: Vec::new(),
            hooks: vec![],
            sysctls: vec![],
            annotations: vec![],
            masked_paths: vec![],
            seccomp: None,
        }
    }

    /// The spec with sorted capability sets, because their order is not defined.
    fn stable(plan: &Plan) -> Value {
        let mut spec = serde_json::to_value(oci_spec(plan).unwrap()).unwrap();
        for set in spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
            set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        spec
    }

    #[test]
    fn a_plain_container() {
        insta::assert_json_snapshot!(stable(&plan()));
    }

    #[test]
    fn a_limited_container_with_a_gpu_hook() {
        let mut plan = plan();
        plan.process.uid = 1000;
        plan.limits = Limits {
            memory: Some(2 << 30),
            swap: Some(Swap::Total(2 << 30)),
            memory_reservation: Some(1 << 30),
            cpu_quota_us: Some(150_000),
            cpu_period_us: Some(100_000),
            cpuset_cpus: Some("0-1".parse().unwrap()),
            cpuset_mems: None,
            pids: Some(Some(100)),
            ..Limits::default()
        };
        plan.devices = vec![Device {
            path: "/dev/nvidia0".into(),
            kind: 'c',
            major: 195,
            minor: 0,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        }];
        let hook = HookEntry {
            path: "/proc/self/exe".into(),
            args: vec!["gpurun".into(), "hook-shim".into()],
            env: vec!["PATH=/usr/bin".into()],
        };
        plan.hooks = vec![(Stage::Prestart, hook)];
        plan.network = Network::Host;
        plan.pid = Namespace::Host;
        let spec = stable(&plan);
        insta::assert_json_snapshot!(json!({
            "process": spec["process"], "resources": spec["linux"]["resources"], "devices": spec["linux"]["devices"],
            "namespaces": spec["linux"]["namespaces"], "hooks": spec["hooks"],
        }));
    }

    #[test]
    fn the_profile_stands_in_the_spec() {
        let mut plan = plan();
        plan.seccomp = Some(Profile::docker_default(&plan.process.capabilities));
        let spec = serde_json::to_value(oci_spec(&plan).unwrap()).unwrap();
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert!(spec["linux"]["seccomp"]["syscalls"].as_array().unwrap().len() > 10);
    }
}
