//! Bombs, sizes that lie, streams without end: a clear error, within the memory, the time and the disk that there are.
//!
//! Each runs on a store of 24 MiB, with an address space that holds gpurun and not what the attacker means to fill it with.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Test;
use crate::desk::{Answer, Desk, answer, sh};
use crate::layer::{Head, Layer};
use crate::picture::{Packing, Picture, digest};
use crate::rogue::{Reply, Rogue};

pub const TESTS: &[Test] = &[
    ("a_layer_that_unpacks_to_more_than_the_disk", &[], layers),
    ("a_zstd_window_of_two_gigabytes", &[], window),
    ("large_zstd_windows_share_the_memory", &[], windows),
    ("standard_input_without_end", &[], endless),
    ("files_that_claim_terabytes", &[], terabytes),
    ("members_that_claim_more_than_there_is", &[], claims),
];

/// What gpurun may use in these tests: mapped, not only touched.
const ADDRESS_SPACE: usize = 640 << 20;
const LONG: Duration = Duration::from_secs(60);

fn small_store() -> Desk {
    let desk = Desk::new();
    let root = desk.path("root");
    fs::create_dir_all(&root).unwrap();
    sh(&format!("mount -t tmpfs -o size=24m tmpfs {}", root.display()));
    Picture::new(1, 1).layout(&desk.path("other"), "localhost/other:1", Packing::None);
    desk.ok(&["image", "load", "other"]);
    desk
}

fn bounded(desk: &Desk, args: &[&str]) -> Command {
    let plain = desk.command(args);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {}; exec \"$0\" \"$@\"", ADDRESS_SPACE >> 10)]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(&desk.dir).stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// It ended in time with an error of its own, and the store is as it was.
#[track_caller]
fn ended(desk: &Desk, what: &str, began: Instant, answer: &Answer, words: &[&str]) {
    assert_eq!(answer.code, 125, "{what}: {}", answer.err);
    assert!(words.iter().any(|word| answer.err.contains(word)), "{what}: {}", answer.err);
    assert!(began.elapsed() < LONG, "{what}: {:?}", began.elapsed());
    desk.assert_whole_after(what);
    assert_eq!(desk.names(), ["localhost/other:1"], "{what}");
}

const FULL: [&str; 2] = ["fill the disk", "No space left"];

/// A layer of zeros, as large as that, packed again and again.
fn zeros(size: usize) -> Layer {
    Layer::new().head(Head::new(b'0', b"zeros", b"", size as u64)).data(&vec![0; size])
}

fn layers() {
    let desk = small_store();
    let picture = Picture { layers: vec![zeros(72 << 20).end()], architecture: crate::picture::host() };
    for packing in [Packing::Gzip, Packing::Zstd] {
        picture.layout(&desk.path("bomb"), "localhost/bomb:1", packing);
        assert!(
            sh(&format!("du -sk {}", desk.path("bomb").display()))
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<u32>()
                .unwrap()
                < 4096
        );
        let began = Instant::now();
        let told = answer(bounded(&desk, &["image", "load", "bomb"]).output().unwrap());
        ended(&desk, &format!("{packing:?}"), began, &told, &FULL);
        // As an archive that is itself packed.
        sh(&format!("cd {} && tar -C bomb -cf - . | gzip -1 > bomb.tar.gz && rm -rf bomb", desk.dir.display()));
        let began = Instant::now();
        let told = answer(bounded(&desk, &["image", "load", "bomb.tar.gz"]).output().unwrap());
        ended(&desk, &format!("{packing:?} in an archive"), began, &told, &FULL);
    }
}

