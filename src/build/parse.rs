//! Parses the text of a Containerfile into instructions with their line numbers. Pure.
//!
//! The grammar is BuildKit's (`frontend/dockerfile/parser`, `instructions`): parser directives, continuation lines,
//! comments and empty lines between continuation lines, flags, JSON and shell form, and here-documents. Words are kept
//! unexpanded, because the value of a variable is known only when the build reaches the instruction.
//!
//! The crate `parse-dockerfile` (0.1.9) was tried first. It refuses every here-document beside a command
//! (`RUN python3 <<EOF`), loses the names of those in `COPY`, and leaves continuation lines with their comments, words,
//! pairs and flags to its user. The tests compare the two parsers: they must agree on everything that the crate can
//! read.

use super::limits::{INSTRUCTIONS, STAGES};
use super::words::{self, WordError};
use crate::names::distance;

/// An error and its line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(super) struct SyntaxError {
    pub line: usize,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("unknown instruction `{0}`")]
    Unknown(String),
    #[error("`{instruction}` needs {what}")]
    Needs { instruction: &'static str, what: &'static str },
    #[error("`{instruction}` does not accept the flag `--{flag}`")]
    Flag { instruction: &'static str, flag: String },
    #[error("`{instruction} --{flag}` {what}")]
    FlagValue { instruction: &'static str, flag: String, what: String },
    #[error("the here-document `{0}` is not closed")]
    HereDocument(String),
    #[error("`{0}` is not allowed in `ONBUILD`")]
    OnBuild(String),
    #[error("only `ARG` is allowed before the first `FROM`")]
    NoStage,
    #[error("invalid stage name `{0}`: it must begin with a letter and contain only letters, digits, `-`, `_` and `.`")]
    StageName(String),
    #[error("two stages have the name `{0}`")]
    StageTwice(String),
    #[error("a command in JSON form must contain only strings: `{0}`")]
    Words(String),
    #[error("unexpected text after the instruction: `{0}`")]
    More(String),
    #[error("the file has no `FROM`")]
    NoFrom,
    #[error("the file has more than {INSTRUCTIONS} instructions")]
    Instructions,
    #[error("the file has more than {STAGES} stages")]
    Stages,
    #[error("`escape={0}` must be `\\` or a backtick")]
    Escape(String),
    #[error(transparent)]
    Word(#[from] WordError),
}

/// All instructions.
const INSTRUCTION_NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Problem {
    pub(super) fn hint(&self) -> Option<String> {
        let Self::Unknown(name) = self else { return None };
        let upper = name.to_ascii_uppercase();
        let near = INSTRUCTION_NAMES.iter().map(|known| (distance(&upper, known), known)).min()?;
        match near {
            (0..=2, known) if upper.len() > 2 => Some(format!("did you mean `{known}`?")),
            _ => Some("an instruction that continues on the next line needs `\\` at the end of its line".into()),
        }
    }
}

/// A parsed Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub escape: char,
    pub lines: Vec<Line>,
}

/// One instruction and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub number: usize,
    /// The text of the instruction with its continuation lines joined, for messages and the image's history.
    pub text: String,
    pub instruction: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    From {
        image: String,
        name: Option<String>,
        platform: Option<String>,
    },
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run {
        flags: Vec<Flag>,
        command: Command,
        documents: Vec<HereDocument>,
    },
    /// `COPY` or `ADD`.
    Copy(Copy),
    Workdir(String),
    User(String),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    Healthcheck {
        flags: Vec<Flag>,
        test: Option<Command>,
    },
    OnBuild(String),
    Maintainer(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    /// `ADD`: URLs are fetched and archives are unpacked.
    pub add: bool,
    pub flags: Vec<Flag>,
    pub sources: Vec<String>,
    pub documents: Vec<HereDocument>,
    pub destination: String,
}

/// `--name=value`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flag {
    pub name: String,
    pub value: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HereDocument {
    pub name: String,
    /// The unchanged text, including tabs.
    pub text: String,
    /// The name is not quoted, so variables in the text are expanded.
    pub expand: bool,
    /// `<<-`: leading tabs are removed.
    pub chomp: bool,
}

impl HereDocument {
    /// The text, without leading tabs for `<<-`.
    #[must_use]
    pub(super) fn content(&self) -> String {
        if !self.chomp {
            return self.text.clone();
        }
        self.text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Parses a whole file.
pub(super) fn parse(text: &str) -> Result<File, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let escape = directives(&lines)?;
    let mut reader = Reader { lines, at: 0, escape };
    let mut parsed = Vec::new();
    while let Some((number, text)) = reader.logical() {
        let at = |problem| SyntaxError { line: number, problem };
        let instruction = one(&text, &mut reader).map_err(at)?;
        check_place(&instruction, &parsed).map_err(at)?;
        if parsed.len() >= INSTRUCTIONS {
            return Err(at(Problem::Instructions));
        }
        parsed.push(Line { number, text, instruction });
    }
    if parsed.iter().any(|line| matches!(line.instruction, Instruction::From { .. })) {
        Ok(File { escape, lines: parsed })
    } else {
        Err(SyntaxError { line: reader.lines.len().max(1), problem: Problem::NoFrom })
    }
}

/// Parses a single instruction with its here-documents, from `ONBUILD` or `commit --change`.
pub(super) fn parse_one(text: &str, escape: char) -> Result<Instruction, Problem> {
    let mut reader = Reader { lines: text.split('\n').collect(), at: 0, escape };
    let (_, first) = reader.logical().unwrap_or_default();
    let instruction = one(&first, &mut reader)?;
    match reader.lines[reader.at..].iter().find(|line| !line.trim().is_empty()) {
        Some(line) => Err(Problem::More(line.trim().to_owned())),
        None => Ok(instruction),
    }
}

fn check_place(instruction: &Instruction, before: &[Line]) -> Result<(), Problem> {
    let in_stage = before.iter().any(|line| matches!(line.instruction, Instruction::From { .. }));
    match instruction {
        Instruction::From { name: Some(name), .. } => {
            let twice = before
                .iter()
                .any(|line| matches!(&line.instruction, Instruction::From { name: Some(other), .. } if other == name));
            if twice { Err(Problem::StageTwice(name.clone())) } else { Ok(()) }
        }
        Instruction::From { .. } | Instruction::Arg(_) => Ok(()),
        _ if in_stage => Ok(()),
        _ => Err(Problem::NoStage),
    }
}

/// Reads the parser directives at the top of the file and returns the escape character.
fn directives(lines: &[&str]) -> Result<char, SyntaxError> {
    for (at, line) in lines.iter().enumerate() {
        let Some(directive) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let (key, value) = (directive.0.trim().to_ascii_lowercase(), directive.1.trim());
        match key.as_str() {
            "escape" if value == "\\" || value == "`" => return Ok(value.chars().next().unwrap_or('\\')),
            "escape" => return Err(SyntaxError { line: at + 1, problem: Problem::Escape(value.into()) }),
            "syntax" | "check" => {}
            _ => break,
        }
    }
    Ok('\\')
}

struct Reader<'a> {
    lines: Vec<&'a str>,
    at: usize,
    escape: char,
}

impl Reader<'_> {
    /// The line number and text of the next instruction, with continuation lines joined.
    fn logical(&mut self) -> Option<(usize, String)> {
        let is_comment = |line: &str| line.trim_start().starts_with('#');
        while self.lines.get(self.at).is_some_and(|line| line.trim().is_empty() || is_comment(line)) {
            self.at += 1;
        }
        let mut text = self.lines.get(self.at)?.trim_start().to_owned();
        let number = self.at + 1;
        self.at += 1;
        while let Some(open) = self.continued(&text) {
            text = open;
            // Skip comments and empty lines between continuation lines.
            while self.lines.get(self.at).is_some_and(|line| line.trim().is_empty() || is_comment(line)) {
                self.at += 1;
            }
            let Some(next) = self.lines.get(self.at) else { break };
            text.push_str(next);
            self.at += 1;
        }
        Some((number, text.trim_end().to_owned()))
    }

    /// The text without the escape character, if the instruction continues on the next line.
    fn continued(&self, text: &str) -> Option<String> {
        let kept = text.trim_end_matches([' ', '\t']).strip_suffix(self.escape)?;
        // A doubled escape character is a literal one and does not continue the line.
        (!kept.ends_with(self.escape)).then(|| kept.to_owned())
    }

    /// Reads the bodies of the here-documents that a line declares.
    fn documents(&mut self, line: &str) -> Result<Vec<HereDocument>, Problem> {
        let mut found = Vec::new();
        // A line with an open quote cannot be split into words and declares nothing. The shell will report the error.
        for word in words::split(line, self.escape).unwrap_or_default() {
            let Some(mut document) = here_document(&word) else { continue };
            loop {
                let Some(line) = self.lines.get(self.at) else { return Err(Problem::HereDocument(document.name)) };
                self.at += 1;
                let end = if document.chomp { line.trim_start_matches('\t') } else { line };
                if end == document.name {
                    break;
                }
                document.text.push_str(line);
                document.text.push('\n');
            }
            found.push(document);
        }
        Ok(found)
    }
}

