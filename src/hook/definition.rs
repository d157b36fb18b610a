//! hooks.d 1.0.0, and its forerunner 0.1.0 as podman reads it: read, check, and match.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use super::Chosen;
use crate::report::Explain;
use crate::spec::Stage;

/// The host's own directories, in order of rising precedence (oci-hooks(5)).
pub const HOST_DIRS: [&str; 2] = ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"];

/// The definitions that gpurun brings along, so that a single binary is enough.
const BUILTIN: [(&str, &str); 1] = [("50-nvidia-prestart.json", include_str!("../../hooks/50-nvidia-prestart.json"))];

const ALL_STAGES: [Stage; 6] = [
    Stage::Prestart,
    Stage::CreateRuntime,
    Stage::CreateContainer,
    Stage::StartContainer,
    Stage::Poststart,
    Stage::Poststop,
];

/// What a hook runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Command {
    /// Absolute, on the host.
    pub path: PathBuf,
    /// With the program's own name first; may be empty.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// One file of a hooks directory.
#[derive(Debug, Clone)]
pub struct Definition {
    /// File name without `.json`.
    pub name: String,
    /// Where it was read; `None` for a built-in one.
    pub file: Option<PathBuf>,
    pub command: Command,
    pub stages: Vec<Stage>,
    when: When,
}

#[derive(Debug, Clone, Default)]
struct When {
    always: Option<bool>,
    annotations: Vec<(Regex, Regex)>,
    commands: Vec<Regex>,
    has_bind_mounts: Option<bool>,
    /// One that holds is enough (0.1.0); otherwise all that are set must.
    any: bool,
}

/// What the conditions are asked about.
#[derive(Debug, Clone, Default)]
pub struct Circumstances<'a> {
    pub annotations: &'a [(String, String)],
    /// The container's `process.args[0]`.
    pub command: &'a str,
    pub has_bind_mounts: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("cannot read the hooks directory `{}`", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot read the hook definition `{file}`")]
    Read { file: String, source: io::Error },
    #[error("the hook definition `{file}` is not valid JSON of the hooks.d format")]
    Json { file: String, source: serde_json::Error },
    #[error("the hook definition `{file}` has version `{version}`, only `1.0.0` and `0.1.0` are known")]
    Version { file: String, version: String },
    #[error("the hook definition `{file}` names the unknown stage `{stage}`")]
    Stage { file: String, stage: String },
    #[error("the hook definition `{file}` names no stage")]
    NoStage { file: String },
    #[error("the hook definition `{file}` has no condition under `when`")]
    NoCondition { file: String },
    #[error("the hook definition `{file}` holds the pattern `{pattern}`, which is not a regular expression")]
    Pattern { file: String, pattern: String, source: Box<regex::Error> },
    #[error("the hook definition `{file}` names the program `{}`, which is not an absolute path", .path.display())]
    Relative { file: String, path: PathBuf },
    #[error("the hook definition `{file}` names the program `{}`, which is not there", .path.display())]
    NoProgram { file: String, path: PathBuf },
}

impl Explain for DefinitionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Directory { .. } => "give `--hooks-dir` a directory with hook definitions (*.json)".into(),
            Self::NoProgram { file, .. } => {
                format!(
                    "install the program, or put an empty stand-in of the same file name in `/etc/containers/oci/hooks.d` for `{file}`"
                )
            }
            _ => "the format is described in oci-hooks(5); version 1.0.0 is read, and the older 0.1.0".into(),
        })
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: String,
}

#[derive(Deserialize)]
struct Raw {
    hook: Command,
    #[serde(default)]
    when: RawWhen,
    #[serde(default)]
    stages: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawWhen {
    always: Option<bool>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
    #[serde(skip)]
    any: bool,
}

/// Version 0.1.0 (podman's pkg/hooks/0.1.0): what has one value may be written in the singular, annotations are patterns of values alone, and
/// a definition without a condition is valid and never applies.
#[derive(Deserialize)]
struct Old {
    hook: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(alias = "stage")]
    stages: Vec<String>,
    #[serde(default, alias = "cmd")]
    cmds: Vec<String>,
    #[serde(default, alias = "annotation")]
    annotations: Vec<String>,
    #[serde(rename = "hasbindmounts")]
    has_bind_mounts: Option<bool>,
}

impl From<Old> for Raw {
    fn from(old: Old) -> Self {
        let args = match old.arguments.is_empty() {
            true => Vec::new(),
            false => [vec![old.hook.display().to_string()], old.arguments].concat(),
        };
        let values = (!old.annotations.is_empty()).then(|| (".*".to_owned(), old.annotations.join("|")));
        Self {
            hook: Command { path: old.hook, args, env: Vec::new(), timeout: None },
            when: RawWhen {
                always: None,
                annotations: values.into_iter().collect(),
                commands: old.cmds,
                has_bind_mounts: old.has_bind_mounts,
                any: true,
            },
            stages: old.stages,
        }
    }
}

