//! Brings the values of a merged tree into their final form: sizes in bytes, commands as lists, `KEY=VALUE` lists as
//! mappings. Empty entries are removed, so that two files with the same meaning have the same tree.

use super::error::Wrong;
use super::error::join;
use super::schema::{Key, Object, Pairs, Type};
use super::value::{Map, Node, Value};
use crate::units::{format_duration, parse_duration, parse_memory};

/// Decodes a value. `None` means that it is empty.
pub(super) fn decode(node: Node, ty: &'static Type, path: &str, keep: bool) -> Result<Option<Node>, Wrong> {
    let at = node.at;
    let wrong = |reason: String| Wrong::new(at, path, reason);
    let value = match (ty, node.value) {
        (Type::Empty(inner), value) if value != Value::Null => {
            return decode(Node::new(value, at), inner, path, true);
        }
        (Type::Empty(_) | Type::Any, value) => return Ok(Some(Node::new(value, at))),
        (Type::Short(short, long), value) => {
            let ty = match (*long, &value) {
                (Type::Object(_) | Type::Map(_), Value::Map(_)) | (Type::List(_), Value::List(_)) => *long,
                (Type::Bool, _) => *long,
                _ => *short,
            };
            return decode(Node::new(value, at), ty, path, keep);
        }
        (Type::Command, value) => match command(value).map_err(wrong)? {
            Some(list) => return Ok(Some(strings(list, at))),
            None => return Ok(None),
        },
        (Type::Test, Value::Text(text)) => {
            return Ok(Some(strings(vec!["CMD-SHELL".into(), text], at)));
        }
        (Type::Size, value) => match size(&value).map_err(wrong)? {
            0 if !keep => return Ok(None),
            bytes => Value::Text(bytes.to_string()),
        },
        (Type::Duration, Value::Text(text)) => match duration(&text) {
            Some(0) if !keep => return Ok(None),
            Some(nanos) => Value::Text(duration_text(nanos)),
            None => return Err(wrong(format!("`{text}` is not a time span"))),
        },
        (Type::Count, Value::Text(text)) => Value::Int(text.parse().unwrap_or(-1)),
        (Type::Single, Value::Single(0.0)) if !keep => return Ok(None),
        (Type::Text | Type::TextOrNumber, value) => {
            match Node::new(value, at).scalar().filter(|text| keep || !text.is_empty()) {
                Some(text) => Value::Text(text),
                None => return Ok(None),
            }
        }
        (Type::Pairs(kind), value) => return Ok(pairs(Node::new(value, at), *kind)),
        (Type::TextList { .. }, Value::Text(text)) => return Ok(Some(strings(vec![text], at))),
        (Type::NumberList, Value::List(list)) => {
            let list: Vec<String> = list.iter().filter_map(Node::scalar).collect();
            return Ok((!list.is_empty()).then(|| strings(list, at)));
        }
        (Type::List(item), Value::List(list)) => {
            let mut all = Vec::new();
            for (index, node) in list.into_iter().enumerate() {
                all.extend(decode(node, item, &format!("{path}[{index}]"), true)?);
            }
            Value::List(all)
        }
        (Type::Map(item), Value::Map(map)) => {
            let mut all = Map::new();
            for (key, node) in map {
                let node = decode(node, item, &join(path, &key), true)?;
                all.extend(node.map(|node| (key, node)));
            }
            Value::Map(all)
        }
        (Type::Object(of), Value::Map(map)) => return Ok(Some(Node::map(object(map, of, path)?, at))),
        (_, value) => value,
    };
    let empty = match &value {
        Value::Null => true,
        Value::List(list) => list.is_empty() && !matches!(ty, Type::Command),
        Value::Map(map) => map.is_empty() && !keep,
        Value::Bool(false) | Value::Int(0) => !keep,
        _ => false,
    };
    Ok((!empty).then(|| Node::new(value, at)))
}

/// Objects whose value is not a pointer in compose-go. They are not printed when they are empty.
const PLAIN_OBJECTS: [&str; 3] = ["resources", "placement", "ipam"];

fn object(map: Map, of: &Object, path: &str) -> Result<Map, Wrong> {
    let mut all = Map::new();
    for (name, node) in map {
        let Some(key) = of.key(&name) else {
            all.insert(name, node);
            continue;
        };
        let Key { ty, keep, .. } = key;
        let decoded = decode(node, ty, &join(path, &name), *keep)?;
        let empty = |node: &Node| PLAIN_OBJECTS.contains(&name.as_str()) && node.as_map().is_some_and(Map::is_empty);
        if let Some(node) = decoded.filter(|node| !empty(node)) {
            all.insert(name, node);
        }
    }
    Ok(all)
}

fn strings(list: Vec<String>, at: super::value::At) -> Node {
    Node::new(Value::List(list.into_iter().map(|text| Node::text(text, at)).collect()), at)
}

fn size(value: &Value) -> Result<i64, String> {
    match value {
        Value::Int(bytes) => Ok(*bytes),
        Value::Text(text) if text == "-1" => Ok(-1),
        Value::Text(text) => {
            let bytes = parse_memory(text).map_err(|error| error.to_string())?;
            i64::try_from(bytes).map_err(|_| format!("`{text}` is too large"))
        }
        other => Err(format!("this must be a size, not {}", other.kind())),
    }
}

