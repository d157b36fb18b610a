//! `COPY` keeps hard links, and `ADD` of an archive replaces what is in its way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("copies::hard_links_of_the_context_are_kept", context_links),
    ("copies::hard_links_of_a_stage_are_kept", stage_links),
    ("copies::hard_links_of_an_archive_are_kept", archive_links),
    ("copies::hard_links_count_in_the_cache_key", links_in_keys),
    ("copies::extended_attributes_of_the_context_are_kept", context_xattrs),
    ("copies::files_that_replace_each_other_are_reported", replaced),
    ("copies::an_archive_replaces_what_is_of_another_kind", other_kinds),
    ("copies::an_archive_entry_without_a_name_is_skipped", no_name),
    ("copies::directories_that_an_archive_implies_leave_the_image_as_it_is", implied),
];

/// The image's files, in a directory.
fn unpacked(fixture: &Fixture, image: &str) -> PathBuf {
    let dir = tempfile::tempdir_in(&fixture.dir).unwrap().keep().join("files");
    fixture.ok(&["image", "unpack", image, dir.to_str().unwrap()]);
    dir
}

#[track_caller]
fn assert_linked(root: &Path, names: &[&str]) {
    let inodes: Vec<(u64, u64)> = names
        .iter()
        .map(|name| {
            let meta = root.join(name).symlink_metadata().unwrap();
            (meta.ino(), meta.nlink())
        })
        .collect();
    assert!(inodes.iter().all(|found| *found == (inodes[0].0, names.len() as u64)), "{names:?}: {inodes:?}");
}

const LARGE: usize = 3 << 20;

fn context_links() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("d/a", &"x".repeat(LARGE)), ("d/sub/", "")]);
    for name in ["d/b", "d/sub/c", "e"] {
        fs::hard_link(context.join("d/a"), context.join(name)).unwrap();
    }
    // Another name, outside of what is copied, is none of the image's.
    fs::hard_link(context.join("d/a"), fixture.dir.join(format!("outside-{}", std::process::id()))).unwrap();
    let text = "FROM box\nCOPY d /d\nCOPY --chown=5:6 --chmod=640 d/a? d/a d/b e /f/\n";
    let id = fixture.build_ok(&context, text, &["--no-cache"]);
    let root = unpacked(fixture, &id);
    assert_linked(&root, &["d/a", "d/b", "d/sub/c"]);
    assert_linked(&root, &["f/a", "f/b", "f/e"]);
    assert_eq!(root.join("f/e").metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read(root.join("d/sub/c")).unwrap().len(), LARGE);
    // The store is other tests' too: of this image's layers alone.
    let shown: serde_json::Value = serde_json::from_str(&fixture.ok(&["image", "inspect", &id])).unwrap();
    let layers: Vec<u64> = shown[0]["RootFS"]["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|diff_id| diff_id.as_str().unwrap().trim_start_matches("sha256:"))
        .map(|digest| fs::metadata(fixture.dir.join(format!("root/layers/{digest}.tar"))).unwrap().len())
        .collect();
    assert_eq!(layers.iter().filter(|size| **size > LARGE as u64).count(), 2, "each COPY holds the file: {layers:?}");
    assert!(layers.iter().all(|size| *size < 2 * LARGE as u64), "the file is in a layer once: {layers:?}");
}

fn context_xattrs() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("d/x", "x"), ("d/s/", "")]);
    // The labels and ACLs of this host belong to it.
    let set = "import os\nfor name in ('d/x', 'd/s'): os.setxattr(name, 'user.color', b'red')\n\
        os.setxattr('d/x', 'trusted.mine', b'1')\n";
    assert!(Command::new("python3").args(["-c", set]).current_dir(&context).status().unwrap().success());
    let build = || fixture.build_ok(&context, "FROM box AS a\nCOPY d /d\nFROM box\nCOPY --from=a /d /e\n", &[]);
    let id = build();
    let root = unpacked(fixture, &id);
    let get =
        "import os, sys\nfor name in ('e/x', 'e/s'):\n    print(os.listxattr(name), os.getxattr(name, 'user.color'))\n";
    let output = Command::new("python3").args(["-c", get]).current_dir(&root).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(shown, "['user.color'] b'red'\n['user.color'] b'red'\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(build(), id, "the same attributes are the same step");
    let other = "import os; os.setxattr('d/x', 'user.color', b'blue')";
    assert!(Command::new("python3").args(["-c", other]).current_dir(&context).status().unwrap().success());
    assert_ne!(build(), id, "an attribute is a part of the file");
}

fn replaced() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("a1", "1"), ("a2", "2"), ("a3", "3"), ("d/a1", "4")]);
    for (text, notice) in [
        ("COPY a? /q\n", "this `COPY` writes 3 files to `/q`, and only the last one remains"),
        ("COPY a? /q/\n", ""),
        ("COPY a1 a2 /q\n", ""),
        ("COPY a? /tmp\n", ""),
        ("COPY [ad]* /n\n", ""),
    ] {
        let answer = fixture.build(&context, &format!("FROM box\n{text}"), &["--no-cache"]);
        if text.contains("[ad]") {
            assert!(answer.code == 1 && answer.err.contains("cannot copy two sources"), "{text}: {}", answer.err);
            continue;
        }
        assert_eq!(answer.code, 0, "{text}: {}", answer.err);
        assert_eq!(answer.err.contains("only the last one"), !notice.is_empty(), "{text}: {}", answer.err);
        assert!(answer.err.contains(notice), "{text}: {}", answer.err);
    }
}

