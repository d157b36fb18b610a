//! Builds docker-archives byte by byte, so that a test defines exactly what an image contains.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub struct Archive {
    pub name: String,
    pub config: Value,
    pub layers: Vec<Layer>,
}

#[derive(Default)]
pub struct Layer(Vec<(Header, String, Option<String>, Vec<u8>)>);

impl Layer {
    fn add(mut self, kind: EntryType, path: &str, link: Option<&str>, mode: u32, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        header.set_mtime(1_600_000_000);
        self.0.push((header, path.to_owned(), link.map(str::to_owned), bytes.to_vec()));
        self
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, path, None, mode, b"")
    }

    pub fn file(self, path: &str, mode: u32, bytes: &[u8]) -> Self {
        self.add(EntryType::Regular, path, None, mode, bytes)
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, path, Some(target), 0o777, b"")
    }

    fn tar(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (header, path, link, bytes) in &self.0 {
            let mut header = header.clone();
            match link {
                Some(target) => builder.append_link(&mut header, path, target).unwrap(),
                None => builder.append_data(&mut header, path, &bytes[..]).unwrap(),
            }
        }
        builder.into_inner().unwrap()
    }
}

impl Archive {
    pub fn new(name: &str) -> Self {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        });
        Self { name: name.to_owned(), config, layers: Vec::new() }
    }

    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    pub fn write(&self, path: &Path) {
        let tars: Vec<Vec<u8>> = self.layers.iter().map(Layer::tar).collect();
        let hex = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let mut config = self.config.clone();
        let digests: Vec<String> = tars.iter().map(|tar| hex(tar)).collect();
        let diff_ids: Vec<String> = digests.iter().map(|digest| format!("sha256:{digest}")).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = serde_json::to_vec(&config).unwrap();
        let config_name = format!("{}.json", hex(&config));
        let names: Vec<String> = digests.iter().map(|digest| format!("{digest}/layer.tar")).collect();
        let manifest =
            json!([{ "Config": config_name, "RepoTags": [format!("{}:latest", self.name)], "Layers": names }]);
        let mut builder = Builder::new(fs::File::create(path).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes).unwrap();
        };
        add(&config_name, &config);
        for (name, tar) in names.iter().zip(&tars) {
            add(name, tar);
        }
        add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
        builder.into_inner().unwrap().flush().unwrap();
    }
}

/// busybox's applets that the tests use.
const APPLETS: &[&str] = &[
    "sh", "true", "false", "echo", "cat", "ls", "sleep", "id", "env", "pwd", "kill", "nc", "wget", "httpd", "hostname",
    "mount", "umount", "mkdir", "rm", "ln", "touch", "dd", "nproc", "ps", "grep", "head", "tail", "yes", "stty",
    "test", "mknod", "ip", "ping", "awk", "seq", "chmod", "stat", "wc", "sort", "printf", "trap", "date", "cut",
    "readlink", "tty", "timeout", "udhcpc", "df", "ulimit", "tr",
];

pub fn busybox() -> Archive {
    let binary = fs::read("/bin/busybox").expect("busybox-static is installed (./run-tests does that)");
    let mut layer = Layer::default()
        .dir("bin", 0o755)
        .dir("etc", 0o755)
        .dir("tmp", 0o1777)
        .dir("root", 0o700)
        .file("bin/busybox", 0o755, &binary)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nann:x:1000:\nwheel:x:10:ann\n");
    for applet in APPLETS {
        layer = layer.link(&format!("bin/{applet}"), "busybox");
    }
    Archive::new("box").layer(layer)
}
