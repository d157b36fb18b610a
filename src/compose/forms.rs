//! The long forms of lists and mappings that have a short form.

use super::value::{At, Map, Node, Value};

/// The dependency that a name in a list stands for.
pub(crate) fn dependency(at: At) -> Node {
    let map = [
        ("condition".to_owned(), Node::text("service_started", at)),
        ("required".to_owned(), Node::new(Value::Bool(true), at)),
    ];
    Node::map(Map::from(map), at)
}

/// Turns a list of names into a mapping.
pub(crate) fn keyed(node: Node, value: fn(At) -> Node) -> Map {
    match node.value {
        Value::Map(map) => map,
        Value::List(list) => {
            let pairs = list.into_iter().filter_map(|item| Some((item.as_text()?.to_owned(), value(item.at))));
            pairs.collect()
        }
        _ => Map::new(),
    }
}

/// Turns a mapping into a list of `KEY=VALUE`, and one text into a list.
pub(crate) fn sequence(node: Node) -> Vec<Node> {
    match node.value {
        Value::List(list) => list,
        Value::Text(_) => vec![node],
        Value::Map(map) => {
            let pair = |(key, node): (String, Node)| match (&node.value, node.scalar()) {
                (Value::Null, _) => vec![Node::text(key, node.at)],
                (Value::List(list), _) => list
                    .iter()
                    .filter_map(|item| Some(Node::text(format!("{key}={}", item.scalar()?), item.at)))
                    .collect(),
                (_, text) => vec![Node::text(format!("{key}={}", text.unwrap_or_default()), node.at)],
            };
            map.into_iter().flat_map(pair).collect()
        }
        _ => Vec::new(),
    }
}
