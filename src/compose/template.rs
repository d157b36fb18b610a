//! Replaces variables in text: `$X`, `${X}`, `${X:-default}`, `${X-default}`, `${X:?error}`, `${X?error}`, `${X:+set}`,
//! `${X+set}` and `$$`. Defaults may contain variables again.
//!
//! This is the grammar of compose-go's `template` package, including its choice of the closing brace.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::Serialize;

/// Deepest nesting of defaults within defaults.
const MAX_DEPTH: u32 = 32;
/// Longest result of one replacement. Defaults can only shrink or repeat a few values, but their nesting multiplies.
const MAX_LENGTH: usize = 1 << 20;

static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"\$(?i:(?P<escaped>\$)|(?P<named>[_a-z][_a-z0-9]*)|\{(?:(?P<braced>[_a-z][_a-z0-9]*(?::?[-+?](.*))?)\}|(?P<invalid>)))",
    )
    .expect("the pattern is constant")
});

/// Why text cannot be interpolated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TemplateError {
    /// `$` is followed by something that is no variable.
    Invalid,
    /// `${X:?reason}`, and X is not set.
    Required { name: String, reason: String },
    /// Too much nesting, or too long a result.
    TooLarge,
}

/// The variables, and the names that were not set.
pub(super) struct Lookup<'a> {
    pub(super) get: &'a dyn Fn(&str) -> Option<String>,
    pub(super) missing: Vec<String>,
}

/// A variable that a text uses, with docker's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) default_value: String,
    /// What takes the variable's place if it is set (`${X:+text}`).
    pub(crate) presence_value: String,
    pub(crate) required: bool,
}

/// Adds the variables of a text, and those of their defaults. The first use with a default or an alternative counts.
pub(super) fn variables(text: &str, all: &mut BTreeMap<String, Variable>) {
    // The texts that are left, with their depth.
    let mut open = vec![(text.to_owned(), 0)];
    while let Some((text, depth)) = open.pop() {
        for captures in PATTERN.captures_iter(&text) {
            let matched = captures.get(0).map_or("", |whole| whole.as_str());
            let (variable, rest) = closing_brace(matched).map_or((matched, ""), |at| matched.split_at(at + 1));
            let Some(captures) = PATTERN.captures(variable) else { continue };
            let group = |name: &str| captures.name(name).map(|found| found.as_str()).filter(|text| !text.is_empty());
            let Some(used) = group("named").or(group("braced")) else { continue };
            let (name, operator) = used.split_at(used.find([':', '-', '+', '?']).unwrap_or(used.len()));
            let operator = operator.strip_prefix(':').unwrap_or(operator);
            let mut found = Variable {
                name: name.to_owned(),
                default_value: String::new(),
                presence_value: String::new(),
                required: operator.starts_with('?'),
            };
            if let Some(default) = operator.strip_prefix('-') {
                found.default_value = default.to_owned();
            } else if let Some(presence) = operator.strip_prefix('+') {
                found.presence_value = presence.to_owned();
            }
            if depth < MAX_DEPTH {
                let nested = operator.get(1..).unwrap_or_default();
                open.extend(
                    [nested, rest]
                        .into_iter()
                        .filter(|text| text.contains('$'))
                        .map(|text| (text.to_owned(), depth + 1)),
                );
            }
            let known = all.entry(found.name.clone()).or_insert_with(|| found.clone());
            known.required |= found.required;
            if known.default_value.is_empty() {
                known.default_value = found.default_value;
            }
            if known.presence_value.is_empty() {
                known.presence_value = found.presence_value;
            }
        }
    }
}

/// Returns the text with its variables replaced.
pub(super) fn substitute(text: &str, lookup: &mut Lookup<'_>) -> Result<String, TemplateError> {
    level(text, lookup, 0)
}

fn level(text: &str, lookup: &mut Lookup<'_>, depth: u32) -> Result<String, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::TooLarge);
    }
    let (mut out, mut end) = (String::new(), 0);
    for captures in PATTERN.captures_iter(text) {
        let whole = captures.get(0).expect("a match has a whole");
        out.push_str(&text[end..whole.start()]);
        out.push_str(&replace(whole.as_str(), lookup, depth)?);
        end = whole.end();
        if out.len() > MAX_LENGTH {
            return Err(TemplateError::TooLarge);
        }
    }
    out.push_str(&text[end..]);
    Ok(out)
}

