//! The flags that describe a container, documented once and shared by the bare launch and `run`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser as Text;

use super::resources::{ResourceFlags, TimeFlags, seconds};
use crate::units::{UnitError, parse_whole};

/// Parses the value of `--oom-score-adj` (proc_pid_oom_score_adj(5)).
fn oom_score(text: &str) -> Result<i32, UnitError> {
    parse_whole(text, &(-1000..=1000)).map(|score| score as i32)
}

/// docker's flags, with docker's meanings.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Container")]
pub(super) struct ContainerFlags {
    /// Name of the container (default: a random name)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Run in the background, and print the container's ID (or Jupyter's URL)
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container and its anonymous volumes when it ends
    #[arg(long)]
    pub rm: bool,
    /// Remove the image too, unless something else uses it; implies --rm
    #[arg(long)]
    pub rmi: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a terminal for the container
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; `KEY` alone passes on the caller's value, and `'KEY*'` those of all matching names
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file, one `KEY=VALUE` per line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Set the variables with which PyTorch's processes find each other, from those of the Slurm task: MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK
    #[arg(long)]
    pub torchrun_env: bool,
    /// Pass all of the caller's environment variables; the image's variables override them
    #[arg(long)]
    pub env_host: bool,
    /// Accepted for compatibility with podman: the proxies of this host are not passed on
    #[arg(long, hide = true, require_equals = true, value_name = "false", value_parser = ["false"])]
    pub http_proxy: Option<String>,
    /// Unset a variable that the image sets
    #[arg(long, value_name = "KEY")]
    pub unsetenv: Vec<String>,
    /// Unset all variables that the image or gpurun sets
    #[arg(long)]
    pub unsetenv_all: bool,
    /// Give the container a file as a secret: id=NAME,src=FILE, and optionally target=, mode=, uid=, gid= or type=env
    #[arg(long, value_name = "FIELDS")]
    pub secret: Vec<String>,
    /// Time zone of the container: Europe/Berlin, or local for this host's
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<String>,
    /// Umask of the container's processes [default: 0022]
    #[arg(long, value_name = "MODE")]
    pub umask: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// User, and optionally group, inside the container: names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Add a supplementary group for the user
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Host name of the container; with `run`, docker's `-h NAME` works too
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Overwrite the image's entrypoint ("" removes it, and `["PROGRAM","ARGUMENT"]` has arguments)
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Run an init as PID 1 that forwards signals and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Domain name of the container
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Attach standard input, output or error (default: output and error; with -i, input too)
    #[arg(short, long, value_name = "STREAM", conflicts_with = "detach")]
    pub attach: Vec<String>,
    /// Forward signals to the container; `false` leaves the container running
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Write the container's ID to a new file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Remove a container of the same name first
    #[arg(long, requires = "name")]
    pub replace: bool,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = Text::new())]
    pub label: Vec<String>,
    /// Read labels from a file, one `KEY=VALUE` per line
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Add an annotation to the OCI spec, for hooks
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Restart policy: no, always, unless-stopped, on-failure[:N]; at boot, `gpurun boot enable` applies it
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = crate::request::STOP_TIMEOUT, allow_negative_numbers = true, value_parser = seconds)]
    pub stop_timeout: u64,
    /// Log driver: json-file, local, or none (keep no log)
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Log option: max-size=SIZE of a file [default: 16m], max-file=N files [default: 2]; for `logs --details`, labels=KEYS and env=KEYS
    #[arg(long, value_name = "KEY=VALUE", value_parser = Text::new())]
    pub log_opt: Vec<String>,
    /// Keys that detach from the container and leave it running
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,

    /// Suppress the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub health: HealthFlags,
    #[command(flatten)]
    pub image: super::image::ImageFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten, next_help_heading = "Time limits")]
    pub times: TimeFlags,
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
#[command(next_help_heading = "Health check")]
pub(super) struct HealthFlags {
    /// Command that checks the container's health: exit code 0 is healthy (default: the image's HEALTHCHECK)
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub health_cmd: Option<String>,
    /// Time between checks, or `disable` to run them only with `gpurun healthcheck run` [default: 30s]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub health_interval: Option<String>,
    /// Time after which a check is killed and counts as failed [default: 30s]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub health_timeout: Option<String>,
    /// Time for the container to start, in which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub health_start_period: Option<String>,
    /// Time between checks in the start period [default: 5s]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub health_start_interval: Option<String>,
    /// Failures in a row that make the container unhealthy [default: 3]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = retries)]
    pub health_retries: Option<u32>,
    /// What happens to the container when it becomes unhealthy: none, kill, restart or stop
    #[arg(long, value_name = "ACTION", value_parser = ["none", "kill", "restart", "stop"], hide_possible_values = true)]
    pub health_on_failure: Option<String>,
    /// Do not run the image's health check
    #[arg(long)]
    pub no_healthcheck: bool,
}

fn retries(text: &str) -> Result<u32, crate::units::UnitError> {
    let number = crate::units::parse_whole(text, &(0..=i64::from(u32::MAX)))?;
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Limits (verified in the kernel before the container starts)")]
pub(super) struct LimitFlags {
    #[command(flatten)]
    pub cgroup: ResourceFlags,
    /// Parent cgroup of the container's cgroup [default: /gpurun]
    #[arg(long, value_name = "PATH", value_parser = Text::new())]
    pub cgroup_parent: Option<String>,
    /// Size of /dev/shm [default: 64m; with --gpus, half of the memory]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = Text::new())]
    pub shm_size: Option<String>,
    /// Set a resource limit, NAME=SOFT[:HARD]: nofile=1024:4096, memlock=-1
    #[arg(long, value_name = "NAME=LIMIT", value_parser = Text::new())]
    pub ulimit: Vec<String>,
    /// Preference of the kernel's OOM killer, -1000 to 1000: processes with higher values are killed first
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = oom_score)]
    pub oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Files")]
