//! Tests hostile and unusual names in layers: the tree that each gives, or the reason why it is rejected.

use super::super::tar::Scanner;
use super::super::testing::Layer;
use super::*;

fn scan(layer: Layer) -> Vec<Entry> {
    let mut scanner = Scanner::new();
    scanner.feed(&layer.end()).expect("a tar");
    scanner.finish().expect("a whole tar")
}

fn merge(layers: Vec<Layer>) -> Result<Tree, Problem> {
    let mut merger = Merger::new();
    for (at, layer) in layers.into_iter().enumerate() {
        merger.apply(Digest([at as u8; 32]), scan(layer)).map_err(|error| error.problem)?;
    }
    Ok(merger.finish())
}

/// Describes each name in one line: `path kind [detail]`. `f1@0` is a file with 1 byte of layer 0, `=path` is a hard
/// link to an earlier name.
fn show(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    list(tree, InodeId(0), "", &mut seen, &mut lines);
    lines
}

fn list(tree: &Tree, id: InodeId, path: &str, seen: &mut BTreeMap<InodeId, String>, lines: &mut Vec<String>) {
    let Kind::Directory(children) = &tree.inodes[id.0 as usize].kind else { return };
    for (name, child) in children {
        let path = format!("{path}/{}", name.escape_ascii());
        let inode = &tree.inodes[child.0 as usize];
        if let Some(first) = seen.get(child) {
            lines.push(format!("{path} ={first}"));
            continue;
        }
        seen.insert(*child, path.clone());
        lines.push(match &inode.kind {
            Kind::Directory(_) => format!("{path} d{:o}", inode.mode),
            Kind::File(data) => {
                format!("{path} f{}@{}", data.size, data.segments.first().map_or(9, |segment| segment.source))
            }
            Kind::Symlink(target) => format!("{path} ->{}", target.escape_ascii()),
            Kind::CharDevice { major, minor } => format!("{path} c{major}:{minor}"),
            Kind::BlockDevice { major, minor } => format!("{path} b{major}:{minor}"),
            Kind::Fifo => format!("{path} p"),
        });
        list(tree, *child, &path, seen, lines);
    }
}

#[track_caller]
fn becomes(layers: Vec<Layer>, want: &[&str]) {
    let tree = merge(layers).expect("a merged tree");
    assert_eq!(show(&tree), want);
}

#[track_caller]
fn refused(layers: Vec<Layer>, want: Problem) {
    assert_eq!(merge(layers).expect_err("a refusal"), want);
}

fn l() -> Layer {
    Layer::new()
}

#[test]
fn names_are_cleaned_or_refused() {
    becomes(
        vec![l().file("/abs", "1").file("./a/./b//c", "1").file("x/../y", "1")],
        &["/a d755", "/a/b d755", "/a/b/c f1@0", "/abs f1@0", "/y f1@0"],
    );
    refused(vec![l().file("../x", "1")], Problem::Escapes);
    refused(vec![l().file("a/../../x", "1")], Problem::Escapes);
    refused(vec![l().dir("..")], Problem::Escapes);
    refused(vec![l().file("/../etc/passwd", "1")], Problem::Escapes);
    refused(vec![l().file("", "1")], Problem::EmptyName);
    refused(vec![l().file("./", "1")], Problem::RootNotDirectory);
    refused(vec![l().link(".", "/tmp")], Problem::RootNotDirectory);
    let long = "n".repeat(256);
    refused(vec![l().pax(&[("path", long.as_bytes())]).file("x", "")], Problem::NameTooLong);
    let deep = "d/".repeat(600);
    refused(vec![l().pax(&[("path", deep.as_bytes())]).dir("x")], Problem::TooDeep);
    let path = format!("{}x", "p/".repeat(2500));
    refused(vec![l().pax(&[("path", path.as_bytes())]).file("x", "")], Problem::PathTooLong);
}

#[test]
fn the_root_entry_sets_the_roots_metadata() {
    let tree = merge(vec![l().dir_mode("./", 0o1777).file("a", "1")]).expect("a tree");
    assert_eq!((tree.inodes[0].mode, show(&tree).len()), (0o1777, 1));
    // The root is listed again after its children: they stay.
    let tree = merge(vec![l().file("a", "1").dir_mode("/", 0o700)]).expect("a tree");
    assert_eq!((tree.inodes[0].mode, show(&tree).len()), (0o700, 1));
}

