//! Hook definitions: reading, checking and matching files in the hooks.d format 1.0.0, and in its predecessor 0.1.0 as
//! podman reads it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use crate::report::Explain;
use crate::spec::Stage;

/// Time limit for a hook that sets no `timeout`.
pub(crate) const DEFAULT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

/// A hook that was selected for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The name for error messages: the definition's file name without `.json`.
    pub name: String,
    pub stage: Stage,
    pub command: Command,
}

/// The host's directories, in order of increasing precedence (oci-hooks(5)).
pub(crate) const HOST_DIRS: [&str; 2] = ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"];

/// The definitions that are built into gpurun, so that a single binary is enough.
const BUILTIN: [(&str, &str); 1] = [("50-nvidia-prestart.json", include_str!("../../hooks/50-nvidia-prestart.json"))];

/// Larger files are rejected.
const MAX_SIZE: u64 = 1 << 20;

const ALL_STAGES: [Stage; 6] = [
    Stage::Prestart,
    Stage::CreateRuntime,
    Stage::CreateContainer,
    Stage::StartContainer,
    Stage::Poststart,
    Stage::Poststop,
];

/// The command of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Command {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// The argument vector, including the program's own name. It may be empty.
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
    /// The file that it was read from. `None` for a built-in definition.
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
    /// Whether one condition that holds is enough (version 0.1.0). Otherwise all conditions that are set must hold.
    any: bool,
}

/// The properties of a container that the conditions refer to.
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
    #[error("cannot use the hook definition `{file}`: it is not valid JSON in the hooks.d format")]
    Json { file: String, source: serde_json::Error },
    #[error(
        "cannot use the hook definition `{file}`: its version is `{version}`, and only `1.0.0` and `0.1.0` are \
             supported"
    )]
    Version { file: String, version: String },
    #[error("cannot use the hook definition `{file}`: it names the unknown stage `{stage}`")]
    Stage { file: String, stage: String },
    #[error("cannot use the hook definition `{file}`: it names no stage")]
    NoStage { file: String },
    #[error("cannot use the hook definition `{file}`: it has no condition under `when`")]
    NoCondition { file: String },
    #[error("cannot use the hook definition `{file}`: its pattern `{pattern}` is not a regular expression")]
    Pattern { file: String, pattern: String, source: Box<regex::Error> },
    #[error("cannot use the hook definition `{file}`: its program `{}` is not an absolute path", .path.display())]
    Relative { file: String, path: PathBuf },
    #[error("cannot use the hook definition `{file}`: its command contains a NUL character")]
    Nul { file: String },
    #[error("cannot use the hook definition `{file}`: its environment entry `{entry}` is not `NAME=VALUE`")]
    Env { file: String, entry: String },
    #[error("cannot use the hook definition `{file}`: {why}")]
    Untrusted { file: String, path: PathBuf, why: String },
    #[error("cannot use the hook definition `{file}`: its program `{}` does not exist", .path.display())]
    NoProgram { file: String, path: PathBuf },
}

impl Explain for DefinitionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Directory { .. } => "name a directory with hook definitions (*.json) with `--hooks-dir DIR`".into(),
            Self::NoProgram { file, .. } => {
                format!(
                    "install the program, or disable `{file}` with an empty file of the same name in \
                     `/etc/containers/oci/hooks.d`"
                )
            }
            Self::Untrusted { path, .. } => {
                format!("hooks run as root: `chown root:root {0}` and `chmod go-w {0}`", path.display())
            }
            _ => {
                "correct the file; oci-hooks(5) describes the format (gpurun reads the versions 1.0.0 and 0.1.0)".into()
            }
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

/// Version 0.1.0 (podman's pkg/hooks/0.1.0). Fields may have a singular name, annotation patterns match values only,
/// and a definition without conditions is valid but never applies.
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
    /// Parses one definition. `file` is its file name, for error messages and the hook's name. Does not access the
    /// disk.
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
        check_command(file, &raw.hook)?;
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

    /// Whether the conditions hold: all that are set (oci-hooks(5), `when`), or in version 0.1.0 any of them.
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

