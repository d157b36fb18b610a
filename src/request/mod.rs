//! The validated request for a container: complete, typed data that is stored with the container and can be run again.
//!
//! This module owns the grammar of every flag that describes a container. The command line is mapped to these types, and
//! a compose file to command lines. It depends neither on the command line parser nor on the disk: its parsers take
//! text. Checks that depend on the host (whether a path exists, how many CPUs there are) are made where the value is
//! used.
//!
//! A record stores a request with serde. Values with a grammar are stored as the text of their flags (see `text`), so a
//! release can read the records of other releases.

mod attach;
mod cdi_name;
mod csv;
mod destination;
mod device;
mod device_rule;
mod env;
mod gpus;
mod health;
mod host_ca;
mod hosts;
mod labels;
mod limits;
mod limits_error;
mod log;
mod mounts;
mod namespaces;
mod network;
mod paths;
mod ports;
mod resolve;
mod restart;
mod secret;
mod security;
mod sharing;
mod signal;
mod span;
mod subnet;
mod text;
mod ulimit;
mod user;
mod volumes_from;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use attach::{AttachError, Attached};
pub(crate) use cdi_name::{CdiName, is_class as is_cdi_class, is_device as is_cdi_device, is_vendor as is_cdi_vendor};
pub(crate) use csv::fields as csv_fields;
pub(crate) use destination::{Mounted, check_destination, check_node, clean};
pub(crate) use device::{DeviceRequest, parse_device};
pub(crate) use device_rule::DeviceCgroupRule;
pub(crate) use env::{parse_env, parse_env_file, parse_time_zone, parse_umask};
pub use gpus::GpuRequest;
pub(crate) use gpus::{CDI_DRIVER, GpuMode, Which};
pub(crate) use health::{HealthAction, HealthCheck, HealthConfig, HealthError, HealthFlags};
pub(crate) use host_ca::HostCa;
pub(crate) use hosts::{
    HostEntry, parse_dns_option, parse_dns_search, parse_domainname, parse_hostname, parse_name_server,
};
pub(crate) use labels::{check_sysctl, parse_annotation, parse_label, parse_label_file, parse_sysctl};
pub(crate) use limits::{LimitsRequest, SwapSize, Throttles, parse_shm_size};
pub(crate) use limits_error::{BLKIO_WEIGHTS, CPU_PERIODS_US, CPU_QUOTAS_US, CPU_SHARES, PIDS, SWAPPINESS};
pub(crate) use log::{LogDriver, LogOptions};
pub(crate) use mounts::{MountRequest, MountSource, check_duplicates, parse_mount, parse_tmpfs, parse_volume};
pub(crate) use namespaces::{
    IpcMode, RuntimeName, check_isolation, check_user_mode, check_volume_driver, parse_cgroup_mode, parse_pid_mode,
    parse_uts_mode,
};
pub use network::{Attachment, NetworkMode};
pub(crate) use network::{DEFAULT_NETWORK, NetworkError, NetworkFlags, Networking, is_network_name, parse_alias};
pub(crate) use paths::{parse_cgroup_parent, parse_workdir};
pub use ports::PortSpec;
pub(crate) use ports::{ExposedPort, Protocol};
pub(crate) use resolve::HostFacts;
pub(crate) use restart::RestartPolicy;
pub(crate) use secret::{SecretRequest, SecretTarget};
pub(crate) use security::{Seccomp, SecurityOption};
pub(crate) use sharing::{FOREVER, GpuMemWatch, GpuWait, TimeLimits, check_wait};
pub(crate) use signal::parse_signal;
pub(crate) use span::Span;
pub(crate) use subnet::{Mac, Subnet};
pub(crate) use text::flag_value;
pub(crate) use ulimit::{Ulimit, parse_ulimits};
pub(crate) use user::UserSpec;
pub(crate) use volumes_from::VolumesFrom;

use crate::names::Digest;
use crate::spec::CapabilityName;

/// docker's default time between the stop signal and SIGKILL, in seconds.
pub(crate) const STOP_TIMEOUT: u64 = 10;

