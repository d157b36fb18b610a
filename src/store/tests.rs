//! Loads of sources made here: what they become, what is refused, what a crash or a second process leaves.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;

use flate2::Compression as Level;
use flate2::write::GzEncoder;

use super::*;
use crate::image::digest_of;
use crate::layer::testing::Layer;

/// A source: files by name, to be written as a directory or packed into a tar.
#[derive(Default, Clone)]
pub(super) struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn blob(&mut self, bytes: Vec<u8>) -> (Digest, usize) {
        let (digest, len) = (digest_of(&bytes), bytes.len());
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        (digest, len)
    }

    pub(super) fn directory(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in &self.0 {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, bytes).expect("written");
        }
        dir
    }

    pub(super) fn tar(&self) -> Vec<u8> {
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
pub(super) enum Packing {
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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

fn config(diff_ids: &[Digest]) -> String {
    let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["A=b"],"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":{ids:?}}}}}"#,
        crate::image::Platform::host().architecture
    )
}

/// An image of an OCI layout under construction.
pub(super) struct Oci {
    files: Files,
    manifests: Vec<String>,
}

impl Oci {
    pub(super) fn new() -> Self {
        Self { files: Files::default(), manifests: Vec::new() }
    }

    fn layers(&mut self, layers: &[(Vec<u8>, Packing)]) -> (Vec<Digest>, Vec<String>) {
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

    /// Adds a manifest; `extra` is more text in the index's descriptor (annotations, platform).
    fn manifest(&mut self, config: &str, layers: &[String], extra: &str) -> String {
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

    pub(super) fn image(mut self, name: &str, layers: &[(Vec<u8>, Packing)]) -> Self {
        let (diff_ids, descriptors) = self.layers(layers);
        let extra = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
        let descriptor = self.manifest(&config(&diff_ids), &descriptors, &extra);
        self.manifests.push(descriptor);
        self
    }

    pub(super) fn files(mut self) -> Files {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.manifests.join(","));
        self.files.0.insert("index.json".into(), index.into_bytes());
        self.files.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self.files
    }
}

pub(super) fn docker(tags: &[&str], layers: &[Vec<u8>]) -> Files {
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

pub(super) fn base() -> Vec<u8> {
    Layer::new().dir("etc").file("etc/hosts", "127.0.0.1").file("bin", "#!").end()
}

pub(super) fn top() -> Vec<u8> {
    Layer::new().file("etc/.wh.hosts", "").file("etc/new", "x").end()
}

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("root")).expect("a store");
    (dir, store)
}

pub(super) fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, LoadError> {
    store.load(&Source::path(path), &LoadOptions::default(), &())
}

fn load_tar(store: &Store, bytes: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    load(store, file.path())
}

/// The message and all causes.
pub(super) fn told(error: impl Into<crate::report::Report>) -> String {
    error.into().to_string()
}

