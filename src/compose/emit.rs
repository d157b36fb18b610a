//! Prints a project as `docker-compose config` does: the same order of keys and the same style of scalars in YAML, and
//! the same fields in JSON.

use super::schema::{Object, PROJECT, SERVICE, Type};
use super::value::{Map, Node, Value, go_float, go_single};
use super::yaml::plain;

static ROOT: Type = Type::Object(&PROJECT);
static SERVICE_TYPE: Type = Type::Object(&SERVICE);

/// Returns a project as YAML. Dollar signs are doubled, so that the output is a compose file again.
pub(super) fn yaml(root: &Node) -> String {
    let mut out = String::new();
    block(root, &ROOT, 0, &mut out);
    out.replace('$', "$$")
}

/// Returns a project as JSON, with doubled dollar signs.
pub(super) fn json(root: &Node) -> String {
    let mut out = String::new();
    Json { out: &mut out, pretty: true }.value(root, &ROOT, "", 0);
    out.replace('$', "$$")
}

/// Returns a tree with its variables as YAML, with sorted keys. Dollar signs are as in the files.
pub(super) fn raw_yaml(root: &Node) -> String {
    let mut out = String::new();
    block(root, &Type::Any, 0, &mut out);
    out
}

/// Returns a tree with its variables as JSON.
pub(super) fn raw_json(root: &Node) -> String {
    let mut out = String::new();
    Json { out: &mut out, pretty: true }.value(root, &Type::Any, "", 0);
    out
}

/// Returns a service as compact JSON, for its hash.
pub(super) fn service_json(service: &Node) -> String {
    let mut out = String::new();
    Json { out: &mut out, pretty: false }.value(service, &SERVICE_TYPE, "", 0);
    out
}

/// Compares keys as Go's YAML library sorts them: numbers by value, and other characters before letters.
fn natural(one: &str, other: &str) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let (a, b): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut digits = false;
    for at in 0..a.len().min(b.len()) {
        if a[at] == b[at] {
            digits = a[at].is_ascii_digit();
            continue;
        }
        match (a[at].is_alphabetic(), b[at].is_alphabetic()) {
            (true, true) => return a[at].cmp(&b[at]),
            (true, false) => return if digits { Ordering::Less } else { Ordering::Greater },
            (false, true) => return if digits { Ordering::Greater } else { Ordering::Less },
            (false, false) => {}
        }
        // Numbers with a common beginning: a zero inside of them counts.
        let inside = (a[at] == '0' || b[at] == '0')
            && a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
        let number = |letters: &[char]| {
            letters[at..].iter().map_while(|c| c.to_digit(10)).fold((u64::from(inside), 0), |(sum, count), digit| {
                (sum.saturating_mul(10).saturating_add(digit.into()), count + 1)
            })
        };
        return number(&a).cmp(&number(&b)).then(a[at].cmp(&b[at]));
    }
    a.len().cmp(&b.len())
}

/// Returns the entries of an object in the order of its keys in the table. Extensions come last.
fn ordered<'a>(map: &'a Map, of: &'static Object) -> Vec<(&'a str, &'a Node, &'static Type)> {
    let known = of.keys.iter().filter_map(|key| Some((key.name, map.get(key.name)?, &key.ty)));
    let others = map.iter().filter(|(name, _)| of.key(name).is_none());
    known.chain(others.map(|(name, node)| (name.as_str(), node, &Type::Any))).collect()
}

/// Returns the type of a value in its long form.
fn long(ty: &'static Type) -> &'static Type {
    match ty {
        Type::Short(_, inner) | Type::Empty(inner) => long(inner),
        other => other,
    }
}

fn entries<'a>(map: &'a Map, ty: &'static Type) -> Vec<(&'a str, &'a Node, &'static Type)> {
    match ty {
        Type::Object(of) => ordered(map, of),
        Type::Map(item) => map.iter().map(|(key, node)| (key.as_str(), node, *item)).collect(),
        // docker prints the soft limit first.
        Type::Ulimit => {
            let pair = ["soft", "hard"].into_iter().filter_map(|name| Some((name, map.get(name)?, &Type::Any)));
            pair.collect()
        }
        _ => map.iter().map(|(key, node)| (key.as_str(), node, &Type::Any)).collect(),
    }
}

