//! Adds what a project has without saying so: the default network, names of resources, implied dependencies.

use super::dotenv::Environment;
use super::value::{At, Map, Node, Value};

/// Normalizes a merged tree in long form. Without an environment, variables that have no value keep none.
pub(super) fn normalize(root: &mut Map, project: &str, environment: Option<&Environment>) {
    let nowhere = At::default();
    let networks = root.entry("networks".to_owned()).or_insert_with(|| Node::map(Map::new(), nowhere));
    if let Some(networks) = networks.as_map_mut() {
        networks.entry("default".to_owned()).or_insert_with(|| Node::new(Value::Null, nowhere));
    }
    let services = root.get_mut("services").and_then(Node::as_map_mut);
    for service in services.into_iter().flat_map(Map::values_mut) {
        if service.is_null() {
            service.value = Value::Map(Map::new());
        }
        let at = service.at;
        if let Some(service) = service.as_map_mut() {
            self::service(service, at, environment);
        }
    }
    for kind in ["networks", "volumes", "configs", "secrets"] {
        let resources = root.get_mut(kind).and_then(Node::as_map_mut);
        for (key, resource) in resources.into_iter().flatten() {
            if resource.is_null() {
                resource.value = Value::Map(Map::new());
            }
            let at = resource.at;
            let Some(map) = resource.as_map_mut() else { continue };
            let external = map.get("external").is_some_and(|node| node.value == Value::Bool(true));
            let name = if external { key.clone() } else { format!("{project}_{key}") };
            map.entry("name".to_owned()).or_insert_with(|| Node::text(name, at));
        }
    }
}

fn service(service: &mut Map, at: At, environment: Option<&Environment>) {
    if !service.contains_key("networks") && !service.contains_key("network_mode") {
        let default = Map::from([("default".to_owned(), Node::new(Value::Null, at))]);
        service.insert("networks".to_owned(), Node::map(default, at));
    }
    if let Some(policy) = service.get_mut("pull_policy")
        && policy.as_text() == Some("if_not_present")
    {
        policy.value = Value::Text("missing".to_owned());
    }
    if let Some(build) = service.get_mut("build").and_then(Node::as_map_mut) {
        if !build.contains_key("dockerfile") && !build.contains_key("dockerfile_inline") {
            build.insert("dockerfile".to_owned(), Node::text("Dockerfile", at));
        }
        if let (Some(args), Some(environment)) = (build.get_mut("args"), environment) {
            resolve(args, environment, false);
        }
    }
    if let (Some(variables), Some(environment)) = (service.get_mut("environment"), environment) {
        resolve(variables, environment, true);
    }
    let implied = implied(service);
    if implied.is_empty() {
        return;
    }
    let depends_on = service.entry("depends_on".to_owned()).or_insert_with(|| Node::map(Map::new(), at));
    if let Some(depends_on) = depends_on.as_map_mut() {
        for (name, restart) in implied {
            let map = [
                ("condition".to_owned(), Node::text("service_started", at)),
                ("restart".to_owned(), Node::new(Value::Bool(restart), at)),
                ("required".to_owned(), Node::new(Value::Bool(true), at)),
            ];
            depends_on.entry(name).or_insert_with(|| Node::map(Map::from(map), at));
        }
    }
}

/// Returns the services that a service needs without naming them in `depends_on`, and whether it restarts with them.
fn implied(service: &Map) -> Vec<(String, bool)> {
    let texts = |key: &str| {
        let list = service.get(key).and_then(Node::as_list).unwrap_or_default();
        list.iter().filter_map(Node::as_text).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for link in texts("links") {
        all.push((link.split(':').next().unwrap_or_default().to_owned(), true));
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        let name = service.get(key).and_then(Node::as_text).and_then(|text| text.strip_prefix("service:"));
        all.extend(name.map(|name| (name.to_owned(), true)));
    }
    for source in texts("volumes_from") {
        if !source.starts_with("container:") {
            all.push((source.split(':').next().unwrap_or_default().to_owned(), false));
        }
    }
    all
}

/// Gives variables without a value that of the environment. With `keep`, those that have none there either stay.
fn resolve(node: &mut Node, environment: &Environment, keep: bool) {
    match &mut node.value {
        Value::Map(map) => map.retain(|key, node| {
            if node.is_null()
                && let Some(value) = environment.get(key)
            {
                node.value = Value::Text(value.clone());
            }
            keep || !node.is_null()
        }),
        Value::List(list) => list.retain_mut(|node| {
            let Value::Text(text) = &mut node.value else { return true };
            if text.contains('=') {
                return true;
            }
            match environment.get(text.as_str()) {
                Some(value) => {
                    *text = format!("{text}={value}");
                    true
                }
                None => keep,
            }
        }),
        _ => {}
    }
}