pub(super) fn ls(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// No layer, no image, no workplace: what every refused load must leave.
#[track_caller]
fn assert_untouched(store: &Store) {
    for dir in ["layers", "images", "tmp", "dirs"] {
        assert_eq!(ls(&store.root().join(dir)), Vec::<String>::new(), "{dir}");
    }
}

fn names_in(tree: &Tree) -> usize {
    tree.inodes.len() - 1
}

#[test]
fn every_transport_and_packing_gives_the_same_image() {
    let all = |packing| Oci::new().image("localhost/t:1", &[(base(), packing), (top(), Packing::Gzip)]).files();
    let mut ids = Vec::new();
    for files in [all(Packing::None), all(Packing::Gzip), all(Packing::Zstd)] {
        let (_dir, store) = store();
        load(&store, files.directory().path()).expect("a directory loads");
        let (_dir, from_tar) = self::store();
        load_tar(&from_tar, &files.tar()).expect("a tar loads");
        let (_dir, from_gzip) = self::store();
        load_tar(&from_gzip, &gzip(&files.tar())).expect("a packed tar loads");
        for store in [store, from_tar, from_gzip] {
            let image = store.resolve("localhost/t:1").expect("the image");
            assert_eq!(image.config.env, ["A=b"]);
            assert_eq!(image.size, (base().len() + top().len()) as u64);
            assert_eq!(fs::read(store.layer_path(&image.diff_ids[0])).expect("the tar"), base(), "verbatim");
            assert_eq!(names_in(&store.tree(&image).expect("a tree")), 3);
            assert_eq!(store.index_devices(&image).expect("opened").len(), 2);
            assert!(store.index_path(&image.chain_id).exists());
            assert_eq!(ls(&store.root().join("tmp")), Vec::<String>::new());
            ids.push(image.chain_id);
        }
    }
    let (_dir, store) = store();
    let loaded = load_tar(&store, &docker(&["t:1", "other/t:2"], &[base(), top()]).tar()).expect("loads");
    assert_eq!(loaded[0].names.len(), 2);
    ids.push(store.resolve("t:1").expect("the image").chain_id);
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

#[test]
fn names_ids_and_prefixes_resolve() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a:1"], &[base()]).tar()).expect("loads");
    load_tar(&store, &Oci::new().image("localhost/b:latest", &[(top(), Packing::None)]).files().tar()).expect("loads");
    let a = store.resolve("a:1").expect("by name").id;
    for name in
        ["docker.io/library/a:1", &a.to_string(), &a.hex(), &a.hex()[..12], &format!("sha256:{}", &a.hex()[..9])]
    {
        assert_eq!(store.resolve(name).expect(name).id, a);
    }
    assert_eq!(store.resolve("b").expect("a local build by its short name").label(), "localhost/b:latest");
    for name in ["a", "c", "ffffffffffff", "localhost/a:1"] {
        let error = told(store.resolve(name).expect_err(name));
        assert!(error.contains(&format!("no image `{name}`")) && error.contains("`a:1`"), "{error}");
    }
    assert!(matches!(store.resolve("").expect_err("nothing"), ResolveError::BadName(_)));
    assert!(matches!(store.resolve("../x").expect_err("a path"), ResolveError::BadName(_)));
    assert_eq!(store.list().expect("listed").len(), 2);
    // The name moves to the next image that claims it; the old one stays, without a name.
    load_tar(&store, &docker(&["a:1"], &[base(), top()]).tar()).expect("loads");
    assert_ne!(store.resolve("a:1").expect("by name").id, a);
    assert_eq!(store.resolve(&a.hex()).expect("by id").names, []);
}

#[test]
fn layers_are_shared_and_go_with_their_last_image() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    let loaded = load_tar(&store, &docker(&["b", "c"], &[base(), top()]).tar()).expect("loads");
    assert_eq!((loaded[0].shared_layers, loaded[0].layers), (1, 2));
    assert_eq!(ls(&store.root().join("layers")).len(), 2);
    let b = store.resolve("b").expect("b");
    let error = store.remove(&b.id.to_string(), false, &|_| None).expect_err("two names");
    assert!(matches!(error, RemoveError::SeveralNames { .. }));
    assert_eq!(store.remove("c", false, &|_| Some(User::Container("x".into()))).expect("a name only").deleted, None);
    let error = told(
        store.remove("b", true, &|id| (*id == b.id).then(|| User::Container("train".into()))).expect_err("in use"),
    );
    assert!(error.contains("container `train`") && error.contains("gpurun rm -f train"), "{error}");
    assert!(store.resolve("b").is_ok());
    let removed = store.remove("b", false, &|_| None).expect("removed");
    assert_eq!((removed.deleted, removed.untagged.len()), (Some(b.id), 1));
    assert!(removed.freed >= top().len() as u64);
    assert_eq!(ls(&store.root().join("layers")), [format!("{}.tar", digest_of(&base()).hex())]);
    store.remove("a", false, &|_| None).expect("removed");
    assert_untouched(&store);
    assert!(matches!(store.remove("a", false, &|_| None), Err(RemoveError::Resolve(ResolveError::NotFound { .. }))));
}

