//! The functions of templates: Go's predefined ones and docker's.

use std::cmp::Ordering;

use super::Value;

const NAMES: [&str; 24] = [
    "and", "eq", "ge", "gt", "html", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not", "or", "pad",
    "print", "printf", "println", "slice", "split", "title", "truncate", "upper",
];

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The longest padding of `printf` and `pad`. Longer ones are typing errors, and would only use memory.
const WIDEST: usize = 4096;

/// Calls a function. `and` and `or` are not here, because they do not evaluate all of their arguments.
pub(super) fn call(name: &str, args: &[Value]) -> Result<Value, String> {
    let count = |wanted: usize| match args.len() {
        found if found == wanted => Ok(()),
        found => Err(format!("it takes {wanted} arguments, not {found}")),
    };
    Ok(match name {
        "json" => {
            count(1)?;
            Value::Text(escaped(&args[0].to_json().to_string()))
        }
        "len" => {
            count(1)?;
            Value::Int(match &args[0] {
                Value::Text(text) => text.len(),
                Value::List(items) => items.len(),
                Value::Map(fields) => fields.len(),
                other => return Err(format!("{} has no length", other.kind())),
            } as i128)
        }
        "index" => index(args)?,
        "slice" => slice(args)?,
        "not" => {
            count(1)?;
            Value::Bool(!args[0].is_true())
        }
        "eq" => {
            let [first, others @ ..] = args else { return Err("it takes at least 2 arguments".into()) };
            if others.is_empty() {
                return Err("it takes at least 2 arguments".into());
            }
            let mut found = false;
            for other in others {
                found = found || equal(first, other)?;
            }
            Value::Bool(found)
        }
        "ne" => {
            count(2)?;
            Value::Bool(!equal(&args[0], &args[1])?)
        }
        "lt" | "le" | "gt" | "ge" => {
            count(2)?;
            let order = compare(&args[0], &args[1])?;
            Value::Bool(match name {
                "lt" => order == Some(Ordering::Less),
                "le" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                "gt" => order == Some(Ordering::Greater),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            })
        }
        "lower" => Value::Text(one_text(args)?.to_lowercase()),
        "upper" => Value::Text(one_text(args)?.to_uppercase()),
        "title" => Value::Text(title(one_text(args)?)),
        "html" => Value::Text(html(&joined(args))),
        "split" => {
            count(2)?;
            let (text, separator) = (text(&args[0])?, text(&args[1])?);
            Value::List(if separator.is_empty() {
                text.chars().map(|letter| Value::Text(letter.into())).collect()
            } else {
                text.split(separator).map(Value::from).collect()
            })
        }
        "join" => {
            count(2)?;
            let Value::List(items) = &args[0] else { return Err(format!("{} is not a list", args[0].kind())) };
            let separator = text(&args[1])?;
            Value::Text(items.iter().map(Value::text).collect::<Vec<_>>().join(separator))
        }
        "pad" => {
            count(3)?;
            let text = text(&args[0])?;
            let blanks = |value| whole(value).map(|count| " ".repeat(count.min(WIDEST)));
            Value::Text(if text.is_empty() {
                String::new()
            } else {
                format!("{}{text}{}", blanks(&args[1])?, blanks(&args[2])?)
            })
        }
        "truncate" => {
            count(2)?;
            Value::Text(text(&args[0])?.chars().take(whole(&args[1])?).collect())
        }
        "print" => Value::Text(joined(args)),
        "println" => Value::Text(args.iter().map(Value::text).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => {
            let [format, rest @ ..] = args else { return Err("it takes a format".into()) };
            Value::Text(printf(text(format)?, rest))
        }
        other => return Err(format!("there is no function `{other}`")),
    })
}

/// Escapes the control characters that JSON allows in a text, because the printer would escape them in another way.
fn escaped(json: &str) -> String {
    let escape = |letter: char| match crate::report::is_obeyed(letter) {
        true => format!("\\u{:04x}", letter as u32),
        false => letter.to_string(),
    };
    if json.chars().any(crate::report::is_obeyed) { json.chars().map(escape).collect() } else { json.to_owned() }
}

fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("{} is not a text", other.kind())),
    }
}

fn one_text(args: &[Value]) -> Result<&str, String> {
    match args {
        [one] => text(one),
        _ => Err(format!("it takes 1 argument, not {}", args.len())),
    }
}

fn whole(value: &Value) -> Result<usize, String> {
    match value {
        Value::Int(number) => usize::try_from(*number).map_err(|_| format!("{number} is negative")),
        other => Err(format!("{} is not a whole number", other.kind())),
    }
}

/// Go's Sprint: operands are separated by a blank if neither of them is a text.
fn joined(args: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in args.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if at > 0 && !is_text(value) && !is_text(&args[at - 1]) {
            out.push(' ');
        }
        value.write(&mut out);
    }
    out
}

fn index(args: &[Value]) -> Result<Value, String> {
    let [first, keys @ ..] = args else { return Err("it takes an object and a key".into()) };
    let mut value = first.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::List(items), key) => {
                let at = whole(key)?;
                items.get(at).cloned().ok_or_else(|| format!("there is no item {at}: the list has {}", items.len()))?
            }
            (Value::Map(fields), Value::Text(key)) => match fields.get(key) {
                Some(value) => value.clone(),
                // The zero value of the map's type.
                None if fields.values().all(|value| matches!(value, Value::Text(_))) => Value::Text(String::new()),
                None if fields.values().all(|value| matches!(value, Value::List(_) | Value::Nil)) => {
                    Value::List(Vec::new())
                }
                None => Value::Nil,
            },
            (Value::Fields(fields), Value::Text(key)) => fields.get(key).cloned().unwrap_or(Value::Nil),
            (Value::Lookup(fields), Value::Text(key)) => Value::Text(fields.get(key).cloned().unwrap_or_default()),
            (Value::Text(text), key) => {
                let at = whole(key)?;
                let byte = text.as_bytes().get(at).ok_or_else(|| format!("there is no byte {at}"))?;
                Value::Int(i128::from(*byte))
            }
            (Value::Nil, _) => return Err("there is no value to look into".into()),
            (other, key) => return Err(format!("{} has no key that is {}", other.kind(), key.kind())),
        };
    }
    Ok(value)
}

