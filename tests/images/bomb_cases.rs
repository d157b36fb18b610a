//! Bombs, sizes that lie, streams without end: a clear error, within the memory, the time and the disk that there are.
//!
//! Each runs on a store of 24 MiB, with an address space that holds gpurun and not what the attacker means to fill it with.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Test;
use crate::fixture::{Answer, Fixture, answer, sh};
use crate::layer::{Head, Layer};
use crate::rogue::{Reply, Rogue};
use crate::test_image::{Packing, TestImage, digest};

pub const TESTS: &[Test] = &[
    ("a_layer_that_unpacks_to_more_than_the_disk", &[], layers),
    ("a_zstd_window_of_two_gigabytes", &[], window),
    ("large_zstd_windows_share_the_memory", &[], windows),
    ("standard_input_without_end", &[], endless),
    ("files_that_claim_terabytes", &[], terabytes),
    ("members_that_claim_more_than_there_is", &[], claims),
    ("a_config_that_is_listed_three_thousand_times", &[], one_config),
    ("thousands_of_images", &[], many_images),
    ("a_layer_that_is_listed_six_hundred_times", &[], one_layer),
    ("an_index_with_a_fan_out", &[], fan_out),
    ("a_registry_whose_index_never_ends", &[], fan_out_of_a_registry),
    ("opaque_whiteouts_by_the_thousand", &[], whiteouts),
    ("links_and_xattrs_that_unpack_to_gigabytes", &[], headers),
    ("a_layer_that_breaks_after_every_few_bytes", &[], crumbs),
];

/// What gpurun may use in these tests: mapped, not only touched.
const ADDRESS_SPACE: usize = 640 << 20;
const LONG: Duration = Duration::from_secs(60);

fn small_store() -> Fixture {
    let fixture = Fixture::new();
    let root = fixture.path("root");
    fs::create_dir_all(&root).unwrap();
    sh(&format!("mount -t tmpfs -o size=24m,mode=755 tmpfs {}", root.display()));
    TestImage::new(1, 1).layout(&fixture.path("other"), "localhost/other:1", Packing::None);
    fixture.ok(&["image", "load", "other"]);
    fixture
}

fn bounded(fixture: &Fixture, args: &[&str]) -> Command {
    bounded_to(ADDRESS_SPACE, fixture, args)
}

fn bounded_to(address_space: usize, fixture: &Fixture, args: &[&str]) -> Command {
    let plain = fixture.command(args);
    let mut command = Command::new("sh");
    let limits = format!("ulimit -v {}; exec timeout -s KILL {} \"$0\" \"$@\"", address_space >> 10, LONG.as_secs());
    command.args(["-c", &limits]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(&fixture.dir).stdin(Stdio::null());
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
fn ended(fixture: &Fixture, what: &str, began: Instant, answer: &Answer, snippets: &[&str]) {
    assert_eq!(answer.code, 1, "{what}: {}", answer.err);
    assert!(snippets.iter().any(|snippet| answer.err.contains(snippet)), "{what}: {}", answer.err);
    assert!(began.elapsed() < LONG, "{what}: {:?}", began.elapsed());
    fixture.assert_whole_after(what);
    assert_eq!(fixture.names(), ["localhost/other:1"], "{what}");
}

const FULL: [&str; 2] = ["fill the disk", "No space left"];

/// A layer of zeros, as large as that, packed again and again.
fn zeros(size: usize) -> Layer {
    Layer::new().head(Head::new(b'0', b"zeros", b"", size as u64)).data(&vec![0; size])
}

fn layers() {
    let fixture = small_store();
    let test_image = TestImage { layers: vec![zeros(72 << 20).end()], architecture: crate::test_image::host() };
    for packing in [Packing::Gzip, Packing::Zstd] {
        test_image.layout(&fixture.path("bomb"), "localhost/bomb:1", packing);
        assert!(
            sh(&format!("du -sk {}", fixture.path("bomb").display()))
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<u32>()
                .unwrap()
                < 4096
        );
        let began = Instant::now();
        let reported = answer(bounded(&fixture, &["image", "load", "bomb"]).output().unwrap());
        ended(&fixture, &format!("{packing:?}"), began, &reported, &FULL);
        // As an archive that is itself packed.
        sh(&format!("cd {} && tar -C bomb -cf - . | gzip -1 > bomb.tar.gz && rm -rf bomb", fixture.dir.display()));
        let began = Instant::now();
        let reported = answer(bounded(&fixture, &["image", "load", "bomb.tar.gz"]).output().unwrap());
        ended(&fixture, &format!("{packing:?} in an archive"), began, &reported, &FULL);
    }
}

/// zstd may ask for gigabytes before the first byte comes.
fn window() {
    let fixture = small_store();
    let tar = Layer::new().file("f", "1").end();
    // The frame's header alone: magic, a window of 2 GiB, a raw last block of the tar.
    let mut packed = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, (31 - 10) << 3];
    let block = ((tar.len() as u32) << 3) | 1;
    packed.extend_from_slice(&block.to_le_bytes()[..3]);
    packed.extend_from_slice(&tar);
    let test_image = TestImage { layers: vec![tar], architecture: crate::test_image::host() };
    let (mut blobs, _, layers) = test_image.blobs(Packing::None);
    blobs.remove(&layers[0]);
    let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
    let layer = json!({"mediaType": kind, "digest": digest(&packed), "size": packed.len()});
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": test_image.id(), "size": test_image.config().len()});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string().into_bytes();
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len()});
    fs::create_dir_all(fixture.path("bomb/blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| fs::write(fixture.path("bomb/blobs/sha256").join(&digest(bytes)[7..]), bytes).unwrap();
    [&packed, &test_image.config(), &manifest].into_iter().for_each(|bytes| put(bytes));
    fs::write(fixture.path("bomb/index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(fixture.path("bomb/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "load", "bomb"]).output().unwrap());
    ended(&fixture, "a window", began, &reported, &["memory"]);
}