#[test]
fn several_images_and_odd_ones() {
    let (_dir, store) = store();
    let mut two = Oci::new()
        .image("localhost/x:1", &[(base(), Packing::Gzip)])
        .image("localhost/y:1", &[(base(), Packing::Gzip), (top(), Packing::Gzip)]);
    // Listed again under another name; a bare tag is no name.
    two = two.image("localhost/z:1", &[(base(), Packing::Gzip)]).image("latest", &[]);
    let loaded = load(&store, two.files().directory().path()).expect("loads");
    assert_eq!(loaded.len(), 3);
    assert_eq!(store.resolve("x:1").expect("x").id, store.resolve("z:1").expect("z").id);
    assert_eq!(loaded[2].names, []);
    let empty = store.resolve(&loaded[2].id.hex()).expect("an image without layers");
    assert_eq!((names_in(&store.tree(&empty).expect("a tree")), empty.diff_ids.len()), (0, 0));
    // 127 layers, most of them the same.
    let layers: Vec<_> = (0..127).map(|at| Layer::new().file(&format!("f{}", at % 5), "x").end()).collect();
    load_tar(&store, &docker(&["many"], &layers).tar()).expect("loads");
    let many = store.resolve("many").expect("many");
    assert_eq!(
        (
            many.diff_ids.len(),
            store.index_devices(&many).expect("opened").len(),
            names_in(&store.tree(&many).expect("a tree"))
        ),
        (127, 5, 5)
    );
    // One name cannot be given to all images of a source.
    let options = LoadOptions { names: vec!["n".parse().expect("a name")], ..LoadOptions::default() };
    let error = store.load(
        &Source::path(Oci::new().image("a:1", &[]).image("b:1", &[(base(), Packing::None)]).files().directory().path()),
        &options,
        &(),
    );
    assert!(matches!(error, Err(LoadError::OneName { images: 2, .. })));
}

