//! Image sources for this module's tests: OCI layouts and docker-archives, both valid ones and ones that a test
//! corrupts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression as Level;
use flate2::write::GzEncoder;

use super::*;
use crate::image::digest_of;
use crate::layer::Tree;
use crate::layer::testing::Layer;
use crate::names::Digest;

/// A source: files by name, to be written as a directory or as a tar.
#[derive(Default, Clone)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn blob(&mut self, bytes: Vec<u8>) -> (Digest, usize) {
        let (digest, len) = (digest_of(&bytes), bytes.len());
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        (digest, len)
    }

    pub fn directory(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in &self.0 {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, bytes).expect("written");
        }
        dir
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, bytes) in &self.0 {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes.as_slice()).expect("appended");
        }
        builder.into_inner().expect("a tar")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
}

fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::None => tar.to_vec(),
        Packing::Gzip => gzip(tar),
        Packing::Zstd => zstd::encode_all(tar, 1).expect("packed"),
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

pub fn config(diff_ids: &[Digest]) -> String {
    let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["A=b"],"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":{ids:?}}}}}"#,
        crate::image::Platform::host().architecture
    )
}

/// An image of an OCI layout under construction.
pub struct Oci {
    pub files: Files,
    pub manifests: Vec<String>,
}

impl Oci {
    pub fn new() -> Self {
        Self { files: Files::default(), manifests: Vec::new() }
    }

    pub fn layers(&mut self, layers: &[(Vec<u8>, Packing)]) -> (Vec<Digest>, Vec<String>) {
        let mut diff_ids = Vec::new();
        let mut descriptors = Vec::new();
        for (tar, packing) in layers {
            diff_ids.push(digest_of(tar));
            let (digest, size) = self.files.blob(pack(tar, *packing));
            let suffix = match packing {
                Packing::None => "",
                Packing::Gzip => "+gzip",
                Packing::Zstd => "+zstd",
            };
            let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            descriptors.push(format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#));
        }
        (diff_ids, descriptors)
    }

    /// Adds a manifest. `extra` is additional text in the descriptor of the index (annotations, platform).
    pub fn manifest(&mut self, config: &str, layers: &[String], extra: &str) -> String {
        let (digest, size) = self.files.blob(config.as_bytes().to_vec());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}},"layers":[{}]}}"#,
            layers.join(",")
        );
        let (digest, size) = self.files.blob(manifest.into_bytes());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}{extra}}}"#
        )
    }

    pub fn image(mut self, name: &str, layers: &[(Vec<u8>, Packing)]) -> Self {
        let (diff_ids, descriptors) = self.layers(layers);
        let extra = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
        let descriptor = self.manifest(&config(&diff_ids), &descriptors, &extra);
        self.manifests.push(descriptor);
        self
    }

    pub fn files(mut self) -> Files {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.manifests.join(","));
        self.files.0.insert("index.json".into(), index.into_bytes());
        self.files.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self.files
    }
}

pub fn docker(tags: &[&str], layers: &[Vec<u8>]) -> Files {
    let mut files = Files::default();
    let config = config(&layers.iter().map(|layer| digest_of(layer)).collect::<Vec<_>>());
    let id = digest_of(config.as_bytes()).hex();
    files.0.insert(format!("{id}.json"), config.into_bytes());
    let names: Vec<String> = (0..layers.len()).map(|at| format!("{at}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        files.0.insert(name.clone(), layer.clone());
    }
    let manifest = format!(r#"[{{"Config":"{id}.json","RepoTags":{tags:?},"Layers":{names:?}}}]"#);
    files.0.insert("manifest.json".into(), manifest.into_bytes());
    files
}

pub fn base() -> Vec<u8> {
    Layer::new().dir("etc").file("etc/hosts", "127.0.0.1").file("bin", "#!").end()
}

pub fn top() -> Vec<u8> {
    Layer::new().file("etc/.wh.hosts", "").file("etc/new", "x").end()
}

pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("root")).expect("a store");
    (dir, store)
}

pub fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, crate::store::load::LoadError> {
    store.load(&Source::path(path), &LoadOptions::default(), &())
}

pub fn load_tar(store: &Store, bytes: &[u8]) -> Result<Vec<Loaded>, crate::store::load::LoadError> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    load(store, file.path())
}

/// Returns the message with all causes.
pub fn message_of(error: impl Into<crate::report::Report>) -> String {
    error.into().to_string()
}

pub fn ls(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Asserts that a refused load left no layer, image or staging directory.
#[track_caller]
pub fn assert_untouched(store: &Store) {
    for dir in ["layers", "images", "tmp", "dirs"] {
        assert_eq!(ls(&store.root().join(dir)), Vec::<String>::new(), "{dir}");
    }
}

pub fn names_in(tree: &Tree) -> usize {
    tree.inodes.len() - 1
}
