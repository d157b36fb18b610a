//! The stages of a Containerfile: the base of each stage, and the stages that a target needs. Pure.

use std::collections::BTreeSet;

use super::limits::STAGES;
use super::parse::{File, Instruction, Line, Problem, SyntaxError};
use super::words::{Expander, Variables};
use crate::image::Platform;

/// A stage with its parsed `FROM` line.
#[derive(Debug, Clone)]
pub(super) struct Stage<'a> {
    /// The stage's name, or `stage-N`.
    pub label: String,
    pub name: Option<String>,
    pub base: Base,
    pub from: &'a Line,
    pub lines: &'a [Line],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Scratch,
    /// An earlier stage, by index.
    Stage(usize),
    Image(String),
    /// A directory, by the name of its context.
    Context(String),
}

/// All stages, and the arguments declared before the first one.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    pub globals: Variables,
    pub all: Vec<Stage<'a>>,
    /// The names of contexts, in lower case. They take the place of stages with the same names.
    pub contexts: BTreeSet<String>,
}

/// Reads the `FROM` lines. `given` returns the arguments of the command line and of the platform.
pub(super) fn read<'a>(
    file: &'a File,
    given: &dyn Fn(&str) -> Option<String>,
    platform: &Platform,
) -> Result<Stages<'a>, SyntaxError> {
    let mut globals = Variables::new();
    let mut all: Vec<Stage<'a>> = Vec::new();
    let is_from = |line: &Line| matches!(line.instruction, Instruction::From { .. });
    for (at, line) in file.lines.iter().enumerate() {
        if !matches!(line.instruction, Instruction::Arg(_) | Instruction::From { .. }) {
            continue;
        }
        let failed = |problem| SyntaxError { line: line.number, problem };
        // In `FROM`, platform arguments such as TARGETARCH have a value even if no `ARG` declares them. The command
        // line overrides that value.
        let mut variables = globals.clone();
        for name in ["TARGETPLATFORM", "BUILDPLATFORM", "TARGETARCH", "BUILDARCH", "TARGETOS", "BUILDOS"] {
            variables.extend(given(name).map(|value| (name.to_owned(), value)));
        }
        let expander = Expander { escape: file.escape, variables: &variables };
        let expand = |text: &str| expander.expand(text).map_err(|error| failed(error.into()));
        match &line.instruction {
            Instruction::Arg(args) if all.is_empty() => {
                for (name, default) in args {
                    let value = match given(name) {
                        Some(value) => Some(value),
                        None => default.as_deref().map(expand).transpose()?,
                    };
                    globals.extend(value.map(|value| (name.clone(), value)));
                }
            }
            Instruction::From { image, name, platform: wanted } => {
                let wanted = wanted.as_deref().map(expand).transpose()?.filter(|wanted| !wanted.is_empty());
                if let Some(problem) = wanted.and_then(|wanted| other_machine(&wanted, platform)) {
                    return Err(failed(problem));
                }
                let image = expand(image)?;
                if image.is_empty() {
                    return Err(failed(Problem::Needs { instruction: "FROM", what: "an image: its name is empty" }));
                }
                let earlier = all.iter().position(|stage| stage.name.as_deref() == Some(&*image.to_ascii_lowercase()));
                let base = match earlier {
                    Some(earlier) => Base::Stage(earlier),
                    None if image == "scratch" => Base::Scratch,
                    None => Base::Image(image),
                };
                let rest = &file.lines[at + 1..];
                let lines = &rest[..rest.iter().position(is_from).unwrap_or(rest.len())];
                if all.len() >= STAGES {
                    return Err(failed(Problem::Stages));
                }
                let label = name.clone().unwrap_or_else(|| format!("stage-{}", all.len()));
                all.push(Stage { label, name: name.clone(), base, from: line, lines });
            }
            _ => {}
        }
    }
    Ok(Stages { globals, all, contexts: BTreeSet::new() })
}

/// The reason why a `--platform` cannot be built on this host. Names are normalized as in containerd's platforms
/// package.
fn other_machine(wanted: &str, host: &Platform) -> Option<Problem> {
    let what = match wanted.parse::<Platform>() {
        Ok(platform) if platform.runs_on(host) => return None,
        Ok(_) => format!("is `{wanted}`, but this machine is {host}"),
        Err(problem) => format!("is `{wanted}`: {problem}"),
    };
    Some(Problem::FlagValue { instruction: "FROM", flag: "platform".into(), what })
}