/// Rejects strings that execve(2) cannot take. They would otherwise cause a panic, or a bare EINVAL far from the file
/// that contains them.
fn check_command(file: &str, command: &Command) -> Result<(), DefinitionError> {
    let path = command.path.to_string_lossy();
    let mut texts = command.args.iter().chain(&command.env).map(String::as_str).chain([&*path]);
    if texts.any(|text| text.contains('\0')) {
        return Err(DefinitionError::Nul { file: file.to_owned() });
    }
    let is_pair = |entry: &&String| entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    match command.env.iter().find(|entry| !is_pair(entry)) {
        Some(entry) => Err(DefinitionError::Env { file: file.to_owned(), entry: entry.clone() }),
        None => Ok(()),
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

/// Returns the built-in definitions.
///
/// # Panics
/// Never: they are constants, read in the tests.
#[must_use]
pub(crate) fn builtin() -> Vec<Definition> {
    BUILTIN.iter().filter_map(|(file, text)| Definition::parse(file, text).ok()).collect()
}

/// Returns the built-in definitions and those of `dirs`, sorted by file name. A file of a later directory replaces an
/// earlier one of the same name.
///
/// A directory that does not exist is skipped if it is `optional` (the host's own), and is an error otherwise. A file
/// of zero bytes removes a definition. [`matching`] checks whether the program exists, for the definitions that are
/// used.
pub(crate) fn read_dirs(dirs: &[(PathBuf, Optional)]) -> Result<Vec<Definition>, DefinitionError> {
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
            check_owner(&path.display().to_string(), dir)?;
            found.insert(name.to_owned(), read_file(&path)?);
        }
    }
    Ok(found.into_values().flatten().collect())
}

/// Whether a directory may be missing.
pub(super) type Optional = bool;

/// Rejects files and directories that a user other than root (or gpurun's own user) can change. A link counts as what it
/// leads to: the directory that contains the link is checked as well.
fn check_owner(file: &str, path: &Path) -> Result<(), DefinitionError> {
    use std::os::unix::fs::MetadataExt;
    // The next step reports a file that cannot be read.
    let Ok(about) = std::fs::metadata(path) else { return Ok(()) };
    let own = nix::unistd::geteuid().as_raw();
    let why = if about.uid() != 0 && about.uid() != own {
        format!("`{}` belongs to uid {}", path.display(), about.uid())
    } else if about.mode() & 0o002 != 0 || (about.mode() & 0o020 != 0 && about.gid() != 0) {
        format!("users other than root can write to `{}`", path.display())
    } else {
        return Ok(());
    };
    Err(DefinitionError::Untrusted { file: file.to_owned(), path: path.to_owned(), why })
}

/// Rejects anything but regular files. A read from a pipe or a device could block the launch, or never end.
fn read_text(path: &Path) -> io::Result<String> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.len() > MAX_SIZE {
        return Err(io::Error::other(format!("it is not a regular file of at most {MAX_SIZE} bytes")));
    }
    std::fs::read_to_string(path)
}

fn read_file(path: &Path) -> Result<Option<Definition>, DefinitionError> {
    let file = path.display().to_string();
    check_owner(&file, path)?;
    let text = read_text(path).map_err(|source| DefinitionError::Read { file: file.clone(), source })?;
    if text.is_empty() {
        return Ok(None);
    }
    let mut definition = Definition::parse(&file, &text)?;
    definition.file = Some(path.to_owned());
    Ok(Some(definition))
}

/// Returns the hooks of a container in execution order. It is an error if the program of a hook does not exist, except
/// for a built-in definition, which is skipped. A module that plans for such a hook itself, as `gpu` does, searches
/// more directories and has the better error.
pub(crate) fn matching(definitions: &[Definition], about: &Circumstances<'_>) -> Result<Vec<Chosen>, DefinitionError> {
    let mut chosen = Vec::new();
    for definition in definitions.iter().filter(|definition| definition.matches(about)) {
        if !definition.command.path.exists() {
            let Some(file) = &definition.file else { continue };
            let (file, path) = (file.display().to_string(), definition.command.path.clone());
            return Err(DefinitionError::NoProgram { file, path });
        }
        let file = definition.file.as_ref().map_or(&*definition.name, |file| file.to_str().unwrap_or_default());
        check_owner(file, &definition.command.path)?;
        chosen.extend(definition.stages.iter().map(|stage| Chosen {
            name: definition.name.clone(),
            stage: *stage,
            command: definition.command.clone(),
        }));
    }
    chosen.sort_by_key(|hook| hook.stage);
    Ok(chosen)
}