#[test]
fn what_is_there_is_not_read_again() {
    let (_dir, store) = store();
    // Two images of the same layers in one source.
    let layers = [(base(), Packing::None), (top(), Packing::Gzip)];
    let mut source = Oci::new().image("a:1", &layers);
    let (diff_ids, descriptors) = source.layers(&layers);
    let other = config(&diff_ids).replacen('{', r#"{"author":"somebody","#, 1);
    let extra = r#","annotations":{"org.opencontainers.image.ref.name":"b:1"}"#;
    let descriptor = source.manifest(&other, &descriptors, extra);
    source.manifests.push(descriptor);
    let directory = source.files().directory();
    assert_eq!(load(&store, directory.path()).expect("loads").len(), 2);
    let ids = |store: &Store| ["a:1", "b:1"].map(|name| store.resolve(name).expect(name).id);
    let before = ids(&store);
    assert_ne!(before[0], before[1]);
    // Whoever read this layer would stumble: its first header's checksum is wrong now.
    let path = store.layer_path(&diff_ids[0]);
    let mut tar = fs::read(&path).expect("the layer");
    tar[0] ^= 1;
    fs::write(&path, tar).expect("written");
    let again = load(&store, directory.path()).expect("loads again");
    assert!(again.iter().all(|image| image.shared_layers == image.layers));
    assert_eq!(ids(&store), before);
}

#[test]
fn the_platform_is_chosen() {
    let (_dir, store) = store();
    let mut oci = Oci::new();
    let (diff_ids, descriptors) = oci.layers(&[(base(), Packing::Gzip)]);
    let host = crate::image::Platform::host().architecture;
    let mut entries = Vec::new();
    for (os, architecture) in [("windows", host.as_str()), ("linux", "s390x"), ("unknown", "unknown"), ("linux", &host)]
    {
        let config = config(&diff_ids).replace(&host, architecture);
        let extra = format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
        entries.push(oci.manifest(&config, &descriptors, &extra));
    }
    let nest = |oci: &mut Oci, entries: &[String]| {
        let (digest, size) = oci.files.blob(format!(r#"{{"manifests":[{}]}}"#, entries.join(",")).into_bytes());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":{size},"annotations":{{"io.containerd.image.name":"docker.io/library/m:1"}}}}"#
        )
    };
    // An index in an index.
    let inner = nest(&mut oci, &entries);
    let outer = nest(&mut oci, &[inner]);
    oci.manifests = vec![outer];
    load(&store, oci.files().directory().path()).expect("loads");
    assert_eq!(store.resolve("m:1").expect("m").architecture, host);
    // None for this machine.
    let mut foreign = Oci::new();
    let extra = r#","platform":{"os":"linux","architecture":"s390x"}"#;
    let descriptor = foreign.manifest(&config(&[]), &[], extra);
    foreign.manifests = vec![descriptor];
    let error = told(load(&store, foreign.files().directory().path()).expect_err("foreign"));
    assert!(error.contains("there is: linux/s390x"), "{error}");
    // Endless nesting.
    let mut deep = Oci::new();
    let mut entry = deep.manifest(&config(&[]), &[], "");
    for _ in 0..6 {
        entry = nest(&mut deep, &[entry]);
    }
    deep.manifests = vec![entry];
    assert!(told(load(&store, deep.files().directory().path()).expect_err("deep")).contains("nested"));
}

#[test]
fn what_lies_about_its_digest_or_size_is_refused() {
    let good = || Oci::new().image("localhost/t:1", &[(base(), Packing::Gzip), (top(), Packing::Gzip)]).files();
    let blobs: Vec<String> = good().0.keys().filter(|name| name.starts_with("blobs/")).cloned().collect();
    assert_eq!(blobs.len(), 4);
    for name in &blobs {
        for change in 0..4 {
            let mut files = good();
            let bytes = files.0.get_mut(name).expect("the blob");
            match change {
                0 => *bytes.last_mut().expect("not empty") ^= 1,
                1 => bytes.truncate(bytes.len() - 1),
                2 => bytes.push(0),
                _ => bytes.clear(),
            }
            let (_dir, store) = store();
            load(&store, files.directory().path()).expect_err(name);
            assert_untouched(&store);
        }
    }
    // The blob is what its digest says, but not the layer that the config means.
    let mut oci = Oci::new();
    let (_, descriptors) = oci.layers(&[(base(), Packing::Gzip)]);
    let descriptor = oci.manifest(&config(&[digest_of(&top())]), &descriptors, "");
    oci.manifests = vec![descriptor];
    let (_dir, store) = store();
    let error = told(load(&store, oci.files().directory().path()).expect_err("a wrong diff id"));
    assert!(error.contains("diff id"), "{error}");
    // More and fewer diff ids than layers; a config name that lies.
    for diff_ids in [vec![], vec![digest_of(&base()), digest_of(&top())]] {
        let mut oci = Oci::new();
        let (_, descriptors) = oci.layers(&[(base(), Packing::Gzip)]);
        let descriptor = oci.manifest(&config(&diff_ids), &descriptors, "");
        oci.manifests = vec![descriptor];
        let error = told(load(&store, oci.files().directory().path()).expect_err("a wrong count"));
        assert!(error.contains("diff ids, but the manifest 1 layers"), "{error}");
    }
    let mut files = docker(&["t"], &[base()]);
    let name =
        files.0.keys().find(|name| name.ends_with(".json") && *name != "manifest.json").expect("the config").clone();
    files.0.get_mut(&name).expect("the config").push(b'\n');
    assert!(told(load_tar(&store, &files.tar()).expect_err("a lying name")).contains("has the digest"));
    assert_untouched(&store);
}

#[test]
fn broken_and_odd_streams() {
    let tar = base();
    let members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let padded = [gzip(&tar), vec![0; 700]].concat();
    let truncated = gzip(&tar)[..60].to_vec();
    let garbage = [gzip(&tar), b"garbage".to_vec()].concat();
    let zstd = zstd::encode_all(&tar[..], 1).expect("packed");
    let frames =
        [zstd::encode_all(&tar[..700], 1).expect("packed"), zstd::encode_all(&tar[700..], 1).expect("packed")].concat();
    for (packed, want) in [
        (members, None),
        (padded, None),
        (frames, None),
        (truncated, Some("unpacked")),
        (garbage, Some("unpacked")),
        (zstd[..zstd.len() - 3].to_vec(), Some("unpacked")),
        ([zstd, b"garbage".to_vec()].concat(), Some("unpacked")),
    ] {
        let mut oci = Oci::new();
        let (digest, size) = oci.files.blob(packed);
        let layer = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#
        );
        let descriptor = oci.manifest(&config(&[digest_of(&tar)]), &[layer], "");
        oci.manifests = vec![descriptor];
        let (_dir, store) = store();
        match (load(&store, oci.files().directory().path()), want) {
            (Ok(_), None) => {}
            (Err(error), Some(word)) => {
                let error = told(error);
                assert!(error.contains(word), "{error}");
                assert_untouched(&store);
            }
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
    // A right digest does not make a broken tar right; the refusal names the layer.
    for layer in [tar[..1000].to_vec(), Layer::new().file("../x", "1").end(), Layer::new().member(b'Z', "x", "").end()]
    {
        let (_dir, store) = store();
        load_tar(&store, &docker(&["t"], &[base(), layer]).tar()).expect_err("refused");
        assert_untouched(&store);
    }
}

#[test]
fn blobs_that_are_no_files_are_refused() {
    let files = Oci::new().image("localhost/t:1", &[(base(), Packing::Gzip)]).files();
    let blobs: Vec<String> = files.0.keys().cloned().collect();
    for name in &blobs {
        for kind in ["link", "fifo", "directory", "missing"] {
            let dir = files.directory();
            let path = dir.path().join(name);
            let moved = dir.path().join("moved");
            fs::rename(&path, &moved).expect("moved");
            match kind {
                "link" => symlink(&moved, &path).expect("linked"),
                "fifo" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made"),
                "directory" => fs::create_dir(&path).expect("made"),
                _ => {}
            }
            let (_dir, store) = store();
            load(&store, dir.path()).expect_err(&format!("{name} as {kind}"));
            assert_untouched(&store);
        }
    }
}

#[test]
fn documents_are_bounded() {
    let mut files = Oci::new().image("localhost/t:1", &[]).files();
    files.0.insert("index.json".into(), vec![b' '; crate::image::MAX_DOCUMENT as usize + 1]);
    let (_dir, store) = store();
    assert!(told(load(&store, files.directory().path()).expect_err("large")).contains("larger than"));
    assert!(told(load_tar(&store, &files.tar()).expect_err("large")).contains("larger than"));
    // Sources that are none.
    assert!(told(load_tar(&store, b"no tar at all").expect_err("text")).contains("tar"));
    assert!(
        told(load_tar(&store, &Layer::new().file("x", "y").end()).expect_err("a tar"))
            .contains("neither a docker archive nor")
    );
    assert!(told(load(&store, Path::new("/nonexistent/x.tar")).expect_err("nothing")).contains("gpurun image load"));
    assert_untouched(&store);
}

#[test]
fn docker_archives_with_linked_layers() {
    let (_dir, store) = store();
    let files = docker(&["t"], &[base()]);
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in &files.0 {
        let mut header = ::tar::Header::new_gnu();
        let name = if name == "0/layer.tar" { "1/layer.tar" } else { name };
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_slice()).expect("appended");
    }
    let link = |builder: &mut ::tar::Builder<Vec<u8>>, target: &str| {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "0/layer.tar", target).expect("appended");
    };
    let mut start = builder.into_inner().expect("a tar");
    start.truncate(start.len() - 1024);
    let mut inside = ::tar::Builder::new(start.clone());
    link(&mut inside, "../1/layer.tar");
    load_tar(&store, &inside.into_inner().expect("a tar")).expect("a link inside");
    let (_dir, store) = self::store();
    for target in ["/etc/passwd", "../../etc/passwd", "layer.tar"] {
        let mut outside = ::tar::Builder::new(start.clone());
        link(&mut outside, target);
        load_tar(&store, &outside.into_inner().expect("a tar")).expect_err(target);
    }
    assert_untouched(&store);
}

#[test]
fn what_a_dead_loader_left_is_swept() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    // As a SIGKILL leaves it: a workplace without a living lock, and a layer that was renamed before the image was.
    let dead = store.root().join("tmp/0123456789abcdef");
    fs::create_dir(&dead).expect("made");
    fs::write(dead.join("lock"), "").expect("written");
    fs::write(dead.join("archive"), "half").expect("written");
    fs::write(store.layer_path(&digest_of(b"orphan")), "half").expect("written");
    fs::write(store.root().join("tmp/stray"), "").expect("written");
    // A living one beside it.
    let living = Staging::new(&store).expect("a workplace");
    let store = Store::open(store.root()).expect("opened again");
    assert!(!dead.exists() && living.path().exists() && !store.root().join("tmp/stray").exists());
    assert_eq!(ls(&store.root().join("layers")).len(), 1);
    drop(living);
    assert!(ls(&store.root().join("tmp")).is_empty());
    assert!(store.tree(&store.resolve("a").expect("a")).is_ok());
}