#[test]
fn links_are_followed_inside_the_tree_only() {
    // Absolute, relative and climbing targets all stay inside the tree.
    becomes(vec![l().link("e", "/etc").file("e/passwd", "1")], &["/e ->/etc", "/etc d755", "/etc/passwd f1@0"]);
    becomes(
        vec![l().dir("d").link("d/up", "../../../../v").file("d/up/x", "1")],
        &["/d d755", "/d/up ->../../../../v", "/v d755", "/v/x f1@0"],
    );
    becomes(
        vec![l().link("p", "/proc/self/root").file("p/tmp/x", "1")],
        &[
            "/p ->/proc/self/root",
            "/proc d755",
            "/proc/self d755",
            "/proc/self/root d755",
            "/proc/self/root/tmp d755",
            "/proc/self/root/tmp/x f1@0",
        ],
    );
    // The last component is replaced, not followed.
    becomes(vec![l().link("x", "/etc/shadow").file("x", "1")], &["/x f1@0"]);
    becomes(vec![l().link("x", "/etc"), l().dir("x").file("x/y", "1")], &["/x d755", "/x/y f1@1"]);
    becomes(vec![l().link("x", "/etc").link("x", "/usr")], &["/x ->/usr"]);
    becomes(vec![l().link("x", "/etc").device(b'3', "x", 1, 3)], &["/x c1:3"]);
    // usrmerge: a later layer writes through a link of the base image.
    becomes(
        vec![l().dir("usr").dir("usr/lib").link("lib", "usr/lib"), l().file("lib/a.so", "1")],
        &["/lib ->usr/lib", "/usr d755", "/usr/lib d755", "/usr/lib/a.so f1@1"],
    );
    // Chains and loops.
    becomes(
        vec![l().link("a", "b").link("b", "c").dir("c").file("a/x", "1")],
        &["/a ->b", "/b ->c", "/c d755", "/c/x f1@0"],
    );
    refused(vec![l().link("a", "b").link("b", "a").file("a/x", "1")], Problem::Loop);
    refused(vec![l().link("a", "a/b").file("a/x", "1")], Problem::Loop);
    refused(vec![l().file("f", "1").file("f/x", "1")], Problem::ParentNotDirectory("f".into()));
    refused(vec![l().device(b'3', "f", 1, 3), l().file("f/x", "1")], Problem::ParentNotDirectory("f".into()));
    refused(vec![l().link("a", "")], Problem::LinkTarget);
}

#[test]
fn a_parent_swapped_for_a_link() {
    becomes(
        vec![l().dir("d").file("d/a", "1").link("d", "/etc").file("d/b", "1")],
        &["/d ->/etc", "/etc d755", "/etc/b f1@0"],
    );
    becomes(
        vec![l().dir("d").file("d/a", "1"), l().link("d", "e"), l().file("d/b", "1")],
        &["/d ->e", "/e d755", "/e/b f1@2"],
    );
    becomes(vec![l().link("d", "/etc"), l().dir("d"), l().file("d/b", "1")], &["/d d755", "/d/b f1@2"]);
}

#[test]
fn hard_links() {
    becomes(vec![l().file("a", "1").hard("b", "a").hard("d/c", "/a")], &["/a f1@0", "/b =/a", "/d d755", "/d/c =/a"]);
    // A hard link to a lower layer: replacing one name keeps the other.
    becomes(vec![l().file("a", "1"), l().hard("b", "a"), l().file("a", "22")], &["/a f2@2", "/b f1@0"]);
    // A hard link to a symbolic link refers to the link itself, whatever its target.
    becomes(vec![l().link("s", "/etc/shadow").hard("h", "s")], &["/h ->/etc/shadow", "/s =/h"]);
    // A hard link through a symbolic link stays inside the tree.
    becomes(
        vec![l().dir("d").file("d/a", "1").link("s", "/d").hard("h", "s/a")],
        &["/d d755", "/d/a f1@0", "/h =/d/a", "/s ->/d"],
    );
    becomes(vec![l().file("a", "1").hard("a", "a")], &["/a f1@0"]);
    refused(vec![l().hard("h", "/etc/passwd")], Problem::LinkMissing("/etc/passwd".into()));
    refused(vec![l().hard("h", "../../etc/passwd")], Problem::Escapes);
    refused(vec![l().link("s", "/nowhere").hard("h", "s/x")], Problem::LinkMissing("s/x".into()));
    refused(vec![l().dir("d").hard("h", "d")], Problem::LinkToDirectory("d".into()));
    refused(vec![l().hard("h", "/")], Problem::LinkToDirectory("/".into()));
    refused(vec![l().file("a", "1"), l().file(".wh.a", "").hard("b", "a")], Problem::LinkMissing("a".into()));
}

