//! Images for the tests: small, with one layer large enough to break in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Bytes by their digest.
pub type Blobs = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
    /// With a window of 8 MiB, as `zstd -19` takes it.
    ZstdWide,
}

/// An image as its layers' tars.
#[derive(Debug, Clone)]
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub architecture: &'static str,
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that no packing makes smaller.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 32);
    let mut block = Sha256::digest(seed.to_le_bytes());
    while bytes.len() < len {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    bytes.truncate(len);
    bytes
}

pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

impl TestImage {
    /// `count` layers; `seed` makes them different from another image's, the first layer of 1.5 MiB is the seed's own too.
    pub fn new(seed: u64, count: usize) -> Self {
        let layer = |at: usize| {
            let (name, size) = (format!("data-{seed}-{at}"), if at == 0 { 3 << 19 } else { 64 << 10 });
            tar(&[(&name, &noise(seed * 100 + at as u64, size)), (&format!("etc/{seed}-{at}"), b"x")])
        };
        Self { layers: (0..count).map(layer).collect(), architecture: host() }
    }

    /// With busybox in it: it can run.
    pub fn bootable() -> Self {
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed (./run-tests does that)");
        let layer = tar(&[
            ("bin/busybox", &busybox),
            ("bin/true", &busybox),
            ("bin/cat", &busybox),
            ("bin/sleep", &busybox),
            ("etc/hello", b"hi\n"),
        ]);
        Self { layers: vec![layer], architecture: host() }
    }

    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        json!({
            "architecture": self.architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["cat", "/etc/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": "2024-01-02T03:04:05Z", "created_by": "COPY . /"}],
        })
        .to_string()
        .into_bytes()
    }

    /// Its id.
    pub fn id(&self) -> String {
        digest(&self.config())
    }

    /// Its blobs, the manifest's digest, the layers' digests.
    pub fn blobs(&self, packing: Packing) -> (Blobs, String, Vec<String>) {
        self.documents(
            packing,
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.config.v1+json",
            match packing {
                Packing::None => "application/vnd.oci.image.layer.v1.tar",
                Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Packing::Zstd | Packing::ZstdWide => "application/vnd.oci.image.layer.v1.tar+zstd",
            },
        )
    }

    /// The same in docker's words.
    pub fn schema2(&self) -> (Blobs, String, Vec<String>) {
        self.documents(
            Packing::Gzip,
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
    }

    fn documents(&self, packing: Packing, manifest: &str, config: &str, layer: &str) -> (Blobs, String, Vec<String>) {
        let mut blobs = Blobs::new();
        let mut put = |kind: &str, bytes: Vec<u8>| {
            let descriptor = json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len()});
            blobs.insert(digest(&bytes), bytes);
            descriptor
        };
        let layers: Vec<Value> = self.layers.iter().map(|tar| put(layer, pack(tar, packing))).collect();
        let config = put(config, self.config());
        let text = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers}).to_string();
        let manifest = put(manifest, text.into_bytes());
        let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
        let (manifest, layers) = (digest(&manifest), layers.iter().map(digest).collect());
        (blobs, manifest, layers)
    }

    /// Writes it as an OCI layout.
    pub fn layout(&self, dir: &Path, name: &str, packing: Packing) {
        let (blobs, manifest, _) = self.blobs(packing);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &blobs {
            fs::write(dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        }
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": blobs[&manifest].len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        });
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::None => tar.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(tar, 1).unwrap(),
        Packing::ZstdWide => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(23)).unwrap();
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
    }
}

pub fn host() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
