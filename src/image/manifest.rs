//! Manifests and indexes, OCI and docker schema 2, and the choice of a platform.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::{DocumentError, parse_digest};
use crate::names::Digest;

/// A pointer to a blob: its digest, its exact size, its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
    pub platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// Lowest layer first.
    pub layers: Vec<Descriptor>,
}

/// What a blob that a descriptor calls a manifest or an index turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// How a layer is packed, as its first bytes say: media types lie more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn sniff(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame: zstd:chunked may begin with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const PACKINGS: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];

/// An OCI manifest of a config and layers (lowest first), each by digest and size; equal images have equal manifests.
pub fn write_manifest(config: (Digest, usize), layers: &[(Digest, u64)], packing: Compression) -> Vec<u8> {
    let suffix = match packing {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    let layer = |(digest, size): &(Digest, u64)| serde_json::json!({"mediaType": format!("{}{suffix}", LAYERS[0]), "digest": digest, "size": size});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIGS[0], "digest": config.0, "size": config.1},
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

impl Document {
    /// Parses a manifest or an index; which of the two, its `mediaType` says, and its fields must agree (a document that could be
    /// read as both is an attack: OCI image spec, "Guarding against media type confusion").
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document = "manifest";
        let raw: Raw = serde_json::from_slice(bytes).map_err(|cause| DocumentError::Json { document, cause })?;
        let odd =
            |media_type: &str| DocumentError::MediaType { document, media_type: media_type.escape_debug().to_string() };
        match (raw.media_type.as_deref(), raw.manifests, raw.config, raw.layers) {
            (None | Some("" | OCI_INDEX | DOCKER_LIST), Some(manifests), None, None) => {
                Ok(Self::Index(manifests.into_iter().map(|raw| raw.check("index")).collect::<Result<_, _>>()?))
            }
            (None | Some("" | OCI_MANIFEST | DOCKER_MANIFEST), None, Some(config), layers) => {
                let config = config.check("manifest")?;
                if !CONFIGS.contains(&config.media_type.as_str()) {
                    return Err(odd(&config.media_type));
                }
                let layers = layers.unwrap_or_default().into_iter().map(|raw| raw.check("manifest"));
                let layers = layers.collect::<Result<Vec<_>, _>>()?;
                match layers.iter().find(|layer| !is_layer(&layer.media_type)) {
                    Some(layer) => Err(odd(&layer.media_type)),
                    None => Ok(Self::Manifest(Manifest { config, layers })),
                }
            }
            (media_type, ..) => Err(odd(media_type.unwrap_or("(none)"))),
        }
    }
}

impl RawDescriptor {
    fn check(self, document: &'static str) -> Result<Descriptor, DocumentError> {
        Ok(Descriptor {
            digest: parse_digest(&self.digest, document)?,
            size: u64::try_from(self.size).map_err(|_| DocumentError::Size { document })?,
            media_type: self.media_type,
            annotations: self.annotations.unwrap_or_default(),
            platform: self.platform,
        })
    }
}

impl Descriptor {
    pub fn is_manifest_or_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST)
    }
}

fn is_layer(media_type: &str) -> bool {
    LAYERS.iter().any(|layer| media_type.strip_prefix(layer).is_some_and(|packing| PACKINGS.contains(&packing)))
}

impl Platform {
    /// The platform of this machine, in Go's words.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `self` runs on `host`. Variants count only where both name one (arm64's `v8` is the plain one).
    pub fn runs_on(&self, host: &Self) -> bool {
        let variants_agree = match (&self.variant, &host.variant) {
            (Some(ours), Some(asked)) if !ours.is_empty() => ours == asked,
            _ => true,
        };
        self.os == host.os && self.architecture == host.architecture && variants_agree
    }
}

/// `linux/amd64`, `linux/arm/v7`, or the architecture alone.
impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_owned);
        let (first, second, variant) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let (os, architecture) = match second {
            Some(architecture) => (first, architecture),
            None => ("linux".to_owned(), first),
        };
        let word =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if parts.next().is_some() || !word(&os) || !word(&architecture) || variant.as_deref().is_some_and(|v| !word(v))
        {
            return Err("write `OS/ARCHITECTURE[/VARIANT]`, for example `linux/arm64`".into());
        }
        // As uname(1) says it, as people write it.
        let architecture = match architecture.as_str() {
            "x86_64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            _ => architecture,
        };
        Ok(Self { os, architecture, variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":7}}"#)
    }

    #[test]
    fn documents() {
        let config = descriptor(CONFIGS[0]);
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+zstd");
        let docker = descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip");
        let manifest = descriptor(OCI_MANIFEST);
        for (text, want) in [
            (format!(r#"{{"config":{config},"layers":[{layer},{docker}]}}"#), Ok(2)),
            (format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[]}}"#), Ok(0)),
            (format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[{manifest},{manifest}]}}"#), Ok(102)),
            (format!(r#"{{"mediaType":"{OCI_INDEX}","config":{config},"layers":[]}}"#), Err("media type")),
            (format!(r#"{{"manifests":[{manifest}],"config":{config},"layers":[]}}"#), Err("media type")),
            (format!(r#"{{"mediaType":"text/plain","config":{config},"layers":[]}}"#), Err("media type")),
            (
                format!(r#"{{"config":{},"layers":[]}}"#, descriptor("application/vnd.cncf.helm.config.v1+json")),
                Err("media type"),
            ),
            (
                format!(r#"{{"config":{config},"layers":[{}]}}"#, descriptor("application/x-tar+encrypted")),
                Err("media type"),
            ),
            (format!(r#"{{"config":{},"layers":[]}}"#, config.replace("size\":7", "size\":-7")), Err("below zero")),
            (config.replace(DIGEST, "sha256:../x"), Err("media type")),
            (format!(r#"{{"config":{},"layers":[]}}"#, config.replace(DIGEST, "sha256:../x")), Err("digest")),
            ("[]".into(), Err("JSON")),
        ] {
            match (Document::parse(text.as_bytes()), want) {
                (Ok(Document::Manifest(manifest)), Ok(layers)) => assert_eq!(manifest.layers.len(), layers, "{text}"),
                (Ok(Document::Index(entries)), Ok(count)) => assert_eq!(entries.len() + 100, count, "{text}"),
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn platforms() {
        for (text, want) in [
            ("linux/arm64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), want);
        }
        for text in ["", "/", "linux/", "a/b/c/d", "linux/../x"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        let v = |text: &str| text.parse::<Platform>().expect(text);
        assert!(v("linux/arm64/v8").runs_on(&v("arm64")) && v("arm64").runs_on(&v("linux/arm64/v8")));
        assert!(!v("linux/arm/v6").runs_on(&v("linux/arm/v7")));
    }

    #[test]
    fn packing_is_sniffed() {
        assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::sniff(&[0x5d, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::sniff(b""), Compression::None);
        assert_eq!(Compression::sniff(b"etc/"), Compression::None);
    }
}
