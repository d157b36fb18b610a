//! Replaces short forms by long ones, and relative paths by absolute ones.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use super::error::Wrong;
use super::error::join;
use super::forms::{dependency, keyed};
use super::value::{At, Map, Node, Value};

/// Most ports that one short form may stand for.
const MAX_RANGE: u32 = 1000;

/// Brings all services and resources of a tree into their long form. Relative paths are below `directory`. In a `raw`
/// tree, variables are left, and so are the short forms that they are a part of.
pub(super) fn canonical(root: &mut Node, directory: &Path, raw: bool) -> Result<(), Wrong> {
    let Some(map) = root.as_map_mut() else { return Ok(()) };
    if let Some(services) = map.get_mut("services").and_then(Node::as_map_mut) {
        for (name, service) in services {
            let path = format!("services.{name}");
            if let Some(service) = service.as_map_mut() {
                self::service(service, &path, directory, raw)?;
            }
        }
    }
    for kind in ["volumes", "networks", "secrets", "configs"] {
        let Some(resources) = map.get_mut(kind).and_then(Node::as_map_mut) else { continue };
        for (name, resource) in resources {
            let path = format!("{kind}.{name}");
            if let Some(resource) = resource.as_map_mut() {
                external(resource, &path)?;
                if let Some(file) = resource.get_mut("file") {
                    absolute(file, directory);
                }
                local_bind(resource, directory);
            }
        }
    }
    Ok(())
}

/// Replaces the deprecated `external: {name: X}`.
fn external(resource: &mut Map, path: &str) -> Result<(), Wrong> {
    let Some(node) = resource.get_mut("external") else { return Ok(()) };
    let at = node.at;
    if let Value::Map(map) = &mut node.value {
        let name = map.remove("name");
        node.value = Value::Bool(true);
        match (name, resource.get("name")) {
            (Some(name), Some(other)) if name != *other => {
                return Err(Wrong::new(at, path, "`name` and `external.name` are different")
                    .with_hint("use only `name`, with `external: true`"));
            }
            (Some(name), None) => drop(resource.insert("name".to_owned(), name)),
            _ => {}
        }
    }
    Ok(())
}

/// A volume of the local driver may be a directory of the host.
fn local_bind(resource: &mut Map, directory: &Path) {
    if resource.get("driver").and_then(Node::as_text) != Some("local") {
        return;
    }
    let Some(options) = resource.get_mut("driver_opts").and_then(Node::as_map_mut) else { return };
    if options.get("o").and_then(Node::as_text) == Some("bind")
        && let Some(device) = options.get_mut("device")
    {
        absolute(device, directory);
    }
}

fn service(service: &mut Map, path: &str, directory: &Path, raw: bool) -> Result<(), Wrong> {
    if let Some(node) = service.get_mut("build") {
        build(node, directory);
    }
    if let Some(node) = service.get_mut("depends_on") {
        depends_on(node);
    }
    if let Some(node) = service.get_mut("networks")
        && node.as_list().is_some()
    {
        let at = node.at;
        let list = std::mem::replace(node, Node::new(Value::Null, at));
        *node = Node::map(keyed(list, |at| Node::new(Value::Null, at)), at);
    }
    if let Some(node) = service.get_mut("env_file") {
        env_file(node, directory);
    }
    if let Some(node) = service.get_mut("extends") {
        if node.as_text().is_some() {
            wrap(node, "service");
        }
        if let Some(file) = node.as_map_mut().and_then(|map| map.get_mut("file")) {
            absolute(file, directory);
        }
    }
    if let Some(node) = service.get_mut("gpus")
        && node.as_text().is_some()
    {
        let at = node.at;
        let all = Map::from([("count".to_owned(), Node::text("all", at))]);
        node.value = Value::List(vec![Node::map(all, at)]);
    }
    for key in ["deploy", "gpus"] {
        let node = service.get_mut(key);
        let list = if key == "gpus" { node } else { node.and_then(|deploy| below(deploy, &RESERVED)) };
        for device in list.into_iter().filter_map(|node| node.as_list_mut()).flatten() {
            every_gpu(device);
        }
    }
    for watch in service.get_mut("develop").and_then(|node| below(node, &["watch"])).into_iter() {
        for path in watch.as_list_mut().into_iter().flatten().filter_map(|node| below(node, &["path"])) {
            absolute(path, directory);
        }
    }
    if let Some(node) = service.get_mut("devices") {
        devices(node, &join(path, "devices"), raw)?;
    }
    for kind in ["secrets", "configs"] {
        if let Some(node) = service.get_mut(kind) {
            file_mounts(node, kind == "secrets");
        }
    }
    if let Some(node) = service.get_mut("ports") {
        ports(node, &join(path, "ports"), raw)?;
    }
    if let Some(node) = service.get_mut("volumes") {
        volumes(node, &join(path, "volumes"), directory, raw)?;
    }
    Ok(())
}