fn pairs(node: Node, kind: Pairs) -> Option<Node> {
    let at = node.at;
    if kind == Pairs::Hosts {
        let mut lines: Vec<String> = super::forms::sequence(node)
            .iter()
            .filter_map(Node::as_text)
            .map(|text| {
                let (host, ip) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((text, ""));
                let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                format!("{host}={ip}")
            })
            .collect();
        lines.sort();
        return (!lines.is_empty()).then(|| strings(lines, at));
    }
    if kind == Pairs::Agents {
        let lines = super::forms::sequence(node);
        let mut lines: Vec<String> =
            lines.iter().filter_map(Node::as_text).map(|text| text.replacen('=', ": ", 1)).collect();
        lines.sort();
        return (!lines.is_empty()).then(|| strings(lines, at));
    }
    let mut map = Map::new();
    let mut add = |key: String, value: Option<String>, at| {
        let value = match (value, kind) {
            (Some(text), _) => Value::Text(text),
            (None, Pairs::Environment) => Value::Null,
            (None, _) => Value::Text(String::new()),
        };
        map.insert(key, Node::new(value, at));
    };
    match node.value {
        Value::Map(values) => {
            for (key, node) in values {
                add(key, node.scalar(), node.at);
            }
        }
        Value::List(list) => {
            for node in list {
                let text = node.as_text().unwrap_or_default();
                match text.split_once('=') {
                    Some((key, value)) => add(key.to_owned(), Some(value.to_owned()), node.at),
                    None => add(text.to_owned(), None, node.at),
                }
            }
        }
        _ => {}
    }
    (!map.is_empty()).then(|| Node::map(map, at))
}

/// Returns the words of a command. An empty text or list means an empty command, and nothing means the image's.
fn command(value: Value) -> Result<Option<Vec<String>>, String> {
    match value {
        Value::Text(text) => shell_words(&text).map(Some),
        Value::List(list) => Ok(Some(list.iter().filter_map(Node::scalar).collect())),
        _ => Ok(None),
    }
}

/// Splits a command as docker-compose does. Like there, an operator of a shell (`;`, `&`, `|`, `<`, `>`) outside of
/// quotes ends the command.
pub(super) fn shell_words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut any) = (Vec::new(), String::new(), false);
    let mut quote: Option<char> = None;
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (c, quote) {
            ('\\', None | Some('"' | '`' | '(')) => {
                let escaped = letters.next().ok_or_else(|| "it ends with a backslash".to_owned())?;
                word.push(match escaped {
                    't' => '\t',
                    'n' => '\n',
                    other => other,
                });
                any = true;
            }
            (' ' | '\t' | '\r' | '\n', None) => {
                if any {
                    words.push(std::mem::take(&mut word));
                    any = false;
                }
            }
            ('"' | '\'', None) => (quote, any) = (Some(c), true),
            ('"', Some('"')) | ('\'', Some('\'')) => quote = None,
            ('`', None) => {
                quote = Some('`');
                word.push(c);
                any = true;
            }
            ('`', Some('`')) => {
                quote = None;
                word.push(c);
            }
            ('(', None) => {
                if !word.ends_with('$') {
                    return Err("it has a `(` outside of quotes".to_owned());
                }
                quote = Some('(');
                word.push(c);
            }
            (')', Some('(')) => {
                quote = None;
                word.push(c);
            }
            (';' | '&' | '|' | '<' | '>', None) => break,
            (c, _) => {
                word.push(c);
                any = true;
            }
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    if any {
        words.push(word);
    }
    Ok(words)
}

/// Parses a time span as docker-compose does: Go's notation, with a sign. Returns nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    parse_duration(text).and_then(|nanos| i64::try_from(nanos).ok()).map(|nanos| sign * nanos)
}

/// Formats nanoseconds as Go does: `1m30s`, `1.5s`, `500ms`.
fn duration_text(nanos: i64) -> String {
    format!("{}{}", if nanos < 0 { "-" } else { "" }, format_duration(nanos.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans() {
        for (text, shown) in [("90s", "1m30s"), ("-1.5s", "-1.5s"), ("+2ms", "2ms"), ("0", "0s")] {
            assert_eq!(duration(text).map(duration_text).as_deref(), Some(shown), "{text}");
        }
        for wrong in ["", "30", "1d", "1h-2m", "--1s", "99999999999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn commands_are_split_as_docker_splits_them() {
        for (text, words) in [
            ("a b  c", &["a", "b", "c"][..]),
            ("sh -c 'a b' \"c d\"", &["sh", "-c", "a b", "c d"]),
            ("a \"\" b", &["a", "", "b"]),
            ("a\\ b", &["a b"]),
            ("echo $(date) `x y`", &["echo", "$(date)", "`x y`"]),
            ("a; b", &["a"]),
            ("", &[]),
            ("x='y z'w", &["x=y zw"]),
        ] {
            assert_eq!(shell_words(text).unwrap(), words, "{text}");
        }
        assert!(shell_words("a 'b").is_err() && shell_words("a(b").is_err() && shell_words("a\\").is_err());
    }
}