/// Parses `<<EOF`, `<<-"EOF"` or `3<<EOF`.
fn here_document(word: &str) -> Option<HereDocument> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
    let expand = name == rest;
    (!name.is_empty()).then(|| HereDocument { name, text: String::new(), expand, chomp })
}

/// Instructions without flags. A word that looks like a flag is refused, as in BuildKit. (BuildKit ignores the flags of
/// `ARG` and `STOPSIGNAL`, but here they are refused too.) In JSON form it is an ordinary word.
const FLAGLESS: [&str; 13] = [
    "ARG",
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn one(text: &str, reader: &mut Reader<'_>) -> Result<Instruction, Problem> {
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let needs = |instruction, what| Problem::Needs { instruction, what };
    let some = |instruction: &'static str, what| if rest.is_empty() { Err(needs(instruction, what)) } else { Ok(rest) };
    let escape = reader.escape;
    let upper = keyword.to_ascii_uppercase();
    if let Some(instruction) = FLAGLESS.iter().find(|name| **name == upper)
        && let Some(flag) = flags(rest, escape)?.0.into_iter().next()
    {
        return Err(Problem::Flag { instruction, flag: flag.name });
    }
    Ok(match upper.as_str() {
        "FROM" => from(rest, escape)?,
        "ARG" => Instruction::Arg(args(some("ARG", "a name")?, escape)?),
        "ENV" => Instruction::Env(pairs("ENV", some("ENV", "a name and a value")?, escape)?),
        "LABEL" => Instruction::Label(pairs("LABEL", some("LABEL", "a name and a value")?, escape)?),
        "RUN" => {
            let (flags, rest) = flags(rest, escape)?;
            if rest.is_empty() {
                return Err(needs("RUN", "a command"));
            }
            let command = command(&rest)?;
            let documents = match &command {
                Command::Shell(text) => reader.documents(text)?,
                Command::Exec(_) => Vec::new(),
            };
            Instruction::Run { flags, command, documents }
        }
        "COPY" => Instruction::Copy(copy("COPY", rest, reader)?),
        "ADD" => Instruction::Copy(copy("ADD", rest, reader)?),
        "WORKDIR" => Instruction::Workdir(some("WORKDIR", "a directory")?.into()),
        "USER" => Instruction::User(some("USER", "a user")?.into()),
        "CMD" => Instruction::Cmd(command(rest)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)?),
        "SHELL" => match command(rest)? {
            Command::Exec(words) if !words.is_empty() => Instruction::Shell(words),
            _ => return Err(needs("SHELL", "a JSON list of words: `SHELL [\"/bin/bash\", \"-c\"]`")),
        },
        "EXPOSE" => Instruction::Expose(words::split(some("EXPOSE", "a port")?, escape)?),
        "VOLUME" => Instruction::Volume(match command(some("VOLUME", "a directory")?)? {
            Command::Exec(words) if words.iter().all(|word| word.trim().is_empty()) => {
                return Err(needs("VOLUME", "a directory"));
            }
            Command::Exec(words) => words,
            Command::Shell(text) => words::split(&text, escape)?,
        }),
        "STOPSIGNAL" => Instruction::StopSignal(some("STOPSIGNAL", "a signal")?.into()),
        "HEALTHCHECK" => healthcheck(rest, escape)?,
        "ONBUILD" => on_build(some("ONBUILD", "an instruction")?, reader)?,
        "MAINTAINER" => Instruction::Maintainer(some("MAINTAINER", "a name")?.into()),
        _ => return Err(Problem::Unknown(keyword.into())),
    })
}