/// Replaces one match. The pattern is greedy, so the match may contain more text after the variable's closing brace.
fn replace(matched: &str, lookup: &mut Lookup<'_>, depth: u32) -> Result<String, TemplateError> {
    let (variable, rest) = match closing_brace(matched) {
        Some(at) => matched.split_at(at + 1),
        None => (matched, ""),
    };
    let captures: Captures<'_> = PATTERN.captures(variable).ok_or(TemplateError::Invalid)?;
    let group = |name: &str| captures.name(name).map(|found| found.as_str()).filter(|text| !text.is_empty());
    if group("escaped").is_some() {
        return Ok("$".to_owned());
    }
    if let Some(name) = group("named") {
        return Ok(value(name, lookup));
    }
    let braced = group("braced").ok_or(TemplateError::Invalid)?;
    let value = substitution(braced, lookup, depth)?;
    Ok(value + &level(rest, lookup, depth + 1)?)
}

fn value(name: &str, lookup: &mut Lookup<'_>) -> String {
    (lookup.get)(name).unwrap_or_else(|| {
        if !lookup.missing.iter().any(|missing| missing == name) {
            lookup.missing.push(name.to_owned());
        }
        String::new()
    })
}

/// Replaces the content of `${…}`.
fn substitution(text: &str, lookup: &mut Lookup<'_>, depth: u32) -> Result<String, TemplateError> {
    let Some(at) = text.find([':', '-', '+', '?']) else { return Ok(value(text, lookup)) };
    let (name, operator) = text.split_at(at);
    let (empty_counts, operator) = match operator.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, operator),
    };
    let mut letters = operator.chars();
    let kind = letters.next().ok_or(TemplateError::Invalid)?;
    let argument = level(letters.as_str(), lookup, depth + 1)?;
    let found = (lookup.get)(name);
    let is_set = found.as_ref().is_some_and(|value| !(empty_counts && value.is_empty()));
    match (kind, is_set) {
        ('-', true) | ('?', true) => Ok(found.unwrap_or_default()),
        ('-', false) | ('+', true) => Ok(argument),
        ('+', false) => Ok(found.unwrap_or_default()),
        ('?', false) => Err(TemplateError::Required { name: name.to_owned(), reason: argument }),
        _ => Err(TemplateError::Invalid),
    }
}

/// Returns the position of the brace that closes the first one.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, TemplateError> {
        let get = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "E" => Some(String::new()),
            "FOO" => Some("foo".to_owned()),
            _ => None,
        };
        substitute(text, &mut Lookup { get: &get, missing: Vec::new() })
    }

    #[test]
    fn all_forms() {
        for (text, result) in [
            ("$A-$FOO", "a-foo"),
            ("${A} and ${FOO}", "a and foo"),
            ("${X:-y} and ${A}", "y and a"),
            ("$$A", "$A"),
            ("$${A}", "${A}"),
            ("${X:-y}", "y"),
            ("${E:-y}", "y"),
            ("${E-y}", ""),
            ("${A:+z}", "z"),
            ("${E:+z}", ""),
            ("${E+z}", "z"),
            ("${X+z}", ""),
            ("${A:?no}", "a"),
            ("${X:-${A}}/b", "a/b"),
            ("${X:-${Y:-${FOO}-x}}.{}", "foo-x.{}"),
            ("${X:-http://h:80/?q=1}", "http://h:80/?q=1"),
            ("$X", ""),
            ("cost 5$$", "cost 5$"),
            ("${X-a:-b}", "a:-b"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(result), "{text}");
        }
        for text in ["${", "${}", "${ A}", "${A!}", "${A"] {
            assert_eq!(run(text), Err(TemplateError::Invalid), "{text}");
        }
        let required = |reason: &str| Err(TemplateError::Required { name: "X".into(), reason: reason.into() });
        assert_eq!(run("${X:?set it}"), required("set it"));
        assert_eq!(run("${X?set $A}"), required("set a"));
    }

    #[test]
    fn a_text_has_variables_with_their_defaults() {
        let mut all = BTreeMap::new();
        variables("$A ${B:-b-${C:?no}} ${D:+d} and ${E?} $$F ${A:-a} ${A-x}", &mut all);
        let shown: Vec<_> = all
            .values()
            .map(|one| (one.name.as_str(), one.default_value.as_str(), one.presence_value.as_str(), one.required))
            .collect();
        assert_eq!(
            shown,
            [
                ("A", "a", "", false),
                ("B", "b-${C:?no}", "", false),
                ("C", "", "", true),
                ("D", "", "d", false),
                ("E", "", "", true)
            ]
        );
        variables(&format!("{}x{}", "${X:-".repeat(5000), "}".repeat(5000)), &mut all);
        assert!(all.contains_key("X"));
    }

    #[test]
    fn nesting_is_bounded() {
        let text = format!("{}x{}", "${X:-".repeat(5000), "}".repeat(5000));
        assert_eq!(run(&text), Err(TemplateError::TooLarge));
    }
}
