//! Tests of loading sources, and of refusals that leave the store unchanged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::testing::*;
use super::super::*;
use crate::image::digest_of;
use crate::layer::testing::Layer;

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
fn several_images_and_odd_ones() {
    let (_dir, store) = store();
    let mut two = Oci::new()
        .image("localhost/x:1", &[(base(), Packing::Gzip)])
        .image("localhost/y:1", &[(base(), Packing::Gzip), (top(), Packing::Gzip)]);
    // The first image is listed again under another name. A bare tag is not a name.
    two = two.image("localhost/z:1", &[(base(), Packing::Gzip)]).image("latest", &[]);
    let loaded = load(&store, two.files().directory().path()).expect("loads");
    assert_eq!(loaded.len(), 3);
    assert_eq!(store.resolve("x:1").expect("x").id, store.resolve("z:1").expect("z").id);
    assert_eq!(loaded[2].names, []);
    let empty = store.resolve(&loaded[2].id.hex()).expect("an image without layers");
    assert_eq!((names_in(&store.tree(&empty).expect("a tree")), empty.diff_ids.len()), (0, 0));
    // 127 layers, most of them duplicates.
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
    assert!(matches!(error, Err(crate::store::load::LoadError::OneName { images: 2, .. })));
}

#[test]
fn what_is_there_is_not_read_again() {
    let (_dir, store) = store();
    // Two images with the same layers in one source.
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
    // Corrupt the checksum of the layer's first header, so that reading it again would fail.
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
    // No image for this machine.
    let mut foreign = Oci::new();
    let extra = r#","platform":{"os":"linux","architecture":"s390x"}"#;
    let descriptor = foreign.manifest(&config(&[]), &[], extra);
    foreign.manifests = vec![descriptor];
    let error = message_of(load(&store, foreign.files().directory().path()).expect_err("foreign"));
    assert!(error.contains("it has: linux/s390x"), "{error}");
    // Nesting that is too deep.
    let mut deep = Oci::new();
    let mut entry = deep.manifest(&config(&[]), &[], "");
    for _ in 0..6 {
        entry = nest(&mut deep, &[entry]);
    }
    deep.manifests = vec![entry];
    assert!(message_of(load(&store, deep.files().directory().path()).expect_err("deep")).contains("nested"));
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
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
    // The blob matches its digest, but it is not the layer that the config names.
    let mut oci = Oci::new();
    let (_, descriptors) = oci.layers(&[(base(), Packing::Gzip)]);
    let descriptor = oci.manifest(&config(&[digest_of(&top())]), &descriptors, "");
    oci.manifests = vec![descriptor];
    let (_dir, store) = store();
    let error = message_of(load(&store, oci.files().directory().path()).expect_err("a wrong diff ID"));
    assert!(error.contains("diff ID"), "{error}");
    // More and fewer diff IDs than layers; a wrong config name.
    for diff_ids in [vec![], vec![digest_of(&base()), digest_of(&top())]] {
        let mut oci = Oci::new();
        let (_, descriptors) = oci.layers(&[(base(), Packing::Gzip)]);
        let descriptor = oci.manifest(&config(&diff_ids), &descriptors, "");
        oci.manifests = vec![descriptor];
        let error = message_of(load(&store, oci.files().directory().path()).expect_err("a wrong count"));
        assert!(error.contains("diff IDs, but the manifest lists 1 layers"), "{error}");
    }
    let mut files = docker(&["t"], &[base()]);
    let name =
        files.0.keys().find(|name| name.ends_with(".json") && *name != "manifest.json").expect("the config").clone();
    files.0.get_mut(&name).expect("the config").push(b'\n');
    assert!(message_of(load_tar(&store, &files.tar()).expect_err("a lying name")).contains("has the digest"));
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
            (Err(error), Some(expected)) => {
                let error = message_of(error);
                assert!(error.contains(expected), "{error}");
                assert_untouched(&store);
            }
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
    // A correct digest does not make a broken tar valid. The error names the layer.
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
    assert!(message_of(load(&store, files.directory().path()).expect_err("large")).contains("larger than"));
    assert!(message_of(load_tar(&store, &files.tar()).expect_err("large")).contains("larger than"));
    // Files that are not image sources.
    assert!(message_of(load_tar(&store, b"no tar at all").expect_err("text")).contains("tar"));
    assert!(
        message_of(load_tar(&store, &Layer::new().file("x", "y").end()).expect_err("a tar"))
            .contains("neither a docker archive nor")
    );
    assert!(message_of(load(&store, Path::new("/nonexistent/x.tar")).expect_err("nothing")).contains("image archive"));
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
