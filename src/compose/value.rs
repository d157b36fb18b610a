//! The tree of a compose file: scalars, lists and mappings, each with the line that it was read from.
//!
//! Compose merges, interpolates and rewrites files before their values have types, so the tree is generic. Mappings are
//! sorted, so that the order of keys in a file changes nothing.

use std::collections::BTreeMap;

/// The place of a value: an index into [`super::Files`] and a line, counted from 1. Line 0 is for values that no file
/// contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) file: u16,
    pub(super) line: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) at: At,
}

pub(super) type Map = BTreeMap<String, Node>;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A number that Go keeps as float32 and prints with fewer digits.
    Single(f32),
    Text(String),
    List(Vec<Node>),
    Map(Map),
}

/// The place does not count: an `include` may repeat a resource of the including file.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Value {
    /// Returns what kind of value this is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) | Self::Single(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    pub(super) fn new(value: Value, at: At) -> Self {
        Self { value, at }
    }

    pub(super) fn text(text: impl Into<String>, at: At) -> Self {
        Self::new(Value::Text(text.into()), at)
    }

    pub(super) fn map(map: Map, at: At) -> Self {
        Self::new(Value::Map(map), at)
    }

    pub(super) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    pub(super) fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub(super) fn as_map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub(super) fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub(super) fn as_list_mut(&mut self) -> Option<&mut Vec<Node>> {
        match &mut self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key)
    }

    /// Returns a scalar as text, as Go's `%v` prints it. Lists and mappings have none.
    pub(super) fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(number) => Some(number.to_string()),
            Value::Float(number) => Some(go_float(*number)),
            Value::Single(number) => Some(go_single(*number)),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Returns the number of nodes in this tree.
    pub(super) fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(list) => list.iter().map(Self::size).sum(),
            Value::Map(map) => map.values().map(Self::size).sum(),
            _ => 0,
        }
    }

    /// Returns the node as JSON, with numbers of float32 in their short form.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(number) => Json::from(*number),
            Value::Float(number) => Json::from(*number),
            Value::Single(number) => Json::from(go_single(*number).parse::<f64>().unwrap_or_default()),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(list) => Json::Array(list.iter().map(Self::to_json).collect()),
            Value::Map(map) => Json::Object(map.iter().map(|(key, node)| (key.clone(), node.to_json())).collect()),
        }
    }
}

/// Formats a number as Go's `%v` does: the shortest digits, with an exponent below 1e-4 and from 1e6 on.
pub(super) fn go_float(number: f64) -> String {
    format_float(number, format!("{number:e}"))
}

pub(super) fn go_single(number: f32) -> String {
    format_float(f64::from(number), format!("{number:e}"))
}

/// `scientific` holds the shortest digits, as Rust's `{:e}` prints them: `1.5e0`.
fn format_float(number: f64, scientific: String) -> String {
    if number.is_nan() {
        return ".nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { ".inf".to_owned() } else { "-.inf".to_owned() };
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    // strconv's %g takes a precision of 6 for this decision.
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let negative = mantissa.starts_with('-');
    let plain: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let mut text = String::new();
    if negative {
        text.push('-');
    }
    if exponent < 0 {
        text.push_str("0.");
        text.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
        text.push_str(&plain);
    } else {
        let whole = exponent as usize + 1;
        if plain.len() <= whole {
            text.push_str(&plain);
            text.extend(std::iter::repeat_n('0', whole - plain.len()));
        } else {
            text.push_str(&plain[..whole]);
            text.push('.');
            text.push_str(&plain[whole..]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_go_prints_them() {
        for (number, text) in [
            (1.5, "1.5"),
            (0.1, "0.1"),
            (100_000.0, "100000"),
            (3.0, "3"),
            (1_000_000.0, "1e+06"),
            (123_456_789.0, "1.23456789e+08"),
            (-0.25, "-0.25"),
            (0.00001, "1e-05"),
            (1.1, "1.1"),
        ] {
            assert_eq!(go_float(number), text);
        }
        assert_eq!(go_single(0.1), "0.1");
        assert_eq!(go_single(1.7), "1.7");
    }
}