const RESERVED: [&str; 3] = ["resources", "reservations", "devices"];

fn below<'a>(node: &'a mut Node, path: &[&str]) -> Option<&'a mut Node> {
    path.iter().try_fold(node, |node, key| node.as_map_mut()?.get_mut(*key))
}

/// A reservation without a count and without IDs is for all devices.
fn every_gpu(device: &mut Node) {
    let at = device.at;
    if let Some(map) = device.as_map_mut()
        && !map.contains_key("count")
        && !map.contains_key("device_ids")
    {
        map.insert("count".to_owned(), Node::text("all", at));
    }
}

/// Whether a text of a raw tree contains a variable.
fn is_variable(text: &str, raw: bool) -> bool {
    raw && text.contains('$')
}

fn devices(node: &mut Node, path: &str, raw: bool) -> Result<(), Wrong> {
    for (index, item) in node.as_list_mut().into_iter().flatten().enumerate() {
        let at = item.at;
        if let Some(text) = item.as_text().filter(|text| !is_variable(text, raw)) {
            let parts: Vec<&str> = text.split(':').collect();
            let (source, target, permissions) = match parts[..] {
                [source] => (source, source, "rwm"),
                [source, target] => (source, target, "rwm"),
                [source, target, permissions] => (source, target, permissions),
                _ => {
                    return Err(Wrong::new(at, format!("{path}[{index}]"), format!("`{text}` is not a device"))
                        .with_hint("write `/dev/NODE[:/dev/NODE][:rwm]`"));
                }
            };
            let text = |text: &str| Node::text(text, at);
            let map = [("source", source), ("target", target), ("permissions", permissions)];
            *item = Node::map(map.map(|(key, value)| (key.to_owned(), text(value))).into_iter().collect(), at);
        }
    }
    Ok(())
}

/// Turns a value into a mapping with one key.
fn wrap(node: &mut Node, key: &str) {
    let at = node.at;
    let value = std::mem::replace(node, Node::new(Value::Null, at));
    *node = Node::map(Map::from([(key.to_owned(), value)]), at);
}

fn build(node: &mut Node, directory: &Path) {
    if node.as_text().is_some() {
        wrap(node, "context");
    }
    let at = node.at;
    let Some(map) = node.as_map_mut() else { return };
    let context = map.entry("context".to_owned()).or_insert_with(|| Node::text(".", at));
    let remote = ["https://", "http://", "git://", "ssh://", "github.com/", "git@"];
    let text = context.as_text().unwrap_or_default();
    if !text.contains("://") && !remote.iter().any(|prefix| text.starts_with(prefix)) {
        absolute(context, directory);
    }
    for key in ["additional_contexts", "ssh"] {
        if let Some(pairs) = map.get_mut(key) {
            absolute_values(pairs, directory);
        }
    }
    if let Some(secrets) = map.get_mut("secrets") {
        file_mounts(secrets, false);
    }
}

/// Each value of `KEY=VALUE` is a path, unless it has a scheme or names a service.
fn absolute_values(node: &mut Node, directory: &Path) {
    let path = |text: &str| match text.contains("://") || text.starts_with("service:") {
        true => text.to_owned(),
        false => absolute_path(text, directory).to_string_lossy().into_owned(),
    };
    match &mut node.value {
        Value::Map(map) => map.values_mut().for_each(|value| {
            if let Value::Text(text) = &mut value.value {
                *text = path(text);
            }
        }),
        Value::List(list) => list.iter_mut().for_each(|item| {
            if let Value::Text(text) = &mut item.value
                && let Some((name, value)) = text.split_once('=')
            {
                *text = format!("{name}={}", path(value));
            }
        }),
        _ => {}
    }
}

fn depends_on(node: &mut Node) {
    let at = node.at;
    if node.as_list().is_some() {
        let list = std::mem::replace(node, Node::new(Value::Null, at));
        *node = Node::map(keyed(list, dependency), at);
    }
    let Some(map) = node.as_map_mut() else { return };
    for node in map.values_mut() {
        let at = node.at;
        if let (Some(map), Value::Map(defaults)) = (node.as_map_mut(), dependency(at).value) {
            for (key, value) in defaults {
                map.entry(key).or_insert(value);
            }
        }
    }
}

