//! A container in the shape of docker's `inspect`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::network_ids::{endpoint_id, network_id};
use super::super::view::{Shown, View};
use crate::clock::rfc3339;
use crate::control::Announcement;
use crate::names::{Digest, Reference};
use crate::net::Endpoint;
use crate::record::{Entry, Phase};
use crate::request::{DeviceRequest, HealthConfig, LogDriver, LogOptions, Request, RestartPolicy, Seccomp, Which};
use crate::units::parse_memory;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";
const LOOPBACK: &str = "127.0.0.1";

pub(super) fn json(view: &View<'_>, with_size: bool) -> Value {
    let (entry, state) = (view.entry, view.state);
    let record = &entry.record;
    let command = view.command().unwrap_or_default();
    let mounts = view.mounts();
    let in_run = |name: &str| Some(entry.run_dir.join(name)).filter(|path| path.exists());
    let mut all = json!({
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Path": command.first().cloned().unwrap_or_default(),
        "Args": command.iter().skip(1).collect::<Vec<_>>(),
        "State": state_json(view),
        "Image": record.image.to_string(),
        "ResolvConfPath": in_run("resolv.conf").unwrap_or_default(),
        "HostnamePath": in_run("hostname").unwrap_or_default(),
        "HostsPath": in_run("hosts").unwrap_or_default(),
        "LogPath": entry.log(),
        "ImageName": image_name(&record.request.image),
        "ImageDigest": view.image.as_ref().and_then(|image| image.manifest_digest).map(|digest| digest.to_string()).unwrap_or_default(),
        "Name": format!("/{}", record.name),
        "RestartCount": state.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(view, &mounts),
        "GraphDriver": { "Name": "overlay2", "Data": { "UpperDir": entry.dir.join("upper"), "WorkDir": entry.dir.join("work") } },
        "Mounts": mounts.iter().filter(|mount| mount.kind != "tmpfs").map(mount_json).collect::<Vec<_>>(),
        "Config": config(view),
        "NetworkSettings": network(view),
        "Gpurun": own(view),
    });
    if let (true, Some(object)) = (with_size, all.as_object_mut()) {
        let (written, image) = view.size();
        object.insert("SizeRw".into(), written.into());
        object.insert("SizeRootFs".into(), (written + image).into());
    }
    all
}

fn state_json(view: &View<'_>) -> Value {
    let state = view.state;
    let moment = |nanos: Option<u64>| nanos.map_or_else(|| NEVER.to_owned(), rfc3339);
    let mut all = json!({
        "Status": view.status(),
        "Running": state.phase == Phase::Running,
        "Paused": state.paused,
        "Restarting": state.phase == Phase::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": state.pid.unwrap_or(0),
        "ExitCode": state.exit_code.unwrap_or(0),
        "Error": state.error.as_ref().map(|report| report.message.clone()).unwrap_or_default(),
        "StartedAt": moment(state.started),
        "FinishedAt": moment(state.finished.filter(|_| state.phase != Phase::Running)),
    });
    // More of it under podman's names.
    if let Some(object) = all.as_object_mut() {
        object.insert("StoppedByUser".into(), state.stopped_by_user.into());
        object.insert("ConmonPid".into(), view.entry.supervisor().ok().flatten().unwrap_or(0).into());
    }
    // As in docker, the key is missing without a health check.
    if let (Some(health), Some(object)) = (&state.health, all.as_object_mut()) {
        let log = health.log.iter().map(|result| {
            json!({ "Start": rfc3339(result.start), "End": rfc3339(result.end), "ExitCode": result.exit_code,
                "Output": result.output })
        });
        let health = json!({ "Status": health.status.name(), "FailingStreak": health.failing_streak,
            "Log": log.collect::<Vec<_>>() });
        object.insert("Healthcheck".into(), health.clone());
        object.insert("Health".into(), health);
    }
    all
}

