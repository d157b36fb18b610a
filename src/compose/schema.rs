//! The keys of a compose file: their types, their order in `compose config`, and what gpurun does with them.
//!
//! One table serves three purposes. [`super::check`] refuses keys and values that are not in it, with their line.
//! [`super::decode`] brings values into their final form by it. [`super::plan`] reads from it which keys have no effect
//! in gpurun. The keys are those of the Compose Specification; their order is that of compose-go's structs.

/// The type of a value.
#[derive(Debug)]
pub(super) enum Type {
    /// Anything, kept as it is.
    Any,
    Text,
    /// Text, or a number that becomes text.
    TextOrNumber,
    /// One of these.
    Word(&'static [&'static str]),
    Int,
    /// An integer that may also be written as text.
    IntText,
    Bool,
    /// A number that is kept as float32.
    Single,
    /// A size in bytes: `1g`. Printed as text.
    Size,
    /// A time span in Go's format: `1m30s`.
    Duration,
    /// Text that is split as a shell would, or a list.
    Command,
    /// A health check: text for a shell, or a list that begins with CMD, CMD-SHELL or NONE.
    Test,
    /// A list of text. `one` accepts a single text too.
    TextList {
        one: bool,
    },
    /// A list of text and numbers.
    NumberList,
    /// `KEY=VALUE` in a list or a mapping.
    Pairs(Pairs),
    List(&'static Type),
    Map(&'static Type),
    Object(&'static Object),
    /// A short form that [`super::canonical`] replaces by the long one.
    Short(&'static Type, &'static Type),
    /// The type, or nothing.
    Empty(&'static Type),
    /// `all` or a number of devices.
    Count,
    /// One number, or `soft` and `hard`.
    Ulimit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// A key without a value stays without one.
    Environment,
    /// A key without a value has an empty one.
    Labels,
    /// `host=ip`, printed as a list.
    Hosts,
    /// Options of a driver: a mapping only.
    Options,
    /// `id=socket`, printed as a list of `id: socket`.
    Agents,
}

#[derive(Debug)]
pub(super) struct Object {
    /// What has these keys, for messages: `a service`.
    pub(super) name: &'static str,
    pub(super) keys: &'static [Key],
    /// Keys that must be present.
    pub(super) required: &'static [&'static str],
    /// Whether `x-…` keys are accepted and printed.
    pub(super) extensions: bool,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) ty: Type,
    /// Print the value even if it is empty, zero or false.
    pub(super) keep: bool,
    pub(super) run: Run,
}

/// What gpurun does with a key when it runs a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// It has docker's meaning.
    Used,
    /// It is ignored, which is harmless. The notice says why.
    Ignored(&'static str),
    /// A service with it is not started. The text is the reason.
    Refused(&'static str),
}

use Pairs::{Agents, Environment, Hosts, Labels, Options};
use Type::{
    Any, Bool, Command, Count, Duration, Empty, Int, IntText, List, Map, NumberList, Object as Of, Pairs as P, Short,
    Single, Size, Test, Text, TextList, TextOrNumber, Ulimit, Word,
};

const fn key(name: &'static str, ty: Type) -> Key {
    Key { name, ty, keep: false, run: Run::Used }
}

/// A value that is printed even if it is zero.
const fn kept(name: &'static str, ty: Type) -> Key {
    Key { name, ty, keep: true, run: Run::Used }
}

const fn ignored(name: &'static str, ty: Type, why: &'static str) -> Key {
    Key { name, ty, keep: false, run: Run::Ignored(why) }
}

const fn refused(name: &'static str, ty: Type, why: &'static str) -> Key {
    Key { name, ty, keep: false, run: Run::Refused(why) }
}

const fn object(name: &'static str, keys: &'static [Key]) -> Object {
    Object { name, keys, required: &[], extensions: true }
}

const LIST: Type = TextList { one: false };
const ONE_OR_LIST: Type = TextList { one: true };

const WINDOWS: &str = "it is for Windows";
const SWARM: &str = "it is for swarm";
const REAL_TIME: &str = "gpurun has no real-time scheduling";
const BRIDGES: &str = "a network is a bridge of this host, without options";
const ADDRESSES: &str = "networks have IPv4 addresses only";
const POOLS: &str = "all addresses of the subnet are assigned";
const CACHE: &str = "gpurun has its own build cache";
const HOOKS: &str = "gpurun runs no commands around a container's start and stop";

pub(super) static PROJECT: Object = Object {
    name: "a compose file",
    keys: &[
        ignored("version", TextOrNumber, "compose files have no version any more"),
        key("name", Text),
        kept("services", Map(&Empty(&Of(&SERVICE)))),
        key("networks", Map(&Empty(&Of(&NETWORK)))),
        key("volumes", Map(&Empty(&Of(&VOLUME)))),
        key("secrets", Map(&Of(&SECRET))),
        key("configs", Map(&Of(&CONFIG))),
        ignored("models", Map(&Any), "gpurun runs no model servers"),
        key("include", List(&Short(&Text, &Of(&INCLUDE)))),
    ],
    required: &[],
    extensions: true,
};

static INCLUDE: Object = Object {
    name: "an include",
    keys: &[key("path", ONE_OR_LIST), key("project_directory", Text), key("env_file", ONE_OR_LIST)],
    required: &["path"],
    extensions: false,
};

pub(super) static SERVICE: Object = object(
    "a service",
    &[
        key("profiles", LIST),
        key("annotations", P(Labels)),
        kept("attach", Bool),
        key("build", Short(&Text, &Of(&BUILD))),
        ignored("develop", Empty(&Of(&DEVELOP)), "gpurun does not watch files"),
        key("blkio_config", Of(&BLKIO)),
        key("cap_add", LIST),
        key("cap_drop", LIST),
        key("cgroup_parent", Text),
        key("cgroup", Word(&["host", "private"])),
        refused("cpu_count", Int, WINDOWS),
        refused("cpu_percent", Single, WINDOWS),
        key("cpu_period", IntText),
        key("cpu_quota", IntText),
        refused("cpu_rt_period", IntText, REAL_TIME),
        refused("cpu_rt_runtime", IntText, REAL_TIME),
        key("cpus", Single),
        key("cpuset", Text),
        key("cpu_shares", IntText),
        kept("command", Command),
        key("configs", List(&Short(&Text, &Of(&FILE)))),
        key("container_name", Text),
        refused("credential_spec", Of(&CREDENTIALS), WINDOWS),
        key("depends_on", Short(&LIST, &Map(&Of(&DEPENDENCY)))),
        key("deploy", Empty(&Of(&DEPLOY))),
        key("device_cgroup_rules", LIST),
        key("devices", List(&Short(&Text, &Of(&NODE)))),
        key("dns", ONE_OR_LIST),
        key("dns_opt", LIST),
        key("dns_search", ONE_OR_LIST),
        key("domainname", Text),
        kept("entrypoint", Command),
        key("environment", P(Environment)),
        key("env_file", Short(&Text, &List(&Short(&Text, &Of(&ENV_FILE))))),
        key("expose", NumberList),
        key("extends", Short(&Text, &Of(&EXTENDS))),
        refused("external_links", LIST, "connect the other container to a network of this project instead"),
        key("extra_hosts", P(Hosts)),
        key("gpus", Short(&Word(&["all"]), &List(&Of(&DEVICE)))),
        key("group_add", NumberList),
        key("hostname", Text),
        key("healthcheck", Of(&HEALTH)),
        key("image", Text),
        kept("init", Bool),
        key("ipc", Text),
        key("isolation", Text),
        key("labels", P(Labels)),
        key("label_file", ONE_OR_LIST),
        key("links", LIST),
        key("logging", Of(&LOGGING)),
        key("mem_limit", Size),
        key("mem_reservation", Size),
        key("memswap_limit", Size),
        key("mem_swappiness", Size),
        key("mac_address", Text),
        ignored("models", Any, "gpurun runs no model servers"),
        key("network_mode", Text),
        key("networks", Short(&LIST, &Map(&Empty(&Of(&ATTACHMENT))))),
        key("oom_kill_disable", Bool),
        key("oom_score_adj", Int),
        key("pid", Text),
        key("pids_limit", IntText),
        ignored("platform", Text, "gpurun runs this machine's platform"),
        key("ports", List(&Short(&TextOrNumber, &Of(&PORT)))),
        refused("post_start", Any, HOOKS),
        refused("pre_start", Any, HOOKS),
        refused("pre_stop", Any, HOOKS),
        key("privileged", Bool),
        refused("provider", Any, "gpurun runs containers only"),
        key("pull_policy", Text),
        key("read_only", Bool),
        key("restart", Text),
        key("runtime", Text),
        kept("scale", Int),
        key("secrets", List(&Short(&Text, &Of(&FILE)))),
        key("security_opt", LIST),
        key("shm_size", Size),
        key("stdin_open", Bool),
        key("stop_grace_period", Duration),
        key("stop_signal", Text),
        refused("storage_opt", P(Options), "layers are directories of this host"),
        key("sysctls", P(Labels)),
        key("tmpfs", ONE_OR_LIST),
        key("tty", Bool),
        key("ulimits", Map(&Ulimit)),
        key("user", Text),
        key("userns_mode", Text),
        key("uts", Text),
        key("volumes", List(&Short(&Text, &Of(&MOUNT)))),
        key("volumes_from", LIST),
        key("working_dir", Text),
    ],
);

static BUILD: Object = object(
    "a build",
    &[
        key("context", Text),
        key("dockerfile", Text),
        key("dockerfile_inline", Text),
        ignored("entitlements", LIST, "gpurun has no BuildKit"),
        key("args", P(Environment)),
        key("ssh", P(Agents)),
        key("labels", P(Labels)),
        ignored("cache_from", ONE_OR_LIST, CACHE),
        ignored("cache_to", ONE_OR_LIST, CACHE),
        key("no_cache", Bool),
        key("additional_contexts", P(Labels)),
        key("pull", Bool),
        ignored("provenance", Any, "gpurun writes no attestations"),
        ignored("sbom", Any, "gpurun writes no attestations"),
        key("extra_hosts", P(Hosts)),
        refused("isolation", Text, WINDOWS),
        key("network", Text),
        key("target", Text),
        key("secrets", List(&Short(&Text, &Of(&FILE)))),
        key("shm_size", Size),
        key("tags", ONE_OR_LIST),
        key("ulimits", Map(&Ulimit)),
        ignored("platforms", ONE_OR_LIST, "gpurun builds for this machine's platform"),
        ignored("privileged", Bool, "a build step has docker's default capabilities"),
    ],
);

static NODE: Object = Object {
    name: "a device",
    keys: &[key("source", Text), key("target", Text), key("permissions", Text)],
    required: &["source"],
    extensions: true,
};

static DEVELOP: Object = object("`develop`", &[key("watch", List(&Of(&WATCH)))]);
static WATCH: Object = object(
    "a watch",
    &[
        kept("path", Text),
        kept("action", Word(&["rebuild", "sync", "sync+restart", "restart", "sync+exec"])),
        key("target", Text),
        key("include", LIST),
        key("ignore", LIST),
        key("exec", Any),
        key("initial_sync", Bool),
    ],
);

static BLKIO: Object = object(
    "`blkio_config`",
    &[
        key("weight", Int),
        key("weight_device", List(&Of(&BLKIO_WEIGHT))),
        key("device_read_bps", List(&Of(&BLKIO_LIMIT))),
        key("device_read_iops", List(&Of(&BLKIO_LIMIT))),
        key("device_write_bps", List(&Of(&BLKIO_LIMIT))),
        key("device_write_iops", List(&Of(&BLKIO_LIMIT))),
    ],
);
static BLKIO_LIMIT: Object = object("a device limit", &[key("path", Text), key("rate", Size)]);
static BLKIO_WEIGHT: Object = object("a device weight", &[key("path", Text), key("weight", Int)]);

pub(super) static FILE: Object = object(
    "a secret or config of a service",
    &[key("source", Text), key("target", Text), key("uid", Text), key("gid", Text), kept("mode", Int)],
);

static CREDENTIALS: Object =
    object("`credential_spec`", &[key("config", Text), key("file", Text), key("registry", Text)]);

static DEPENDENCY: Object = Object {
    name: "a dependency",
    keys: &[
        key("condition", Word(&["service_started", "service_healthy", "service_completed_successfully"])),
        key("restart", Bool),
        kept("required", Bool),
    ],
    required: &[],
    extensions: false,
};

static DEPLOY: Object = object(
    "`deploy`",
    &[
        ignored("mode", Text, SWARM),
        kept("replicas", Int),
        ignored("labels", P(Labels), SWARM),
        ignored("update_config", Of(&UPDATE), SWARM),
        ignored("rollback_config", Of(&UPDATE), SWARM),
        key("resources", Of(&RESOURCES)),
        key("restart_policy", Of(&RESTART)),
        ignored("placement", Of(&PLACEMENT), SWARM),
        ignored("endpoint_mode", Text, SWARM),
    ],
);
static UPDATE: Object = object(
    "an update policy",
    &[
        kept("parallelism", Int),
        key("delay", Duration),
        key("failure_action", Text),
        key("monitor", Duration),
        key("max_failure_ratio", Single),
        key("order", Word(&["start-first", "stop-first"])),
    ],
);
static RESOURCES: Object = object("`resources`", &[key("limits", Of(&RESOURCE)), key("reservations", Of(&RESOURCE))]);
static RESOURCE: Object = object(
    "`limits` or `reservations`",
    &[
        key("cpus", Single),
        key("memory", Size),
        key("pids", Int),
        key("devices", List(&Of(&DEVICE))),
        ignored("generic_resources", List(&Of(&GENERIC)), SWARM),
    ],
);
static GENERIC: Object = object("a generic resource", &[key("discrete_resource_spec", Of(&DISCRETE))]);
static DISCRETE: Object = object("`discrete_resource_spec`", &[kept("kind", Text), kept("value", Int)]);
pub(super) static DEVICE: Object = Object {
    name: "a device reservation",
    keys: &[
        key("capabilities", LIST),
        key("driver", Text),
        key("count", Count),
        key("device_ids", LIST),
        key("options", P(Labels)),
    ],
    required: &[],
    extensions: false,
};
static RESTART: Object = object(
    "`restart_policy`",
    &[key("condition", Text), kept("delay", Duration), kept("max_attempts", Int), kept("window", Duration)],
);
static PLACEMENT: Object = object(
    "`placement`",
    &[key("constraints", LIST), key("preferences", List(&Of(&PREFERENCE))), key("max_replicas_per_node", Int)],
);
static PREFERENCE: Object = object("a placement preference", &[key("spread", Text)]);

static ENV_FILE: Object = Object {
    name: "an env_file",
    keys: &[key("path", Text), kept("required", Bool), key("format", Text)],
    required: &["path"],
    extensions: false,
};

static EXTENDS: Object = Object {
    name: "`extends`",
    keys: &[key("file", Text), key("service", Text)],
    required: &["service"],
    extensions: false,
};

static HEALTH: Object = object(
    "a health check",
    &[
        key("test", Test),
        kept("timeout", Duration),
        kept("interval", Duration),
        kept("retries", Int),
        kept("start_period", Duration),
        kept("start_interval", Duration),
        key("disable", Bool),
    ],
);

static LOGGING: Object = object("`logging`", &[key("driver", Text), key("options", P(Options))]);

static ATTACHMENT: Object = object(
    "a network of a service",
    &[
        key("priority", Int),
        key("aliases", LIST),
        key("ipv4_address", Text),
        refused("ipv6_address", Text, ADDRESSES),
        refused("link_local_ips", LIST, "a container has one address on each network"),
        key("mac_address", Text),
        ignored("driver_opts", P(Options), BRIDGES),
        key("gw_priority", Int),
        ignored("interface_name", Text, "the interfaces are eth0, eth1 and so on"),
    ],
);

static PORT: Object = Object {
    name: "a port",
    keys: &[
        key("name", Text),
        key("mode", Text),
        key("host_ip", Text),
        key("target", Int),
        key("published", TextOrNumber),
        key("protocol", Text),
        key("app_protocol", Text),
    ],
    required: &["target"],
    extensions: true,
};

static MOUNT: Object = Object {
    name: "a volume of a service",
    keys: &[
        key("type", Word(&["bind", "volume", "tmpfs", "npipe", "cluster", "image"])),
        key("source", Text),
        key("target", Text),
        key("read_only", Bool),
        ignored("consistency", Text, "it is for Docker Desktop"),
        key("bind", Of(&MOUNT_BIND)),
        key("volume", Of(&MOUNT_VOLUME)),
        key("tmpfs", Of(&MOUNT_TMPFS)),
        key("image", Of(&MOUNT_IMAGE)),
    ],
    required: &["type"],
    extensions: true,
};
static MOUNT_BIND: Object = object(
    "`bind`",
    &[
        ignored("selinux", Word(&["z", "Z"]), "gpurun sets no SELinux labels"),
        key("propagation", Text),
        key("create_host_path", Bool),
        key("recursive", Text),
    ],
);
static MOUNT_VOLUME: Object = object(
    "`volume`",
    &[
        ignored("nocopy", Bool, "gpurun does not copy an image's files into a volume of the host"),
        refused("subpath", Text, "gpurun mounts whole volumes"),
        ignored("labels", P(Labels), "volumes are directories, without labels"),
    ],
);
static MOUNT_TMPFS: Object = object("`tmpfs`", &[key("size", Size), key("mode", Int)]);
static MOUNT_IMAGE: Object = object("`image`", &[key("subpath", Text)]);

static NETWORK: Object = object(
    "a network",
    &[
        key("name", Text),
        key("driver", Text),
        ignored("driver_opts", P(Options), BRIDGES),
        key("ipam", Of(&IPAM)),
        key("external", Short(&Of(&EXTERNAL), &Bool)),
        key("internal", Bool),
        key("attachable", Bool),
        key("labels", P(Labels)),
        ignored("enable_ipv4", Bool, ADDRESSES),
        ignored("enable_ipv6", Bool, ADDRESSES),
    ],
);
static EXTERNAL: Object = object("`external`", &[key("name", Text)]);
static IPAM: Object =
    object("`ipam`", &[key("driver", Text), key("config", List(&Of(&POOL))), ignored("options", P(Options), BRIDGES)]);
static POOL: Object = object(
    "an address pool",
    &[
        key("subnet", Text),
        key("gateway", Text),
        ignored("ip_range", Text, POOLS),
        ignored("aux_addresses", P(Labels), POOLS),
    ],
);

static VOLUME: Object = object(
    "a volume",
    &[
        key("name", Text),
        key("driver", Text),
        refused("driver_opts", P(Options), "a volume is a directory of this host"),
        key("external", Short(&Of(&EXTERNAL), &Bool)),
        ignored("labels", P(Labels), "volumes are directories, without labels"),
    ],
);

static SECRET: Object = object(
    "a secret",
    &[
        key("name", Text),
        key("file", Text),
        key("environment", Text),
        key("content", Text),
        refused("external", Short(&Of(&EXTERNAL), &Bool), "gpurun keeps no secrets: use `file` or `environment`"),
        ignored("labels", P(Labels), SWARM),
        refused("driver", Text, SWARM),
        refused("driver_opts", P(Options), SWARM),
        refused("template_driver", Text, SWARM),
    ],
);

static CONFIG: Object = object(
    "a config",
    &[
        key("name", Text),
        key("file", Text),
        key("environment", Text),
        key("content", Text),
        refused("external", Short(&Of(&EXTERNAL), &Bool), "gpurun keeps no configs: use `file` or `content`"),
        ignored("labels", P(Labels), SWARM),
        refused("template_driver", Text, SWARM),
    ],
);

impl Object {
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}
