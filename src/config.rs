//! `/etc/gpurun/config.toml`: the defaults that an administrator sets for a host.
//!
//! A flag and an environment variable win over the file, and the file over what is built in. Unknown keys are errors: a misspelled limit must
//! not be a limit that is silently missing. `packaging/config.toml` documents every key, and a test compares it with [`Config`].

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::report::Explain;
use crate::request::{self, LogOptions};
use crate::transport::registry::Settings;

/// Where the file is, unless GPURUN_CONFIG names another.
pub(crate) const PATH: &str = "/etc/gpurun/config.toml";

/// Everything that the file may say. `None`: the built-in default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Directory for images, containers and volumes; absolute.
    pub root: Option<PathBuf>,
    /// Directory for files that a reboot may remove; absolute.
    pub run_dir: Option<PathBuf>,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub gpus: Gpus,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub registries: Settings,
    /// Whether there is a file.
    #[serde(skip)]
    pub exists: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Network {
    /// The default bridge's network.
    pub subnet: Option<Subnet>,
    /// Where `network create` takes free networks from.
    pub range: Option<Range>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Gpus {
    /// A mode of `--gpu-mode`.
    pub mode: Option<String>,
}

/// Limits of a launch that names none; each has the grammar of the flag of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Limits {
    pub memory: Option<Text>,
    pub memory_swap: Option<Text>,
    pub cpus: Option<Text>,
    pub cpuset_cpus: Option<Text>,
    pub pids_limit: Option<Text>,
    pub shm_size: Option<Text>,
}

/// The log of a container whose launch has no `--log-opt`; each key is one of that flag's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Log {
    pub max_size: Option<Text>,
    pub max_file: Option<Text>,
}

impl Log {
    /// The settings as values of `--log-opt`.
    #[must_use]
    pub(crate) fn options(&self) -> Vec<String> {
        let keys = [("max-size", &self.max_size), ("max-file", &self.max_file)];
        keys.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?.0))).collect()
    }
}

/// A flag's value: a string, or a plain number (`cpus = 8`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Text(pub String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Whole(i64),
    Fraction(f64),
}

impl From<Value> for Text {
    fn from(value: Value) -> Self {
        Self(match value {
            Value::Text(text) => text,
            Value::Whole(number) => number.to_string(),
            Value::Fraction(number) => number.to_string(),
        })
    }
}

/// The bridge's network: always a /24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Subnet(pub Ipv4Addr);

impl TryFrom<String> for Subnet {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a private network of the form `10.89.0.0/24`");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        if length != "24" || address.octets()[3] != 0 || !address.is_private() {
            return Err(wrong());
        }
        Ok(Self(address))
    }
}

/// A range of networks: a private /24 or larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Range(pub request::Subnet);

impl TryFrom<String> for Range {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a private range of the form `10.89.0.0/16`, of /8 to /24");
        let range: request::Subnet = text.parse().map_err(|_| wrong())?;
        let is_private = range.address.is_private() && range.last().is_private();
        (is_private && range.prefix <= 24).then_some(Self(range)).ok_or_else(wrong)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot use the configuration `{}`: {why}", path.display())]
    Content { path: PathBuf, why: String },
}

impl Explain for ConfigError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "name an existing file with GPURUN_CONFIG, or unset the variable".into()
            }
            Self::Read { path, .. } => format!("check its permissions: `ls -l {}`", path.display()),
            Self::Content { .. } => {
                "correct the line, or comment it out with `#`; docs/configuration.md lists every key".into()
            }
        })
    }
}

impl Config {
    /// Reads the host's file, or the one that GPURUN_CONFIG names. A missing file is an empty one, unless GPURUN_CONFIG names it.
    pub(crate) fn load() -> Result<Self, ConfigError> {
        let path = Self::path();
        match Self::read(&path) {
            Err(ConfigError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound && path == Path::new(PATH) =>
            {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// The file that [`Config::load`] reads.
    #[must_use]
    pub(crate) fn path() -> PathBuf {
        std::env::var_os("GPURUN_CONFIG").filter(|path| !path.is_empty()).map_or_else(|| PATH.into(), PathBuf::from)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config = Self::parse(&text).map_err(|why| ConfigError::Content { path: path.into(), why })?;
        Ok(Self { exists: true, ..config })
    }

    /// Every key that is set, as `key = value`.
    #[must_use]
    pub(crate) fn summary(&self) -> Vec<String> {
        let dirs = [("root", &self.root), ("run-dir", &self.run_dir)];
        let mut lines: Vec<String> =
            dirs.into_iter().filter_map(|(key, dir)| Some(format!("{key} = {}", dir.as_ref()?.display()))).collect();
        lines.extend(self.network.subnet.map(|subnet| format!("subnet = {}/24", subnet.0)));
        lines.extend(self.network.range.map(|range| format!("range = {}", range.0)));
        lines.extend(self.flags().into_iter().map(|(flag, value)| format!("--{} {value}", flag.replace('_', "-"))));
        lines.extend(self.log.options().into_iter().map(|option| format!("--log-opt {option}")));
        lines.extend(self.registries.mirrors.iter().map(|(name, all)| format!("mirrors of {name}: {}", all.join(" "))));
        lines.extend(self.registries.insecure.iter().map(|name| format!("insecure registry {name}")));
        lines
    }

    /// Parses a file's text; the error is one line with the place in the file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let prefix = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{prefix}{}", error.message().lines().collect::<Vec<_>>().join(" "))
        })?;
        for (key, dir) in [("root", &config.root), ("run-dir", &config.run_dir)] {
            if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute()) {
                return Err(format!("`{key}` must be an absolute path, not `{}`", dir.display()));
            }
        }
        LogOptions::parse(None, &config.log.options())
            .map_err(|error| format!("section `[log]`: {}", error.to_string().replace("--log-opt ", "")))?;
        Ok(config)
    }