/// What gpurun knows beyond docker's keys.
fn own(view: &View<'_>) -> Value {
    let (entry, state) = (view.entry, view.state);
    let spec: Option<Value> =
        std::fs::read(entry.run_dir.join("config.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    json!({
        "Request": entry.record.request,
        "Limits": state.limits,
        "Gpus": state.gpus,
        "GpusBy": state.gpus_by,
        "Cgroup": entry.record.cgroup.path,
        "ClusterStep": entry.record.cgroup.step,
        "ClusterCgroups": entry.record.cgroup.apart,
        "Owner": { "Uid": entry.record.owner.uid, "Gid": entry.record.owner.gid, "Name": entry.record.owner.name() },
        "Supervisor": supervisor(entry),
        "Network": { "IPAddress": state.ip, "Ports": state.ports },
        "Url": state.url,
        "State": {
            "OOMKills": state.oom_kills,
            "OOMs": state.ooms,
            "Usage": state.usage,
            "Error": state.error,
            "ExitCode": state.exit_code,
            "StoppedByUser": state.stopped_by_user,
            "StopReason": state.stop_reason,
        },
        "Paths": {
            "Directory": entry.dir,
            "UpperDir": entry.dir.join("upper"),
            "Log": entry.log(),
            "Bundle": entry.run_dir,
        },
        "Spec": spec,
    })
}

/// The process that supervises the container, if it runs, and its version.
fn supervisor(entry: &Entry) -> Option<Value> {
    let pid = entry.supervisor().ok()??;
    let peer = Announcement::read(&entry.run_dir).ok();
    Some(json!({
        "Pid": pid,
        "Release": peer.as_ref().map(|peer| &peer.release),
        "Protocol": peer.as_ref().map(|peer| peer.protocol),
    }))
}

/// An object whose keys are all `{}`, as Go prints a set.
fn set<'a>(keys: impl Iterator<Item = &'a String>) -> Value {
    Value::Object(keys.map(|key| (key.clone(), json!({}))).collect())
}

fn config(view: &View<'_>) -> Value {
    let (request, image) = (&view.entry.record.request, view.config());
    let entrypoint = request.entrypoint.clone().unwrap_or_else(|| image.entrypoint.clone());
    let command = view.command().unwrap_or_default();
    let or_null = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let working_dir = request.workdir.as_ref().map_or(image.working_dir.clone(), |dir| dir.display().to_string());
    let stop_signal = request.stop_signal.map_or_else(
        || if image.stop_signal.is_empty() { "SIGTERM".into() } else { image.stop_signal.clone() },
        |number| nix::sys::signal::Signal::try_from(number).map_or(number.to_string(), |signal| signal.to_string()),
    );
    let health = request.health.clone().unwrap_or_default().over(HealthConfig::of_image(image.healthcheck.as_ref()));
    let mut all = json!({
        "Hostname": request.hostname.clone().unwrap_or_else(|| crate::record::short(&view.entry.record.id).to_owned()),
        "Domainname": request.domainname.clone().unwrap_or_default(),
        "User": request.user.as_ref().map_or(image.user, ToString::to_string),
        "AttachStdin": request.attached.stdin,
        "AttachStdout": request.attached.stdout,
        "AttachStderr": request.attached.stderr,
        "ExposedPorts": set(view.exposed().iter()),
        "Tty": request.tty,
        "OpenStdin": request.interactive,
        "StdinOnce": request.interactive && request.attached.stdin,
        "Env": view.env(),
        "Cmd": or_null(command.get(entrypoint.len()..).unwrap_or_default()),
        "Image": request.image,
        "Volumes": if image.volumes.is_empty() { Value::Null } else { set(image.volumes.iter()) },
        "WorkingDir": working_dir,
        "Entrypoint": or_null(&entrypoint),
        "OnBuild": null,
        "Labels": view.labels(),
        "StopSignal": stop_signal,
        "StopTimeout": request.stop_timeout,
    });
    if let (false, Some(object)) = (health.test.is_empty(), all.as_object_mut()) {
        object.insert("Healthcheck".into(), json!(health));
        object.insert("HealthcheckOnFailureAction".into(), request.health_on_failure.name().into());
    }
    all
}