fn env_file(node: &mut Node, directory: &Path) {
    if node.as_text().is_some() {
        let at = node.at;
        let value = std::mem::replace(node, Node::new(Value::Null, at));
        *node = Node::new(Value::List(vec![value]), at);
    }
    let Value::List(list) = &mut node.value else { return };
    for item in list {
        if item.as_text().is_some() {
            wrap(item, "path");
        }
        let at = item.at;
        let Some(map) = item.as_map_mut() else { continue };
        map.entry("required".to_owned()).or_insert_with(|| Node::new(Value::Bool(true), at));
        if let Some(path) = map.get_mut("path") {
            absolute(path, directory);
        }
    }
}

/// Secrets are mounted in /run/secrets by default. A config's default is the container's root.
fn file_mounts(node: &mut Node, secrets: bool) {
    let Value::List(list) = &mut node.value else { return };
    for item in list {
        if item.as_text().is_some() {
            wrap(item, "source");
        }
        let at = item.at;
        let Some(map) = item.as_map_mut() else { continue };
        if secrets && let Some(source) = map.get("source").and_then(Node::as_text).map(str::to_owned) {
            map.entry("target".to_owned()).or_insert_with(|| Node::text(format!("/run/secrets/{source}"), at));
        }
    }
}

fn ports(node: &mut Node, path: &str, raw: bool) -> Result<(), Wrong> {
    let Value::List(list) = &mut node.value else { return Ok(()) };
    let mut all = Vec::new();
    for (index, item) in std::mem::take(list).into_iter().enumerate() {
        match item.scalar() {
            None => {
                let (mut item, at) = (item.clone(), item.at);
                if let Some(map) = item.as_map_mut() {
                    map.entry("mode".to_owned()).or_insert_with(|| Node::text("ingress", at));
                    map.entry("protocol".to_owned()).or_insert_with(|| Node::text("tcp", at));
                }
                all.push(item);
            }
            Some(text) if is_variable(&text, raw) => all.push(item),
            Some(text) => all.extend(port(&text, item.at).map_err(|reason| {
                Wrong::new(item.at, format!("{path}[{index}]"), reason)
                    .with_hint("write `[IP:][HOST:]CONTAINER[/udp]`, in quotes, for example `\"8888:8888\"`")
            })?),
        }
    }
    *list = all;
    Ok(())
}

/// Parses the short form of a port. A range stands for several ports.
fn port(text: &str, at: At) -> Result<Vec<Node>, String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("`{protocol}` is not a protocol"));
    }
    let parts: Vec<&str> = address.split(':').collect();
    let (ip, host, container) = match parts[..] {
        [container] => (String::new(), "", container),
        [host, container] => (String::new(), host, container),
        [ref ip @ .., host, container] => (ip.join(":"), host, container),
        [] => return Err("there is no port".into()),
    };
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(&ip);
    if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
        return Err(format!("`{ip}` is not an IP address"));
    }
    let (first, last) = range(container)?;
    let host_range = if host.is_empty() { None } else { Some(range(host)?) };
    if let Some((host_first, host_last)) = host_range
        && host_last - host_first != last - first
        && first != last
    {
        return Err(format!("the ranges `{host}` and `{container}` have different lengths"));
    }
    let mut all: Vec<(String, Node)> = (first..=last)
        .map(|target| {
            let published = host_range.map(|(host_first, host_last)| {
                let published = host_first + target - first;
                // The host's port is one of this range.
                if first == last && host_first != host_last {
                    format!("{published}-{host_last}")
                } else {
                    published.to_string()
                }
            });
            let mut map = Map::from([
                ("mode".to_owned(), Node::text("ingress", at)),
                ("target".to_owned(), Node::new(Value::Int(target.into()), at)),
                ("protocol".to_owned(), Node::text(protocol.clone(), at)),
            ]);
            map.extend(published.map(|text| ("published".to_owned(), Node::text(text, at))));
            if !ip.is_empty() {
                map.insert("host_ip".to_owned(), Node::text(ip, at));
            }
            (format!("{target}/{protocol}"), Node::map(map, at))
        })
        .collect();
    // docker sorts the ports of a range as text.
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(all.into_iter().map(|(_, node)| node).collect())
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u16>().map(u32::from).map_err(|_| format!("`{text}` is not a port"));
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if last < first || last - first >= MAX_RANGE {
        return Err(format!("`{text}` is not a range of at most {MAX_RANGE} ports"));
    }
    Ok((first, last))
}

