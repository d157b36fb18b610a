//! The image config: the command to run, and the expected diff IDs of the layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::error::parse_digest;
use super::{DocumentError, Platform};
use crate::names::Digest;

/// The execution part of a config, with the names of docker and the OCI image spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `user[:group]`, as names or numbers. Empty means root.
    #[serde(rename = "User", default, deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value` lines, as the image has them. Lines without `=` are kept, and the launch decides about them.
    #[serde(rename = "Env", default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(rename = "Entrypoint", default, deserialize_with = "string_list")]
    pub entrypoint: Vec<String>,
    #[serde(rename = "Cmd", default, deserialize_with = "string_list")]
    pub cmd: Vec<String>,
    #[serde(rename = "WorkingDir", default, deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(rename = "Labels", default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Ports such as `8888/tcp`.
    #[serde(rename = "ExposedPorts", default, deserialize_with = "keys", serialize_with = "as_keys")]
    pub exposed_ports: Vec<String>,
    #[serde(rename = "Volumes", default, deserialize_with = "keys", serialize_with = "as_keys")]
    pub volumes: Vec<String>,
    /// A name or a number (`SIGTERM`, `15`), or empty.
    #[serde(rename = "StopSignal", default, deserialize_with = "or_default")]
    pub stop_signal: String,
    #[serde(rename = "Shell", default, deserialize_with = "string_list")]
    pub shell: Vec<String>,
    /// Kept unchanged for other runtimes, and for images that are built from this one.
    #[serde(rename = "Healthcheck", default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<serde_json::Value>,
    /// Instructions for builds from this image.
    #[serde(rename = "OnBuild", default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// A whole image config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    pub architecture: String,
    pub os: String,
    pub variant: String,
    /// The time in RFC 3339, as the image has it, or empty if it has none.
    pub created: String,
    pub author: String,
    pub config: Config,
    /// Lowest layer first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
    #[serde(default, deserialize_with = "or_default")]
    created: String,
    #[serde(default, deserialize_with = "or_default")]
    author: String,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

impl ImageConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document = "image config";
        let raw: Raw = serde_json::from_slice(bytes).map_err(|cause| DocumentError::Json { document, cause })?;
        if !matches!(raw.rootfs.kind.as_str(), "layers" | "") {
            return Err(DocumentError::RootfsType(raw.rootfs.kind));
        }
        raw.config.check(document)?;
        let (architecture, variant) = canonical(raw.architecture, raw.variant);
        Ok(Self {
            architecture,
            os: raw.os,
            variant,
            created: raw.created,
            author: raw.author,
            config: raw.config,
            diff_ids: raw.rootfs.diff_ids.iter().map(|text| parse_digest(text, document)).collect::<Result<_, _>>()?,
        })
    }
}

/// Returns the usual name of an architecture if a config uses another one. A usual name is kept, with its variant.
fn canonical(architecture: String, variant: String) -> (String, String) {
    let normal = Platform::new("linux", &architecture, Some(&variant));
    if architecture.is_empty() || normal.architecture == architecture {
        return (architecture, variant);
    }
    (normal.architecture, normal.variant.unwrap_or_default())
}

impl ImageConfig {
    /// The platform of the image. Old images do not specify it.
    pub fn platform(&self) -> Option<Platform> {
        (!self.architecture.is_empty()).then(|| Platform::new(&self.os, &self.architecture, Some(&self.variant)))
    }
}

impl Config {
    /// Rejects NUL bytes. They cannot be passed to exec(2) or in a path, so no valid image contains them.
    fn check(&self, document: &'static str) -> Result<(), DocumentError> {
        let lists: [(&str, &[String]); 6] = [
            ("`Env`", &self.env),
            ("`Entrypoint`", &self.entrypoint),
            ("`Cmd`", &self.cmd),
            ("`Shell`", &self.shell),
            ("`Volumes`", &self.volumes),
            ("`ExposedPorts`", &self.exposed_ports),
        ];
        let string_list =
            [("`User`", &self.user), ("`WorkingDir`", &self.working_dir), ("`StopSignal`", &self.stop_signal)];
        let all = lists.iter().flat_map(|(field, list)| list.iter().map(move |item| (*field, item)));
        match all.chain(string_list).find(|(_, item)| item.contains('\0')) {
            Some((field, _)) => Err(DocumentError::Nul { document, field: field.into() }),
            None => Ok(()),
        }
    }
}

/// Treats `null` like a missing field.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// Reads a list of strings. Old builders wrote a single string.
fn string_list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(input)? {
        None => Vec::new(),
        Some(OneOrMany::One(item)) => vec![item],
        Some(OneOrMany::Many(string_list)) => string_list,
    })
}

/// Reads the keys of Go's `map[string]struct{}`, whose values have no meaning.
fn keys<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(input)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[expect(clippy::ptr_arg, reason = "serde calls it with the field's type")]
fn as_keys<S: serde::Serializer>(keys: &Vec<String>, output: S) -> Result<S::Ok, S::Error> {
    output.collect_map(keys.iter().map(|key| (key, BTreeMap::<String, String>::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_docker_config() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{{"Env":["PATH=/bin","A"],
            "Entrypoint":null,"Cmd":["/bin/sh"],"ExposedPorts":{{"8888/tcp":{{}}}},"Volumes":null,"Labels":null,"OnBuild":null,
            "WorkingDir":"","User":"1000","StopSignal":"SIGINT","Healthcheck":{{"Test":["NONE"]}}}},
            "rootfs":{{"type":"layers","diff_ids":["{ID}"]}},"history":[]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).expect("a config");
        assert_eq!(config.config.env, ["PATH=/bin", "A"]);
        assert_eq!(config.config.exposed_ports, ["8888/tcp"]);
        assert_eq!((config.config.entrypoint.len(), config.config.cmd.as_slice()), (0, &["/bin/sh".to_string()][..]));
        assert_eq!(config.diff_ids.len(), 1);
    }

    #[test]
    fn refused_configs() {
        for (text, want) in [
            ("", "JSON"),
            ("{}", "JSON"),
            (r#"{"rootfs":{"type":"windows","diff_ids":[]}}"#, "rootfs.type"),
            (r#"{"rootfs":{"diff_ids":["sha256:../../etc/passwd"]}}"#, "digest"),
            (r#"{"rootfs":{"diff_ids":["sha512:00"]}}"#, "digest"),
            (r#"{"config":{"Env":["A=\u0000"]},"rootfs":{"diff_ids":[]}}"#, "NUL"),
            (r#"{"config":{"WorkingDir":"/a\u0000"},"rootfs":{"diff_ids":[]}}"#, "NUL"),
            (r#"{"config":{"Cmd":[1]},"rootfs":{"diff_ids":[]}}"#, "JSON"),
        ] {
            let error = ImageConfig::parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn an_entrypoint_of_one_string_and_no_layers() {
        let config =
            ImageConfig::parse(br#"{"config":{"Entrypoint":"/run me"},"rootfs":{"type":"layers","diff_ids":null}}"#);
        let config = config.expect("a config");
        assert_eq!((config.config.entrypoint, config.diff_ids.len()), (vec!["/run me".to_string()], 0));
    }
}