fn mount_json(mount: &Shown) -> Value {
    let mut all = json!({
        "Type": mount.kind,
        "Source": mount.source,
        "Destination": mount.destination,
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
        "Propagation": mount.propagation,
    });
    if let (Some(name), "image") = (&mount.name, mount.kind) {
        all["Name"] = name.as_str().into();
        all["Source"] = name.as_str().into();
        return all;
    }
    if let (Some(name), Some(object)) = (&mount.name, all.as_object_mut()) {
        object.insert("Name".into(), name.as_str().into());
        object.insert("Driver".into(), "local".into());
    }
    all
}

/// The published ports by port of the container, and the ports that are only exposed, which are null.
fn ports(view: &View<'_>) -> Value {
    let mut ports: BTreeMap<String, Value> = view.exposed().into_iter().map(|port| (port, Value::Null)).collect();
    for port in &view.state.ports {
        let binding = json!({ "HostIp": port.host_ip, "HostPort": port.host_port.to_string() });
        let bindings = ports.entry(format!("{}/{}", port.container_port, port.protocol)).or_insert(Value::Null);
        match bindings {
            Value::Array(bindings) => bindings.push(binding),
            other => *other = json!([binding]),
        }
    }
    json!(ports)
}

fn network(view: &View<'_>) -> Value {
    let is_up = matches!(view.state.phase, Phase::Running);
    let mut networks: Map<String, Value> =
        view.networks().into_iter().map(|name| (name, endpoint(view, None))).collect();
    // A supervisor of release 0.1 records the address of the default bridge only.
    let earlier = view.state.ip.clone().filter(|ip| is_up && view.state.networks.is_empty() && ip != LOOPBACK);
    for one in view.state.networks.iter().filter(|_| is_up) {
        networks.insert(one.bridge.network.clone(), endpoint(view, Some(one)));
    }
    // docker's keys at the top are those of the default bridge.
    let first = view.state.networks.iter().find(|one| is_up && one.bridge.id.is_none());
    let text = |one: Option<String>| one.unwrap_or_default();
    json!({
        "Bridge": "", "SandboxID": "", "SandboxKey": "", "Ports": if is_up { ports(view) } else { json!({}) },
        "Gateway": text(first.map(|one| one.bridge.gateway.to_string())),
        "IPAddress": text(first.map(|one| one.ip.to_string()).or(earlier)),
        "IPPrefixLen": first.map_or(0, |one| one.bridge.subnet.prefix),
        "MacAddress": text(first.map(|one| one.mac.to_string())), "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0, "IPv6Gateway": "", "Networks": networks,
    })
}

/// A connection to a network in docker's shape. `None` while the container does not run.
fn endpoint(view: &View<'_>, endpoint: Option<&Endpoint>) -> Value {
    let text = |one: Option<String>| one.unwrap_or_default();
    let id = &view.entry.record.id;
    let names = endpoint.map(|one| &one.names).filter(|names| !names.is_empty());
    let aliases = endpoint.map(|one| &one.aliases).filter(|aliases| !aliases.is_empty());
    json!({
        "IPAMConfig": null, "Links": null, "Aliases": aliases,
        "MacAddress": text(endpoint.map(|one| one.mac.to_string())),
        "NetworkID": text(endpoint.map(network_id)),
        "EndpointID": text(endpoint.map(|one| endpoint_id(id, one))),
        "Gateway": text(endpoint.filter(|one| !one.bridge.internal).map(|one| one.bridge.gateway.to_string())),
        "IPAddress": text(endpoint.map(|one| one.ip.to_string())),
        "IPPrefixLen": endpoint.map_or(0, |one| one.bridge.subnet.prefix),
        "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": names,
    })
}

