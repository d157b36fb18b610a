//! Merges trees by the rules of the Compose Specification: which lists are appended, which values are replaced, and
//! which entries of a list are the same one.

use super::canonical;
use super::error::Wrong;
use super::forms::{dependency, keyed, sequence};
use super::value::{At, Map, Node, Value};

/// Returns whether a path matches a pattern in which `*` stands for any one part.
pub(super) fn matches(path: &[String], pattern: &[&str]) -> bool {
    path.len() == pattern.len() && path.iter().zip(pattern).all(|(part, pattern)| *pattern == "*" || part == pattern)
}

/// How a value is merged.
#[derive(Clone, Copy)]
enum Rule {
    /// The later value replaces the earlier one.
    Replace,
    /// Both become lists of `KEY=VALUE`, and the later list is appended.
    Sequence,
    Build,
    DependsOn,
    Networks,
    Logging,
    Ulimit,
    Pools,
}

const RULES: &[(&[&str], Rule)] = &[
    (&["networks", "*", "ipam", "config"], Rule::Pools),
    (&["networks", "*", "labels"], Rule::Sequence),
    (&["volumes", "*", "labels"], Rule::Sequence),
    (&["services", "*", "annotations"], Rule::Sequence),
    (&["services", "*", "build"], Rule::Build),
    (&["services", "*", "build", "args"], Rule::Sequence),
    (&["services", "*", "build", "additional_contexts"], Rule::Sequence),
    (&["services", "*", "build", "extra_hosts"], Rule::Sequence),
    (&["services", "*", "build", "labels"], Rule::Sequence),
    (&["services", "*", "command"], Rule::Replace),
    (&["services", "*", "depends_on"], Rule::DependsOn),
    (&["services", "*", "deploy", "labels"], Rule::Sequence),
    (&["services", "*", "dns"], Rule::Sequence),
    (&["services", "*", "dns_opt"], Rule::Sequence),
    (&["services", "*", "dns_search"], Rule::Sequence),
    (&["services", "*", "entrypoint"], Rule::Replace),
    (&["services", "*", "env_file"], Rule::Sequence),
    (&["services", "*", "environment"], Rule::Sequence),
    (&["services", "*", "extra_hosts"], Rule::Sequence),
    (&["services", "*", "gpus"], Rule::Replace),
    (&["services", "*", "healthcheck", "test"], Rule::Replace),
    (&["services", "*", "labels"], Rule::Sequence),
    (&["services", "*", "logging"], Rule::Logging),
    (&["services", "*", "networks"], Rule::Networks),
    (&["services", "*", "sysctls"], Rule::Sequence),
    (&["services", "*", "tmpfs"], Rule::Sequence),
    (&["services", "*", "ulimits", "*"], Rule::Ulimit),
];

/// Merges `over` into `base`. `path` is the place of both in the tree.
pub(super) fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Wrong> {
    let at = over.at;
    match RULES.iter().find(|(pattern, _)| matches(path, pattern)) {
        Some((_, rule)) => return by_rule(*rule, base, over, path),
        None if over.is_null() => return Ok(base),
        None => {}
    }
    match (base.value, over.value) {
        (Value::Map(base), Value::Map(over)) => Ok(Node::map(mappings(base, over, path)?, at)),
        (Value::List(mut base), Value::List(over)) => {
            base.extend(over);
            Ok(Node::new(Value::List(base), at))
        }
        (base @ (Value::Map(_) | Value::List(_)), over) => {
            Err(Wrong::new(at, path.join("."), format!("{} cannot override {}", over.kind(), base.kind())))
        }
        (_, over) => Ok(Node::new(over, at)),
    }
}

fn mappings(mut base: Map, over: Map, path: &mut Vec<String>) -> Result<Map, Wrong> {
    for (key, node) in over {
        let merged = match base.remove(&key) {
            Some(before) if !key.starts_with("x-") => {
                path.push(key.clone());
                let merged = merge(before, node, path);
                path.pop();
                merged?
            }
            _ => node,
        };
        base.insert(key, merged);
    }
    Ok(base)
}

