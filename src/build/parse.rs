//! A Containerfile's text → its instructions, each with its line. Pure.
//!
//! The grammar is BuildKit's (`frontend/dockerfile/parser`, `instructions`): parser directives, lines joined by the escape character with
//! comments and empty lines between them passed over, flags, JSON or shell form, here-documents. Words are kept raw: what a variable
//! means is known only when the build comes to it. The crate `parse-dockerfile` (0.1.9) was tried first: it refuses every here-document that
//! stands beside a command (`RUN python3 <<EOF`), loses the names of those in `COPY`, and leaves continued lines with their comments, words,
//! pairs and flags to be read. It is a peer in the tests: what it can read is read alike.

use super::words::{self, WordError};

/// Where something stands, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct SyntaxError {
    pub line: usize,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("`{0}` is not an instruction")]
    Unknown(String),
    #[error("`{instruction}` needs {what}")]
    Needs { instruction: &'static str, what: &'static str },
    #[error("`{instruction}` does not know `--{flag}`")]
    Flag { instruction: &'static str, flag: String },
    #[error("`{instruction} --{flag}` {what}")]
    FlagValue { instruction: &'static str, flag: String, what: String },
    #[error("the here-document `{0}` does not end")]
    HereDocument(String),
    #[error("`{0}` cannot stand in `ONBUILD`")]
    OnBuild(String),
    #[error("an instruction stands before the first `FROM`")]
    NoStage,
    #[error("`{0}` is no name for a stage: it begins with a letter and has letters, digits, `-`, `_` and `.`")]
    StageName(String),
    #[error("two stages are named `{0}`")]
    StageTwice(String),
    #[error("a JSON list of words holds strings and nothing else: `{0}`")]
    Words(String),
    #[error("`{0}` follows, where one instruction stands alone")]
    More(String),
    #[error("there is no `FROM`")]
    NoFrom,
    #[error("`escape={0}` is neither `\\` nor a backtick")]
    Escape(String),
    #[error(transparent)]
    Word(#[from] WordError),
}

/// A parsed Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub escape: char,
    pub lines: Vec<Line>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// As it was written, in one line: what a person is shown.
    pub text: String,
    pub instruction: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
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
    /// `ADD` too.
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
pub struct Copy {
    /// `ADD`: URLs are fetched and archives unpacked.
    pub add: bool,
    pub flags: Vec<Flag>,
    pub sources: Vec<String>,
    pub documents: Vec<HereDocument>,
    pub destination: String,
}

/// `--name=value`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    pub name: String,
    pub value: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HereDocument {
    pub name: String,
    /// As it stands in the file, tabs included.
    pub text: String,
    /// Its name was not quoted: variables mean something in it.
    pub expand: bool,
    /// `<<-`: leading tabs are taken away.
    pub chomp: bool,
}

impl HereDocument {
    /// What it says, tabs taken away where that was asked for.
    #[must_use]
    pub fn content(&self) -> String {
        if !self.chomp {
            return self.text.clone();
        }
        self.text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Parses a whole file.
pub fn parse(text: &str) -> Result<File, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let escape = directives(&lines)?;
    let mut reader = Reader { lines, at: 0, escape };
    let mut parsed = Vec::new();
    while let Some((number, text)) = reader.logical() {
        let at = |problem| SyntaxError { line: number, problem };
        let instruction = one(&text, &mut reader).map_err(at)?;
        check_place(&instruction, &parsed).map_err(at)?;
        parsed.push(Line { number, text, instruction });
    }
    if parsed.iter().any(|line| matches!(line.instruction, Instruction::From { .. })) {
        Ok(File { escape, lines: parsed })
    } else {
        Err(SyntaxError { line: reader.lines.len().max(1), problem: Problem::NoFrom })
    }
}

/// Parses a single instruction, with its here-documents: `ONBUILD`'s, or one of `commit --change`.
pub fn parse_one(text: &str, escape: char) -> Result<Instruction, Problem> {
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

/// `# escape=…` among the first comments.
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
    /// The next instruction's text, continued lines joined, and the line where it begins.
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
            // Comments and empty lines in between belong to nobody.
            while self.lines.get(self.at).is_some_and(|line| line.trim().is_empty() || is_comment(line)) {
                self.at += 1;
            }
            let Some(next) = self.lines.get(self.at) else { break };
            text.push_str(next);
            self.at += 1;
        }
        Some((number, text.trim_end().to_owned()))
    }

    /// The text without its escape character, if the line goes on.
    fn continued(&self, text: &str) -> Option<String> {
        let kept = text.trim_end_matches([' ', '\t']).strip_suffix(self.escape)?;
        // Two of them are one, and no continuation.
        (!kept.ends_with(self.escape)).then(|| kept.to_owned())
    }

    /// The bodies of the here-documents that a line announces.
    fn documents(&mut self, line: &str) -> Result<Vec<HereDocument>, Problem> {
        let mut found = Vec::new();
        // A line that is no words (an open quote) announces nothing: the shell will complain.
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

/// `<<EOF`, `<<-"EOF"`, `3<<EOF`
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

/// Instructions that have no flags. A word that looks like one is refused there too, as BuildKit does (all but `ARG` and `STOPSIGNAL`, whose flags
/// it drops unread); in JSON form it is a word.
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

/// A number would be a stage's place, to `COPY --from`.
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

/// `a=b "c d"=e`, or the old `name the rest of the line`.
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

/// The `--flags` before the rest.
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

/// Each flag is known, stands once, and has a value where one belongs; `switches` are on by their name alone.
fn check_flags(instruction: &'static str, flags: &[Flag], valued: &[&str], switches: &[&str]) -> Result<(), Problem> {
    for (at, flag) in flags.iter().enumerate() {
        let Flag { name, value } = flag;
        let bad = |what: &str| Err(Problem::FlagValue { instruction, flag: name.clone(), what: what.into() });
        match value.as_deref() {
            _ if !valued.contains(&name.as_str()) && !switches.contains(&name.as_str()) => {
                return Err(Problem::Flag { instruction, flag: name.clone() });
            }
            _ if flags[..at].iter().any(|other| other.name == *name) => return bad("stands twice"),
            None | Some("") if valued.contains(&name.as_str()) => return bad("needs a value"),
            Some(value) if switches.contains(&name.as_str()) && !matches!(value, "true" | "false") => {
                return bad("is `true` or `false`");
            }
            _ => {}
        }
    }
    Ok(())
}

/// A JSON list of words, or a line for the shell. A list of anything else is refused, as BuildKit does: no shell would make sense of it.
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
    check_flags(name, &flags, &["chown", "chmod", if name == "COPY" { "from" } else { "checksum" }], &["link"])?;
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
    // Checked now, where the person sees it; kept as text, as every image does, with the lines of its here-documents.
    let begin = reader.at;
    one(rest, reader)?;
    Ok(Instruction::OnBuild([&[rest], &reader.lines[begin..reader.at]].concat().join("\n")))
}

#[cfg(test)]
mod tests;