fn host_config(view: &View<'_>, mounts: &[Shown]) -> Value {
    let request = &view.entry.record.request;
    // The record keeps limits and names in the form of the flags.
    let stored = serde_json::to_value(request).unwrap_or_default();
    let limits = &stored["limits"];
    let bytes = |key: &str| match limits[key].as_str() {
        Some("-1") => -1,
        text => text.and_then(|text| parse_memory(text).ok()).and_then(|size| i64::try_from(size).ok()).unwrap_or(0),
    };
    let number = |key: &str| limits[key].as_i64().unwrap_or(0);
    let text = |key: &str| limits[key].as_str().unwrap_or_default();
    let binds = mounts.iter().filter(|mount| mount.kind != "tmpfs" && !mount.is_anonymous).map(|mount| {
        let source = mount.name.clone().or_else(|| mount.source.as_ref().map(|path| path.display().to_string()));
        let mode = if mount.read_only { ":ro" } else { "" };
        format!("{}:{}{mode}", source.unwrap_or_default(), mount.destination.display())
    });
    let (policy, retries) = match request.restart {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { max } => ("on-failure", max.unwrap_or(0)),
    };
    let mut security = Vec::new();
    if !request.no_new_privileges && !request.privileged {
        security.push("no-new-privileges=false".to_owned());
    }
    if request.unmasked {
        security.push("systempaths=unconfined".to_owned());
    }
    if matches!(request.seccomp, Seccomp::Unconfined) && !request.privileged {
        security.push("seccomp=unconfined".to_owned());
    }
    let devices = request.devices.iter().map(|device| match device {
        DeviceRequest::Node { host, container, access } => {
            json!({ "PathOnHost": host, "PathInContainer": container, "CgroupPermissions": access })
        }
        DeviceRequest::Cdi(name) => json!({ "PathOnHost": name, "PathInContainer": name, "CgroupPermissions": "" }),
    });
    let gpus = request.gpus.as_ref().map(|gpus| {
        let (count, ids) = match &gpus.which {
            Which::All => (-1, None),
            Which::Count(count) | Which::Free(count) => (i64::from(*count), None),
            Which::Devices(ids) => (0, Some(ids)),
        };
        let capabilities: Vec<&str> =
            std::iter::once("gpu").chain(gpus.capabilities.iter().map(String::as_str)).collect();
        json!([{ "Driver": gpus.driver.clone().unwrap_or_default(), "Count": count, "DeviceIDs": ids,
            "Capabilities": [capabilities], "Options": gpus.options.iter().cloned().collect::<BTreeMap<_, _>>() }])
    });
    let mut all = json!({
        "Binds": binds.collect::<Vec<_>>(),
        "ContainerIDFile": request.cidfile.clone().unwrap_or_default(),
        "LogConfig": { "Type": request.log.driver.name(), "Config": log_config(&request.log),
            "Path": log_path(view), "Size": log_size(&request.log) },
        "NetworkMode": view.network(),
        "PortBindings": ports_asked(view),
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": retries },
        "AutoRemove": request.auto_remove,
        "AutoRemoveImage": request.remove_image,
        "VolumeDriver": "",
        "VolumesFrom": if request.volumes_from.is_empty() { Value::Null } else { json!(request.volumes_from) },
        "CapAdd": stored["cap_add"],
        "CapDrop": stored["cap_drop"],
        "CgroupnsMode": if request.cgroup_host { "host" } else { "private" },
        "Dns": stored["dns"],
        "DnsOptions": request.dns_options,
        "DnsSearch": request.dns_search,
        "Annotations": request.annotations.iter().cloned().collect::<BTreeMap<_, _>>(),
        "ExtraHosts": stored["add_hosts"],
        "GroupAdd": stored["group_add"],
        "IpcMode": request.ipc.to_string(),
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": request.oom_score_adj.unwrap_or(0),
        "PidMode": pid_mode(request),
        "Privileged": request.privileged,
        "PublishAllPorts": request.publish_all,
        "ReadonlyRootfs": request.read_only,
        "SecurityOpt": security,
        "UTSMode": if request.uts_host { "host" } else { "" },
        "UsernsMode": "",
        "ShmSize": request.shm_size.unwrap_or(64 << 20),
        "Sysctls": request.sysctls.iter().cloned().collect::<BTreeMap<_, _>>(),
        "Runtime": request.runtime.as_ref().map_or_else(|| "gpurun".to_owned(), ToString::to_string),
        "Init": request.init,
    });
    let weights: Vec<Value> =
        request.limits.device_weights.iter().map(|one| json!({ "Path": one.device, "Weight": one.weight })).collect();
    let resources = json!({
        "CpuShares": number("cpu_shares"),
        "Memory": bytes("memory"),
        "MemoryReservation": bytes("memory_reservation"),
        "MemorySwap": bytes("memory_swap"),
        "MemorySwappiness": limits["memory_swappiness"],
        "NanoCpus": text("cpus").parse::<f64>().map_or(0, |cpus| (cpus * 1e9) as i64),
        "CpuPeriod": number("cpu_period"),
        "CpuQuota": number("cpu_quota"),
        "CpusetCpus": text("cpuset_cpus"),
        "CpusetMems": text("cpuset_mems"),
        "BlkioWeight": number("blkio_weight"),
        "BlkioWeightDevice": weights,
        "OomKillDisable": limits["oom_kill_disable"],
        "PidsLimit": limits["pids_limit"],
        "CgroupParent": request.cgroup_parent.clone().unwrap_or_default(),
        "Ulimits": request.ulimits.iter().map(|limit| json!({ "Name": limit.name, "Soft": ulimit(limit.soft), "Hard": ulimit(limit.hard) })).collect::<Vec<_>>(),
        "Devices": devices.collect::<Vec<_>>(),
        "DeviceRequests": gpus,
        "DeviceCgroupRules": stored["device_rules"],
    });
    if let (Value::Object(all), Value::Object(resources)) = (&mut all, resources) {
        all.extend(resources);
    }
    all
}

