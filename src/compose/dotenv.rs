//! Reads `.env` and `env_file` files: `KEY=VALUE` lines with quotes, escapes, comments, `export` and variables.
//!
//! The grammar is that of compose-go's `dotenv` package. It differs from docker's own `--env-file`, which takes a line
//! as it is.

use std::collections::BTreeMap;

use super::template::{Lookup, TemplateError, substitute};

pub(super) type Environment = BTreeMap<String, String>;

/// What is wrong, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DotenvError {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// Parses the text of a file. `lookup` finds variables that the file itself does not set; it comes first.
pub(super) fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Environment, DotenvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let mut reader = Reader { rest: &text, line: 1, found: Environment::new(), lookup };
    while reader.skip_to_statement() {
        reader.statement()?;
    }
    Ok(reader.found)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    found: Environment,
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

/// White space except line feeds.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

impl<'a> Reader<'a> {
    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T, DotenvError> {
        Err(DotenvError { line: self.line, reason: reason.into() })
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    /// Skips empty lines and comments. Returns false at the end of the file.
    fn skip_to_statement(&mut self) -> bool {
        loop {
            let blanks = self.rest.len() - self.rest.trim_start().len();
            self.advance(blanks);
            if !self.rest.starts_with('#') {
                return !self.rest.is_empty();
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.advance(end);
        }
    }

    fn statement(&mut self) -> Result<(), DotenvError> {
        if let Some(after) = self.rest.strip_prefix("export").filter(|after| after.starts_with(char::is_whitespace)) {
            self.rest = after.trim_start_matches(is_blank);
        }
        let end = self.rest.find(['=', ':', '\n']).unwrap_or(self.rest.len());
        let name = self.rest[..end].trim_end();
        let good = |c: char| c.is_alphanumeric() || "_.-[]".contains(c) || is_blank(c);
        if let Some(wrong) = name.chars().find(|c| !good(*c)) {
            let reason = format!("unexpected character `{wrong}` in the variable name `{name}`");
            return self.wrong(reason);
        }
        if name.is_empty() {
            return self.wrong("a line has no variable name");
        }
        if name.contains(' ') {
            let reason = format!("the variable name `{name}` contains a space");
            return self.wrong(reason);
        }
        let name = name.to_owned();
        let inherited = !matches!(self.rest.as_bytes().get(end), Some(b'=' | b':'));
        self.advance(if end < self.rest.len() { end + 1 } else { end });
        if inherited {
            self.found.extend((self.lookup)(&name).map(|value| (name, value)));
            return Ok(());
        }
        self.rest = self.rest.trim_start_matches(is_blank);
        let value = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
            _ => self.unquoted()?,
        };
        self.found.insert(name, value);
        Ok(())
    }

    fn unquoted(&mut self) -> Result<String, DotenvError> {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let text = &self.rest[..end];
        let text = text.split(" #").next().unwrap_or_default().trim_end();
        let value = self.expand(text)?;
        self.advance(if end < self.rest.len() { end + 1 } else { end });
        Ok(value)
    }

    fn quoted(&mut self, quote: char) -> Result<String, DotenvError> {
        let (mut text, mut escaped) = (String::new(), false);
        for (at, c) in self.rest.char_indices().skip(1) {
            if c != quote {
                if !escaped && c == '\\' {
                    escaped = true;
                    continue;
                }
                if std::mem::take(&mut escaped) {
                    text.push('\\');
                }
                text.push(c);
            } else if std::mem::take(&mut escaped) {
                text.push(c);
            } else {
                let value = if quote == '"' { self.expand(&unescape(&text))? } else { text };
                self.advance(at + 1);
                return Ok(value);
            }
        }
        self.wrong("a quoted value has no closing quote")
    }

    fn expand(&self, text: &str) -> Result<String, DotenvError> {
        let get = |name: &str| (self.lookup)(name).or_else(|| self.found.get(name).cloned());
        substitute(text, &mut Lookup { get: &get, missing: Vec::new() }).or_else(|error| {
            self.wrong(match error {
                TemplateError::Invalid => format!("`{text}` is not a valid template; write `$$` for a dollar sign"),
                TemplateError::Required { name, reason } if reason.is_empty() => {
                    format!("the required variable `{name}` is not set")
                }
                TemplateError::Required { name, reason } => {
                    format!("the required variable `{name}` is not set: {reason}")
                }
                TemplateError::TooLarge => "its variables are nested too deeply".to_owned(),
            })
        })
    }
}

/// Replaces the shell's escapes in a double-quoted value. `\$` becomes `$$`, which the expansion turns into `$`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match letters.peek().copied() {
            Some('$') => out.push_str("$$"),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some('0') => {
                letters.next();
                let digits: String =
                    std::iter::from_fn(|| letters.next_if(|c| ('0'..='7').contains(c))).take(3).collect();
                match u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32).filter(|_| digits.len() == 3) {
                    Some(c) => out.push(c),
                    None => out.push_str(&format!("\\0{digits}")),
                }
                continue;
            }
            _ => {
                out.push('\\');
                continue;
            }
        }
        letters.next();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Vec<(String, String)>, DotenvError> {
        let lookup = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        Ok(parse(text, &lookup)?.into_iter().collect())
    }

    #[test]
    fn lines_quotes_comments_and_variables() {
        for (text, pairs) in [
            ("A=b\nC = d # x\n", &[("A", "b"), ("C", "d")][..]),
            ("# no\n\nexport A=1\n", &[("A", "1")]),
            ("A=\"x\\ny $B\"\nB='$HOME'\n", &[("A", "x\ny "), ("B", "$HOME")]),
            ("A=$HOME/x\nB=${A:-q}#z\n", &[("A", "/root/x"), ("B", "/root/x#z")]),
            ("A='multi\nline'\nB=2", &[("A", "multi\nline"), ("B", "2")]),
            ("HOME\nNOPE\nA=", &[("A", ""), ("HOME", "/root")]),
            ("A: yaml\n", &[("A", "yaml")]),
            ("A=\"\\$B\"\n", &[("A", "$B")]),
            ("\u{feff}A=1\r\nB=2\r\n", &[("A", "1"), ("B", "2")]),
        ] {
            let found = run(text).expect(text);
            let found: Vec<(&str, &str)> = found.iter().map(|(key, value)| (&**key, &**value)).collect();
            assert_eq!(found, pairs, "{text:?}");
        }
        for (text, line) in [("A=1\nB!=2", 2), ("A='x", 1), ("A B=1", 1), ("=x", 1), ("A=${", 1)] {
            assert_eq!(run(text).expect_err(text).line, line, "{text}");
        }
    }
}