#[test]
fn a_disk_that_cannot_tell_is_no_absence() {
    let (_root, store) = store();
    load_tar(&store, &docker(&["t"], &[base()]).tar()).expect("loaded");
    let image = store.resolve("t").expect("there");
    // An error that root gets too: a directory that leads to itself.
    let break_and = |name: &str, told: &mut dyn FnMut()| {
        let (dir, aside) = (store.root().join(name), store.root().join("aside"));
        fs::rename(&dir, &aside).expect("moved");
        std::os::unix::fs::symlink(&dir, &dir).expect("linked");
        told();
        fs::remove_file(&dir).expect("removed");
        fs::rename(&aside, &dir).expect("moved back");
    };
    break_and("layers", &mut || {
        store.has_layers(&image).expect_err("who knows");
        store.has_chain(&image.diff_ids).expect_err("who knows");
    });
    break_and("images", &mut || {
        store.contains("t").expect_err("who knows");
        let told = store.identify("t").expect_err("who knows").to_string();
        assert!(told.contains("cannot look up"), "{told}");
        let told = store.remove("t", true, &|_| None).expect_err("who knows").to_string();
        assert!(told.contains("cannot remove"), "{told}");
        store.verify(None, &|_| ()).expect_err("who knows");
        store.index_devices(&image).expect_err("who knows");
    });
    assert!(store.has_layers(&image).expect("told") && store.contains("t").expect("told"));
    // A workplace whose lock cannot be looked at may be somebody's.
    let workplace = store.root().join("tmp/somebody's");
    fs::create_dir(&workplace).expect("made");
    std::os::unix::fs::symlink(workplace.join("lock"), workplace.join("lock")).expect("linked");
    Store::open(store.root()).expect("opened");
    assert!(workplace.exists());
    fs::remove_file(workplace.join("lock")).expect("removed");
    Store::open(store.root()).expect("opened");
    assert!(!workplace.exists());
}

