//! The complete intent for one container, and its OCI runtime spec (opencontainers/runtime-spec 1.2).

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::capabilities::Capabilities;
use super::device::{Device, device_rules};
use super::limits::Limits;
use super::seccomp::{Action, Compare, Profile};
use crate::report::Explain;

/// When a hook runs: the runtime spec's stages, in their order.
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
    /// Its key in the spec's `hooks`, and in hooks.d's `stages`.
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

/// A hook's command. The spec's `timeout` is never set: libcontainer would spawn a thread for it (gpurun's shim keeps the time).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookEntry {
    pub path: PathBuf,
    /// With the program's own name first.
    pub args: Vec<String>,
    pub env: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute, its links resolved in the container's root.
    pub destination: PathBuf,
    /// `bind`, `tmpfs`, …
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's own.
    Host,
    /// The namespace behind a path.
    Path(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, …
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub hostname: Option<String>,
    /// Absolute: hooks resolve a relative one against their own working directory.
    pub rootfs: PathBuf,
    pub readonly_root: bool,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub tty: bool,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    pub limits: Limits,
    pub devices: Vec<Device>,
    pub mounts: Vec<Mount>,
    /// Bytes.
    pub shm_size: u64,
    pub network: Network,
    pub pid_host: bool,
    pub cgroup_path: String,
    /// The container's own directories under version 1: mount point's name and directory. Empty under version 2.
    pub v1_cgroups: Vec<(String, PathBuf)>,
    pub hooks: Vec<(Stage, HookEntry)>,
    pub oom_score_adj: Option<i32>,
    pub sysctls: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    /// Further paths that the container must not read, where they exist.
    pub masked_paths: Vec<String>,
    /// `None`: unconfined.
    pub seccomp: Option<Profile>,
}

#[derive(Debug, thiserror::Error)]
#[error("the container's OCI spec cannot be built")]
pub struct SpecError(#[source] serde_json::Error);

impl Explain for SpecError {}

/// Paths that a container must not read: docker's list of 2026.
const MASKED: [&str; 13] = [
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
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];

/// Paths that a container may read but not write.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The mounts that every container has, in docker's order.
fn default_mounts(plan: &Plan) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let shm = format!("size={}", plan.shm_size);
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    mounts.extend(cgroup_mounts(&plan.v1_cgroups));
    mounts.extend([
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", shm] }),
    ]);
    mounts
}

