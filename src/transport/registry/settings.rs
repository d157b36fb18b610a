//! Mirrors, and registries without TLS: `/etc/gpurun/registries.json`, and GPURUN_MIRRORS for one command.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::names::Reference;
use crate::report::Explain;

/// The administrator's settings for registries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Registry → mirrors (`[https://]HOST[:PORT][/PREFIX]`), which are tried in this order before the registry itself.
    #[serde(default)]
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries whose certificate is not verified, and that may use plain HTTP.
    #[serde(default)]
    pub insecure: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not a list of mirrors", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("cannot parse `{0}` in GPURUN_MIRRORS")]
    Variable(String),
}

impl Explain for SettingsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Variable(_) => "write `REGISTRY=MIRROR`, separated by blanks: `docker.io=mirror.lab:5000`".into(),
            _ => r#"use the form {"mirrors": {"docker.io": ["https://mirror.lab:5000"]}, "insecure": ["mirror.lab:5000"]}"#
                .into(),
        })
    }
}

impl Settings {
    /// Appends the settings of another file.
    pub(crate) fn extend(&mut self, other: &Self) {
        for (registry, mirrors) in &other.mirrors {
            self.mirrors.entry(registry.clone()).or_default().extend(mirrors.iter().cloned());
        }
        self.insecure.extend(other.insecure.iter().cloned());
    }
}

/// A possible location of an image: a registry's API and the repository's path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Host and port as users write them: the key for credentials and certificates.
    pub host: String,
    pub repository: String,
    /// `https` or `http`, if it is specified.
    pub scheme: Option<&'static str>,
    pub insecure: bool,
}

impl Settings {
    /// Reads the file at `path`, if it exists, and then `variable`, the value of GPURUN_MIRRORS.
    pub(crate) fn read(path: &Path, variable: Option<&str>) -> Result<Self, SettingsError> {
        let mut settings: Self = match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| SettingsError::Json { path: path.into(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(source) => return Err(SettingsError::Read { path: path.into(), source }),
        };
        for item in variable.unwrap_or_default().split_whitespace() {
            let (registry, mirror) = item.split_once('=').ok_or_else(|| SettingsError::Variable(item.into()))?;
            settings.mirrors.entry(registry.into()).or_default().push(mirror.into());
        }
        Ok(settings)
    }

    /// Returns the possible locations of an image in the order to try: the mirrors, then its registry.
    pub(super) fn places(&self, reference: &Reference) -> Vec<Place> {
        let mirrors = self.mirrors.get(&reference.domain).into_iter().flatten();
        let mut places: Vec<_> = mirrors.map(|mirror| self.mirror(mirror, &reference.path)).collect();
        places.push(self.place(reference));
        places
    }

    /// Whether a registry may be used without TLS.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|known| known == host)
    }

    /// Returns the location in the image's registry, which is the destination of a push.
    pub(super) fn place(&self, reference: &Reference) -> Place {
        Place {
            host: reference.domain.clone(),
            repository: reference.path.clone(),
            scheme: None,
            insecure: self.insecure.contains(&reference.domain),
        }
    }

    fn mirror(&self, mirror: &str, path: &str) -> Place {
        let (scheme, rest) = match (mirror.strip_prefix("https://"), mirror.strip_prefix("http://")) {
            (Some(rest), _) => (Some("https"), rest),
            (_, Some(rest)) => (Some("http"), rest),
            _ => (None, mirror),
        };
        let rest = rest.trim_end_matches('/');
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let repository = if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") };
        let insecure = self.insecure.iter().any(|known| known == host);
        Place { host: host.into(), repository, scheme, insecure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("registries.json");
        std::fs::write(&path, r#"{"mirrors":{"docker.io":["https://m:5000/hub/"]},"insecure":["n:1"]}"#)
            .expect("written");
        let settings = Settings::read(&path, Some("docker.io=n:1 quay.io=http://q")).expect("read");
        let shown = |name: &str| -> Vec<String> {
            let places = settings.places(&name.parse().expect("a name"));
            places.iter().map(|p| format!("{}|{}|{:?}|{}", p.host, p.repository, p.scheme, p.insecure)).collect()
        };
        assert_eq!(
            shown("x"),
            ["m:5000|hub/library/x|Some(\"https\")|false", "n:1|library/x|None|true", "docker.io|library/x|None|false"]
        );
        assert_eq!(shown("quay.io/a/b"), ["q|a/b|Some(\"http\")|false", "quay.io|a/b|None|false"]);
        assert_eq!(Settings::read(&dir.path().join("none"), None).expect("nothing"), Settings::default());
        std::fs::write(&path, r#"{"mirror":{}}"#).expect("written");
        assert!(Settings::read(&path, None).is_err());
        assert!(Settings::read(&dir.path().join("none"), Some("docker.io")).is_err());
    }
}
