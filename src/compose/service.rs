//! The typed form of a service: the keys that its containers are made from.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A service after all files have been merged. The fields have the names of their keys. Sizes are in bytes, and time
/// spans in Go's format.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) blkio_config: Option<BlockIo>,
    pub(super) build: Option<Build>,
    pub(super) cap_add: Vec<String>,
    pub(super) cap_drop: Vec<String>,
    pub(super) cgroup: Option<String>,
    pub(super) cgroup_parent: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) configs: Vec<FileMount>,
    pub(super) container_name: Option<String>,
    pub(super) cpu_period: Option<i64>,
    pub(super) cpu_quota: Option<i64>,
    pub(super) cpu_shares: Option<i64>,
    pub(super) cpus: Option<f64>,
    pub(super) cpuset: Option<String>,
    pub(super) depends_on: BTreeMap<String, Dependency>,
    pub(super) deploy: Option<Deploy>,
    pub(super) device_cgroup_rules: Vec<String>,
    pub(super) devices: Vec<DeviceNode>,
    pub(super) dns: Vec<String>,
    pub(super) dns_opt: Vec<String>,
    pub(super) dns_search: Vec<String>,
    pub(super) domainname: Option<String>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) environment: BTreeMap<String, Option<String>>,
    pub(super) expose: Vec<String>,
    pub(super) extra_hosts: Vec<String>,
    pub(super) gpus: Vec<Device>,
    pub(super) group_add: Vec<String>,
    pub(super) healthcheck: Option<Health>,
    pub(super) hostname: Option<String>,
    pub(super) init: Option<bool>,
    pub(super) ipc: Option<String>,
    pub(super) isolation: Option<String>,
    pub(super) label_file: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) links: Vec<String>,
    pub(super) logging: Option<Logging>,
    pub(super) mac_address: Option<String>,
    pub(super) mem_limit: Option<String>,
    pub(super) mem_reservation: Option<String>,
    pub(super) mem_swappiness: Option<String>,
    pub(super) memswap_limit: Option<String>,
    pub(super) network_mode: Option<String>,
    pub(super) networks: BTreeMap<String, Option<Attachment>>,
    pub(super) oom_kill_disable: bool,
    pub(super) oom_score_adj: Option<i64>,
    pub(super) pid: Option<String>,
    pub(super) pids_limit: Option<i64>,
    pub(super) ports: Vec<Port>,
    pub(super) privileged: bool,
    pub(super) pull_policy: Option<String>,
    pub(super) read_only: bool,
    pub(super) restart: Option<String>,
    pub(super) runtime: Option<String>,
    pub(super) secrets: Vec<FileMount>,
    pub(super) security_opt: Vec<String>,
    pub(super) shm_size: Option<String>,
    pub(super) stdin_open: bool,
    pub(super) stop_grace_period: Option<String>,
    pub(super) stop_signal: Option<String>,
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) tmpfs: Vec<String>,
    pub(super) tty: bool,
    pub(super) ulimits: BTreeMap<String, Ulimit>,
    pub(super) user: Option<String>,
    pub(super) userns_mode: Option<String>,
    pub(super) uts: Option<String>,
    pub(super) volumes: Vec<Volume>,
    pub(super) volumes_from: Vec<String>,
    pub(super) working_dir: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Build {
    pub(super) context: String,
    pub(super) additional_contexts: BTreeMap<String, String>,
    pub(super) dockerfile: Option<String>,
    pub(super) dockerfile_inline: Option<String>,
    pub(super) args: BTreeMap<String, Option<String>>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) no_cache: bool,
    pub(super) pull: bool,
    pub(super) extra_hosts: Vec<String>,
    pub(super) network: Option<String>,
    pub(super) target: Option<String>,
    pub(super) secrets: Vec<FileMount>,
    pub(super) shm_size: Option<String>,
    /// Each as `ID` or `ID: SOCKET`.
    pub(super) ssh: Vec<String>,
    pub(super) tags: Vec<String>,
    pub(super) ulimits: BTreeMap<String, Ulimit>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct BlockIo {
    pub(super) weight: Option<i64>,
    pub(super) weight_device: Vec<BlockWeight>,
    pub(super) device_read_bps: Vec<BlockLimit>,
    pub(super) device_read_iops: Vec<BlockLimit>,
    pub(super) device_write_bps: Vec<BlockLimit>,
    pub(super) device_write_iops: Vec<BlockLimit>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct BlockWeight {
    pub(super) path: String,
    pub(super) weight: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct BlockLimit {
    pub(super) path: String,
    pub(super) rate: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Health {
    pub(super) test: Vec<String>,
    pub(super) interval: Option<String>,
    pub(super) timeout: Option<String>,
    pub(super) start_period: Option<String>,
    pub(super) start_interval: Option<String>,
    pub(super) retries: Option<u32>,
    pub(super) disable: bool,
}

/// A secret or a config of a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileMount {
    pub(super) source: String,
    pub(super) target: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) gid: Option<String>,
    pub(super) mode: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Dependency {
    pub(super) condition: String,
    pub(super) restart: bool,
    pub(super) required: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Deploy {
    pub(super) resources: Resources,
    pub(super) restart_policy: Option<RestartPolicy>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    pub(super) limits: Resource,
    pub(super) reservations: Resource,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resource {
    pub(super) cpus: Option<f64>,
    pub(super) memory: Option<String>,
    pub(super) pids: Option<i64>,
    pub(super) devices: Vec<Device>,
}

/// A device of the host, or a CDI device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeviceNode {
    pub(super) source: String,
    pub(super) target: Option<String>,
    pub(super) permissions: Option<String>,
}

/// A reservation of GPUs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Device {
    pub(super) capabilities: Vec<String>,
    pub(super) driver: Option<String>,
    pub(super) count: Option<i64>,
    pub(super) device_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RestartPolicy {
    pub(super) condition: Option<String>,
    pub(super) max_attempts: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Logging {
    pub(super) driver: Option<String>,
    pub(super) options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attachment {
    pub(super) aliases: Vec<String>,
    pub(super) ipv4_address: Option<String>,
    pub(super) mac_address: Option<String>,
    pub(super) priority: i64,
    pub(super) gw_priority: i64,
}

/// A network of the project.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) external: bool,
    pub(super) driver: Option<String>,
    pub(super) internal: bool,
    pub(super) ipam: Ipam,
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ipam {
    pub(super) driver: Option<String>,
    pub(super) config: Vec<Pool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) subnet: Option<String>,
    pub(super) gateway: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) host_ip: Option<String>,
    pub(super) target: u32,
    pub(super) published: Option<String>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Ulimit {
    Both(i64),
    Pair { soft: i64, hard: i64 },
}

impl Ulimit {
    /// The value of `--ulimit` for this limit.
    pub(super) fn flag(&self, name: &str) -> String {
        match self {
            Self::Both(value) => format!("{name}={value}"),
            Self::Pair { soft, hard } => format!("{name}={soft}:{hard}"),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) source: Option<String>,
    pub(super) target: String,
    pub(super) read_only: bool,
    pub(super) bind: Bind,
    pub(super) tmpfs: Tmpfs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Bind {
    pub(super) propagation: Option<String>,
    pub(super) create_host_path: bool,
    pub(super) recursive: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tmpfs {
    pub(super) size: Option<String>,
    pub(super) mode: Option<u32>,
}