#[test]
fn replacing() {
    becomes(vec![l().file("a", "1").dir("a").file("a/b", "1")], &["/a d755", "/a/b f1@0"]);
    becomes(vec![l().dir("a").file("a/b", "1"), l().file("a", "22")], &["/a f2@1"]);
    becomes(vec![l().dir("a").file("a/b", "1"), l().dir_mode("a", 0o700)], &["/a d700", "/a/b f1@0"]);
    becomes(vec![l().file("a", "1").file("a", "22")], &["/a f2@0"]);
    becomes(vec![l().fifo("a").device(b'4', "a", 8, 0)], &["/a b8:0"]);
    becomes(vec![l().file("d/x", "1").dir_mode("d", 0o711)], &["/d d711", "/d/x f1@0"]);
}

#[test]
fn whiteouts() {
    let base = || l().dir("d").file("d/a", "1").file("d/b", "1").dir("d/s").file("d/s/x", "1").file("f", "1");
    becomes(
        vec![base(), l().file(".wh.f", "").file("d/.wh.a", "")],
        &["/d d755", "/d/b f1@0", "/d/s d755", "/d/s/x f1@0"],
    );
    becomes(vec![base(), l().file(".wh.d", "")], &["/f f1@0"]);
    // Whiteouts of a missing name, below a missing directory, and below a file.
    becomes(vec![l().file("f", "1"), l().file(".wh.g", "").file("no/.wh.g", "").file("f/.wh.g", "")], &["/f f1@0"]);
    // The same layer also adds the name: the new file stays, in either order.
    becomes(
        vec![base(), l().file("f", "22").file(".wh.f", "")],
        &["/d d755", "/d/a f1@0", "/d/b f1@0", "/d/s d755", "/d/s/x f1@0", "/f f2@1"],
    );
    for layer in [l().file(".wh.d", "").dir("d").file("d/n", "1"), l().dir("d").file("d/n", "1").file(".wh.d", "")] {
        becomes(vec![base(), layer], &["/d d755", "/d/n f1@1", "/f f1@0"]);
    }
    // An opaque whiteout hides only lower layers, wherever it occurs in its layer.
    for layer in [
        l().dir("d").file("d/.wh..wh..opq", "").file("d/n", "1"),
        l().dir("d").file("d/n", "1").file("d/.wh..wh..opq", ""),
    ] {
        becomes(vec![base(), layer], &["/d d755", "/d/n f1@1", "/f f1@0"]);
    }
    // A new file deep in a lower directory survives its opaque ancestor.
    becomes(
        vec![base(), l().file("d/s/n", "1").file("d/.wh..wh..opq", "")],
        &["/d d755", "/d/s d755", "/d/s/n f1@1", "/f f1@0"],
    );
    becomes(vec![base(), l().file(".wh..wh..opq", "").file("n", "1")], &["/n f1@1"]);
    // A later layer adds the name again.
    becomes(vec![l().file("f", "1"), l().file(".wh.f", ""), l().file("f", "333")], &["/f f3@2"]);
}

