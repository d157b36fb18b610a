//! `.dockerignore` (or `FILE.dockerignore`, `.containerignore`): which files of the context a build does not see. moby's patternmatcher:
//! the last pattern that matches a path or a directory above it decides, `!` takes back. Also the patterns of `COPY`'s sources. Pure.

use regex::bytes::Regex;

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a pattern")]
pub struct PatternError(pub String);

/// The patterns of a file.
#[derive(Debug, Default)]
pub struct Ignore {
    patterns: Vec<(Regex, bool)>,
}

impl Ignore {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let mut patterns = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let line = line.trim();
            let (line, back) = match line.strip_prefix('!').map(str::trim) {
                Some("") => return Err(PatternError(line.to_owned())),
                Some(rest) => (rest, true),
                None => (line, false),
            };
            let cleaned = clean(line);
            if !cleaned.is_empty() {
                patterns.push((pattern(&cleaned, true)?, back));
            }
        }
        Ok(Self { patterns })
    }

    /// Whether the build does not see this path of the context (`a/b`, no leading `/`).
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        let mut excluded = false;
        for (pattern, back) in &self.patterns {
            if excluded == *back && ancestors(path).any(|part| pattern.is_match(part)) {
                excluded = !back;
            }
        }
        excluded
    }

    /// Whether something below an excluded directory may be taken back.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.patterns.iter().any(|(_, back)| *back)
    }
}

/// The path itself and every directory above it.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

/// A pattern that climbs out of the context stays one, and matches nothing.
fn clean(pattern: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in pattern.split('/') {
        match name {
            "" | "." => {}
            ".." if !pattern.starts_with('/') && names.last().is_none_or(|last| *last == "..") => names.push(".."),
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// A pattern of one component, or with `deep` of a whole path (where `**` is any number of directories).
pub fn pattern(text: &str, deep: bool) -> Result<Regex, PatternError> {
    let bad = || PatternError(text.to_owned());
    let mut regex = String::from("(?s-u)^");
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            '*' if deep && chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                    regex.push_str("(.*/)?");
                } else {
                    regex.push_str(".*");
                }
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => {
                regex.push('[');
                if chars.peek() == Some(&'^') {
                    regex.extend(chars.next());
                }
                let mut empty = true;
                loop {
                    match chars.next().ok_or_else(bad)? {
                        ']' if !empty => break,
                        '-' => regex.push('-'),
                        '\\' => literal(&mut regex, chars.next().ok_or_else(bad)?),
                        other => literal(&mut regex, other),
                    }
                    empty = false;
                }
                regex.push(']');
            }
            '\\' => literal(&mut regex, chars.next().ok_or_else(bad)?),
            other => literal(&mut regex, other),
        }
    }
    regex.push('$');
    Regex::new(&regex).map_err(|_| bad())
}

/// Bytes of the name, whatever they mean in a regular expression.
fn literal(regex: &mut String, letter: char) {
    let mut buffer = [0; 4];
    for byte in letter.encode_utf8(&mut buffer).bytes() {
        regex.push_str(&format!("\\x{byte:02x}"));
    }
}

/// Whether a word of `COPY` is a pattern at all.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_decides() {
        let ignore = Ignore::parse(
            "# a comment\n*.log\n/build/\n**/cache\ndocs/*\n!docs/README.md\n!keep.log\n./x/../y?\n[ab].c\n #odd \n../up\n/../top\n",
        )
        .expect("patterns");
        for (path, want) in [
            ("a.log", true),
            ("sub/a.log", false),
            ("keep.log", false),
            ("build", true),
            ("build/deep/file", true),
            ("builder", false),
            ("cache/x", true),
            ("a/b/cache", true),
            ("docs/guide.md", true),
            ("docs/README.md", false),
            ("y1", true),
            ("y12", false),
            ("a.c", true),
            ("c.c", false),
            ("#odd", true),
            (" a comment", false),
            ("up", false),
            ("top", true),
            ("\u{fc}.txt", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), want, "{path}");
        }
        assert!(ignore.takes_back());
        for text in ["[a\n", "a\\\n", "!\n", "a\n ! \n"] {
            assert!(Ignore::parse(text).is_err(), "{text}");
        }
        assert!(Ignore::parse("**\n!a").expect("patterns").excludes(b"b/c"));
        assert!(Ignore::parse("\u{fc}*\n").expect("patterns").excludes("\u{fc}.txt".as_bytes()));
    }
}