/// Four layers come at a time, but not four windows of 8 MiB.
fn windows() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let layer = |at: u8| Layer::new().head(Head::new(b'0', b"data", b"", 32 << 20)).data(&vec![at; 32 << 20]).end();
    let test_image = TestImage { layers: (0..8).map(layer).collect(), architecture: crate::test_image::host() };
    rogue.with("wide:1", &test_image, Packing::ZstdWide);
    let (pulled, peak) = fixture.peak(&["image", "pull", "-q", &rogue.name("wide:1")]);
    assert_eq!((pulled.code, pulled.out.trim()), (0, &*test_image.id()), "{}", pulled.err);
    // Four windows more would be 32 MiB more. The pages of a debug build's own program count, too.
    assert!(peak < 90 << 20, "{} MiB", peak >> 20);
    fixture.assert_whole();
}

fn endless() {
    let fixture = small_store();
    let one = Layer::new().file("blobs/sha256/x", &"y".repeat(9000)).bytes;
    for (what, piece, snippets) in [
        ("zeros", vec![0; 1 << 16], &FULL[..]),
        ("members", one.clone(), &FULL),
        // A gzip stream of members, each of them whole.
        ("gzip", gzip(&one), &FULL),
        ("text", b"y\n".repeat(1000), &FULL),
    ] {
        let began = Instant::now();
        let mut child = bounded(&fixture, &["image", "load", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // Until it goes.
        let feeding = std::thread::spawn(move || while input.write_all(&piece).is_ok() {});
        let reported = answer(child.wait_with_output().unwrap());
        feeding.join().unwrap();
        ended(&fixture, what, began, &reported, snippets);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Holes cost nothing, in the store, in its mount and unpacked; more than any file system holds is refused.
fn terabytes() {
    let fixture = small_store();
    let sparse = |size: &str| {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,2,50000,3")];
        let layer = Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb").end();
        let _ = fs::remove_dir_all(fixture.path("layout"));
        TestImage { layers: vec![layer], architecture: crate::test_image::host() }.layout(
            &fixture.path("layout"),
            "localhost/s:1",
            Packing::Gzip,
        );
    };
    sparse("1099511627776");
    let loaded = answer(bounded(&fixture, &["image", "load", "layout"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    let file = fixture.mounted("localhost/s:1").join("s");
    assert_eq!(file.metadata().unwrap().len(), 1 << 40);
    fixture.ok(&["image", "unmount", "--all"]);
    fixture.assert_whole();
    fixture.ok(&["image", "unpack", "localhost/s:1", "tree"]);
    let unpacked = fs::File::open(fixture.path("tree/s")).unwrap();
    use std::os::unix::fs::{FileExt, MetadataExt};
    assert_eq!((unpacked.metadata().unwrap().len(), unpacked.metadata().unwrap().blocks() < 2048), (1 << 40, true));
    let mut bytes = [0; 3];
    unpacked.read_exact_at(&mut bytes, 50_000).unwrap();
    assert_eq!(&bytes, b"bbb");
    fixture.ok(&["image", "rm", "localhost/s:1"]);
    sparse("9223372036854775807");
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "load", "layout"]).output().unwrap());
    ended(&fixture, "an exabyte", began, &reported, &["sparse size"]);
}

/// In a docker-archive: of the layer that is said to be there, a part is.
fn claims() {
    let fixture = small_store();
    let test_image = TestImage::new(5, 1);
    let config = test_image.config();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["localhost/c:1"], "Layers": ["layer.tar"]}]).to_string();
    for size in [test_image.layers[0].len() as u64 + 512, 1 << 32] {
        let archive = Layer::new()
            .file("manifest.json", &manifest)
            .head(Head::new(b'0', b"config.json", b"", config.len() as u64))
            .data(&config)
            .head(Head::new(b'0', b"layer.tar", b"", size))
            .raw(&test_image.layers[0]);
        fs::write(fixture.path("lie.tar"), archive.bytes).unwrap();
        let began = Instant::now();
        let reported = answer(bounded(&fixture, &["image", "load", "lie.tar"]).output().unwrap());
        ended(&fixture, &format!("{size}"), began, &reported, &["ends in the middle"]);
    }
}

/// A docker-archive of these members, packed.
fn packed_archive(fixture: &Fixture, name: &str, members: &[(&str, Vec<u8>)]) {
    let mut archive = Layer::new();
    for (name, bytes) in members {
        archive = archive.head(Head::new(b'0', name.as_bytes(), b"", bytes.len() as u64)).data(bytes);
    }
    fs::write(fixture.path(name), gzip(&archive.end())).unwrap();
}

/// A config of a megabyte, each time it is listed under another name: it is read and kept once.
fn one_config() {
    let fixture = Fixture::new();
    let diff_ids: [&str; 0] = [];
    let config = json!({"architecture": crate::test_image::host(), "os": "linux", "config": {"Labels": {"pad": "x".repeat(1 << 20)}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let item = |at: u32| json!({"Config": "config.json", "RepoTags": [format!("localhost/c{at}:1")], "Layers": []});
    let manifest = serde_json::Value::Array((0..3000).map(item).collect());
    let members =
        [("manifest.json", manifest.to_string().into_bytes()), ("config.json", config.to_string().into_bytes())];
    packed_archive(&fixture, "bomb.tar.gz", &members);
    let loaded = answer(bounded(&fixture, &["image", "load", "bomb.tar.gz"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    assert_eq!((fixture.names().len(), fixture.json(&["image", "ls", "--json"]).as_array().unwrap().len()), (3000, 1));
    fixture.assert_whole();
}

/// What is no repetition is counted: images, and the bytes of their configs.
fn many_images() {
    let fixture = small_store();
    for (count, pad, snippet) in
        [(1200, 1, "more than 1000 images"), (40, 1 << 20, "bytes of the manifests and configs")]
    {
        let pad = "x".repeat(pad);
        let config = |at: u32| format!(r#"{{"author":"{pad}{at}","rootfs":{{"diff_ids":[]}}}}"#).into_bytes();
        let names: Vec<String> = (0..count).map(|at| format!("{at}.config")).collect();
        let list: Vec<_> = names.iter().map(|name| json!({"Config": name, "Layers": []})).collect();
        let mut members = vec![("manifest.json", json!(list).to_string().into_bytes())];
        members.extend(names.iter().zip(0..).map(|(name, at)| (name.as_str(), config(at))));
        packed_archive(&fixture, "bomb.tar.gz", &members);
        // On another disk: the archive itself is unpacked to the store's.
        let began = Instant::now();
        sh(&format!("cd {} && gunzip -f bomb.tar.gz", fixture.dir.display()));
        let reported = answer(bounded(&fixture, &["image", "load", "bomb.tar"]).output().unwrap());
        ended(&fixture, snippet, began, &reported, &[snippet]);
    }
    let layers = vec![digest(b""); 1001];
    let config = json!({"rootfs": {"type": "layers", "diff_ids": layers}}).to_string().into_bytes();
    let manifest = json!([{"Config": "c", "Layers": vec!["l"; 1001]}]).to_string().into_bytes();
    packed_archive(&fixture, "bomb.tar.gz", &[("manifest.json", manifest), ("c", config), ("l", Vec::new())]);
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "load", "bomb.tar.gz"]).output().unwrap());
    ended(&fixture, "layers", began, &reported, &["1001 layers"]);
}

/// Its 40 000 members are read, kept and merged as if it were listed once.
fn one_layer() {
    let fixture = Fixture::new();
    let mut layer = Layer::new();
    for at in 0..40_000 {
        layer = layer.head(Head::new(b'0', format!("some/directory/{}/file-{at}", at % 100).as_bytes(), b"", 0));
    }
    let layer = layer.end();
    let config = json!({"architecture": crate::test_image::host(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": vec![digest(&layer); 100]}});
    let manifest = json!([{"Config": "c", "RepoTags": ["localhost/many:1"], "Layers": vec!["l"; 100]}]);
    let members =
        [("manifest.json", manifest.to_string().into_bytes()), ("c", config.to_string().into_bytes()), ("l", layer)];
    packed_archive(&fixture, "bomb.tar.gz", &members);
    let loaded = answer(bounded(&fixture, &["image", "load", "bomb.tar.gz"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    // Again, from the stored layer: the index is rendered again.
    sh(&format!("rm {}/root/images/*.erofs", fixture.dir.display()));
    let loaded = answer(bounded(&fixture, &["image", "load", "bomb.tar.gz"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    assert_eq!(sh(&format!("find {} -type f | wc -l", fixture.mounted("localhost/many:1").display())).trim(), "40000");
    let unpacked = answer(bounded(&fixture, &["image", "unpack", "localhost/many:1", "tree"]).output().unwrap());
    assert_eq!(unpacked.code, 0, "{}", unpacked.err);
}

/// Three indexes of two thousand entries, each of which is the next index: eight thousand million ways to a manifest that does not fit.
fn nested() -> (crate::test_image::Blobs, String, usize) {
    let mut blobs = crate::test_image::Blobs::new();
    let mut put = |text: String| {
        let (name, len) = (digest(text.as_bytes()), text.len());
        blobs.insert(name.clone(), text.into_bytes());
        (name, len)
    };
    let config = put(r#"{"architecture":"s390x","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.into());
    let of = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": kind, "digest": digest, "size": size});
    let config = of("application/vnd.oci.image.config.v1+json", &config);
    let mut last = put(json!({"schemaVersion": 2, "config": config, "layers": []}).to_string());
    let mut kind = "application/vnd.oci.image.manifest.v1+json";
    for _ in 0..3 {
        last = put(json!({"schemaVersion": 2, "manifests": vec![of(kind, &last); 2000]}).to_string());
        kind = "application/vnd.oci.image.index.v1+json";
    }
    (blobs, last.0, last.1)
}

fn fan_out() {
    let fixture = small_store();
    let (blobs, top, size) = nested();
    fs::create_dir_all(fixture.path("bomb/blobs/sha256")).unwrap();
    for (name, bytes) in &blobs {
        fs::write(fixture.path("bomb/blobs/sha256").join(&name[7..]), bytes).unwrap();
    }
    let entry = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": top, "size": size});
    fs::write(fixture.path("bomb/index.json"), json!({"schemaVersion": 2, "manifests": vec![entry; 2000]}).to_string())
        .unwrap();
    fs::write(fixture.path("bomb/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "load", "bomb"]).output().unwrap());
    ended(&fixture, "a fan-out", began, &reported, &["it has: linux/s390x"]);
}

/// Every document is asked for once; of different ones, a bounded number.
fn fan_out_of_a_registry() {
    let fixture = small_store();
    let (blobs, top, _) = nested();
    let rogue = Rogue::new(|_| Reply::Right);
    let count = blobs.len();
    rogue.put(blobs);
    rogue.tag("t:1", &top);
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "pull", &rogue.name("t:1")]).output().unwrap());
    ended(&fixture, "a fan-out", began, &reported, &["it has: linux/s390x"]);
    assert_eq!(rogue.seen("sha256:").len() + rogue.seen("/manifests/1").len(), count, "each once");
    // 300 manifests for another machine, none of which says so in the index.
    let mut blobs = crate::test_image::Blobs::new();
    let mut put = |kind: &str, text: String| {
        let descriptor = json!({"mediaType": kind, "digest": digest(text.as_bytes()), "size": text.len()});
        blobs.insert(digest(text.as_bytes()), text.into_bytes());
        descriptor
    };
    let mut entries = Vec::new();
    for at in 0..300 {
        let config =
            json!({"architecture": "s390x", "os": "linux", "author": at, "rootfs": {"type": "layers", "diff_ids": []}});
        let config = json!(config.to_string().replace(&format!("\"author\":{at}"), &format!("\"author\":\"{at}\"")));
        let config = put("application/vnd.oci.image.config.v1+json", config.as_str().unwrap().to_owned());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        entries.push(put("application/vnd.oci.image.manifest.v1+json", manifest));
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let rogue = Rogue::new(|_| Reply::Right);
    rogue.tag("t:1", &digest(index.as_bytes()));
    blobs.insert(digest(index.as_bytes()), index.into_bytes());
    rogue.put(blobs);
    let began = Instant::now();
    let reported = answer(bounded(&fixture, &["image", "pull", &rogue.name("t:1")]).output().unwrap());
    ended(&fixture, "many manifests", began, &reported, &["more than 200 manifests, indexes and configs"]);
    assert!(rogue.seen("").len() < 210, "{} requests", rogue.seen("").len());
}

/// 25 000 of them, in a directory of as many files.
fn whiteouts() {
    let fixture = Fixture::new();
    let (mut below, mut layer) = (Layer::new(), Layer::new());
    for at in 0..25_000 {
        below = below.head(Head::new(b'0', format!("d/below-{at}").as_bytes(), b"", 0));
        layer = layer.head(Head::new(b'0', format!("d/file-{at}").as_bytes(), b"", 0));
        layer = layer.head(Head::new(b'0', b"d/.wh..wh..opq", b"", 0));
    }
    let test_image = TestImage { layers: vec![below.end(), layer.end()], architecture: crate::test_image::host() };
    test_image.layout(&fixture.path("bomb"), "localhost/w:1", Packing::Gzip);
    let loaded = answer(bounded(&fixture, &["image", "load", "bomb"]).output().unwrap());
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    assert_eq!(sh(&format!("ls {}/d | wc -l", fixture.mounted("localhost/w:1").display())).trim(), "25000");
}

/// What a header holds besides its name needs memory too: targets of links of a megabyte each, xattrs.
fn headers() {
    let fixture = Fixture::new();
    let target = vec![b'x'; 1 << 20];
    let mut links = Layer::new();
    for at in 0..1200 {
        links = links.head(Head::new(b'K', b"././@LongLink", b"", target.len() as u64)).data(&target);
        links = links.link(&format!("l{at}"), "x");
    }
    let test_image = TestImage { layers: vec![links.end()], architecture: crate::test_image::host() };
    test_image.layout(&fixture.path("bomb"), "localhost/bomb:1", Packing::Zstd);
    // The entries of a layer may take 512 MiB: a program without this bound would take the whole gigabyte, and more.
    let reported =
        answer(bounded_to(ADDRESS_SPACE + (512 << 20), &fixture, &["image", "load", "bomb"]).output().unwrap());
    assert_eq!(reported.code, 1, "{}", reported.err);
    assert!(reported.err.contains("its headers need more than 512 MiB of memory"), "{}", reported.err);
}

/// A registry that sends a few bytes of a layer for each request: they are counted.
fn crumbs() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.path.contains("/blobs/") {
        true => Reply::Cut(1000),
        false => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(9, 1), Packing::None);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("requests"), "{error}");
    assert!(rogue.seen("/blobs/").len() < 200, "{} requests", rogue.seen("/blobs/").len());
}
