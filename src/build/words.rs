//! Expands the words of a Containerfile: quotes, escapes, `$name` and `${name…}`. Pure.
//!
//! The rules are BuildKit's (`frontend/dockerfile/shell`). They are those of a shell, except that `$(…)` is left
//! unchanged.

use std::collections::BTreeMap;

use super::limits::{COMPARISONS, DOCUMENT, EXPANDED};

/// A word that cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordError {
    #[error("a quote `{0}` is not closed")]
    Quote(char),
    #[error("`${{` is not closed")]
    Brace,
    #[error("unsupported substitution `${{{0}}}`")]
    Substitution(String),
    #[error("substitutions are nested more than {DEEPEST} levels deep")]
    Deep,
    #[error("`{name}`: {message}")]
    Required { name: String, message: String },
    #[error("a value is longer than {0} bytes")]
    Long(usize),
    #[error("a pattern takes too long to match")]
    Slow,
}

/// The nesting limit of `${a:-${b:-…}}`. Without it, an image's `ONBUILD` could overflow gpurun's stack.
const DEEPEST: usize = 100;

/// The values of variables.
pub(super) type Variables = BTreeMap<String, String>;

/// Expands words with the file's escape character and the given variables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expander<'a> {
    pub escape: char,
    pub variables: &'a Variables,
}

impl Expander<'_> {
    /// Expands one argument, or text in which white space has no meaning. Removes quotes and escapes.
    pub(super) fn expand(&self, text: &str) -> Result<String, WordError> {
        self.reader(text, EXPANDED.max(text.len())).until(&[])
    }

    /// Expands the body of a here-document, which keeps its quotes.
    pub(super) fn expand_body(&self, text: &str) -> Result<String, WordError> {
        let mut reader = self.reader(text, DOCUMENT.max(text.len()));
        let mut out = String::new();
        while let Some(next) = reader.next() {
            match next {
                '$' => out.push_str(&reader.dollar()?),
                next if next == self.escape && matches!(reader.peek(), Some('$')) => out.extend(reader.next()),
                next => out.push(next),
            }
            reader.bound(&out)?;
        }
        Ok(out)
    }

    fn reader(&self, text: &str, most: usize) -> Reader<'_> {
        Reader { rest: text.chars().collect(), at: 0, depth: 0, expander: self, most, left: COMPARISONS }
    }
}

/// Splits text at white space outside quotes. The words keep their quotes and escapes.
pub(super) fn split(text: &str, escape: char) -> Result<Vec<String>, WordError> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match quote {
            None if next.is_whitespace() => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
                continue;
            }
            None if next == '\'' || next == '"' => quote = Some(next),
            Some(open) if next == open => quote = None,
            _ if next == escape && quote != Some('\'') => {
                word.push(next);
                word.extend(chars.next());
                any = true;
                continue;
            }
            _ => {}
        }
        word.push(next);
        any = true;
    }
    if let Some(open) = quote {
        return Err(WordError::Quote(open));
    }
    if any {
        words.push(word);
    }
    Ok(words)
}

struct Reader<'a> {
    rest: Vec<char>,
    at: usize,
    /// The number of open substitutions.
    depth: usize,
    expander: &'a Expander<'a>,
    /// The length limit of a value. A variable that contains the previous one twice would double with every line.
    most: usize,
    /// The number of comparisons that patterns may still make.
    left: u64,
}

