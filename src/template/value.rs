//! The values that a template works with.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A value, as Go's text/template sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// No value: a missing key of a map, or JSON's null.
    Nil,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// Free keys. A missing key is [`Value::Nil`].
    Map(BTreeMap<String, Value>),
    /// Fixed fields, as of a Go struct. A missing field is an error.
    Fields(BTreeMap<String, Value>),
    /// A method that looks a text up: docker's `{{.Label "KEY"}}`.
    Lookup(BTreeMap<String, String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Value {
    /// Converts JSON. Objects below a key in `maps` have free keys, and all others have fixed fields.
    #[must_use]
    pub(crate) fn from_json(json: &serde_json::Value, maps: &[&str]) -> Self {
        Self::convert(json, maps, false)
    }

    fn convert(json: &serde_json::Value, maps: &[&str], free: bool) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => {
                let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
                whole.map_or_else(|| Self::Float(number.as_f64().unwrap_or(0.0)), Self::Int)
            }
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(|item| Self::convert(item, maps, false)).collect()),
            Json::Object(object) => {
                let convert = |(key, value): (&String, &Json)| {
                    (key.clone(), Self::convert(value, maps, maps.contains(&key.as_str())))
                };
                let fields = object.iter().map(convert).collect();
                if free { Self::Map(fields) } else { Self::Fields(fields) }
            }
        }
    }

    /// Converts to JSON. Methods are left out.
    #[must_use]
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Nil | Self::Lookup(_) => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => number.into(),
                _ => (*number as f64).into(),
            },
            Self::Float(number) => (*number).into(),
            Self::Text(text) => Json::String(text.clone()),
            Self::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Self::Map(fields) | Self::Fields(fields) => Json::Object(
                fields
                    .iter()
                    .filter(|(_, value)| !matches!(value, Self::Lookup(_)))
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect(),
            ),
        }
    }

    /// Go's truth: everything is true but false, 0, and what is empty.
    #[must_use]
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(fields) => !fields.is_empty(),
            Self::Fields(_) | Self::Lookup(_) => true,
        }
    }

    /// The name of the type, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) | Self::Fields(_) => "an object",
            Self::Lookup(_) => "a method",
        }
    }

    /// Writes the value as Go's `%v` does.
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Nil | Self::Lookup(_) => out.push_str("<no value>"),
            Self::Bool(value) => drop(write!(out, "{value}")),
            Self::Int(number) => drop(write!(out, "{number}")),
            Self::Float(number) => out.push_str(&go_float(*number)),
            Self::Text(text) => out.push_str(text),
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(' ');
                    }
                    item.write_inner(out);
                }
                out.push(']');
            }
            Self::Map(fields) => {
                out.push_str("map[");
                for (at, (key, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(' ');
                    }
                    out.push_str(key);
                    out.push(':');
                    value.write_inner(out);
                }
                out.push(']');
            }
            Self::Fields(fields) => {
                out.push('{');
                for (at, value) in fields.values().enumerate() {
                    if at > 0 {
                        out.push(' ');
                    }
                    value.write_inner(out);
                }
                out.push('}');
            }
        }
    }

    /// Inside of a list or an object, nothing is `<nil>`.
    fn write_inner(&self, out: &mut String) {
        match self {
            Self::Nil => out.push_str("<nil>"),
            other => other.write(out),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// Formats a number as Go's `%v` does: `%g` with the shortest digits, and an exponent from 1e21 and below 1e-4.
fn go_float(number: f64) -> String {
    let size = number.abs();
    if number == 0.0 || (1e-4..1e21).contains(&size) {
        return format!("{number}");
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}