/// A limit as docker shows it: -1 is none.
fn ulimit(limit: u64) -> i128 {
    if limit == u64::MAX { -1 } else { limit.into() }
}

/// The full name of an image, as podman shows it. Anything else than a name is shown as it was written.
fn image_name(image: &str) -> String {
    match image.parse::<Reference>() {
        Ok(name) if image.parse::<Digest>().is_err() => name.to_string(),
        _ => image.to_owned(),
    }
}

/// The largest size of a file of the log, as podman shows it.
fn log_size(log: &LogOptions) -> String {
    match log.max_size {
        u64::MAX => "0B".to_owned(),
        bytes => crate::cli::image::size(bytes),
    }
}

/// The file with the container's output.
fn log_path(view: &View<'_>) -> String {
    match view.entry.record.request.log.driver {
        LogDriver::None => String::new(),
        _ => view.entry.log().display().to_string(),
    }
}

fn pid_mode(request: &Request) -> String {
    match &request.pid_container {
        Some(id) => format!("container:{id}"),
        None if request.pid_host => "host".to_owned(),
        None => String::new(),
    }
}

fn log_config(log: &LogOptions) -> Value {
    if log.driver == LogDriver::None {
        return json!({});
    }
    let mut all = json!({ "max-size": log.max_size.to_string(), "max-file": log.max_file.to_string() });
    let details = &log.details;
    let given = [
        ("labels", details.labels.join(",")),
        ("labels-regex", details.labels_regex.clone()),
        ("env", details.env.join(",")),
        ("env-regex", details.env_regex.clone()),
    ];
    if let Some(object) = all.as_object_mut() {
        object.extend(
            given.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), text.into())),
        );
    }
    all
}

/// The ports that were asked for. Before the first start, their numbers on the host are not known.
fn ports_asked(view: &View<'_>) -> Value {
    match ports(view) {
        Value::Object(ports) => Value::Object(ports.into_iter().filter(|(_, bindings)| !bindings.is_null()).collect()),
        other => other,
    }
}
