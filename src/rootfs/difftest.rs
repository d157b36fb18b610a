//! Tests that a layer made from a container's changes to its overlay gives the next container the same files.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::testing::{in_own_mounts, root_or_skip, tmpfs, unmount};
use super::{Overlay, overlay};
use crate::layer::testing::Layer;
use crate::layer::{Entry, Merger, Tree, diff, directory, tar};
use crate::names::Digest;

/// One change, as a program in the container makes it.
#[derive(Debug, Clone)]
enum Change {
    Write(&'static str, u16),
    Append(&'static str),
    Remove(&'static str),
    Directory(&'static str),
    Symlink(&'static str, &'static str),
    Hard(&'static str, &'static str),
    Mode(&'static str, u32),
    Rename(&'static str, &'static str),
}

const NAMES: [&str; 10] =
    ["top", "dir", "dir/file", "dir/sub", "dir/sub/deep", "dir/new", "other", "other/x", "link", "hard"];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let name = || prop::sample::select(&NAMES[..]);
    prop::collection::vec(
        prop_oneof![
            (name(), any::<u16>()).prop_map(|(name, size)| Change::Write(name, size)),
            name().prop_map(Change::Append),
            name().prop_map(Change::Remove),
            name().prop_map(Change::Remove),
            name().prop_map(Change::Directory),
            (name(), name()).prop_map(|(name, target)| Change::Symlink(name, target)),
            (name(), name()).prop_map(|(name, target)| Change::Hard(name, target)),
            (name(), 0u32..0o7777).prop_map(|(name, mode)| Change::Mode(name, mode)),
            (name(), name()).prop_map(|(from, to)| Change::Rename(from, to)),
        ],
        0..12,
    )
}

/// Makes the change. Errors of the file system are ignored.
fn apply(root: &Path, change: &Change) {
    let at = |name: &str| root.join(name);
    let _ = match change {
        Change::Write(name, size) => fs::write(at(name), vec![b'w'; usize::from(*size)]),
        Change::Append(name) => fs::OpenOptions::new()
            .append(true)
            .open(at(name))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"more")),
        Change::Remove(name) => match at(name).symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(at(name)),
            _ => fs::remove_file(at(name)),
        },
        Change::Directory(name) => fs::create_dir(at(name)),
        Change::Symlink(name, target) => symlink(target, at(name)),
        Change::Hard(name, target) => fs::hard_link(at(target), at(name)),
        Change::Mode(name, mode) => match at(name).symlink_metadata() {
            Ok(metadata) if !metadata.is_symlink() => fs::set_permissions(at(name), PermissionsExt::from_mode(*mode)),
            _ => Ok(()),
        },
        Change::Rename(from, to) => fs::rename(at(from), at(to)),
    };
}

/// Lists everything that is visible, except for times and link counts: an overlay still counts hidden links of the
/// image.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        let path = root.join(&at);
        let meta = path.symlink_metadata().expect("seen");
        let data = if meta.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        lines.push(format!(
            "{} {:o} {}:{} {:?} {}",
            at.display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            fs::read_link(&path).ok(),
            hex::encode(<sha2::Sha256 as sha2::Digest>::digest(data)),
        ));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).expect("read").map(|entry| at.join(entry.expect("an entry").file_name())));
        }
    }
    lines.sort_unstable();
    lines
}

fn layer_file(bytes: &[u8]) -> (fs::File, Vec<Entry>) {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    let entries = tar::scan_file(&file, 0, bytes.len() as u64).expect("scanned");
    (file, entries)
}

fn rendered(tree: &Tree, sources: &[fs::File], at: &Path) {
    fs::create_dir_all(at).expect("made");
    let fd = directory::open_root(at).expect("opened");
    directory::render(tree, sources, fd.as_fd()).expect("drawn");
}

#[test]
fn a_containers_changes_make_the_same_tree_again() {
    if !root_or_skip("layers of overlays") {
        return;
    }
    let image = Layer::new()
        .file("top", "top")
        .dir("dir")
        .file("dir/file", "file")
        .dir("dir/sub")
        .file("dir/sub/deep", "deep")
        .link("link", "dir/file")
        .hard("hard", "top")
        .end();
    let mut runner = TestRunner::new(ProptestConfig { cases: 48, ..ProptestConfig::default() });
    let ran = runner.run(&changes(), |changes| {
        let image = image.clone();
        in_own_mounts(move || round_trip(&image, &changes));
        Ok(())
    });
    ran.unwrap();
}

fn round_trip(image: &[u8], changes: &[Change]) {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().join("o");
    tmpfs(&base);
    let [lower, upper, work, merged, again] = ["lower", "upper", "work", "merged", "again"].map(|name| base.join(name));
    let (image_file, image_entries) = layer_file(image);
    let mut merger = Merger::new();
    merger.apply(Digest([0; 32]), image_entries.clone()).unwrap();
    let below = merger.finish();
    rendered(&below, std::slice::from_ref(&image_file), &lower);
    overlay(&Overlay { lower: &lower, above: None, upper: &upper, work: &work, merged: &merged, volatile: false })
        .unwrap();
    changes.iter().for_each(|change| apply(&merged, change));

    let fd = directory::open_root(&upper).unwrap();
    let options = diff::Options { lower: &below, clamp: None, keep: &|_, _| diff::Keep::Yes };
    let (bytes, _) = diff::write(fd.as_fd(), &options, Vec::new()).unwrap();
    let (file, entries) = layer_file(&bytes);
    let mut merger = Merger::new();
    merger.apply(Digest([0; 32]), image_entries).unwrap();
    merger.apply(Digest([1; 32]), entries).unwrap();
    rendered(&merger.finish(), &[image_file, file], &again);
    assert_eq!(listing(&again), listing(&merged), "{changes:?}");
    drop(fd);
    unmount(&merged);
    unmount(&base);
}
