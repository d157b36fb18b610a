//! Checks the tree of one file against the table of keys, and gives values that were text (`"true"`, `"8"`) the type of
//! their key.

use super::error::Wrong;
use super::error::join;
use super::schema::{Object, Pairs, Type};
use super::value::{Map, Node, Value};
use crate::names::distance;

/// Checks a value. `path` names it in messages.
pub(super) fn check(node: &mut Node, ty: &'static Type, path: &str) -> Result<(), Wrong> {
    let at = node.at;
    let wrong = |node: &Node, expected: &str| {
        Err(Wrong::new(node.at, path, format!("this must be {expected}, not {}", node.value.kind())))
    };
    match ty {
        Type::Any => Ok(()),
        Type::Text => match &node.value {
            Value::Text(_) | Value::Null => Ok(()),
            _ => wrong(node, "a string").map_err(|wrong| quoted(wrong, node)),
        },
        Type::TextOrNumber => match &node.value {
            Value::Text(_) | Value::Int(_) | Value::Float(_) => Ok(()),
            _ => wrong(node, "a string or a number"),
        },
        Type::Word(words) => match node.as_text() {
            Some(text) if words.contains(&text) => Ok(()),
            Some(text) => Err(Wrong::new(at, path, format!("`{text}` is not one of {}", words.join(", ")))),
            None => wrong(node, &format!("one of {}", words.join(", "))),
        },
        Type::Int | Type::IntText => integer(node, path),
        Type::Bool => boolean(node, path),
        Type::Single => single(node, path),
        Type::Size => match &node.value {
            Value::Text(_) | Value::Int(_) => Ok(()),
            _ => wrong(node, "a size, such as `512m`"),
        },
        Type::Duration => match node.as_text().map(super::decode::duration) {
            Some(Some(_)) => Ok(()),
            _ => wrong(node, "a time span, such as `30s` or `1m30s`"),
        },
        Type::Command | Type::Test => match &node.value {
            Value::Null | Value::Text(_) => Ok(()),
            _ => text_list(node, path, true),
        },
        Type::TextList { one } => match &node.value {
            Value::Text(_) if *one => Ok(()),
            _ => text_list(node, path, false),
        },
        Type::NumberList => match &node.value {
            Value::List(list) if list.iter().all(|item| item.scalar().is_some()) => Ok(()),
            _ => wrong(node, "a list of strings and numbers"),
        },
        Type::Pairs(kind) => pairs(node, *kind, path),
        Type::List(item) => match &mut node.value {
            Value::List(list) => {
                list.iter_mut().enumerate().try_for_each(|(index, node)| check(node, item, &format!("{path}[{index}]")))
            }
            _ => wrong(node, "a list"),
        },
        Type::Map(item) => match &mut node.value {
            Value::Map(map) => map.iter_mut().try_for_each(|(key, node)| {
                let path = join(path, key);
                name(key, node, &path)?;
                check(node, item, &path)
            }),
            _ => wrong(node, "a mapping"),
        },
        Type::Object(of) => object(node, of, path),
        Type::Short(short, long) => {
            if accepts(long, &node.value) {
                check(node, long, path)
            } else {
                check(node, short, path)
            }
        }
        Type::Empty(inner) => {
            if node.is_null() {
                Ok(())
            } else {
                check(node, inner, path)
            }
        }
        Type::Count => match &node.value {
            Value::Int(count) if *count >= -1 => Ok(()),
            Value::Text(text) if text.eq_ignore_ascii_case("all") || text.parse::<u32>().is_ok() => Ok(()),
            _ => wrong(node, "a number or `all`"),
        },
        Type::Ulimit => ulimit(node, path),
    }
}

/// Returns whether a value has the shape of a type, to choose between a short and a long form.
fn accepts(ty: &Type, value: &Value) -> bool {
    match ty {
        Type::Object(_) | Type::Map(_) => matches!(value, Value::Map(_)),
        Type::List(_) => matches!(value, Value::List(_)),
        Type::Bool => matches!(value, Value::Bool(_) | Value::Text(_)),
        _ => true,
    }
}

/// Names of services, networks and volumes become names of containers and directories.
fn name(key: &str, node: &Node, path: &str) -> Result<(), Wrong> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !key.is_empty() && key.bytes().all(good) {
        return Ok(());
    }
    Err(Wrong::new(node.at, path, format!("`{key}` is not a name")).with_hint("use letters, digits, `.`, `_` and `-`"))
}

fn object(node: &mut Node, of: &'static Object, path: &str) -> Result<(), Wrong> {
    let at = node.at;
    let Value::Map(map) = &mut node.value else {
        return Err(Wrong::new(at, path, format!("{} must be a mapping, not {}", of.name, node.value.kind())));
    };
    let mut empty = Vec::new();
    for (name, value) in map.iter_mut() {
        if of.extensions && name.starts_with("x-") {
            continue;
        }
        let Some(key) = of.key(name) else { return Err(unknown(of, name, value, path)) };
        // A key without a value says nothing, except where its type allows that.
        if value.is_null() && !matches!(key.ty, Type::Empty(_) | Type::Command | Type::Any) {
            empty.push(name.clone());
            continue;
        }
        check(value, &key.ty, &join(path, name))?;
    }
    for name in empty {
        map.remove(&name);
    }
    Ok(())
}