    /// The defaults for flags of `run` and the bare launch, as flag and value.
    #[must_use]
    pub(crate) fn flags(&self) -> Vec<(&'static str, &str)> {
        let Limits { memory, memory_swap, cpus, cpuset_cpus, pids_limit, shm_size } = &self.limits;
        let limits = [
            ("memory", memory),
            ("memory_swap", memory_swap),
            ("cpus", cpus),
            ("cpuset_cpus", cpuset_cpus),
            ("pids_limit", pids_limit),
            ("shm_size", shm_size),
        ];
        let limits = limits.into_iter().filter_map(|(flag, value)| Some((flag, value.as_ref()?.0.as_str())));
        limits.chain(self.gpus.mode.as_deref().map(|mode| ("gpu_mode", mode))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `packaging/config.toml` with its comment signs removed from every line that sets something.
    fn every_key() -> String {
        let shipped = include_str!("../packaging/config.toml");
        assert_eq!(Config::parse(shipped), Ok(Config::default()), "what is shipped changes nothing");
        let set = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned();
        shipped.lines().map(set).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_shipped_file_names_every_key() {
        let config = Config::parse(&every_key()).unwrap();
        let Config { root, run_dir, network, gpus, limits, log, registries, exists: _ } = &config;
        assert!(root.is_some() && run_dir.is_some() && network.subnet.is_some() && gpus.mode.is_some(), "{config:?}");
        assert!(network.range.is_some(), "{network:?}");
        let Limits { memory, memory_swap, cpus, cpuset_cpus, pids_limit, shm_size } = limits;
        for limit in [memory, memory_swap, cpus, cpuset_cpus, pids_limit, shm_size] {
            assert!(limit.is_some(), "{limits:?}");
        }
        assert!(log.max_size.is_some() && log.max_file.is_some(), "{log:?}");
        assert_eq!(config.summary().len(), 15, "{:?}", config.summary());
        assert!(!registries.mirrors.is_empty() && !registries.insecure.is_empty(), "{registries:?}");
    }

    #[test]
    fn numbers_and_texts_are_the_flags_values() {
        let config =
            Config::parse("[limits]\ncpus = 1.5\nmemory = \"32g\"\npids-limit = 4096\n[gpus]\nmode = \"cdi\"").unwrap();
        let expected = [("memory", "32g"), ("cpus", "1.5"), ("pids_limit", "4096"), ("gpu_mode", "cdi")];
        assert_eq!(config.flags(), expected);
    }

    #[test]
    fn mistakes_name_the_line() {
        let cases = [
            ("memory = \"1g\"", "line 1: unknown field `memory`"),
            ("[limits]\n\nmemroy = \"1g\"", "line 3: unknown field `memroy`"),
            ("root = \"data\"", "`root` must be an absolute path"),
            ("[network]\nsubnet = \"10.0.0.0/16\"", "is not a private network of the form `10.89.0.0/24`"),
            ("[network]\nsubnet = \"8.8.8.0/24\"", "is not a private network"),
            ("[network]\nrange = \"10.0.0.0/25\"", "is not a private range of the form `10.89.0.0/16`"),
            ("[network]\nrange = \"172.16.0.0/8\"", "is not a private range"),
            ("[limits\n", "line 1: "),
            ("[log]\nmax-size = \"much\"", "section `[log]`: `max-size=much`: the size is not valid"),
            ("[log]\nmax-file = 0", "section `[log]`: `max-file=0`: the number of files is not valid"),
            ("[log]\nmax-files = 3", "line 2: unknown field `max-files`"),
            ("[registries]\nmirror = 1", "line 2: unknown field `mirror`"),
        ];
        for (text, expected) in cases {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
            assert!(!why.contains('\n'), "{why}");
        }
    }
}
