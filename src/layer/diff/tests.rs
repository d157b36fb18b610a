use std::collections::BTreeMap;
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::super::{Kind, Merger, directory, tar};
use super::*;
use crate::names::Digest;

fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

fn everything(_: &[u8], _: &FileStat) -> Keep {
    Keep::Yes
}

/// Parses the layer. Returns its tree and a file with its bytes.
fn tree_of(bytes: &[u8]) -> (Tree, File) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    let entries = tar::scan_file(&file, 0, bytes.len() as u64).expect("scanned");
    let mut merger = Merger::new();
    merger.apply(Digest([1; 32]), entries).expect("merged");
    (merger.finish(), file)
}

/// Describes every path: its kind, its data, and the first path of the same inode.
fn flat(tree: &Tree, source: &File) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut first: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut todo = vec![(Vec::new(), 0u32)];
    while let Some((path, id)) = todo.pop() {
        let inode = &tree.inodes[id as usize];
        let what = match &inode.kind {
            Kind::Directory(children) => {
                // Reversed, because the stack is popped from its end: the first names are visited first.
                todo.extend(children.iter().rev().map(|(name, id)| ([path.as_slice(), b"/", name].concat(), id.0)));
                "directory".to_owned()
            }
            Kind::File(_) => {
                let path = tree.read_small(std::slice::from_ref(source), &path, 1 << 30).expect("read");
                hex::encode(sha2_of(&path.expect("a file")))
            }
            other => format!("{other:?}"),
        };
        let first = first.entry(id).or_insert_with(|| path.clone()).escape_ascii().to_string();
        let meta = (inode.mode, inode.uid, inode.gid, inode.mtime, &inode.xattrs);
        all.insert(path, format!("{what} {meta:?} {first}"));
    }
    all
}

fn sha2_of(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).to_vec()
}

