//! Reads the text of a compose file into trees, one per YAML document.
//!
//! The parser's events are used, and not serde: `!reset` and `!override` are tags, a message needs the line of its key,
//! and a plain `yes` or `0440` means what Go's YAML library makes of it. Anchors are copied where they are used, with a
//! limit on the result, because a few lines of aliases can stand for billions of values.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::value::{At, Map, Node, Value};

/// Deepest nesting of lists and mappings.
const MAX_DEPTH: usize = 64;
/// Most values in a file, after aliases have been replaced.
const MAX_NODES: usize = 100_000;

/// One document, and the paths that have a `!reset` or `!override` tag: what earlier files say there is dropped.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Node,
    pub(super) resets: Vec<Vec<String>>,
}

/// What is wrong, and in which line.
#[derive(Debug)]
pub(super) struct YamlError {
    pub(super) line: u32,
    pub(super) reason: String,
}

/// Parses all documents of a file.
pub(super) fn parse(text: &str, file: u16) -> Result<Vec<Document>, YamlError> {
    let options = granit_parser::options! {
        emit_comments: false,
        block_nesting_limit: 2 * MAX_DEPTH,
        flow_nesting_limit: 2 * MAX_DEPTH,
    };
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text, options),
        file,
        anchors: HashMap::new(),
        nodes: 0,
        path: Vec::new(),
        resets: Vec::new(),
    };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            Event::StreamEnd => break,
            event => {
                let root = reader.node(event, span)?;
                let resets = std::mem::take(&mut reader.resets);
                reader.anchors.clear();
                if let Some(root) = root {
                    documents.push(Document { root, resets });
                }
            }
        }
    }
    Ok(documents)
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    file: u16,
    /// Finished anchors and their sizes. An alias inside its own anchor finds none.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    path: Vec<String>,
    resets: Vec<Vec<String>>,
}

fn line(span: &Span) -> u32 {
    u32::try_from(span.start.line()).unwrap_or(u32::MAX)
}

/// Returns the name of a tag that compose gives a meaning to.
fn is_tag(tag: Option<&Tag>, name: &str) -> bool {
    tag.is_some_and(|tag| tag.original().trim_start_matches('!') == name && tag.core_suffix().is_none())
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, YamlError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => Err(YamlError {
                line: u32::try_from(error.marker().line()).unwrap_or(u32::MAX),
                reason: error.info().lines().next().unwrap_or_default().to_owned(),
            }),
        }
    }

    fn must(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        self.next()?.ok_or_else(|| YamlError { line: 0, reason: "the file ends in the middle of a value".into() })
    }

    fn count(&mut self, nodes: usize, line: u32) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            let reason = format!("the file stands for more than {MAX_NODES} values");
            return Err(YamlError { line, reason });
        }
        Ok(())
    }

    /// Reads the node that begins with `event`. `None` means that it has a `!reset` tag.
    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Option<Node>, YamlError> {
        let line = line(&span);
        let at = At { file: self.file, line };
        if self.path.len() > MAX_DEPTH {
            return Err(YamlError { line, reason: format!("values are nested more than {MAX_DEPTH} deep") });
        }
        self.count(1, line)?;
        let tag = event.tag().cloned();
        let (reset, replace) = (is_tag(tag.as_ref(), "reset"), is_tag(tag.as_ref(), "override"));
        if reset || replace {
            self.resets.push(self.path.clone());
        }
        let mut anchor = None;
        let node = match event {
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    return Err(YamlError { line, reason: "an alias is inside its own anchor".into() });
                };
                self.count(size, line)?;
                node
            }
            Event::Scalar(text, style, id, _) => {
                anchor = Some(id);
                Node::new(scalar(&text, style, tag.as_ref()), at)
            }
            Event::SequenceStart(_, id, _) => {
                anchor = Some(id);
                self.sequence(at)?
            }
            Event::MappingStart(_, id, _) => {
                anchor = Some(id);
                self.mapping(at)?
            }
            other => return Err(YamlError { line, reason: format!("unexpected {other:?}") }),
        };
        if let Some(id) = anchor.filter(|id| *id > 0) {
            let size = node.size();
            self.anchors.insert(id, (node.clone(), size));
        }
        Ok((!reset).then_some(node))
    }

    fn sequence(&mut self, at: At) -> Result<Node, YamlError> {
        let mut list = Vec::new();
        loop {
            let (event, span) = self.must()?;
            if event == Event::SequenceEnd {
                return Ok(Node::new(Value::List(list), at));
            }
            self.path.push(list.len().to_string());
            let node = self.node(event, span)?;
            self.path.pop();
            list.extend(node);
        }
    }

    fn mapping(&mut self, at: At) -> Result<Node, YamlError> {
        let mut map = Map::new();
        let mut merges: Vec<Node> = Vec::new();
        let mut seen: HashMap<String, u32> = HashMap::new();
        loop {
            let (event, span) = self.must()?;
            if event == Event::MappingEnd {
                break;
            }
            let line = line(&span);
            let (key, merge) = match event {
                Event::Scalar(text, style, ..) => {
                    let merge = style == ScalarStyle::Plain && text == "<<";
                    if !merge && !matches!(scalar(&text, style, None), Value::Text(_)) {
                        return Err(YamlError {
                            line,
                            reason: format!("the key `{text}` is not text: put it in quotes"),
                        });
                    }
                    (text.into_owned(), merge)
                }
                _ => return Err(YamlError { line, reason: "a key is not a scalar".into() }),
            };
            if let Some(before) = seen.insert(key.clone(), line) {
                let reason = format!("the key `{key}` is already defined in line {before}");
                return Err(YamlError { line, reason });
            }
            let (event, span) = self.must()?;
            self.path.push(key.clone());
            let node = self.node(event, span)?;
            self.path.pop();
            match node {
                Some(node) if merge => merges.push(node),
                Some(mut node) => {
                    // A message about a value names the line of its key.
                    node.at = At { file: self.file, line };
                    map.insert(key, node);
                }
                None => {}
            }
        }
        for merge in merges {
            merge_into(&mut map, merge)?;
        }
        Ok(Node::map(map, at))
    }
}