impl Reader<'_> {
    fn bound(&self, value: &str) -> Result<(), WordError> {
        if value.len() > self.most { Err(WordError::Long(self.most)) } else { Ok(()) }
    }

    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    /// Reads up to one of `stops` outside quotes, or to the end. The stop itself is not consumed.
    fn until(&mut self, stops: &[char]) -> Result<String, WordError> {
        let mut out = String::new();
        while let Some(next) = self.peek() {
            if stops.contains(&next) {
                return Ok(out);
            }
            self.at += 1;
            match next {
                '\'' => out.push_str(&self.single()?),
                '"' => out.push_str(&self.double()?),
                '$' => out.push_str(&self.dollar()?),
                next if next == self.expander.escape => out.extend(self.next()),
                next => out.push(next),
            }
            self.bound(&out)?;
        }
        Ok(out)
    }

    fn single(&mut self) -> Result<String, WordError> {
        let mut out = String::new();
        loop {
            match self.next().ok_or(WordError::Quote('\''))? {
                '\'' => return Ok(out),
                next => out.push(next),
            }
        }
    }

    fn double(&mut self) -> Result<String, WordError> {
        let mut out = String::new();
        loop {
            match self.next().ok_or(WordError::Quote('"'))? {
                '"' => return Ok(out),
                '$' => out.push_str(&self.dollar()?),
                next if next == self.expander.escape => match self.next().ok_or(WordError::Quote('"'))? {
                    after if matches!(after, '"' | '$') || after == self.expander.escape => out.push(after),
                    after => out.extend([next, after]),
                },
                next => out.push(next),
            }
            self.bound(&out)?;
        }
    }

    /// Reads a substitution after its `$`.
    fn dollar(&mut self) -> Result<String, WordError> {
        if self.peek() == Some('{') {
            self.at += 1;
            self.depth += 1;
            let value = if self.depth > DEEPEST { Err(WordError::Deep) } else { self.braces() };
            self.depth -= 1;
            return value;
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".into());
        }
        Ok(self.expander.variables.get(&name).cloned().unwrap_or_default())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(next) = self.peek().filter(|next| next.is_ascii_alphanumeric() || *next == '_') {
            // `$1` and the like have a single character.
            if name.is_empty() && next.is_ascii_digit() {
                self.at += 1;
                return next.to_string();
            }
            name.push(next);
            self.at += 1;
        }
        name
    }

    /// Reads a substitution after its `${`.
    fn braces(&mut self) -> Result<String, WordError> {
        let begin = self.at;
        let name = self.name();
        let value = self.expander.variables.get(&name).cloned();
        let bad = |reader: &Self| {
            let text: String = reader.rest[begin..].iter().take_while(|next| **next != '}').collect();
            WordError::Substitution(text)
        };
        if name.is_empty() {
            return Err(bad(self));
        }
        let operator = self.next().ok_or(WordError::Brace)?;
        let (operator, or_empty) = match operator {
            '}' => return Ok(value.unwrap_or_default()),
            ':' => (self.next().ok_or(WordError::Brace)?, true),
            other => (other, false),
        };
        let set = value.as_ref().is_some_and(|value| !or_empty || !value.is_empty());
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(&['}'])?;
                self.next().ok_or(WordError::Brace)?;
                Ok(match (operator, set) {
                    ('-', true) | ('?', true) => value.unwrap_or_default(),
                    ('-', false) | ('+', true) => word,
                    ('+', false) => String::new(),
                    _ => {
                        let message = if word.is_empty() { "is not allowed to be unset".into() } else { word };
                        return Err(WordError::Required { name, message });
                    }
                })
            }
            '#' | '%' if !or_empty => {
                let longest = self.peek() == Some(operator);
                self.at += usize::from(longest);
                let pattern = self.until(&['}'])?;
                self.next().ok_or(WordError::Brace)?;
                trim(&value.unwrap_or_default(), &pattern, operator == '#', longest, &mut self.left)
            }
            '/' if !or_empty => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.until(&['/', '}'])?;
                let with = if self.next().ok_or(WordError::Brace)? == '/' {
                    let with = self.until(&['}'])?;
                    self.next().ok_or(WordError::Brace)?;
                    with
                } else {
                    String::new()
                };
                let value = replace(&value.unwrap_or_default(), &pattern, &with, (all, self.most), &mut self.left)?;
                self.bound(&value)?;
                Ok(value)
            }
            _ => Err(bad(self)),
        }
    }
}

/// Whether a shell pattern (`*`, `?`, `\x`) matches a whole text. On a mismatch the last `*` takes one more character.
/// An earlier `*` could not do better, so the time is at most the product of the lengths. Every comparison is
/// subtracted from `left`.
fn matches(pattern: &[char], text: &[char], left: &mut u64) -> Result<bool, WordError> {
    let (mut in_pattern, mut in_text, mut star) = (0, 0, None);
    while in_text < text.len() {
        *left = left.checked_sub(1).ok_or(WordError::Slow)?;
        let rest = &pattern[in_pattern..];
        let (fits, len) = match rest {
            ['*', ..] => {
                star = Some((in_pattern + 1, in_text));
                in_pattern += 1;
                continue;
            }
            ['?', ..] => (true, 1),
            ['\\', literal, ..] => (*literal == text[in_text], 2),
            [literal, ..] => (*literal == text[in_text], 1),
            [] => (false, 0),
        };
        if fits {
            (in_pattern, in_text) = (in_pattern + len, in_text + 1);
            continue;
        }
        let Some((after, taken)) = &mut star else { return Ok(false) };
        *taken += 1;
        (in_pattern, in_text) = (*after, *taken);
    }
    Ok(pattern[in_pattern..].iter().all(|next| *next == '*'))
}

/// The largest number of characters that a pattern can match.
fn longest_match(pattern: &[char]) -> usize {
    if pattern.contains(&'*') { usize::MAX } else { pattern.len() }
}