fn slice(args: &[Value]) -> Result<Value, String> {
    let [value, bounds @ ..] = args else { return Err("it takes a value".into()) };
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        other => return Err(format!("{} cannot be sliced", other.kind())),
    };
    let bound = |at: usize, default| bounds.get(at).map_or(Ok(default), whole);
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to || to > length || bounds.len() > 2 {
        return Err(format!("{from} to {to} is outside of its length, {length}"));
    }
    match value {
        Value::List(items) => Ok(Value::List(items[from..to].to_vec())),
        Value::Text(text) => Ok(Value::Text(String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned())),
        _ => unreachable!("it has a length"),
    }
}

fn equal(one: &Value, other: &Value) -> Result<bool, String> {
    Ok(match (one, other) {
        (Value::Nil, other) | (other, Value::Nil) => *other == Value::Nil,
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            compare(one, other)? == Some(Ordering::Equal)
        }
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::Text(one), Value::Text(other)) => one == other,
        _ => return Err(format!("{} and {} cannot be compared", one.kind(), other.kind())),
    })
}

fn compare(one: &Value, other: &Value) -> Result<Option<Ordering>, String> {
    let number = |value: &Value| match value {
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        _ => f64::NAN,
    };
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => Ok(Some(one.cmp(other))),
        (Value::Text(one), Value::Text(other)) => Ok(Some(one.cmp(other))),
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            Ok(number(one).partial_cmp(&number(other)))
        }
        _ => Err(format!("{} and {} cannot be compared", one.kind(), other.kind())),
    }
}

/// Upper case for the first letter of each word.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    for letter in text.chars() {
        let is_inside = before.is_alphanumeric() || before == '_' || before == '\'';
        if is_inside {
            out.push(letter)
        } else {
            out.extend(letter.to_uppercase())
        }
        before = letter;
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            letter => out.push(letter),
        }
    }
    out
}

/// Go's Printf with the verbs that text and numbers have. A wrong verb shows as in Go (`%!d(string=x)`).
fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = letters.next_if(|letter| "-+ 0#".contains(*letter)) {
            spec.left |= flag == '-';
            spec.zeros |= flag == '0';
            spec.sign |= flag == '+';
        }
        let number = |letters: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut number = None;
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                let digit = digit as usize - '0' as usize;
                number = Some((number.unwrap_or(0) * 10 + digit).min(WIDEST));
            }
            number
        };
        spec.width = number(&mut letters).unwrap_or(0);
        if letters.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut letters).unwrap_or(0));
        }
        match letters.next() {
            Some('%') => out.push('%'),
            None => out.push_str("%!(NOVERB)"),
            Some(verb) => match args.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => out.push_str(&spec.format(verb, value)),
            },
        }
    }
    let extra: Vec<String> = args.map(Value::text).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

#[derive(Default)]
struct Spec {
    left: bool,
    zeros: bool,
    sign: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn format(&self, verb: char, value: &Value) -> String {
        let is_number = matches!(value, Value::Int(_) | Value::Float(_));
        let text = match (verb, value) {
            ('v', value) => value.text(),
            ('s', Value::Text(text)) => self.cut(text),
            ('s', value @ (Value::List(_) | Value::Map(_) | Value::Fields(_))) => value.text(),
            ('q', Value::Text(text)) => format!("{text:?}"),
            ('t', Value::Bool(value)) => value.to_string(),
            ('d', Value::Int(number)) => number.to_string(),
            ('x', Value::Int(number)) => format!("{number:x}"),
            ('X', Value::Int(number)) => format!("{number:X}"),
            ('o', Value::Int(number)) => format!("{number:o}"),
            ('b', Value::Int(number)) => format!("{number:b}"),
            ('c', Value::Int(number)) => {
                u32::try_from(*number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
            }
            ('x', Value::Text(text)) => hex::encode(text),
            ('X', Value::Text(text)) => hex::encode_upper(text),
            ('f' | 'F', Value::Float(number)) => format!("{number:.*}", self.precision.unwrap_or(6)),
            ('e', Value::Float(number)) => format!("{number:.*e}", self.precision.unwrap_or(6)),
            ('g', Value::Float(_)) => value.text(),
            (verb, value) => {
                let kind = match value {
                    Value::Nil | Value::Lookup(_) => return format!("%!{verb}(<nil>)"),
                    Value::Bool(_) => "bool",
                    Value::Int(_) => "int",
                    Value::Float(_) => "float64",
                    Value::Text(_) => "string",
                    Value::List(_) => "[]interface {}",
                    Value::Map(_) | Value::Fields(_) => "map[string]interface {}",
                };
                return format!("%!{verb}({kind}={})", value.text());
            }
        };
        let text = if self.sign && is_number && !text.starts_with('-') { format!("+{text}") } else { text };
        let missing = self.width.saturating_sub(text.chars().count());
        match (self.left, self.zeros && is_number) {
            (true, _) => text + &" ".repeat(missing),
            (false, true) => {
                let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
                format!("{sign}{}{digits}", "0".repeat(missing))
            }
            (false, false) => " ".repeat(missing) + &text,
        }
    }

    fn cut(&self, text: &str) -> String {
        self.precision.map_or_else(|| text.to_owned(), |length| text.chars().take(length).collect())
    }
}