impl Definition {
    /// Reads one definition; `file` is what errors and the hook's name are made of. The disk is not looked at.
    pub fn parse(file: &str, text: &str) -> Result<Self, DefinitionError> {
        let named = || file.to_owned();
        let json = |source| DefinitionError::Json { file: named(), source };
        let raw: Raw = match serde_json::from_str::<Versioned>(text).map_err(json)?.version.as_str() {
            "1.0.0" => serde_json::from_str(text).map_err(json)?,
            "0.1.0" => serde_json::from_str::<Old>(text).map_err(json)?.into(),
            other => return Err(DefinitionError::Version { file: named(), version: other.to_owned() }),
        };
        if !raw.hook.path.is_absolute() {
            return Err(DefinitionError::Relative { file: named(), path: raw.hook.path });
        }
        let stages = raw.stages.iter().map(|stage| parse_stage(file, stage)).collect::<Result<Vec<_>, _>>()?;
        if stages.is_empty() {
            return Err(DefinitionError::NoStage { file: named() });
        }
        let pattern = |pattern: &String| {
            Regex::new(pattern).map_err(|error| DefinitionError::Pattern {
                file: named(),
                pattern: pattern.clone(),
                source: Box::new(error),
            })
        };
        let when = When {
            always: raw.when.always,
            annotations: raw
                .when
                .annotations
                .iter()
                .map(|(key, value)| Ok((pattern(key)?, pattern(value)?)))
                .collect::<Result<_, _>>()?,
            commands: raw.when.commands.iter().map(pattern).collect::<Result<_, _>>()?,
            has_bind_mounts: raw.when.has_bind_mounts,
            any: raw.when.any,
        };
        if when.is_empty() && !when.any {
            return Err(DefinitionError::NoCondition { file: named() });
        }
        let base = Path::new(file).file_name().map_or_else(named, |name| name.to_string_lossy().into_owned());
        let name = base.strip_suffix(".json").unwrap_or(&base).to_owned();
        Ok(Self { name, file: None, command: raw.hook, stages, when })
    }

    /// Whether its conditions hold: each that is set must (oci-hooks(5), `when`), or in version 0.1.0 any of them.
    #[must_use]
    pub fn matches(&self, about: &Circumstances<'_>) -> bool {
        let when = &self.when;
        let annotated =
            |(key, value): &(Regex, Regex)| about.annotations.iter().any(|(k, v)| key.is_match(k) && value.is_match(v));
        let mut set = Vec::new();
        set.extend(when.always);
        set.extend(when.has_bind_mounts.map(|wanted| wanted && about.has_bind_mounts));
        set.extend(when.annotations.iter().map(annotated));
        if !when.commands.is_empty() {
            set.push(when.commands.iter().any(|command| command.is_match(about.command)));
        }
        if when.any { set.contains(&true) } else { !set.contains(&false) }
    }
}

impl When {
    fn is_empty(&self) -> bool {
        self.always.is_none()
            && self.has_bind_mounts.is_none()
            && self.annotations.is_empty()
            && self.commands.is_empty()
    }
}

fn parse_stage(file: &str, text: &str) -> Result<Stage, DefinitionError> {
    ALL_STAGES
        .into_iter()
        .find(|stage| stage.key() == text)
        .ok_or_else(|| DefinitionError::Stage { file: file.to_owned(), stage: text.to_owned() })
}

/// The definitions that are built in.
///
/// # Panics
/// Never: they are constants, read in the tests.
#[must_use]
pub fn builtin() -> Vec<Definition> {
    BUILTIN.iter().filter_map(|(file, text)| Definition::parse(file, text).ok()).collect()
}

/// The built-in definitions and those of `dirs`, sorted by file name; a later directory's file replaces an earlier one's of the same name.
///
/// A directory that does not exist is passed over when `optional` says so for it (the host's own), and an error otherwise. A file of
/// zero bytes takes a definition away. Whether the program exists is checked by [`matching`], for those that are really used.
pub fn read_dirs(dirs: &[(PathBuf, Optional)]) -> Result<Vec<Definition>, DefinitionError> {
    let mut found: BTreeMap<String, Option<Definition>> =
        builtin().into_iter().map(|definition| (format!("{}.json", definition.name), Some(definition))).collect();
    for (dir, optional) in dirs {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DefinitionError::Directory { path: dir.clone(), source }),
        };
        for entry in entries {
            let path = entry.map_err(|source| DefinitionError::Directory { path: dir.clone(), source })?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".json"))
            else {
                continue;
            };
            found.insert(name.to_owned(), read_file(&path)?);
        }
    }
    Ok(found.into_values().flatten().collect())
}

/// Whether a directory may be missing.
pub type Optional = bool;

fn read_file(path: &Path) -> Result<Option<Definition>, DefinitionError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| DefinitionError::Read { file: file.clone(), source })?;
    if text.is_empty() {
        return Ok(None);
    }
    let mut definition = Definition::parse(&file, &text)?;
    definition.file = Some(path.to_owned());
    Ok(Some(definition))
}

/// The hooks that a container gets, in the order in which they run. The program of each must be there; a built-in definition whose program
/// is not stands back (who plans for it, as the gpu room does, looks in more places and has the better error).
pub fn matching(definitions: &[Definition], about: &Circumstances<'_>) -> Result<Vec<Chosen>, DefinitionError> {
    let mut chosen = Vec::new();
    for definition in definitions.iter().filter(|definition| definition.matches(about)) {
        if !definition.command.path.exists() {
            let Some(file) = &definition.file else { continue };
            let (file, path) = (file.display().to_string(), definition.command.path.clone());
            return Err(DefinitionError::NoProgram { file, path });
        }
        chosen.extend(definition.stages.iter().map(|stage| Chosen {
            name: definition.name.clone(),
            stage: *stage,
            command: definition.command.clone(),
        }));
    }
    chosen.sort_by_key(|hook| hook.stage);
    Ok(chosen)
}
