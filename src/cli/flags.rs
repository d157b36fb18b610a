//! The flags that describe a container, documented once: the bare launch and `run` share them.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser as Text;

use super::resources::{ResourceFlags, seconds};
use crate::units::{UnitError, parse_whole};

/// proc_pid_oom_score_adj(5)
fn oom_score(text: &str) -> Result<i32, UnitError> {
    parse_whole(text, &(-1000..=1000)).map(|score| score as i32)
}

/// docker's flags, with docker's meanings.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Container")]
pub struct ContainerFlags {
    /// Name of the container (made up if not given)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Leave it running and return; the container's id (or Jupyter's URL) is printed
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container and its anonymous volumes when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; `KEY` alone passes your own on
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file, one `KEY=VALUE` a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// User, and group if wanted: names or numbers of the container
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Additional groups for the user
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Host name in the container
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Replace the image's entry point ("" removes it)
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Run a tiny init as pid 1: it forwards signals and reaps zombies
    #[arg(long)]
    pub init: bool,
    /// Attach a label
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = Text::new())]
    pub label: Vec<String>,
    /// What to do when the container's process ends: no, always, unless-stopped, on-failure[:N]
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// Signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from the stop signal to SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = crate::request::STOP_TIMEOUT, allow_negative_numbers = true, value_parser = seconds)]
    pub stop_timeout: u64,
    /// Keys that leave a running container to itself
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,

    #[command(flatten)]
    pub image: super::image::ImageFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub files: FileFlags,
    #[command(flatten)]
    pub network: NetworkFlags,
    #[command(flatten)]
    pub security: SecurityFlags,
    #[command(flatten)]
    pub gpu: GpuFlags,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Limits (read back from the kernel before anything runs)")]
pub struct LimitFlags {
    #[command(flatten)]
    pub cgroup: ResourceFlags,
    /// The cgroup below which the container's is made [default: /gpurun]
    #[arg(long, value_name = "PATH", value_parser = Text::new())]
    pub cgroup_parent: Option<String>,
    /// Size of /dev/shm [default: 64m; with --gpus half of the memory]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub shm_size: Option<String>,
    /// A resource limit, name=soft[:hard]: nofile=1024:4096, memlock=-1
    #[arg(long, value_name = "LIMIT", value_parser = Text::new())]
    pub ulimit: Vec<String>,
    /// Which processes the kernel kills first when memory is short (-1000 to 1000)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = oom_score)]
    pub oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Files")]
pub struct FileFlags {
    /// Mount a path of the host (`/x`, `./x`) or a named volume (`x`)
    #[arg(short, long, value_name = "SOURCE:DIR[:ro]")]
    pub volume: Vec<String>,
    /// Mount, the long way: type=bind|volume|tmpfs,source=…,target=…,readonly
    #[arg(long, value_name = "FIELDS")]
    pub mount: Vec<String>,
    /// Mount an empty directory that lies in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Make the container's root directory read-only
    #[arg(long)]
    pub read_only: bool,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Network")]
pub struct NetworkFlags {
    /// bridge (NAT), host (the host's own), or none (loopback only)
    #[arg(long, visible_alias = "net", value_name = "MODE", default_value = "bridge")]
    pub network: String,
    /// Publish a port: [IP:][HOST:]CONTAINER[/udp], ranges too
    #[arg(short, long, value_name = "PORT")]
    pub publish: Vec<String>,
    /// A name server for the container
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// A line for the container's /etc/hosts
    #[arg(long, value_name = "NAME:IP")]
    pub add_host: Vec<String>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Isolation")]
pub struct SecurityFlags {
    /// `host`: see and signal the host's processes
    #[arg(long, value_name = "MODE")]
    pub pid: Option<String>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// no-new-privileges[=true|false] (on by default), seccomp=unconfined|FILE
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    pub sysctl: Vec<String>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "GPUs")]
pub struct GpuFlags {
    #[command(flatten)]
    pub wish: GpuWish,
    /// A device of the host (/dev/fuse[:/dev/NAME][:rwm]) or by CDI (vendor.com/class=name)
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// A directory with OCI hooks (hooks.d), beside the host's own
    #[arg(long, value_name = "DIR")]
    pub hooks_dir: Vec<PathBuf>,
}

/// Which GPUs, and how they come in.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "GPUs")]
pub struct GpuWish {
    /// all; N or free:N (idle ones, for this container alone); device=0,2 (numbers, UUIDs, MIG devices such as 0:1)
    #[arg(long, value_name = "GPUS", allow_negative_numbers = true)]
    pub gpus: Option<String>,
    /// How they come in: NVIDIA's prestart hook, a CDI file, or the driver's files directly; auto: the first that works
    // Without GPUs it would be passed over, and nobody would be told that there are none.
    #[arg(long, value_name = "MODE", value_parser = ["auto", "hook", "cdi", "native"], requires = "gpus")]
    pub gpu_mode: Option<String>,
    /// With --gpus N: take GPUs that are in use too, and leave them to others
    #[arg(long, requires = "gpus")]
    pub share_gpu: bool,
}