fn unknown(of: &Object, name: &str, value: &Node, path: &str) -> Wrong {
    let wrong = Wrong::new(value.at, join(path, name), format!("{} has no key `{name}`", of.name));
    let near = of.keys.iter().map(|key| (distance(key.name, name), key.name)).min();
    match near {
        Some((distance, near)) if distance <= 2 && distance < name.len() => {
            wrong.with_hint(format!("did you mean `{near}`?"))
        }
        _ if of.extensions => wrong.with_hint("remove the key; a key of your own begins with `x-`"),
        _ => wrong.with_hint("remove the key"),
    }
}

/// Adds a hint for a value that is a string with quotes.
fn quoted(wrong: Wrong, node: &Node) -> Wrong {
    if node.scalar().is_some() { wrong.with_hint("put the value in quotes") } else { wrong }
}

fn text_list(node: &Node, path: &str, repeated: bool) -> Result<(), Wrong> {
    let Some(list) = node.as_list() else {
        return Err(Wrong::new(node.at, path, format!("this must be a list of strings, not {}", node.value.kind())));
    };
    let mut seen = std::collections::BTreeSet::new();
    for (index, item) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(text) = item.as_text() else {
            let wrong = Wrong::new(item.at, path, format!("this must be a string, not {}", item.value.kind()));
            return Err(quoted(wrong, item));
        };
        if !repeated && !seen.insert(text) {
            return Err(Wrong::new(item.at, path, format!("`{text}` is repeated")));
        }
    }
    Ok(())
}

fn pairs(node: &mut Node, kind: Pairs, path: &str) -> Result<(), Wrong> {
    match &node.value {
        Value::Map(map) => {
            let bad = |value: &Node| !value.is_null() && value.scalar().is_none();
            match map.iter().find(|(_, value)| bad(value)) {
                // A host may have several addresses.
                Some((_, value)) if kind == Pairs::Hosts && value.as_list().is_some() => Ok(()),
                Some((key, value)) => Err(Wrong::new(
                    value.at,
                    join(path, key),
                    format!("this must be a string or a number, not {}", value.value.kind()),
                )),
                None => Ok(()),
            }
        }
        Value::List(_) if kind != Pairs::Options => text_list(node, path, false),
        _ => Err(Wrong::new(node.at, path, format!("this must be a mapping, not {}", node.value.kind()))),
    }
}

fn integer(node: &mut Node, path: &str) -> Result<(), Wrong> {
    let value = match &node.value {
        Value::Int(_) => return Ok(()),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    match value {
        Some(value) => {
            node.value = Value::Int(value);
            Ok(())
        }
        None => {
            let shown = node.scalar().map_or_else(|| node.value.kind().to_owned(), |text| format!("`{text}`"));
            Err(Wrong::new(node.at, path, format!("this must be an integer, not {shown}")))
        }
    }
}

fn boolean(node: &mut Node, path: &str) -> Result<(), Wrong> {
    let value = match &node.value {
        Value::Bool(_) => return Ok(()),
        Value::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "y" | "yes" | "on" => Some(true),
            "false" | "n" | "no" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    };
    let value = value
        .ok_or_else(|| Wrong::new(node.at, path, format!("this must be true or false, not {}", node.value.kind())))?;
    node.value = Value::Bool(value);
    Ok(())
}

fn single(node: &mut Node, path: &str) -> Result<(), Wrong> {
    let value = match &node.value {
        Value::Int(number) => Some(*number as f32),
        Value::Float(number) => Some(*number as f32),
        Value::Single(number) => Some(*number),
        Value::Text(text) => text.parse::<f32>().ok(),
        _ => None,
    };
    match value.filter(|number| number.is_finite()) {
        Some(value) => {
            node.value = Value::Single(value);
            Ok(())
        }
        None => Err(Wrong::new(node.at, path, format!("this must be a number, not {}", node.value.kind()))),
    }
}

fn ulimit(node: &mut Node, path: &str) -> Result<(), Wrong> {
    let Value::Map(map) = &mut node.value else { return integer(node, path) };
    let at = node.at;
    for name in ["soft", "hard"] {
        match map.get_mut(name) {
            Some(value) => integer(value, &join(path, name))?,
            None => return Err(Wrong::new(at, path, format!("`{name}` is missing"))),
        }
    }
    match extra(map, &["soft", "hard"]) {
        Some((key, value)) => Err(Wrong::new(value.at, join(path, key), format!("a ulimit has no key `{key}`"))),
        None => Ok(()),
    }
}

fn extra<'a>(map: &'a Map, known: &[&str]) -> Option<(&'a String, &'a Node)> {
    map.iter().find(|(key, _)| !known.contains(&key.as_str()) && !key.starts_with("x-"))
}

/// Checks that the keys which a type requires are present. This is done after all files have been merged.
pub(super) fn required(node: &Node, ty: &'static Type, path: &str) -> Result<(), Wrong> {
    match (ty, &node.value) {
        (Type::Object(of), Value::Map(map)) => {
            if let Some(missing) = of.required.iter().find(|name| !map.contains_key(**name)) {
                return Err(Wrong::new(node.at, path, format!("{} needs the key `{missing}`", of.name)));
            }
            map.iter().try_for_each(|(name, value)| match of.key(name) {
                Some(key) => required(value, &key.ty, &join(path, name)),
                None => Ok(()),
            })
        }
        (Type::Map(item), Value::Map(map)) => {
            map.iter().try_for_each(|(key, node)| required(node, item, &join(path, key)))
        }
        (Type::List(item), Value::List(list)) => {
            list.iter().enumerate().try_for_each(|(index, node)| required(node, item, &format!("{path}[{index}]")))
        }
        (Type::Short(_, long), value) if accepts(long, value) => required(node, long, path),
        (Type::Empty(inner), _) => required(node, inner, path),
        _ => Ok(()),
    }
}
