//! Turns services into the command lines that `gpurun run` and `gpurun build` take.
//!
//! A container of a service is the same as one that `gpurun run` makes with these flags: the same checks, the same
//! limits, the same messages. Nothing is decided here that the command line decides.

mod files;
mod keys;
mod maker;
mod network;
mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::decode::duration;
use super::error::{ComposeError, Wrong};
use super::project::Project;
use super::schema::{Object, Run, SERVICE, Type};
use super::service::{DeviceNode, Health, Port, Service};
use super::value::{Node, Value};
pub(crate) use maker::{Build, Content};
use maker::{Flags, Maker};
pub(crate) use network::{Connection, ProjectNetwork};

/// When to pull or build the image of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Missing,
    Always,
    Never,
    Build,
}

/// A condition of `depends_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Started,
    Healthy,
    Completed,
}

impl Condition {
    /// Returns its name in a compose file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Started => "service_started",
            Self::Healthy => "service_healthy",
            Self::Completed => "service_completed_successfully",
        }
    }
}

/// What a service needs of another one before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DependsOn {
    pub(crate) condition: Condition,
    /// Restart this service after the other one was replaced or restarted.
    pub(crate) restart: bool,
    /// Whether this service cannot start without the other one.
    pub(crate) required: bool,
}

/// How the containers of one service are made.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) service: String,
    pub(crate) image: String,
    /// Flags of `gpurun run`, without the name of the container and the labels of compose.
    pub(crate) flags: Vec<String>,
    /// Published ports, as flags. `compose run` leaves them out.
    pub(crate) ports: Vec<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) command: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) container_name: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) scale: u32,
    pub(crate) pull: PullPolicy,
    pub(crate) build: Option<Build>,
    pub(crate) depends_on: BTreeMap<String, DependsOn>,
    /// The project's networks that the containers are connected to.
    pub(crate) connections: Vec<Connection>,
    /// Directories that docker would create.
    pub(crate) create: Vec<PathBuf>,
    pub(crate) contents: Vec<Content>,
    /// External volumes, which must exist.
    pub(crate) external_volumes: Vec<String>,
}

impl Plan {
    /// Returns the name of a container.
    pub(crate) fn container(&self, project: &str, number: u32) -> String {
        self.container_name.clone().unwrap_or_else(|| format!("{project}-{}-{number}", self.service))
    }
}

/// The plans of all enabled services and of their networks, and notices about keys that have no effect.
#[derive(Debug, Clone)]
pub(crate) struct Plans {
    pub(crate) services: BTreeMap<String, Plan>,
    /// The builds of services that are not enabled, and whose images other builds read.
    pub(crate) bases: BTreeMap<String, Build>,
    pub(crate) networks: Vec<ProjectNetwork>,
    pub(crate) notices: Vec<String>,
}

impl Project {
    /// Plans all enabled services. A key that gpurun cannot honor is an error.
    pub(crate) fn plans(&self) -> Result<Plans, ComposeError> {
        let mut plans =
            Plans { services: BTreeMap::new(), bases: BTreeMap::new(), networks: Vec::new(), notices: Vec::new() };
        for (name, node) in &self.services {
            let service = self.service(name, node, &mut plans.notices)?;
            let maker = Maker { project: self, name, node, service: &service };
            let plan = maker.plan(&mut plans.notices).map_err(|wrong| self.placed(wrong))?;
            plans.services.insert(name.clone(), plan);
        }
        self.bases(&mut plans)?;
        for kind in ["networks", "volumes", "secrets", "configs"] {
            let Some(resources) = self.rest.get(kind).and_then(Node::as_map) else { continue };
            let Some(Type::Map(inner)) = super::schema::PROJECT.key(kind).map(|key| &key.ty) else { continue };
            let (Type::Empty(Type::Object(of)) | Type::Object(of)) = inner else { continue };
            for (name, node) in resources {
                let path = format!("{kind}.{name}");
                support(node, of, &path, &mut |wrong| self.placed(wrong), &mut plans.notices)?;
            }
        }
        plans.networks = self.networks().map_err(|wrong| self.placed(wrong))?;
        Ok(plans)
    }

