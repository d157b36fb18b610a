//! Manifests and indexes, in the OCI and docker schema 2 formats.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::parse_digest;
use super::{DocumentError, Platform};
use crate::names::Digest;

/// A reference to a blob: its digest, its exact size and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
    pub platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// Lowest layer first.
    pub layers: Vec<Descriptor>,
}

/// A parsed manifest or index. A descriptor does not reliably say which of the two a blob is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// The compression of a layer, detected from its first bytes: media types are often wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn sniff(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame. zstd:chunked may begin with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
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

/// Serializes an OCI manifest of a config and layers (lowest first), each with its digest and size. Equal images have
/// equal manifests.
pub(crate) fn write_manifest(config: (Digest, usize), layers: &[(Digest, u64)], packing: Compression) -> Vec<u8> {
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
    /// Parses a manifest or an index. The `mediaType`, if it is present, must agree with the other fields. A document
    /// that could be read as both is an attack (OCI image spec, "Guarding against media type confusion").
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
            platform: self.platform.map(|platform| platform.normalized()),
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
            (format!(r#"{{"config":{},"layers":[]}}"#, config.replace("size\":7", "size\":-7")), Err("negative size")),
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
    fn packing_is_sniffed() {
        assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::sniff(&[0x5d, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::sniff(b""), Compression::None);
        assert_eq!(Compression::sniff(b"etc/"), Compression::None);
    }
}
