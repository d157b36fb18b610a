//! Decides which files of the context are excluded by `.dockerignore` (or `FILE.dockerignore`, `.containerignore`), and
//! which files of a source `COPY --exclude` and `COPY --parents` select. Pure.
//!
//! The rules are those of moby's patternmatcher: the last pattern that matches a path or one of its parents decides,
//! and a pattern with `!` includes the path again. The module also matches the patterns in sources of `COPY`.

use regex::bytes::Regex;

use super::limits::PATTERNS;

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("invalid pattern `{0}`")]
    Bad(String),
    #[error("there are more than {PATTERNS} patterns")]
    Many,
}

/// The patterns of an ignore file.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<(Regex, bool)>,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let lines = text.trim_start_matches('\u{feff}').lines();
        Self::new(lines.filter(|line| !line.starts_with('#')))
    }

    fn new<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut patterns = Vec::new();
        for line in lines.into_iter().map(str::trim).filter(|line| !line.is_empty()) {
            let (line, back) = match line.strip_prefix('!').map(str::trim) {
                Some("") => return Err(PatternError::Bad(line.to_owned())),
                Some(rest) => (rest, true),
                None => (line, false),
            };
            let cleaned = clean(line);
            if patterns.len() >= PATTERNS {
                return Err(PatternError::Many);
            }
            if !cleaned.is_empty() {
                patterns.push((pattern(&cleaned, true)?, back));
            }
        }
        Ok(Self { patterns })
    }

    /// Whether a path of the context (`a/b`, without a leading `/`) is excluded.
    #[must_use]
    pub(super) fn excludes(&self, path: &[u8]) -> bool {
        let mut excluded = false;
        for (pattern, back) in &self.patterns {
            if excluded == *back && ancestors(path).any(|part| pattern.is_match(part)) {
                excluded = !back;
            }
        }
        excluded
    }

    /// Whether there are `!` patterns, which may include files below an excluded directory.
    #[must_use]
    pub(super) fn takes_back(&self) -> bool {
        self.patterns.iter().any(|(_, back)| *back)
    }
}

/// Selects a part of each source of `COPY` or `ADD`. The default selects everything.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// `COPY --parents`: only the paths that this pattern matches, with everything below them.
    include: Option<Regex>,
    /// `--exclude`
    exclude: Ignore,
}

impl Filter {
    /// Compiles the patterns, which are relative to the source. An empty `include` selects everything.
    pub(super) fn new(include: Option<&str>, exclude: &[String]) -> Result<Self, PatternError> {
        let include = include.map(clean).filter(|include| !include.is_empty());
        Ok(Self {
            include: include.map(|include| pattern(&include, true)).transpose()?,
            exclude: Ignore::new(exclude.iter().map(String::as_str))?,
        })
    }

    /// Whether a path below the source, such as `a/b`, is copied.
    #[must_use]
    pub(super) fn keeps(&self, path: &[u8]) -> bool {
        let included = self.include.as_ref().is_none_or(|include| ancestors(path).any(|part| include.is_match(part)));
        included && !self.exclude.excludes(path)
    }

    /// Whether paths below a directory may be copied although the directory itself is not selected.
    #[must_use]
    pub(super) fn searches(&self, directory: &[u8]) -> bool {
        if self.exclude.excludes(directory) { self.exclude.takes_back() } else { self.include.is_some() }
    }

    /// Whether a source that is a file is left out. Its own name counts, because there is no path below it.
    #[must_use]
    pub(super) fn leaves_out(&self, name: &[u8]) -> bool {
        self.exclude.excludes(name)
    }
}

/// The path itself and all its parent directories.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

/// Cleans a pattern by name alone. A relative pattern that climbs out of the context keeps its `..` and matches
/// nothing.
pub(super) fn clean(pattern: &str) -> String {
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

/// Compiles a pattern for one path component or, if `deep` is set, for a whole path. In a whole path `**` matches any
/// number of directories.
pub(super) fn pattern(text: &str, deep: bool) -> Result<Regex, PatternError> {
    let bad = || PatternError::Bad(text.to_owned());
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

/// Adds the bytes of a character to the regular expression without any special meaning.
fn literal(regex: &mut String, letter: char) {
    let mut buffer = [0; 4];
    for byte in letter.encode_utf8(&mut buffer).bytes() {
        regex.push_str(&format!("\\x{byte:02x}"));
    }
}

/// Whether an argument of `COPY` contains wildcards.
#[must_use]
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_selects_below_its_source() {
        let patterns = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let exclude = Filter::new(None, &patterns(&["storage/views", "!storage/views/keep", "**/*.tmp"])).expect("ok");
        for (path, want) in [
            ("storage", true),
            ("storage/views", false),
            ("storage/views/x", false),
            ("storage/views/keep", true),
            ("a/b.tmp", false),
            ("b.tmp", false),
            ("#x", true),
        ] {
            assert_eq!(exclude.keeps(path.as_bytes()), want, "{path}");
        }
        assert!(exclude.searches(b"storage/views") && !exclude.searches(b"storage"));
        let parents = Filter::new(Some("./x/*/a.txt"), &patterns(&["#not-a-comment"])).expect("ok");
        for (path, want) in [("x", false), ("x/y/a.txt", true), ("x/y/b.txt", false), ("x/a.txt", false)] {
            assert_eq!(parents.keeps(path.as_bytes()), want, "{path}");
        }
        assert!(parents.searches(b"x"), "a file below it may be selected");
        assert!(!parents.keeps(b"#not-a-comment") && parents.leaves_out(b"#not-a-comment"));
        let all = Filter::new(Some("./"), &[]).expect("ok");
        assert!(all.keeps(b"x/y") && Filter::default().keeps(b"x"));
        assert!(Filter::new(Some("x"), &[]).expect("ok").keeps(b"x/y"), "a selected directory has its contents");
        assert!(Filter::new(None, &patterns(&["[a"])).is_err());
    }

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