fn diff(directory: &std::path::Path, clamp: Option<i64>) -> (Vec<u8>, Summary) {
    let fd = directory::open_root(directory).expect("opened");
    let lower = Tree::empty();
    write(fd.as_fd(), &Options { lower: &lower, clamp, keep: &everything }, Vec::new()).expect("a layer")
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = prop_oneof![
        Just("a"),
        Just("b"),
        Just("dir/c"),
        Just("dir/sub/d"),
        Just("dir/sub/long-"),
        Just("\u{fc}nicode")
    ];
    let kind = prop_oneof![
        Just(EntryKind::Directory),
        (0u64..5000).prop_map(|size| EntryKind::File(Data {
            size,
            segments: (size > 0).then_some(Segment { at: 0, source: 0, offset: 0, len: size }).into_iter().collect()
        })),
        (1u64..4).prop_map(|holes| EntryKind::File(Data {
            size: holes << 20,
            segments: vec![Segment { at: (holes - 1) << 20, source: 0, offset: 0, len: 4096 }]
        })),
        Just(EntryKind::Symlink((*b"/etc/../x").into())),
        Just(EntryKind::HardLink((*b"first").into())),
        Just(EntryKind::CharDevice { major: 1, minor: 3 }),
        Just(EntryKind::Fifo),
    ];
    let xattrs = prop_oneof![
        Just(BTreeMap::new()),
        Just(BTreeMap::from([((*b"security.capability").into(), {
            let value: Box<[u8]> = Box::new([1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            value
        })])),
    ];
    let entry = (name, kind, 0u16..0o10000, 0u32..70000, 0u32..3_000_000, 0i64..3_000_000_000, xattrs).prop_map(
        |(name, kind, mode, uid, gid, mtime, xattrs)| {
            let file = matches!(kind, EntryKind::File(_));
            let mode = if matches!(kind, EntryKind::Symlink(_)) { 0o777 } else { mode };
            let xattrs = if file { xattrs } else { BTreeMap::new() };
            let long = if name.ends_with('-') { "x".repeat(150) } else { String::new() };
            Entry { path: format!("{name}{long}").into_bytes().into(), kind, mode, uid, gid, mtime: (mtime, 0), xattrs }
        },
    );
    prop::collection::vec(entry, 0..10).prop_map(|mut entries| {
        let mut first =
            entries.iter().find(|entry| matches!(entry.kind, EntryKind::File(_))).cloned().unwrap_or(Entry {
                path: Box::default(),
                kind: EntryKind::Fifo,
                mode: 0o600,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: BTreeMap::new(),
            });
        first.path = (*b"first").into();
        entries.insert(0, first);
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// tree → directory → diff → tree loses nothing, and two runs give the same bytes.
    #[test]
    fn a_tree_survives(entries in entries()) {
        if !root() {
            return Ok(());
        }
        let mut writer = tar::Writer::new(Vec::new());
        for entry in &entries {
            writer.entry(entry).expect("headers");
            if let EntryKind::File(data) = &entry.kind {
                for segment in &data.segments {
                    writer.data(&vec![b'd'; segment.len as usize]).expect("data");
                }
            }
        }
        let (tree, source) = tree_of(&writer.finish().expect("finished"));
        let dir = tempfile::tempdir().expect("a directory");
        let fd = directory::open_root(dir.path()).expect("opened");
        directory::render(&tree, std::slice::from_ref(&source), fd.as_fd()).expect("drawn");
        let (bytes, _) = diff(dir.path(), None);
        prop_assert_eq!(&bytes, &diff(dir.path(), None).0);
        let (again, source_again) = tree_of(&bytes);
        let (mut want, mut found) = (flat(&tree, &source), flat(&again, &source_again));
        // An unchanged root is not listed, so its time is not preserved.
        want.remove(&Vec::new());
        found.remove(&Vec::new());
        prop_assert_eq!(found, want);
    }
}

#[test]
fn times_are_clamped_and_sockets_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("file"), "x").expect("written");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).expect("bound");
    let (bytes, summary) = diff(dir.path(), Some(1_000_000));
    let (tree, _) = tree_of(&bytes);
    assert_eq!(summary.sockets, 1);
    assert_eq!(tree.inode(tree.get(b"file").expect("there")).mtime, (1_000_000, 0));
    assert!(tree.get(b"socket").is_none());
}

#[test]
fn a_name_that_would_delete_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(".wh.passwd"), "x").expect("written");
    let fd = directory::open_root(dir.path()).expect("opened");
    let lower = Tree::empty();
    let options = Options { lower: &lower, clamp: None, keep: &everything };
    let error = write(fd.as_fd(), &options, Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("/.wh.passwd"), "{error}");
}

#[test]
fn what_is_not_kept_takes_its_empty_directories_along() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["etc", "keep/deep", "only/for/mounts"] {
        std::fs::create_dir_all(dir.path().join(name)).expect("made");
    }
    for name in ["etc/hosts", "keep/deep/hosts", "keep/deep/mine", "only/for/mounts/hosts"] {
        std::fs::write(dir.path().join(name), "").expect("written");
    }
    let keep = |path: &[u8], stat: &FileStat| {
        if path.ends_with(b"hosts") {
            Keep::No
        } else if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
            Keep::IfNotEmpty
        } else {
            Keep::Yes
        }
    };
    let fd = directory::open_root(dir.path()).expect("opened");
    let lower = Tree::empty();
    let (bytes, summary) =
        write(fd.as_fd(), &Options { lower: &lower, clamp: None, keep: &keep }, Vec::new()).expect("a layer");
    let (tree, source) = tree_of(&bytes);
    let mut names: Vec<String> =
        flat(&tree, &source).into_keys().map(|name| String::from_utf8_lossy(&name).into_owned()).collect();
    names.retain(|name| !name.is_empty());
    assert_eq!(names, ["/keep", "/keep/deep", "/keep/deep/mine"]);
    assert!(summary.members <= 4, "{summary:?}");
}
