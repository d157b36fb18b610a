//! What a person asked for, validated: complete, plain data that is stored with the container and can be run again.
//!
//! Knows neither the command line's library nor the disk: parsers take text, and what depends on the host (does the path exist, how many
//! CPUs are there) is checked where it is used.

mod device;
mod env;
mod mounts;
mod restart;
mod signal;
mod ulimit;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use device::{DeviceError, DeviceRequest, parse_device};
pub use env::{EnvError, parse_env, parse_env_file};
pub use mounts::{MountError, MountRequest, MountSource, parse_mount, parse_tmpfs, parse_volume};
pub use restart::{RestartError, RestartPolicy};
pub use signal::parse_signal;
pub use ulimit::{Ulimit, UlimitError, parse_ulimit};

use crate::spec::AskedLimits;

/// docker's patience between the stop signal and SIGKILL, in seconds.
pub const STOP_TIMEOUT: u64 = 10;

/// Everything about one container that its owner chose.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The image as it was written on the command line.
    pub image: String,
    /// The image's id (its config digest) at the time: what the container is made from, also after the name moved.
    pub image_id: String,
    pub payload: Payload,
    /// `--entrypoint`; `Some(vec![])` resets the image's.
    pub entrypoint: Option<Vec<String>>,
    /// `-e` and `--env-file`, in the order given; they win over the image's.
    pub env: Vec<(String, String)>,
    pub workdir: Option<PathBuf>,
    /// `user[:group]`, names or numbers, resolved in the container's own /etc/passwd.
    pub user: Option<String>,
    pub group_add: Vec<String>,
    pub hostname: Option<String>,
    pub labels: Vec<(String, String)>,

    pub tty: bool,
    pub interactive: bool,
    pub auto_remove: bool,
    pub restart: RestartPolicy,
    /// A signal number; `None`: the image's STOPSIGNAL, or SIGTERM.
    pub stop_signal: Option<i32>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout: u64,
    pub init: bool,

    pub mounts: Vec<MountRequest>,
    pub read_only: bool,
    /// Bytes of /dev/shm; `None`: 64 MiB, or with GPUs half of the memory.
    pub shm_size: Option<u64>,

    pub limits: AskedLimits,
    /// Absolute path of a cgroup; `None`: gpurun's own.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: Option<i32>,

    pub network: NetworkMode,
    /// `-p`, as written (checked by the net room's parser).
    pub publish: Vec<String>,
    pub dns: Vec<String>,
    pub add_hosts: Vec<String>,

    pub pid_host: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub sysctls: Vec<(String, String)>,

    /// `--gpus`, as written (checked by the gpu room's grammar).
    pub gpus: Option<String>,
    /// `--gpu-mode`, as written; `None`: what works on the host.
    #[serde(default)]
    pub gpu_mode: Option<String>,
    /// Idle GPUs are not taken for this container alone.
    #[serde(default)]
    pub share_gpu: bool,
    #[serde(default)]
    pub devices: Vec<DeviceRequest>,
    pub hooks_dirs: Vec<PathBuf>,
    /// `UID:GID` of the person behind `sudo`, who should own what a notebook writes.
    pub invoker: Option<(u32, u32)>,
}

/// What runs in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// `gpurun run IMAGE [CMD…]`; no arguments: the image's own command.
    Command(Vec<String>),
    /// Bare `gpurun --image X`: our init as pid 1, Jupyter exec'ed beside it.
    Jupyter(JupyterRequest),
}

/// The Jupyter half of a bare launch. Secrets are not here: they lie in a file of mode 0600 beside the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JupyterRequest {
    /// Port inside the container.
    pub port: u16,
    /// Further arguments for the Jupyter command.
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    Bridge,
    Host,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    Default,
    Unconfined,
    /// The text of a profile in docker's JSON format.
    Profile(String),
}

impl Request {
    /// A container for which nothing was asked but what runs in it: no network, root's usual rights.
    #[must_use]
    pub fn bare(image: String, image_id: String, payload: Payload) -> Self {
        Self {
            image,
            image_id,
            payload,
            entrypoint: None,
            env: Vec::new(),
            workdir: None,
            user: None,
            group_add: Vec::new(),
            hostname: None,
            labels: Vec::new(),
            tty: false,
            interactive: false,
            auto_remove: false,
            restart: RestartPolicy::No,
            stop_signal: None,
            stop_timeout: STOP_TIMEOUT,
            init: false,
            mounts: Vec::new(),
            read_only: false,
            shm_size: None,
            limits: AskedLimits::default(),
            cgroup_parent: None,
            ulimits: Vec::new(),
            oom_score_adj: None,
            network: NetworkMode::None,
            publish: Vec::new(),
            dns: Vec::new(),
            add_hosts: Vec::new(),
            pid_host: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            sysctls: Vec::new(),
            gpus: None,
            gpu_mode: None,
            share_gpu: false,
            devices: Vec::new(),
            hooks_dirs: Vec::new(),
            invoker: None,
        }
    }

    /// Whether the container's processes are told what to read on standard input.
    #[must_use]
    pub fn wants_stdin(&self) -> bool {
        self.interactive
    }
}