fn from(rest: &str, escape: char) -> Result<Instruction, Problem> {
    let (flags, rest) = flags(rest, escape)?;
    check_flags("FROM", &flags, &["platform"], &[])?;
    let platform = flags.into_iter().find_map(|flag| flag.value);
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (image, name) = match words.as_slice() {
        [image] => (image, None),
        [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
        _ => return Err(Problem::Needs { instruction: "FROM", what: "`IMAGE` or `IMAGE AS NAME`" }),
    };
    if let Some(name) = name.as_ref().filter(|name| !is_stage_name(name)) {
        return Err(Problem::StageName(name.clone()));
    }
    Ok(Instruction::From { image: (*image).to_owned(), name, platform })
}

/// A name must not be a number, because `COPY --from` would take it for a stage's index.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}

fn args(rest: &str, escape: char) -> Result<Vec<(String, Option<String>)>, Problem> {
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    let all: Vec<_> = words::split(rest, escape)?.into_iter().map(pair).collect();
    if all.iter().any(|(name, _)| name.is_empty()) {
        return Err(Problem::Needs { instruction: "ARG", what: "a name before `=`" });
    }
    Ok(all)
}

/// Parses `a=b "c d"=e`, or the old form `name the rest of the line`.
fn pairs(instruction: &'static str, rest: &str, escape: char) -> Result<Vec<(String, String)>, Problem> {
    let all = words::split(rest, escape)?;
    if !all[0].contains('=') {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or(Problem::Needs { instruction, what: "a name and a value: `NAME=VALUE`" })?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Problem::Needs { instruction, what: "`NAME=VALUE` for every word" }),
    };
    all.into_iter().map(pair).collect()
}

