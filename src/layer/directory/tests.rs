use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::super::testing::{Head, Layer};
use super::super::{Merger, tar};
use super::*;
use crate::names::Digest;

fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

/// Merges the layers and renders them. The temporary directory contains only `tree`.
fn render_tree(layers: &[Layer]) -> (tempfile::TempDir, Result<(), RenderError>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut merger = Merger::new();
    let mut sources = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes = layer.clone().end();
        io::Write::write_all(&mut file, &bytes).expect("written");
        let entries = tar::scan_file(&file, 0, bytes.len() as u64).expect("scanned");
        merger.apply(Digest([at as u8; 32]), entries).expect("merged");
        sources.push(file);
    }
    std::fs::create_dir(dir.path().join("tree")).expect("made");
    let fd = open_root(&dir.path().join("tree")).expect("opened");
    let result = render(&merger.finish(), &sources, fd.as_fd());
    (dir, result)
}

#[test]
fn the_rendered_directory_matches_the_tree() {
    if !root() {
        return;
    }
    let mut file = Head::new(b'0', b"d/setuid", b"", 5);
    file.put(100, b"0004755").put(108, b"0001750").put(116, b"0001751").put(136, b"14371573377");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layers = [
        Layer::new()
            .dir_mode("./", 0o711)
            .pax(&[("mtime", b"-1.5"), ("SCHILY.xattr.user.note", b"x")])
            .dir_mode("d", 0o1777)
            .pax(&[("SCHILY.xattr.security.capability", &capability), ("mtime", b"1600000000.123456789")])
            .head(file)
            .data(b"hello")
            .hard("hard", "d/setuid")
            .link("link", "/etc/passwd"),
        Layer::new()
            .fifo("d/fifo")
            .device(b'3', "d/null", 1, 3)
            .device(b'4', "d/disk", 8, 1)
            .device(b'3', "d/white", 0, 0),
    ];
    let (dir, result) = render_tree(&layers);
    result.expect("drawn");
    let at = |name: &str| dir.path().join("tree").join(name);
    let meta = |name: &str| at(name).symlink_metadata().expect("there");
    assert_eq!(meta("").permissions().mode() & 0o7777, 0o711);
    let d = meta("d");
    assert_eq!(
        (d.permissions().mode() & 0o7777, d.mtime(), d.mtime_nsec()),
        (0o1777, -2, 500_000_000),
        "after its children"
    );
    let file = meta("d/setuid");
    assert_eq!((file.permissions().mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4755, 1000, 1001, 2));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_600_000_000, 123_456_789));
    assert_eq!((file.ino(), std::fs::read(at("hard")).expect("read")), (meta("hard").ino(), b"hello".to_vec()));
    let open = File::open(at("d/setuid")).expect("opened");
    let kept = xattr::get(&open, b"security.capability");
    // A file system without these attributes (FUSE, for example) may refuse them. The other checks still apply.
    if let Ok(Some(value)) = kept {
        assert_eq!(value, capability);
    }
    assert_eq!(std::fs::read_link(at("link")).expect("a link"), Path::new("/etc/passwd"));
    assert!(meta("d/fifo").file_type().is_fifo());
    let device = |name: &str| (meta(name).file_type().is_char_device(), meta(name).rdev());
    assert_eq!((device("d/null"), device("d/disk")), ((true, makedev(1, 3)), (false, makedev(8, 1))));
    assert_eq!(device("d/white"), (true, makedev(0, 1)), "no whiteout for an overlay above");
}

#[test]
fn sparse_files_have_holes_and_the_right_bytes() {
    if !root() {
        return;
    }
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"1048576"), ("GNU.sparse.map", b"0,2,524288,3")];
    let (dir, result) = render_tree(&[Layer::new().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb")]);
    result.expect("drawn");
    let bytes = std::fs::read(dir.path().join("tree/s")).expect("read");
    assert_eq!((bytes.len(), &bytes[..3], &bytes[524_287..524_292]), (1 << 20, &b"aa\0"[..], &b"\0bbb\0"[..]));
    assert!(bytes.iter().filter(|byte| **byte != 0).count() == 5);
    assert!(dir.path().join("tree/s").metadata().expect("there").blocks() < 512);
}

#[test]
fn nothing_outside_is_touched() {
    if !root() {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    let host = outside.path().to_str().expect("text");
    std::fs::write(outside.path().join("keep"), "host").expect("written");
    let absolute = |name: &str| format!("{host}/{name}");
    let (dir, result) = render_tree(&[
        Layer::new().link("out", host).file("out/keep", "image").file("out/new", "image").fifo("out/pipe"),
        Layer::new()
            .file("out/.wh.keep", "")
            .dir("up")
            .link("up/x", "../../../../../../tmp")
            .file(&absolute("abs"), "image"),
        Layer::new().hard("h", "out"),
    ]);
    result.expect("drawn");
    assert_eq!(std::fs::read_to_string(outside.path().join("keep")).expect("read"), "host");
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 1);
    // The file that was written through the link is inside the tree.
    let inside = dir.path().join("tree").join(host.trim_start_matches('/'));
    assert!(inside.join("new").exists() && inside.join("abs").exists() && !inside.join("keep").exists());
}

#[test]
fn a_directory_that_is_not_empty_is_refused() {
    if !root() {
        return;
    }
    let (dir, result) = render_tree(&[Layer::new().file("a", "1")]);
    result.expect("drawn");
    let fd = open_root(&dir.path().join("tree")).expect("opened");
    let mut merger = Merger::new();
    let mut scanner = super::super::Scanner::new();
    scanner.feed(&Layer::new().link("a", "/etc/passwd").end()).expect("fed");
    merger.apply(Digest([0; 32]), scanner.finish().expect("a tar")).expect("merged");
    let error = render(&merger.finish(), &[], fd.as_fd()).expect_err("a name is taken");
    assert_eq!(
        (error.to_string().as_str(), error.hint().as_deref()),
        ("cannot create the link `a`", Some("choose an empty directory"))
    );
}