fn trim(value: &str, pattern: &str, front: bool, longest: bool, left: &mut u64) -> Result<String, WordError> {
    let (value, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    let mut lengths: Vec<usize> = (0..=value.len().min(longest_match(&pattern))).collect();
    if longest {
        lengths.reverse();
    }
    for length in lengths {
        let (cut, kept) = if front {
            value.split_at(length)
        } else {
            (&value[value.len() - length..], &value[..value.len() - length])
        };
        if matches(&pattern, cut, left)? {
            return Ok(kept.iter().collect());
        }
    }
    Ok(value.iter().collect())
}

/// Replaces the first match or all matches. Stops when the result is longer than `most` bytes.
fn replace(
    value: &str,
    pattern: &str,
    with: &str,
    (all, most): (bool, usize),
    left: &mut u64,
) -> Result<String, WordError> {
    let (value, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    let (mut out, mut at, mut done) = (String::new(), 0, false);
    let reach = longest_match(&pattern);
    while at < value.len() && out.len() <= most {
        let mut found = None;
        if all || !done {
            for end in (at + 1..=value.len().min(at.saturating_add(reach))).rev() {
                if matches(&pattern, &value[at..end], left)? {
                    found = Some(end);
                    break;
                }
            }
        }
        match found {
            Some(end) => {
                out.push_str(with);
                at = end;
                done = true;
            }
            None => {
                out.push(value[at]);
                at += 1;
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("A", "1"), ("EMPTY", ""), ("FILE", "a/b/archive.tar.gz"), ("S", "x y")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn expansion() {
        let variables = variables();
        let expander = Expander { escape: '\\', variables: &variables };
        for (text, want) in [
            ("plain", "plain"),
            ("$A", "1"),
            ("${A}b$A", "1b1"),
            ("$AB|$none", "|"),
            ("'$A'", "$A"),
            ("\"$A x\"", "1 x"),
            ("\\$A", "$A"),
            ("\"\\$A \\n\"", "$A \\n"),
            ("a\\ b", "a b"),
            ("${EMPTY:-x}|${EMPTY-x}|${none-x}|${A:-x}", "x||x|1"),
            ("${A:+y}|${EMPTY:+y}|${EMPTY+y}|${none+y}", "y||y|"),
            ("${none:-${A}}", "1"),
            ("${none:-\"a }\"}", "a }"),
            (
                "${FILE#*/}|${FILE##*/}|${FILE%.*}|${FILE%%.*}",
                "b/archive.tar.gz|archive.tar.gz|a/b/archive.tar|a/b/archive",
            ),
            ("${FILE/a/X}|${FILE//a/X}|${FILE//\\//_}", "X/b/archive.tar.gz|X/b/Xrchive.tXr.gz|a_b_archive.tar.gz"),
            ("$", "$"),
            ("100%$", "100%$"),
            ("$(date)", "$(date)"),
            ("$1x", "x"),
            ("${A:?no}", "1"),
        ] {
            assert_eq!(expander.expand(text).expect(text), want, "{text}");
        }
        for (text, want) in [
            ("'a", WordError::Quote('\'')),
            ("\"a", WordError::Quote('"')),
            ("${A", WordError::Brace),
            ("${}", WordError::Substitution(String::new())),
            ("${A!x}", WordError::Substitution("A!x".into())),
            ("${none:?say}", WordError::Required { name: "none".into(), message: "say".into() }),
        ] {
            assert_eq!(expander.expand(text).expect_err(text), want, "{text}");
        }
        let nested = |depth: usize| format!("{}x{}", "${none:-".repeat(depth), "}".repeat(depth));
        assert_eq!(expander.expand(&nested(DEEPEST)).expect("deep"), "x");
        assert_eq!(expander.expand(&nested(200_000)), Err(WordError::Deep));
        assert_eq!(expander.expand_body("say \"$A\" \\$A '$A'\n").expect("a body"), "say \"1\" $A '1'\n");
    }

    #[test]
    fn patterns_match_all_of_a_text() {
        for (pattern, text, want) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*b*d", "abcbd", true),
            ("*b*d", "abcb", false),
            ("a?c", "abc", true),
            ("?", "", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("*\\*x", "a*b*x", true),
        ] {
            let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            assert_eq!(matches(&pattern, &text, &mut 100), Ok(want), "{pattern:?} {text:?}");
        }
        // A matcher that tries every length for every `*` would not finish in time.
        let (pattern, text) = ("*a".repeat(40) + "b", "a".repeat(200));
        let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
        assert_eq!(matches(&pattern, &text, &mut 100_000), Ok(false));
        assert_eq!(matches(&pattern, &text, &mut 10), Err(WordError::Slow));
    }

    #[test]
    fn values_have_a_bound() {
        let variables = [("A".to_owned(), "x".repeat(EXPANDED / 2 + 1))].into();
        let expander = Expander { escape: '\\', variables: &variables };
        assert_eq!(expander.expand("$A").map(|value| value.len()), Ok(EXPANDED / 2 + 1));
        for text in ["$A$A", "\"$A$A\"", "${B:-$A$A}", "a${A}${A}b", "${A//x/yyy}"] {
            let error = expander.expand(text).expect_err(text);
            assert!(matches!(error, WordError::Long(_) | WordError::Slow), "{text}: {error}");
        }
        assert_eq!(expander.expand("${A//*y/z}"), Err(WordError::Slow));
        assert_eq!(expander.expand("${A%%*y}"), Err(WordError::Slow));
        assert_eq!(expander.expand_body(&"$A".repeat(40)), Err(WordError::Long(DOCUMENT)));
    }

    #[test]
    fn words_keep_their_quotes() {
        let all = split(r#"a "b c" 'd e'f g\ h  i"#, '\\').expect("words");
        assert_eq!(all, ["a", "\"b c\"", "'d e'f", "g\\ h", "i"]);
        assert_eq!(split("a 'b", '\\'), Err(WordError::Quote('\'')));
        assert_eq!(split("  ", '\\').expect("none"), Vec::<String>::new());
    }
}