/// zstd may ask for gigabytes before the first byte comes.
fn window() {
    let desk = small_store();
    let tar = Layer::new().file("f", "1").end();
    // The frame's header alone: magic, a window of 2 GiB, a raw last block of the tar.
    let mut packed = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, (31 - 10) << 3];
    let block = ((tar.len() as u32) << 3) | 1;
    packed.extend_from_slice(&block.to_le_bytes()[..3]);
    packed.extend_from_slice(&tar);
    let picture = Picture { layers: vec![tar], architecture: crate::picture::host() };
    let (mut blobs, _, layers) = picture.blobs(Packing::None);
    blobs.remove(&layers[0]);
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    let layer = json!({"mediaType": kind, "digest": digest(&packed), "size": packed.len()});
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": picture.id(), "size": picture.config().len()});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string().into_bytes();
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len()});
    fs::create_dir_all(desk.path("bomb/blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| fs::write(desk.path("bomb/blobs/sha256").join(&digest(bytes)[7..]), bytes).unwrap();
    [&packed, &picture.config(), &manifest].into_iter().for_each(|bytes| put(bytes));
    fs::write(desk.path("bomb/index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(desk.path("bomb/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let began = Instant::now();
    let told = answer(bounded(&desk, &["image", "load", "bomb"]).output().unwrap());
    ended(&desk, "a window", began, &told, &["memory"]);
}

/// Four layers come at a time, but not four windows of 8 MiB.
fn windows() {
    let desk = Desk::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let layer = |at: u8| Layer::new().head(Head::new(b'0', b"data", b"", 32 << 20)).data(&vec![at; 32 << 20]).end();
    let picture = Picture { layers: (0..8).map(layer).collect(), architecture: crate::picture::host() };
    rogue.with("wide:1", &picture, Packing::ZstdWide);
    let (pulled, peak) = desk.peak(&["image", "pull", "-q", &rogue.name("wide:1")]);
    assert_eq!((pulled.code, pulled.out.trim()), (0, &*picture.id()), "{}", pulled.err);
    assert!(peak < 64 << 20, "{} MiB", peak >> 20);
    desk.assert_whole();
}

fn endless() {
    let desk = small_store();
    let one = Layer::new().file("blobs/sha256/x", &"y".repeat(9000)).bytes;
    for (what, piece, words) in [
        ("zeros", vec![0; 1 << 16], &FULL[..]),
        ("members", one.clone(), &FULL),
        // A gzip stream of members, each of them whole.
        ("gzip", gzip(&one), &FULL),
        ("text", b"y\n".repeat(1000), &FULL),
    ] {
        let began = Instant::now();
        let mut child = bounded(&desk, &["image", "load", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // Until it goes.
        let feeding = std::thread::spawn(move || while input.write_all(&piece).is_ok() {});
        let told = answer(child.wait_with_output().unwrap());
        feeding.join().unwrap();
        ended(&desk, what, began, &told, words);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Holes cost nothing, in the store, in its mount and unpacked; more than any file system holds is refused.
fn terabytes() {
    let desk = small_store();
    let sparse = |size: &str| {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,2,50000,3")];
        let layer = Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb").end();
        let _ = fs::remove_dir_all(desk.path("layout"));
        Picture { layers: vec![layer], architecture: crate::picture::host() }.layout(
            &desk.path("layout"),
            "localhost/s:1",
            Packing::Gzip,
        );
    };
    sparse("1099511627776");
    let loaded = answer(bounded(&desk, &["image", "load", "layout"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    let file = desk.mounted("localhost/s:1").join("s");
    assert_eq!(file.metadata().unwrap().len(), 1 << 40);
    desk.ok(&["image", "unmount", "--all"]);
    desk.assert_whole();
    desk.ok(&["image", "unpack", "localhost/s:1", "tree"]);
    let unpacked = fs::File::open(desk.path("tree/s")).unwrap();
    use std::os::unix::fs::{FileExt, MetadataExt};
    assert_eq!((unpacked.metadata().unwrap().len(), unpacked.metadata().unwrap().blocks() < 2048), (1 << 40, true));
    let mut bytes = [0; 3];
    unpacked.read_exact_at(&mut bytes, 50_000).unwrap();
    assert_eq!(&bytes, b"bbb");
    desk.ok(&["image", "rm", "localhost/s:1"]);
    sparse("9223372036854775807");
    let began = Instant::now();
    let told = answer(bounded(&desk, &["image", "load", "layout"]).output().unwrap());
    ended(&desk, "an exabyte", began, &told, &["sparse size"]);
}

/// In a docker-archive: of the layer that is said to be there, a part is.
fn claims() {
    let desk = small_store();
    let picture = Picture::new(5, 1);
    let config = picture.config();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["localhost/c:1"], "Layers": ["layer.tar"]}]).to_string();
    for size in [picture.layers[0].len() as u64 + 512, 1 << 32] {
        let archive = Layer::new()
            .file("manifest.json", &manifest)
            .head(Head::new(b'0', b"config.json", b"", config.len() as u64))
            .data(&config)
            .head(Head::new(b'0', b"layer.tar", b"", size))
            .raw(&picture.layers[0]);
        fs::write(desk.path("lie.tar"), archive.bytes).unwrap();
        let began = Instant::now();
        let told = answer(bounded(&desk, &["image", "load", "lie.tar"]).output().unwrap());
        ended(&desk, &format!("{size}"), began, &told, &["ends in the middle"]);
    }
}