    fn service(&self, name: &str, node: &Node, notices: &mut Vec<String>) -> Result<Service, ComposeError> {
        let path = format!("services.{name}");
        support(node, &SERVICE, &path, &mut |wrong| self.placed(wrong), notices)?;
        serde_json::from_value(node.to_json()).map_err(|error| {
            self.placed(Wrong::new(node.at, &path, format!("a value has an unexpected form: {error}")))
        })
    }

    /// Plans the builds of services that are not enabled, and whose images other builds read.
    fn bases(&self, plans: &mut Plans) -> Result<(), ComposeError> {
        let reads = |build: Option<&Build>| build.map(|build| build.reads.clone()).unwrap_or_default();
        let mut open: Vec<String> = plans.services.values().flat_map(|plan| reads(plan.build.as_ref())).collect();
        while let Some(name) = open.pop() {
            let Some(node) = self.any_service(&name).filter(|_| plans.build(&name).is_none()) else { continue };
            let service = self.service(&name, node, &mut plans.notices)?;
            let maker = Maker { project: self, name: &name, node, service: &service };
            let Some(build) = service.build.as_ref() else { continue };
            let build = maker.build(build).map_err(|wrong| self.placed(wrong))?;
            open.extend(reads(Some(&build)));
            plans.bases.insert(name, build);
        }
        if let Some(name) = plans.services.keys().find(|name| plans.reads_itself(name)) {
            let at = self.any_service(name).map(|node| node.at).unwrap_or_default();
            let reason = "the builds of services read each other's images in a circle";
            return Err(self.placed(Wrong::new(at, format!("services.{name}.build.additional_contexts"), reason)));
        }
        Ok(())
    }

    pub(super) fn placed(&self, wrong: Wrong) -> ComposeError {
        ComposeError {
            file: (wrong.at.line > 0).then(|| self.sources.get(usize::from(wrong.at.file)).cloned()).flatten(),
            line: wrong.at.line,
            key: wrong.key,
            reason: wrong.reason,
            hint: wrong.hint,
            notices: Box::default(),
        }
    }

    /// Returns the names of the project's own volumes on this host.
    pub(crate) fn own_volumes(&self) -> Vec<String> {
        let volumes = self.rest.get("volumes").and_then(Node::as_map).into_iter().flatten();
        let own = volumes.filter(|(_, node)| node.get("external").is_none_or(|node| node.value != Value::Bool(true)));
        own.filter_map(|(_, node)| node.get("name")?.as_text().map(str::to_owned)).collect()
    }
}

impl Plans {
    /// Returns how the image of a service is built, if it is built.
    pub(crate) fn build(&self, service: &str) -> Option<&Build> {
        self.services.get(service).and_then(|plan| plan.build.as_ref()).or_else(|| self.bases.get(service))
    }

    /// Returns whether the build of a service needs the image that it makes.
    fn reads_itself(&self, service: &str) -> bool {
        let reads = |name: &str| self.build(name).map(|build| build.reads.clone()).unwrap_or_default();
        let (mut open, mut seen) = (reads(service), BTreeSet::new());
        while let Some(name) = open.pop() {
            if name == service {
                return true;
            }
            if seen.insert(name.clone()) {
                open.extend(reads(&name));
            }
        }
        false
    }
}

