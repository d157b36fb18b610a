use std::fs;
use std::os::unix::fs::FileExt;

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::report::Report;
use crate::store::testing::{Oci, Packing, base, docker, load, ls, message_of, store, top};

fn open(store: &Store, path: &Path, check: bool) -> Result<Option<Image>, LoadError> {
    store.open_in_place(&Source::path(path), &LoadOptions::default(), check, &())
}

/// Reads a file of the image through the tree and the files that it points into.
fn text(store: &Store, image: &Image, path: &[u8]) -> Option<Vec<u8>> {
    let (tree, sources) = store.tree_and_sources(image).expect("a tree");
    tree.read_small(&sources, path, 100).expect("read")
}

/// The path by which a file was opened.
fn name(file: &File) -> PathBuf {
    fs::read_link(crate::sys::mount::fd_path(file)).expect("a link of /proc")
}

#[test]
fn plain_archives_and_layouts_are_used_in_place() {
    let layers = [(base(), Packing::None), (top(), Packing::None)];
    let layout = Oci::new().image("localhost/t:1", &layers).files();
    let directory = layout.directory();
    let dir = tempfile::tempdir().expect("a directory");
    let (as_oci, as_docker) = (dir.path().join("oci.tar"), dir.path().join("docker.tar"));
    fs::write(&as_oci, layout.tar()).expect("written");
    fs::write(&as_docker, docker(&["t"], &[base(), top()]).tar()).expect("written");
    for (path, files) in [(directory.path(), 2), (as_oci.as_path(), 1), (as_docker.as_path(), 1)] {
        let (_dir, store) = store();
        let image = open(&store, path, true).expect("read").expect("in place");
        assert_eq!(text(&store, &image, b"etc/new").as_deref(), Some(&b"x"[..]));
        assert_eq!(text(&store, &image, b"etc/hosts"), None, "a whiteout holds");
        assert_eq!(text(&store, &image, b"bin").as_deref(), Some(&b"#!"[..]));
        let devices: Vec<_> = store.index_devices(&image).expect("opened").iter().map(name).collect();
        assert!(devices.iter().all(|device| device.starts_with(path)), "{devices:?}");
        assert_eq!(image.in_place.as_ref().expect("in place").files.len(), files);
        // Nothing was copied and the image is not listed, but a container finds it.
        for place in ["layers", "images", "tmp"] {
            assert!(ls(&store.root().join(place)).is_empty(), "{place}");
        }
        assert!(store.resolve(&image.id.to_string()).is_err());
        assert_eq!(store.image_of(image.id).expect("found").in_place, image.in_place);
        // The second time, nothing is read: the record is the same file.
        let record = store.archive_dir(&image.id).join("place.json");
        let inode = fs::metadata(&record).expect("there").ino();
        open(&store, path, true).expect("read").expect("in place");
        assert_eq!(fs::metadata(&record).expect("there").ino(), inode);
        store.prune(&crate::store::Image::is_dangling, &|_| None).expect("pruned");
        assert!(ls(&store.root().join("archives")).is_empty());
    }
}

#[test]
fn what_was_looked_at_is_what_is_opened() {
    let (_root, store) = store();
    let dir = tempfile::tempdir().expect("a directory");
    let (path, other) = (dir.path().join("t.tar"), dir.path().join("other.tar"));
    fs::write(&path, docker(&["t"], &[base()]).tar()).expect("written");
    fs::copy(&path, &other).expect("copied");
    let image = open(&store, &path, true).expect("read").expect("in place");
    assert_eq!(store.index_devices(&image).expect("opened").len(), 1);
    // The check is complete and the image is open. Now the path refers to another file, even if its bytes are the same.
    fs::rename(&other, &path).expect("exchanged");
    for refusal in [
        store.index_devices(&image).map(drop),
        store.tree(&image).map(drop),
        store.tree_and_sources(&image).map(drop),
        store.open_stretch(&image, &image.in_place.as_ref().expect("in place").layers[0]).map(drop),
    ] {
        assert!(matches!(refusal, Err(StoreError::Archive { .. })), "{refusal:?}");
    }
    let images = dir.path().join("images");
    let error = crate::rootfs::stored::lower(&images, &store, &image).expect_err("another file");
    let report = Report::from(error);
    assert!(report.to_string().contains("was removed or changed"), "{report}");
    let rendered = crate::rootfs::stored::render(&store, &image).expect_err("another file");
    assert!(Report::from(rendered).to_string().contains("was removed or changed"));
    assert!(ls(&store.root().join("dirs")).is_empty() && ls(&store.root().join("tmp")).is_empty());
}

#[test]
fn what_is_packed_or_several_is_left_to_a_load() {
    let (_dir, store) = store();
    let mixed = Oci::new().image("localhost/t:1", &[(base(), Packing::None), (top(), Packing::Gzip)]).files();
    assert!(open(&store, mixed.directory().path(), true).expect("read").is_none());
    let two = Oci::new().image("localhost/a:1", &[(base(), Packing::None)]);
    let two = two.image("localhost/b:1", &[(top(), Packing::None)]).files().directory();
    assert!(open(&store, two.path(), true).expect("read").is_none());
    let picked = Source::Path { path: two.path().into(), pick: Some("localhost/b:1".into()) };
    let image = store.open_in_place(&picked, &LoadOptions::default(), true, &()).expect("read").expect("one of them");
    assert_eq!(image.diff_ids.len(), 1);
    let error = open(&store, Path::new("/nonexistent.tar"), true).expect_err("missing");
    assert!(message_of(error).contains("/nonexistent.tar"));
}

#[test]
fn digests_are_checked_unless_that_is_declined_and_changes_are_noticed() {
    let (_root, store) = store();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("t.tar");
    let files = docker(&["t"], &[base()]);
    let mut bytes = files.tar();
    let at = bytes.windows(9).position(|window| window == b"127.0.0.1").expect("the data");
    bytes[at] = b'9';
    fs::write(&path, &bytes).expect("written");
    let error = message_of(open(&store, &path, true).expect_err("another digest"));
    assert!(error.contains("diff ID"), "{error}");
    assert!(!store.root().join("archives").exists(), "nothing is left of it");
    let unchecked = open(&store, &path, false).expect("read").expect("as it is");
    assert_eq!(text(&store, &unchecked, b"etc/hosts").as_deref(), Some(&b"927.0.0.1"[..]));
    open(&store, &path, true).expect_err("unchecked once is not checked");

    // The archive was repaired. It now counts as another file, with a mount of its own.
    fs::File::options().write(true).open(&path).expect("opened").write_all_at(b"1", at as u64).expect("written");
    let report = Report::from(store.image_of(unchecked.id).expect_err("changed"));
    assert!(report.to_string().contains("was removed or changed") && report.hint.is_some(), "{report}");
    let checked = open(&store, &path, true).expect("read").expect("in place");
    assert_ne!(store.mount_name(&checked), store.mount_name(&unchecked));
    assert_ne!(store.mount_name(&checked), checked.chain_id.hex(), "nor the loaded image's");

    // A loaded image takes precedence.
    load(&store, &path).expect("loaded");
    let loaded = open(&store, &path, true).expect("read").expect("loaded");
    assert!(loaded.in_place.is_none());
    // An image in use stays.
    store.prune(&crate::store::Image::is_dangling, &|_| Some(crate::store::User::Mount)).expect("pruned");
    assert_eq!(ls(&store.root().join("archives")).len(), 1);
}