fn item(ty: &'static Type) -> &'static Type {
    match ty {
        Type::List(item) => item,
        _ => &Type::Any,
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Writes a collection that begins on a line of its own.
fn block(node: &Node, ty: &'static Type, indent: usize, out: &mut String) {
    let ty = long(ty);
    match &node.value {
        Value::Map(map) => {
            let mut all = entries(map, ty);
            if !matches!(ty, Type::Object(_) | Type::Ulimit) {
                all.sort_by(|(one, ..), (other, ..)| natural(one, other));
            }
            for (index, (key, node, ty)) in all.into_iter().enumerate() {
                if index > 0 || indent == 0 {
                    pad(indent, out);
                }
                out.push_str(&text(key));
                out.push(':');
                value(node, ty, indent, out);
            }
        }
        Value::List(list) => {
            for (index, node) in list.iter().enumerate() {
                if index > 0 {
                    pad(indent, out);
                }
                out.push('-');
                match &node.value {
                    Value::Map(map) if !map.is_empty() => {
                        out.push(' ');
                        block(node, item(ty), indent + 2, out);
                    }
                    Value::List(list) if !list.is_empty() => {
                        out.push(' ');
                        block(node, item(ty), indent + 2, out);
                    }
                    _ => value(node, item(ty), indent, out),
                }
            }
        }
        _ => {}
    }
}

/// Writes a value after `KEY:` or `-`.
fn value(node: &Node, ty: &'static Type, indent: usize, out: &mut String) {
    let ty = long(ty);
    match &node.value {
        Value::Map(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::List(list) if list.is_empty() => out.push_str(" []\n"),
        // An env_file that must exist is printed as its path.
        Value::Map(_) | Value::List(_) => {
            out.push('\n');
            pad(indent + 2, out);
            block(node, ty, indent + 2, out);
        }
        Value::Text(words) if words.contains('\n') && literal_allowed(words) => literal(words, indent + 2, out),
        Value::Text(words) => {
            out.push(' ');
            out.push_str(&text(words));
            out.push('\n');
        }
        Value::Null => out.push_str(" null\n"),
        scalar => {
            out.push(' ');
            match scalar {
                Value::Single(number) => out.push_str(&go_single(*number)),
                Value::Float(number) => out.push_str(&go_float(*number)),
                Value::Int(number) => out.push_str(&number.to_string()),
                Value::Bool(value) => out.push_str(&value.to_string()),
                _ => {}
            }
            out.push('\n');
        }
    }
}

fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..) && c != '\u{feff}'
}

fn literal_allowed(text: &str) -> bool {
    let special = text.chars().any(|c| c != '\t' && !is_printable(c));
    // A space before a line break, or at the end, would be lost.
    !special && !text.ends_with(' ') && !text.contains(" \n")
}

fn literal(text: &str, indent: usize, out: &mut String) {
    out.push_str(" |");
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    match text.strip_suffix('\n') {
        None => out.push('-'),
        Some(rest) if rest.is_empty() || rest.ends_with('\n') => out.push('+'),
        Some(_) => {}
    }
    out.push('\n');
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        if !line.is_empty() {
            pad(indent, out);
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// Returns a scalar in the style that Go's YAML library chooses: plain if that reads back as the same text, single
/// quotes if the characters need them, double quotes if it would be something else than text.
fn text(text: &str) -> String {
    let is_text = matches!(plain(text), Value::Text(_))
        && !is_old_bool(text)
        && !is_base60(text)
        && !is_time(text)
        && text != "<<";
    let look = Look::of(text);
    if text.contains('\n') || !is_text {
        return double_quoted(text);
    }
    if look.plain {
        return text.to_owned();
    }
    if look.single { format!("'{}'", text.replace('\'', "''")) } else { double_quoted(text) }
}

fn is_old_bool(text: &str) -> bool {
    matches!(
        text,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF"
    )
}

/// YAML 1.1 reads `22:22` as a number.
fn is_base60(text: &str) -> bool {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = rest.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let sixty = |text: &str| (1..=2).contains(&text.len()) && text.parse::<u8>().is_ok_and(|number| number < 60);
    first.starts_with(|c: char| c.is_ascii_digit())
        && digits(first)
        && !rest.is_empty()
        && rest.iter().enumerate().all(|(index, part)| {
            let part = if index + 1 == rest.len() { part.split('.').next().unwrap_or_default() } else { part };
            sixty(part)
        })
}

/// A date or a time is not text in YAML 1.1.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits != 4 || bytes.get(4) != Some(&b'-') {
        return false;
    }
    let formats = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dt%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
    chrono::NaiveDate::parse_from_str(text, formats[0]).is_ok()
        || formats[1..].iter().any(|format| chrono::NaiveDateTime::parse_from_str(text, format).is_ok())
        || chrono::DateTime::parse_from_rfc3339(text).is_ok()
}

/// Which styles the characters of a text allow in a block (libyaml's analysis).
struct Look {
    plain: bool,
    single: bool,
}

impl Look {
    fn of(text: &str) -> Self {
        let letters: Vec<char> = text.chars().collect();
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut tab) = (false, false);
        for (index, c) in letters.iter().enumerate() {
            let blank_follows = letters.get(index + 1).is_none_or(|next| matches!(next, ' ' | '\t' | '\n'));
            let blank_before = index == 0 || matches!(letters[index - 1], ' ' | '\t' | '\n');
            let first = index == 0;
            indicators |= match c {
                '#' => blank_before,
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => first,
                '?' | '-' => first && blank_follows,
                ':' => blank_follows,
                _ => false,
            };
            tab |= *c == '\t';
            special |= *c != '\t' && !is_printable(*c);
        }
        let edge = text.starts_with([' ', '\n']) || text.ends_with([' ', '\n']);
        Self { plain: !indicators && !special && !tab && !edge, single: !special && !tab && !text.contains(" \n") }
    }
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\u{1b}' => out.push_str("\\e"),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02X}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push_str(&format!("\\U{:08X}", c as u32)),
        }
    }
    out.push('"');
    out
}