/// Refuses keys that gpurun cannot honor, and collects notices about those without an effect.
fn support(
    node: &Node,
    of: &'static Object,
    path: &str,
    placed: &mut dyn FnMut(Wrong) -> ComposeError,
    notices: &mut Vec<String>,
) -> Result<(), ComposeError> {
    let Some(map) = node.as_map() else { return Ok(()) };
    for (name, value) in map {
        let Some(key) = of.key(name) else { continue };
        let path = format!("{path}.{name}");
        match key.run {
            // `privileged: false` asks for nothing.
            Run::Refused(_) | Run::Ignored(_) if is_nothing(value) => {}
            Run::Used => below(value, &key.ty, &path, placed, notices)?,
            Run::Ignored(why) => {
                let notice = format!("`{path}` is ignored: {why}");
                if !notices.contains(&notice) {
                    notices.push(notice);
                }
            }
            Run::Refused(why) => {
                return Err(placed(
                    Wrong::new(value.at, path, format!("gpurun does not support this key: {why}"))
                        .with_hint("remove the key, or start the container with `gpurun run`"),
                ));
            }
        }
    }
    Ok(())
}

fn is_nothing(node: &Node) -> bool {
    match &node.value {
        Value::Null | Value::Bool(false) | Value::Int(0) => true,
        Value::Text(text) => text.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        _ => false,
    }
}

fn below(
    node: &Node,
    ty: &'static Type,
    path: &str,
    placed: &mut dyn FnMut(Wrong) -> ComposeError,
    notices: &mut Vec<String>,
) -> Result<(), ComposeError> {
    match (ty, &node.value) {
        (Type::Object(of), _) => support(node, of, path, placed, notices),
        (Type::Short(_, inner) | Type::Empty(inner), _) => below(node, inner, path, placed, notices),
        (Type::List(item), Value::List(list)) => list
            .iter()
            .enumerate()
            .try_for_each(|(index, node)| below(node, item, &format!("{path}[{index}]"), placed, notices)),
        (Type::Map(item), Value::Map(map)) => {
            map.iter().try_for_each(|(key, node)| below(node, item, &format!("{path}.{key}"), placed, notices))
        }
        _ => Ok(()),
    }
}