/// Adds the keys of a merge key's value (`<<`) that the mapping does not have. Of several mappings, the earlier ones
/// win.
fn merge_into(map: &mut Map, merge: Node) -> Result<(), YamlError> {
    let line = merge.at.line;
    match merge.value {
        Value::Map(other) => {
            for (key, node) in other {
                map.entry(key).or_insert(node);
            }
            Ok(())
        }
        Value::List(list) if list.iter().all(|node| node.as_map().is_some()) => {
            list.into_iter().try_for_each(|node| merge_into(map, node))
        }
        _ => Err(YamlError { line, reason: "`<<` needs a mapping, or a list of mappings".into() }),
    }
}

/// Gives a scalar its type, as Go's YAML library (v3) does.
pub(super) fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    match tag.and_then(Tag::core_suffix) {
        Some("str" | "binary") => return Value::Text(text.to_owned()),
        Some("int" | "float" | "bool" | "null") => return plain(text),
        _ => {}
    }
    if style == ScalarStyle::Plain { plain(text) } else { Value::Text(text.to_owned()) }
}

/// Returns the value of a plain scalar: null, a boolean, a number or text. A time stays text.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Value::Text(text.to_owned());
    }
    let number = text.replace('_', "");
    if let Some(value) = integer(&number) {
        return Value::Int(value);
    }
    match number.parse::<f64>() {
        Ok(value) if is_float(&number) => Value::Float(value),
        _ => Value::Text(text.to_owned()),
    }
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let radix = |prefix: &str| digits.strip_prefix(prefix).or_else(|| digits.strip_prefix(&prefix.to_uppercase()));
    let (digits, base) = match (radix("0x"), radix("0o"), radix("0b")) {
        (Some(digits), ..) => (digits, 16),
        (_, Some(digits), _) => (digits, 8),
        (_, _, Some(digits)) => (digits, 2),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i64::from_str_radix(digits, base).ok()?;
    Some(if negative { -value } else { value })
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(text, rest)| (text, Some(rest)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    };
    mantissa_ok && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        parse(text, 0).expect(text).remove(0).root
    }

    #[test]
    fn plain_scalars_have_gos_types() {
        for (text, value) in [
            ("yes", Value::Text("yes".into())),
            ("on", Value::Text("on".into())),
            ("true", Value::Bool(true)),
            ("0440", Value::Int(0o440)),
            ("0o17", Value::Int(15)),
            ("0x10", Value::Int(16)),
            ("1_000", Value::Int(1000)),
            ("-1", Value::Int(-1)),
            ("1.10", Value::Float(1.1)),
            ("1e3", Value::Float(1000.0)),
            ("08", Value::Float(8.0)),
            ("22:22", Value::Text("22:22".into())),
            ("1.2.3", Value::Text("1.2.3".into())),
            ("127.0.0.1:80:80", Value::Text("127.0.0.1:80:80".into())),
            ("~", Value::Null),
            ("", Value::Null),
            ("-", Value::Text("-".into())),
        ] {
            assert_eq!(plain(text), value, "{text}");
        }
    }

    #[test]
    fn merge_keys_and_anchors() {
        let node = one("x-a: &a {p: 1, q: 2}\nx-b: &b\n  <<: *a\n  q: 3\nc:\n  <<: [*b, {r: 4, q: 9}]\n  p: 0\n");
        let c = node.get("c").unwrap();
        for (key, value) in [("p", 0), ("q", 3), ("r", 4)] {
            assert_eq!(c.get(key).unwrap().value, Value::Int(value), "{key}");
        }
    }

    #[test]
    fn tags_are_reported_with_their_paths() {
        let document =
            parse("services:\n  web:\n    ports: !reset []\n    env: !override {A: b}\n", 0).unwrap().remove(0);
        assert_eq!(document.resets, [["services", "web", "ports"], ["services", "web", "env"]]);
        let web = document.root.get("services").and_then(|node| node.get("web")).unwrap();
        assert!(web.get("ports").is_none() && web.get("env").is_some());
        assert_eq!(web.get("env").unwrap().at.line, 4);
    }

    #[test]
    fn hostile_files_end_with_an_error() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let list = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let deeper = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in [&bomb, &deep, &deeper, "a: &a [*a]", "a: 1\na: 2", "1: x", "a: *b", "<<: x", "a: [", "? [a]\n: b"]
        {
            assert!(parse(text, 0).is_err(), "{}", &text[..text.len().min(40)]);
        }
    }
}