struct Json<'a> {
    out: &'a mut String,
    pretty: bool,
}

impl Json<'_> {
    fn line(&mut self, depth: usize) {
        if self.pretty {
            self.out.push('\n');
            pad(2 * depth, self.out);
        }
    }

    fn value(&mut self, node: &Node, ty: &'static Type, name: &str, depth: usize) {
        let ty = long(ty);
        match &node.value {
            Value::Map(map) => self.mapping(map, ty, name, depth),
            Value::List(list) if list.is_empty() => self.out.push_str("[]"),
            Value::List(list) => {
                self.out.push('[');
                for (index, node) in list.iter().enumerate() {
                    if index > 0 {
                        self.out.push(',');
                    }
                    self.line(depth + 1);
                    self.value(node, item(ty), name, depth + 1);
                }
                self.line(depth);
                self.out.push(']');
            }
            Value::Text(text) => self.text(text),
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(&value.to_string()),
            Value::Int(number) => self.out.push_str(&number.to_string()),
            Value::Single(number) => self.out.push_str(&number.to_string()),
            Value::Float(number) => self.out.push_str(&number.to_string()),
        }
    }

    fn mapping(&mut self, map: &Map, ty: &'static Type, name: &str, depth: usize) {
        let nothing = Node::new(Value::Null, super::value::At::default());
        let empty = Node::map(Map::new(), nothing.at);
        let hook = Node::map(Map::from([("command".to_owned(), nothing.clone())]), nothing.at);
        let mut all = entries(map, ty);
        match ty {
            Type::Object(of) if std::ptr::eq(*of, &raw const PROJECT) => all.sort_by_key(|(key, ..)| *key),
            Type::Object(of) => {
                all.retain(|(key, ..)| of.key(key).is_some());
                // Fields that compose-go prints even if they are empty.
                let always: &[(&'static str, &Node)] = match of.name {
                    "a service" => &[("command", &nothing), ("entrypoint", &nothing)],
                    "`deploy`" => &[("resources", &empty), ("placement", &empty)],
                    "a network" => &[("ipam", &empty)],
                    "a watch" => &[("exec", &hook)],
                    _ => &[],
                };
                for (field, node) in always {
                    if !map.contains_key(*field) {
                        all.push((field, node, &Type::Any));
                    }
                }
                all.sort_by_key(|(key, ..)| of.keys.iter().position(|other| other.name == *key));
            }
            _ => {}
        }
        if all.is_empty() {
            self.out.push_str("{}");
            return;
        }
        self.out.push('{');
        for (index, (key, node, ty)) in all.into_iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.line(depth + 1);
            // These structs have no names for JSON.
            let capital = name.starts_with("device_") && name != "device_ids" || name == "weight_device";
            match key {
                "path" if capital => self.text("Path"),
                "rate" if capital => self.text("Rate"),
                "weight" if capital => self.text("Weight"),
                key => self.text(key),
            }
            self.out.push_str(if self.pretty { ": " } else { ":" });
            self.value(node, ty, key, depth + 1);
        }
        self.line(depth);
        self.out.push('}');
    }

    /// Go escapes what HTML gives a meaning to.
    fn text(&mut self, text: &str) {
        let plain = serde_json::Value::String(text.to_owned()).to_string();
        for c in plain.chars() {
            match c {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => self.out.push_str(&format!("\\u{:04x}", c as u32)),
                c => self.out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_naturally() {
        let mut keys = ["b", "A10", "A9", "_z", "a1", "AB", "A", "x-1", "x1"];
        keys.sort_by(|one, other| natural(one, other));
        assert_eq!(keys, ["_z", "A", "A9", "A10", "AB", "a1", "b", "x-1", "x1"]);
    }

    #[test]
    fn scalars_have_gos_style() {
        for (value, shown) in [
            ("plain", "plain"),
            ("true", "\"true\""),
            ("no", "\"no\""),
            ("8080", "\"8080\""),
            ("1.5", "\"1.5\""),
            ("", "\"\""),
            ("22:22", "\"22:22\""),
            ("8000:80000", "8000:80000"),
            ("a: b", "'a: b'"),
            ("a #b", "'a #b'"),
            ("a#b", "a#b"),
            ("*x", "'*x'"),
            ("-x", "-x"),
            ("- x", "'- x'"),
            ("it's", "it's"),
            ("'q'", "'''q'''"),
            ("2024-01-02", "\"2024-01-02\""),
            (" x", "' x'"),
            ("a\tb", "\"a\\tb\""),
            ("{x}", "'{x}'"),
            ("x{y}", "x{y}"),
            ("ü", "ü"),
            ("a\u{1}", "\"a\\x01\""),
        ] {
            assert_eq!(text(value), shown, "{value:?}");
        }
    }
}