pub(super) struct FileFlags {
    /// Mount a path of this host (`/x`, `./x`) or a named volume (`x`)
    #[arg(short, long, value_name = "SOURCE:DIR[:ro,nocopy,U]")]
    pub volume: Vec<String>,
    /// Mount by fields: type=bind|volume|tmpfs|image,source=…,target=…,readonly; of a volume also volume-subpath=… and volume-nocopy
    #[arg(long, value_name = "FIELDS")]
    pub mount: Vec<String>,
    /// Mount a tmpfs, an empty directory in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Mount the container's root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Mount the volumes and directories of another container
    #[arg(long, value_name = "CONTAINER[:ro]")]
    pub volumes_from: Vec<String>,
    /// Driver of the volumes: local
    #[arg(long, value_name = "DRIVER", hide = true)]
    pub volume_driver: Option<String>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkFlags {
    /// Connect to a network: bridge (the default), host, none, container:NAME, or NAME[:alias=A,ip=IP] of
    /// `gpurun network create` (may be repeated)
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Add a name by which other containers of the network find this one
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// IPv4 address on the network
    #[arg(long, value_name = "IP")]
    pub ip: Option<String>,
    /// Hardware address on the network
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,
    /// Publish a port or a range of ports: [IP:][HOST:]CONTAINER[/udp]; HOST may be a range to choose from
    #[arg(short, long, value_name = "PORT")]
    pub publish: Vec<String>,
    /// Publish every exposed port on a free port of this host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// Set a DNS server
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// Set the DNS search list (`.`: none)
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Set an option of the DNS resolver: ndots:2
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Add a line to the container's /etc/hosts; the IP `host-gateway` is this host's address
    #[arg(long, value_name = "NAME:IP")]
    pub add_host: Vec<String>,
    /// Use this host's certificates, proxy variables and pip settings in the container
    #[arg(long)]
    pub host_ca: bool,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Isolation")]
pub(super) struct SecurityFlags {
    /// PID namespace: `host` shows the container this host's processes, container:NAME another container's
    #[arg(long, value_name = "MODE")]
    pub pid: Option<String>,
    /// IPC namespace and /dev/shm: private, shareable, host, none, or container:NAME [default: private]
    #[arg(long, value_name = "MODE")]
    pub ipc: Option<String>,
    /// UTS namespace: `host` gives the container this host's name
    #[arg(long, value_name = "MODE")]
    pub uts: Option<String>,
    /// Cgroup namespace: private or host [default: private]
    #[arg(long, value_name = "MODE")]
    pub cgroupns: Option<String>,
    /// User namespace: host
    #[arg(long, value_name = "MODE")]
    pub userns: Option<String>,
    /// Grant all capabilities, devices and kernel settings: the container can then take over this host
    #[arg(long)]
    pub privileged: bool,
    /// OCI runtime, for scripts that name one: runc and crun select gpurun's own; with nvidia, the variable NVIDIA_VISIBLE_DEVICES selects the GPUs
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// Isolation technology: default
    #[arg(long, value_name = "NAME", hide = true)]
    pub isolation: Option<String>,
    /// Add a Linux capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a Linux capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// Security option: no-new-privileges[=true|false] (on by default), seccomp=unconfined|FILE, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    pub sysctl: Vec<String>,
}

#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "GPUs")]
pub(super) struct GpuFlags {
    #[command(flatten)]
    pub request: GpuRequestFlags,
    /// With --gpus N: wait in a queue until N GPUs are idle, or until the time is over: --wait=2h
    #[arg(long, value_name = "TIME", requires = "gpus", num_args = 0..=1, require_equals = true, default_missing_value = crate::request::FOREVER, value_parser = Text::new())]
    pub wait: Option<String>,
    /// Warn when the container's processes use more GPU memory than this, or stop it: 20g, 20g,stop
    #[arg(long, value_name = "SIZE[,stop]", requires = "gpus", value_parser = Text::new())]
    pub gpu_mem_watch: Option<String>,
    /// Add a device of this host (/dev/fuse[:/dev/NAME][:rwm]) or a CDI device (vendor.com/class=name)
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// Allow devices by number in the device filter: "c 189:* rmw"
    #[arg(long, value_name = "RULE")]
    pub device_cgroup_rule: Vec<String>,
    /// Directory with more OCI hooks (hooks.d)
    #[arg(long, value_name = "DIR")]
    pub hooks_dir: Vec<PathBuf>,
}

/// The selection of GPUs and their injection.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "GPUs")]
pub(super) struct GpuRequestFlags {
    /// GPUs for the container: all; N or free:N (idle GPUs, exclusive to this container); device=0,2 (indexes, UUIDs, or MIG devices such as 0:1)
    #[arg(long, value_name = "GPUS", allow_negative_numbers = true)]
    pub gpus: Option<String>,
    /// How GPUs are injected: NVIDIA's prestart hook, a CDI file, the driver's files directly, or auto (the first of these that works)
    // Without `--gpus`, the mode would be ignored silently.
    #[arg(long, value_name = "MODE", value_parser = ["auto", "hook", "cdi", "native"], requires = "gpus")]
    pub gpu_mode: Option<String>,
    /// With --gpus N: select GPUs that are in use too, and share them
    #[arg(long, requires = "gpus")]
    pub share_gpu: bool,
}