impl Maker<'_> {
    fn wrong(&self, key: &str, reason: impl Into<String>) -> Wrong {
        let first = key.split(['.', '[']).next().unwrap_or_default();
        let at = self.node.get(first).map_or(self.node.at, |node| node.at);
        Wrong::new(at, format!("services.{}.{key}", self.name), reason)
    }

    fn plan(&self, notices: &mut Vec<String>) -> Result<Plan, Wrong> {
        let service = self.service;
        let mut flags = Flags::default();
        self.process(&mut flags, notices)?;
        self.limits(&mut flags, notices)?;
        self.gpus(&mut flags)?;
        let connections = self.network(&mut flags)?;
        let (mut create, mut contents, mut external_volumes) = (Vec::new(), Vec::new(), Vec::new());
        for (index, volume) in service.volumes.iter().enumerate() {
            flags.add("--mount", self.volume(volume, index, &mut create, &mut external_volumes)?);
        }
        flags.each("--tmpfs", &service.tmpfs);
        self.files(&mut flags, &mut contents)?;
        let scale = u32::try_from(self.project.scale(self.name))
            .ok()
            .filter(|scale| *scale <= 1000)
            .ok_or_else(|| self.wrong("scale", "a service has from 0 to 1000 containers"))?;
        Ok(Plan {
            service: self.name.to_owned(),
            image: self.project.image(self.name),
            flags: flags.0,
            ports: service.ports.iter().map(port).collect(),
            entrypoint: service.entrypoint.clone(),
            command: service.command.clone().unwrap_or_default(),
            tty: service.tty,
            stdin: service.stdin_open,
            container_name: service.container_name.clone(),
            labels: service.labels.clone(),
            scale,
            pull: self.pull_policy()?,
            build: service.build.as_ref().map(|build| self.build(build)).transpose()?,
            depends_on: self.depends_on(),
            connections,
            create,
            contents,
            external_volumes,
        })
    }

    fn depends_on(&self) -> BTreeMap<String, DependsOn> {
        let all = self.service.depends_on.iter().map(|(name, dependency)| {
            let condition = match dependency.condition.as_str() {
                "service_completed_successfully" => Condition::Completed,
                "service_healthy" => Condition::Healthy,
                _ => Condition::Started,
            };
            let (restart, required) = (dependency.restart, dependency.required.unwrap_or(true));
            (name.clone(), DependsOn { condition, restart, required })
        });
        all.collect()
    }

    fn pull_policy(&self) -> Result<PullPolicy, Wrong> {
        match self.service.pull_policy.as_deref() {
            None | Some("missing") => Ok(PullPolicy::Missing),
            Some("always" | "daily" | "weekly") => Ok(PullPolicy::Always),
            Some("never") => Ok(PullPolicy::Never),
            Some("build") => Ok(PullPolicy::Build),
            Some(other) if other.starts_with("every_") => Ok(PullPolicy::Always),
            Some(other) => Err(self.wrong("pull_policy", format!("`{other}` is not a pull policy"))),
        }
    }

    /// The process, its user and its environment.
    fn process(&self, flags: &mut Flags, notices: &mut Vec<String>) -> Result<(), Wrong> {
        let service = self.service;
        for (key, value) in &service.environment {
            if let Some(value) = value {
                flags.add("--env", format!("{key}={value}"));
            }
        }
        flags.option("--workdir", service.working_dir.as_ref());
        flags.option("--user", service.user.as_ref());
        flags.each("--group-add", &service.group_add);
        flags.option("--hostname", service.hostname.as_ref());
        flags.switch("--init", service.init == Some(true));
        flags.option("--restart", self.restart());
        flags.option("--stop-signal", service.stop_signal.as_ref());
        if let Some(nanos) = service.stop_grace_period.as_deref().and_then(duration) {
            flags.add("--stop-timeout", (nanos.max(0) as u64).div_ceil(1_000_000_000).to_string());
        }
        if let Some(health) = &service.healthcheck {
            health_check(health, flags);
        }
        flags.each("--annotation", pairs(&service.annotations));
        flags.option("--domainname", service.domainname.as_ref());
        flags.each("--expose", &service.expose);
        flags.option("--isolation", service.isolation.as_ref());
        flags.each(
            "--label-file",
            service.label_file.iter().map(|path| self.project.directory.join(path).display().to_string()),
        );
        flags.switch("--privileged", service.privileged);
        flags.option("--uts", service.uts.as_ref());
        flags.each("--volumes-from", service.volumes_from.iter().map(|source| self.volumes_from(source)));
        flags.each("--device-cgroup-rule", &service.device_cgroup_rules);
        flags.each("--cap-add", &service.cap_add);
        flags.each("--cap-drop", &service.cap_drop);
        flags.each("--security-opt", &service.security_opt);
        flags.each("--sysctl", service.sysctls.iter().map(|(key, value)| format!("{key}={value}")));
        flags.each("--device", service.devices.iter().map(device_node));
        flags.switch("--read-only", service.read_only);
        flags.option("--pid", service.pid.as_ref().map(|pid| self.namespace(pid)));
        flags.option("--ipc", service.ipc.as_ref().map(|ipc| self.namespace(ipc)));
        flags.option("--userns", service.userns_mode.as_ref());
        flags.option("--cgroupns", service.cgroup.as_ref());
        if let Some(logging) = &service.logging {
            let own = matches!(logging.driver.as_deref(), None | Some("json-file" | "local"));
            let none = logging.driver.as_deref() == Some("none");
            flags.option("--log-driver", none.then_some("none"));
            for (key, value) in &logging.options {
                if own && ["max-size", "max-file"].contains(&key.as_str()) {
                    flags.add("--log-opt", format!("{key}={value}"));
                } else {
                    notices.push(format!("`services.{}.logging.options.{key}` is ignored: {LOG}", self.name));
                }
            }
            if let Some(driver) = logging.driver.as_ref().filter(|_| !own && !none) {
                notices.push(format!("`services.{}.logging.driver: {driver}` is ignored: {LOG}", self.name));
            }
        }
        if service
            .runtime
            .as_deref()
            .is_some_and(|name| !["nvidia", "runc", "crun", "io.containerd.runc.v2"].contains(&name))
        {
            return Err(self.wrong("runtime", "gpurun has its own runtime: `nvidia` and `runc` are accepted"));
        }
        Ok(())
    }

    /// Replaces `service:NAME` by the container of that service.
    fn namespace(&self, mode: &str) -> String {
        match mode.strip_prefix("service:") {
            Some(other) => format!("container:{}", self.container_of(other)),
            None => mode.to_owned(),
        }
    }

    /// Returns `CONTAINER[:ro]` for `SERVICE[:ro]` or `container:NAME[:ro]`.
    fn volumes_from(&self, source: &str) -> String {
        if let Some(container) = source.strip_prefix("container:") {
            return container.to_owned();
        }
        let (service, mode) =
            source.split_once(':').map_or((source, String::new()), |(service, mode)| (service, format!(":{mode}")));
        self.container_of(service) + &mode
    }

    fn container_of(&self, service: &str) -> String {
        let node = self.project.services.get(service);
        let name = node.and_then(|node| node.get("container_name")).and_then(Node::as_text);
        name.map_or_else(|| format!("{}-{service}-1", self.project.name), str::to_owned)
    }

    /// `restart`, or swarm's policy, which docker-compose honors too.
    fn restart(&self) -> Option<String> {
        if self.service.restart.is_some() {
            return self.service.restart.clone();
        }
        let policy = self.service.deploy.as_ref()?.restart_policy.as_ref()?;
        match policy.condition.as_deref() {
            Some("none") => Some("no".to_owned()),
            Some("on-failure") => Some(match policy.max_attempts {
                Some(attempts) if attempts > 0 => format!("on-failure:{attempts}"),
                _ => "on-failure".to_owned(),
            }),
            _ => Some("unless-stopped".to_owned()),
        }
    }
}