fn stage_links() {
    let fixture = Fixture::shared();
    let text = "FROM box AS a\nRUN mkdir -p /d/s && echo x >/d/a && ln /d/a /d/s/b && ln /d/a /c && echo y >/d/y\n\
        FROM box\nCOPY --from=a /d /new\nCOPY --from=a /d/* /c /all/\n";
    let id = fixture.build_ok(&fixture.context(&[]), text, &["--no-cache"]);
    let root = unpacked(fixture, &id);
    assert_linked(&root, &["new/a", "new/s/b"]);
    // The contents of `/d/s` are in `/all`.
    assert_linked(&root, &["all/a", "all/b", "all/c"]);
    assert_linked(&root, &["new/y"]);
}

/// An entry of a tar: its kind (`d`, `f`, `l` for a symbolic and `h` for a hard link), its name, and its contents or target.
type Member = (char, &'static str, &'static str);

fn archive(entries: &[Member]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(if *kind == 'd' { 0o711 } else { 0o600 });
        header.set_entry_type(match kind {
            'd' => tar::EntryType::Directory,
            'l' => tar::EntryType::Symlink,
            'h' => tar::EntryType::Link,
            _ => tar::EntryType::Regular,
        });
        let bytes = if *kind == 'f' { text.as_bytes() } else { b"" };
        if matches!(kind, 'l' | 'h') {
            header.set_link_name(text).unwrap();
        }
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn with_archives(fixture: &Fixture, archives: &[(&str, &[Member])]) -> PathBuf {
    let context = fixture.context(&[]);
    for (name, entries) in archives {
        fs::write(context.join(name), archive(entries)).unwrap();
    }
    context
}

fn archive_links() {
    let fixture = Fixture::shared();
    let context = with_archives(fixture, &[("a.tar", &[('f', "b", "x"), ('h', "a", "b"), ('f', "c", "x")])]);
    let id = fixture.build_ok(&context, "FROM box\nADD a.tar /d/\n", &["--no-cache"]);
    let root = unpacked(fixture, &id);
    assert_linked(&root, &["d/a", "d/b"]);
    assert_linked(&root, &["d/c"]);
}

fn links_in_keys() {
    let fixture = Fixture::shared();
    let text = "FROM box\nCOPY d /keys\n";
    let cached = |context: &Path| {
        let answer = fixture.build(context, text, &[]);
        assert_eq!(answer.code, 0, "{}", answer.err);
        answer.err.contains("CACHED")
    };
    let copies = || fixture.context(&[("d/a", "links in keys"), ("d/b", "links in keys")]);
    assert!(!cached(&copies()));
    // A name elsewhere says nothing about the image: a checkout by `git clone` has many.
    let context = copies();
    fs::hard_link(context.join("d/a"), context.join("elsewhere")).unwrap();
    assert!(cached(&context));
    fs::remove_file(context.join("d/b")).unwrap();
    fs::hard_link(context.join("d/a"), context.join("d/b")).unwrap();
    assert!(!cached(&context), "one file with two names is another image than two files");
}

fn other_kinds() {
    let fixture = Fixture::shared();
    let context = with_archives(
        fixture,
        &[
            ("one.tar", &[('f', "dir", "file now"), ('d', "file", ""), ('f', "file/x", "x"), ('d', "link", "")]),
            ("two.tar", &[('d', "dir", ""), ('f', "dir/y", "y"), ('f', "file", "file again"), ('l', "link", "file")]),
        ],
    );
    let base = "FROM box\nRUN mkdir -p /dir/deep /real && echo d >/dir/deep/f && echo f >/file && ln -s real /link\n";
    let id = fixture.build_ok(&context, &format!("{base}ADD one.tar /\n"), &[]);
    let real = "d 755 0:0 /real";
    assert_eq!(
        fixture.news(&id),
        ["f 600 0:0 /dir file now", "d 711 0:0 /file", "f 600 0:0 /file/x x", "d 711 0:0 /link", real]
    );
    let id = fixture.build_ok(&context, &format!("{base}ADD one.tar two.tar /\n"), &[]);
    let both = ["d 711 0:0 /dir", "f 600 0:0 /dir/y y", "f 600 0:0 /file file again", "l - 0:0 /link file", real];
    assert_eq!(fixture.news(&id), both);
    let id = fixture.build_ok(&context, &format!("{base}ADD one.tar /\nADD two.tar /\n"), &[]);
    assert_eq!(fixture.news(&id), both);
}

fn no_name() {
    let fixture = Fixture::shared();
    let context = with_archives(
        fixture,
        &[("a.tar", &[('f', "", "none"), ('d', "./", ""), ('f', "./.", "none"), ('f', "x", "x")])],
    );
    let id = fixture.build_ok(&context, "FROM box\nADD a.tar /new/\n", &[]);
    assert_eq!(fixture.news(&id), ["d 755 0:0 /new", "f 600 0:0 /new/x x"]);
}

fn implied() {
    let fixture = Fixture::shared();
    let context =
        with_archives(fixture, &[("a.tar", &[('f', "tmp/x", "x"), ('f', "lib/y", "y"), ('f', "n/e/w", "w")])]);
    let text = "FROM box\nRUN mkdir /real && ln -s real /lib\nADD a.tar /\n";
    let id = fixture.build_ok(&context, text, &[]);
    assert_eq!(
        fixture.news(&id),
        [
            "l - 0:0 /lib real",
            "d 755 0:0 /n",
            "d 755 0:0 /n/e",
            "f 600 0:0 /n/e/w w",
            "d 755 0:0 /real",
            "f 600 0:0 /real/y y",
            "f 600 0:0 /tmp/x x"
        ]
    );
}