fn by_rule(rule: Rule, base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Wrong> {
    let at = over.at;
    if over.is_null() && !matches!(rule, Rule::Replace) {
        return Ok(base);
    }
    match rule {
        Rule::Replace => Ok(over),
        Rule::Sequence => {
            let mut list = sequence(base);
            list.extend(sequence(over));
            Ok(Node::new(Value::List(list), at))
        }
        Rule::Build => Ok(Node::map(mappings(build(base), build(over), path)?, at)),
        Rule::DependsOn => {
            let (base, over) = (keyed(base, dependency), keyed(over, dependency));
            Ok(Node::map(mappings(base, over, path)?, at))
        }
        Rule::Networks => {
            let nothing = |at| Node::new(Value::Null, at);
            Ok(Node::map(mappings(keyed(base, nothing), keyed(over, nothing), path)?, at))
        }
        Rule::Logging => {
            let driver = |node: &Node| node.get("driver").and_then(Node::as_text).map(str::to_owned);
            match (driver(&base), driver(&over)) {
                (Some(one), Some(other)) if one != other => Ok(over),
                _ => Ok(Node::map(mappings(into_map(base), into_map(over), path)?, at)),
            }
        }
        Rule::Ulimit => Ok(over),
        Rule::Pools => Ok(pools(base, over, at)),
    }
}

/// Address pools of a network are the same if their subnets are.
fn pools(base: Node, over: Node, at: At) -> Node {
    let list = |node: Node| match node.value {
        Value::List(list) => list,
        _ => Vec::new(),
    };
    let mut all = list(base);
    for pool in list(over) {
        match all.iter_mut().find(|other| other.get("subnet") == pool.get("subnet")) {
            Some(same) => {
                let pool = into_map(pool);
                if let Some(map) = same.as_map_mut() {
                    map.extend(pool);
                }
            }
            None => all.push(pool),
        }
    }
    Node::new(Value::List(all), at)
}

fn into_map(node: Node) -> Map {
    match node.value {
        Value::Map(map) => map,
        _ => Map::new(),
    }
}

fn build(node: Node) -> Map {
    match node.value {
        Value::Map(map) => map,
        Value::Text(_) => Map::from([("context".to_owned(), node)]),
        _ => Map::new(),
    }
}

/// Returns the key by which entries of a list are the same.
type Index = fn(&Node) -> Option<String>;

const UNIQUE: &[(&[&str], Index)] = &[
    (&["networks", "*", "labels"], by_name),
    (&["services", "*", "annotations"], by_name),
    (&["services", "*", "build", "args"], by_name),
    (&["services", "*", "build", "additional_contexts"], by_name),
    (&["services", "*", "build", "extra_hosts"], by_name),
    (&["services", "*", "build", "tags"], by_name),
    (&["services", "*", "build", "labels"], by_name),
    (&["services", "*", "cap_add"], by_name),
    (&["services", "*", "cap_drop"], by_name),
    (&["services", "*", "configs"], by_config),
    (&["services", "*", "deploy", "labels"], by_name),
    (&["services", "*", "dns"], by_name),
    (&["services", "*", "dns_opt"], by_name),
    (&["services", "*", "dns_search"], by_name),
    (&["services", "*", "environment"], by_name),
    (&["services", "*", "env_file"], by_path),
    (&["services", "*", "expose"], Node::scalar),
    (&["services", "*", "extra_hosts"], by_name),
    (&["services", "*", "labels"], by_name),
    (&["services", "*", "links"], by_name),
    (&["services", "*", "networks", "*", "aliases"], by_name),
    (&["services", "*", "networks", "*", "link_local_ips"], by_name),
    (&["services", "*", "ports"], by_port),
    (&["services", "*", "profiles"], by_name),
    (&["services", "*", "secrets"], by_secret),
    (&["services", "*", "sysctls"], by_name),
    (&["services", "*", "tmpfs"], by_name),
    (&["services", "*", "volumes"], by_target),
];

fn by_name(node: &Node) -> Option<String> {
    node.as_text().map(|text| text.split('=').next().unwrap_or_default().to_owned())
}

fn by_path(node: &Node) -> Option<String> {
    node.get("path").unwrap_or(node).as_text().map(str::to_owned)
}

fn by_target(node: &Node) -> Option<String> {
    match node.as_text() {
        Some(text) => canonical::volume(text).ok().map(|volume| volume.target),
        None => node.get("target")?.as_text().map(str::to_owned),
    }
}

fn by_mount(node: &Node, directory: &str) -> Option<String> {
    match node.get("target") {
        Some(target) => target.as_text().map(str::to_owned),
        None => Some(format!("{directory}/{}", node.get("source").unwrap_or(node).as_text()?)),
    }
}

fn by_config(node: &Node) -> Option<String> {
    by_mount(node, "")
}

fn by_secret(node: &Node) -> Option<String> {
    by_mount(node, "/run/secrets")
}

fn by_port(node: &Node) -> Option<String> {
    let Some(map) = node.as_map() else { return node.scalar() };
    let field = |name: &str, default: &str| map.get(name).and_then(Node::scalar).unwrap_or_else(|| default.to_owned());
    Some(format!(
        "{}:{}:{}/{}",
        field("host_ip", "0.0.0.0"),
        field("published", ""),
        field("target", ""),
        field("protocol", "tcp")
    ))
}

/// Removes the earlier of two entries of a list that are the same. The later one takes its place.
pub(super) fn deduplicate(node: &mut Node, path: &mut Vec<String>) {
    match &mut node.value {
        Value::Map(map) => {
            for (key, node) in map {
                path.push(key.clone());
                deduplicate(node, path);
                path.pop();
            }
        }
        Value::List(list) => {
            let Some((_, index)) = UNIQUE.iter().find(|(pattern, _)| matches(path, pattern)) else { return };
            let mut places = std::collections::HashMap::new();
            let mut kept: Vec<Node> = Vec::with_capacity(list.len());
            for item in std::mem::take(list) {
                match index(&item) {
                    Some(key) => match places.get(&key) {
                        Some(place) => kept[*place] = item,
                        None => {
                            places.insert(key, kept.len());
                            kept.push(item);
                        }
                    },
                    None => kept.push(item),
                }
            }
            *list = kept;
        }
        _ => {}
    }
}

/// Removes what lies on a path, for `!reset` and `!override` in a later file.
pub(super) fn remove(node: &mut Node, path: &[String]) {
    let Some(map) = node.as_map_mut() else { return };
    match path {
        [] => {}
        [last] => drop(map.remove(last)),
        [first, rest @ ..] => {
            if let Some(below) = map.get_mut(first) {
                remove(below, rest);
            }
        }
    }
}