/// The short form of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) source: String,
    pub(super) target: String,
    read_only: bool,
    nocopy: bool,
    selinux: Option<String>,
    propagation: Option<String>,
}

/// Parses `[SOURCE:]TARGET[:OPTIONS]`. Unknown options are ignored, as docker does.
pub(super) fn volume(text: &str) -> Result<Volume, String> {
    if text.is_empty() {
        return Err("the volume is empty".into());
    }
    let parts: Vec<&str> = text.split(':').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(format!("`{text}` has an empty part between colons"));
    }
    let (source, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(format!("`{text}` has too many colons")),
    };
    let mut volume = Volume {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        nocopy: false,
        selinux: None,
        propagation: None,
    };
    for option in options.split(',') {
        match option {
            "ro" => volume.read_only = true,
            "rw" => volume.read_only = false,
            "nocopy" => volume.nocopy = true,
            "z" | "Z" => volume.selinux = Some(option.to_owned()),
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                volume.propagation = Some(option.to_owned());
            }
            _ => {}
        }
    }
    Ok(volume)
}

fn volumes(node: &mut Node, path: &str, directory: &Path, raw: bool) -> Result<(), Wrong> {
    let Value::List(list) = &mut node.value else { return Ok(()) };
    for (index, item) in list.iter_mut().enumerate() {
        let at = item.at;
        if let Some(text) = item.as_text().filter(|text| !is_variable(text, raw)) {
            let volume = volume(text).map_err(|reason| {
                Wrong::new(at, format!("{path}[{index}]"), reason)
                    .with_hint("write `[SOURCE:]TARGET[:ro]`, for example `./data:/data:ro`")
            })?;
            *item = long_volume(volume, at);
        }
        let is_bind = item.get("type").and_then(Node::as_text) == Some("bind");
        let Some(map) = item.as_map_mut() else { continue };
        match map.get_mut("source") {
            Some(source) if is_bind => absolute(source, directory),
            None if is_bind => {
                return Err(Wrong::new(at, format!("{path}[{index}]"), "a bind mount needs a `source`"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn long_volume(volume: Volume, at: At) -> Node {
    let bind = volume.source.starts_with(['.', '/', '~']);
    let text = |text: &str| Node::text(text, at);
    let yes = Node::new(Value::Bool(true), at);
    let mut map = Map::from([("type".to_owned(), text(if bind { "bind" } else { "volume" }))]);
    if !volume.source.is_empty() {
        map.insert("source".to_owned(), text(&volume.source));
    }
    map.insert("target".to_owned(), text(&clean(Path::new(&volume.target)).to_string_lossy()));
    if volume.read_only {
        map.insert("read_only".to_owned(), yes.clone());
    }
    let mut options = Map::new();
    options.extend(volume.selinux.map(|value| ("selinux".to_owned(), text(&value))));
    options.extend(volume.propagation.map(|value| ("propagation".to_owned(), text(&value))));
    if bind {
        options.insert("create_host_path".to_owned(), yes);
        map.insert("bind".to_owned(), Node::map(options, at));
    } else {
        if !options.is_empty() {
            map.insert("bind".to_owned(), Node::map(options, at));
        }
        let nocopy = volume.nocopy.then_some(("nocopy".to_owned(), yes));
        map.insert("volume".to_owned(), Node::map(nocopy.into_iter().collect(), at));
    }
    Node::map(map, at)
}

/// Replaces a path by an absolute one. `~` is the home directory.
fn absolute(node: &mut Node, directory: &Path) {
    if let Value::Text(text) = &mut node.value
        && !text.is_empty()
    {
        *text = absolute_path(text, directory).to_string_lossy().into_owned();
    }
}

pub(super) fn absolute_path(text: &str, directory: &Path) -> PathBuf {
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    if let Some(below) = text.strip_prefix('~')
        && let Some(home) = home()
    {
        return clean(&home.join(below.trim_start_matches('/')));
    }
    // docker leaves an absolute path as it is written.
    if text.starts_with('/') { PathBuf::from(text) } else { clean(&directory.join(text)) }
}

/// Removes `.`, `..` and repeated slashes from a path without looking at the disk, as Go's `path.Clean` does.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            Component::ParentDir if clean.has_root() => {}
            other => clean.push(other),
        }
    }
    if clean.as_os_str().is_empty() { PathBuf::from(".") } else { clean }
}