impl Project {
    /// Returns the Containerfile of a service that is written in the compose file itself.
    pub(crate) fn inline_containerfile(&self, service: &str) -> Option<String> {
        let build = self.any_service(service)?.get("build")?;
        build.get("dockerfile_inline")?.as_text().map(str::to_owned)
    }
}

/// The health check. The image's values apply to keys that are missing.
fn health_check(health: &Health, flags: &mut Flags) {
    if health.disable || health.test.first().is_some_and(|kind| kind == "NONE") {
        flags.switch("--no-healthcheck", true);
        return;
    }
    if !health.test.is_empty() {
        flags.add("--health-cmd", serde_json::Value::from(health.test.clone()).to_string());
    }
    for (flag, time) in [
        ("--health-interval", &health.interval),
        ("--health-timeout", &health.timeout),
        ("--health-start-period", &health.start_period),
        ("--health-start-interval", &health.start_interval),
    ] {
        flags.option(flag, time.as_ref().filter(|text| duration(text) != Some(0)));
    }
    flags.option("--health-retries", health.retries);
}

const LOG: &str = "the log is a file with rotation, `max-size` and `max-file`";

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    map.iter().map(|(key, value)| format!("{key}={value}"))
}

/// Returns a device in the short form.
fn device_node(device: &DeviceNode) -> String {
    if !device.source.starts_with('/') {
        return device.source.clone();
    }
    let target = device.target.as_ref().unwrap_or(&device.source);
    format!("{}:{target}:{}", device.source, device.permissions.as_deref().unwrap_or("rwm"))
}

/// Returns a port as a flag of `run`.
fn port(port: &Port) -> String {
    let protocol = match port.protocol.as_deref() {
        None | Some("tcp") => String::new(),
        Some(other) => format!("/{other}"),
    };
    let ip = match port.host_ip.as_deref() {
        None | Some("") => String::new(),
        Some(ip) if ip.contains(':') => format!("[{ip}]:"),
        Some(ip) => format!("{ip}:"),
    };
    match &port.published {
        Some(published) => format!("--publish={ip}{published}:{}{protocol}", port.target),
        None if ip.is_empty() => format!("--publish={}{protocol}", port.target),
        None => format!("--publish={ip}:{}{protocol}", port.target),
    }
}