#[test]
fn a_removal_beside_a_load_costs_nothing() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    /// Removes the image whose layer the load has just found in the store.
    struct Remover<'a>(&'a Store);
    impl Progress for Remover<'_> {
        fn start(&self, layers: &[(Digest, u64)]) {
            assert_eq!(layers.len(), 1, "the base is shared");
            self.0.remove("a", false, &|_| None).expect("removed");
            assert!(!self.0.layer_path(&digest_of(&base())).exists());
        }
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&docker(&["b"], &[base(), top()]).tar()).expect("written");
    store.load(&Source::path(file.path()), &LoadOptions::default(), &Remover(&store)).expect("loads");
    let image = store.resolve("b").expect("b");
    assert_eq!(fs::read(store.layer_path(&image.diff_ids[0])).expect("the pinned layer"), base());
}

#[test]
fn loads_and_removals_at_once() {
    let (_dir, store) = store();
    let archive = docker(&["shared"], &[base(), top()]).tar();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (store, archive) = (&store, &archive);
            scope.spawn(move || {
                for _ in 0..10 {
                    load_tar(store, archive).expect("loads");
                    if worker % 2 == 0 {
                        match store.remove("shared", true, &|_| None) {
                            Ok(_) | Err(RemoveError::Resolve(ResolveError::NotFound { .. })) => {}
                            Err(error) => panic!("{}", told(error)),
                        }
                    }
                    let _ = Store::open(store.root()).expect("opens");
                    for image in store.list().expect("listed") {
                        // Removed by another between listing and reading, at most.
                        match store.tree(&image) {
                            Ok(tree) => assert_eq!(names_in(&tree), 3),
                            Err(StoreError::Io { cause, .. }) => assert_eq!(cause.kind(), io::ErrorKind::NotFound),
                            Err(error) => panic!("{}", told(error)),
                        }
                    }
                }
            });
        }
    });
    load_tar(&store, &archive).expect("loads");
    assert_eq!(names_in(&store.tree(&store.resolve("shared").expect("there")).expect("a tree")), 3);
    store.remove("shared", true, &|_| None).expect("removed");
    assert_untouched(&store);
}