/// All settings of one container. The image that a name stands for at the time of the request, and the caller, are in
/// the record (`record::Record`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The image reference as written on the command line.
    pub image: String,
    pub payload: Payload,
    /// `--entrypoint`; `Some(vec![])` resets the image's.
    pub entrypoint: Option<Vec<String>>,
    /// `-e` and `--env-file`, in the order given. They override the image's variables.
    pub env: Vec<(String, String)>,
    /// `--env-host`: the caller's variables, which the image's override.
    #[serde(default)]
    pub env_host: Vec<(String, String)>,
    /// `--unsetenv`: variables that the container does not get from the image or from gpurun.
    #[serde(default)]
    pub unset_env: Vec<String>,
    #[serde(default)]
    pub unset_all_env: bool,
    #[serde(default)]
    pub secrets: Vec<SecretRequest>,
    /// `None` means 022.
    #[serde(default)]
    pub umask: Option<u32>,
    /// `--tz`: a name such as `Europe/Berlin`, or `local` for the host's time zone.
    #[serde(default)]
    pub time_zone: Option<String>,
    pub workdir: Option<PathBuf>,
    pub user: Option<UserSpec>,
    /// Names or numbers. Names are resolved in the container's own /etc/group.
    pub group_add: Vec<String>,
    pub hostname: Option<String>,
    #[serde(default)]
    pub domainname: Option<String>,
    pub labels: Vec<(String, String)>,
    /// `--annotation`: for hooks, in the OCI spec.
    #[serde(default)]
    pub annotations: Vec<(String, String)>,
    /// `--cidfile`, for display.
    #[serde(default)]
    pub cidfile: Option<PathBuf>,

    pub tty: bool,
    pub interactive: bool,
    /// The streams of the command that created the container, for display.
    #[serde(default)]
    pub attached: Attached,
    pub auto_remove: bool,
    /// `--rmi`: the image is removed with the container.
    #[serde(default)]
    pub remove_image: bool,
    pub restart: RestartPolicy,
    /// Signal number. `None` means the image's STOPSIGNAL, or SIGTERM.
    pub stop_signal: Option<i32>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout: u64,
    /// How much output is kept. Records of earlier versions do not have this field.
    #[serde(default)]
    pub log: LogOptions,
    /// `--health-*` and `--no-healthcheck`. `None` means the image's health check.
    #[serde(default)]
    pub health: Option<HealthConfig>,
    /// `--health-on-failure`
    #[serde(default, skip_serializing_if = "HealthAction::is_none")]
    pub health_on_failure: HealthAction,
    pub init: bool,
    /// Descriptors of the command that the container's process inherits, with the same numbers.
    #[serde(default)]
    pub passed_fds: Vec<i32>,

    pub mounts: Vec<MountRequest>,
    /// `--volumes-from`, for display. `mounts` has what it stands for.
    #[serde(default)]
    pub volumes_from: Vec<String>,
    pub read_only: bool,
    /// Size of /dev/shm in bytes. `None` means 64 MiB, or half of the memory for a container with GPUs.
    pub shm_size: Option<u64>,

    pub limits: LimitsRequest,
    /// Absolute path of the parent cgroup. `None` means gpurun's own.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: Option<i32>,

    pub network: NetworkMode,
    /// The networks of `--network`. `None` means the default bridge alone, or what `network` says.
    #[serde(default)]
    pub networks: Option<Vec<Attachment>>,
    /// `--network container:…`: the ID of the container whose network this one shares.
    #[serde(default)]
    pub network_container: Option<String>,
    /// `-p`, one entry for each port.
    #[serde(with = "ports::stored")]
    pub publish: Vec<PortSpec>,
    /// `--publish-all`: every exposed port is published on a free port.
    #[serde(default)]
    pub publish_all: bool,
    /// `--expose`, in addition to the ports that the image exposes.
    #[serde(default)]
    pub expose: Vec<ExposedPort>,
    pub dns: Vec<IpAddr>,
    /// The search list of resolv.conf instead of the host's. `.` alone means none.
    #[serde(default)]
    pub dns_search: Vec<String>,
    /// The options of resolv.conf instead of the host's.
    #[serde(default)]
    pub dns_options: Vec<String>,
    pub add_hosts: Vec<HostEntry>,

    pub pid_host: bool,
    /// `--pid container:…`: the ID of the container whose PID namespace this one joins.
    #[serde(default)]
    pub pid_container: Option<String>,
    #[serde(default)]
    pub ipc: IpcMode,
    #[serde(default)]
    pub uts_host: bool,
    #[serde(default)]
    pub cgroup_host: bool,
    /// `--privileged`. `seccomp` and `no_new_privileges` say what goes with it.
    #[serde(default)]
    pub privileged: bool,
    /// `--security-opt systempaths=unconfined`
    #[serde(default)]
    pub unmasked: bool,
    /// `--runtime`, for display. A record stores the GPUs that `nvidia` stands for in `gpus`.
    #[serde(default)]
    pub runtime: Option<RuntimeName>,
    pub cap_add: Vec<CapabilityName>,
    pub cap_drop: Vec<CapabilityName>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub sysctls: Vec<(String, String)>,

    /// `--gpus`
    pub gpus: Option<GpuRequest>,
    /// `--gpu-mode`
    #[serde(default, deserialize_with = "text::or_default")]
    pub gpu_mode: GpuMode,
    /// `--share-gpu`: idle GPUs are not reserved for this container.
    #[serde(default)]
    pub share_gpu: bool,
    /// `--wait`: the launch waits for idle GPUs.
    #[serde(default)]
    pub gpu_wait: Option<GpuWait>,
    /// `--gpu-mem-watch`
    #[serde(default)]
    pub gpu_mem_watch: Option<GpuMemWatch>,
    /// `--timeout` and `--idle-timeout`
    #[serde(default)]
    pub time_limits: TimeLimits,
    #[serde(default)]
    pub devices: Vec<DeviceRequest>,
    /// `--device-cgroup-rule`
    #[serde(default)]
    pub device_rules: Vec<DeviceCgroupRule>,
    pub hooks_dirs: Vec<PathBuf>,
    /// `--host-ca`.
    #[serde(default)]
    pub host_ca: Option<HostCa>,
}