/// The container's own cgroup, to be read and not written. Under version 1 libcontainer mounts each controller writable, whatever the options say,
/// and a container could raise its own limits: bind mounts of the very directories, read-only, say the same safely.
fn cgroup_mounts(v1: &[(String, PathBuf)]) -> Vec<Value> {
    const OPTIONS: [&str; 5] = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    let at = "/sys/fs/cgroup";
    if v1.is_empty() {
        return vec![json!({ "destination": at, "type": "cgroup", "source": "cgroup", "options": OPTIONS })];
    }
    // Written to while the mount points are made; `readonlyPaths` closes it.
    let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
    let mut mounts = vec![json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": options })];
    mounts.extend(v1.iter().map(|(name, dir)| {
        let options: Vec<&str> = ["rbind"].into_iter().chain(OPTIONS).collect();
        json!({ "destination": format!("{at}/{name}"), "type": "bind", "source": dir, "options": options })
    }));
    mounts
}

/// The OCI spec that says all of the plan.
pub fn oci_spec(plan: &Plan) -> Result<Spec, SpecError> {
    let capabilities = plan.capabilities.names();
    // An unprivileged user's process gets its capabilities from the bounding set alone, as in docker.
    let held: &[&str] = if plan.uid == 0 { &capabilities } else { &[] };
    let mut mounts = default_mounts(plan);
    mounts.extend(plan.mounts.iter().map(|mount| {
        json!({ "destination": mount.destination, "type": mount.kind, "source": mount.source, "options": mount.options })
    }));
    let rlimits: Vec<Value> = plan
        .rlimits
        .iter()
        .map(|limit| json!({ "type": limit.name, "soft": limit.soft, "hard": limit.hard }))
        .collect();
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": plan.tty,
            "user": { "uid": plan.uid, "gid": plan.gid, "additionalGids": plan.groups },
            "args": plan.args,
            "env": plan.env,
            "cwd": plan.cwd,
            "capabilities": { "bounding": capabilities, "effective": held, "permitted": held, "inheritable": [], "ambient": [] },
            "rlimits": rlimits,
        },
        "root": { "path": plan.rootfs, "readonly": plan.readonly_root },
        "mounts": mounts,
        "annotations": object(&plan.annotations),
        "linux": {
            "cgroupsPath": plan.cgroup_path,
            "namespaces": namespaces(plan),
            "devices": plan.devices.iter().map(|device| json!({
                "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
                "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })).collect::<Vec<_>>(),
            "resources": resources(plan),
            "rootfsPropagation": "private",
            "maskedPaths": MASKED.into_iter().chain(plan.masked_paths.iter().map(String::as_str)).collect::<Vec<_>>(),
            "readonlyPaths": READONLY.into_iter().chain((!plan.v1_cgroups.is_empty()).then_some("/sys/fs/cgroup")).collect::<Vec<_>>(),
            "sysctl": object(&plan.sysctls),
        },
        "hooks": hooks(&plan.hooks),
    });
    if plan.no_new_privileges {
        spec["process"]["noNewPrivileges"] = json!(true);
    }
    if let Some(hostname) = &plan.hostname {
        spec["hostname"] = json!(hostname);
    }
    if let Some(score) = plan.oom_score_adj {
        spec["process"]["oomScoreAdj"] = json!(score);
    }
    if let Some(profile) = &plan.seccomp {
        spec["linux"]["seccomp"] = seccomp(profile);
    }
    serde_json::from_value(spec).map_err(SpecError)
}

fn object(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

fn namespaces(plan: &Plan) -> Value {
    let mut list = vec![
        json!({ "type": "mount" }),
        json!({ "type": "ipc" }),
        json!({ "type": "uts" }),
        json!({ "type": "cgroup" }),
    ];
    if !plan.pid_host {
        list.push(json!({ "type": "pid" }));
    }
    match &plan.network {
        Network::Host => {}
        Network::Path(path) => list.push(json!({ "type": "network", "path": path })),
    }
    list.into()
}

fn resources(plan: &Plan) -> Value {
    let limits = &plan.limits;
    let devices: Vec<Value> = device_rules(&plan.devices)
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

/// The profile for readers of config.json; what is loaded is compiled from the same rules.
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
    use crate::spec::Swap;

    fn plan() -> Plan {
        Plan {
            hostname: Some("box".into()),
            rootfs: "/run/gpurun/ID/rootfs".into(),
            readonly_root: false,
            args: vec!["sh".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            uid: 0,
            gid: 0,
            groups: vec![],
            tty: false,
            capabilities: Capabilities::default(),
            no_new_privileges: true,
            rlimits: vec![],
            limits: Limits::default(),
            devices: vec![],
            mounts: vec![],
            shm_size: 64 << 20,
            network: Network::Path("/proc/self/fd/9".into()),
            pid_host: false,
            cgroup_path: "/gpurun/ID".into(),
            v1_cgroups: Vec::new(),
            hooks: vec![],
            oom_score_adj: None,
            sysctls: vec![],
            annotations: vec![],
            masked_paths: vec![],
            seccomp: None,
        }
    }

    /// The spec with its capability sets, which have no order, in one.
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
        plan.uid = 1000;
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
        plan.pid_host = true;
        let spec = stable(&plan);
        insta::assert_json_snapshot!(json!({
            "process": spec["process"], "resources": spec["linux"]["resources"], "devices": spec["linux"]["devices"],
            "namespaces": spec["linux"]["namespaces"], "hooks": spec["hooks"],
        }));
    }

    #[test]
    fn the_profile_stands_in_the_spec() {
        let mut plan = plan();
        plan.seccomp = Some(Profile::docker_default(&plan.capabilities));
        let spec = serde_json::to_value(oci_spec(&plan).unwrap()).unwrap();
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert!(spec["linux"]["seccomp"]["syscalls"].as_array().unwrap().len() > 10);
    }
}