#[test]
fn whiteouts_that_are_not_or_that_escape() {
    for name in [".wh.", "d/.wh.", ".wh..", ".wh...", "d/.wh..."] {
        refused(vec![l().dir("d").file("x", "1"), l().file(name, "")], Problem::Whiteout);
    }
    refused(vec![l().file(".wh.d/x", "1")], Problem::Whiteout);
    refused(vec![l().link("s", ".wh.d").file("s/x", "1")], Problem::Whiteout);
    refused(vec![l().file("../.wh.x", "")], Problem::Escapes);
    // A whiteout through a link stays inside the tree.
    becomes(
        vec![l().dir("etc").file("etc/passwd", "1").link("d", "/etc"), l().file("d/.wh.passwd", "")],
        &["/d ->/etc", "/etc d755"],
    );
    becomes(
        vec![l().link("d", "../../../etc").file("x", "1"), l().file("d/.wh.passwd", "")],
        &["/d ->../../../etc", "/x f1@0"],
    );
    // A whiteout never follows its own last component.
    becomes(vec![l().dir("etc").link("d", "/etc"), l().file(".wh.d", "")], &["/etc d755"]);
    // Internal files of aufs are ignored.
    becomes(vec![l().file(".wh..wh.aufs", "").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x")], &[]);
    // A directory that replaces a link is opaque by itself: the link's target keeps its children.
    becomes(
        vec![l().dir("run").file("run/x", "1").link("vr", "/run"), l().dir("vr").file("vr/.wh..wh..opq", "")],
        &["/run d755", "/run/x f1@0", "/vr d755"],
    );
}

#[test]
fn overlay_xattrs_of_an_image_are_not_the_overlays() {
    let tree = merge(vec![
        l().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.k", b"v\0=\n")])
            .dir("d")
            .device(b'3', "w", 0, 0),
    ]);
    let tree = tree.expect("a tree");
    let d = &tree.inodes[1];
    assert_eq!(d.xattrs.len(), 1);
    assert_eq!(d.xattrs.get(&b"user.k"[..]).map(AsRef::as_ref), Some(&b"v\0=\n"[..]));
    assert_eq!(show(&tree), ["/d d755", "/w c0:0"]);
}

#[test]
fn a_directory_listed_again_gets_the_new_xattrs_only() {
    let tree = merge(vec![
        l().pax(&[("SCHILY.xattr.user.old", b"1")]).dir("d"),
        l().pax(&[("SCHILY.xattr.user.new", b"2")]).dir("d"),
    ]);
    let keys: Vec<_> = tree.expect("a tree").inodes[1].xattrs.keys().cloned().collect();
    assert_eq!(keys, [Box::from(&b"user.new"[..])]);
}

#[test]
fn replaced_inodes_are_gone_and_the_same_layer_is_one_source() {
    let mut merger = Merger::new();
    for _ in 0..127 {
        merger.apply(Digest([7; 32]), scan(l().file("a", "1").file("b", "2"))).expect("a layer");
    }
    let tree = merger.finish();
    assert_eq!((tree.inodes.len(), tree.sources.len()), (3, 1));
    assert_eq!(merge(vec![]).expect("no layers").inodes.len(), 1);
}

#[test]
fn chain_ids() {
    let (a, b) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(chain_id(&[a]), a);
    let ab = crate::image::digest_of(format!("{a} {b}").as_bytes());
    assert_eq!(chain_id(&[a, b]), ab);
    assert_eq!(chain_id(&[a, b, a]), crate::image::digest_of(format!("{ab} {a}").as_bytes()));
}

#[test]
fn bombs_of_links_and_of_directories_are_refused() {
    // Each entry goes through 40 links of 4 KiB.
    let target = "../".repeat(1360) + "a";
    let mut links = l();
    for at in 0..39 {
        let next = format!("{}{}", &target[..target.len() - 1], format_args!("l{}", at + 1));
        links = links.pax(&[("linkpath", next.as_bytes())]).link(&format!("l{at}"), "x");
    }
    links = links.dir("l39");
    // Each new name has a different parent, so that the cached parent never applies.
    for at in 0..800 {
        links = links.file(&format!("l0/{at}/x"), "");
    }
    let mut merger = Merger::with_steps(10_000_000);
    let error = merger.apply(Digest([0; 32]), scan(links)).expect_err("too many links");
    assert_eq!(error.problem, Problem::TooManySteps);
    let deep = |at: usize| format!("{at}/{}", "d/".repeat(400));
    let mut merger = Merger { max_inodes: 20_000, ..Merger::new() };
    let entries: Vec<Entry> = (0..60usize)
        .map(|at| Entry {
            path: deep(at).into_bytes().into(),
            kind: EntryKind::Directory,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: BTreeMap::new(),
        })
        .collect();
    let error = merger.apply(Digest([0; 32]), entries).expect_err("too many directories");
    assert_eq!(error.problem, Problem::TooManyFiles);
}

/// Returns the steps that a merge takes, its final memory, and the tree.
fn cost(layers: &[Vec<Entry>], times: usize) -> (u64, usize, Tree) {
    let mut merger = Merger::new();
    for _ in 0..times {
        for (at, layer) in layers.iter().enumerate() {
            merger.apply(Digest([at as u8; 32]), layer.iter().cloned()).expect("a layer");
        }
    }
    (MAX_STEPS - merger.steps_left(), merger.memory, merger.finish())
}

#[test]
fn a_layer_that_is_listed_often_needs_no_more_memory() {
    let mut layer = l();
    for at in 0..200 {
        layer = layer.pax(&[("SCHILY.xattr.user.k", &[b'v'; 1000])]).file(&format!("d{}/f{at}", at % 7), "1");
        layer = layer.hard(&format!("d{}/h{at}", at % 7), &format!("d{}/f{at}", at % 7)).link(&format!("l{at}"), "x");
        layer = layer.dir(&format!("e{at}/x"));
    }
    let layers = [scan(layer), scan(l().file("e1", "").file("e2/.wh..wh..opq", "").file(".wh.e3", "").dir("e1"))];
    let (once, small, tree) = cost(&layers, 1);
    let (many, large, same) = cost(&layers, 50);
    assert_eq!(small, large, "what a later layer replaces is freed");
    assert_eq!(show(&tree), show(&same));
    assert!(many <= once * 60, "{many} steps, {once} for one time");
}

#[test]
fn a_whiteout_repeated_is_no_work() {
    // A directory with many files, marked opaque 25 000 times. Then the same with a subdirectory, and with names hidden
    // one by one.
    let mut layer = l();
    for at in 0..2000 {
        layer = layer.file(&format!("a/b/f{at}"), "");
    }
    let (plain, ..) = cost(&[scan(layer.clone())], 1);
    for marker in ["a/b/.wh..wh..opq", "a/.wh..wh..opq", ".wh..wh..opq", "a/.wh.b", ".wh.a"] {
        let mut many = scan(layer.clone());
        let marker_entry = scan(l().file(marker, "")).remove(0);
        many.extend(std::iter::repeat_n(marker_entry, 25_000));
        let (steps, _, tree) = cost(&[many], 1);
        assert!(steps < plain + 4 * 25_000 + 5000, "{marker}: {steps}");
        assert_eq!(tree.inodes.len(), 2003, "{marker}: they hide what is below alone");
    }
}

#[test]
fn the_memory_of_a_tree_is_bounded() {
    let mut merger = Merger { max_memory: 1 << 20, ..Merger::new() };
    let layer = |at: usize| {
        let mut layer = l();
        for file in 0..20 {
            layer = layer.pax(&[("SCHILY.xattr.user.k", &[b'v'; 60_000])]).file(&format!("{at}-{file}"), "");
        }
        scan(layer)
    };
    let error = merger.apply(Digest([0; 32]), layer(0)).and_then(|()| merger.apply(Digest([1; 32]), layer(1)));
    assert_eq!(error.expect_err("too much").problem, Problem::TooMuchMemory);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Paths from few names, so that entries collide.
    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop::sample::select(vec!["a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..."]),
            1..5,
        )
        .prop_map(|parts| parts.join("/"))
    }

    fn member() -> impl Strategy<Value = (u8, String, String)> {
        (prop::sample::select(b"01256".to_vec()), path(), path())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Every layer is either rejected or gives a tree in which every id is reachable, every name is plain, and no
        /// whiteout remains.
        #[test]
        fn every_merge_is_a_tree(layers in prop::collection::vec(prop::collection::vec(member(), 0..12), 1..4)) {
            let layers: Vec<Layer> = layers
                .into_iter()
                .map(|members| members.iter().fold(l(), |layer, (kind, name, link)| layer.member(*kind, name, link)))
                .collect();
            if let Ok(tree) = merge(layers) {
                let mut named = vec![0; tree.inodes.len()];
                named[0] = 1;
                for inode in &tree.inodes {
                    let Kind::Directory(children) = &inode.kind else { continue };
                    for (name, id) in children {
                        prop_assert!(!name.is_empty() && !name.contains(&b'/') && name.as_ref() != b"." && name.as_ref() != b"..");
                        prop_assert!(!name.starts_with(b".wh."), "{}", name.escape_ascii());
                        named[id.0 as usize] += 1;
                    }
                }
                prop_assert!(named.iter().all(|names| *names > 0));
                for (inode, names) in tree.inodes.iter().zip(named) {
                    prop_assert!(!matches!(inode.kind, Kind::Directory(_)) || names == 1, "a directory has one name");
                }
            }
        }
    }
}