/// Splits the leading `--flags` from the rest.
fn flags(text: &str, escape: char) -> Result<(Vec<Flag>, String), Problem> {
    let (mut flags, mut rest) = (Vec::new(), text.trim_start());
    while rest.starts_with("--") {
        let mut quote = None;
        let mut previous = ' ';
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                match quote {
                    Some(open) if *c == open => quote = None,
                    None if matches!(c, '"' | '\'') => quote = Some(*c),
                    None if c.is_whitespace() && previous != escape => return true,
                    _ => {}
                }
                previous = *c;
                false
            })
            .map_or(rest.len(), |(at, _)| at);
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        if word == "--" {
            break;
        }
        let word = &word[2..];
        flags.push(match word.split_once('=') {
            Some((name, value)) => Flag { name: name.into(), value: Some(value.into()) },
            None => Flag { name: word.into(), value: None },
        });
    }
    Ok((flags, rest.to_owned()))
}

/// Checks that each flag is known, occurs once (`--exclude` may occur more often), and has a value if it needs one.
/// `switches` may have no value.
fn check_flags(instruction: &'static str, flags: &[Flag], valued: &[&str], switches: &[&str]) -> Result<(), Problem> {
    for (at, flag) in flags.iter().enumerate() {
        let Flag { name, value } = flag;
        let bad = |what: &str| Err(Problem::FlagValue { instruction, flag: name.clone(), what: what.into() });
        match value.as_deref() {
            _ if !valued.contains(&name.as_str()) && !switches.contains(&name.as_str()) => {
                return Err(Problem::Flag { instruction, flag: name.clone() });
            }
            _ if name != "exclude" && flags[..at].iter().any(|other| other.name == *name) => {
                return bad("is given twice");
            }
            None | Some("") if valued.contains(&name.as_str()) => return bad("needs a value"),
            Some(value) if switches.contains(&name.as_str()) && !matches!(value, "true" | "false") => {
                return bad("must be `true` or `false`");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Parses a JSON list of words, or takes the text as a shell command. A list that contains anything but strings is
/// refused, as in BuildKit, because no shell could run it.
fn command(text: &str) -> Result<Command, Problem> {
    let text = text.trim();
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Ok(list) if text.starts_with('[') => {
            let word = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let words: Option<Vec<String>> = list.iter().map(word).collect();
            words.map(Command::Exec).ok_or_else(|| Problem::Words(text.to_owned()))
        }
        _ => Ok(Command::Shell(text.to_owned())),
    }
}

fn copy(name: &'static str, rest: &str, reader: &mut Reader<'_>) -> Result<Copy, Problem> {
    let (flags, rest) = flags(rest, reader.escape)?;
    let (valued, switches): (&[&str], &[&str]) = match name {
        "COPY" => (&["chown", "chmod", "exclude", "from"], &["link", "parents"]),
        _ => (&["chown", "chmod", "exclude", "checksum"], &["link"]),
    };
    check_flags(name, &flags, valued, switches)?;
    let (mut words, documents) = match command(&rest)? {
        Command::Exec(words) => (words, Vec::new()),
        Command::Shell(text) => {
            let documents = reader.documents(&text)?;
            (text.split_whitespace().map(str::to_owned).collect(), documents)
        }
    };
    let what = "a source and a destination";
    let destination = words.pop().ok_or(Problem::Needs { instruction: name, what })?;
    words.retain(|word| here_document(word).is_none());
    if words.is_empty() && documents.is_empty() {
        return Err(Problem::Needs { instruction: name, what });
    }
    Ok(Copy { add: name == "ADD", flags, sources: words, documents, destination })
}

fn healthcheck(rest: &str, escape: char) -> Result<Instruction, Problem> {
    let (flags, rest) = flags(rest, escape)?;
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest.as_str(), ""));
    match word.to_ascii_uppercase().as_str() {
        "NONE" if rest.trim().is_empty() => Ok(Instruction::Healthcheck { flags, test: None }),
        "CMD" if !rest.trim().is_empty() => Ok(Instruction::Healthcheck { flags, test: Some(command(rest)?) }),
        _ => Err(Problem::Needs { instruction: "HEALTHCHECK", what: "`NONE` or `CMD command`" }),
    }
}

fn on_build(rest: &str, reader: &mut Reader<'_>) -> Result<Instruction, Problem> {
    let keyword = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(Problem::OnBuild(keyword));
    }
    // Check the instruction now, while the author can see the error. Like every image, keep it as text, with the lines
    // of its here-documents.
    let begin = reader.at;
    one(rest, reader)?;
    Ok(Instruction::OnBuild([&[rest], &reader.lines[begin..reader.at]].concat().join("\n")))
}

#[cfg(test)]
mod tests;