impl Stages<'_> {
    /// The index of the stage that `--from` or `--target` names, among the stages before `end`.
    #[must_use]
    pub(super) fn find(&self, name: &str, end: usize) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        if self.contexts.contains(&lower) {
            return None;
        }
        let named = self.all[..end].iter().position(|stage| stage.name.as_deref() == Some(&*lower));
        named.or_else(|| name.parse().ok().filter(|number| *number < end))
    }

    /// The names of the stages before `end`, for a hint. `None` if no stage has a name.
    #[must_use]
    pub(super) fn before(&self, end: usize) -> Option<String> {
        let names = self.all[..end].iter().filter_map(|stage| Some(format!("`{}`", stage.name.as_ref()?)));
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The stages that `target` needs, including itself, in build order.
    #[must_use]
    pub(super) fn needed(&self, target: usize) -> BTreeSet<usize> {
        let (mut needed, mut todo) = (BTreeSet::new(), vec![target]);
        while let Some(at) = todo.pop() {
            if !needed.insert(at) {
                continue;
            }
            let stage = &self.all[at];
            if let Base::Stage(base) = stage.base {
                todo.push(base);
            }
            todo.extend(
                stage.lines.iter().flat_map(|line| sources(&line.instruction)).filter_map(|name| self.find(name, at)),
            );
        }
        needed
    }
}

/// The names in `--from` and `from=` of an instruction.
fn sources(instruction: &Instruction) -> Vec<&str> {
    match instruction {
        Instruction::Copy(copy) => {
            copy.flags.iter().filter(|flag| flag.name == "from").filter_map(|flag| flag.value.as_deref()).collect()
        }
        Instruction::Run { flags, .. } => flags
            .iter()
            .filter(|flag| flag.name == "mount")
            .filter_map(|flag| flag.value.as_deref())
            .flat_map(|value| value.split(','))
            .filter_map(|field| field.strip_prefix("from="))
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether an instruction may change files. Only such an instruction is a step of the build.
#[must_use]
pub(super) fn is_step(instruction: &Instruction) -> bool {
    matches!(instruction, Instruction::Run { .. } | Instruction::Copy(_) | Instruction::Workdir(_))
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    const TEXT: &str = "ARG V=12\nARG NAME=debian:$V\nFROM $NAME AS base\nRUN a\nFROM scratch AS unused\nFROM base AS tools\n\
        FROM --platform=$BUILDPLATFORM other:${V}\nCOPY --from=tools /a /b\nRUN --mount=type=bind,from=base,target=/x y\n";

    fn given(name: &str) -> Option<String> {
        (name == "BUILDPLATFORM").then(|| "linux/amd64".to_owned())
    }

    fn amd64() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    #[test]
    fn stages_and_what_they_need() {
        let file = parse(TEXT).expect("parsed");
        let stages = read(&file, &given, &amd64()).expect("read");
        let bases: Vec<_> = stages.all.iter().map(|stage| stage.base.clone()).collect();
        assert_eq!(
            bases,
            [Base::Image("debian:12".into()), Base::Scratch, Base::Stage(0), Base::Image("other:12".into())]
        );
        assert_eq!(stages.needed(3), [0, 2, 3].into());
        assert_eq!(stages.needed(1), [1].into());
        assert_eq!((stages.find("TOOLS", 4), stages.find("1", 4), stages.find("4", 4)), (Some(2), Some(1), None));
        let mut stages = stages;
        stages.contexts.insert("tools".into());
        assert_eq!((stages.find("Tools", 4), stages.needed(3)), (None, [0, 3].into()), "a context has its name");
        let newer = |name: &str| (name == "V").then(|| "13".to_owned()).or_else(|| given(name));
        let stages = read(&file, &newer, &amd64()).expect("read");
        assert_eq!(stages.all[0].base, Base::Image("debian:13".into()));
    }

    #[test]
    fn another_platform_is_refused() {
        let file = parse("FROM --platform=linux/riscv64 x\n").expect("parsed");
        let error = read(&file, &given, &amd64()).expect_err("refused").to_string();
        assert!(error.contains("line 1") && error.contains("linux/riscv64"), "{error}");
        for platform in ["linux/amd64", "linux/x86_64", "amd64", "x86_64", "linux/x86-64", "amd64/v1", "Linux/AMD64/v1"]
        {
            let text = format!("FROM --platform={platform} x\n");
            let file = parse(&text).expect("parsed");
            assert!(read(&file, &given, &amd64()).is_ok(), "{platform}");
        }
        let file = parse("ARG A\nFROM $A\n").expect("parsed");
        assert!(read(&file, &given, &amd64()).is_err(), "an empty name");
    }
}