/// The command to run in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// `gpurun run IMAGE [CMD…]`. Without arguments, the image's own command runs.
    Command(Vec<String>),
    /// Bare `gpurun --image X`: gpurun's init runs as pid 1, and Jupyter is exec'ed next to it.
    Jupyter(JupyterRequest),
}

/// The Jupyter settings of a bare launch. Secrets are stored separately, in a file of mode 0600 next to the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JupyterRequest {
    /// Port inside the container.
    pub port: u16,
    /// Additional arguments for the Jupyter command.
    pub args: Vec<String>,
    /// `--tls`
    #[serde(default)]
    pub tls: Option<TlsRequest>,
}

/// Where the certificate of a notebook comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlsRequest {
    /// gpurun generates it.
    Generated,
    /// PEM files, which are read at each start: absolute paths.
    Files { certificate: PathBuf, key: PathBuf },
}

impl Request {
    /// The networks to which the container is connected.
    #[must_use]
    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        match (self.network, &self.networks) {
            (NetworkMode::Bridge, None) => vec![Attachment::to(DEFAULT_NETWORK)],
            (NetworkMode::Bridge, Some(networks)) => networks.clone(),
            (NetworkMode::Host | NetworkMode::None, _) => Vec::new(),
        }
    }

    /// Returns a request with default settings: no network, no health check and root's default capabilities.
    #[must_use]
    pub(crate) fn bare(image: String, payload: Payload) -> Self {
        Self {
            image,
            payload,
            entrypoint: None,
            env: Vec::new(),
            env_host: Vec::new(),
            unset_env: Vec::new(),
            unset_all_env: false,
            secrets: Vec::new(),
            umask: None,
            time_zone: None,
            workdir: None,
            user: None,
            group_add: Vec::new(),
            hostname: None,
            domainname: None,
            labels: Vec::new(),
            annotations: Vec::new(),
            cidfile: None,
            tty: false,
            interactive: false,
            attached: Attached::default(),
            auto_remove: false,
            remove_image: false,
            restart: RestartPolicy::No,
            stop_signal: None,
            stop_timeout: STOP_TIMEOUT,
            log: LogOptions::default(),
            health: Some(HealthConfig::none()),
            health_on_failure: HealthAction::None,
            init: false,
            passed_fds: Vec::new(),
            mounts: Vec::new(),
            volumes_from: Vec::new(),
            read_only: false,
            shm_size: None,
            limits: LimitsRequest::default(),
            cgroup_parent: None,
            ulimits: Vec::new(),
            oom_score_adj: None,
            network: NetworkMode::None,
            networks: None,
            network_container: None,
            publish: Vec::new(),
            publish_all: false,
            expose: Vec::new(),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            add_hosts: Vec::new(),
            pid_host: false,
            pid_container: None,
            ipc: IpcMode::Private,
            uts_host: false,
            cgroup_host: false,
            privileged: false,
            unmasked: false,
            runtime: None,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            sysctls: Vec::new(),
            gpus: None,
            gpu_mode: GpuMode::default(),
            share_gpu: false,
            gpu_wait: None,
            gpu_mem_watch: None,
            time_limits: TimeLimits::default(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            hooks_dirs: Vec::new(),
            host_ca: None,
        }
    }

    /// The images whose files are mounted, with the destination of each.
    pub(crate) fn mounted_images(&self) -> impl Iterator<Item = (&MountRequest, Digest)> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Image { id: Some(id), .. } => Some((mount, *id)),
            _ => None,
        })
    }

    /// Returns whether the container reads the caller's standard input.
    #[must_use]
    pub(crate) fn wants_stdin(&self) -> bool {
        self.interactive
    }
}