#[test]
fn an_unknown_format_is_refused() {
    let (dir, store) = store();
    fs::write(store.root().join("format"), "gpurun store 2\n").expect("written");
    let error = told(Store::open(&dir.path().join("root")).expect_err("newer"));
    assert!(error.contains("`gpurun store 2`") && error.contains("hint"), "{error}");
    for damaged in [&b"gpurun store 1"[..], b"", b"gpurun stnre 1\n", b"gpurun store q\n", b"gp\xf5run store 1\n"] {
        fs::write(store.root().join("format"), damaged).expect("written");
        let error = told(Store::open(&dir.path().join("root")).expect_err("damaged"));
        assert!(error.contains("is damaged") && error.contains("echo gpurun store 1 | sudo tee"), "{error}");
    }
    fs::write(store.root().join("format"), "gpurun store 1\n").expect("written");
    Store::open(&dir.path().join("root")).expect("as the hint says");
}

/// Runs in a process of its own, which it ends by SIGKILL at the stage that the environment names.
#[test]
fn killed_loader() {
    let (Ok(root), Ok(archive), Ok(stage)) =
        (std::env::var("KILLED_ROOT"), std::env::var("KILLED_ARCHIVE"), std::env::var("KILLED_STAGE"))
    else {
        return;
    };
    struct Killer(String);
    impl Killer {
        fn at(&self, stage: &str) {
            if self.0 == stage {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    impl Progress for Killer {
        fn start(&self, _layers: &[(Digest, u64)]) {
            self.at("start");
        }
        fn advance(&self, _layer: usize, _bytes: u64) {
            self.at("advance");
        }
        fn finish(&self) {
            self.at("finish");
        }
    }
    let store = Store::open(Path::new(&root)).expect("opened");
    store.load(&Source::path(archive), &LoadOptions::default(), &Killer(stage)).expect("loads");
}

#[test]
fn a_sigkill_at_any_stage_leaves_nothing() {
    let (_dir, store) = store();
    let mut archive = tempfile::NamedTempFile::new().expect("a file");
    archive.write_all(&docker(&["k"], &[base(), top()]).tar()).expect("written");
    for stage in ["start", "advance", "finish"] {
        let status = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "store::tests::killed_loader", "--nocapture"])
            .env("KILLED_ROOT", store.root())
            .env("KILLED_ARCHIVE", archive.path())
            .env("KILLED_STAGE", stage)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("ran");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{stage}");
        assert_eq!(ls(&store.root().join("tmp")).len(), 1, "{stage}: it had a workplace");
        Store::open(store.root()).expect("opened again");
        assert_untouched(&store);
    }
    load(&store, archive.path()).expect("the store works");
}
